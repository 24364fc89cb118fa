"""sql/pgraft_shm.h agrees with layout.py, and a C compiler reads the same numbers from it."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from pgraft import __version__
from pgraft.shm import header, layout

SQL = header.HEADER_PATH.parent


def test_the_committed_header_is_the_generated_one() -> None:
    assert header.HEADER_PATH.read_text(encoding="utf-8") == header.render(), (
        "run python -m pgraft.shm.header and commit the result"
    )
    assert header.main(["--check"]) == 0


def test_check_sees_a_difference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "pgraft_shm.h"
    monkeypatch.setattr(header, "HEADER_PATH", path)
    assert header.main(["--check"]) == 1
    assert header.main([]) == 0
    assert header.main(["--check"]) == 0
    monkeypatch.setitem(layout.WORKER_WORDS, "lease_end_ns", 1)
    assert header.main(["--check"]) == 1
    assert "python -m pgraft.shm.header" in capsys.readouterr().err
    assert header.main(["--what"]) == 2


def test_every_public_number_of_the_layout_is_in_the_header() -> None:
    names = {name for name, value in vars(layout).items() if name.isupper() and isinstance(value, int)}
    inner = {"PEER_RING_BYTES"}
    assert {f"PGRAFT_{name}" for name in names - inner} <= set(header.constants())


def test_a_c_compiler_reads_the_same_numbers(tmp_path: Path) -> None:
    constants = header.constants()
    prints = "\n".join(f'printf("{name} %llu\\n", (unsigned long long) {name});' for name in constants)
    source = tmp_path / "numbers.c"
    source.write_text(
        f'#include <stdio.h>\n#include "pgraft_shm.h"\nint main(void) {{ puts(PGRAFT_VERSION);\n{prints}\n'
        "return 0; }\n"
    )
    program = tmp_path / "numbers"
    subprocess.run(["gcc", "-Werror", "-Wall", f"-I{SQL}", source, "-o", program], check=True, timeout=60)
    done = subprocess.run([program], check=True, capture_output=True, text=True, timeout=10)
    lines = done.stdout.split("\n")
    assert lines[0] == __version__
    assert dict(line.split() for line in lines[1:] if line) == {
        name: str(value) for name, value in constants.items()
    }


def test_one_version_everywhere() -> None:
    control = (SQL / "pgraft.control").read_text()
    assert re.search(r"^default_version = '(.*)'$", control, re.MULTILINE).group(1) == __version__  # type: ignore[union-attr]
    assert (SQL / f"pgraft--{__version__}.sql").is_file()
    assert f"DATA = pgraft--{__version__}.sql" in (SQL / "Makefile").read_text()
