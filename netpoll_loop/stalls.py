"""Stall reports: where a callback is that doesn't come to its end, said while it is still stuck.

asyncio's debug mode says so afterwards, and never if there is no afterwards. Here a thread looks, several times in the
limit, whether the loop gets on: in debug mode with the limit `loop.slow_callback_duration`, or with the one that
`stall_report=` gives. Each stall is reported once, to the `asyncio` logger.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
import traceback
import typing
import weakref
from asyncio import base_events
from asyncio.log import logger

__all__ = ["StallMonitor"]

#: How often in the limit the monitor looks, and seconds between two looks at least: a limit of 0 has asyncio log every
#: callback, and nobody wants a stack of each.
LOOKS = 4
SHORTEST = 0.005


class Watched(typing.Protocol):
    """What the monitor asks of a loop, from its own thread."""

    slow_callback_duration: float

    def _progress(self) -> tuple[int, int] | None:
        """The thread that runs callbacks, and a number that each callback moves. None: the loop waits."""


class StallMonitor:
    """Watches one loop from `start` to `stop`. `limit` in seconds; None: the loop's slow_callback_duration."""

    def __init__(self, loop: Watched, limit: float | None = None) -> None:
        self._loop = weakref.ref(loop)
        self._limit = limit
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Does nothing if it runs already, or if no thread can be started."""
        if self._thread is not None:
            return
        # Each thread has its own: a stop() that was interrupted has not waited for the last one.
        self._over = threading.Event()
        thread = threading.Thread(
            target=self._watch, args=(self._over,), name="netpoll_loop stall monitor", daemon=True
        )
        try:
            thread.start()
        except (RuntimeError, MemoryError) as error:
            logger.warning("netpoll_loop: no stall reports, for their thread can't be started (%s)", error)
            return
        self._thread = thread

    def stop(self) -> None:
        """Ends its thread."""
        if self._thread is not None:
            self._over.set()
            try:
                self._thread.join()
            finally:
                self._thread = None

    def forget(self) -> None:
        """In a forked child, where the thread isn't."""
        self._thread = None

    def _watch(self, over: threading.Event) -> None:
        last = None
        since = 0.0
        reported = False
        while True:
            loop = self._loop()
            if loop is None:
                return
            limit = max(0.0, loop.slow_callback_duration if self._limit is None else self._limit)
            seen = loop._progress()
            now = time.monotonic()
            if seen is None or seen != last:
                last, since, reported = seen, now, False
            elif not reported and now - since >= limit:
                reported = True
                self._report(loop, seen[0], now - since)
            del loop
            if over.wait(max(SHORTEST, limit / LOOKS)):
                return

    @staticmethod
    def _report(loop: typing.Any, ident: int, elapsed: float) -> None:
        frame = sys._current_frames().get(ident)
        if frame is None:
            return
        try:
            what = StallMonitor._describe(asyncio.current_task(loop), loop._current_handle)
        except Exception:
            # A repr of the program's, on a thread that it doesn't expect.
            what = "a callback"
        thread = next((thread.name for thread in threading.enumerate() if thread.ident == ident), str(ident))
        stack = "".join(traceback.format_stack(frame))
        # Not warning(): who replaces that, to see which callbacks asyncio found slow, counts those.
        logger.log(
            logging.WARNING,
            "%r is stalled: %s has been running for more than %.3f seconds, in thread %s:\n%s",
            loop, what, elapsed, thread, stack.rstrip(),
        )  # fmt: skip

    @staticmethod
    def _describe(task: typing.Any, handle: typing.Any) -> str:
        """handle: in debug mode only."""
        if task is not None:
            return f"{task.get_name()}, {task.get_coro()!r},"
        if handle is not None:
            return str(base_events._format_handle(handle))  # type: ignore[attr-defined]
        return "a callback"
