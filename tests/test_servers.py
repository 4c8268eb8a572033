"""Servers, and the ways to connect to one: listening, accepting, running out of descriptors, closing."""

import asyncio
import errno
import gc
import os
import re
import socket
import stat
import sys
from itertools import pairwise

import pytest
from peers import Echo, Recorder, put_away, read_exactly, read_to_end, turns, until


@pytest.fixture
def served(loop):
    """A protocol factory that remembers its protocols in `served.made` and closes their transports at the end."""

    class Served:
        def __init__(self):
            self.made = []

        def __call__(self):
            self.made.append(Recorder())
            return self.made[-1]

    served = Served()
    yield served

    async def close():
        for protocol in served.made:
            if protocol.transport is not None:
                put_away(protocol.transport)
        await turns(2)

    loop.run_until_complete(close())


@pytest.fixture
def dial(owned):
    """`dial(server or address)`: a plain blocking client socket."""

    def dial(server, number=0):
        address = server.sockets[number].getsockname() if hasattr(server, "sockets") else server
        family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET6 if len(address) > 2 else socket.AF_INET
        sock = owned(socket.socket(family))
        sock.settimeout(10)
        sock.connect(address)
        sock.setblocking(False)
        return sock

    return dial


@pytest.fixture
def can_listen_on_both(listener):
    listener(socket.AF_INET6).close()


# --- create_server ----------------------------------------------------------------------------------------------------


def test_a_server_accepts_and_tells_the_protocol_who_came(run, loop, served, dial):
    async def main():
        server = await loop.create_server(served, "127.0.0.1", 0)
        assert server.is_serving()
        assert server.get_loop() is loop
        (listening,) = server.sockets
        assert isinstance(listening, asyncio.trsock.TransportSocket)
        client = dial(server)
        await until(lambda: served.made and served.made[0].transport)
        transport = served.made[0].transport
        assert transport.get_extra_info("peername") == client.getsockname()
        assert transport.get_extra_info("sockname") == listening.getsockname()
        server.close()
        assert not server.is_serving()
        assert server.sockets == ()
        transport.write(b"served on")
        assert await read_exactly(client, 9) == b"served on"

    run(main())


def test_the_listening_socket_is_closed_with_the_server(run, loop, served, dial):
    async def main():
        server = await loop.create_server(served, "127.0.0.1", 0)
        address = server.sockets[0].getsockname()
        server.close()
        server.close()
        with pytest.raises(ConnectionRefusedError):
            dial(address)
        await server.wait_closed()
        await server.wait_closed()

    run(main())


def test_one_server_listens_on_several_hosts(run, loop, served, dial, can_listen_on_both):
    async def main():
        server = await loop.create_server(served, ["127.0.0.1", "127.0.0.2", "::1", "127.0.0.1"], 0)
        assert sorted(sock.getsockname()[0] for sock in server.sockets) == ["127.0.0.1", "127.0.0.2", "::1"]
        for number in range(3):
            dial(server, number)
        await until(lambda: len(served.made) == 3 and all(p.transport for p in served.made))
        server.close()

    run(main())


@pytest.mark.parametrize("host", [None, ""], ids=repr)
def test_no_host_means_every_interface(run, loop, served, dial, can_listen_on_both, host):
    async def main():
        server = await loop.create_server(served, host, 0)
        assert {sock.family for sock in server.sockets} == {socket.AF_INET, socket.AF_INET6}
        for sock in server.sockets:
            loopback = "::1" if sock.family == socket.AF_INET6 else "127.0.0.1"
            dial((loopback, *sock.getsockname()[1:]))
        await until(lambda: len(served.made) == 2 and all(p.transport for p in served.made))
        server.close()

    run(main())


def test_a_server_takes_a_bound_socket(run, loop, served, dial, owned):
    async def main():
        sock = owned(socket.socket())
        sock.bind(("127.0.0.1", 0))
        server = await loop.create_server(served, sock=sock, backlog=1)
        dial(server)
        await until(lambda: served.made)
        assert sock.gettimeout() == 0
        server.close()
        assert sock.fileno() == -1

    run(main())


def test_reuse_port_lets_two_servers_share_a_port(run, loop, served):
    async def main():
        first = await loop.create_server(served, "127.0.0.1", 0, reuse_port=True)
        port = first.sockets[0].getsockname()[1]
        second = await loop.create_server(served, "127.0.0.1", port, reuse_port=True)
        for server in (first, second):
            assert server.sockets[0].getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT)
            server.close()

    run(main())


def test_reuse_address_is_on_unless_refused(run, loop, served):
    async def main():
        for option, expected in ((None, True), (True, True), (False, False)):
            server = await loop.create_server(served, "127.0.0.1", 0, reuse_address=option)
            assert bool(server.sockets[0].getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)) is expected
            server.close()

    run(main())


def test_a_port_in_use_is_named_in_the_error(run, loop, served, listener):
    async def main():
        port = listener().getsockname()[1]
        expected = f"error while attempting to bind on address ('127.0.0.1', {port}): "
        with pytest.raises(OSError, match=re.escape(expected)) as info:
            await loop.create_server(served, "127.0.0.1", port)
        assert info.value.errno == errno.EADDRINUSE

    run(main())


@pytest.mark.parametrize(
    "options, error, text",
    [
        ({}, ValueError, "Neither host/port nor sock were specified"),
        ({"ssl": True}, TypeError, "ssl argument must be an SSLContext or None"),
        ({"ssl_handshake_timeout": 1}, ValueError, "ssl_handshake_timeout is only meaningful with ssl"),
        ({"host": "127.0.0.1", "port": 0, "sock": "stream"}, ValueError, "host/port and sock can not be specified"),
        ({"sock": "datagram"}, ValueError, "A Stream Socket was expected, got <socket"),
    ],
    ids=str,
)
def test_wrong_arguments_of_create_server_are_refused_as_by_asyncio(run, loop, served, owned, options, error, text):
    types = {"stream": socket.SOCK_STREAM, "datagram": socket.SOCK_DGRAM}
    if "sock" in options:
        options = {**options, "sock": owned(socket.socket(type=types[options["sock"]]))}
    with pytest.raises(error, match=re.escape(text)):
        run(loop.create_server(served, **options))


def test_an_unknown_host_is_a_gaierror(run, loop, served):
    for call in (loop.create_server, loop.create_connection):
        with pytest.raises(socket.gaierror):
            run(call(served, "no-such-host.invalid", 80))


# --- start, close, wait -----------------------------------------------------------------------------------------------


def test_a_server_that_has_not_started_accepts_nothing(run, loop, served, dial):
    async def main():
        server = await loop.create_server(served, "127.0.0.1", 0, start_serving=False)
        assert not server.is_serving()
        with pytest.raises(ConnectionRefusedError):
            dial(server)
        await server.start_serving()
        await server.start_serving()
        assert server.is_serving()
        dial(server)
        await until(lambda: served.made)
        server.close()

    run(main())


def test_serve_forever_serves_until_cancelled_and_closes(run, loop, served, dial):
    async def main():
        server = await loop.create_server(served, "127.0.0.1", 0, start_serving=False)
        serving = asyncio.ensure_future(server.serve_forever())
        await until(server.is_serving)
        client = dial(server)
        await until(lambda: served.made and served.made[0].transport)
        with pytest.raises(RuntimeError, match="already being awaited on serve_forever"):
            await server.serve_forever()
        served.made[0].transport.close()
        assert await read_to_end(client) == b""
        serving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await serving
        assert not server.is_serving()
        with pytest.raises(RuntimeError, match="is closed"):
            await server.serve_forever()

    run(main())


def test_closing_the_server_ends_serve_forever(run, loop, served):
    async def main():
        server = await loop.create_server(served, "127.0.0.1", 0)
        serving = asyncio.ensure_future(server.serve_forever())
        await turns(1)
        server.close()
        with pytest.raises(asyncio.CancelledError):
            await serving

    run(main())


def test_leaving_async_with_closes_the_server(run, loop, served, dial):
    async def main():
        async with await loop.create_server(served, "127.0.0.1", 0) as server:
            assert server.is_serving()
            address = server.sockets[0].getsockname()
        assert not server.is_serving()
        with pytest.raises(ConnectionRefusedError):
            dial(address)

    run(main())


@pytest.mark.not_on_oracle("3.11 returns at once; python/cpython issue 79033", sys.version_info < (3, 12))
@pytest.mark.skipif(sys.version_info < (3, 12), reason="3.11 returns at once; python/cpython issue 79033")
def test_wait_closed_waits_for_close_and_for_the_last_connection(run, loop, served, dial):
    async def main():
        server = await loop.create_server(served, "127.0.0.1", 0)
        waiting = asyncio.ensure_future(server.wait_closed())
        clients = [dial(server) for _ in range(3)]
        await until(lambda: len(served.made) == 3 and all(p.transport for p in served.made))
        await turns(1)
        assert not waiting.done()
        server.close()
        for protocol in served.made:
            await turns(1)
            assert not waiting.done()
            protocol.transport.close()
        await waiting
        assert clients

    run(main())


@pytest.mark.skipif(sys.version_info < (3, 13), reason="new in 3.13")
@pytest.mark.parametrize("method", ["close_clients", "abort_clients"])
def test_close_clients_flushes_and_abort_clients_does_not(run, loop, served, dial, method):
    async def main():
        server = await loop.create_server(served, "127.0.0.1", 0)
        clients = [dial(server) for _ in range(3)]
        await until(lambda: len(served.made) == 3 and all(p.transport for p in served.made))
        size = 32 << 20
        for protocol in served.made:
            protocol.transport.write(bytes(size))
        server.close()
        await turns(1)
        getattr(server, method)()
        for client in clients:
            received = len(await read_to_end(client))
            assert received == size if method == "close_clients" else received < size
        await server.wait_closed()
        assert all(protocol.lost for protocol in served.made)

    run(main())


def test_connections_that_were_accepted_are_served_although_the_server_closes_at_once(run, loop, served, dial):
    async def main():
        server = await loop.create_server(served, "127.0.0.1", 0)
        clients = [dial(server) for _ in range(20)]
        await until(lambda: served.made)
        server.close()
        await turns()
        made = [p for p in served.made if p.transport]
        assert made == served.made
        for protocol in made:
            protocol.transport.write(b"hello")
            protocol.transport.close()
        answers = [await read_to_end(client) for client in clients]
        assert answers.count(b"hello") == len(made)
        assert set(answers) <= {b"hello", b""}, "neither served nor closed"

    run(main())


def test_a_thousand_quick_connections_are_all_served(run, loop):
    answered = 0

    async def client(address, number):
        nonlocal answered
        reader, writer = await asyncio.open_connection(*address)
        writer.write(b"%d" % number)
        writer.write_eof()
        assert await reader.read() == b"%d" % number
        answered += 1
        writer.close()
        await writer.wait_closed()

    async def main():
        server = await loop.create_server(Echo, "127.0.0.1", 0, backlog=200)
        address = server.sockets[0].getsockname()
        for start in range(0, 1000, 50):
            await asyncio.gather(*(client(address, start + i) for i in range(50)))
        assert answered == 1000
        server.close()
        await server.wait_closed()

    run(main(), timeout=30)


def test_connections_that_came_at_once_are_accepted_in_order(run, loop, served, dial):
    async def main():
        server = await loop.create_server(served, "127.0.0.1", 0, start_serving=False, backlog=50)
        await server.start_serving()
        clients = [dial(server) for _ in range(30)]
        await until(lambda: len(served.made) == 30 and served.made[-1].transport)
        peers = [p.transport.get_extra_info("peername") for p in served.made]
        assert peers == [client.getsockname() for client in clients]
        server.close()

    run(main())


def test_many_connections_at_once_leave_the_others_their_turns(run, loop, served, dial):
    async def main():
        server = await loop.create_server(served, "127.0.0.1", 0, backlog=200)
        clients = [dial(server) for _ in range(100)]  # of which the loop knows nothing yet
        made = [0]
        while made[-1] < len(clients):
            await asyncio.sleep(0)
            made.append(len(served.made))
        assert max(after - before for before, after in pairwise(made)) <= 32
        server.close()

    run(main())


def test_a_failing_protocol_factory_is_reported_and_the_server_goes_on(run, loop, exceptions, served, dial):
    calls = 0

    def factory():
        nonlocal calls
        calls += 1
        if calls == 1:
            raise ZeroDivisionError("factory")
        return served()

    async def main():
        loop.set_debug(True)  # without it asyncio tells nobody
        server = await loop.create_server(factory, "127.0.0.1", 0)
        lost = dial(server)
        await until(lambda: exceptions)
        assert exceptions[0]["message"] == "Error on transport creation for incoming connection"
        assert isinstance(exceptions[0]["exception"], ZeroDivisionError)
        dial(server)
        await until(lambda: served.made)
        server.close()
        exceptions.clear()
        gc.collect()
        assert await read_to_end(lost) == b""

    run(main())


# --- EMFILE -----------------------------------------------------------------------------------------------------------


def test_without_free_descriptors_accepting_pauses_and_goes_on_later(run_child):
    done = run_child(
        """
        import resource, socket
        reports = []
        connected = []

        class Hello(asyncio.Protocol):
            def connection_made(self, transport):
                connected.append(transport)
                transport.write(b"hello")

        async def main():
            loop = asyncio.get_running_loop()
            loop.set_exception_handler(lambda loop, context: reports.append(context))
            server = await loop.create_server(Hello, "127.0.0.1", 0)
            address = server.sockets[0].getsockname()
            client = socket.socket()
            client.setblocking(False)
            await asyncio.sleep(0.01)
            used = len(os.listdir("/proc/self/fd"))
            resource.setrlimit(resource.RLIMIT_NOFILE, (used + 50, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
            hogs = []
            try:
                while True:
                    hogs.append(os.open("/dev/null", os.O_RDONLY))
            except OSError:
                pass
            client.connect_ex(address)
            while not reports:
                await asyncio.sleep(0.01)
            assert not connected
            for fd in hogs:
                os.close(fd)
            while not connected:
                await asyncio.sleep(0.01)
            while True:
                try:
                    assert client.recv(10) == b"hello"
                    break
                except BlockingIOError:
                    await asyncio.sleep(0.01)
            assert len(reports) <= 200, "accepting did not pause"  # stock: one for each place in the backlog
            server.close()
            connected[0].close()
            await asyncio.sleep(0.05)
            context = reports[0]
            print(context["message"], context["exception"].errno, type(context["socket"]).__name__)

        run_main(main())
        """,
        timeout=20,
    )
    assert done.stdout == f"socket.accept() out of system resource {errno.EMFILE} TransportSocket\n"


def test_a_server_closed_while_accepting_is_paused_stays_closed(run_child):
    run_child(
        """
        import resource, socket
        reports = []

        async def main():
            loop = asyncio.get_running_loop()
            loop.set_exception_handler(lambda loop, context: reports.append(context))
            server = await loop.create_server(asyncio.Protocol, "127.0.0.1", 0)
            client = socket.socket()
            client.setblocking(False)
            await asyncio.sleep(0.01)
            used = len(os.listdir("/proc/self/fd"))
            resource.setrlimit(resource.RLIMIT_NOFILE, (used + 50, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
            hogs = []
            try:
                while True:
                    hogs.append(os.open("/dev/null", os.O_RDONLY))
            except OSError:
                pass
            client.connect_ex(server.sockets[0].getsockname())
            while not reports:
                await asyncio.sleep(0.01)
            server.close()
            for fd in hogs:
                os.close(fd)
            await asyncio.sleep(1.2)  # the pause takes a second
            await server.wait_closed()

        run_main(main())
        """,
        timeout=20,
    )


# --- unix servers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["str", "path", "abstract"])
def test_a_unix_server_serves_on_its_path(run, loop, served, dial, tmp_path, kind):
    path = tmp_path / "socket"
    address = {"str": str(path), "path": path, "abstract": f"\0netpoll_loop-test-{os.getpid()}"}[kind]

    async def main():
        server = await loop.create_unix_server(served, address)
        if kind != "abstract":
            assert stat.S_ISSOCK(path.stat().st_mode)
        transport, protocol = await loop.create_unix_connection(Recorder, address)
        await until(lambda: served.made and served.made[0].transport)
        served.made[0].transport.write(b"hello")
        served.made[0].transport.close()
        await until(lambda: protocol.lost)
        assert protocol.data == b"hello"
        server.close()
        await server.wait_closed()
        assert path.exists() is (kind != "abstract" and sys.version_info < (3, 13))

    run(main())


def test_a_stale_unix_socket_is_replaced(run, loop, served, dial, tmp_path):
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(path)

    async def main():
        server = await loop.create_unix_server(served, path)
        dial(path)
        await until(lambda: served.made)
        server.close()

    run(main())


def test_a_file_where_the_unix_socket_should_be_is_an_error_and_stays(run, loop, served, tmp_path):
    path = tmp_path / "file"
    path.write_text("precious")
    with pytest.raises(OSError, match=re.escape(f"Address {str(path)!r} is already in use")) as info:
        run(loop.create_unix_server(served, path))
    assert info.value.errno == errno.EADDRINUSE
    assert path.read_text() == "precious"


@pytest.mark.skipif(sys.version_info < (3, 13), reason="new in 3.13")
def test_a_unix_server_removes_only_its_own_socket_and_only_if_it_may(run, loop, served, tmp_path):
    async def main():
        kept = tmp_path / "kept"
        server = await loop.create_unix_server(served, kept, cleanup_socket=False)
        server.close()
        assert kept.exists()
        replaced = tmp_path / "replaced"
        server = await loop.create_unix_server(served, replaced)
        replaced.unlink()
        replaced.write_text("another's")
        server.close()
        assert replaced.read_text() == "another's"
        gone = tmp_path / "gone"
        server = await loop.create_unix_server(served, gone)
        gone.unlink()
        server.close()

    run(main())


@pytest.mark.parametrize("call", ["create_unix_server", "create_unix_connection"])
def test_wrong_arguments_of_unix_calls_are_refused_as_by_asyncio(run, loop, owned, call):
    method = getattr(loop, call)
    with pytest.raises(ValueError, match="path .*sock"):
        run(method(Recorder))
    sock = owned(socket.socket())
    with pytest.raises(ValueError, match="A UNIX Domain Stream Socket was expected, got <socket"):
        run(method(Recorder, sock=sock))
    with pytest.raises(ValueError, match="path and sock can not be specified at the same time"):
        run(method(Recorder, "path", sock=sock))


def test_connecting_to_a_unix_path_where_nothing_listens_fails_with_the_reason(run, loop, tmp_path):
    with pytest.raises(FileNotFoundError):
        run(loop.create_unix_connection(Recorder, tmp_path / "nothing"))
    (tmp_path / "file").touch()
    with pytest.raises(ConnectionRefusedError):
        run(loop.create_unix_connection(Recorder, tmp_path / "file"))


# --- create_connection ------------------------------------------------------------------------------------------------


def test_a_refused_connection_names_the_address(run, loop, free_port):
    port = free_port()
    with pytest.raises(ConnectionRefusedError, match=re.escape(f"Connect call failed ('127.0.0.1', {port})")):
        run(loop.create_connection(Recorder, "127.0.0.1", port))


@pytest.fixture
def resolve(loop, monkeypatch):
    """`resolve(*addresses)`: what loop.getaddrinfo answers from now on for the name "several"."""

    def resolve(*addresses):
        async def getaddrinfo(host, port, **options):
            return [
                (
                    socket.AF_INET6 if ":" in address[0] else socket.AF_INET,
                    socket.SOCK_STREAM,
                    socket.IPPROTO_TCP,
                    "",
                    (*address, 0, 0) if ":" in address[0] else address,
                )
                for address in addresses
            ]

        monkeypatch.setattr(loop, "getaddrinfo", getaddrinfo)

    return resolve


def test_the_second_address_is_tried_when_the_first_refuses(run, loop, served, resolve, free_port):
    async def main():
        server = await loop.create_server(served, "127.0.0.1", 0)
        resolve(("127.0.0.1", free_port()), server.sockets[0].getsockname())
        transport, _ = await loop.create_connection(Recorder, "several", 1)
        assert transport.get_extra_info("peername") == server.sockets[0].getsockname()
        transport.abort()
        server.close()
        await turns(1)

    run(main())


def test_when_every_address_refuses_the_error_names_them_all(run, loop, resolve, free_port):
    one, other = free_port(), free_port()
    resolve(("127.0.0.1", one), ("127.0.0.1", other))
    with pytest.raises(OSError, match="Multiple exceptions: ") as info:
        run(loop.create_connection(Recorder, "several", 1))
    assert f"('127.0.0.1', {one})" in str(info.value)
    assert f"('127.0.0.1', {other})" in str(info.value)
    resolve(("127.0.0.1", one), ("127.0.0.1", one))
    with pytest.raises(ConnectionRefusedError):
        run(loop.create_connection(Recorder, "several", 1))


@pytest.mark.skipif(sys.version_info < (3, 12), reason="new in 3.12")
def test_all_errors_raises_a_group(run, loop, resolve, free_port):
    resolve(("127.0.0.1", free_port()), ("127.0.0.1", free_port()))
    with pytest.raises(ExceptionGroup, match="create_connection failed") as info:
        run(loop.create_connection(Recorder, "several", 1, all_errors=True))
    assert [type(exc) for exc in info.value.exceptions] == [ConnectionRefusedError] * 2


def test_happy_eyeballs_goes_on_to_the_next_family_when_the_first_hangs(run, loop, served, resolve, owned):
    async def main():
        full = owned(socket.socket(socket.AF_INET6))
        full.bind(("::1", 0))
        full.listen(0)
        fillers = []
        for _ in range(3):  # beyond its backlog a connection attempt gets no answer
            fillers.append(owned(socket.socket(socket.AF_INET6)))
            fillers[-1].setblocking(False)
            fillers[-1].connect_ex(full.getsockname())
        server = await loop.create_server(served, "127.0.0.1", 0)
        resolve(("::1", full.getsockname()[1]), ("::1", full.getsockname()[1]), server.sockets[0].getsockname())
        transport, _ = await loop.create_connection(Recorder, "several", 1, happy_eyeballs_delay=0.05)
        assert transport.get_extra_info("peername") == server.sockets[0].getsockname()
        transport.abort()
        server.close()
        await turns(1)

    run(main())


def test_interleave_alternates_the_families(run, loop, resolve, monkeypatch, free_port):
    tried = []
    connect = loop.sock_connect

    async def sock_connect(sock, address):
        tried.append(address[0])
        await connect(sock, address)

    port = free_port()
    monkeypatch.setattr(loop, "sock_connect", sock_connect)
    resolve(("::1", port), ("::1", port), ("127.0.0.1", port), ("127.0.0.2", port))
    with pytest.raises(OSError):
        run(loop.create_connection(Recorder, "several", 1, interleave=1))
    assert tried == ["::1", "127.0.0.1", "::1", "127.0.0.2"]


def test_local_addr_is_where_the_connection_comes_from(run, loop, served, free_port):
    async def main():
        server = await loop.create_server(served, "127.0.0.1", 0)
        address = server.sockets[0].getsockname()
        local = ("127.0.0.2", free_port())
        transport, _ = await loop.create_connection(Recorder, *address, local_addr=local)
        assert transport.get_extra_info("sockname") == local
        with pytest.raises(OSError, match="error while attempting to bind on address"):
            await loop.create_connection(Recorder, *address, local_addr=local)
        transport.abort()
        server.close()
        await turns(1)

    run(main())


def test_a_host_name_is_resolved(run, loop, served):
    async def main():
        server = await loop.create_server(served, "localhost", 0, family=socket.AF_INET)
        port = server.sockets[0].getsockname()[1]
        transport, _ = await loop.create_connection(Recorder, "localhost", port)
        assert transport.get_extra_info("peername") == ("127.0.0.1", port)
        transport.abort()
        server.close()
        await turns(1)

    run(main())


def test_a_cancelled_connection_attempt_leaves_nothing_behind(run, loop, owned):
    async def main():
        full = owned(socket.socket())
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(3):
            filler = owned(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        before = len(os.listdir("/proc/self/fd"))
        connecting = asyncio.ensure_future(loop.create_connection(Recorder, *full.getsockname()))
        await turns(1)
        assert len(os.listdir("/proc/self/fd")) == before + 1
        connecting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await connecting
        await turns(1)
        assert len(os.listdir("/proc/self/fd")) == before

    run(main())


def test_a_failing_protocol_factory_of_a_connection_raises(run, loop, listener, owned):
    def factory():
        raise ZeroDivisionError("factory")

    async def main():
        server = listener()
        with pytest.raises(ZeroDivisionError):
            await loop.create_connection(factory, *server.getsockname())
        peer = owned(server.accept()[0])
        peer.setblocking(False)
        assert await read_to_end(peer) == b""

    run(main())


@pytest.mark.parametrize(
    "options, error, text",
    [
        ({}, ValueError, "host and port was not specified and no sock specified"),
        ({"server_hostname": "x"}, ValueError, "server_hostname is only meaningful with ssl"),
        ({"ssl_handshake_timeout": 1}, ValueError, "ssl_handshake_timeout is only meaningful with ssl"),
        ({"ssl": True}, ValueError, "You must set server_hostname when using ssl without a host"),
        ({"host": "127.0.0.1", "sock": "stream"}, ValueError, "host/port and sock can not be specified"),
        ({"sock": "datagram"}, ValueError, "A Stream Socket was expected, got <socket"),
    ],
    ids=str,
)
def test_wrong_arguments_of_create_connection_are_refused_as_by_asyncio(run, loop, owned, options, error, text):
    types = {"stream": socket.SOCK_STREAM, "datagram": socket.SOCK_DGRAM}
    if "sock" in options:
        options = {**options, "sock": owned(socket.socket(type=types[options["sock"]]))}
    with pytest.raises(error, match=re.escape(text)):
        run(loop.create_connection(Recorder, **options))


def test_connect_accepted_socket_serves_a_socket_accepted_elsewhere(run, loop, tcp_pair):
    async def main():
        client, sock = tcp_pair()
        sock.setblocking(True)
        transport, protocol = await loop.connect_accepted_socket(Recorder, sock)
        assert sock.gettimeout() == 0
        transport.write(b"hello")
        assert await read_exactly(client, 5) == b"hello"
        client.close()
        await until(lambda: protocol.lost)

    run(main())


def test_connect_accepted_socket_refuses_what_asyncio_refuses(run, loop, owned):
    sock = owned(socket.socket(type=socket.SOCK_DGRAM))
    with pytest.raises(ValueError, match="A Stream Socket was expected, got <socket"):
        run(loop.connect_accepted_socket(Recorder, sock))
    stream = owned(socket.socket())
    with pytest.raises(ValueError, match="ssl_handshake_timeout is only meaningful with ssl"):
        run(loop.connect_accepted_socket(Recorder, stream, ssl_handshake_timeout=1))


def test_a_backlog_of_nothing_is_one(run, loop, served, dial):
    # asyncio does so from 3.14 on; before, it spins and accepts nothing.
    async def main():
        server = await loop.create_server(served, "127.0.0.1", 0, backlog=0)
        for count in range(1, 4):
            client = dial(server)
            await until(lambda: len(served.made) == count)  # noqa: B023
            client.close()
        server.close()

    run(main())
