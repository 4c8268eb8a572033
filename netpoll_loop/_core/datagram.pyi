import asyncio
from socket import socket
from typing import Any

# At runtime a class of its own, whose instances say `isinstance(transport, asyncio.DatagramTransport)`.
class DatagramTransport(asyncio.DatagramTransport):
    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket,
        protocol: asyncio.BaseProtocol,
        address: Any = None,
        waiter: asyncio.Future[Any] | None = None,
        extra: dict[str, Any] | None = None,
    ) -> None: ...
