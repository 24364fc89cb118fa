"""etcd's scenarios, where they are at hand, and the runner's own rules."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conformance.__main__ import main
from tests.conformance.datafile import FormatError, parse_text
from tests.conformance.runner import FileResult, comparable, data_files, run_file

VECTORS = Path(__file__).resolve().parents[3] / "shared" / "vectors" / "raft"
OWN = Path(__file__).resolve().parent / "data"
CASES_IN_VECTORS = 449


def _results(directory: Path) -> list[FileResult]:
    return [run_file(path) for path in data_files([directory])]


@pytest.mark.skipif(not VECTORS.is_dir(), reason="../shared/vectors/raft is not here")
def test_all_of_etcds_scenarios_pass() -> None:
    results = _results(VECTORS)
    assert [result.difference for result in results if not result.ok] == []
    assert sum(result.cases for result in results) == CASES_IN_VECTORS


def test_own_scenarios_pass() -> None:
    results = _results(OWN)
    assert [result.difference for result in results if not result.ok] == []
    assert results


def test_logger_lines_do_not_count_and_an_empty_output_equals_ok() -> None:
    assert comparable("INFO 1 became follower\n  DEBUG x\n") == ["ok"]
    assert comparable("  ERROR x\nReady\n") == ["Ready"]
    assert comparable("INFORMATION") == ["INFORMATION"]


def test_a_difference_is_shown_and_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = "vote cfg=(1) votes=(y)\n----\nVoteWon\n"
    (tmp_path / "bad.txt").write_text(good + "\nvote cfg=(1) votes=(n)\n----\nVoteWon\n\n" + good)
    assert main([str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert "bad.txt: 2/3" in out
    assert "-VoteWon\n" in out
    assert "+VoteLost\n" in out
    assert "1 files, 3 cases, 1 failed" in out


def test_good_files_and_wrong_paths_have_their_exit_codes(tmp_path: Path) -> None:
    (tmp_path / "good.txt").write_text("vote cfg=(1) votes=(y)\n----\nVoteWon\n")
    assert main([str(tmp_path)]) == 0
    assert main([str(tmp_path / "good.txt")]) == 0
    assert main([str(tmp_path / "absent")]) == 2
    assert main([]) == 2
    (tmp_path / "empty").mkdir()
    assert main([str(tmp_path / "empty")]) == 1


def test_a_file_that_cannot_be_parsed_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "cut.txt").write_text("propose 1 data\nno separator\n")
    assert main([str(tmp_path)]) == 1
    assert "no ---- after the directive" in capsys.readouterr().out


def test_the_form_of_data_files() -> None:
    text = (
        "# comment\n\ncmd a key=1 many=(1, 2,3) none=() \\\n  more\nbody\n----\nout 1\nout 2\n\nnext\n----\n"
    )
    first, second = parse_text(text, "t")
    assert first.plain() == ["a", "none", "more"]
    assert {key: argument.values for key, argument in first.named().items()} == {
        "key": ("1",),
        "many": ("1", "2", "3"),
    }
    assert first.input == "body"
    assert first.expected == "out 1\nout 2"
    assert (second.command, second.expected, second.line) == ("next", "", 10)


def test_two_separators_hold_output_with_blank_lines() -> None:
    (case,) = parse_text("cmd\n----\n----\none\n\ntwo\n----\n----\n", "t")
    assert case.expected == "one\n\ntwo"
    with pytest.raises(FormatError):
        parse_text("cmd\n----\n----\none\n", "t")
