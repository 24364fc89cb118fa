"""sql/pgraft_settings.h agrees with settings.py. What PostgreSQL makes of it: tests/unit/sql."""

from __future__ import annotations

from pathlib import Path

import pytest

from pgraft.postgres import settings_header
from pgraft.postgres.settings import SETTINGS


def test_the_committed_header_is_the_generated_one() -> None:
    assert settings_header.HEADER_PATH.read_text(encoding="utf-8") == settings_header.render(), (
        "run python -m pgraft.postgres.settings_header and commit the result"
    )
    assert settings_header.main(["--check"]) == 0


def test_check_sees_a_difference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "pgraft_settings.h"
    monkeypatch.setattr(settings_header, "HEADER_PATH", path)
    assert settings_header.main(["--check"]) == 1
    assert settings_header.main([]) == 0
    assert settings_header.main(["--check"]) == 0
    monkeypatch.setattr(settings_header, "SETTINGS", SETTINGS[1:])
    assert settings_header.main(["--check"]) == 1
    assert "run python -m pgraft.postgres.settings_header" in capsys.readouterr().err
    assert settings_header.main(["--what"]) == 2


def test_every_setting_is_there_once() -> None:
    text = settings_header.render()
    for setting in SETTINGS:
        assert text.count(f'"{setting.name}"') == 1


def test_strings_are_quoted() -> None:
    assert settings_header.c_string('a "b" \\c') == '"a \\"b\\" \\\\c"'
    with pytest.raises(ValueError, match="printable"):
        settings_header.c_string("line\nbreak")
