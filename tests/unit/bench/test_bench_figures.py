"""The benchmarks' arithmetic, parsing and verdicts: a wrong figure is worse than none."""

from __future__ import annotations

import json

import pytest

from bench import etcd, report
from bench.__main__ import _work_directory
from bench.failover import FailoverFigures
from bench.latency import CallCost, read_pgbench_log
from bench.resources import NodeResources, cpu_ticks, pss_mb
from bench.samples import BenchError, LoadFigures, Request, in_window, percentile, summarise
from bench.tls_cost import TlsCost, TlsFigures


def test_percentile_is_nearest_rank():
    assert percentile([1, 2, 3, 4], 0.5) == 2
    assert percentile(list(range(1, 101)), 0.99) == 99
    assert percentile([7], 0.99) == 7


def test_window_leaves_out_warm_up_and_what_ends_late():
    requests = [Request(end_us=second * 1_000_000, took_us=1000) for second in range(1, 8)]
    kept = in_window(requests, warm_up_s=2, seconds=3)
    assert [one.end_us // 1_000_000 for one in kept] == [3, 4, 5]


def test_summary_over_two_rounds():
    first = [Request(0, 1000), Request(0, 3000)]
    second = [Request(0, 2000), Request(0, 10_000)]
    figures = summarise([first, second], clients=4, seconds=2)
    assert figures == LoadFigures(4, 4, 1.0, 1.0, 2.0, 4.0, 10.0, (1.0, 1.0))


def test_unmeasured_time_counts_as_a_request_only():
    figures = summarise([[Request(0, 0), Request(0, 2000)]], clients=1, seconds=1)
    assert (figures.requests, figures.per_second) == (2, 2.0)
    assert (figures.min_ms, figures.mean_ms) == (2.0, 2.0)


def test_no_request_is_an_error_not_a_zero():
    with pytest.raises(BenchError):
        summarise([[]], clients=1, seconds=1)


def test_put_is_a_grpc_frame_of_the_protobuf_message():
    body = etcd.put_body(b"k", b"v" * 200)
    assert body[:5] == bytes([0, 0, 0, 0, 206])
    assert body[5:] == b"\x0a\x01k\x12\xc8\x01" + b"v" * 200


def test_puts_that_etcd_did_not_store_are_an_error():
    etcd._check_stored(100, 100, clients=4)
    etcd._check_stored(100, 104, clients=4)
    for stored in (0, 99, 105):
        with pytest.raises(BenchError):
            etcd._check_stored(100, stored, clients=4)


def test_logs_of_both_load_generators(tmp_path):
    h2load = tmp_path / "h2load"
    h2load.write_text("1000000\t200\t1500\n1000100\t-1\t9\n1000200\t503\t9\n")
    assert etcd.read_h2load_log(h2load) == [Request(1_001_500, 1500)]
    pgbench = tmp_path / "pgbench"
    pgbench.write_text("0 1 1500 0 12 345678\n")
    assert read_pgbench_log(pgbench) == [Request(12_345_678, 1500)]


def test_own_process_has_memory_and_time():
    import os

    assert pss_mb(os.getpid()) > 1
    before = cpu_ticks(os.getpid())
    while cpu_ticks(os.getpid()) == before:
        sum(range(10_000))
    assert cpu_ticks(2**22 - 3) == 0


def _load(clients: int, per_second: float, mean_ms: float) -> LoadFigures:
    return LoadFigures(clients, 1000, per_second, 0.1, mean_ms, mean_ms, 9.0)


def _results() -> report.Results:
    results = report.Results({"file system": "ext4 on /"}, {"quick": True})
    results.pgraft = [_load(1, 1500, 0.4), _load(64, 14_000, 4)]
    results.etcd = [_load(1, 600, 1.0), _load(64, 5000, 12)]
    results.is_leader = CallCost(0.15, 0.05, 0.1)
    results.failover = [FailoverFigures(500, 50, 3, 0.9, 1.6, 1.6, [0.8, 0.9, 1.6])]
    results.resources = [NodeResources("n1", True, {"worker": 20.0, "network": 31.0}, 0.5, 0.1)]
    results.election_cpu_percent = 2.0
    results.start_s = {"entries": 1e6, "empty": 1.0, "full": 2.5}
    return results


def test_verdicts_know_the_bounds():
    told = {one.what: one.reached for one in report.verdicts(_results())}
    assert told == {
        "mean latency of one session / etcd's": True,
        "throughput of 64 sessions / etcd's": False,
        "pgraft_is_leader() on top of an empty C function, us": True,
        "failover 500/50 ms, 3 kills: median, s": True,
        "failover 500/50 ms, 3 kills: worst, s": False,
        "memory of a node's Python processes (PSS), MB": False,
        "processor time, idle, % of a core": True,
        "the same over 10 s with an election, %": True,
        "start with 1,000,000 entries, s": True,
    }


def test_table_and_json_hold_the_ratio_and_the_verdicts(tmp_path):
    text = report.text(_results())
    assert "2.80x" in text
    assert "NOT REACHED" in text
    report.write_json(_results(), tmp_path / "out.json")
    document = json.loads((tmp_path / "out.json").read_text())
    assert document["pgraft"][1]["per_second"] == 14_000
    assert len(document["figures_to_reach"]) == 9


def test_nothing_measured_is_an_empty_report(tmp_path):
    empty = report.Results({}, {})
    assert report.verdicts(empty) == []
    assert report.text(empty) == "\n"


def test_memory_file_systems_are_refused():
    with pytest.raises(BenchError, match="real disk"):
        _work_directory("/dev/shm")


def test_the_cost_of_tls_is_shown_as_a_ratio_of_the_same_run():
    def figures(rate: float, mean: float, pss: float, network: float) -> TlsFigures:
        loads = tuple(LoadFigures(count, 10, rate, 1.0, 1.0, mean, 2.0) for count in (1, 64))
        return TlsFigures(loads, pss, {1: network, 64: network})

    results = report.Results({}, {}, tls=TlsCost(figures(1000, 2.0, 31.0, 40), figures(800, 2.5, 36.0, 60)))
    lines = report.text(results).splitlines()
    assert sum("0.80x" in line and "1.25x" in line for line in lines) == 2
    assert "memory of the largest node (PSS): 31.0 MB, 36.0 MB with" in lines
    assert [one.reached for one in report.verdicts(results)] == [True]
