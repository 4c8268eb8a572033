"""The servers that the benchmarks load: ``python -m benchmarks.servers KIND --loop LOOP``.

This module is only the table of kinds, so that a server imports nothing that it doesn't serve with.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Literal, TypeAlias, cast

#: Called with a host and a port (0: any free one). Serves while the context is open, and gives the port.
Serve: TypeAlias = Callable[[str, int], AbstractAsyncContextManager[int]]

#: Larger than what the load generator opens at a time: an overflowing accept queue costs the client seconds.
BACKLOG = 1024


@dataclass(frozen=True)
class Kind:
    """One kind of server, and how it is loaded."""

    load: Literal["echo", "udp", "http", "https"]
    module: str
    function: str
    expect: str | None = None  #: the body of every response, http and https only

    def serve(self) -> Serve:
        """Import the server."""
        return cast(Serve, getattr(importlib.import_module(self.module), self.function))


KINDS = {
    "echo-protocol": Kind("echo", "benchmarks.servers.echo", "protocol"),
    "echo-buffered": Kind("echo", "benchmarks.servers.echo", "buffered"),
    "echo-streams": Kind("echo", "benchmarks.servers.echo", "streams"),
    "echo-sock": Kind("echo", "benchmarks.servers.echo", "sock"),
    "echo-udp": Kind("udp", "benchmarks.servers.echo", "datagrams"),
    "aiohttp-hello": Kind("http", "benchmarks.servers.web", "hello", "hello"),
    "aiohttp-tls": Kind("https", "benchmarks.servers.web", "hello_tls", "hello"),
    "uvicorn-hello": Kind("http", "benchmarks.servers.asgi", "hello", "hello"),
    "aiohttp-example": Kind("http", "benchmarks.servers.web", "example", "Hello, world\n"),
}
