"""`go()`: starts work on the least loaded loop, and gives a handle that any loop may wait for.

A `Go` is written to by the thread of the loop that does the work, once, and read by all. It needs no lock: whoever
waits adds itself to `_waiters` first and looks at `_done` then; who finishes sets `_done` first and takes the waiters
then. One of the two sees the other.

A method through which an exception of the work goes ends with `del self`, as in concurrent.futures: the traceback has
its frame, and the handle has the exception. What nobody asked for is so reported when the handle goes, not when the
collector comes.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import inspect
import typing
from collections.abc import Callable, Coroutine, Generator

__all__ = ["Go", "go"]

_T = typing.TypeVar("_T")
_Ts = typing.TypeVarTuple("_Ts")


class Worker(typing.Protocol):
    """What `go` asks of the worker whose loop is the running one, `loop._worker` (netpoll_loop.groups)."""

    def place(self, work: Go[typing.Any], context: contextvars.Context) -> None:
        """Starts the work on the least loaded loop of the group, or on this one if it is ending."""


#: Work outside groups is kept alive here until it is done.
_alone: set[Go[typing.Any]] = set()


class Go(typing.Generic[_T]):
    """Work that `go()` has started. It can be awaited on any loop, by several at once and again and again.

    Awaiting it gives the result, or raises what the work raised (CancelledError when that was cancelled). Whoever
    waits may be cancelled: the work goes on, as with `asyncio.shield`; only `cancel()` ends it. The other methods may
    be called on any thread.

    An exception that nobody asked for is reported to the loop's exception handler when the handle is gone.
    """

    __slots__ = (
        "__weakref__",
        "_begun",
        "_cancelled",
        "_coroutine",
        "_done",
        "_exception",
        "_forget",
        "_function",
        "_loop",
        "_name",
        "_reported",
        "_result",
        "_task",
        "_traceback",
        "_waiters",
    )

    _result: _T

    def __init__(
        self, function: Callable[[], typing.Any] | Coroutine[typing.Any, typing.Any, _T], name: str | None
    ) -> None:
        self._begun = False
        self._done = False
        #: What it ends with if it was asked to before it has begun.
        self._cancelled: asyncio.CancelledError | None = None
        self._exception: BaseException | None = None
        self._traceback: typing.Any = None
        #: Nothing is to be reported: no exception, or somebody has seen it.
        self._reported = True
        self._waiters: dict[asyncio.Future[None], None] = {}
        self._name = name
        self._task: asyncio.Task[_T] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._forget: Callable[[Go[typing.Any]], object] | None = None
        self._coroutine: Coroutine[typing.Any, typing.Any, _T] | None = None
        self._function: Callable[[], typing.Any] | None = None
        if asyncio.iscoroutine(function):
            self._coroutine = function
        else:
            self._function = function

    def __repr__(self) -> str:
        state = "pending" if not self._done else "cancelled" if self.cancelled() else "done"
        name = f" name={self._name!r}" if self._name is not None else ""
        work = self._coroutine if self._coroutine is not None else self._function
        return f"<Go {state}{name}{'' if work is None else f' {work!r}'}>"

    # ---- on any thread ------------------------------------------------------------------------------

    def done(self) -> bool:
        """Whether the work has ended: with a result, an exception, or cancelled."""
        return self._done

    def cancelled(self) -> bool:
        """Whether the work was cancelled."""
        return self._done and isinstance(self._exception, asyncio.CancelledError)

    def get_name(self) -> str | None:
        """The name that `go()` was given."""
        return self._name

    def result(self) -> _T:
        """The result; raises what the work raised, and asyncio.InvalidStateError when it isn't done."""
        if not self._done:
            raise asyncio.InvalidStateError("Result is not set.")
        self._reported = True
        if self._exception is not None:
            try:
                raise self._exception.with_traceback(self._traceback)
            finally:
                del self
        return self._result

    def exception(self) -> BaseException | None:
        """What the work raised, None if nothing. Raises CancelledError when it was cancelled, and
        asyncio.InvalidStateError when it isn't done.
        """
        if not self._done:
            raise asyncio.InvalidStateError("Exception is not set.")
        self._reported = True
        if isinstance(self._exception, asyncio.CancelledError):
            try:
                raise self._exception.with_traceback(self._traceback)
            finally:
                del self
        return self._exception

    def cancel(self, msg: object = None) -> bool:
        """Cancels the work, as asyncio.Task.cancel does, on its loop; False if it is done already.

        True says that the work was asked to end: it may still refuse, or have ended meanwhile.
        """
        loop = self._loop
        if self._done or loop is None:
            return False
        # As a task's: without a message it has no argument.
        self._cancelled = asyncio.CancelledError() if msg is None else asyncio.CancelledError(msg)
        try:
            loop.call_soon_threadsafe(self._cancel, msg)
        except RuntimeError:
            return False
        return True

    def __await__(self) -> Generator[typing.Any, None, _T]:
        if not self._done:
            waiter = asyncio.get_running_loop().create_future()
            self._waiters[waiter] = None
            try:
                if not self._done:
                    yield from waiter
            finally:
                self._waiters.pop(waiter, None)
        try:
            return self.result()
        finally:
            del self

    def __del__(self) -> None:
        if self._reported or self._exception is None or self._loop is None:
            return
        context = {"message": "The exception of go() was never retrieved", "exception": self._exception}
        if self._name is not None:
            context["message"] += f": {self._name}"  # type: ignore[operator]
        if asyncio._get_running_loop() is not self._loop and not self._loop.is_closed():
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._loop.call_exception_handler, context)
                return
        self._loop.call_exception_handler(context)

    # ---- on the loop that does the work ---------------------------------------------------------------

    def _start_on(
        self,
        loop: asyncio.AbstractEventLoop,
        context: contextvars.Context,
        forget: Callable[[Go[typing.Any]], object],
    ) -> None:
        """On any thread: asks the loop to begin. `forget` is called when the work is done.

        Raises RuntimeError when the loop is closed; another one may then be tried.
        """
        self._loop, self._forget = loop, forget
        if asyncio._get_running_loop() is loop:
            loop.call_soon(self._start, context)
        else:
            loop.call_soon_threadsafe(self._start, context)

    def _start(self, context: contextvars.Context) -> None:
        """Not inside the context: a task that begins at once (asyncio.eager_task_factory) enters it by itself."""
        if self._cancelled is not None:
            self._abandon()
        if self._done:
            return
        self._begun = True
        try:
            # For a coroutine, too: a context that is entered elsewhere would leave its task pending for ever.
            result = context.run(self._function or _nothing)
            if asyncio.iscoroutine(result):
                self._coroutine = result
            if self._coroutine is not None:
                assert self._loop is not None
                self._task = self._loop.create_task(self._coroutine, name=self._name, context=context)
                self._task.add_done_callback(self._task_done)
        except BaseException as exc:
            coroutine = self._coroutine
            self._finish(None, exc)
            if coroutine is not None:
                coroutine.close()
            if isinstance(exc, (KeyboardInterrupt, SystemExit)):
                self._reported = True
                raise
        else:
            if self._task is None:
                self._finish(result, None)
        finally:
            del self

    def _cancel(self, msg: object) -> None:
        if self._done:
            return
        if self._task is not None:
            self._task.cancel(msg)
        else:
            self._forestall()

    def _task_done(self, task: asyncio.Task[_T]) -> None:
        try:
            exc = task.exception()
        except asyncio.CancelledError as cancelled:
            self._finish(None, cancelled)
        else:
            self._finish(None if exc is not None else task.result(), exc)
            # Those have gone through the loop already.
            self._reported = self._reported or isinstance(exc, (KeyboardInterrupt, SystemExit))
        finally:
            del self

    def _forestall(self) -> None:
        """Ends as cancelled, unless it has begun: a function may be in a body of `blocking()`. On the work's loop."""
        if not self._begun:
            self._abandon()

    def _abandon(self) -> None:
        """Ends as cancelled, without a task: on the work's loop, or on any thread when that is closed."""
        if self._done:
            return
        if self._coroutine is not None and not self._begun:
            self._coroutine.close()
        self._finish(None, self._cancelled or asyncio.CancelledError())

    def _finish(self, result: typing.Any, exc: BaseException | None) -> None:
        self._result = result
        if exc is not None:
            self._exception, self._traceback = exc, exc.__traceback__
            self._reported = isinstance(exc, asyncio.CancelledError)
        self._coroutine = self._function = self._task = None
        self._done = True
        # Not "while self._waiters": popitem() alone is one step, also without a GIL.
        while True:
            try:
                waiter, _ = self._waiters.popitem()
            except KeyError:
                break
            with contextlib.suppress(RuntimeError):
                waiter.get_loop().call_soon_threadsafe(_wake, waiter)
        if self._forget is not None:
            self._forget(self)
            self._forget = None


def _nothing() -> None:
    pass


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


@typing.overload
def go(
    work: Coroutine[typing.Any, typing.Any, _T],
    /,
    *,
    name: str | None = None,
    context: contextvars.Context | None = None,
) -> Go[_T]: ...
@typing.overload
def go(
    work: Callable[[*_Ts], Coroutine[typing.Any, typing.Any, _T]],
    /,
    *args: *_Ts,
    name: str | None = None,
    context: contextvars.Context | None = None,
) -> Go[_T]: ...
@typing.overload
def go(
    work: Callable[[*_Ts], _T],
    /,
    *args: *_Ts,
    name: str | None = None,
    context: contextvars.Context | None = None,
) -> Go[_T]: ...
def go(  # type: ignore[misc]  # mypy can't see that any arguments are taken
    work: typing.Any,
    /,
    *args: typing.Any,
    name: str | None = None,
    context: contextvars.Context | None = None,
) -> Go[typing.Any]:
    """Starts work on the least loaded loop of this worker group, and returns a handle to wait for it.

        work = netpoll_loop.go(fetch, url)
        result = await work         # on this loop or any other

    `work` is a coroutine function, called with `args`; a coroutine; or a plain function, which is called with `args` on
    the chosen loop, as a callback of it: what it returns is the result. Least loaded is the loop with the fewest pieces
    of work from `go()` and accepted connections together. Outside a group it is the running loop.

    The work has no parent: it isn't cancelled with the task that has started it, and needn't be kept. It runs in
    `context`, by default a copy of the caller's. When the loop closes, it is cancelled. `name` is the task's.

    Raises RuntimeError when no event loop is running in this thread, and TypeError for what can't be called.
    """
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        if asyncio.iscoroutine(work):
            work.close()
        raise
    function: Callable[[], typing.Any] | Coroutine[typing.Any, typing.Any, typing.Any]
    if asyncio.iscoroutine(work):
        if args:
            work.close()
            raise TypeError("a coroutine takes no arguments")
        function = work
    elif not callable(work):
        raise TypeError(f"a coroutine or a function is expected, got {work!r}")
    elif inspect.iscoroutinefunction(work):
        function = work(*args)
    else:
        function = _Call(work, args)
    handle: Go[typing.Any] = Go(function, name)
    context = contextvars.copy_context() if context is None else context
    worker: Worker | None = getattr(loop, "_worker", None)
    if worker is not None:
        worker.place(handle, context)
    else:
        _alone.add(handle)
        handle._start_on(loop, context, _alone.discard)
    return handle


class _Call:
    """A function and its arguments; shows as the function."""

    __slots__ = ("_args", "_function")

    def __init__(self, function: Callable[..., typing.Any], args: tuple[typing.Any, ...]) -> None:
        self._function = function
        self._args = args

    def __call__(self) -> typing.Any:
        return self._function(*self._args)

    def __repr__(self) -> str:
        return repr(self._function)
