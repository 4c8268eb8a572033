"""The servers that the benchmarks load: ``python -m benchmarks.servers KIND --loop LOOP``.

This module is only the table of kinds, so that a server imports nothing that it doesn't serve with.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast

#: Called with a host, a port (0: any free one) and the kind's options. Serves while the context is open, and gives the
#: port.
Serve: TypeAlias = Callable[..., AbstractAsyncContextManager[int]]

#: Larger than what the load generator opens at a time: an overflowing accept queue costs the client seconds.
BACKLOG = 1024

#: What the JSON servers answer with: a list of dicts, 10 KiB of JSON.
DOCUMENT = Path(__file__).resolve().parent.parent / "data" / "goods.json"


@dataclass(frozen=True)
class Kind:
    """One kind of server, and how it is loaded."""

    load: Literal["echo", "udp", "http", "https"]
    module: str
    function: str
    expect: str | None = None  #: the body of every response, http and https only
    document: Path | None = None  #: instead of `expect`: a JSON file that every body has to be equal to
    needs: tuple[str, ...] = ()  #: modules that may be missing
    options: tuple[str, ...] = ()  #: of the command line, which go to the function

    def serve(self) -> Serve:
        """Import the server."""
        return cast(Serve, getattr(importlib.import_module(self.module), self.function))

    def missing(self) -> list[str]:
        """What it needs that can't be imported here."""
        return [name for name in self.needs if importlib.util.find_spec(name) is None]


def _web(function: str, expect: str | None, load: Literal["http", "https"] = "http", **more: Any) -> Kind:
    return Kind(load, "benchmarks.servers.web", function, expect, needs=("aiohttp",), **more)


KINDS = {
    "echo-protocol": Kind("echo", "benchmarks.servers.echo", "protocol"),
    "echo-buffered": Kind("echo", "benchmarks.servers.echo", "buffered"),
    "echo-streams": Kind("echo", "benchmarks.servers.echo", "streams"),
    "echo-sock": Kind("echo", "benchmarks.servers.echo", "sock"),
    "echo-udp": Kind("udp", "benchmarks.servers.echo", "datagrams"),
    "echo-work": Kind("echo", "benchmarks.servers.work", "working", options=("spins",)),
    "echo-stall": Kind("echo", "benchmarks.servers.work", "stalling", options=("stall",)),
    "aiohttp-hello": _web("hello", "hello", options=("reuse_port", "listener")),
    "aiohttp-json": _web("document", None, document=DOCUMENT),
    "aiohttp-tls": _web("hello_tls", "hello", "https"),
    "uvicorn-hello": Kind("http", "benchmarks.servers.asgi", "hello", "hello", needs=("uvicorn", "httptools")),
    "fastapi-json": Kind(
        "http", "benchmarks.servers.asgi", "document", document=DOCUMENT, needs=("uvicorn", "httptools", "fastapi")
    ),
    "aiohttp-example": _web("example", "Hello, world\n"),
}
