"""Address literals, resolved without a thread.

`loop.getaddrinfo` hands `socket.getaddrinfo` to an executor because a name server may be slow. A literal asks no name
server: its answer is computed here, in place, and is the one that `socket.getaddrinfo` gives.

Two ways, both the C library's own judgement. For the usual call (a plain literal, an int port) the C library is asked
once how it answers a family, type, protocol and flags, and that answer is filled in from then on (_core/literal.pyx).
Anything else that can be a literal (scope ids, "127.1", IPv4-mapped, None for any interface) goes through
`socket.getaddrinfo` with AI_NUMERICHOST, which never leaves the machine. Whatever isn't certain, errors included, is
left to the thread.
"""

import re
import socket
import typing
from socket import AF_INET6, inet_ntop, inet_pton

from netpoll_loop._core import literal

__all__ = ["AddressInfo", "resolve_literal"]

AddressInfo: typing.TypeAlias = tuple[
    socket.AddressFamily, socket.SocketKind, int, str, tuple[str, int] | tuple[str, int, int, int]
]

# Plain ints: an enum would refuse or change what isn't a flag.
_AI_NUMERICHOST = int(socket.AI_NUMERICHOST)
# Flags that change nothing in the answer to a plain literal. With any other flag the C library is asked each time.
_PLAIN_FLAGS = int(socket.AI_PASSIVE | socket.AI_NUMERICHOST | socket.AI_NUMERICSERV)

_MAYBE_LITERAL = re.compile(r"[0-9A-Fa-fxX.:]+(?:%[^\s%\0]+)?").fullmatch
_MAYBE_LITERAL_BYTES = re.compile(rb"[0-9A-Fa-fxX.:]+(?:%[^\s%\0]+)?").fullmatch
# A service by name is looked up in files or on the network (nsswitch.conf), so it isn't for us.
_NUMERIC_PORT = re.compile(r"[0-9]+").fullmatch
_NUMERIC_PORT_BYTES = re.compile(rb"[0-9]+").fullmatch


def resolve_literal(
    host: object, port: object, family: int = 0, type: int = 0, proto: int = 0, flags: int = 0
) -> list[AddressInfo] | None:
    """What `socket.getaddrinfo` answers, for a host that is an address literal or None; without blocking.

    None when that isn't certain, or when the answer is an error: ask in a thread.
    """
    try:
        known = literal.answer(host, port, family, type, proto, flags)
        if known is not None:
            return known
        if not literal.patched() and _is_numeric(host, port):
            answers = _ask(host, port, family, type, proto, flags | _AI_NUMERICHOST)
            if host.__class__ is str and port.__class__ is int:
                _learn(host, port, family, type, proto, flags, answers)
            return answers
    except (OSError, ValueError, TypeError, OverflowError):
        pass
    return None


def _learn(host: str, port: int, family: int, type: int, proto: int, flags: int, answers: list[AddressInfo]) -> None:
    """Keeps how the C library has answered, if the next plain literal will be answered alike."""
    ipv6 = ":" in host
    expected: tuple[object, ...] = (host, port)
    if ipv6:
        try:
            expected = (inet_ntop(AF_INET6, inet_pton(AF_INET6, host)), port, 0, 0)
        except OSError:
            return
    if not flags & ~_PLAIN_FLAGS and all(answer[3:] == ("", expected) for answer in answers):
        literal.learn(ipv6, family, type, proto, flags, [answer[:3] for answer in answers])


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
