"""ASGI applications under uvicorn, with httptools and without access logs."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import uvicorn

from benchmarks.servers import BACKLOG, DOCUMENT

START = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"content-type", b"text/plain"), (b"content-length", b"5")],
}
BODY = {"type": "http.response.body", "body": b"hello"}


async def _hello(scope: dict[str, Any], receive: Any, send: Callable[[Any], Awaitable[None]]) -> None:
    await send(START)
    await send(BODY)


@asynccontextmanager
async def _serve(app: Any, host: str, port: int) -> AsyncIterator[int]:
    config = uvicorn.Config(
        app, http="httptools", lifespan="off", access_log=False, log_level="warning", backlog=BACKLOG
    )
    server = uvicorn.Server(config)
    with socket.create_server((host, port), backlog=BACKLOG) as listener:
        serving = asyncio.create_task(server._serve([listener]))
        try:
            while not server.started:
                if serving.done():
                    await serving
                await asyncio.sleep(0.01)
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            await serving


@asynccontextmanager
async def hello(host: str, port: int) -> AsyncIterator[int]:
    """The smallest ASGI application."""
    async with _serve(_hello, host, port) as bound:
        yield bound


@asynccontextmanager
async def document(host: str, port: int) -> AsyncIterator[int]:
    """FastAPI: a list of dicts, serialized for each request."""
    import fastapi

    content = json.loads(DOCUMENT.read_bytes())

    async def answer() -> list[dict[str, Any]]:
        return content  # type: ignore[no-any-return]

    app = fastapi.FastAPI()
    app.add_api_route("/", answer)
    async with _serve(app, host, port) as bound:
        yield bound
