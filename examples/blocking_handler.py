"""An aiohttp handler that calls blocking code, with and without blocking().

/slow sleeps in the handler, as code does that calls a driver without asyncio: the whole loop stands still. /blocking
does the same inside `with netpoll_loop.blocking():`, and the loop goes on on another worker thread.

    python examples/blocking_handler.py --port 8080
    python examples/blocking_handler.py --compare --requests 200
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time

import aiohttp
from aiohttp import web

import netpoll_loop

#: Seconds that the blocking call takes.
CALL = 0.1


def legacy_call() -> None:
    """Stands for a driver that knows nothing of asyncio: keeps its thread, but not the GIL."""
    time.sleep(CALL)


async def slow(request: web.Request) -> web.Response:
    """GET /slow: nothing else runs meanwhile."""
    legacy_call()
    return web.Response(text="slow\n")


async def blocking(request: web.Request) -> web.Response:
    """GET /blocking: the other tasks run on."""
    with netpoll_loop.blocking():
        legacy_call()
    return web.Response(text="blocking\n")


def make_app() -> web.Application:
    """The application."""
    app = web.Application()
    app.add_routes([web.get("/slow", slow), web.get("/blocking", blocking)])
    return app


async def lateness(period: float, late: list[float]) -> None:
    """Wants to run each `period` seconds; how late it was, in seconds, goes into `late`."""
    while True:
        due = time.perf_counter() + period
        await asyncio.sleep(period)
        late.append(time.perf_counter() - due)


async def load(url: str, requests: int) -> None:
    """Makes all requests at once, and prints the seconds that they took."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=requests)) as session:

        async def get() -> None:
            async with session.get(url) as response:
                response.raise_for_status()
                await response.read()

        started = time.perf_counter()
        await asyncio.gather(*(get() for _ in range(requests)))
        print(time.perf_counter() - started)


async def compare(host: str, port: int, requests: int) -> None:
    """Both handlers under `requests` simultaneous requests, made by another process."""
    runner = web.AppRunner(make_app())
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port, backlog=requests).start()
        url = f"http://{host}:{runner.addresses[0][1]}"
        for path in "/blocking", "/slow":
            late: list[float] = []
            ticker = asyncio.create_task(lateness(0.005, late))
            command = [sys.executable, __file__, "--load", url + path, "--requests", str(requests)]
            client = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
            output, _ = await client.communicate()
            ticker.cancel()
            if client.returncode != 0:
                raise SystemExit(client.returncode)
            ms = sorted(1000 * seconds for seconds in late)
            print(
                f"{requests} requests to {path} took {float(output):.2f} s; a task with a period of 5 ms was "
                f"{ms[int(0.99 * len(ms))]:.1f} ms late at p99, {ms[-1]:.0f} ms at most"
            )
    finally:
        await runner.cleanup()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="An aiohttp handler that calls blocking code.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--requests", type=int, default=20, help="how many at once (default: 20)")
    parser.add_argument("--compare", "--once", action="store_true", help="load both handlers, and end")
    parser.add_argument("--load", metavar="URL", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.load:
        asyncio.run(load(arguments.load, arguments.requests))
    elif arguments.compare:
        netpoll_loop.run(compare(arguments.host, arguments.port, arguments.requests))
    else:
        web.run_app(make_app(), host=arguments.host, port=arguments.port, loop=netpoll_loop.new_event_loop())


if __name__ == "__main__":
    main()
