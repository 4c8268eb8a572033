"""The options of a loop: who waits for its file descriptors, and which threads run its callbacks.

Given as arguments (`EventLoopPolicy(netpoller=...)`, `new_event_loop(netpoller=...)`, `run(..., netpoller=...)`) or by
environment variables, for programs that can't be changed. The argument wins.
"""

import os
import typing

__all__ = [
    "CHAOS_VARIABLE",
    "ENVIRONMENT_VARIABLE",
    "IO_URING_VARIABLE",
    "RUN_ON_VARIABLE",
    "SPIN_MAX",
    "SPIN_VARIABLE",
    "NetpollerMode",
    "RunOn",
    "may_use_io_uring",
    "resolve_max_workers",
    "resolve_netpoller",
    "resolve_run_on",
    "resolve_spin_us",
    "resolve_stall_report",
    "switches_always",
]

#: "auto": the loop's own thread waits, the netpoller thread takes over when a callback runs long. "dedicated": the
#: netpoller thread always waits, and receives, sends and accepts beside Python. "inline": there is no such thread.
NetpollerMode = typing.Literal["auto", "dedicated", "inline"]

ENVIRONMENT_VARIABLE = "NETPOLL_LOOP_NETPOLLER"

#: "caller": the thread that calls `run_forever` runs the callbacks. "worker": it parks and serves signals only, and a
#: worker thread runs them.
RunOn = typing.Literal["caller", "worker"]

RUN_ON_VARIABLE = "NETPOLL_LOOP_RUN_ON"

#: Microseconds for which an idle poller polls before it blocks; 0, the default: it blocks at once.
SPIN_VARIABLE = "NETPOLL_LOOP_SPIN_US"
#: More than a second of polling is a mistake.
SPIN_MAX = 1_000_000

#: With "0" the netpoller sends with epoll's means alone, for places where a process must not use io_uring.
IO_URING_VARIABLE = "NETPOLL_LOOP_IO_URING"

#: A debugging aid for the project's own tests: with "1", "auto" changes its mind about who sends in every turn.
CHAOS_VARIABLE = "NETPOLL_LOOP_CHAOS"


def may_use_io_uring() -> bool:
    """Whether NETPOLL_LOOP_IO_URING is not set to 0. The kernel may still refuse it."""
    return os.environ.get(IO_URING_VARIABLE) != "0"


def switches_always() -> bool:
    """Whether NETPOLL_LOOP_CHAOS is set to 1."""
    return os.environ.get(CHAOS_VARIABLE) == "1"


def _resolve(name: str, variable: str, value: str | None, choices: tuple[str, ...]) -> str:
    source = name
    if value is None:
        source, value = variable, os.environ.get(variable) or choices[0]
    for choice in choices:
        if choice == value:
            return choice
    *others, last = (f'"{choice}"' for choice in choices)
    raise ValueError(f"{source} must be {', '.join(others)} or {last}, not {value!r}")


def resolve_netpoller(netpoller: str | None = None) -> NetpollerMode:
    """The mode of a new loop: the argument, else the environment variable (empty: unset), else "auto".

    Raises ValueError, naming the three choices, for anything else.
    """
    value = _resolve("netpoller", ENVIRONMENT_VARIABLE, netpoller, typing.get_args(NetpollerMode))
    return typing.cast(NetpollerMode, value)


def resolve_run_on(run_on: str | None = None) -> RunOn:
    """Where a new loop's callbacks run: the argument, else NETPOLL_LOOP_RUN_ON (empty: unset), else "caller".

    Raises ValueError, naming the two choices, for anything else.
    """
    return typing.cast(RunOn, _resolve("run_on", RUN_ON_VARIABLE, run_on, typing.get_args(RunOn)))


def resolve_max_workers(max_workers: int | None, default: int) -> int:
    """How many worker threads a new loop may have. Raises TypeError for what is no int, ValueError below 1."""
    if max_workers is None:
        return default
    if not isinstance(max_workers, int):
        raise TypeError(f"max_workers must be an int, not {type(max_workers).__name__!r}")
    if max_workers < 1:
        raise ValueError("max_workers must be greater than 0")
    return max_workers


def resolve_spin_us(spin_us: int | None = None) -> int:
    """Microseconds that a new loop's idle poller polls: the argument, else NETPOLL_LOOP_SPIN_US (empty: unset), else 0.

    Raises TypeError for an argument that is no int, ValueError outside of 0 to 1,000,000.
    """
    source = "spin_us"
    if spin_us is None:
        source, text = SPIN_VARIABLE, os.environ.get(SPIN_VARIABLE) or "0"
        try:
            spin_us = int(text)
        except ValueError:
            raise ValueError(f"{source} must be a number of microseconds, not {text!r}") from None
    if not isinstance(spin_us, int):
        raise TypeError(f"{source} must be an int, not {type(spin_us).__name__!r}")
    if not 0 <= spin_us <= SPIN_MAX:
        raise ValueError(f"{source} must be between 0 and {SPIN_MAX}")
    return spin_us


def resolve_stall_report(seconds: float | None) -> float | None:
    """After how many seconds in one callback a new loop reports it, without debug mode too; None: only there.

    Raises TypeError for what is no number, ValueError for one that isn't above 0.
    """
    if seconds is not None:
        if not isinstance(seconds, (int, float)):
            raise TypeError(f"stall_report must be a number of seconds, not {type(seconds).__name__!r}")
        if not 0 < seconds < float("inf"):
            raise ValueError("stall_report must be greater than 0")
    return seconds
