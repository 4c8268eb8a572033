from socket import AddressFamily, SocketKind

from netpoll_loop._core.scheduler import Scheduler

_Answer = list[tuple[AddressFamily, SocketKind, int, str, tuple[str, int] | tuple[str, int, int, int]]]

def patched() -> bool: ...
def answer(host: object, port: object, family: int, type: int, proto: int, flags: int) -> _Answer | None: ...
def answer_on(
    loop: Scheduler, host: object, port: object, family: int, type: int, proto: int, flags: int
) -> _Answer | None: ...
def learn(
    ipv6: bool, family: int, type: int, proto: int, flags: int, entries: list[tuple[AddressFamily, SocketKind, int]]
) -> None: ...
