"""Throughput, latency and server CPU of event loops, side by side.

Each loop serves in a process of its own; one of them is loaded at a time, in turns, so that whatever else
the machine does meets all of them. The ratio to the baseline is taken within each round and its median is
shown: pairs measured seconds apart say more than two averages.

    python -m benchmarks.compare --rows aiohttp-hello:32,echo-protocol:10,echo-streams:10:16384 --rounds 5

A row is KIND:CONNECTIONS or KIND:CONNECTIONS:BYTES. A loop is its name, or netpoll_loop:MODE.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks import harness, report
from benchmarks.harness import BenchmarkError, Load, LoopSpec, Server, order
from benchmarks.servers import KINDS

ROWS = "aiohttp-hello:32,echo-protocol:10,echo-protocol:100,echo-protocol:1"
LOOPS = "netpoll_loop,uvloop,asyncio"
WARMUP = 0.3
CLIENT_BOUND = 0.95  # the share of a core from which on the load generator itself is what is measured


@dataclass(frozen=True)
class Row:
    """One line of the matrix: a kind of server, and how it is loaded."""

    kind: str
    connections: int
    size: int = 1024

    @classmethod
    def parse(cls, text: str) -> Row:
        """Raises ValueError for what isn't KIND:CONNECTIONS[:BYTES]."""
        kind, *numbers = text.split(":")
        if kind not in KINDS:
            raise ValueError(f"unknown kind {kind!r}, known are {', '.join(KINDS)}")
        if not 1 <= len(numbers) <= 2:
            raise ValueError(f"{text!r} isn't KIND:CONNECTIONS or KIND:CONNECTIONS:BYTES")
        return cls(kind, *map(int, numbers))

    def __str__(self) -> str:
        size = f", {self.size} bytes" if KINDS[self.kind].load == "echo" else ""
        return f"{self.kind}, {self.connections} connection{'s' * (self.connections != 1)}{size}"


@dataclass(frozen=True)
class Measured:
    """One loop in one round."""

    round: int
    load: Load
    cpu_us: float  #: CPU of the server for each request, warm-up included
    client_busy: float  #: the share of a core that the load generator used

    @property
    def client_bound(self) -> bool:
        return self.client_busy >= CLIENT_BOUND


@dataclass
class Series:
    """All rounds of one loop in one row."""

    loop: LoopSpec
    rounds: list[Measured] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    about: dict[str, object] = field(default_factory=dict)

    def median(self, value: Callable[[Measured], float]) -> float:
        return statistics.median(map(value, self.rounds))

    def ratios(self, base: Series) -> list[float]:
        """This loop's requests/s by the other's, for each round in which both were measured."""
        theirs = {measured.round: measured.load.rps for measured in base.rounds}
        return [m.load.rps / theirs[m.round] for m in self.rounds if theirs.get(m.round)]


def _measure(server: Server, row: Row, number: int, seconds: float, warmup: float) -> Measured:
    before = server.cpu_seconds()
    load = harness.load(server, row.connections, row.size, seconds, warmup)
    cpu = server.cpu_seconds() - before
    if not load.total_requests:
        raise BenchmarkError(f"{server.name}: not one request was served")
    busy = load.client_cpu_seconds / (seconds + warmup)
    return Measured(number, load, cpu / load.total_requests * 1e6, busy)


def measure_row(
    row: Row,
    loops: Sequence[LoopSpec],
    rounds: int,
    seconds: float,
    *,
    warmup: float = WARMUP,
    fresh: bool = False,
    progress: Callable[[str], None] = lambda text: None,
) -> list[Series]:
    """Measure every loop in every round.

    What fails is kept in ``Series.failures``, and the loop gets a fresh server. With ``fresh`` every round
    has servers of its own, else a loop's server is kept for all of them.
    """
    series = {loop: Series(loop) for loop in loops}
    servers: dict[LoopSpec, Server] = {}
    with ExitStack() as stack:
        for number in range(rounds):
            for loop in order(loops, number):
                progress(f"{row}, round {number + 1} of {rounds}: {loop}")
                one = series[loop]
                try:
                    if loop not in servers:
                        servers[loop] = Server(row.kind, loop)
                        stack.callback(servers[loop].end)
                        one.about = servers[loop].about
                    one.rounds.append(_measure(servers[loop], row, number, seconds, warmup))
                    if fresh:
                        servers.pop(loop).stop()
                except BenchmarkError as error:
                    one.failures.append(str(error))
                    if loop in servers:
                        servers.pop(loop).end()
        for loop, server in servers.items():
            try:
                server.stop()
            except BenchmarkError as error:
                series[loop].failures.append(str(error))
    progress("")
    return list(series.values())


def table(results: Sequence[Series], baselines: Sequence[str], *, cpu: bool = True) -> str:
    """A row's results as text, with a column of ratios for each baseline (by the loop's name)."""
    found = [(name, one) for name in baselines for one in results if str(one.loop) == name]
    head = ["", "requests/s ", "p50 us", "p99 us", *(["CPU us/request"] if cpu else [])]
    lines = [[*head, *(f"to {name}" for name, _ in found)]]
    for one in results:
        if not one.rounds:
            lines.append([str(one.loop), "failed "])
            continue
        bound = any(measured.client_bound for measured in one.rounds)
        cells = [report.thousands(one.median(lambda m: m.load.rps)) + ("*" if bound else " ")]
        cells += [f"{one.median(lambda m: m.load.p50_us):.0f}", f"{one.median(lambda m: m.load.p99_us):.0f}"]
        if cpu:
            cells.append(f"{one.median(lambda m: m.cpu_us):.1f}")
        lines.append([str(one.loop), *cells, *(report.ratio(one.ratios(base)) for _, base in found)])
    text = report.table(lines)
    if any(measured.client_bound for one in results for measured in one.rounds):
        text += "\n* the load generator used up its core: the server may be capable of more"
    return text


def failures(results: Iterable[Series]) -> list[str]:
    """Each different one once, and how often."""
    counts = Counter(f"{one.loop}: {text}" for one in results for text in one.failures)
    return [f"({count} times) {text}" if count > 1 else text for text, count in counts.items()]


def _json(row: Row, results: Sequence[Series]) -> dict[str, object]:
    about = ("loop_class", "loop_version")
    return {
        **asdict(row),
        "loops": {
            str(one.loop): {
                **{name: one.about.get(name) for name in about},
                "rounds": [{**asdict(m), "client_bound": m.client_bound} for m in one.rounds],
                "failures": one.failures,
            }
            for one in results
        },
    }


def main() -> int:
    """The command line; 1 if anything failed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rows", default=ROWS, help=ROWS)
    parser.add_argument("--loops", default=LOOPS, help=LOOPS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="measured in each round")
    parser.add_argument("--warmup", type=float, default=WARMUP, help="load before that, in seconds")
    parser.add_argument("--netpoller", metavar="MODE", help="auto, dedicated or inline, for netpoll_loop")
    parser.add_argument("--baseline", default="uvloop", help="the loop that ratios are taken to (uvloop)")
    parser.add_argument("--fresh", action="store_true", help="a new server process for every round")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every round there as well")
    arguments = parser.parse_args()
    try:
        rows = [Row.parse(text) for text in arguments.rows.split(",")]
        loops = LoopSpec.parse_list(arguments.loops, arguments.netpoller)
    except ValueError as error:
        parser.error(str(error))

    print(report.machine_line())
    print(f"{arguments.rounds} rounds of {arguments.seconds:g} s; medians; ratios of requests/s with their range")
    written: list[dict[str, object]] = []
    failed = False
    with harness.no_process_left():
        for row in rows:
            results = measure_row(
                row,
                loops,
                arguments.rounds,
                arguments.seconds,
                warmup=arguments.warmup,
                fresh=arguments.fresh,
                progress=report.progress,
            )
            print(f"\n{row}\n{table(results, [arguments.baseline])}", flush=True)
            for text in failures(results):
                failed = True
                print(f"FAILED {text}", file=sys.stderr)
            written.append(_json(row, results))
            if arguments.json:
                text = json.dumps({"machine": report.machine(), "rows": written}, indent=1)
                arguments.json.write_text(text + "\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
