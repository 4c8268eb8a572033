"""`stats(loop)`: what a loop and its netpoller have done so far, and who polls now."""

import asyncio
import dataclasses
import typing

from netpoll_loop.loop import Loop
from netpoll_loop.options import NetpollerMode

__all__ = ["Stats", "stats"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """A snapshot of one loop's counters. They start at 0 with the loop and only grow, but for what is so "now"."""

    mode: NetpollerMode
    """Who waits for file descriptors, as the loop was made."""
    poller: typing.Literal["none", "worker", "netpoller"]
    """Who waits for events, or asks for them, at this moment."""
    netpoller_thread: bool
    """Whether the netpoller thread exists."""
    offloading: bool
    """Whether "auto" hands what streams write to the netpoller thread, because Python is busy."""
    batching: bool
    """Whether "auto" sends what streams write at the end of a turn, because the loop is busy with little for each."""
    polls: int
    """System calls that waited for events or asked for them, by either thread."""
    events: int
    """Events that the operating system reported, to either thread."""
    handoffs: int
    """File descriptors that the netpoller made ready for the worker."""
    inline_syscalls: int
    """recv, send and accept calls made by the worker, the thread that runs Python."""
    netpoller_syscalls: int
    """recv, send and accept calls made by the netpoller thread, beside Python."""
    bytes_received: int
    """Bytes received by stream transports."""
    bytes_sent: int
    """Bytes sent by stream transports."""
    stalls: int
    """How often the netpoller took over because a callback ran long."""
    wakeups: int
    """System calls made to wake a sleeping thread, the worker or the netpoller."""
    descriptors: int
    """File descriptors that the loop has open in the poller now."""
    bytes_ahead: int
    """Bytes that the netpoller thread has read ahead, and no protocol has got, now."""
    bytes_unsent: int
    """Bytes that stream transports have written, and the kernel has not accepted, now."""


def stats(loop: asyncio.AbstractEventLoop) -> Stats:
    """A snapshot of the loop's counters. Any thread may take one.

    Raises TypeError when `loop` isn't a `netpoll_loop.Loop`.
    """
    if not isinstance(loop, Loop):
        raise TypeError(f"stats() takes a netpoll_loop.Loop, not {type(loop).__module__}.{type(loop).__qualname__}")
    return Stats(**loop._core_stats())
