"""What the pages and the JSON say of a node: alive, dead, torn."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from pgraft.inspector.cli import main
from pgraft.shm import layout
from pgraft.shm.words import now_ns


def run_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict:
    assert main(["json", *arguments]) == 0
    return json.loads(capsys.readouterr().out)


def test_show_tells_who_leads_and_who_is_away(node, capsys):
    assert main(["show", "-D", str(node.pgdata)]) == 0
    page = capsys.readouterr().out
    assert '"node1" (node 1) of cluster "orders"' in page
    assert "is leader     yes, its lease runs for another" in page
    lines = {line.split("|")[0].strip(): line for line in page.splitlines() if "127.0.0.1" in line}
    assert "Leader" in lines["1"]
    assert "this node, leader" in lines["1"]
    assert "Follower" in lines["2"]
    assert "Unreachable" in lines["3"]
    assert "removed: 9" in page


def test_json_has_the_documented_fields(node, capsys):
    shown = run_json(capsys, node.name)
    readme = Path(__file__).parents[3] / "pgraft" / "inspector" / "README.md"
    documented = readme.read_text()
    for field in shown:
        assert f"`{field}`" in documented, f"README.md does not say what {field} is"
    for field in (*shown["status"], *shown["members"][0], *shown["waiting"], *shown["rings"]["command"]):
        assert f"`{field}`" in documented, f"README.md does not say what {field} is"
    assert shown["state"] == "running"
    assert shown["is_leader"] is True
    assert shown["status"]["commit_index"] == 120
    assert [member["state"] for member in shown["members"]] == ["Leader", "Follower", "Unreachable"]
    assert shown["processes"]["worker"] == {"pid": os.getpid(), "alive": True}
    assert shown["processes"]["supervisor"]["alive"] is False
    assert "not running: supervisor, network, postmaster" in shown["notes"]


def test_a_pid_that_belongs_to_another_process_now_is_not_alive(node, capsys):
    node.segment.header["worker_start"] -= 1
    shown = run_json(capsys, node.name)
    assert shown["processes"]["worker"]["alive"] is False
    assert shown["state"] == "stopped"
    assert shown["last_state"] == "running"
    assert "no process of this node runs: this is its last state before they ended" in shown["notes"]


def test_silent_worker_is_in_error_and_an_expired_lease_is_no_lease(node, capsys):
    node.segment.worker["beat_ns"] = now_ns() - 5 * 10**9
    node.segment.worker["lease_end_ns"] = now_ns() - 1
    shown = run_json(capsys, node.name)
    assert shown["state"] == "error"
    assert shown["is_leader"] is False
    assert shown["lease_ms_left"] == 0


def test_moment_that_lies_ahead_is_not_credible(node, capsys):
    node.segment.worker["beat_ns"] = now_ns() + 60 * 10**9
    shown = run_json(capsys, node.name)
    assert shown["worker_beat_ms_ago"] is None
    assert shown["state"] == "error"


def test_lease_that_is_longer_than_any_is_damage(node, capsys):
    node.segment.worker["lease_end_ns"] = now_ns() + 3600 * 10**9
    shown = run_json(capsys, node.name)
    assert (shown["is_leader"], shown["lease_ms_left"]) == (False, 0)
    assert any("later than any lease" in note for note in shown["notes"])


def test_worker_that_gave_up_is_in_error_as_long_as_its_supervisor_lives(node, capsys):
    node.segment.worker["state"] = layout.WorkerState.ERROR
    node.segment.set_worker_text("error", "the disk is gone")
    node.segment.header["worker_start"] -= 1
    assert run_json(capsys, node.name)["state"] == "stopped"
    node.segment.header["supervisor_pid"] = os.getpid()
    shown = run_json(capsys, node.name)
    assert (shown["state"], shown["error"]) == ("error", "the disk is gone")


def test_retired_segment_leads_nothing(node, capsys):
    node.segment.header["retired"] = 1
    shown = run_json(capsys, node.name)
    assert (shown["is_leader"], shown["state"], shown["retired"]) == (False, "stopped", True)


def test_torn_newest_copy_shows_the_older_one_and_says_so(node, capsys):
    from pgraft.shm.blocks import StatusWriter, read_status

    older = read_status(node.segment)
    newer = read_status(node.segment)
    newer.commit_index = 777
    StatusWriter(node.segment).publish(newer)
    chosen = node.segment.worker["status_selector"] & 1
    copy = node.segment.bytes_at(layout.STATUS_OFFSET + chosen * layout.STATUS_COPY_BYTES, 512)
    copy[300] ^= 1
    shown = run_json(capsys, node.name)
    assert shown["status"]["commit_index"] == older.commit_index
    assert any("newest copy of the status block is torn" in note for note in shown["notes"])


def test_both_copies_torn_is_said_and_the_rest_is_shown(node, capsys):
    size = 2 * layout.STATUS_COPY_BYTES
    node.segment.bytes_at(layout.STATUS_OFFSET, size)[:] = b"\xa5" * size
    shown = run_json(capsys, node.name)
    assert shown["status"] is None
    assert any("neither of its two copies" in note for note in shown["notes"])
    assert [member["address"] for member in shown["members"]] == ["127.0.0.1"] * 3
    assert main(["show", node.name]) == 0
    assert "cannot be read" in capsys.readouterr().out


def test_text_cannot_steer_the_terminal(node, capsys):
    node.segment.set_text("node_name", "a\x1b[2Jb\nc")
    node.segment.set_worker_text("error", "\x1b]0;title\x07")
    assert main(["show", node.name]) == 0
    page = capsys.readouterr().out
    assert "\x1b" not in page
    assert '"a?[2Jb?c"' in page


def test_rings_decodes_what_waits_and_takes_nothing(node, capsys):
    first = node.put_command("héllo\x1b".encode(), slot=2, request_no=5)
    slot = node.segment.slot(2)
    slot.words[layout.SLOT_BACKEND_WORDS["owner"]] = os.getpid() << 32 | 1
    slot.words[layout.SLOT_BACKEND_WORDS["request_no"]] = 5
    slot.words[layout.SLOT_BACKEND_WORDS["state"]] = layout.SlotState.SUBMITTED
    for _ in range(2):
        waiting = run_json(capsys, node.name)["waiting"]
        (command,) = waiting["commands"]
        assert (command["position"], command["kind"], command["slot"]) == (first, "replicate", 2)
        assert (command["preview"], command["whole"]) == ("héllo?", True)
        (message,) = waiting["outbound_messages"]
        assert (message["kind"], message["node_id"]) == ("message", 2)
        (used,) = waiting["slots"]
        assert (used["number"], used["pid"], used["state"]) == (2, os.getpid(), "submitted")
    assert main(["rings", node.name]) == 0
    page = capsys.readouterr().out
    assert "replicate" in page
    assert "result slots: 1 of 4 in use" in page


def test_record_that_wraps_around_the_ring_is_read(node, capsys):
    head = node.segment.command_head()
    near_end = node.segment.header["command_ring_bytes"] - 32
    head.store(near_end)
    node.segment.worker["command_tail"] = near_end
    node.put_command(b"wrapped around")
    (command,) = run_json(capsys, node.name)["waiting"]["commands"]
    assert command["preview"] == "wrapped around"


def test_half_written_record_is_called_that(node, capsys):
    position = node.put_command(b"fine")
    torn = node.put_command(b"torn")
    node.write_ring(torn, b"x" * 100)
    node.segment.bytes_at(node.segment.header["command_offset"] + layout.COMMAND_RING_OFFSET + torn + 20, 1)[
        0
    ] = 0
    waiting = run_json(capsys, node.name)["waiting"]
    assert [(one["position"], one["whole"]) for one in waiting["commands"]] == [
        (position, True),
        (torn, False),
    ]
    assert any(f"command ring's record at {torn} is not whole" in note for note in waiting["notes"])


def test_the_segment_is_the_same_after_every_command(node, capsys):
    node.put_command(b"stays")
    before = node.path.read_bytes()
    for command in (["show"], ["json"], ["rings"], ["watch", "-n", "2", "-i", "0.05"]):
        assert main([*command, node.name]) == 0
    assert node.path.read_bytes() == before


def test_watch_shows_page_after_page_and_survives_the_segment(node, capsys, monkeypatch):
    from pgraft.inspector import cli

    pages = []

    def stopped_in_between(draw, interval_s, count):
        pages.append(draw())
        node.path.rename(node.path.with_name(node.name + ".away"))
        try:
            pages.append(draw())
        finally:
            node.path.with_name(node.name + ".away").rename(node.path)
        pages.append(draw())

    monkeypatch.setattr(cli, "watch", stopped_in_between)
    assert main(["watch", node.name]) == 0
    assert ["orders" in page for page in pages] == [True, False, True]
    assert "no segment" in pages[1]
