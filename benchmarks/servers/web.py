"""aiohttp servers, without access logs."""

from __future__ import annotations

import json
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web

from benchmarks.servers import BACKLOG, DOCUMENT


@asynccontextmanager
async def _serve(
    app: web.Application,
    host: str,
    port: int,
    tls: ssl.SSLContext | None = None,
    reuse_port: bool = False,
    listener: int | None = None,
) -> AsyncIterator[int]:
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    site: web.BaseSite
    if listener is None:
        site = web.TCPSite(runner, host, port, backlog=BACKLOG, ssl_context=tls, reuse_port=reuse_port)
    else:
        site = web.SockSite(runner, socket.socket(fileno=listener), backlog=BACKLOG, ssl_context=tls)
    try:
        await site.start()
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


async def _hello(request: web.Request) -> web.Response:
    return web.Response(text="hello")


@asynccontextmanager
async def hello(host: str, port: int, reuse_port: bool = False, listener: int | None = None) -> AsyncIterator[int]:
    """The smallest aiohttp application; ``listener`` is the descriptor of a socket that listens already."""
    app = web.Application()
    app.router.add_get("/", _hello)
    async with _serve(app, host, port, reuse_port=reuse_port, listener=listener) as bound:
        yield bound


@asynccontextmanager
async def document(host: str, port: int) -> AsyncIterator[int]:
    """A list of dicts, serialized for each request."""
    content = json.loads(DOCUMENT.read_bytes())

    async def answer(request: web.Request) -> web.Response:
        return web.json_response(content)

    app = web.Application()
    app.router.add_get("/", answer)
    async with _serve(app, host, port) as bound:
        yield bound


@asynccontextmanager
async def hello_tls(host: str, port: int) -> AsyncIterator[int]:
    """The same over TLS, with a certificate made for this run."""
    import trustme

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    trustme.CA().issue_cert(host).configure_cert(context)
    app = web.Application()
    app.router.add_get("/", _hello)
    async with _serve(app, host, port, context) as bound:
        yield bound


@asynccontextmanager
async def example(host: str, port: int) -> AsyncIterator[int]:
    """The application of ``examples/aiohttp_hello.py``."""
    from examples.aiohttp_hello import make_app

    async with _serve(make_app(), host, port) as bound:
        yield bound
