"""Misspelt settings are found where PostgreSQL would look for them."""

from __future__ import annotations

from pathlib import Path

from pgraft.postgres.settings import SETTINGS
from pgraft.postgres.unknown import find_unknown


def test_names_are_found_in_files_and_what_they_include(tmp_path: Path) -> None:
    conf, extra, folder = tmp_path / "postgresql.conf", tmp_path / "it's.conf", tmp_path / "conf.d"
    folder.mkdir()
    conf.write_text(
        "# pgraft.comment = 1\npgraft.election_timeout = 500 # pgraft.x = 1\n"
        "pgraft.election_timout = 500\n  PGRAFT.Nam 'x'\nother.name = 2\nwork_mem = 'pgraft.y = 1'\n"
        "include 'it''s.conf'\ninclude_if_exists = missing.conf\ninclude_dir 'conf.d'\n"
        "include 'postgresql.conf'\n"
    )
    extra.write_text("pgraft.zzzzqqqq on\n")
    (folder / "b.conf").write_text("pgraft.data_dirs='/x'\n")
    (folder / "ignored.txt").write_text("pgraft.c = 1\n")
    auto = tmp_path / "postgresql.auto.conf"
    auto.write_text("pgraft.ssl_enable = 'on'\n")
    found = find_unknown(
        [str(conf), str(auto)], ["-c", "pgraft.portt=1", "-cpgraft.port=7001", "--pgraft.no=1"]
    )
    said = {str(one) for one in found}
    assert said == {
        f"{conf}:3: there is no setting pgraft.election_timout, it is ignored; did you mean"
        " pgraft.election_timeout?",
        f"{conf}:4: there is no setting PGRAFT.Nam, it is ignored; did you mean pgraft.name?",
        f"{extra}:1: there is no setting pgraft.zzzzqqqq, it is ignored",
        f"{folder}/b.conf:1: there is no setting pgraft.data_dirs, it is ignored; did you mean"
        " pgraft.data_dir?",
        f"{auto}:1: there is no setting pgraft.ssl_enable, it is ignored; did you mean pgraft.ssl_enabled?",
        "options: there is no setting pgraft.portt, it is ignored; did you mean pgraft.port?",
        "options: there is no setting pgraft.no, it is ignored",
    }


def test_every_setting_is_known(tmp_path: Path) -> None:
    conf = tmp_path / "postgresql.conf"
    conf.write_text("".join(f"{setting.name} = 1\n" for setting in SETTINGS))
    assert find_unknown([str(conf), str(tmp_path / "missing")]) == []
