"""The block in postgresql.conf, read back by PostgreSQL."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pgraft.postgres import conffile
from pgraft.postgres.binaries import Installation
from pgraft.postgres.errors import PostgresError
from pgraft.postgres.reader import Reader, guess_data_directory, split_options

NOTES = {"bindir": "/opt/pg/bin", "superuser": "admin"}
HOSTILE = ("a'b", "back\\slash", "''", "tab\there", "new\nline", "ünïcode 🙂", "x # no comment", "a\\'b", " ")


@pytest.fixture
def config_dir(data_dir: Path, tmp_path: Path) -> Path:
    """A copy of the configuration, for one test."""
    for name in ("PG_VERSION", "postgresql.conf", "pg_hba.conf"):
        shutil.copy(data_dir / name, tmp_path / name)
    return tmp_path


@pytest.mark.parametrize("value", HOSTILE)
def test_any_text_survives_quoting(installation: Installation, config_dir: Path, value: str) -> None:
    path = config_dir / "postgresql.conf"
    conffile.replace_file(path, conffile.with_block(path.read_text(), {"pgraft.name": value}, {}))
    assert Reader(installation, config_dir).read_pgraft() == {"pgraft.name": value}


def test_a_second_init_replaces_the_block_and_nothing_else() -> None:
    users = "# mine\nport = 1\n"
    once = conffile.with_block(users, {"port": "2"}, NOTES)
    twice = conffile.with_block(once + "work_mem = 1MB\n", {"port": "3"}, NOTES)
    assert conffile.without_block(once).rstrip("\n") + "\n" == users
    assert conffile.with_block(once, {"port": "2"}, NOTES) == once
    assert twice.count(conffile.BEGIN) == 1
    assert "work_mem = 1MB" in twice
    assert "port = '2'" not in twice
    assert conffile.notes(twice) == NOTES


@pytest.mark.parametrize(
    ("current", "wanted"),
    [
        ("", "pgraft"),
        ("pg_stat_statements", "pg_stat_statements,pgraft"),
        ("a, pgraft", "a, pgraft"),
        ('"pgraft"', '"pgraft"'),
        ("$libdir/pgraft", "$libdir/pgraft"),
        ("pgraft_other", "pgraft_other,pgraft"),
    ],
)
def test_libraries_that_are_there_stay(current: str, wanted: str) -> None:
    assert conffile.library_list(current) == wanted


@pytest.mark.parametrize("name", ["", "a b", "x=1", "pgraft.", "1x", "a\nb"])
def test_names_that_would_break_the_file_are_refused(name: str) -> None:
    with pytest.raises(PostgresError):
        conffile.with_block("", {name: "1"}, {})


def test_options_includes_and_alter_system_count(installation: Installation, config_dir: Path) -> None:
    (config_dir / "extra.conf").write_text("pgraft.name = 'included'\npgraft.port = 1\n")
    with (config_dir / "postgresql.conf").open("a") as file:
        file.write("include 'extra.conf'\n")
    (config_dir / "postgresql.auto.conf").write_text("pgraft.port = '2'\n")
    options = split_options(["-c pgraft.address=host", "-c 'pgraft.cluster_id=two words'"])
    assert Reader(installation, config_dir, options).read_pgraft() == {
        "pgraft.name": "included",
        "pgraft.port": "2",
        "pgraft.address": "host",
        "pgraft.cluster_id": "two words",
    }


def test_a_broken_file_is_one_line(installation: Installation, config_dir: Path) -> None:
    with (config_dir / "postgresql.conf").open("a") as file:
        file.write("this is 'not\n")
    with pytest.raises(PostgresError, match="syntax error in file") as caught:
        Reader(installation, config_dir).read_pgraft()
    assert "\n" not in caught.value.message


def test_a_configuration_directory_leads_to_its_data(tmp_path: Path) -> None:
    (tmp_path / "postgresql.conf").write_text(
        "#data_directory = 'no'\n data_directory = '/srv/it''s' # yes\n"
    )
    assert guess_data_directory(tmp_path) == Path("/srv/it's")


def test_a_replaced_file_keeps_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "postgresql.conf"
    path.write_text("x")
    path.chmod(0o640)
    conffile.replace_file(path, "y")
    assert path.read_text() == "y"
    assert path.stat().st_mode & 0o777 == 0o640
    assert list(tmp_path.iterdir()) == [path]
