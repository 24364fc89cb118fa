"""<data_dir>/run: the record survives damage, and a reboot."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest

from pgraft.postgres import process
from pgraft_launcher import rundir
from pgraft_launcher.policy import Part
from pgraft_launcher.rundir import Plan, Record


@pytest.fixture
def record(tmp_path: Path) -> Record:
    """A record that names this very process as supervisor and worker."""
    (tmp_path / "run").mkdir()
    me = process.identify(os.getpid())
    assert me is not None
    folder = str(tmp_path)
    plan = Plan(
        name="n",
        config_dir="/etc/x",
        pgdata="/srv/\udcff",
        data_dir=folder,
        bindir="/bin",
        segment="s",
        options=["-c", "a=b c"],
        socket_dirs=["/tmp"],
        log="",
        autostart=True,
    )
    return Record(plan, me, {Part.WORKER: me}, {Part.NETWORK: "exit code 3"})


def test_a_record_comes_back_as_it_was(record: Record) -> None:
    rundir.save(record)
    back = rundir.load(record.plan.data_dir)
    assert back is not None
    assert back.plan.as_dict() == record.plan.as_dict()
    assert (back.supervisor, back.processes, back.given_up) == (
        record.supervisor,
        record.processes,
        record.given_up,
    )
    assert back.place == record.place


def test_a_record_that_came_with_a_copy_is_not_ours(record: Record, tmp_path: Path) -> None:
    rundir.save(record)
    copy = tmp_path / "copy"
    shutil.copytree(tmp_path / "run", copy / "run")
    assert rundir.load(str(copy)) is None
    link = tmp_path / "link"
    link.symlink_to(tmp_path)
    assert rundir.load(f"{link}/") is not None


def test_processes_of_an_earlier_boot_do_not_live(record: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    rundir.save(record)
    monkeypatch.setattr(rundir, "boot_id", lambda: "another")
    back = rundir.load(record.plan.data_dir)
    assert back is not None
    assert back.supervisor is None
    assert back.processes == {}
    assert back.plan.options == record.plan.options


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"plan": {}}', "\0\0", "null"])
def test_a_damaged_record_is_none(record: Record, text: str) -> None:
    rundir.save(record)
    Path(rundir.path(record.plan.data_dir, "supervisor.json")).write_text(text)
    assert rundir.load(record.plan.data_dir) is None


def test_the_lock_is_exclusive_and_goes_with_its_holder(record: Record) -> None:
    first = rundir.take_lock(record.plan.data_dir)
    assert first is not None
    assert rundir.take_lock(record.plan.data_dir) is None
    os.close(first)
    second = rundir.take_lock(record.plan.data_dir)
    assert second is not None
    os.close(second)


def test_cleaning_keeps_what_status_needs(record: Record) -> None:
    rundir.save(record)
    run = Path(rundir.path(record.plan.data_dir))
    for name in ("worker.bell", "slot.1.bell", "segment", "node.json", "x.new"):
        (run / name).write_text("")
    rundir.clean(record.plan.data_dir)
    assert sorted(path.name for path in run.iterdir()) == [
        "node.json",
        "supervisor.json",
        "supervisor.json.spare",
    ]


def test_a_disk_that_fills_up_in_the_middle_leaves_the_old_record(
    record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    rundir.save(record)
    Path(rundir.path(record.plan.data_dir, "supervisor.json.spare")).unlink()
    old = Path(rundir.path(record.plan.data_dir, "supervisor.json")).read_bytes()
    real, room = os.write, [100]

    def write(descriptor: int, data: memoryview) -> int:
        if not room[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        done = real(descriptor, data[: room[0]])
        room[0] -= done
        return done

    record.plan.name = "other"
    monkeypatch.setattr(os, "write", write)
    with pytest.raises(OSError, match=r"No space left on device.*supervisor\.json") as caught:
        rundir.save(record)
    assert caught.value.errno == errno.ENOSPC
    assert Path(rundir.path(record.plan.data_dir, "supervisor.json")).read_bytes() == old
    assert sorted(os.listdir(rundir.path(record.plan.data_dir))) == ["supervisor.json"]
