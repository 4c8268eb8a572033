"""What other threads may ask of a transport, or do to a loop, while the loop's own thread runs."""

import asyncio
import gc
import os
import socket
import sysconfig
import threading

import pytest

import netpoll_loop

LIMIT = 10
FREE_THREADED = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))


async def echo(reader, writer):
    while data := await reader.read(1000):
        writer.write(data)
    writer.close()


def elsewhere(function, *args):
    """What the function returns on a thread of its own."""
    results = []
    thread = threading.Thread(target=lambda: results.append(function(*args)))
    thread.start()
    thread.join(LIMIT)
    assert results, "raised or still running"
    return results[0]


# --- the socket of a connection that has none -------------------------------------------------------------------------


class Asker(threading.Thread):
    """Asks a transport for its socket, and stops in the middle: when the object is there, and nobody knows it yet."""

    def __init__(self, monkeypatch, transport):
        super().__init__()
        self.transport = transport
        self.inside = threading.Event()
        self.go_on = threading.Event()
        self.answer = None
        monkeypatch.setattr(socket.socket, "__init__", self.init(socket.socket.__init__))
        self.start()
        assert self.inside.wait(LIMIT)

    def init(self, stock):
        def init(sock, *args, **kwargs):
            stock(sock, *args, **kwargs)
            if threading.current_thread() is self:
                self.inside.set()
                self.go_on.wait(LIMIT)

        return init

    def run(self):
        self.answer = self.transport.get_extra_info("socket")

    def finish(self):
        self.go_on.set()
        self.join(LIMIT)
        gc.collect()
        return self.answer


@pytest.mark.netpoll_only("asyncio's transports have a socket object from the beginning")
def test_two_threads_that_ask_for_a_socket_get_the_same_one(run, monkeypatch):
    async def main():
        server = await asyncio.start_server(echo, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        asker = Asker(monkeypatch, writer.transport)
        sock = writer.get_extra_info("socket")
        assert asker.finish()._sock is sock._sock
        # Nobody has closed the descriptor behind the transport.
        writer.write(b"ping")
        assert await reader.readexactly(4) == b"ping"
        writer.close()
        await writer.wait_closed()
        assert sock.fileno() == -1
        server.close()
        await server.wait_closed()

    run(main())


@pytest.mark.netpoll_only("asyncio's transports have a socket object from the beginning")
def test_who_asks_for_a_socket_while_it_is_closed_does_not_own_what_gets_its_number(run, monkeypatch, owned):
    async def main():
        server = await asyncio.start_server(echo, "127.0.0.1", 0)
        _, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        fd = writer.transport._sock_fd
        asker = Asker(monkeypatch, writer.transport)
        writer.close()
        await writer.wait_closed()
        file = owned(os.open(os.devnull, os.O_RDONLY))
        if file != fd:
            owned(os.dup2(file, fd))
        assert asker.finish().fileno() == -1
        os.fstat(fd)
        server.close()
        await server.wait_closed()

    run(main())


@pytest.mark.netpoll_only("asyncio's transports have a socket object from the beginning")
def test_a_ctrl_c_while_the_socket_is_made_does_not_close_it(run, monkeypatch):
    async def main():
        server = await asyncio.start_server(echo, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        stock = socket.socket.__init__

        def interrupted(*args, **kwargs):
            stock(*args, **kwargs)
            raise KeyboardInterrupt

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(socket.socket, "__init__", interrupted)
            writer.get_extra_info("socket")
        writer.write(b"ping")
        assert await reader.readexactly(4) == b"ping"
        writer.close()
        await writer.wait_closed()
        server.close()
        await server.wait_closed()

    run(main())


@pytest.mark.parametrize("kind", ["ipv4", "ipv6", "unix", "abstract"])
def test_both_sides_of_a_connection_know_their_own_name(run, tmp_path, kind):
    async def main():
        served = asyncio.get_running_loop().create_future()

        async def serve(_, writer):
            served.set_result(writer)

        if kind in ("unix", "abstract"):
            path = str(tmp_path / "socket") if kind == "unix" else f"\0netpoll-{os.getpid()}-{id(served)}"
            server = await asyncio.start_unix_server(serve, path)
            _, client = await asyncio.open_unix_connection(path)
        else:
            server = await asyncio.start_server(serve, "127.0.0.1" if kind == "ipv4" else "::1", 0)
            _, client = await asyncio.open_connection(*server.sockets[0].getsockname()[:2])
        for writer in (client, await served):
            name = elsewhere(writer.get_extra_info, "sockname")
            assert name == writer.get_extra_info("socket").getsockname()
            writer.close()
            await writer.wait_closed()
            assert writer.get_extra_info("sockname") == name
        server.close()
        await server.wait_closed()

    run(main())


# --- what waits to be sent --------------------------------------------------------------------------------------------


class Pauses(asyncio.Protocol):
    """Notes on which thread it was paused and resumed."""

    def __init__(self):
        self.threads = []

    def pause_writing(self):
        self.threads.append(threading.get_ident())

    def resume_writing(self):
        self.threads.append(threading.get_ident())


@pytest.mark.netpoll_only("asyncio calls pause_writing() on the thread that asked")
def test_a_limit_that_another_thread_sets_pauses_the_protocol_on_the_loops_own(run, socket_pair):
    async def main():
        ours, peer = socket_pair()
        transport, protocol = await asyncio.get_running_loop().create_connection(Pauses, sock=ours)
        transport.set_write_buffer_limits(high=1 << 30)
        transport.write(bytes(1 << 22))
        assert elsewhere(transport.get_write_buffer_size) > 1000
        elsewhere(lambda: transport.set_write_buffer_limits(high=1000))
        assert transport.get_write_buffer_limits() == (250, 1000)
        assert protocol.threads == []
        transport.write(b"x")
        assert protocol.threads == [threading.get_ident()]
        transport.abort()
        await asyncio.sleep(0)
        assert elsewhere(transport.get_write_buffer_size) == 0
        peer.close()

    run(main())


@pytest.mark.netpoll_only("asyncio calls pause_writing() on the thread that asked")
def test_a_limit_that_another_thread_sets_for_datagrams_pauses_no_protocol_there(run, monkeypatch, owned):
    class Datagrams(Pauses, asyncio.DatagramProtocol):
        pass

    async def main():
        transport, protocol = await asyncio.get_running_loop().create_datagram_endpoint(
            Datagrams, sock=socket_pair_that_is_full(owned)
        )
        transport.sendto(bytes(2000))
        assert elsewhere(transport.get_write_buffer_size) >= 2000
        elsewhere(lambda: transport.set_write_buffer_limits(high=1000))
        assert protocol.threads == []
        transport.sendto(b"x")
        assert protocol.threads == [threading.get_ident()]
        transport.abort()
        await asyncio.sleep(0)

    run(main())


def socket_pair_that_is_full(owned):
    """A datagram socket whose peer takes no more."""
    ours, peer = map(owned, socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM))
    ours.setblocking(False)
    with pytest.raises(BlockingIOError):
        while True:
            ours.send(bytes(1000))
    assert peer.fileno() >= 0
    return ours


@pytest.mark.netpoll_only("nothing waits for the end of a turn in asyncio")
def test_another_thread_that_asks_what_waits_sends_nothing(run, socket_pair):
    def system_calls(loop):
        return netpoll_loop.stats(loop).inline_syscalls

    async def main():
        loop = asyncio.get_running_loop()
        ours, _ = socket_pair()
        transport, _ = await loop.create_connection(asyncio.Protocol, sock=ours)
        # The second large write of a callback waits for the end of the turn, in auto. (Or for the netpoller.)
        transport.write(bytes(40_000))
        transport.write(bytes(40_000))
        before = system_calls(loop)
        elsewhere(transport.get_write_buffer_size)
        assert system_calls(loop) == before
        transport.abort()
        await asyncio.sleep(0)

    run(main())


@pytest.mark.skipif(not FREE_THREADED, reason="one thread at a time runs with a GIL")
@pytest.mark.parametrize("chaos", ["0", "1"])
def test_other_threads_ask_transports_that_write_all_the_time(run_child, chaos):
    """They crashed the process."""
    done = run_child(
        """
        import threading
        asked = [0, 0]
        stop = threading.Event()
        transports = []
        def ask(i):
            while not stop.is_set():
                for transport in list(transports):
                    transport.get_write_buffer_size()
                    transport.set_write_buffer_limits(high=100_000)
                    repr(transport)
                    asked[i] += 1
        async def main():
            loop = asyncio.get_running_loop()
            server = await loop.create_server(asyncio.Protocol, "127.0.0.1", 0)
            address = server.sockets[0].getsockname()
            for _ in range(20):
                transports.append((await loop.create_connection(asyncio.Protocol, *address))[0])
            threads = [threading.Thread(target=ask, args=(i,)) for i in range(2)]
            for thread in threads:
                thread.start()
            for turn in range(300):
                for transport in transports:
                    for _ in range(5):
                        transport.write(b"%d" % turn * 200)
                await asyncio.sleep(0)
            for transport in transports:
                transport.abort()
            await asyncio.sleep(0)
            stop.set()
            for thread in threads:
                thread.join(10)
            server.close()
        run_main(main())
        print(all(asked))
        """,
        env={"NETPOLL_LOOP_CHAOS": chaos, "PYTHON_GIL": "0"},
    )
    assert done.stdout == "True\n"


@pytest.mark.skipif(not FREE_THREADED, reason="one thread at a time runs with a GIL")
def test_other_threads_ask_transports_whose_connections_end(run_child):
    """What they asked for was freed under them."""
    done = run_child(
        """
        import socket, threading
        asked = [0, 0, 0]
        failures = []
        stop = threading.Event()
        transports = []
        def ask(i):
            try:
                while not stop.is_set():
                    for transport in list(transports):
                        for _ in range(20):
                            transport.get_protocol()
                            transport._protocol
                            transport._loop
                            transport._sock
                            repr(transport)
                            asked[i] += 1
            except BaseException as exc:
                failures.append(exc)
        async def main():
            loop = asyncio.get_running_loop()
            loop.set_exception_handler(lambda loop, context: failures.append(context))
            threads = [threading.Thread(target=ask, args=(i,)) for i in range(3)]
            for thread in threads:
                thread.start()
            for _ in range(300):
                pairs = [socket.socketpair() for _ in range(16)]
                for ours, peer in pairs:
                    ours.setblocking(False)
                made = [(await loop.create_connection(asyncio.Protocol, sock=ours))[0] for ours, _ in pairs]
                transports[:] = made
                await asyncio.sleep(0)
                for transport in made:
                    transport.abort()
                for _ in range(3):
                    await asyncio.sleep(0)
                for _, peer in pairs:
                    peer.close()
            stop.set()
            for thread in threads:
                thread.join(10)
        run_main(main())
        print(all(asked), failures)
        """,
        env={"PYTHON_GIL": "0"},
    )
    assert done.stdout == "True []\n"
