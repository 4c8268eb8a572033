import asyncio
from socket import socket
from typing import Any

# At runtime a class of its own, whose instances say `isinstance(transport, asyncio.Transport)`.
class StreamTransport(asyncio.Transport):
    _hidden: bool
    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket,
        protocol: asyncio.BaseProtocol,
        waiter: asyncio.Future[Any] | None = None,
        extra: dict[str, Any] | None = None,
        server: Any = None,
    ) -> None: ...

def connected_stream(
    loop: asyncio.AbstractEventLoop, sock: socket, protocol: asyncio.BaseProtocol, waiter: asyncio.Future[Any]
) -> StreamTransport: ...
