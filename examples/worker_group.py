"""An aiohttp application on a worker group: several loops, each on a thread, behind one address.

python examples/worker_group.py --port 8080 --workers 2
curl http://127.0.0.1:8080/
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator

import aiohttp
from aiohttp import web

import netpoll_loop


async def hello(request: web.Request) -> web.Response:
    """GET /: which worker answers."""
    return web.Response(text=f"Hello from {threading.current_thread().name}\n")


@contextlib.asynccontextmanager
async def served(host: str, port: int) -> AsyncIterator[str]:
    """The application on this loop. All loops that open the same address share it."""
    app = web.Application()
    app.add_routes([web.get("/", hello)])
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
        yield f"http://{host}:{runner.addresses[0][1]}/"
    finally:
        await runner.cleanup()


async def ask(url: str) -> str:
    """A client: one request."""
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        response.raise_for_status()
        return await response.text()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="An aiohttp application on a worker group.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--once", action="store_true", help="one request by each worker, and end")
    arguments = parser.parse_args()

    async def worker() -> str:
        # Runs on each loop.
        async with served(arguments.host, arguments.port) as url:
            if arguments.once:
                return await ask(url)
            await asyncio.Event().wait()
        return ""

    with contextlib.suppress(KeyboardInterrupt):
        print(*netpoll_loop.run(worker, workers=arguments.workers), sep="", end="")


if __name__ == "__main__":
    main()
