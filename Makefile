# pgraft: everything that a fresh machine needs is done here, from python3, make and a C compiler.
#
#   make demo    a cluster of three nodes on this machine
#   make test    the tests
#   make check   what CI checks beside the tests
#   make bench   the benchmarks
#   make help    the rest

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

# PostgreSQL does not run as root. Run by root, it runs as another user, who must be able to read the
# virtual environment and the Python it was made from; so both lie where everyone can read.
PYTHON ?= $(shell .ci/find-python)
ifndef VENV
VENV := $(shell .ci/find-venv)
endif
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SOURCES := $(shell find pgraft launcher sql -name '*.py' -o -name '*.c' -o -name '*.h' -o -name '*.sql' -o -name '*.control' -o -name 'Makefile') pyproject.toml
NODES ?= 3
TLS ?=
TEST_JOBS ?= 4
MINUTES ?= 10
# Not from the environment: bash keeps a SECONDS of its own.
SIM_SECONDS := $(if $(filter command line,$(origin SECONDS)),$(SECONDS),60)
FUZZ_SECONDS := $(SIM_SECONDS)
FORM ?= processes

.PHONY: help demo demo-status demo-down test test-shm check format bench fuzz sim coverage soak profiles generate clean

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "make %-12s %s\n", $$1, $$2}'

$(BIN)/python:
	@echo "== virtual environment in $(VENV), with $(PYTHON)"
	@.ci/make-venv "$(PYTHON)" "$(VENV)"

$(STAMP): $(BIN)/python pyproject.toml
	@echo "== installing what pgraft needs (about a minute the first time)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=23' 'setuptools>=77'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check '.[embedded,tls,dev]'
	@touch $@

# pgraft itself is installed anew whenever a source changes, without its dependencies.
$(VENV)/.pgraft: $(STAMP) $(SOURCES)
	@echo "== installing pgraft into $(VENV)"
	@rm -rf build pgraft.egg-info
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --force-reinstall .
	@rm -rf build pgraft.egg-info
	@touch $@

# The shim, for each PostgreSQL that comes with the embedded extra.
$(VENV)/.shim: $(VENV)/.pgraft
	@for config in $$($(BIN)/python .ci/embedded_postgres.py); do \
	    echo "== building the SQL shim for $$($$config --version)"; \
	    $(BIN)/pgraft-launch install-extension --pg-config "$$config"; \
	done
	@touch $@

demo: $(VENV)/.shim ## a healthy cluster of three nodes on this machine; make demo-down ends it; TLS=0 without TLS
	@$(BIN)/pgraft-launch demo up --nodes $(NODES) $(if $(TLS),$(if $(filter 0 no off,$(TLS)),--no-tls,--tls))

demo-status: $(VENV)/.shim ## how the demo cluster is
	@$(BIN)/pgraft-launch demo status

demo-down: $(VENV)/.shim ## stop the demo cluster and remove it
	@$(BIN)/pgraft-launch demo down

test: $(VENV)/.shim test-shm ## all tests but the slow ones
	@echo "== tests (real PostgreSQL 16 and 18, real processes)"
	@$(BIN)/python -m pytest -q -n $(TEST_JOBS) --dist worksteal $(TESTS)

# The parts that touch shared memory run on Python 3.13, too, where there is one.
test-shm: $(VENV)/.shim
	@.ci/test-shm-313

check: $(STAMP) ## format, lint, types, import layers, generated files
	@echo "== ruff format"; $(BIN)/ruff format --check --quiet .
	@echo "== ruff check"; $(BIN)/ruff check --quiet .
	@echo "== mypy --strict"; $(BIN)/mypy --no-error-summary
	@echo "== import layers"; PYTHONPATH=.:launcher $(BIN)/lint-imports --no-logo --no-cache >$(VENV)/.layers.log || { cat $(VENV)/.layers.log; exit 1; }
	@echo "== generated headers"; $(BIN)/python -m pgraft.shm.header --check; $(BIN)/python -m pgraft.postgres.settings_header --check
	@echo "check: all good"

format: $(STAMP) ## put the code into its format
	@$(BIN)/ruff check --fix --quiet . || true
	@$(BIN)/ruff format --quiet .

generate: $(STAMP) ## write the C headers that are made from Python tables
	@$(BIN)/python -m pgraft.shm.header
	@$(BIN)/python -m pgraft.postgres.settings_header

sim: $(STAMP) ## the simulator, for SECONDS=60 on all cores, with coverage of the core; SEED=N replays one
	@$(BIN)/python -m tests.simulation $(if $(SEED),--seed $(SEED),--seconds $(SIM_SECONDS) --coverage) $(SIM)

coverage: $(STAMP) ## branch coverage: pgraft/raft 100 % by its tests and the simulator, pgraft/statemachine 98 %, or it fails
	@$(BIN)/python -m coverage run --branch --source=pgraft.raft -m pytest -q -p no:cacheprovider \
	    tests/unit/raft tests/paper tests/conformance tests/simulation/test_simulation_runs.py
	@$(BIN)/python -m coverage report --show-missing --fail-under=100; rm -f .coverage
	@$(BIN)/python -m coverage run --branch --source=pgraft.statemachine -m pytest -q -p no:cacheprovider tests/unit/statemachine
	@$(BIN)/python -m coverage report --show-missing --fail-under=98; rm -f .coverage

bench: $(VENV)/.shim ## benchmarks, against etcd where it is installed; BENCH="--quick" for a short run
	@$(BIN)/python -m bench $(BENCH)

soak: $(VENV)/.shim ## a cluster under faults, checked: MINUTES=10 FORM=processes|network|storage NODES=3 SEED=
	@$(BIN)/python -m tests.soak --form $(FORM) --minutes $(MINUTES) --nodes $(NODES) $(if $(SEED),--seed $(SEED)) $(SOAK)

profiles: $(VENV)/.shim ## LAN and WAN timing over slow links, no spurious election: MINUTES=10 PROFILES="--nodes 3 5 7"
	@$(BIN)/python -m tests.soak.profiles --minutes $(MINUTES) $(PROFILES)

fuzz: $(VENV)/.pgraft ## every fuzzer for SECONDS=60 each, with counts; FUZZ="nodes --seed 3" for one
	@$(BIN)/python -m tests.fuzz --seconds $(FUZZ_SECONDS) $(FUZZ)

clean: ## remove what was built here
	@rm -rf .venv .venv313 build pgraft.egg-info .pytest_cache .mypy_cache .ruff_cache
