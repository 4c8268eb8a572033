"""What every benchmark is made of: processes that are always ended, servers, and runs of the load generator.

Servers run in processes of their own, under the interpreter that runs the benchmark. A benchmark wraps its
work in ``no_process_left()``; how it ends then doesn't matter: each process is killed with its process
group, and should this one be killed first, the kernel ends them (PR_SET_PDEATHSIG).
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import http.client
import json
import os
import select
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from benchmarks.servers import KINDS
from benchmarks.servers.loops import LOOPS

ROOT = Path(__file__).resolve().parent.parent
LOADGEN = ROOT / "benchmarks" / "loadgen" / "loadgen"

HOST = "127.0.0.1"
START_SECONDS = 20.0  # for a server to say its port
STOP_SECONDS = 5.0  # for a process to end after SIGTERM

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


class BenchmarkError(Exception):
    """A process failed, or answered wrongly. The text is for the reader of the benchmark."""


# ---- processes ----

_running: set[Process] = set()


def _die_with_parent(parent: int) -> None:
    # In the child, between fork and exec. Looking at the parent afterwards closes the gap between the two.
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


class Process:
    """A child in a session of its own, read line by line. Its stderr is kept for the error message."""

    def __init__(self, command: Sequence[str], pass_fds: Sequence[int] = ()) -> None:
        self.name = " ".join(Path(command[0]).name if i == 0 else part for i, part in enumerate(command))
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - closed by end()
        self._popen = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            cwd=ROOT,
            start_new_session=True,
            pass_fds=pass_fds,
            preexec_fn=functools.partial(_die_with_parent, os.getpid()),
        )
        _running.add(self)
        self._unread = b""

    @property
    def pid(self) -> int:
        return self._popen.pid

    def alive(self) -> bool:
        return self._popen.poll() is None

    def fail(self, what: str) -> NoReturn:
        """End the process and raise BenchmarkError with what it wrote to stderr."""
        status = self._popen.poll()
        self._kill()
        text = self.errors()
        ended = "" if status is None else f", exit status {status}"
        raise BenchmarkError(f"{self.name}: {what}{ended}" + (f"\n{text}" if text else ""))

    def errors(self) -> str:
        """The end of what it wrote to stderr so far."""
        size = os.fstat(self._stderr.fileno()).st_size
        return os.pread(self._stderr.fileno(), 4000, max(0, size - 4000)).decode(errors="replace").strip()

    def read_line(self, timeout: float) -> str:
        """Its next line on stdout; raises BenchmarkError if there is none within ``timeout`` seconds."""
        assert self._popen.stdout is not None
        deadline = time.monotonic() + timeout
        while b"\n" not in self._unread:
            left = max(0.0, deadline - time.monotonic())
            readable, _, _ = select.select([self._popen.stdout], [], [], left)
            if not readable:
                self.fail(f"wrote nothing within {timeout:.0f} s")
            part = os.read(self._popen.stdout.fileno(), 65536)
            if not part:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._popen.wait(STOP_SECONDS)
                self.fail("ended early")
            self._unread += part
        line, _, self._unread = self._unread.partition(b"\n")
        return line.decode()

    def write_line(self, text: str = "") -> None:
        """To its stdin."""
        assert self._popen.stdin is not None
        try:
            self._popen.stdin.write(f"{text}\n".encode())
            self._popen.stdin.flush()
        except OSError:
            self.fail("ended early")

    def send_signal(self, number: int) -> None:
        self._popen.send_signal(number)

    def close_stdin(self) -> None:
        assert self._popen.stdin is not None
        self._popen.stdin.close()

    def wait(self, timeout: float) -> int:
        """Its exit status; raises BenchmarkError if it doesn't end within ``timeout`` seconds."""
        try:
            return self._popen.wait(timeout)
        except subprocess.TimeoutExpired:
            self.fail(f"didn't end within {timeout:.0f} s")

    def terminate(self) -> int:
        """SIGTERM, and its exit status; raises BenchmarkError if that doesn't end it."""
        if self.alive():
            self._popen.terminate()
        try:
            return self.wait(STOP_SECONDS)
        finally:
            self._kill()

    def end(self) -> None:
        """Kill it and everything in its process group, at once."""
        self._kill()
        self._stderr.close()
        for stream in (self._popen.stdin, self._popen.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        _running.discard(self)

    def _kill(self) -> None:
        # Also when it has ended: its group may have members left, and then its number isn't reused.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        self._popen.wait()

    def cpu_seconds(self) -> float:
        """CPU time of all its threads, also ended ones.

        The sum of utime and stime in /proc/PID/stat, but in nanoseconds where that has steps of 10 ms.
        """
        return time.clock_gettime((~self.pid << 3) | 2)  # clock_getcpuclockid(3)

    def open_files(self) -> int:
        """How many file descriptors it has."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def resident_bytes(self) -> int:
        """Its resident memory. smaps_rollup counts pages; statm's number may be off by some for each CPU."""
        for line in Path(f"/proc/{self.pid}/smaps_rollup").read_text().splitlines():
            name, _, rest = line.partition(":")
            if name == "Rss":
                return int(rest.split()[0]) * 1024
        raise BenchmarkError("smaps_rollup has no Rss line")


def _on_signal(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


@contextlib.contextmanager
def no_process_left() -> Iterator[None]:
    """Whatever ends the block, also SIGTERM, SIGHUP or Ctrl-C: no process started in it outlives it."""
    ending = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
    previous = {number: signal.signal(number, _on_signal) for number in ending}
    try:
        yield
    finally:
        for number in ending:
            signal.signal(number, signal.SIG_IGN)
        for process in list(_running):
            process.end()
        for number, handler in previous.items():
            signal.signal(number, handler)


# ---- servers ----


@dataclass(frozen=True)
class LoopSpec:
    """A loop as the command line names it: ``uvloop``, or ``netpoll_loop:dedicated`` for one mode."""

    name: str
    netpoller: str | None = None

    @classmethod
    def parse(cls, text: str, netpoller: str | None = None) -> LoopSpec:
        """``netpoller`` is for a netpoll_loop without a mode. ValueError: there is no such loop."""
        name, _, mode = text.partition(":")
        if name not in LOOPS:
            raise ValueError(f"unknown loop {name!r}, known are {', '.join(LOOPS)}")
        if mode and name != "netpoll_loop":
            raise ValueError(f"{name} has no netpoller")
        return cls(name, mode or (netpoller if name == "netpoll_loop" else None))

    @classmethod
    def parse_list(cls, text: str, netpoller: str | None = None) -> list[LoopSpec]:
        """The same for a comma-separated list."""
        return [cls.parse(part.strip(), netpoller) for part in text.split(",")]

    def __str__(self) -> str:
        return f"{self.name}:{self.netpoller}" if self.netpoller else self.name


def order(loops: Sequence[LoopSpec], number: int) -> list[LoopSpec]:
    """The loops' turns in a round: rotated, and every other time backwards, so that each follows each."""
    start = number % len(loops)
    turns = [*loops[start:], *loops[:start]]
    return turns[::-1] if number % 2 else turns


class Server(Process):
    """A server of ``benchmarks.servers``, ready to be loaded. Raises BenchmarkError if it doesn't start.

    ``options`` are its long options.
    """

    def __init__(self, kind: str, loop: LoopSpec, pass_fds: Sequence[int] = (), **options: Any) -> None:
        words = ["--netpoller", loop.netpoller] if loop.netpoller else []
        for name, value in options.items():
            words.append(f"--{name.replace('_', '-')}" + ("" if value is True else f"={value}"))
        super().__init__(
            [sys.executable, "-m", "benchmarks.servers", kind, "--loop", loop.name, "--host", HOST, *words], pass_fds
        )
        self.kind = KINDS[kind]
        self.expect = self.kind.expect
        self.about: dict[str, Any] = json.loads(self.read_line(START_SECONDS))
        self.port: int = self.about["port"]
        if self.kind.load in ("http", "https"):
            self._check_body()

    def _check_body(self) -> None:
        if self.kind.load == "http":
            connection = http.client.HTTPConnection(HOST, self.port, timeout=START_SECONDS)
        else:
            context = ssl._create_unverified_context()
            connection = http.client.HTTPSConnection(HOST, self.port, timeout=START_SECONDS, context=context)
        try:
            connection.request("GET", "/")
            response = connection.getresponse()
            body = response.read().decode(errors="replace")
        except (OSError, http.client.HTTPException) as error:
            self.fail(f"no response to GET /: {error!r}")
        finally:
            connection.close()
        if response.status != 200 or (self.kind.expect is not None and body != self.kind.expect):
            self.fail(f"GET / gave status {response.status} and {body!r} instead of {self.kind.expect!r}")
        if self.kind.document is not None:
            # Serializers differ in blanks and escapes. What is the document once has to come every time.
            try:
                same = json.loads(body) == json.loads(self.kind.document.read_bytes())
            except ValueError:
                same = False
            if not same:
                self.fail(f"GET / gave something else than {self.kind.document.name}: {body[:200]!r}")
            self.expect = body

    def stop(self) -> None:
        """End it as a user would, by SIGTERM; raises BenchmarkError if it fails then, or if it complained."""
        try:
            if self.terminate() != 0:
                self.fail("ended with an error")
            if self.errors():
                self.fail("wrote to stderr")
        finally:
            self.end()


# ---- load ----


@dataclass(frozen=True)
class Load:
    """What the load generator reports. ``requests`` are those of the measured time only."""

    seconds: float
    requests: int
    total_requests: int
    rps: float
    mean_us: float
    p50_us: float
    p99_us: float
    p999_us: float
    max_us: float
    errors: int
    client_cpu_seconds: float
    #: When the last message was sent (in a burst) and the last response came, on CLOCK_MONOTONIC.
    last_sent_ns: int
    last_reply_ns: int

    @classmethod
    def from_json(cls, line: str) -> Load:
        report = json.loads(line)
        return cls(**{field.name: report[field.name] for field in fields(cls)})


def build_loadgen() -> None:
    """Compile the load generator if that isn't done yet, or if its source is newer."""
    source = LOADGEN.with_suffix(".c")
    newest = max(path.stat().st_mtime for path in (source, *LOADGEN.parent.glob("*.h")))
    if LOADGEN.exists() and LOADGEN.stat().st_mtime >= newest:
        return
    compiled = LOADGEN.with_suffix(f".{os.getpid()}")
    try:
        subprocess.run(["cc", "-O2", "-o", compiled, source], check=True)
        compiled.replace(LOADGEN)
    except (OSError, subprocess.CalledProcessError) as error:
        raise BenchmarkError(f"the load generator can't be built: {error}") from None
    finally:
        compiled.unlink(missing_ok=True)


def start_loadgen(mode: str, port: int, **options: Any) -> Process:
    """Start the load generator; ``options`` are its long options."""
    build_loadgen()
    words = [f"--{name}={value}" for name, value in options.items() if value is not None]
    return Process([str(LOADGEN), mode, "--json", f"--host={HOST}", f"--port={port}", *words])


def load(
    server: Server,
    connections: int,
    size: int,
    seconds: float,
    warmup: float,
    rate: float | None = None,
    during: Callable[[], None] | None = None,
) -> Load:
    """Load a server: each connection as fast as it is answered or, with ``rate``, by a schedule of so many a second.

    ``during`` is called once the load generator has been started.

    Raises BenchmarkError on any error: a lost connection, a wrong byte or status, a response that doesn't
    come.
    """
    kind = server.kind
    if kind.load == "https":
        return _load_https(server, connections, seconds + warmup)
    extra: dict[str, Any] = {"expect": server.expect} if kind.load == "http" else {"size": size}
    client = start_loadgen(
        kind.load, server.port, connections=connections, seconds=seconds, warmup=warmup, rate=rate, **extra
    )
    try:
        if during is not None:
            during()
        limit = seconds + warmup + 30 + connections / 1000  # beyond the load generator's own
        line = client.read_line(limit)
        if client.wait(limit) != 0:
            client.fail("failed")
        return Load.from_json(line)
    finally:
        client.end()


def _microseconds(text: str) -> float:
    """Of a time as wrk prints it: 87.00us, 1.25ms, 2.00s."""
    for unit, factor in (("us", 1.0), ("ms", 1e3), ("s", 1e6)):
        if text.endswith(unit):
            return float(text.removesuffix(unit)) * factor
    raise BenchmarkError(f"wrk has printed a time of {text!r}")


def _load_https(server: Server, connections: int, seconds: float) -> Load:
    """By wrk, for the load generator doesn't speak TLS. wrk doesn't compare bodies, and knows no warm-up."""
    wrk = shutil.which("wrk")
    if wrk is None:
        raise BenchmarkError("a load over TLS needs wrk")
    whole = max(1, round(seconds))
    url = f"https://{HOST}:{server.port}/"
    client = Process([wrk, "-t1", f"-c{connections}", f"-d{whole}s", "--latency", url])
    try:
        before = time.monotonic()
        found: dict[str, str] = {}
        while "Requests/sec:" not in found:
            words = client.read_line(whole + 30).split()
            if len(words) >= 2:
                found.setdefault(words[0], words[1])
            if words[:1] == ["Non-2xx"] or words[:2] == ["Socket", "errors:"]:
                client.fail("had errors: " + " ".join(words))
            if words[1:2] == ["requests"]:
                found["requests"] = words[0]
        elapsed = time.monotonic() - before
        client.wait(5)
    finally:
        client.end()
    rate, requests = float(found["Requests/sec:"]), int(found["requests"])
    mean, half, most = (_microseconds(found[name]) for name in ("Latency", "50%", "99%"))
    return Load(elapsed, requests, requests, rate, mean, half, most, most, most, 0, 0.0, 0, 0)
