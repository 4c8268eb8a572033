"""The arithmetic of the benchmark command, its rows, and one tiny run of it."""

import json
import pathlib
import subprocess
import sys

import pytest

from benchmarks import rows, table, verdict

ROOT = pathlib.Path(__file__).resolve().parent.parent


def test_ratios_are_taken_within_a_round():
    assert verdict.paired({0: 10.0, 1: 30.0, 2: 5.0}, {0: 5.0, 1: 10.0, 3: 1.0}) == [2.0, 3.0]
    assert verdict.paired({}, {0: 1.0}) == []


def test_the_interval_holds_the_median_and_narrows_with_agreement():
    wide = verdict.ratio([0.5, 1.0, 1.5, 2.0, 0.8, 1.2, 1.1])
    narrow = verdict.ratio([1.0, 1.01, 0.99, 1.0, 1.0, 1.01, 0.99])
    for each in (wide, narrow):
        assert each.low <= each.median <= each.high
    assert narrow.high - narrow.low < wide.high - wide.low
    assert verdict.ratio([1.0, 2.0, 3.0]) == verdict.ratio([1.0, 2.0, 3.0])
    assert verdict.ratio([]) is None


def test_a_target_is_missed_when_the_whole_interval_is_below_it():
    ratio = verdict.Ratio(1.1, 1.0, 1.2, 7)
    assert ratio.verdict(1.1) == "met"
    assert ratio.verdict(1.15) == "within the interval"
    assert ratio.verdict(1.21) == "MISSED"
    assert str(ratio) == "1.10 [1.00..1.20]"


def test_the_best_peer_is_the_fastest_loop_that_is_not_ours():
    rates = {
        "netpoll_loop": {0: 9.0},
        "netpoll_loop:inline": {0: 8.0},
        "uvloop": {0: 3.0, 1: 5.0},
        "asyncio": {0: 4.5, 1: 4.6},
        "broken": {},
    }
    assert verdict.best_peer(rates, "netpoll_loop") == "asyncio"
    assert verdict.best_peer({"netpoll_loop": {0: 1.0}}, "netpoll_loop") is None


def test_rows_are_chosen_by_name_group_and_kind():
    assert [row.name for row in rows.parse("sleep-0,udp")] == ["sleep-0", "udp"]
    assert {row.group for row in rows.parse("sched,http")} == {"sched", "http"}
    (row,) = rows.parse("echo-streams:7:99")
    assert (row.what, row.connections, row.size, row.to_uvloop) == ("echo-streams", 7, 99, None)
    assert len({row.name for row in rows.ROWS}) == len(rows.ROWS)
    assert len(rows.parse("protocol,echo")) == len(rows.parse("echo"))
    for wrong in ("", "nonsense", "nonsense:3", "echo-streams:0", "echo-streams:1:2:3", "echo-streams:x"):
        with pytest.raises(ValueError, match="unknown row|isn't KIND|numbers begin"):
            rows.parse(wrong)


def test_a_run_prints_its_table_and_writes_what_can_be_shown_again(tmp_path):
    results, report = tmp_path / "results.json", tmp_path / "report.md"
    command = [sys.executable, "-m", "benchmarks"]
    chosen = ["--rows", "call-later-cancel,echo-protocol:2", "--loops", "netpoll_loop,asyncio", "--rounds", "1"]
    ran = subprocess.run(
        [*command, *chosen, "--seconds", "0.05", "--json", results],
        cwd=ROOT, capture_output=True, text=True, timeout=50,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "call_later and cancel" in ran.stdout and "netpoll_loop" in ran.stdout
    read = json.loads(results.read_text(), object_hook=table.numbered)
    assert [row["name"] for row in read["rows"]] == ["call-later-cancel", "echo-protocol:2"]
    for row in read["rows"]:
        assert not row["failures"]
        assert set(row["measured"]) == {"netpoll_loop", "asyncio"}
        assert all(one["rate"] > 0 for rounds in row["measured"].values() for one in rounds.values())

    begin, end = table.markers(read)
    report.write_text(f"before\n{begin}\nold\n{end}\nafter\n")
    table.write_report(read, report)
    text = report.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text
    assert "| call_later and cancel |" in text
    report.write_text("no markers")
    with pytest.raises(ValueError, match="has no"):
        table.write_report(read, report)
