"""Stands in for uvloop: the names of its package, our loop behind them.

CONFORMANCE_LOOP can put asyncio's own loop there, or the delayed one (see `conformance.loops`).

Only the public names are here. What a test wants beyond them (`uvloop.loop`, libuv's C API) is missing, and the test
says so. `run` is a copy of what uvloop's does on the Pythons that we support, with its check of the loop's type.
"""

import asyncio
import os
import sys
import warnings

if os.environ.get("CONFORMANCE_LOOP", "netpoll") == "netpoll":
    from netpoll_loop import EventLoopPolicy, Loop, new_event_loop
else:
    from conformance.loops import stand_in

    EventLoopPolicy, Loop = stand_in(os.environ["CONFORMANCE_LOOP"])

    def new_event_loop():
        return Loop()


__all__ = ("EventLoopPolicy", "install", "new_event_loop", "run")

__version__ = "0.23.0"


def install():
    if sys.version_info >= (3, 12):
        warnings.warn(
            "uvloop.install() is deprecated in favor of uvloop.run() starting with Python 3.12.",
            DeprecationWarning,
            stacklevel=2,
        )
    asyncio.set_event_loop_policy(EventLoopPolicy())


def run(main, *, loop_factory=new_event_loop, debug=None, **run_kwargs):
    async def wrapper():
        if not isinstance(asyncio.get_running_loop(), Loop):
            raise TypeError("uvloop.run() uses a non-uvloop event loop")
        return await main

    if asyncio._get_running_loop() is not None:
        raise RuntimeError("asyncio.run() cannot be called from a running event loop")
    with asyncio.Runner(loop_factory=loop_factory, debug=debug, **run_kwargs) as runner:
        return runner.run(wrapper())
