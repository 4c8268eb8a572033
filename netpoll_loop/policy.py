"""The ways in: a policy, a loop factory, and `run`.

`asyncio.set_event_loop_policy` is deprecated since Python 3.14 and goes in 3.16; the policy is the entry on every
version that has it, `new_event_loop` as a loop factory and `run` work everywhere.
"""

import asyncio
import functools
import sys
import typing
from asyncio import events
from collections.abc import Callable, Coroutine

from netpoll_loop import groups
from netpoll_loop._core.handoff import MAX_WORKERS
from netpoll_loop.loop import Loop
from netpoll_loop.options import (
    resolve_max_workers,
    resolve_netpoller,
    resolve_run_on,
    resolve_spin_us,
    resolve_stall_report,
)

__all__ = ["EventLoopPolicy", "install", "new_event_loop", "run"]

_T = typing.TypeVar("_T")

if typing.TYPE_CHECKING or sys.version_info < (3, 14):
    _DefaultEventLoopPolicy = asyncio.DefaultEventLoopPolicy
else:
    # The public name warns when it is touched; `python -W error -c "import netpoll_loop"` has to be silent.
    _DefaultEventLoopPolicy = asyncio.unix_events._DefaultEventLoopPolicy


class EventLoopPolicy(_DefaultEventLoopPolicy):
    """An event loop policy whose loops are `netpoll_loop.Loop`s.

    `netpoller` is "auto", "dedicated" or "inline"; None means the environment variable NETPOLL_LOOP_NETPOLLER as it is
    when a loop is made, else "auto". `run_on` is "caller" or "worker"; None means NETPOLL_LOOP_RUN_ON, else "caller".
    `max_workers` bounds the threads of `blocking()`, 64 if None; `stall_report` and `spin_us` as in
    `new_event_loop`. Raises ValueError for anything else.

    Apart from the loops it is asyncio's default policy: https://docs.python.org/3/library/asyncio-policy.html
    """

    def __init__(
        self,
        netpoller: str | None = None,
        *,
        run_on: str | None = None,
        max_workers: int | None = None,
        stall_report: float | None = None,
        spin_us: int | None = None,
    ) -> None:
        super().__init__()
        self._netpoller = None if netpoller is None else resolve_netpoller(netpoller)
        self._run_on = None if run_on is None else resolve_run_on(run_on)
        self._max_workers = resolve_max_workers(max_workers, MAX_WORKERS)
        self._stall_report = resolve_stall_report(stall_report)
        self._spin_us = None if spin_us is None else resolve_spin_us(spin_us)

    def _loop_factory(self) -> Loop:
        return Loop(
            self._netpoller,
            run_on=self._run_on,
            max_workers=self._max_workers,
            stall_report=self._stall_report,
            spin_us=self._spin_us,
        )

    if sys.version_info < (3, 12):
        # 3.11's default is a thread for each child process. The loop itself asks no watcher for its children
        # (netpoll_loop.subprocesses); this one is for code that does.

        def _init_watcher(self) -> None:
            from netpoll_loop.subprocesses import PidfdChildWatcher, pidfd_works

            if not pidfd_works():
                super()._init_watcher()  # type: ignore[misc]
                return
            with events._lock:  # type: ignore[attr-defined]
                if self._watcher is None:  # type: ignore[has-type]
                    self._watcher = PidfdChildWatcher()


def new_event_loop(
    netpoller: str | None = None,
    *,
    run_on: str | None = None,
    max_workers: int | None = None,
    stall_report: float | None = None,
    spin_us: int | None = None,
) -> Loop:
    """A new loop; a `loop_factory=` for `asyncio.run` (3.12+) and `asyncio.Runner` (3.11+).

    `netpoller` is "auto", "dedicated" or "inline"; None means the environment variable NETPOLL_LOOP_NETPOLLER, else
    "auto". `run_on` is "caller", the thread that calls `run_forever` runs the callbacks, or "worker", it parks and
    serves signals only; None means NETPOLL_LOOP_RUN_ON, else "caller". `max_workers` bounds the threads of
    `blocking()`, 64 if None. A callback that has run for `stall_report` seconds is reported to the `asyncio` logger
    with its stack, while it still runs; None: only in debug mode, after `loop.slow_callback_duration`. `spin_us`:
    microseconds for which an idle poller polls before it blocks, for a faster answer at the price of a CPU; None means
    NETPOLL_LOOP_SPIN_US, else 0. Raises ValueError for anything else, and OSError when the process is out of file
    descriptors.
    """
    return Loop(netpoller, run_on=run_on, max_workers=max_workers, stall_report=stall_report, spin_us=spin_us)


def install(
    netpoller: str | None = None,
    *,
    run_on: str | None = None,
    max_workers: int | None = None,
    stall_report: float | None = None,
    spin_us: int | None = None,
) -> None:
    """Makes netpoll_loop the event loop of this process: `asyncio.set_event_loop_policy(EventLoopPolicy(...))`.

    Raises ValueError as `EventLoopPolicy` does. On Python 3.14 and 3.15 asyncio gives a DeprecationWarning for its
    policies; use `run` or `new_event_loop` there.
    """
    asyncio.set_event_loop_policy(
        EventLoopPolicy(netpoller, run_on=run_on, max_workers=max_workers, stall_report=stall_report, spin_us=spin_us)
    )


@typing.overload
def run(
    main: Coroutine[typing.Any, typing.Any, _T],
    *,
    workers: int | None = None,
    debug: bool | None = None,
    netpoller: str | None = None,
    run_on: str | None = None,
    max_workers: int | None = None,
    stall_report: float | None = None,
    spin_us: int | None = None,
) -> _T: ...
@typing.overload
def run(
    main: Callable[[], Coroutine[typing.Any, typing.Any, _T]],
    *,
    workers: int,
    debug: bool | None = None,
    netpoller: str | None = None,
    run_on: str | None = None,
    max_workers: int | None = None,
    stall_report: float | None = None,
    spin_us: int | None = None,
) -> list[_T]: ...
def run(
    main: typing.Any,
    *,
    workers: int | None = None,
    debug: bool | None = None,
    netpoller: str | None = None,
    run_on: str | None = None,
    max_workers: int | None = None,
    stall_report: float | None = None,
    spin_us: int | None = None,
) -> typing.Any:
    """Runs a coroutine on a new loop and returns its result: `asyncio.run` on netpoll_loop, for every Python version.

    `debug` as in `asyncio.run`, the others as in `new_event_loop`. Raises what the coroutine raises, RuntimeError when
    an event loop is running in this thread, and ValueError for a bad option.

    With `workers=N`, `main` is a coroutine function without arguments, and is run on each of N new loops, each on a
    thread of its own: a worker group (docs/groups.md). Returns the list of results when all have ended. When one
    fails, the others are cancelled, and the failure is raised; several different ones as a BaseExceptionGroup.
    Ctrl-C cancels all, then KeyboardInterrupt is raised. Raises TypeError for a coroutine with more than one worker,
    and ValueError for less than one worker.
    """
    refusal = _refusal(main, workers)
    if refusal is not None:
        if asyncio.iscoroutine(main):
            main.close()
        raise refusal
    options: dict[str, typing.Any] = {
        "netpoller": netpoller,
        "run_on": run_on,
        "max_workers": max_workers,
        "stall_report": stall_report,
        "spin_us": spin_us,
    }
    if workers is not None and not asyncio.iscoroutine(main):
        return groups.run_group(main, workers, debug=debug, options=options)
    factory = functools.partial(new_event_loop, **options)
    with asyncio.Runner(debug=debug, loop_factory=factory) as runner:
        return runner.run(main)


def _refusal(main: object, workers: object) -> Exception | None:
    """Why run() can't be called like this."""
    if events._get_running_loop() is not None:
        # Before a loop is made, and in asyncio's words.
        return RuntimeError("asyncio.run() cannot be called from a running event loop")
    if workers is None:
        return None
    if not isinstance(workers, int):
        return TypeError(f"workers must be an int, not {type(workers).__name__!r}")
    if workers < 1:
        return ValueError("workers must be greater than 0")
    if asyncio.iscoroutine(main):
        if workers > 1:
            return TypeError(
                f"with workers={workers}, main must be a coroutine function, to be called on each worker; "
                "a coroutine can be run only once"
            )
    elif not callable(main):
        return TypeError(f"a coroutine function was expected, got {main!r}")
    return None
