"""The rows of the table: what is measured, how it is called, and what it has to reach.

The usual targets are ratios within the same run: of netpoll_loop's rate to uvloop's, and to that of the best other
loop. None: only reported. A row may have targets for other metrics (`verdict.Target`), and be measured in a way of its
own (`benchmarks.scenarios`).
"""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks import matrix, verdict
from benchmarks.micro import WORKLOADS
from benchmarks.servers import KINDS
from benchmarks.verdict import Target


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    group: str
    title: str
    #: A workload of `benchmarks.micro`, or a kind of `benchmarks.servers`.
    what: str
    to_uvloop: float | None = None
    to_best: float | None = None
    connections: int = 0  #: 0: a workload
    size: int = 1024  #: bytes of a message
    unit: str = "/s"
    scenario: str = ""  #: of `benchmarks.scenarios`; else `what` says how it is measured
    only: tuple[str, ...] = ()  #: the loops that it is about, instead of those asked for
    also: tuple[str, ...] = ()  #: loops beside those asked for
    targets: tuple[verdict.Target, ...] = ()
    columns: tuple[tuple[str, str, int], ...] = ()  #: of the text beside the usual ones: metric, heading, digits
    compared: bool = True  #: whether the rate says who is better
    rounds: int = 0  #: instead of the usual number
    longer: int = 1  #: times the usual seconds, where a percentile needs more requests
    work_us: int = 0  #: pure Python for each request
    needs: tuple[str, ...] = ()  #: loops without which it means nothing
    long: bool = False  #: left out of its group with --quick

    @property
    def is_server(self) -> bool:
        return self.connections > 0 and not self.scenario


def _echo(name: str, title: str, way: str, connections: int, size: int, uvloop: float, best: float | None) -> Row:
    return Row(name, "echo", title, f"echo-{way}", uvloop, best, connections, size)


INLINE, DEDICATED = "netpoll_loop:inline", "netpoll_loop:dedicated"


def _cell(connections: int, work_us: int) -> Row:
    return Row(
        f"matrix-{connections}-{work_us}",
        matrix.GROUP,
        f"echo, 1 KiB, {connections} connection{'s' * (connections > 1)}, {work_us} us of work",
        "echo-work",
        connections=connections,
        work_us=work_us,
        scenario="work",
        only=(matrix.AUTO, *matrix.OTHERS),
        long=connections not in matrix.QUICK_CONNECTIONS or work_us not in matrix.QUICK_WORK_US,
    )


def _processes(name: str, title: str) -> Row:
    return Row(
        f"processes-{name}",
        "processes",
        f"2 aiohttp processes on 2 cores, {title}, 64 connections",
        "aiohttp-hello",
        connections=64,
        scenario=f"processes-{name}",
        only=(matrix.AUTO, INLINE),
        targets=(Target("rate", "total throughput to inline", 0.97, to=INLINE),),
        columns=(("larger_share", "busier one's share", 2),),
    )


ROWS = [
    Row("call-soon", "sched", "call_soon, burst", "call-soon", 2.6, 1.05),
    Row("call-soon-chain", "sched", "call_soon, chain", "call-soon-chain", 5.0),
    Row("call-soon-args", "sched", "call_soon with two arguments", "call-soon-args", 3.0),
    Row("call-soon-threadsafe", "sched", "call_soon_threadsafe, burst", "call-soon-threadsafe", 3.2),
    Row("call-later-cancel", "sched", "call_later and cancel", "call-later-cancel", 4.5, 1.05),
    Row("timers", "sched", "100 000 timers fire", "timers", 1.7, 1.05),
    Row("sleep-0", "sched", "await sleep(0)", "sleep-0", 3.0, 1.05),
    Row("gather", "sched", "gather of 1000 tasks", "gather", 1.25, 1.05),
    Row("getaddrinfo", "misc", "getaddrinfo of a literal", "getaddrinfo", 2.3),
    Row("run-in-executor", "misc", "run_in_executor", "run-in-executor", 1.2, 1.05),
    Row("run-coroutine-threadsafe", "misc", "run_coroutine_threadsafe", "run-coroutine-threadsafe", 1.2, 1.05),
    Row("subprocess", "misc", "create_subprocess_exec and wait", "subprocess", 4.7, 1.05),
    Row("connect-abort", "misc", "connect and abort, loopback", "connect-abort", 1.1, 1.1),
    Row("udp", "udp", "UDP echo, 1 KiB, 10 sockets", "echo-udp", 1.15, 1.05, 10),
    _echo("protocol", "protocol, 1 KiB, 10 connections", "protocol", 10, 1024, 1.15, 1.02),
    _echo("buffered", "BufferedProtocol, 1 KiB, 10 connections", "buffered", 10, 1024, 1.15, 1.03),
    _echo("streams", "streams, 1 KiB, 10 connections", "streams", 10, 1024, 1.25, 1.05),
    _echo("sock", "sock_*, 1 KiB, 10 connections", "sock", 10, 1024, 2.0, 1.1),
    _echo("protocol-1", "protocol, 1 KiB, 1 connection", "protocol", 1, 1024, 1.0, None),
    _echo("protocol-5000", "protocol, 1 KiB, 5000 connections", "protocol", 5000, 1024, 1.1, 1.05),
    *(
        _echo(f"{way}-{kib}k", f"{label}, {kib} KiB, 10 connections", way, 10, kib * 1024, 1.1, 1.0)
        for kib in (10, 100)
        for way, label in (("protocol", "protocol"), ("streams", "streams"), ("sock", "sock_*"))
    ),
    Row("bulk", "echo", "one way, 64 KiB writes, 1 connection", "bulk", 1.1, 1.0, unit=" pieces/s"),
    Row("aiohttp", "http", "aiohttp hello, 32 connections", "aiohttp-hello", 1.1, 1.02, 32),
    Row("aiohttp-128", "http", "aiohttp hello, 128 connections", "aiohttp-hello", None, None, 128),
    Row("aiohttp-8", "http", "aiohttp hello, 8 connections", "aiohttp-hello", None, None, 8),
    Row("aiohttp-tls", "http", "aiohttp hello over TLS, 32 connections", "aiohttp-tls", 1.0, None, 32),
    Row("uvicorn", "http", "uvicorn hello, 32 connections", "uvicorn-hello", 1.05, 1.0, 32),
    Row(
        "aiohttp-json",
        "json",
        "aiohttp, 10 KiB of JSON, 32 connections",
        "aiohttp-json",
        connections=32,
        also=(INLINE,),
        targets=(Target("rate", "to inline", 1.0, to=INLINE),),
    ),
    Row(
        "fastapi-json",
        "json",
        "uvicorn and FastAPI, 10 KiB of JSON, 32 connections",
        "fastapi-json",
        connections=32,
        also=(INLINE,),
        targets=(Target("rate", "to inline", 1.0, to=INLINE),),
    ),
    Row(
        "aiohttp-rate",
        "rate",
        "aiohttp hello at half of uvloop's maximum, open-loop, 32 connections",
        "aiohttp-hello",
        connections=32,
        scenario="half-rate",
        longer=4,
        needs=("uvloop",),
        targets=(Target("p99_us", "p99 to uvloop's", 1.0, to="uvloop", at_most=True),),
        compared=False,
    ),
    Row("fair", "fair", "echo beside a call_soon chain", "chain-beside-echo"),
    Row(
        "aiohttp-beside",
        "beside",
        "aiohttp hello beside a computing thread, 32 connections",
        "aiohttp-hello",
        10.0,
        connections=32,
        scenario="beside",
        longer=3,
        columns=(("share", "thread keeps", 2),),
        targets=(
            Target("p99_us", "p99 in us", 20_000, at_most=True),
            Target("share", "share of its speed that the thread keeps", 1 / 3),
        ),
    ),
    Row(
        "echo-beside",
        "beside",
        "protocol, 1 KiB, 10 connections, beside a computing thread",
        "echo-protocol",
        connections=10,
        scenario="beside-and-alone",
        columns=(("alone", "alone", 0), ("of_alone", "of that", 3), ("share", "thread keeps", 2)),
        # 20 000/s on a machine on which the echo does 150 000 alone.
        targets=(
            Target("rate", "requests/s", None, worst=True),
            Target("of_alone", "share of the rate alone", 20 / 150, worst=True),
        ),
        rounds=5,
    ),
    _processes("reuse-port", "reuse_port"),
    _processes("inherited", "one inherited listener"),
    Row(
        "write-stall",
        "stall",
        "256 MiB are written, then 2 s of pure Python in the same callback: MiB that arrive before it ends",
        "one",
        scenario="write-stall",
        unit=" MiB",
        also=(INLINE, DEDICATED),
        columns=(("all_seconds", "all after s", 2),),
    ),
    Row(
        "write-stall-4",
        "stall",
        "the same from four threads' loops to slow readers, 64 MiB each",
        "four",
        scenario="write-stall",
        unit=" MiB",
        also=(INLINE, DEDICATED),
        columns=(("all_seconds", "all after s", 2),),
    ),
    Row(
        "accept-stall",
        "stall",
        "1000 clients connect and send while the loop stalls for 500 ms: replies/s after it",
        "echo-stall",
        connections=1000,
        size=64,
        scenario="accept-stall",
        also=(INLINE,),
        columns=(("last_ms", "last reply, ms", 1),),
        targets=(Target("last_ms", "last reply after the stall to inline's", 0.7, to=INLINE, at_most=True),),
    ),
    *(_cell(connections, work_us) for work_us in matrix.WORK_US for connections in matrix.CONNECTIONS),
]

GROUPS = list(dict.fromkeys(row.group for row in ROWS))

QUICK = "call-soon,call-later-cancel,sleep-0,protocol,streams,sock,aiohttp"


def parse(text: str, quick: bool = False) -> list[Row]:
    """A comma-separated list of names, groups, and KIND:CONNECTIONS[:BYTES]. Raises ValueError for anything else.

    With ``quick``, groups are without their long rows.
    """
    found: list[Row] = []
    for part in text.split(","):
        kind, *numbers = part.strip().split(":")
        if numbers:
            if kind not in KINDS or len(numbers) > 2 or not all(number.isdigit() for number in numbers):
                raise ValueError(f"{part!r} isn't KIND:CONNECTIONS[:BYTES] with a kind of {', '.join(KINDS)}")
            connections, size = int(numbers[0]), int(numbers[1]) if numbers[1:] else 1024
            if not (connections and size):
                raise ValueError(f"{part!r}: numbers begin at 1")
            found.append(Row(part, "asked for", part, kind, connections=connections, size=size))
            continue
        rows = [row for row in ROWS if kind == row.name or (kind == row.group and not (quick and row.long))]
        if not rows:
            raise ValueError(
                f"unknown row {kind!r}; groups are {', '.join(GROUPS)}; rows are {', '.join(r.name for r in ROWS)}"
            )
        found += rows
    return list(dict.fromkeys(found))


assert all(row.what in (KINDS if row.is_server else WORKLOADS) for row in ROWS if not row.scenario)
