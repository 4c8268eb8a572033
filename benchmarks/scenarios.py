"""Rows that are more than one server under one load. Each function is one round of one loop in fresh processes.

It gets a dictionary that all rounds of its row share, for what is found out once for all loops: a rate, a calibration.
What it returns has at least ``rate`` and ``cpu_us``, the CPU of a request. All raise BenchmarkError.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any, TypeAlias

from benchmarks import harness
from benchmarks.harness import HOST, BenchmarkError, Load, LoopSpec, Process, Server
from benchmarks.rows import Row
from benchmarks.servers import BACKLOG, work
from benchmarks.servers.compute import Progress

Scenario: TypeAlias = Callable[[Row, LoopSpec, float, dict[str, Any]], dict[str, Any]]

WARMUP = 0.25
CLIENT_BOUND = 0.95  # the share of a core from which on the load generator itself is what is measured
SOLO = 0.3  # seconds for which a thread computes alone, to know its speed
STALL = 0.5
LIMIT = 60.0

SCENARIOS: dict[str, Scenario] = {}


def scenario(name: str) -> Callable[[Scenario], Scenario]:
    """Puts it into SCENARIOS."""

    def add(function: Scenario) -> Scenario:
        SCENARIOS[name] = function
        return function

    return add


def load_figures(load: Load, cpu: float, seconds: float) -> dict[str, Any]:
    """What is kept of a load, during which the server used ``cpu`` seconds. Raises BenchmarkError if nothing came."""
    if not load.total_requests:
        raise BenchmarkError("not one request was served")
    return {
        "rate": load.rps,
        "requests": load.total_requests,
        "cpu_us": cpu / load.total_requests * 1e6,
        "mean_us": load.mean_us,
        "p50_us": load.p50_us,
        "p99_us": load.p99_us,
        "p999_us": load.p999_us,
        "client_bound": load.client_cpu_seconds / (seconds + WARMUP) >= CLIENT_BOUND,
    }


def _measure(
    server: Server,
    row: Row,
    seconds: float,
    rate: float | None = None,
    during: Callable[[], None] | None = None,
) -> dict[str, Any]:
    before = server.cpu_seconds()
    load = harness.load(server, row.connections, row.size, seconds, WARMUP, rate, during)
    return load_figures(load, server.cpu_seconds() - before, seconds)


@scenario("work")
def working(row: Row, loop: LoopSpec, seconds: float, shared: dict[str, Any]) -> dict[str, Any]:
    """A server with work for each request."""
    # The same for all: else the modes would differ by how well each was calibrated.
    shared["turns of work for each request"] = round(work.spins_per_us() * row.work_us)
    server = Server(row.what, loop, spins=shared["turns of work for each request"])
    try:
        measured = _measure(server, row, seconds)
        server.stop()
        return measured
    finally:
        server.end()


def _speed(progress: Progress, seconds: float) -> float:
    """In steps a second, over so long a time."""
    start, count = time.monotonic(), progress.count()
    time.sleep(seconds)
    return (progress.count() - count) / (time.monotonic() - start)


@scenario("beside")
def beside(row: Row, loop: LoopSpec, seconds: float, shared: dict[str, Any]) -> dict[str, Any]:
    """A server in whose process a thread computes. Its CPU isn't counted as that of the requests."""
    server = Server(row.what, loop, computing=True)
    try:
        progress = Progress(server.pid, **server.about["computing"])
        solo = _speed(progress, SOLO)
        loaded = 0.0

        def watch() -> None:
            nonlocal loaded
            time.sleep(WARMUP)  # until then connections are opened, and the thread has more than its share
            loaded = _speed(progress, seconds)

        cpu = progress.cpu_seconds()
        measured = _measure(server, row, seconds, during=watch)
        measured["share"] = loaded / solo
        measured["cpu_us"] -= (progress.cpu_seconds() - cpu) / measured["requests"] * 1e6
        server.stop()
        return measured
    finally:
        server.end()


@scenario("beside-and-alone")
def beside_and_alone(row: Row, loop: LoopSpec, seconds: float, shared: dict[str, Any]) -> dict[str, Any]:
    """The same, and what a server of the same kind does without the thread."""
    server = Server(row.what, loop)
    try:
        alone = _measure(server, row, seconds)["rate"]
        server.stop()
    finally:
        server.end()
    measured = beside(row, loop, seconds, shared)
    return {**measured, "alone": alone, "of_alone": measured["rate"] / alone}


@scenario("half-rate")
def half_rate(row: Row, loop: LoopSpec, seconds: float, shared: dict[str, Any]) -> dict[str, Any]:
    """A fixed schedule: half of what uvloop can do, the same for all loops and rounds."""
    if "requests scheduled a second" not in shared:
        found = []
        for _ in range(3):
            server = Server(row.what, LoopSpec("uvloop"))
            try:
                found.append(_measure(server, row, seconds)["rate"])
                server.stop()
            finally:
                server.end()
        shared["requests scheduled a second"] = statistics.median(found) / 2
    server = Server(row.what, loop)
    try:
        measured = _measure(server, row, seconds, shared["requests scheduled a second"])
        server.stop()
        return measured
    finally:
        server.end()


# ---- two processes ----


def _load_two(
    row: Row, loop: LoopSpec, seconds: float, first: dict[str, Any], second: dict[str, Any]
) -> dict[str, Any]:
    """Two servers, with those options, on two cores. A port of None is that of the first."""
    cpus = ",".join(map(str, sorted(os.sched_getaffinity(0))[:2]))
    with contextlib.ExitStack() as stack:
        servers: list[Server] = []
        for options in (first, second):
            if options.get("port", 0) is None:
                options = {**options, "port": servers[0].port}
            servers.append(Server(row.what, loop, cpus=cpus, **options))
            stack.callback(servers[-1].end)
        before = [server.cpu_seconds() for server in servers]
        load = harness.load(servers[0], row.connections, row.size, seconds, WARMUP)
        used = [server.cpu_seconds() - start for server, start in zip(servers, before, strict=True)]
        measured = load_figures(load, sum(used), seconds)
        measured["larger_share"] = max(used) / sum(used)
        for server in servers:
            server.stop()
        return measured


@scenario("processes-reuse-port")
def reuse_port(row: Row, loop: LoopSpec, seconds: float, shared: dict[str, Any]) -> dict[str, Any]:
    """Each has a listener, the kernel deals the connections out."""
    return _load_two(row, loop, seconds, {"reuse_port": True}, {"reuse_port": True, "port": None})


@scenario("processes-inherited")
def inherited(row: Row, loop: LoopSpec, seconds: float, shared: dict[str, Any]) -> dict[str, Any]:
    """Both accept from the same listener."""
    with socket.create_server((HOST, 0), backlog=BACKLOG) as listener:
        options = {"listener": listener.fileno(), "pass_fds": [listener.fileno()]}
        return _load_two(row, loop, seconds, options, options)


# ---- stalls ----


@scenario("write-stall")
def write_stall(row: Row, loop: LoopSpec, seconds: float, shared: dict[str, Any]) -> dict[str, Any]:
    """`benchmarks.stalls` in a process of its own. How long it takes is part of what it is."""
    process = Process([sys.executable, "-m", "benchmarks.stalls", row.what, f"--loop={loop}"])
    try:
        measured: dict[str, Any] = json.loads(process.read_line(LIMIT))
        if process.wait(harness.STOP_SECONDS) != 0:
            process.fail("failed")
        return measured
    finally:
        process.end()


@scenario("accept-stall")
def accept_stall(row: Row, loop: LoopSpec, seconds: float, shared: dict[str, Any]) -> dict[str, Any]:
    """All clients connect and send within the stall; the last reply's time counts from the stall's end."""
    server = Server(row.what, loop, stall=STALL)
    client = None
    try:
        client = harness.start_loadgen("burst", server.port, connections=row.connections, size=row.size, timeout=LIMIT)
        if client.read_line(LIMIT) != "READY":
            client.fail("isn't ready")
        before = server.cpu_seconds()
        server.send_signal(signal.SIGUSR1)
        began = json.loads(server.read_line(LIMIT))["stall_began_ns"]
        client.write_line()
        ended = json.loads(server.read_line(LIMIT))["stall_ended_ns"]
        load = Load.from_json(client.read_line(LIMIT))
        if client.wait(LIMIT) != 0:
            client.fail("failed")
        # The stall itself is CPU time that has nothing to do with the requests.
        cpu = server.cpu_seconds() - before - (ended - began) / 1e9
        server.stop()
        if load.last_sent_ns > ended:
            raise BenchmarkError("the clients didn't send everything within the stall")
        last = (load.last_reply_ns - ended) / 1e9
        if last <= 0:
            raise BenchmarkError("the last reply came before the stall's end")
        return {
            "rate": load.total_requests / last,
            "requests": load.total_requests,
            "cpu_us": max(0.0, cpu) / load.total_requests * 1e6,
            "last_ms": last * 1e3,
            "stall_ms": (ended - began) / 1e6,
        }
    finally:
        server.end()
        if client is not None:
            client.end()
