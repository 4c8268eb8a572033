"""Connecting to an address literal, without the machinery for what isn't there.

asyncio's create_connection is made for a name with several addresses, for TLS, for a local address and for several
attempts at a time. A connection pool connects to one literal with no options: that costs a third of it here, and does
and raises the same. Everything else goes to asyncio's own.
"""

from __future__ import annotations

import asyncio
import functools
import socket
from asyncio import base_events
from collections.abc import Callable
from socket import SOCK_NONBLOCK, SOCK_STREAM
from typing import Any

from netpoll_loop._core.sock import SockLoop
from netpoll_loop._core.stream import connected_stream
from netpoll_loop.dns import AddressInfo, resolve_literal

__all__ = ("ConnectMixin",)

_socket_class = socket.socket
_sock_connect = SockLoop.sock_connect  # type: ignore[attr-defined]


class ConnectMixin(asyncio.SelectorEventLoop):
    """Gives a loop of ours a short way for the usual create_connection."""

    @functools.wraps(asyncio.SelectorEventLoop.create_connection)
    async def create_connection(  # type: ignore[override]
        self, protocol_factory: Callable[[], Any], host: Any = None, port: Any = None, **options: Any
    ) -> Any:
        if (
            not options
            and host.__class__ is str
            and port.__class__ is int
            and 0 <= port <= 65535
            and not self.get_debug()
        ):
            # The lookup of asyncio's own for a literal asks nobody either.
            found = resolve_literal(host, port, 0, SOCK_STREAM)
            if found is not None and len(found) == 1 and not self._is_patched():
                return await self._connect(protocol_factory, found[0])
        return await super().create_connection(protocol_factory, host, port, **options)

    def _is_patched(self) -> bool:
        """Whether somebody wants to be asked, and may keep the socket: tests replace its class, or sock_connect()."""
        return (
            base_events.socket.socket is not _socket_class  # type: ignore[attr-defined]
            or getattr(self.sock_connect, "__func__", None) is not _sock_connect
        )

    async def _connect(self, protocol_factory: Callable[[], Any], found: AddressInfo) -> tuple[Any, Any]:
        family, kind, proto, _, address = found
        sock = socket.socket(family, kind | SOCK_NONBLOCK, proto)
        try:
            await self.sock_connect(sock, address)
            protocol = protocol_factory()
        except BaseException:
            sock.close()
            raise
        waiter = self.create_future()
        transport = connected_stream(self, sock, protocol, waiter)
        try:
            await waiter
        except BaseException:
            transport.close()
            raise
        return transport, protocol
