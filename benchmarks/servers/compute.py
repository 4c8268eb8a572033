"""One thread of pure Python that computes for ever, and a counter of its progress that another process can read.

The counter is memory without a name: the reader maps it through ``/proc/PID/fd``, and asks nothing of the server, whose
loop is what is measured.
"""

from __future__ import annotations

import mmap
import os
import threading
from pathlib import Path

_BYTES = mmap.PAGESIZE


def _compute(progress: memoryview) -> None:
    while True:
        number = 0
        for i in range(1000):
            number += i & 7
        progress[0] += 1


def start() -> dict[str, int]:
    """Start the thread; what `Progress` needs to know of it."""
    fd = os.memfd_create("progress")
    os.ftruncate(fd, _BYTES)
    progress = memoryview(mmap.mmap(fd, _BYTES)).cast("Q")
    # A daemon: the process ends as if it weren't there.
    thread = threading.Thread(target=_compute, args=(progress,), daemon=True)
    thread.start()
    assert thread.native_id is not None
    return {"fd": fd, "thread": thread.native_id}


class Progress:
    """Of such a thread in another process."""

    def __init__(self, pid: int, fd: int, thread: int) -> None:
        self._schedstat = Path(f"/proc/{pid}/task/{thread}/schedstat")
        with open(f"/proc/{pid}/fd/{fd}", "rb") as file:
            self._count = memoryview(mmap.mmap(file.fileno(), _BYTES, prot=mmap.PROT_READ)).cast("Q")

    def count(self) -> int:
        """How far it got."""
        return self._count[0]

    def cpu_seconds(self) -> float:
        """CPU time of that thread alone."""
        return int(self._schedstat.read_text().split()[0]) / 1e9
