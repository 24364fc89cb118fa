"""Values as PostgreSQL parses them, checked against PostgreSQL itself."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from pgraft.postgres.binaries import Installation
from pgraft.postgres.errors import SettingError
from pgraft.postgres.parse import parse_bool, parse_integer, parse_setting
from pgraft.postgres.settings import BY_NAME, INT_MAX

INTEGERS = """
    0 1 1000 007 010 08 0x10 0xFF +5 1s 500ms 2min 1h 1d 1us 1500us 1.5s .5s 1e3 1e3ms 1.5 2.5 0.5 1S 1Min 1kB
    1x 1_000 abc 12abc
"""
SPACED = ("1 s", " 7", "7 ", "1  min", "", " ", "1 s s", "- 1")
MEMORY = "1 64kB 1MB 2GB 1B 512B 2048B 1.5MB 1mb 1KB 1TB 3000TB 1s 0.4kB"
BOOLEANS = "on off of o ON Off t tr true TRUE f false y ye yes n no 1 0 2 00 enable tru3"


def answer(installation: Installation, data_dir: Path, name: str, text: str) -> str | None:
    """What PostgreSQL makes of the text; None when it refuses."""
    argv = [installation.program("postgres"), "-C", name, "-D", str(data_dir), "-c", f"{name}={text}"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


@pytest.mark.parametrize("text", [*INTEGERS.split(), *SPACED])
def test_times(installation: Installation, data_dir: Path, text: str) -> None:
    theirs = answer(installation, data_dir, "lock_timeout", text)
    ours = parse_integer(text, "ms")
    if ours is not None and not 0 <= ours <= INT_MAX:
        ours = None
    assert ours == (None if theirs is None else int(theirs))


@pytest.mark.parametrize("text", MEMORY.split())
def test_memory(installation: Installation, data_dir: Path, text: str) -> None:
    theirs = answer(installation, data_dir, "wal_skip_threshold", text)
    ours = parse_integer(text, "kB")
    if ours is None or not 0 <= ours <= INT_MAX:
        assert theirs is None
    else:
        assert theirs == str(ours)


@pytest.mark.parametrize("text", ["1", "010", "1s", "1kB", "2.4"])
def test_plain_numbers_take_no_unit(installation: Installation, data_dir: Path, text: str) -> None:
    theirs = answer(installation, data_dir, "max_wal_senders", text)
    ours = parse_integer(text, "")
    assert theirs == (None if ours is None else str(ours))


@pytest.mark.parametrize("text", [*BOOLEANS.split(), "", " on"])
def test_booleans(installation: Installation, data_dir: Path, text: str) -> None:
    theirs = answer(installation, data_dir, "full_page_writes", text)
    ours = parse_bool(text)
    assert theirs == {True: "on", False: "off", None: None}[ours]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("pgraft.election_timeout", "99ms", "from 100 ms to 600000 ms"),
        ("pgraft.election_timeout", "1 parsec", "units are us, ms, s, min, h, d"),
        ("pgraft.port", "65536", "from 0 to 65535"),
        ("pgraft.node_id", "-1", "from 0 to 2147483647"),
        ("pgraft.log_keep_entries", "99999999999", "from 1000 to"),
        ("pgraft.ssl_enabled", "maybe", "on or off"),
        ("pgraft.initial_cluster_state", "old", "new or existing"),
    ],
)
def test_an_error_names_setting_value_and_what_is_allowed(name: str, text: str, words: str) -> None:
    with pytest.raises(SettingError) as caught:
        parse_setting(BY_NAME[name], text)
    line = f"{caught.value.message} ({caught.value.hint})"
    assert line.startswith(f"{name} = '{text}': must be ")
    assert words in line
    assert "\n" not in line


def test_enumerations_are_read_as_postgres_reads_them() -> None:
    assert parse_setting(BY_NAME["pgraft.initial_cluster_state"], "Existing") == "existing"
