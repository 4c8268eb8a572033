"""Address literals, resolved without a thread.

`loop.getaddrinfo` hands `socket.getaddrinfo` to an executor because a name server may be slow. A literal asks no name
server: its answer is computed here, in place, and is the one that `socket.getaddrinfo` gives.

Two ways, both the C library's own judgement. For the usual call (a plain literal, an int port) the C library is asked
once how it answers a family, type, protocol and flags, and that answer is filled in from then on. Anything else that
can be a literal (scope ids, "127.1", IPv4-mapped, None for any interface) goes through `socket.getaddrinfo` with
AI_NUMERICHOST, which never leaves the machine. Whatever isn't certain, errors included, is left to the thread.
"""

import re
import socket
import sys
import typing
from socket import AF_INET, AF_INET6, AI_NUMERICHOST, inet_ntop, inet_pton

__all__ = ["AddressInfo", "resolve_literal"]

AddressInfo: typing.TypeAlias = tuple[
    socket.AddressFamily, socket.SocketKind, int, str, tuple[str, int] | tuple[str, int, int, int]
]

# Somebody who patched socket.getaddrinfo wants to be asked, also about literals.
_getaddrinfo = socket.getaddrinfo if socket.getaddrinfo.__module__ == "socket" else None

# Flags that change nothing in the answer to a plain literal. With any other flag the C library is asked each time.
_PLAIN_FLAGS = socket.AI_PASSIVE | AI_NUMERICHOST | socket.AI_NUMERICSERV

_MAYBE_LITERAL = re.compile(r"[0-9A-Fa-fxX.:]+(?:%[^\s%]+)?").fullmatch
_MAYBE_LITERAL_BYTES = re.compile(rb"[0-9A-Fa-fxX.:]+(?:%[^\s%]+)?").fullmatch
# A service by name is looked up in files or on the network (nsswitch.conf), so it isn't for us.
_NUMERIC_PORT = re.compile(r"[0-9]+").fullmatch
_NUMERIC_PORT_BYTES = re.compile(rb"[0-9]+").fullmatch

_Template: typing.TypeAlias = list[tuple[socket.AddressFamily, socket.SocketKind, int]]
_templates: dict[tuple[bool, int, int, int, int], _Template] = {}
_MAX_TEMPLATES = 256


def resolve_literal(
    host: object, port: object, family: int = 0, type: int = 0, proto: int = 0, flags: int = 0
) -> list[AddressInfo] | None:
    """What `socket.getaddrinfo` answers, for a host that is an address literal or None; without blocking.

    None when that isn't certain, or when the answer is an error: ask in a thread. Raises nothing but what an audit hook
    (`sys.addaudithook`, event "socket.getaddrinfo") raises.
    """
    if socket.getaddrinfo is not _getaddrinfo:
        return None
    if host.__class__ is str and port.__class__ is int and 0 <= port <= 65535:
        plain = _resolve_plain(host, port, family, type, proto, flags)
        if plain is not None:
            return plain
    if not _is_numeric(host, port):
        return None
    try:
        return _ask(host, port, family, type, proto, flags | AI_NUMERICHOST)
    except (OSError, ValueError, TypeError, OverflowError):
        return None


def _resolve_plain(host: str, port: int, family: int, type: int, proto: int, flags: int) -> list[AddressInfo] | None:
    try:
        family | type | proto | flags  # raises TypeError for what a dict would take for an int, such as 2.0
        if ":" in host:
            if family != AF_INET6 and family:
                return None
            address = inet_ntop(AF_INET6, inet_pton(AF_INET6, host))
            template = _templates.get((True, family, type, proto, flags)) or _learn(True, family, type, proto, flags)
        else:
            if family != AF_INET and family:
                return None
            # Accepts only the one canonical spelling of an address, which is the one that comes back.
            inet_pton(AF_INET, host)
            template = _templates.get((False, family, type, proto, flags)) or _learn(False, family, type, proto, flags)
    except (OSError, ValueError, TypeError, OverflowError):
        return None
    # As socket.getaddrinfo does, so that who watches name lookups sees this one.
    sys.audit("socket.getaddrinfo", host, port, family, type, proto)
    if ":" in host:
        return [(a, b, c, "", (address, port, 0, 0)) for a, b, c in template]
    return [(a, b, c, "", (host, port)) for a, b, c in template]


def _learn(ipv6: bool, family: int, type: int, proto: int, flags: int) -> _Template:
    """How the C library answers a plain literal of these arguments. Raises when it doesn't, or not as expected."""
    if flags & ~_PLAIN_FLAGS:
        raise ValueError
    host = "::1" if ipv6 else "127.0.0.1"
    sockaddr = (host, 1, 0, 0) if ipv6 else (host, 1)
    answers = _ask(host, 1, family, type, proto, flags | AI_NUMERICHOST)
    if any(answer[3] or answer[4] != sockaddr for answer in answers):
        raise ValueError
    if len(_templates) >= _MAX_TEMPLATES:
        _templates.clear()
    template = _templates[ipv6, family, type, proto, flags] = [answer[:3] for answer in answers]
    return template


def _is_numeric(host: object, port: object) -> bool:
    if isinstance(host, str):
        if not _MAYBE_LITERAL(host):
            return False
    elif isinstance(host, bytes):
        if not _MAYBE_LITERAL_BYTES(host):
            return False
    elif host is not None:
        return False
    if isinstance(port, str):
        return _NUMERIC_PORT(port) is not None
    if isinstance(port, bytes):
        return _NUMERIC_PORT_BYTES(port) is not None
    return port is None or isinstance(port, int)


def _ask(host: typing.Any, port: typing.Any, family: int, type: int, proto: int, flags: int) -> list[AddressInfo]:
    return typing.cast(list[AddressInfo], socket.getaddrinfo(host, port, family, type, proto, flags))
