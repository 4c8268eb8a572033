"""create_connection to an address literal: what comes back, and what goes wrong, is as in asyncio."""

import _socket
import asyncio
import contextlib
import inspect
import socket
import struct
import sys

import pytest

LIMIT = 10


def refused_port(family=socket.AF_INET, host="127.0.0.1"):
    with socket.socket(family) as sock:
        sock.bind((host, 0))
        return sock.getsockname()[1]


def outcome(new_loop, port, **options):
    """How create_connection to a literal ends on this loop: the exception's type and text, None if it has none."""

    async def connect():
        try:
            transport, _ = await asyncio.wait_for(
                asyncio.get_running_loop().create_connection(asyncio.Protocol, "127.0.0.1", port, **options), LIMIT
            )
        except Exception as exc:
            return type(exc), str(exc)
        transport.abort()
        await asyncio.sleep(0)
        return None

    loop = new_loop()
    try:
        return loop.run_until_complete(connect())
    finally:
        loop.close()


@pytest.mark.parametrize("port", ["refused", -1, 65536, None, 80.5, "http?"])
def test_a_failing_connect_raises_what_asyncio_raises(new_loop, port):
    port = refused_port() if port == "refused" else port
    assert outcome(new_loop, port) == outcome(asyncio.SelectorEventLoop, port)


def test_a_protocol_factory_that_raises_leaves_no_connection_open(run, loop, listener):
    server = listener()
    kept = []

    async def main():
        try:
            await loop.create_connection(lambda: 1 / 0, *server.getsockname())
        except ZeroDivisionError as exc:
            kept.append(exc)
        connection, _ = server.accept()
        with connection:
            connection.settimeout(LIMIT)
            assert connection.recv(1) == b""

    run(main())
    assert kept


@pytest.mark.parametrize(("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_a_literal_connects_with_and_without_options(loop, family, host):
    if family == socket.AF_INET6 and not socket.has_ipv6:
        pytest.skip("no IPv6 here")

    async def main():
        made = []

        class Protocol(asyncio.Protocol):
            def connection_made(self, transport):
                made.append(transport)

        server = await loop.create_server(asyncio.Protocol, host, 0)
        name = server.sockets[0].getsockname()
        for options in {}, {"family": family}:
            transport, protocol = await loop.create_connection(Protocol, host, name[1], **options)
            # connection_made was called before create_connection came back.
            assert made.pop() is transport
            assert transport.get_protocol() is protocol
            assert transport.get_extra_info("peername") == name
            assert transport.get_extra_info("sockname")[0] == host
            sock = transport.get_extra_info("socket")
            assert (sock.family, sock.type, sock.gettimeout()) == (family, socket.SOCK_STREAM, 0)
            transport.abort()
        server.close()
        await server.wait_closed()

    loop.run_until_complete(asyncio.wait_for(main(), LIMIT))


def test_a_factory_that_raises_and_a_cancelled_connect_leave_no_transport(loop):
    async def main():
        server = await loop.create_server(asyncio.Protocol, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]

        def factory():
            raise LookupError("no protocol")

        with pytest.raises(LookupError, match="no protocol"):
            await loop.create_connection(factory, "127.0.0.1", port)
        task = loop.create_task(loop.create_connection(asyncio.Protocol, "127.0.0.1", port))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        server.close()
        await server.wait_closed()

    loop.run_until_complete(asyncio.wait_for(main(), LIMIT))


def test_one_refused_connect_after_the_other_ends(loop):
    # They get the same number for their socket, one after the other.
    async def main():
        port = refused_port()
        for _ in range(10):
            with pytest.raises(ConnectionRefusedError):
                await asyncio.wait_for(loop.create_connection(asyncio.Protocol, "127.0.0.1", port), LIMIT)

    loop.run_until_complete(main())


def test_what_was_given_up_under_way_leaves_nothing_on_its_number(loop):
    async def main():
        # A full backlog: who connects waits.
        with contextlib.ExitStack() as stack:
            listener = stack.enter_context(socket.socket())
            listener.bind(("127.0.0.1", 0))
            listener.listen(0)
            address = listener.getsockname()
            for _ in range(3):
                sock = stack.enter_context(socket.socket())
                sock.setblocking(False)
                sock.connect_ex(address)
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(loop.create_connection(asyncio.Protocol, *address), 0.05)
            a, b = socket.socketpair()
            with a, b:
                a.setblocking(False)
                loop.call_later(0.05, b.send, b"x")
                assert await asyncio.wait_for(loop.sock_recv(a, 10), LIMIT) == b"x"
            connecting = asyncio.ensure_future(loop.create_connection(asyncio.Protocol, *address))
            await asyncio.sleep(0.05)
            listener.listen(50)
            listener.setblocking(False)
            while not connecting.done():
                with contextlib.suppress(BlockingIOError):
                    stack.enter_context(listener.accept()[0])
                await asyncio.sleep(0.01)
            transport, _ = await connecting
            transport.abort()
            await asyncio.sleep(0)

    loop.run_until_complete(asyncio.wait_for(main(), LIMIT))


def test_a_socket_without_weak_references_leaves_nothing_on_its_number(loop):
    async def main():
        a, b = _socket.socketpair()
        a.setblocking(False)
        number = a.fileno()
        for _ in range(2):
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(loop.sock_recv(a, 1), 0.01)
        a.close()
        c, d = socket.socketpair()
        with c, d:
            c.setblocking(False)
            assert c.fileno() == number
            loop.call_later(0.05, d.send, b"x")
            assert await asyncio.wait_for(loop.sock_recv(c, 1), LIMIT) == b"x"
        b.close()

    loop.run_until_complete(main())


def test_a_sock_connect_of_the_users_own_is_called(loop):
    asked = []
    own = loop.sock_connect

    async def sock_connect(sock, address):
        asked.append(address)
        await own(sock, address)

    loop.sock_connect = sock_connect

    async def main():
        server = await loop.create_server(asyncio.Protocol, "127.0.0.1", 0)
        address = server.sockets[0].getsockname()
        transport, _ = await loop.create_connection(asyncio.Protocol, *address)
        transport.abort()
        server.close()
        await server.wait_closed()
        assert asked == [address]

    loop.run_until_complete(asyncio.wait_for(main(), LIMIT))


def test_a_guard_in_place_of_connect_is_asked(loop, monkeypatch):
    # As pytest-socket's: it would refuse any other host.
    asked = []
    original = socket.socket.connect

    def guarded(sock, address):
        asked.append(address)
        return original(sock, address)

    async def main():
        server = await loop.create_server(asyncio.Protocol, "127.0.0.1", 0)
        address = server.sockets[0].getsockname()
        monkeypatch.setattr(socket.socket, "connect", guarded)
        transport, _ = await loop.create_connection(asyncio.Protocol, *address)
        transport.abort()
        with socket.socket() as sock:
            sock.setblocking(False)
            await loop.sock_connect(sock, address)
        monkeypatch.undo()
        server.close()
        await server.wait_closed()
        assert asked == [address, address]

    loop.run_until_complete(asyncio.wait_for(main(), LIMIT))


def test_the_peer_may_be_gone_before_the_connection_is_made(loop):
    async def main():
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen()
            address = listener.getsockname()
            connecting = loop.create_task(loop.create_connection(asyncio.Protocol, *address))
            await asyncio.sleep(0)
            peer, _ = listener.accept()
            # Reset, not closed.
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            peer.close()
        try:
            transport, _ = await connecting
        except OSError:
            return
        assert transport.get_extra_info("peername") in (address, None)
        transport.abort()

    loop.run_until_complete(asyncio.wait_for(main(), LIMIT))


def test_the_connect_is_audited_and_debug_mode_logs_it(loop, caplog):
    seen = []
    watching = True

    def hook(event, arguments):
        if watching and event == "socket.connect":
            seen.append(arguments[1])

    sys.addaudithook(hook)

    async def main():
        server = await loop.create_server(asyncio.Protocol, "127.0.0.1", 0)
        address = server.sockets[0].getsockname()
        for debug in False, True:
            seen.clear()
            loop.set_debug(debug)
            with caplog.at_level("DEBUG", logger="asyncio"):
                transport, _ = await loop.create_connection(asyncio.Protocol, *address)
            transport.abort()
            # In dedicated mode a second one may ask whether it has ended.
            assert seen and set(seen) == {address}
        server.close()
        await server.wait_closed()
        assert "connected to 127.0.0.1" in caplog.text

    try:
        loop.run_until_complete(asyncio.wait_for(main(), LIMIT))
    finally:
        watching = False


def test_the_signature_is_that_of_asyncio(loop):
    theirs = inspect.signature(asyncio.SelectorEventLoop.create_connection)
    assert inspect.signature(type(loop).create_connection) == theirs
    assert inspect.iscoroutinefunction(loop.create_connection)


def test_a_function_in_the_place_of_the_class_socket(loop, monkeypatch):
    # As tests of other projects put one there.
    original = socket.socket

    def replaced(*args, **kwargs):
        return original(*args, **kwargs)

    async def handler(reader, writer):
        writer.write(await reader.read(5))
        writer.close()

    async def main():
        with monkeypatch.context() as patched:
            patched.setattr(socket, "socket", replaced)
            server = await asyncio.start_server(handler, "127.0.0.1", 0)
            address = server.sockets[0].getsockname()
            reader, writer = await asyncio.open_connection(*address)
            writer.write(b"hello")
            assert await reader.read() == b"hello"
            assert writer.get_extra_info("socket").getpeername() == address
            writer.close()
            with original() as sock:
                sock.setblocking(False)
                await loop.sock_connect(sock, address)
                await loop.sock_sendall(sock, b"world")
                assert await loop.sock_recv(sock, 5) == b"world"
            transport, _ = await loop.create_datagram_endpoint(asyncio.DatagramProtocol, ("127.0.0.1", 0))
            transport.close()
            server.close()
            await server.wait_closed()

    loop.run_until_complete(asyncio.wait_for(main(), LIMIT))
