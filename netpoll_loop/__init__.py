"""An asyncio event loop built the way Go's runtime builds network I/O.

A netpoller, C code that never needs the GIL, waits for file descriptors, and in some modes receives, sends and accepts
on a thread of its own beside Python. Above it stands the standard interface: programs for asyncio run unchanged.

    asyncio.set_event_loop_policy(netpoll_loop.EventLoopPolicy())       # or netpoll_loop.install()
    asyncio.run(main(), loop_factory=netpoll_loop.new_event_loop)       # Python 3.12+
    netpoll_loop.run(main())                                            # every version
    netpoll_loop.run(main, workers=4)                                   # four loops on four threads
"""

import sys

if sys.platform != "linux":
    raise ImportError(f"netpoll_loop needs Linux (epoll); there is no netpoller for {sys.platform!r} yet")

from netpoll_loop import _interpreter

_interpreter.refuse_second()
try:
    from netpoll_loop._stats import Stats, stats
    from netpoll_loop.blocking import blocking
    from netpoll_loop.channel import Channel, ChannelClosed
    from netpoll_loop.go import Go, go
    from netpoll_loop.loop import Loop
    from netpoll_loop.policy import EventLoopPolicy, install, new_event_loop, run
except ImportError as error:
    _interpreter.explain(error)
    raise

__all__ = [
    "Channel",
    "ChannelClosed",
    "EventLoopPolicy",
    "Go",
    "Loop",
    "Stats",
    "blocking",
    "go",
    "install",
    "new_event_loop",
    "run",
    "stats",
]

__version__ = "0.1.0"
