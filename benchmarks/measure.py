"""Rounds of a row: loops take turns, each round in a process of its own."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from benchmarks import harness, report
from benchmarks.harness import BenchmarkError, LoopSpec, Process, Server
from benchmarks.rows import Row
from benchmarks.scenarios import SCENARIOS, WARMUP, load_figures
from benchmarks.servers import KINDS
from benchmarks.servers.loops import installed

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
        measured = load_figures(load, cpu, seconds)
        server.stop()
        return measured
    finally:
        server.end()


def measure_row(row: Row, loops: Sequence[LoopSpec], rounds: int, seconds: float) -> dict[str, Any]:
    """All rounds of a row: what each loop measured by round, or why it could not. Who fails twice is left out."""
    measured: dict[str, dict[int, dict[str, Any]]] = {str(loop): {} for loop in loops}
    failures: dict[str, list[str]] = {}
    shared: dict[str, Any] = {}  # what a scenario finds out once for all loops
    missing = KINDS[row.what].missing() if row.what in KINDS else []
    missing += [name for name in row.needs if not installed(name)]
    if missing:
        loops = ()
    for number in range(rounds if loops else 0):
        for loop in harness.order(loops, number):
            name = str(loop)
            if len(failures.get(name, ())) >= 2:
                continue
            report.progress(f"{row.title}: round {number + 1} of {rounds}, {name}")
            try:
                if row.scenario:
                    one = SCENARIOS[row.scenario](row, loop, seconds, shared)
                else:
                    one = (measure_server if row.is_server else measure_workload)(row, loop, seconds)
                measured[name][number] = one
            except BenchmarkError as error:
                failures.setdefault(name, []).append(str(error))
    report.progress("")
    return {**asdict(row), "measured": measured, "failures": failures, "missing": missing, "shared": shared}
