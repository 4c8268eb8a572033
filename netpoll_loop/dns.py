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
from socket import AF_INET, AF_INET6, inet_ntop, inet_pton

__all__ = ["AddressInfo", "resolve_literal"]

AddressInfo: typing.TypeAlias = tuple[
    socket.AddressFamily, socket.SocketKind, int, str, tuple[str, int] | tuple[str, int, int, int]
]

# Somebody who patched socket.getaddrinfo wants to be asked, also about literals.
_getaddrinfo = socket.getaddrinfo if socket.getaddrinfo.__module__ == "socket" else None

# Plain ints: an enum would refuse or change what isn't a flag.
_AI_NUMERICHOST = int(socket.AI_NUMERICHOST)
# Flags that change nothing in the answer to a plain literal. With any other flag the C library is asked each time.
_PLAIN_FLAGS = int(socket.AI_PASSIVE | socket.AI_NUMERICHOST | socket.AI_NUMERICSERV)

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

    None when that isn't certain, or when the answer is an error: ask in a thread.
    """
    if socket.getaddrinfo is not _getaddrinfo:
        return None
    try:
        if host.__class__ is str and port.__class__ is int and 0 <= port <= 65535:
            plain = _resolve_plain(host, port, family, type, proto, flags)
            if plain is not None:
                return plain
        if _is_numeric(host, port):
            return _ask(host, port, family, type, proto, flags | _AI_NUMERICHOST)
    except (OSError, ValueError, TypeError, OverflowError):
        pass
    return None


def _resolve_plain(host: str, port: int, family: int, type: int, proto: int, flags: int) -> list[AddressInfo] | None:
    """For literals that `inet_pton` takes, else None. Raises what `socket.getaddrinfo` does."""
    family | type | proto | flags  # raises TypeError for what a dict would take for an int, such as 2.0
    ipv6 = ":" in host
    address = host
    try:
        if ipv6:
            address = inet_ntop(AF_INET6, inet_pton(AF_INET6, host))
        else:
            inet_pton(AF_INET, host)  # accepts only the one canonical spelling
    except OSError:
        return None
    template = _templates.get((ipv6, family, type, proto, flags))
    if template is None:
        return _learn(host, address, port, family, type, proto, flags)
    # As socket.getaddrinfo does, so that who watches lookups sees this one.
    sys.audit("socket.getaddrinfo", host, port, family, type, proto)
    if ipv6:
        return [(a, b, c, "", (address, port, 0, 0)) for a, b, c in template]
    return [(a, b, c, "", (address, port)) for a, b, c in template]


def _learn(host: str, address: str, port: int, family: int, type: int, proto: int, flags: int) -> list[AddressInfo]:
    """Asks the C library, and keeps how it answered if the next plain literal will be answered alike."""
    answers = _ask(host, port, family, type, proto, flags | _AI_NUMERICHOST)
    ipv6 = ":" in host
    expected = ("", (address, port, 0, 0) if ipv6 else (address, port))
    if not flags & ~_PLAIN_FLAGS and all(answer[3:] == expected for answer in answers):
        if len(_templates) >= _MAX_TEMPLATES:
            _templates.clear()
        _templates[ipv6, family, type, proto, flags] = [answer[:3] for answer in answers]
    return answers


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
