"""`blocking()`: code that blocks its thread, in a coroutine, while the loop goes on.

Go's runtime takes P away from a goroutine that is stuck in a system call and lets another thread run the others. This
is the same for a loop: while the body of ``with blocking():`` keeps its thread, another worker thread runs the loop.
How it is done stands in ``_core/handoff.pyx``.
"""

from __future__ import annotations

import typing
from collections.abc import Callable

from netpoll_loop._core.handoff import Body, decorated

__all__ = ["blocking"]

_P = typing.ParamSpec("_P")
_R = typing.TypeVar("_R")


@typing.overload
def blocking() -> Body: ...
@typing.overload
def blocking(function: Callable[_P, _R], /) -> Callable[_P, _R]: ...
def blocking(function: Callable[_P, _R] | None = None, /) -> Body | Callable[_P, _R]:
    """Marks code that blocks its thread: the loop's other tasks run on meanwhile, on another worker thread.

        async def handler(request):
            with netpoll_loop.blocking():
                rows = legacy_driver.query(...)
            return web.json_response(rows)

    For the other tasks the ``with`` looks like an ``await``. The coroutine stays on its thread, and goes on there when
    it is its turn again. A body that is over within a fraction of a millisecond gives nothing away and costs about a
    microsecond. In a callback, or outside a loop of ours, it does the same, or nothing.

    ``@blocking`` and ``@blocking()`` make each call of a plain function such a body. ``async with blocking():`` is the
    same as ``with``, and in addition a cancellation that came meanwhile takes effect at its end.

    Inside, the loop may be used through ``call_soon_threadsafe`` and ``run_coroutine_threadsafe`` only, and nothing may
    be awaited: RuntimeError. RuntimeError at the end of the body when the loop was closed meanwhile.

    While a body lasts, *other* tasks run on another thread: what is bound to a thread (a sqlite3 connection with
    ``check_same_thread``, thread-locals) isn't theirs there. A lock that is held around ``with blocking():`` and taken
    in a callback deadlocks, as it would around an ``await``.
    """
    if function is None:
        return Body()
    return decorated(function)
