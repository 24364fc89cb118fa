"""The operators' pages name nothing that is not there: settings, commands, flags, statements, rules."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pgraft.inspector.cli import _parser as inspect_parser
from pgraft.postgres.unknown import find_unknown
from pgraft.transport.limits import LOG_REPEAT_MS_MAX
from pgraft_launcher.cli import _joined, build_parser
from tests.support.pgcluster import eventually
from tests.unit.launcher.launcher_node import OneNode

ROOT = Path(__file__).parents[3]
PAGES = sorted((ROOT / "docs").glob("*.md"))
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`(pgraft-(?:launch|inspect) [^`]*)`")
SYSTEM = ("systemctl", "systemd-analyze", "cp", "grep")
"""Programs of the system that the pages use; they were run by hand."""


def blocks(kind: str) -> list[tuple[str, str]]:
    """(page, text) of all code blocks of this kind."""
    found = []
    for page in PAGES:
        found += [(page.name, text) for name, text in BLOCK.findall(page.read_text()) if name == kind]
    return found


def commands() -> Iterator[list[str]]:
    """Every command line of pgraft's programs, from blocks and from the text."""
    for _, text in blocks("sh"):
        for line in text.splitlines():
            yield shlex.split(line, comments=True)
    for page in PAGES:
        for line in INLINE.findall(page.read_text()):
            yield shlex.split(line)


def test_there_are_pages() -> None:
    assert [page.name for page in PAGES] == [
        "README.md",
        "operations.md",
        "security.md",
        "troubleshooting.md",
    ]
    readme = (ROOT / "README.md").read_text()
    for page in PAGES:
        assert f"docs/{page.name}" in readme or page.name in (ROOT / "docs" / "README.md").read_text()


def test_every_command_and_flag_exists(capsys: pytest.CaptureFixture[str]) -> None:
    count = 0
    for words in commands():
        program, *rest = words
        if program in SYSTEM:
            continue
        rest = [word for word in rest if word != "..."]
        try:
            match program:
                case "pgraft-launch":
                    build_parser().parse_args(_joined(rest))
                case "pgraft-inspect":
                    inspect_parser().parse_args(rest)
                case _:
                    pytest.fail(f"{program} is not known to this test")
        except SystemExit:
            pytest.fail(f"{shlex.join(words)}: {capsys.readouterr().err}")
        count += 1
    assert count > 15


def test_every_setting_exists(tmp_path: Path) -> None:
    for number, (page, text) in enumerate(blocks("conf")):
        conf = tmp_path / f"{number}-{page}"
        conf.write_text(text)
        assert find_unknown([str(conf)]) == []
    conf = tmp_path / "all.conf"
    names = {name for page in PAGES for name in re.findall(r"`(pgraft\.[a-z_]+)`", page.read_text())}
    names -= {"pgraft.service"}
    assert len(names) > 10
    conf.write_text("".join(f"{name} = 1\n" for name in sorted(names)))
    assert find_unknown([str(conf)]) == []


def test_the_firewall_rules_are_rules(tmp_path: Path) -> None:
    if shutil.which("nft") is None or os.geteuid() != 0:
        pytest.skip("needs nft, and root")
    ((_, rules),) = blocks("nft")
    path = tmp_path / "pgraft.nft"
    path.write_text(rules)
    done = subprocess.run(["nft", "-c", "-f", str(path)], capture_output=True, text=True, check=False)
    if "Operation not permitted" in done.stderr:
        pytest.skip(f"nft may not look here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr


def test_how_often_a_lost_peer_is_logged_is_as_the_page_says() -> None:
    assert LOG_REPEAT_MS_MAX == 12 * 3600 * 1000, "the page says two lines a day"


@pytest.mark.cluster
def test_every_statement_runs() -> None:
    statements = [
        line for _, text in blocks("sql") for line in text.splitlines() if line and not line.startswith("--")
    ]
    statements += ["SELECT pgraft_set_debug(true)", "SELECT pgraft_set_debug(false)"]
    assert len(statements) > 10
    node = OneNode()
    try:
        assert node.init().returncode == 0
        assert node.do("start").returncode == 0
        eventually(lambda: node.status()["is_leader"], "a leader")
        node.sql("CREATE EXTENSION pgraft")
        for statement in statements:
            node.sql(statement)
    finally:
        node.destroy()
