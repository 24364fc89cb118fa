"""The samples in conf/ against the table of settings: every one named, every default right."""

from __future__ import annotations

import configparser
import re
from pathlib import Path

import pytest

from pgraft.postgres.config import build_config, parse_values
from pgraft.postgres.parse import parse_setting
from pgraft.postgres.settings import BY_NAME, SETTINGS

CONF = Path(__file__).parents[3] / "conf"
SAMPLES = ("pgraft-single.conf", "pgraft-three-nodes.conf")
LINE = re.compile(r"^(#?)(pgraft\.[a-z_]+) = ('(?:[^']|'')*'|\S+)\s*(?:#.*)?$")


def lines_of(sample: str) -> list[tuple[bool, str, str]]:
    """(is set, name, value) of each line that sets a pgraft setting or shows its default."""
    found = []
    for line in (CONF / sample).read_text().splitlines():
        match = LINE.match(line)
        if match:
            found.append((match[1] == "", match[2], match[3].strip("'").replace("''", "'")))
        else:
            assert not re.match(r"#?\s*pgraft\.\w+\s*=", line), f"{sample}: cannot read {line!r}"
    return found


@pytest.mark.parametrize("sample", SAMPLES)
def test_every_setting_is_named_once(sample):
    assert sorted(name for _, name, _ in lines_of(sample)) == sorted(BY_NAME)


@pytest.mark.parametrize("sample", SAMPLES)
@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_commented_lines_show_the_default(sample, setting):
    for is_set, name, value in lines_of(sample):
        if name == setting.name and not is_set:
            assert parse_setting(setting, value) == setting.default


@pytest.mark.parametrize("sample", SAMPLES)
def test_what_is_set_makes_a_node(sample):
    raw = {name: value for is_set, name, value in lines_of(sample) if is_set}
    config = build_config(
        parse_values(raw), {}, pgdata="/pg", data_dir="/pg.pgraft", segment_name="s", stored=None
    )
    assert (config.node_id, config.address, config.port) == (1, "10.0.1.11", 7001)
    assert len(config.initial_cluster) == (1 if "single" in sample else 3)


@pytest.mark.parametrize("sample", SAMPLES)
def test_ranges_in_the_comments_are_right(sample):
    text = (CONF / sample).read_text()
    for name, low, high in re.findall(
        r"^#?(pgraft\.\w+) = \S+\s+# (\d+[a-zA-Z]*)-(\d+[a-zA-Z]+)", text, re.M
    ):
        setting = BY_NAME[name]
        assert parse_setting(setting, low) == setting.minimum, name
        assert parse_setting(setting, high) == setting.maximum, name


def test_unit_runs_the_launcher_in_the_foreground():
    unit = configparser.RawConfigParser(strict=False)
    unit.optionxform = str
    unit.read(CONF / "pgraft.service")
    assert unit["Service"]["ExecStart"].endswith("pgraft-launch run -D ${PGDATA}")
    assert unit["Service"]["User"] != "root"
