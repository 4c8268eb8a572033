"""What os.fork() and the end of the interpreter have to tell each loop.

A netpoller thread must not exist while a process forks: its locks would be inherited held, and Python 3.12+ warns
about a fork with threads. It must not exist when the interpreter finalizes either. So each loop registers here once;
the hooks go in with the first of them, and hold the loops weakly.

The hooks never raise: an exception of one loop is logged to the `asyncio` logger, and the others still get their turn.
"""

import atexit
import concurrent.futures.thread  # noqa: F401  (see below)
import os
import sys
import threading
import typing
import weakref
from asyncio.log import logger
from collections.abc import Callable

__all__ = ["Forkable", "register"]


class Forkable(typing.Protocol):
    """What a loop provides. Each method may be called on a closed loop and has to do nothing there."""

    def _before_fork(self) -> None:
        """In the parent, on the thread that forks: stop and join the netpoller thread."""

    def _after_fork_parent(self) -> None:
        """In the parent: start it again. Follows each `_before_fork`, also when the fork failed.

        On Python 3.13 and 3.14 it comes as a callback of the loop.
        """

    def _after_fork_child(self) -> None:
        """In the child: what was inherited is dead, and must not be touched by a system call."""

    def _at_exit(self) -> None:
        """At interpreter exit, in the process that made the loop: stop the netpoller thread for good."""

    def call_soon_threadsafe(self, callback: Callable[[], object], /) -> object: ...


# 3.13 and 3.14.0 count threads for their DeprecationWarning after these hooks, so that one started in a hook is taken
# for one that was there during the fork: https://github.com/python/cpython/issues/137109
_WARNS_OF_RESTARTED_THREADS = sys.version_info[:2] in ((3, 13), (3, 14))

# By id, each reference removing itself: a dict can be copied while another thread adds to it, a WeakSet can't.
_loops: dict[int, weakref.ref[Forkable]] = {}
_hooks_installed = False

# One fork at a time, from its first hook to its last: two threads that fork at once would otherwise start each
# other's threads too early. And no other thread makes a loop meanwhile: a loop of which the fork doesn't know could
# start a thread in the middle of it.
_fork_lock = threading.RLock()
# The loops that the running fork has told; referenced here, so that none is collected in between.
_forking: list[list[Forkable]] = []

# While the hooks wait for threads, another thread may import what registers hooks of its own; only those for the end
# of the fork are then called. Those of concurrent.futures.thread release a lock that the one before the fork has taken.
# The first run_in_executor() imports it, so it is imported here, before there is a loop.


def register(loop: Forkable) -> None:
    """Tells `loop` about forks and about the interpreter's exit from now on, for as long as it lives. Any thread."""
    global _hooks_installed
    key = id(loop)
    # The default argument keeps the dict reachable while module globals are torn down.
    ref = weakref.ref(loop, lambda ref, loops=_loops: loops.pop(key, None))  # type: ignore[misc]
    with _fork_lock:
        _loops[key] = ref
        if not _hooks_installed:
            os.register_at_fork(before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child)
            atexit.register(_at_exit)
            _hooks_installed = True
        if _forking:
            # Made in a hook of the fork that this thread is in: its thread has to wait as well.
            _forking[-1].append(loop)
            loop._before_fork()


def _live() -> list[Forkable]:
    return [loop for ref in list(_loops.values()) if (loop := ref()) is not None]


def _tell(loops: list[Forkable], method: str) -> None:
    for loop in loops:
        try:
            getattr(loop, method)()
        except BaseException:
            logger.exception("netpoll_loop: %s failed for %r", method, loop)


def _tell_later(loops: list[Forkable], method: str) -> None:
    for loop in loops:
        try:
            loop.call_soon_threadsafe(getattr(loop, method))
        except RuntimeError:
            # It is closed; by another thread a moment ago, perhaps.
            pass
        except BaseException:
            logger.exception("netpoll_loop: %s failed for %r", method, loop)


def _before() -> None:
    _fork_lock.acquire()
    loops = _live()
    _forking.append(loops)
    _tell(loops, "_before_fork")


def _after_in_parent() -> None:
    if not _fork_lock._is_owned():  # type: ignore[attr-defined]
        # The hooks were installed in the middle of this fork: _before was not called.
        return
    try:
        loops = _forking.pop() if _forking else []
        if _WARNS_OF_RESTARTED_THREADS:
            _tell_later(loops, "_after_fork_parent")
        else:
            _tell(loops, "_after_fork_parent")
    finally:
        _fork_lock.release()


def _after_in_child() -> None:
    global _fork_lock
    # Where the hooks were installed in the middle of this fork, a thread may hold it that doesn't exist here.
    _fork_lock = threading.RLock()
    loops = _live()
    _forking.clear()
    # What is inherited is dead: nothing more to tell it, in this process or in its children.
    _loops.clear()
    _tell(loops, "_after_fork_child")


def _at_exit() -> None:
    _tell(_live(), "_at_exit")
