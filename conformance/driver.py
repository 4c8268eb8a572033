"""Shares test ids out to worker processes and comes back with one result for each, whatever a test does.

A test over its time limit is a HANG: its worker is made to print its stacks, then killed. A worker that dies has a
CRASH in the test that it was in. Either way a new worker goes on with the tests that are left. A test that no worker
reported is MISSING: it isn't in the suite, or its module or class could not be set up.
"""

import contextlib
import dataclasses
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence

from conformance.records import CRASH, HANG, MISSING

#: Seconds: for a worker to import its suite before the first test; to end after the last; to print its stacks.
START_LIMIT = 180
END_LIMIT = 10
DUMP_LIMIT = 5

#: Characters of a worker's output that go with a hang or a crash.
OUTPUT_LIMIT = 6000


@dataclasses.dataclass
class Outcome:
    outcome: str
    detail: str = ""
    seconds: float = 0.0
    ours: int = 0
    stock: int = 0


@dataclasses.dataclass
class Job:
    """One worker's command line and environment, and what its job file says beside the tests."""

    command: Sequence[str]
    environment: Mapping[str, str]
    directory: str
    settings: dict[str, object]
    limit: float


class _Worker:
    def __init__(self, job: Job, **settings: object) -> None:
        self._output = tempfile.TemporaryFile()
        self._file = tempfile.NamedTemporaryFile("w", suffix=".json")
        read_end, write_end = os.pipe()
        json.dump({**job.settings, **settings, "fd": write_end}, self._file)
        self._file.flush()
        self._pipe, self._pending, self._at_end = read_end, b"", False
        self.limit = job.limit
        self.process = subprocess.Popen(
            job.command,
            cwd=job.directory,
            env={**job.environment, "CONFORMANCE_JOB": self._file.name},
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            pass_fds=[write_end],
            start_new_session=True,
        )
        os.close(write_end)
        self.current: str | None = None
        self.since = time.monotonic()

    def records(self):
        """Yields records until the worker ends; raises TimeoutError when its time is over."""
        while True:
            while b"\n" in self._pending:
                line, self._pending = self._pending.split(b"\n", 1)
                record = json.loads(line)
                now = time.monotonic()
                record["seconds"] = now - self.since
                if "start" in record:
                    self.current, self.since = record["start"], now
                elif "end" in record:
                    self.current, self.since = None, now
                yield record
            limit = START_LIMIT if self.current is None else self.limit
            left = self.since + limit - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"no end after {limit:g} s")
            if self._at_end:
                return
            # Not only the pipe: a child that a test forked may hold its other end for ever.
            ready, _, _ = select.select([self._pipe], [], [], min(left, 0.5))
            if ready:
                data = os.read(self._pipe, 65536)
                self._pending += data
                self._at_end = not data
            elif self.process.poll() is not None:
                self._at_end = True

    def output(self) -> str:
        self._output.seek(max(0, self._output.seek(0, os.SEEK_END) - OUTPUT_LIMIT))
        return self._output.read().decode(errors="replace")

    def _signal(self, signum: int) -> None:
        try:
            os.killpg(self.process.pid, signum)
        except ProcessLookupError:
            pass

    def dump(self) -> None:
        """faulthandler prints the stacks of all threads on SIGABRT."""
        self.process.send_signal(signal.SIGABRT)
        try:
            self.process.wait(DUMP_LIMIT)
        except subprocess.TimeoutExpired:
            pass

    def close(self) -> None:
        """Ends the worker and whatever its tests left running in its session."""
        self._signal(signal.SIGKILL)
        self.process.wait()
        os.close(self._pipe)
        self._output.close()
        self._file.close()


def _how_it_ended(returncode: int) -> str:
    if returncode < 0:
        return f"the interpreter was killed by {signal.Signals(-returncode).name}"
    return f"the interpreter exited with status {returncode}"


#: Statuses of a worker that ran what it could: all well, tests failed, nothing to run (pytest's 5).
_ENDED_WELL = (0, 1, 5)


def run(job: Job, tests: Sequence[str], report: Callable[[str, Outcome], None]) -> dict[str, Outcome]:
    """One result for each id of `tests`, run in this order, in one worker as long as it lives."""
    results: dict[str, Outcome] = {}
    left = list(dict.fromkeys(tests))
    notes: list[str] = []

    def add(test: str, outcome: Outcome) -> None:
        if test not in results:
            results[test] = outcome
            report(test, outcome)

    while left:
        before = len(results)
        with contextlib.closing(_Worker(job, tests=left)) as worker:
            complete = _follow(worker, add, notes)
        left = [test for test in left if test not in results]
        if complete or len(results) == before:
            # Another worker would not get to them either.
            for test in left:
                add(test, Outcome(MISSING, "\n".join(notes)[-OUTPUT_LIMIT:]))
            left = []
    return results


def _follow(worker: _Worker, add: Callable[[str, Outcome], None], notes: list[str]) -> bool:
    """Takes a worker's records to its end. True if it came to the end of its tests by itself."""
    failure = None
    try:
        for record in worker.records():
            if "end" in record:
                fields = ("outcome", "detail", "seconds", "ours", "stock")
                add(record["end"], Outcome(**{field: record[field] for field in fields if field in record}))
            elif "note" in record:
                notes.append(record["note"])
        try:
            worker.process.wait(END_LIMIT)
        except subprocess.TimeoutExpired:
            if worker.current is None:
                # A thread that a test left behind, for example. Its tests have ended.
                return True
            failure = "the record pipe was closed"
    except TimeoutError as error:
        failure = str(error)
        worker.dump()
    status = worker.process.returncode
    if worker.current is not None:
        if failure is not None:
            add(worker.current, Outcome(HANG, f"{failure}\n{worker.output()}", worker.limit))
        else:
            add(worker.current, Outcome(CRASH, f"{_how_it_ended(status)}\n{worker.output()}"))
        return False
    notes.append(worker.output())
    if failure is None and status in _ENDED_WELL:
        return True
    notes.append(f"between tests: {failure or _how_it_ended(status)}")
    return False


def discover(job: Job, modules: Sequence[str]) -> tuple[list[str], list[str]]:
    """The ids of all tests in `modules`, and notes on what could not be imported."""
    tests, notes = [], []
    with contextlib.closing(_Worker(job, discover=list(modules))) as worker:
        for record in worker.records():
            if "end" in record:
                tests.append(record["end"])
            elif "note" in record:
                notes.append(record["note"])
        worker.process.wait(START_LIMIT)
        if worker.process.returncode not in _ENDED_WELL:
            sys.exit(f"conformance: the tests could not be collected\n{worker.output()}")
    return tests, notes
