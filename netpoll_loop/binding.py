"""Binding listening sockets, and what makes two of them the same address. Errors are in asyncio's words."""

from __future__ import annotations

import errno
import os
import socket
import stat
import typing
from asyncio.log import logger

__all__ = ["Key", "bind", "bind_unix", "bound_key", "inode_of", "unix_key", "unlink"]

#: Equal for equal addresses.
Key: typing.TypeAlias = tuple[typing.Hashable, ...]


def bound_key(sock: socket.socket) -> Key:
    """The key of the address that the socket is bound to."""
    if sock.family == socket.AF_UNIX:
        return unix_key(sock.getsockname())
    return (sock.family, sock.getsockname())


def unix_key(path: str | bytes) -> Key:
    """The key of a Unix socket's path. A socket that has none has a key of its own."""
    if not path:
        return (socket.AF_UNIX, object())
    name = os.fsencode(path)
    return (socket.AF_UNIX, name if name.startswith(b"\0") else os.path.abspath(name))


def bind(family: int, kind: int, proto: int, address: typing.Any, options: list[tuple[int, int]]) -> socket.socket:
    """A TCP socket bound to the address, with SOL_SOCKET options set; raises OSError in asyncio's words."""
    sock = socket.socket(family, kind, proto)
    try:
        for option, value in options:
            sock.setsockopt(socket.SOL_SOCKET, option, value)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, True)
        try:
            sock.bind(address)
        except OSError as exc:
            text = f"error while attempting to bind on address {address!r}: {str(exc).lower()}"
            raise OSError(exc.errno, text) from None
    except BaseException:
        sock.close()
        raise
    return sock


def bind_unix(path: str | bytes) -> socket.socket:
    """A Unix socket bound to the path, a stale one removed first; raises OSError in asyncio's words."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if path[0] not in (0, "\0"):
            try:
                if stat.S_ISSOCK(os.stat(path).st_mode):
                    os.remove(path)
            except FileNotFoundError:
                pass
            except OSError as exc:
                logger.error("Unable to check or remove stale UNIX socket %r: %r", path, exc)
        try:
            sock.bind(path)
        except OSError as exc:
            if exc.errno == errno.EADDRINUSE:
                raise OSError(errno.EADDRINUSE, f"Address {path!r} is already in use") from None
            raise
    except BaseException:
        sock.close()
        raise
    return sock


def inode_of(sock: socket.socket) -> tuple[str, int] | None:
    """The path of a bound Unix socket and its inode; None if it has none."""
    name = sock.getsockname()
    if not isinstance(name, str) or not name or name.startswith("\0"):
        return None
    try:
        return os.path.abspath(name), os.stat(name).st_ino
    except FileNotFoundError:
        return None


def unlink(path: str, inode: int) -> None:
    """Removes the path of a Unix socket, unless another file has taken its place."""
    try:
        if os.stat(path).st_ino == inode:
            os.unlink(path)
    except FileNotFoundError:
        pass
    except OSError as exc:
        logger.error("Unable to clean up listening UNIX socket %r: %r", path, exc)
