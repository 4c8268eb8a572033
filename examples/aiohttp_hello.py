"""An aiohttp application on netpoll_loop: set the policy, change nothing else.

python examples/aiohttp_hello.py --port 8080
curl http://127.0.0.1:8080/
"""

from __future__ import annotations

import argparse
import asyncio

import aiohttp
from aiohttp import web

import netpoll_loop


async def hello(request: web.Request) -> web.Response:
    """GET / and GET /{name}."""
    name = request.match_info.get("name", "world")
    return web.Response(text=f"Hello, {name}\n")


def make_app() -> web.Application:
    """The application, which knows nothing of the loop that it will run on."""
    app = web.Application()
    app.add_routes([web.get("/", hello), web.get("/{name}", hello)])
    return app


async def serve_once(host: str, port: int) -> str:
    """Serve one request, made from here, and return the response's text."""
    runner = web.AppRunner(make_app())
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
        url = f"http://{host}:{runner.addresses[0][1]}/"
        async with aiohttp.ClientSession() as session, session.get(url) as response:
            response.raise_for_status()
            return await response.text()
    finally:
        await runner.cleanup()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="An aiohttp application on netpoll_loop.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--once", action="store_true", help="serve one request, made from here, and end")
    arguments = parser.parse_args()

    # This is the line that changes the loop. Python 3.14 warns that policies go in 3.16; there,
    # web.run_app(..., loop=netpoll_loop.new_event_loop()) does the same.
    asyncio.set_event_loop_policy(netpoll_loop.EventLoopPolicy())

    if arguments.once:
        print(asyncio.run(serve_once(arguments.host, arguments.port)), end="")
    else:
        web.run_app(make_app(), host=arguments.host, port=arguments.port)


if __name__ == "__main__":
    main()
