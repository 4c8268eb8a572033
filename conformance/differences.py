"""Where asyncio, uvloop and netpoll_loop differ: one small measurement each, run on all three.

`tests/test_differences.py` runs them and holds each loop to what is written here; `docs/compatibility.md` prints the
table. A measurement takes a fresh loop and returns a word or two.
"""

import asyncio
import concurrent.futures
import contextvars
import dataclasses
import signal
import socket
import threading
from collections.abc import Callable

LOOPS = ("asyncio", "uvloop", "netpoll_loop")

#: Seconds for what may never come.
PATIENCE = 0.5


@dataclasses.dataclass(frozen=True)
class Difference:
    name: str
    question: str
    measure: Callable[[asyncio.AbstractEventLoop], str]
    #: What each of LOOPS answers.
    answers: tuple[str, str, str]
    note: str

    def answer(self, loop: str) -> str:
        return self.answers[LOOPS.index(loop)]


DIFFERENCES: list[Difference] = []


def difference(question: str, asyncio: str, uvloop: str, ours: str, note: str):
    def add(measure):
        DIFFERENCES.append(Difference(measure.__name__, question, measure, (asyncio, uvloop, ours), note))
        return measure

    return add


def new_loop(name: str) -> asyncio.AbstractEventLoop:
    if name == "asyncio":
        return asyncio.SelectorEventLoop()
    if name == "uvloop":
        import uvloop

        return uvloop.new_event_loop()
    import netpoll_loop

    return netpoll_loop.new_event_loop()


def _name(error: BaseException) -> str:
    return type(error).__name__


async def _connected(loop, factory):
    """A transport of the loop's on one end of a TCP connection, a non-blocking socket on the other."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    far.setblocking(False)
    near.setblocking(False)
    transport, protocol = await loop.create_connection(factory, sock=near)
    return transport, protocol, far


@difference(
    "May a program handle SIGCHLD itself, with add_signal_handler?",
    "yes", "RuntimeError", "yes",
    "uvloop keeps the signal for libuv's own children.",
)  # fmt: skip
def sigchld_handler(loop):
    try:
        loop.add_signal_handler(signal.SIGCHLD, lambda: None)
    except RuntimeError as error:
        return _name(error)
    loop.remove_signal_handler(signal.SIGCHLD)
    return "yes"


@difference(
    "What is transport.get_extra_info('socket')?",
    "TransportSocket", "PseudoSocket", "TransportSocket",
    "The asyncio class is the documented one; libraries check for it.",
)  # fmt: skip
def extra_info_socket(loop):
    async def main():
        transport, _, far = await _connected(loop, asyncio.Protocol)
        kind = type(transport.get_extra_info("socket")).__name__
        transport.close()
        far.close()
        return kind

    return loop.run_until_complete(main())


@difference(
    "Does a loop whose time() is overridden run its timers by it?",
    "yes", "no", "yes",
    "Time-travelling test loops rely on it.",
)  # fmt: skip
def time_can_be_overridden(loop):
    offset = 0.0
    cls = type(loop)

    class Shifted(cls):
        def time(self):
            return super().time() + offset

    shifted = Shifted()
    fired = []
    try:
        shifted.call_later(1000, fired.append, True)
        offset = 2000.0
        shifted.run_until_complete(asyncio.sleep(0))
        shifted.call_later(0.01, shifted.stop)
        shifted.run_forever()
    finally:
        shifted.close()
    return "yes" if fired else "no"


@difference(
    "Does getaddrinfo() of an address literal need a thread?",
    "yes", "no", "no",
    "The answers are the same. asyncio's create_connection() leaves the resolver out for literals by itself.",
)  # fmt: skip
def literal_needs_a_thread(loop):
    class Counting(concurrent.futures.ThreadPoolExecutor):
        used = False

        def submit(self, *args, **kwargs):
            Counting.used = True
            return super().submit(*args, **kwargs)

    with Counting() as executor:
        loop.set_default_executor(executor)
        loop.run_until_complete(loop.getaddrinfo("127.0.0.1", 80))
        loop.run_until_complete(loop.shutdown_default_executor())
    return "yes" if Counting.used else "no"


@difference(
    "sendto() of a datagram to a host name?",
    "resolves it", "ValueError", "resolves it",
    "asyncio documents addresses only; the lookup blocks the loop.",
)  # fmt: skip
def datagram_to_a_name(loop):
    async def main():
        transport, _ = await loop.create_datagram_endpoint(asyncio.DatagramProtocol, local_addr=("127.0.0.1", 0))
        try:
            transport.sendto(b"x", ("localhost", 9))
        except ValueError as error:
            return _name(error)
        finally:
            transport.close()
            await asyncio.sleep(0)
        return "resolves it"

    return loop.run_until_complete(main())


class _Context(asyncio.Protocol):
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="nobody's")

    def __init__(self, loop):
        self.lost = loop.create_future()

    def connection_lost(self, exc):
        self.lost.set_result(self.variable.get())


@difference(
    "In whose context (contextvars) is connection_lost() called after transport.close()?",
    "close()'s caller", "the connection's", "the connection's",
    "asyncio does not document it. All callbacks of a protocol run in the context in which its connection was made.",
)  # fmt: skip
def context_of_connection_lost(loop):
    async def main():
        _Context.variable.set("the connection's")
        transport, protocol, far = await _connected(loop, lambda: _Context(loop))

        def close():
            _Context.variable.set("close()'s caller")
            transport.close()

        contextvars.copy_context().run(close)
        answer = await protocol.lost
        far.close()
        return answer

    return loop.run_until_complete(main())


@difference(
    "Does a transport call recv() and send() of a class that is derived from socket.socket?",
    "yes", "no", "no",
    "uvloop and netpoll_loop use the descriptor: what such a class counts, delays or traces is passed by.",
)  # fmt: skip
def socket_subclass(loop):
    called = set()

    class Traced(socket.socket):
        def recv(self, *args):
            called.add("recv")
            return super().recv(*args)

        def send(self, *args):
            called.add("send")
            return super().send(*args)

    async def main():
        given, far = socket.socketpair()
        near = Traced(fileno=given.detach())
        near.setblocking(False)
        reader, writer = await asyncio.open_connection(sock=near)
        far.send(b"x")
        await asyncio.wait_for(reader.readexactly(1), PATIENCE)
        writer.write(b"y")
        await asyncio.sleep(0.01)
        assert far.recv(1, socket.MSG_DONTWAIT) == b"y"
        writer.close()
        await writer.wait_closed()
        far.close()
        return "yes" if called == {"recv", "send"} else "no"

    return loop.run_until_complete(main())


@difference(
    "A socket is closed while sock_recv() waits on it: does the operation still end when data comes?",
    "no", "yes", "yes",
    "uvloop and netpoll_loop keep the socket open until the operation ends.",
)  # fmt: skip
def close_under_sock_recv(loop):
    async def main():
        near, far = socket.socketpair()
        near.setblocking(False)
        receiving = asyncio.ensure_future(loop.sock_recv(near, 1))
        await asyncio.sleep(0.01)
        near.close()
        try:
            far.send(b"x")
        except BrokenPipeError:
            pass  # It is really closed.
        done, _ = await asyncio.wait([receiving], timeout=PATIENCE)
        far.close()
        receiving.cancel()
        await asyncio.gather(receiving, return_exceptions=True)
        return "yes" if done else "no"

    return loop.run_until_complete(main())


@difference(
    "How often can one socket be waited for by sock_recv() at a time?",
    "once", "once", "many",
    "asyncio forgets the first waiter, uvloop raises. netpoll_loop queues them, first come first served.",
)  # fmt: skip
def concurrent_sock_recv(loop):
    async def main():
        near, far = socket.socketpair()
        near.setblocking(False)
        receiving = [asyncio.ensure_future(loop.sock_recv(near, 1)) for _ in range(2)]
        await asyncio.sleep(0.01)
        far.send(b"xy")
        _, pending = await asyncio.wait(receiving, timeout=PATIENCE)
        for task in pending:
            task.cancel()
        outcomes = await asyncio.gather(*receiving, return_exceptions=True)
        near.close()
        far.close()
        return "many" if outcomes == [b"x", b"y"] else "once"

    return loop.run_until_complete(main())


@difference(
    "May a protocol that only looks like a BufferedProtocol (it has get_buffer) get buffers?",
    "no", "yes", "yes",
    "asyncio asks isinstance(protocol, asyncio.BufferedProtocol).",
)  # fmt: skip
def buffered_by_shape(loop):
    class Shaped(asyncio.BaseProtocol):
        def __init__(self):
            self.seen = loop.create_future()
            self.room = bytearray(16)

        def get_buffer(self, sizehint):
            return self.room

        def buffer_updated(self, size):
            self.seen.set_result("yes")

        def eof_received(self):
            pass

        def connection_lost(self, exc):
            if not self.seen.done():
                self.seen.set_result("no")

    loop.set_exception_handler(lambda loop, context: None)

    async def main():
        transport, protocol, far = await _connected(loop, Shaped)
        far.send(b"x")
        answer = await asyncio.wait_for(protocol.seen, PATIENCE)
        transport.close()
        far.close()
        return answer

    return loop.run_until_complete(main())


@difference(
    "What are the threads of the default executor called?",
    "asyncio_0", "uvloop_0", "asyncio_0",
    "",
)  # fmt: skip
def executor_thread_name(loop):
    async def main():
        name = await loop.run_in_executor(None, lambda: threading.current_thread().name)
        await loop.shutdown_default_executor()
        return name

    return loop.run_until_complete(main())
