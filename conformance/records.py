"""The line protocol from a worker process to the driver: one JSON object a line on an inherited pipe.

{"start": id}                                            a test begins; if nothing follows, this test did it
{"end": id, "outcome": ..., "detail": ..., "ours": n, "stock": n}
{"note": text}                                           what belongs to no test: an import error, a class's set-up
"""

import json
import os

#: Outcomes of a test. The driver adds HANG, CRASH and MISSING.
PASS, FAIL, ERROR, SKIP, XFAIL = "pass", "fail", "error", "skip", "xfail"
HANG, CRASH, MISSING = "hang", "crash", "missing"

DETAIL_LIMIT = 4000


class Recorder:
    """Writes records. Silent in forked children: a test that forks must not report twice."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._pid = os.getpid()
        os.set_inheritable(fd, False)

    def _write(self, record: dict[str, object]) -> None:
        if os.getpid() != self._pid:
            return
        data = json.dumps(record).encode() + b"\n"
        while data:
            data = data[os.write(self._fd, data) :]

    def start(self, test: str) -> None:
        self._write({"start": test})

    def end(self, test: str, outcome: str, detail: str = "", **counts: int) -> None:
        self._write({"end": test, "outcome": outcome, "detail": detail[-DETAIL_LIMIT:], **counts})

    def note(self, text: str) -> None:
        self._write({"note": text[-DETAIL_LIMIT:]})
