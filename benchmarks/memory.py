"""Resident memory of idle connections.

Each connection exchanges one message with an echo server and then stays open and silent, as most connections of a
chat or push server do. What is reported is what the server's resident memory grew by, for each connection; it
started out having served one connection already, so that what a loop allocates once isn't counted. The kernel's
socket buffers aren't in it: they are the same for every loop.

    python -m benchmarks.memory --connections 10000
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks import harness, report
from benchmarks.harness import BenchmarkError, LoopSpec, Server

LOOPS = "netpoll_loop,uvloop,asyncio"
READY_SECONDS = 120.0
SETTLE_SECONDS = 0.3


@dataclass(frozen=True)
class Memory:
    """One server's resident memory, in bytes."""

    before: int
    idle: int
    closed: int
    connections: int

    @property
    def each(self) -> float:
        """What an idle connection takes."""
        return (self.idle - self.before) / self.connections

    @property
    def kept(self) -> float:
        """What it leaves behind when it is closed: not given back to the system, but used again."""
        return (self.closed - self.before) / self.connections


def _connect(server: Server, connections: int, size: int) -> harness.Process:
    """The load generator, once all of its connections have exchanged their message."""
    hold = READY_SECONDS + 60
    client = harness.start_loadgen("idle", server.port, connections=connections, size=size, hold=hold, timeout=hold)
    if client.read_line(READY_SECONDS) != "READY":
        client.fail("isn't ready")
    time.sleep(SETTLE_SECONDS)
    return client


def _disconnect(client: harness.Process) -> None:
    client.close_stdin()
    if client.wait(harness.START_SECONDS) != 0:
        client.fail("failed")
    client.end()
    time.sleep(SETTLE_SECONDS)


def measure(kind: str, loop: LoopSpec, connections: int, size: int) -> Memory:
    """Measure one loop in a fresh server. Raises BenchmarkError if a connection is lost or answered wrongly."""
    server = Server(kind, loop)
    try:
        _disconnect(_connect(server, 1, size))
        before = server.resident_bytes()
        client = _connect(server, connections, size)
        idle = server.resident_bytes()
        if server.open_files() < connections:
            server.fail(f"holds {server.open_files()} files for {connections} connections")
        _disconnect(client)
        closed = server.resident_bytes()
        server.stop()
        return Memory(before, idle, closed, connections)
    finally:
        server.end()


def _table(loops: Sequence[LoopSpec], results: dict[LoopSpec, list[Memory]], baseline: str) -> str:
    lines = [["", "KiB/connection", "range", "left after close", "server before, MiB", f"to {baseline}"]]
    base = next((results[loop] for loop in loops if str(loop) == baseline), [])
    for loop in loops:
        each = [memory.each / 1024 for memory in results[loop]]
        if not each:
            lines.append([str(loop), "failed"])
            continue
        kept = statistics.median(memory.kept / 1024 for memory in results[loop])
        before = statistics.median(memory.before / 1024**2 for memory in results[loop])
        ratio = f"{statistics.median(each) / statistics.median(m.each / 1024 for m in base):.2f}" if base else "-"
        spread = f"{min(each):.2f}..{max(each):.2f}"
        lines.append([str(loop), f"{statistics.median(each):.2f}", spread, f"{kept:.2f}", f"{before:.1f}", ratio])
    return report.table(lines)


def main() -> int:
    """The command line; 1 if anything failed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.memory",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--connections", type=int, default=10000)
    parser.add_argument("--size", type=int, default=65536, help="of the message, in bytes")
    parser.add_argument("--kind", choices=("echo-protocol", "echo-buffered", "echo-streams"), default="echo-protocol")
    parser.add_argument("--loops", default=LOOPS, help=LOOPS)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--netpoller", metavar="MODE", help="auto, dedicated or inline, for netpoll_loop")
    parser.add_argument("--baseline", default="uvloop", help="the loop that ratios are taken to (uvloop)")
    arguments = parser.parse_args()
    try:
        loops = LoopSpec.parse_list(arguments.loops, arguments.netpoller)
    except ValueError as error:
        parser.error(str(error))

    print(report.machine_line())
    print(f"{arguments.kind}, {arguments.connections} idle connections after one message of {arguments.size} bytes\n")
    results: dict[LoopSpec, list[Memory]] = defaultdict(list)
    failed = False
    with harness.no_process_left():
        for number in range(arguments.rounds):
            for loop in harness.order(loops, number):
                report.progress(f"round {number + 1} of {arguments.rounds}: {loop}")
                try:
                    results[loop].append(measure(arguments.kind, loop, arguments.connections, arguments.size))
                except BenchmarkError as error:
                    failed = True
                    report.progress("")
                    print(f"FAILED {loop}: {error}", file=sys.stderr)
    report.progress("")
    print(_table(loops, results, arguments.baseline))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
