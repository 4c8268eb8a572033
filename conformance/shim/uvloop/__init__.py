"""Stands in for uvloop: the names of its package, our loop behind them.

Only the public names are here. What a test wants beyond them (`uvloop.loop`, libuv's C API) is missing, and the test
says so. `run` is a copy of what uvloop's does on the Pythons that we support, with its check of the loop's type.
"""

import asyncio
import sys
import warnings

import netpoll_loop
from netpoll_loop import EventLoopPolicy, Loop, new_event_loop

__all__ = ("new_event_loop", "run", "install", "EventLoopPolicy")

__version__ = "0.23.0"


def install():
    if sys.version_info >= (3, 12):
        warnings.warn(
            "uvloop.install() is deprecated in favor of uvloop.run() starting with Python 3.12.",
            DeprecationWarning,
            stacklevel=2,
        )
    netpoll_loop.install()


def run(main, *, loop_factory=new_event_loop, debug=None, **run_kwargs):
    async def wrapper():
        if not isinstance(asyncio.get_running_loop(), Loop):
            raise TypeError("uvloop.run() uses a non-uvloop event loop")
        return await main

    if asyncio._get_running_loop() is not None:
        raise RuntimeError("asyncio.run() cannot be called from a running event loop")
    with asyncio.Runner(loop_factory=loop_factory, debug=debug, **run_kwargs) as runner:
        return runner.run(wrapper())
