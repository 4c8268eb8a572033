"""aiohttp servers, without access logs."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web

from benchmarks.servers import BACKLOG


@asynccontextmanager
async def _serve(app: web.Application, host: str, port: int, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port, backlog=BACKLOG, ssl_context=tls).start()
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


async def _hello(request: web.Request) -> web.Response:
    return web.Response(text="hello")


@asynccontextmanager
async def hello(host: str, port: int) -> AsyncIterator[int]:
    """The smallest aiohttp application."""
    app = web.Application()
    app.router.add_get("/", _hello)
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
