"""The openssl commands of README.md make certificates that nodes accept."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from pgraft.transport.tls import TlsContext
from pgraft.transport.tls_files import TlsFiles, Whom

README = Path(__file__).resolve().parents[3] / "README.md"


@pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl here")
def test_the_commands_of_the_readme(tmp_path: Path) -> None:
    blocks = [text for text in re.findall(r"```sh\n(.*?)```", README.read_text(), re.S) if "openssl" in text]
    assert len(blocks) == 1
    done = subprocess.run(
        ["sh", "-eu", "-c", blocks[0]], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "node1.key").stat().st_mode & 0o777 == 0o600
    files = TlsFiles(*(str(tmp_path / name) for name in ("node1.crt", "node1.key", "ca.crt")))
    left_s = TlsContext(files).check_own(Whom("pgraft", 1, "10.0.1.11"))
    assert 364 * 86400 < left_s <= 365 * 86400
