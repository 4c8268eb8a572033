"""What other threads may ask of a transport, or do to a loop, while the loop's own thread runs."""

import asyncio
import gc
import os
import socket
import sysconfig
import threading

import pytest

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


# --- the socket of a connection that has none ---------------------------------------------------------------------------


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
