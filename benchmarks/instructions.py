"""What one operation costs in instructions: repeatable on a busy machine, where a time is not.

    python -m benchmarks.instructions                        # the recorded costs beside those of now
    python -m benchmarks.instructions --record               # write them to benchmarks/instructions.json
    python -m benchmarks.instructions --workloads call-soon --loops netpoll_loop,uvloop --functions 20

Each workload runs twice under `valgrind --tool=callgrind` (Debian's package valgrind), with different numbers of
operations; the difference, divided by the operations, is the cost of one, without start-up. Instructions of the kernel
aren't counted, so a system call saved shows less here than in a time. The record says for which Python it was made:
another build of the interpreter executes other instructions.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.harness import ROOT, BenchmarkError
from benchmarks.micro import WORKLOADS, Workload
from benchmarks.servers.loops import LOOPS, run

RECORD = ROOT / "benchmarks" / "instructions.json"
#: A change of this share of the recorded cost is pointed out.
NOTABLE = 0.03

# ---- the workloads of its own: one process, so that all instructions are the loop's ----


class _Echo(asyncio.Protocol):
    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


async def _ask(theirs: socket.socket, count: int) -> None:
    """Sends 1 KiB and waits for the answer, so many times; then closes the socket."""
    message = bytes(1024)
    with theirs:
        theirs.setblocking(False)
        for _ in range(count):
            theirs.send(message)
            while True:
                await asyncio.sleep(0)
                try:
                    theirs.recv(2048)
                    break
                except BlockingIOError:
                    pass


async def echo_turn(loop: asyncio.AbstractEventLoop, count: int) -> None:
    """One message of 1 KiB through a protocol that echoes it; the other end is asked without a loop."""
    ours, theirs = socket.socketpair()
    transport, _ = await loop.create_connection(_Echo, sock=ours)
    await _ask(theirs, count)
    transport.close()


async def streams_turn(loop: asyncio.AbstractEventLoop, count: int) -> None:
    """The same through a StreamReader and a StreamWriter."""
    ours, theirs = socket.socketpair()
    reader, writer = await asyncio.open_connection(sock=ours)

    async def echo() -> None:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()

    echoing = loop.create_task(echo())
    await _ask(theirs, count)
    await echoing
    writer.close()


async def sock_recv(loop: asyncio.AbstractEventLoop, count: int) -> None:
    """1 KiB that is there already."""
    ours, theirs = socket.socketpair()
    message = bytes(1024)
    with ours, theirs:
        ours.setblocking(False)
        for _ in range(count):
            theirs.send(message)
            await loop.sock_recv(ours, 1024)


async def sock_recv_parked(loop: asyncio.AbstractEventLoop, count: int) -> None:
    """1 KiB that is sent while the coroutine waits."""
    ours, theirs = socket.socketpair()
    message = bytes(1024)
    with ours, theirs:
        ours.setblocking(False)
        for _ in range(count):
            loop.call_soon(theirs.send, message)
            await loop.sock_recv(ours, 1024)


OWN: dict[str, Workload] = {
    "echo-turn": echo_turn,
    "streams-turn": streams_turn,
    "sock-recv": sock_recv,
    "sock-recv-parked": sock_recv_parked,
}
ALL = {**WORKLOADS, **OWN}
RECORDED = ["call-soon", "call-soon-chain", "call-later-cancel", "timers", "sleep-0", "gather", "getaddrinfo", *OWN]

# ---- counting ----


def _count(loop: str, workload: str, operations: int) -> dict[str, int]:
    """Instructions by function, in one run. Raises BenchmarkError."""
    valgrind = shutil.which("valgrind")
    if valgrind is None:
        raise BenchmarkError("valgrind isn't installed (Debian: apt install valgrind)")
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory, "out")
        words = [valgrind, "--tool=callgrind", f"--callgrind-out-file={out}", "--compress-strings=no"]
        words += [sys.executable, "-m", "benchmarks.instructions", "--run", loop, workload, str(operations)]
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, env={"PYTHONHASHSEED": "0", "PATH": ""})
        if done.returncode:
            raise BenchmarkError(f"{workload} on {loop}: {done.stderr[-2000:]}")
        return _by_function(out.read_text(errors="replace"))


def _by_function(text: str) -> dict[str, int]:
    """Self cost by function, of callgrind's output format."""
    found: dict[str, int] = {}
    name = ""
    calling = False
    for line in text.splitlines():
        if line.startswith("fn="):
            name = line[3:]
        elif line.startswith("calls="):
            calling = True  # The next line is the cost of the callee.
        elif re.match(r"[+*\-0-9]", line):
            if not calling:
                found[name] = found.get(name, 0) + int(line.split()[1])
            calling = False
    return found


def cost(loop: str, workload: str, operations: int = 2000) -> tuple[float, list[tuple[str, float]]]:
    """Instructions of one operation, and of each function in it, the dearest first."""
    _count(loop, workload, 10)  # whatever is compiled or cached the first time
    few, many = (_count(loop, workload, n * operations) for n in (1, 2))
    difference = {name: (count - few.get(name, 0)) / operations for name, count in many.items()}
    return sum(difference.values()), sorted(difference.items(), key=lambda item: -item[1])


def main() -> int:
    """The command line; 1 if something couldn't be counted."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.instructions",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--workloads", default=",".join(RECORDED))
    parser.add_argument("--loops", default="netpoll_loop")
    parser.add_argument("--functions", type=int, default=0, metavar="N", help="show the N dearest functions of each")
    parser.add_argument("--record", action="store_true", help=f"write {RECORD.relative_to(ROOT)}")
    parser.add_argument("--run", nargs=3, metavar=("LOOP", "WORKLOAD", "N"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        loop_name, workload, operations = arguments.run

        async def work() -> None:
            await ALL[workload](asyncio.get_running_loop(), int(operations))

        options = {"netpoller": "inline"} if loop_name == "netpoll_loop" else {}
        run(loop_name, work(), **options)
        return 0
    workloads, loops = arguments.workloads.split(","), arguments.loops.split(",")
    for asked, known in ((workloads, ALL), (loops, LOOPS)):
        for name in asked:
            if name not in known:
                parser.error(f"{name!r} isn't one of {', '.join(known)}")
    version = f"CPython {sys.version.split()[0]}"
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    before = record.get(version, {})
    now: dict[str, int] = {}
    try:
        for workload in workloads:
            for loop in loops:
                total, functions = cost(loop, workload)
                text = f"{workload:<20} {loop:<14} {total:8.0f} instructions"
                if loop == "netpoll_loop":
                    now[workload] = round(total)
                    if workload in before:
                        change = total / before[workload] - 1
                        text += f", recorded {before[workload]}" + (f": {change:+.1%}" if abs(change) > NOTABLE else "")
                print(text, flush=True)
                for name, count in functions[: arguments.functions]:
                    print(f"    {count:8.1f}  {name}")
    except BenchmarkError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1
    if arguments.record:
        record[version] = {**before, **now}
        RECORD.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
