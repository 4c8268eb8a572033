"""The arithmetic of the benchmark command, its rows, and one tiny run of it."""

import importlib.util
import json
import pathlib
import selectors
import socket
import subprocess
import sys
import threading
import time
from dataclasses import asdict

import pytest

from benchmarks import harness, matrix, measure, report, rows, table, verdict
from benchmarks.servers import DOCUMENT, Kind, compute

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
    table.write_report(read, report, [tmp_path / "plots" / "sched.png"])
    text = report.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text
    assert "| call_later and cancel |" in text
    assert "\n![sched](plots/sched.png)\n" in text
    report.write_text("no markers")
    with pytest.raises(ValueError, match="has no"):
        table.write_report(read, report)


# ---- targets other than a rate ----


def rounds_of(metric, *values):
    return dict(enumerate({metric: value} for value in values))


def test_a_target_may_be_an_upper_bound():
    ratio = verdict.Ratio(1.1, 1.0, 1.2, 7)
    assert ratio.verdict(1.1, at_most=True) == "met"
    assert ratio.verdict(1.05, at_most=True) == "within the interval"
    assert ratio.verdict(0.99, at_most=True) == verdict.MISSED


def test_a_metric_is_judged_by_its_value_or_by_that_of_another_loop():
    measured = {
        "netpoll_loop": rounds_of("p99_us", 100.0, 200.0, 300.0),
        "uvloop": rounds_of("p99_us", 200.0, 400.0, 600.0),
    }
    alone = verdict.outcome(verdict.Target("p99_us", "p99", 250.0, at_most=True), measured, "netpoll_loop")
    assert (alone.title, alone.word) == ("p99, wanted at most 250", "met")
    assert alone.found.startswith("200 [100..")
    paired = verdict.outcome(verdict.Target("p99_us", "p99", 0.4, to="uvloop", at_most=True), measured, "netpoll_loop")
    assert (paired.found, paired.word) == ("0.50 [0.50..0.50]", verdict.MISSED)


def test_the_worst_round_may_be_what_counts():
    measured = {"netpoll_loop": rounds_of("share", 0.5, 0.1, 0.4)}
    found = verdict.outcome(verdict.Target("share", "share", 0.2, worst=True), measured, "netpoll_loop")
    assert (found.found, found.word) == ("0.100 in the worst of 3", verdict.MISSED)


def test_nothing_is_judged_without_a_round_and_nothing_wanted_has_no_verdict():
    target = verdict.Target("share", "share", None)
    assert verdict.outcome(target, {"netpoll_loop": {}}, "netpoll_loop") is None
    assert verdict.outcome(target, {}, "netpoll_loop") is None
    assert str(verdict.outcome(target, {"netpoll_loop": rounds_of("share", 0.5)}, "netpoll_loop")) == (
        "share: 0.500 [0.500..0.500]"
    )


# ---- the matrix ----


def matrix_row(connections, work_us, auto, inline, dedicated):
    """Of rates by round."""
    (row,) = rows.parse(f"matrix-{connections}-{work_us}")
    found = {
        name: {number: {"rate": rate, "cpu_us": 1.0} for number, rate in enumerate(rates)}
        for name, rates in zip(row.only, (auto, inline, dedicated), strict=True)
    }
    return {**asdict(row), "measured": found, "failures": {}, "missing": [], "shared": {}}


def test_a_cell_compares_with_the_mode_of_the_better_median():
    cell = matrix.cell(matrix_row(8, 15, [90.0, 95.0, 99.0], [80.0, 200.0, 90.0], [100.0, 100.0, 100.0]))
    assert cell.better == "netpoll_loop:dedicated"
    assert cell.pairs == {0: 0.9, 1: 0.95, 2: 0.99}
    assert cell.ratio.median == 0.95
    assert matrix.cell(matrix_row(8, 15, [90.0], [], [100.0])) is None


def test_the_matrix_has_a_geometric_mean_and_names_its_worst_cell():
    found = [
        matrix_row(1, 0, [200.0] * 3, [100.0] * 3, [50.0] * 3),
        matrix_row(1000, 3, [50.0] * 3, [10.0] * 3, [100.0] * 3),
    ]
    assert matrix.mean(matrix.cells(found)).median == pytest.approx(1.0)
    assert matrix.mean([]) is None
    mean, first, second = matrix.outcomes(found)
    assert (mean.word, first.word, second.word) == ("met", "met", verdict.MISSED)
    text = matrix.text(found)
    assert "2.00i" in text and "0.50d!" in text
    assert "worst cell: 1000 connections, 3 us: 0.50" in text and "1 of 2 cells" in text
    assert matrix.text([]) == ""


def test_the_matrix_is_drawn(tmp_path):
    if importlib.util.find_spec("matplotlib") is None:  # imported, it would start threads here
        pytest.skip("needs matplotlib")
    about = {
        "date": "2000-01-01",
        "machine": report.machine(),
        "commit": "x",
        "rounds": 2,
        "seconds": 1,
        "versions": {},
    }
    results = {
        "about": about,
        "rows": [
            matrix_row(1, 0, [2.0, 2.0], [1.0, 1.0], [1.5, 1.5]),
            matrix_row(8, 50, [1.0, 1.0], [2.0, 2.0], [1.0, 1.0]),
        ],
    }
    source = tmp_path / "results.json"
    source.write_text(json.dumps(results))
    # In a process of its own: matplotlib keeps its font files open.
    ran = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--from", source, "--plot", tmp_path],
        cwd=ROOT, capture_output=True, text=True, timeout=50,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "worst cell: 8 connections, 50 us: 0.50" in ran.stdout
    assert (tmp_path / "matrix.png").read_bytes().startswith(b"\x89PNG")


def test_the_matrix_is_whole_and_its_quick_form_a_part_of_it():
    whole, quick = rows.parse("matrix"), rows.parse("matrix", quick=True)
    assert len(whole) == 9 * 6 and set(quick) < set(whole)
    assert {row.connections for row in whole} == {1, 2, 4, 8, 16, 32, 64, 128, 1000}
    assert {row.work_us for row in whole} == {0, 3, 8, 15, 50, 200}
    assert [row.name for row in rows.parse("matrix-2-3", quick=True)] == ["matrix-2-3"], "asked for by its name"


# ---- what the scenarios are made of ----


def test_the_document_is_ten_kib_of_json():
    document = json.loads(DOCUMENT.read_bytes())
    assert isinstance(document, list) and all(isinstance(one, dict) for one in document)
    assert 10_000 <= len(json.dumps(document)) <= 10_500


def test_what_is_missing_is_said_and_not_raised(monkeypatch):
    gone = Kind("http", "benchmarks.servers.web", "hello", needs=("json", "no_such_module_at_all"))
    assert gone.missing() == ["no_such_module_at_all"]
    (row,) = rows.parse("aiohttp-rate")
    monkeypatch.setattr(measure, "installed", lambda name: False)
    without = measure.measure_row(row, [harness.LoopSpec("netpoll_loop")], 1, 0.1)
    assert (without["missing"], without["measured"], without["failures"]) == (["uvloop"], {"netpoll_loop": {}}, {})
    assert "not installed here: uvloop" in table.row_text(without)


def test_progress_of_a_computing_thread_is_seen_from_outside():
    program = "import time; from benchmarks.servers import compute; print(compute.start(), flush=True); time.sleep(50)"
    with subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            progress = compute.Progress(process.pid, **eval(process.stdout.readline()))
            start = progress.count()
            deadline = time.monotonic() + 30
            while progress.count() == start or progress.cpu_seconds() == 0:  # the kernel counts in ticks
                assert time.monotonic() < deadline, (start, progress.count(), progress.cpu_seconds())
        finally:
            process.kill()


def slow_echo(connections, stall_at, stall):
    """A server in a thread that echoes, and once stops for so many seconds. Its port, and the thread."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=connections)

    def serve():
        messages = 0
        with listener, selectors.DefaultSelector() as selector:
            clients = [listener.accept()[0] for _ in range(connections)]
            for client in clients:
                selector.register(client, selectors.EVENT_READ)
            while clients:
                for key, _ in selector.select():
                    data = key.fileobj.recv(65536)
                    messages += 1
                    if messages == stall_at:
                        time.sleep(stall)
                    if data:
                        key.fileobj.sendall(data)
                    else:
                        selector.unregister(key.fileobj)
                        clients.remove(key.fileobj)
                        key.fileobj.close()

    thread = threading.Thread(target=serve)
    thread.start()
    return listener.getsockname()[1], thread


def test_a_schedule_counts_what_a_stall_holds_up():
    port, thread = slow_echo(connections=2, stall_at=60, stall=0.4)
    harness.build_loadgen()
    words = ["echo", "--json", f"--port={port}", "--connections=2", "--size=64", "--rate=200", "--seconds=1"]
    ran = subprocess.run([harness.LOADGEN, *words], capture_output=True, text=True, timeout=30)
    thread.join(10)
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    # All that is due is sent, whatever happens: 200, and one for each connection when it was opened.
    assert found["total_requests"] == 202
    # 80 were due in the stall, and waited for 0.2 s on average. Two would have, of a client that waits for answers.
    assert found["mean_us"] > 60_000
    assert found["p50_us"] <= found["p99_us"] <= found["p999_us"] <= found["max_us"]


def test_a_burst_begins_at_a_line_and_has_a_reply_for_each_connection():
    port, thread = slow_echo(connections=100, stall_at=1, stall=0.0)
    client = harness.start_loadgen("burst", port, connections=100, size=64)
    try:
        assert client.read_line(20) == "READY"
        before = time.monotonic_ns()
        client.write_line()
        load = harness.Load.from_json(client.read_line(20))
        assert client.wait(20) == 0
    finally:
        client.end()
        thread.join(10)
    assert load.total_requests == 100 and load.errors == 0
    assert before < load.last_sent_ns < load.last_reply_ns < time.monotonic_ns()


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("matrix-2-3", "worst cell: 2 connections, 3 us"),
        ("aiohttp-beside", "share of its speed that the thread keeps"),
        ("accept-stall", "last reply after the stall to inline's"),
        ("processes-inherited", "total throughput to inline"),
        ("processes-reuse-port", "total throughput to inline"),
        ("aiohttp-json", "to inline"),
        ("aiohttp-rate", "p99 to uvloop's, wanted at most"),
    ],
)
def test_a_row_of_its_own_way_runs(name, shown):
    if "uvloop" in shown:
        pytest.importorskip("uvloop", reason="no uvloop for this Python")
    words = ["--rows", name, "--loops", "netpoll_loop,uvloop", "--rounds", "1", "--seconds", "0.05"]
    ran = subprocess.run(
        [sys.executable, "-m", "benchmarks", *words], cwd=ROOT, capture_output=True, text=True, timeout=50
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert shown in ran.stdout
