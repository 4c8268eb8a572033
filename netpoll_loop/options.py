"""The one option of a loop: who waits for its file descriptors.

Given as an argument (`EventLoopPolicy(netpoller=...)`, `new_event_loop(netpoller=...)`, `run(..., netpoller=...)`) or
by the environment variable NETPOLL_LOOP_NETPOLLER, for programs that can't be changed. The argument wins.
"""

import os
import typing

__all__ = ["CHAOS_VARIABLE", "ENVIRONMENT_VARIABLE", "NetpollerMode", "resolve_netpoller", "switches_always"]

#: "auto": the loop's own thread waits, the netpoller thread takes over when a callback runs long. "dedicated": the
#: netpoller thread always waits, and receives, sends and accepts beside Python. "inline": there is no such thread.
NetpollerMode = typing.Literal["auto", "dedicated", "inline"]

ENVIRONMENT_VARIABLE = "NETPOLL_LOOP_NETPOLLER"

#: A debugging aid for the project's own tests: with "1", "auto" changes its mind about who sends in every turn.
CHAOS_VARIABLE = "NETPOLL_LOOP_CHAOS"

_DEFAULT: typing.Final[NetpollerMode] = "auto"


def switches_always() -> bool:
    """Whether NETPOLL_LOOP_CHAOS is set to 1."""
    return os.environ.get(CHAOS_VARIABLE) == "1"


def resolve_netpoller(netpoller: str | None = None) -> NetpollerMode:
    """The mode of a new loop: the argument, else the environment variable (empty: unset), else "auto".

    Raises ValueError, naming the three choices, for anything else.
    """
    source, value = "netpoller", netpoller
    if value is None:
        source, value = ENVIRONMENT_VARIABLE, os.environ.get(ENVIRONMENT_VARIABLE) or _DEFAULT
    for mode in typing.get_args(NetpollerMode):
        if mode == value:
            return typing.cast(NetpollerMode, mode)
    raise ValueError(f'{source} must be "auto", "dedicated" or "inline", not {value!r}')
