"""Worker groups: `run(main, workers=N)` runs N loops, the Ps, on N threads of one process.

M0, the thread that calls `run`, runs no user's code. Its loop accepts for all (netpoll_loop.listeners), takes the
process's signals, and waits until the last worker has ended. Each worker thread runs its loop by an `asyncio.Runner`:
first `main`, then, until every `main` has ended, what others start on it; then the runner ends as in `asyncio.run`.

What M0 and the workers share is changed under the group's lock. What belongs to a loop is touched by its thread only,
and by others through `call_soon_threadsafe`. M0 never waits for a worker, so that workers may wait for M0.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import contextvars
import functools
import signal
import threading
import typing
from collections.abc import Callable, Coroutine

from netpoll_loop.go import Go
from netpoll_loop.listeners import Listeners, Share, Tally
from netpoll_loop.loop import Loop
from netpoll_loop.worker_loop import WorkerLoop

__all__ = ["Group", "Worker", "run_group"]

_T = typing.TypeVar("_T")
_R = typing.TypeVar("_R")

#: Seconds that a second Ctrl-C waits for a worker's callback before it interrupts it.
INTERRUPT_AFTER = 0.1


class _Handler(typing.NamedTuple):
    """What a loop has called for a signal."""

    callback: Callable[..., object]
    args: tuple[typing.Any, ...]
    context: contextvars.Context


class Worker:
    """One P of a group: its loop, the thread that runs it, and what has become of its `main`."""

    def __init__(self, group: Group, index: int, loop: WorkerLoop) -> None:
        self.group = group
        self.index = index
        self.loop = loop
        loop._worker = self
        # Each `main` in a copy of its own of the caller's context, as by asyncio.run.
        run = functools.partial(contextvars.copy_context().run, self._run)
        self.thread = threading.Thread(target=run, name=f"netpoll_loop P{index}", daemon=True)
        #: Under the group's lock: pieces of work and accepted connections; the work itself; whether others may not
        #: start any here, since the tasks are being cancelled or have been.
        self.load = Tally()
        self.works: set[Go[typing.Any]] = set()
        self.ending = False
        self.shares: dict[int, Share] = {}
        #: How often each address was opened with port 0. The loop's.
        self.ephemeral: dict[typing.Hashable, int] = {}
        #: The loop's thread writes these, M0 reads them when it has ended.
        self.task: asyncio.Task[typing.Any] | None = None
        self.cancel_asked = False
        self.cancelled = False
        self.result: typing.Any = None
        self._interrupts = 0
        self._release = loop.create_future()

    # ---- any thread ---------------------------------------------------------------------------------

    def place(self, work: Go[typing.Any], context: contextvars.Context) -> None:
        """netpoll_loop.go.Worker.place."""
        self.group.place(self, work, context)

    def call(self, callback: Callable[..., object]) -> None:
        """Calls it on the loop, if that isn't closed."""
        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(callback)

    # ---- the loop's callbacks --------------------------------------------------------------------------

    def cancel(self) -> None:
        """Cancels `main`."""
        self.cancel_asked = True
        if self.task is not None:
            self.task.cancel()

    def interrupt(self) -> None:
        self._interrupts += 1
        raise KeyboardInterrupt

    def release(self) -> None:
        """Every `main` has ended."""
        if not self._release.done():
            self._release.set_result(None)

    # ---- the thread ----------------------------------------------------------------------------------

    def _run(self) -> None:
        group = self.group
        main_ended = False
        try:
            with asyncio.Runner(debug=group.debug, loop_factory=lambda: self.loop) as runner:
                try:
                    self._run_main(runner)
                    main_ended = True
                    group.main_ended()
                    runner.run(self._released())
                finally:
                    self.end()
        except BaseException as exc:
            # Out of a callback, or out of the runner's end.
            group.failed(exc)
        finally:
            if not main_ended:
                group.main_ended()
            group.left(self)

    def _run_main(self, runner: asyncio.Runner) -> None:
        try:
            self.result = runner.run(self._main())
        except asyncio.CancelledError as exc:
            self.cancelled = True
            if not self.cancel_asked:
                self.group.failed(exc)
        except BaseException as exc:
            self.group.failed(exc)

    def end(self) -> None:
        """Before the runner cancels the tasks: what has none yet would begin after that, and be thrown away."""
        with self.group.lock:
            self.ending = True
            works = list(self.works)
        for work in works:
            work._forestall()

    async def _main(self) -> typing.Any:
        if self.cancel_asked:
            raise asyncio.CancelledError
        self.task = asyncio.current_task()
        try:
            coroutine = self.group.main()
            if not asyncio.iscoroutine(coroutine):
                raise ValueError(f"a coroutine was expected, got {coroutine!r}")
            return await coroutine
        finally:
            self.task = None

    async def _released(self) -> None:
        await self._release


class Group:
    """The workers of one `run`, seen from M0 and from all of them."""

    def __init__(
        self,
        main: Callable[[], Coroutine[typing.Any, typing.Any, typing.Any]],
        workers: int,
        debug: bool | None,
        options: dict[str, typing.Any],
    ) -> None:
        self.main = main
        self.debug = debug
        # Reentrant, for finalizers that call go().
        self.lock = threading.RLock()
        self.m0 = Loop("inline", run_on="caller", spin_us=0)
        self.listeners = Listeners(self.m0, self.lock)
        self.workers: list[Worker] = []
        self._failures: list[BaseException] = []
        self._mains = workers
        self._running = workers
        self._finished = self.m0.create_future()
        self._interrupts = 0
        self._turn = 0
        #: M0's: by signal and loop, what is called there.
        self._signals: dict[int, dict[WorkerLoop, _Handler]] = {}
        try:
            for index in range(workers):
                self.workers.append(Worker(self, index, WorkerLoop(**options)))
        except BaseException:
            self._close()
            raise

    def _close(self) -> None:
        for worker in self.workers:
            if worker.thread.ident is None:
                worker.loop.close()
        self.listeners.close()
        self.m0.close()

    # ---- M0 -----------------------------------------------------------------------------------------

    def run(self) -> list[typing.Any]:
        """Runs `main` on each worker; their results, or what is to be raised."""
        handler = self._install_sigint()
        try:
            self._start_threads()
            while self._running:
                try:
                    self.m0.run_until_complete(self._finished)
                except BaseException as exc:
                    # Out of a signal handler.
                    if self._interrupts > 2:
                        # Workers that can't be interrupted end with the process.
                        raise
                    self.failed(exc)
            for worker in self.workers:
                if worker.thread.ident is not None:
                    worker.thread.join()
        finally:
            if handler is not None and signal.getsignal(signal.SIGINT) is handler:
                signal.signal(signal.SIGINT, signal.default_int_handler)
            self._close()
        return self._outcome()

    def _start_threads(self) -> None:
        for index, worker in enumerate(self.workers):
            try:
                worker.thread.start()
            except BaseException as exc:
                self.failed(exc)
                for rest in self.workers[index:]:
                    rest.end()
                    rest.loop.close()
                    self.main_ended()
                    self.left(rest)
                return

    def _outcome(self) -> list[typing.Any]:
        failures: list[BaseException] = []
        for exc in self._failures:
            if not any(exc is other for other in failures):
                failures.append(exc)
        for exc in failures:
            if isinstance(exc, (KeyboardInterrupt, SystemExit)):
                raise exc
        errors = [exc for exc in failures if not isinstance(exc, asyncio.CancelledError)]
        if len(errors) > 1:
            raise BaseExceptionGroup("unhandled errors in a worker group", errors)
        if errors or failures:
            raise (errors or failures)[0]
        if self._interrupts and any(worker.cancelled for worker in self.workers):
            raise KeyboardInterrupt
        return [worker.result for worker in self.workers]

    def _install_sigint(self) -> Callable[..., object] | None:
        """As asyncio.Runner: only in the main thread, and only if nobody else handles it."""
        if (
            threading.current_thread() is not threading.main_thread()
            or signal.getsignal(signal.SIGINT) is not signal.default_int_handler
        ):
            return None
        handler = self._on_sigint
        try:
            signal.signal(signal.SIGINT, handler)
        except ValueError:
            return None
        return handler

    def _on_sigint(self, signum: int, frame: typing.Any) -> None:
        self._interrupts += 1
        if self._interrupts > 2 or not self._running:
            raise KeyboardInterrupt
        self.m0.call_soon_threadsafe(self._interrupted, self._interrupts)

    def _interrupted(self, count: int) -> None:
        if count == 1:
            self._cancel_all()
            return
        for worker in self.workers:
            worker.call(worker.interrupt)
        self.m0.call_later(INTERRUPT_AFTER, self._interrupt_busy)

    def _interrupt_busy(self) -> None:
        """Those whose callback goes on: as in a main thread, between two bytecodes."""
        import ctypes  # opens a descriptor on some systems

        for worker in self.workers:
            ident = worker.loop._thread_id
            if not worker._interrupts and ident is not None and ident > 0:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(ident), ctypes.py_object(KeyboardInterrupt))

    def _cancel_all(self) -> None:
        for worker in self.workers:
            worker.call(worker.cancel)

    # ---- any thread ----------------------------------------------------------------------------------

    def place(self, caller: Worker, work: Go[typing.Any], context: contextvars.Context) -> None:
        """Starts the work on the loop that has the least to do; in turn among equals.

        A loop that is ending gets none, but for its own, which stays there: the tasks that it cancels may wait for it.
        """
        with self.lock:
            best = caller
            if not caller.ending:
                in_turn = self.workers[self._turn :] + self.workers[: self._turn]
                best = min((each for each in in_turn if not each.ending), key=lambda each: each.load.value())
                self._turn = best.index + 1
            best.works.add(work)
            best.load.add()
            try:
                work._start_on(best.loop, context, functools.partial(_work_done, best))
            except BaseException:
                _work_done(best, work)
                raise

    def failed(self, exc: BaseException) -> None:
        """A `main` has failed, or a callback asks the process to end: the others are cancelled."""
        with self.lock:
            self._failures.append(exc)
        self._cancel_all()

    def main_ended(self) -> None:
        with self.lock:
            self._mains -= 1
            last = self._mains == 0
        if last:
            for worker in self.workers:
                worker.call(worker.release)

    def left(self, worker: Worker) -> None:
        """The worker has ended: what is left at its loop is put right."""
        try:
            if not worker.loop.is_closed():
                # The runner's end was interrupted before that.
                worker.loop.close()
            with self.lock:
                worker.ending = True
                works = list(worker.works)
            for share in list(worker.shares.values()):
                self.listeners.abandon(share)
            worker.shares.clear()
            for work in works:
                work._abandon()
        finally:
            # Whatever has interrupted this, M0 is told.
            self._on_m0(functools.partial(self._worker_left, worker))

    def _worker_left(self, worker: Worker) -> None:
        for sig in list(self._signals):
            self._remove_signal(worker.loop, sig)
        self._running -= 1
        if not self._running:
            self._finished.set_result(None)

    def _on_m0(self, callback: Callable[[], object]) -> None:
        with contextlib.suppress(RuntimeError):
            self.m0.call_soon_threadsafe(callback)

    # ---- signals --------------------------------------------------------------------------------------

    def ask_m0(self, function: Callable[[], _R]) -> _R:
        """Calls function() on M0, and returns its result. Raises what it raises."""
        answer: concurrent.futures.Future[_R] = concurrent.futures.Future()

        def errand() -> None:
            try:
                answer.set_result(function())
            except BaseException as exc:
                answer.set_exception(exc)

        self.m0.call_soon_threadsafe(errand)
        return answer.result()

    def add_signal(
        self, loop: WorkerLoop, sig: int, callback: Callable[..., object], args: tuple[typing.Any, ...]
    ) -> None:
        context = contextvars.copy_context()

        def add() -> None:
            handlers = self._signals.get(sig)
            if handlers is None:
                self.m0.add_signal_handler(sig, self._signalled, sig)
                handlers = self._signals[sig] = {}
            handlers[loop] = _Handler(callback, args, context)

        self.ask_m0(add)

    def remove_signal(self, loop: WorkerLoop, sig: int) -> bool:
        return self.ask_m0(lambda: self._remove_signal(loop, sig))

    def _remove_signal(self, loop: WorkerLoop, sig: int) -> bool:
        handlers = self._signals.get(sig)
        if handlers is None or handlers.pop(loop, None) is None:
            # M0's loop checks the number.
            return handlers is None and self.m0.remove_signal_handler(sig)
        if not handlers:
            del self._signals[sig]
            self.m0.remove_signal_handler(sig)
        return True

    def _signalled(self, sig: int) -> None:
        for loop, handler in list(self._signals.get(sig, {}).items()):
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(handler.callback, *handler.args, context=handler.context)


def _work_done(worker: Worker, work: Go[typing.Any]) -> None:
    worker.works.discard(work)
    worker.load.drop()


def run_group(
    main: Callable[[], Coroutine[typing.Any, typing.Any, _T]],
    workers: int,
    *,
    debug: bool | None,
    options: dict[str, typing.Any],
) -> list[_T]:
    """Runs `main` on each of `workers` loops, made with `options`; see netpoll_loop.run."""
    return Group(main, workers, debug, options).run()
