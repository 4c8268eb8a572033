"""`WorkerLoop`: a loop of a worker group.

What it listens on is shared with the other loops of the group (netpoll_loop.listeners), and the process's signals come
from M0 (netpoll_loop.groups); the rest is `Loop`. Servers are asyncio's, with asyncio's arguments and error texts.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import errno
import inspect
import os
import socket
import sys
import typing
from asyncio.base_events import _check_ssl_socket  # type: ignore[attr-defined]
from asyncio.log import logger
from collections.abc import Callable, Iterable

from netpoll_loop import binding
from netpoll_loop.listeners import Server, Serving, Share, Tally
from netpoll_loop.loop import Loop

if typing.TYPE_CHECKING:
    from netpoll_loop.groups import Worker

__all__ = ["WorkerLoop"]


class WorkerLoop(Loop):
    """A loop of a worker group: what it listens on is shared, and M0 takes the signals."""

    _worker: Worker

    def add_signal_handler(self, sig: int, callback: typing.Any, *args: typing.Any) -> None:  # type: ignore[override]
        """asyncio.loop.add_signal_handler: the callback runs on this loop, as do those of others on theirs.

        Raises RuntimeError, too, when `run` was not called by the main thread.
        """
        if asyncio.iscoroutine(callback) or inspect.iscoroutinefunction(callback):
            raise TypeError("coroutines cannot be used with add_signal_handler()")
        self._check_closed()
        self._worker.group.add_signal(self, sig, callback, args)

    def remove_signal_handler(self, sig: int) -> bool:
        """asyncio.loop.remove_signal_handler, of this loop's handler; others keep theirs."""
        if self.is_closed():
            self._check_signal(sig)  # type: ignore[attr-defined]
            return False
        return self._worker.group.remove_signal(self, sig)

    async def create_server(
        self,
        protocol_factory: Callable[[], asyncio.BaseProtocol],
        host: str | Iterable[str] | None = None,
        port: typing.Any = None,
        *,
        family: int = socket.AF_UNSPEC,
        flags: int = socket.AI_PASSIVE,
        sock: socket.socket | None = None,
        backlog: int = 100,
        ssl: typing.Any = None,
        reuse_address: bool | None = None,
        reuse_port: bool | None = None,
        keep_alive: bool | None = None,
        ssl_handshake_timeout: float | None = None,
        ssl_shutdown_timeout: float | None = None,
        start_serving: bool = True,
    ) -> asyncio.Server:
        """asyncio.loop.create_server. An address that several loops of the group open is one socket.

        The socket's options are those of the first. With port 0, the n-th time that each loop opens the address is the
        same port. Each server is closed for itself, and the socket with the last.
        """
        _check_tls(ssl, ssl_handshake_timeout, ssl_shutdown_timeout)
        live = Tally()
        shares: list[Share] = []
        try:
            if host is not None or port is not None:
                if sock is not None:
                    raise ValueError("host/port and sock can not be specified at the same time")
                options = [(socket.SO_REUSEADDR, 1)] if reuse_address or reuse_address is None else []
                options += [(socket.SO_REUSEPORT, 1)] if reuse_port else []
                options += [(socket.SO_KEEPALIVE, 1)] if keep_alive else []
                found = await self._resolve(host, port, family, flags)
                for info in found:
                    with contextlib.suppress(_CannotBind):
                        shares.append(self._share_address(info, options, live))
                if not shares:
                    raise OSError(f"could not bind on any address out of {[info[4] for info in found]!r}")
            elif sock is None:
                raise ValueError("Neither host/port nor sock were specified")
            elif sock.type != socket.SOCK_STREAM:
                raise ValueError(f"A Stream Socket was expected, got {sock!r}")
            else:
                _check_ssl_socket(sock)
                shares.append(self._share_given(sock, live))
            return await self._serve(
                shares,
                live,
                protocol_factory,
                (ssl, backlog, ssl_handshake_timeout, ssl_shutdown_timeout),
                start_serving,
            )
        except BaseException:
            self._drop_shares(shares)
            raise

    async def create_unix_server(  # type: ignore[override]
        self,
        protocol_factory: Callable[[], asyncio.BaseProtocol],
        path: str | bytes | os.PathLike[str] | None = None,
        *,
        sock: socket.socket | None = None,
        backlog: int = 100,
        ssl: typing.Any = None,
        ssl_handshake_timeout: float | None = None,
        ssl_shutdown_timeout: float | None = None,
        start_serving: bool = True,
        cleanup_socket: bool = sys.version_info >= (3, 13),
    ) -> asyncio.Server:
        """asyncio.loop.create_unix_server. A path that several loops of the group open is one socket."""
        _check_tls(ssl, ssl_handshake_timeout, ssl_shutdown_timeout)
        live = Tally()
        shares: list[Share] = []
        try:
            if path is not None:
                if sock is not None:
                    raise ValueError("path and sock can not be specified at the same time")
                where = os.fspath(path)
                shares.append(
                    self._worker.group.listeners.share(
                        self, binding.unix_key(where), live, where, lambda: binding.bind_unix(where)
                    )
                )
            elif sock is None:
                raise ValueError("path was not specified, and no sock specified")
            elif sock.family != socket.AF_UNIX or sock.type != socket.SOCK_STREAM:
                raise ValueError(f"A UNIX Domain Stream Socket was expected, got {sock!r}")
            else:
                _check_ssl_socket(sock)
                shares.append(self._share_given(sock, live))
            if cleanup_socket:
                shares[0].listening.unlink = shares[0].listening.unlink or binding.inode_of(shares[0].sock)
            return await self._serve(
                shares,
                live,
                protocol_factory,
                (ssl, backlog, ssl_handshake_timeout, ssl_shutdown_timeout),
                start_serving,
            )
        except BaseException:
            self._drop_shares(shares)
            raise

    async def _resolve(self, host: typing.Any, port: typing.Any, family: int, flags: int) -> list[typing.Any]:
        """The addresses, each once."""
        hosts: list[typing.Any]
        if host == "":
            hosts = [None]
        elif isinstance(host, str) or not isinstance(host, Iterable):
            hosts = [host]
        else:
            hosts = list(host)
        found: dict[typing.Any, None] = {}
        # asyncio's, which leaves the resolver out for literals.
        resolve = self._create_server_getaddrinfo  # type: ignore[attr-defined]
        for infos in await asyncio.gather(*(resolve(each, port, family=family, flags=flags) for each in hosts)):
            found.update(dict.fromkeys(infos))
        return list(found)

    def _share_address(self, info: typing.Any, options: list[tuple[int, int]], live: Tally) -> Share:
        family, kind, proto, _, address = info

        def make() -> socket.socket:
            try:
                return binding.bind(family, kind, proto, address, options)
            except OSError as exc:
                # The family isn't there, or isn't enabled (bpo-30945).
                if exc.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT, errno.ESOCKTNOSUPPORT):
                    if self.get_debug():
                        logger.warning("create_server() failed to bind %r: %s", address, exc)
                    raise _CannotBind from exc
                raise

        key: tuple[typing.Hashable, ...] = (family, address)
        if address[1] == 0:
            count = self._worker.ephemeral[key] = self._worker.ephemeral.get(key, 0) + 1
            key = (*key, count)
        again = (socket.SO_REUSEPORT, 1) in options
        return self._worker.group.listeners.share(self, key, live, address, make, again)

    def _share_given(self, sock: socket.socket, live: Tally) -> Share:
        """Of the same socket, whichever object or duplicate each loop was given."""
        key = ("socket", os.fstat(sock.fileno()).st_ino)
        sock.setblocking(False)
        share = self._worker.group.listeners.share(self, key, live, sock.getsockname(), sock.dup)
        share.listening.given.append(sock)
        return share

    async def _serve(
        self,
        shares: list[Share],
        live: Tally,
        protocol_factory: Callable[[], asyncio.BaseProtocol],
        options: tuple[typing.Any, ...],
        start_serving: bool,
    ) -> asyncio.Server:
        server = Server(self, [share.sock for share in shares], live, protocol_factory, *options)
        for share in shares:
            self._worker.shares[share.sock.fileno()] = share
        if start_serving:
            await server.start_serving()
        if self.get_debug():
            logger.info("%r is serving", server)
        return server

    def _drop_shares(self, shares: list[Share]) -> None:
        for share in shares:
            fd = share.sock.fileno()
            if fd >= 0:
                self._worker.shares.pop(fd, None)
                self._worker.group.listeners.stop(share)

    def _start_serving(
        self,
        protocol_factory: Callable[[], asyncio.BaseProtocol],
        sock: socket.socket,
        sslcontext: typing.Any = None,
        server: typing.Any = None,
        backlog: int = 100,
        ssl_handshake_timeout: float | None = None,
        ssl_shutdown_timeout: float | None = None,
    ) -> None:
        self._check_closed()
        share = self._worker.shares[sock.fileno()]
        options = {
            "ssl_handshake_timeout": ssl_handshake_timeout,
            "ssl_shutdown_timeout": ssl_shutdown_timeout,
        }
        serving = Serving(protocol_factory, sslcontext, server, options, contextvars.copy_context())
        self._worker.group.listeners.start(share, serving, backlog)

    def _stop_serving(self, sock: socket.socket) -> None:
        share = self._worker.shares.pop(sock.fileno(), None)
        if share is not None:
            self._worker.group.listeners.stop(share)
        else:
            sock.close()


class _CannotBind(Exception):
    """There is no such family or address here; others of the same name may do."""


def _check_tls(ssl: typing.Any, handshake_timeout: float | None, shutdown_timeout: float | None) -> None:
    if isinstance(ssl, bool):
        raise TypeError("ssl argument must be an SSLContext or None")
    if handshake_timeout is not None and not ssl:
        raise ValueError("ssl_handshake_timeout is only meaningful with ssl")
    if shutdown_timeout is not None and not ssl:
        raise ValueError("ssl_shutdown_timeout is only meaningful with ssl")
