"""Rounds of a row: loops take turns, each round in a process of its own."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from benchmarks import harness, report, table
from benchmarks.harness import BenchmarkError, LoopSpec, Process, Server
from benchmarks.rows import Row

WARMUP = 0.25
LIMIT = 60.0  # seconds that a round of a workload may take beyond the time measured


def measure_workload(row: Row, loop: LoopSpec, seconds: float) -> dict[str, Any]:
    """One round of a workload of `benchmarks.micro`. Raises BenchmarkError."""
    command = [sys.executable, "-m", "benchmarks.micro", row.what, f"--loop={loop}", f"--seconds={seconds}"]
    process = Process(command)
    try:
        measured: dict[str, Any] = json.loads(process.read_line(seconds + LIMIT))
        if process.wait(harness.STOP_SECONDS) != 0:
            process.fail("failed")
        return measured
    finally:
        process.end()


def measure_server(row: Row, loop: LoopSpec, seconds: float) -> dict[str, Any]:
    """One round of a server, in a process of its own. Raises BenchmarkError."""
    server = Server(row.what, loop)
    try:
        before = server.cpu_seconds()
        load = harness.load(server, row.connections, row.size, seconds, WARMUP)
        cpu = server.cpu_seconds() - before
        if not load.total_requests:
            server.fail("not one request was served")
        busy = load.client_cpu_seconds / (seconds + WARMUP)
        measured = {
            "rate": load.rps,
            "requests": load.total_requests,
            "cpu_us": cpu / load.total_requests * 1e6,
            "mean_us": load.mean_us,
            "p50_us": load.p50_us,
            "p99_us": load.p99_us,
            "p999_us": load.p999_us,
            "client_bound": busy >= table.CLIENT_BOUND,
        }
        server.stop()
        return measured
    finally:
        server.end()


def measure_row(row: Row, loops: Sequence[LoopSpec], rounds: int, seconds: float) -> dict[str, Any]:
    """All rounds of a row: what each loop measured by round, or why it could not. Who fails twice is left out."""
    measured: dict[str, dict[int, dict[str, Any]]] = {str(loop): {} for loop in loops}
    failures: dict[str, list[str]] = {}
    for number in range(rounds):
        for loop in harness.order(loops, number):
            name = str(loop)
            if len(failures.get(name, ())) >= 2:
                continue
            report.progress(f"{row.title}: round {number + 1} of {rounds}, {name}")
            try:
                one = (measure_server if row.is_server else measure_workload)(row, loop, seconds)
                measured[name][number] = one
            except BenchmarkError as error:
                failures.setdefault(name, []).append(str(error))
    report.progress("")
    return {**asdict(row), "measured": measured, "failures": failures}
