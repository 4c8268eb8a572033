"""Arguments that asyncio takes on some Pythons only, and uvloop on all: taken on all here."""

import asyncio
import os
import socket
import sys
import warnings

import pytest

pytestmark = pytest.mark.netpoll_only("asyncio takes them on some versions only")


def test_a_datagram_endpoint_never_reuses_an_address(run, loop):
    async def main():
        with pytest.raises(ValueError, match="`reuse_address=True` is no longer supported"):
            await loop.create_datagram_endpoint(
                asyncio.DatagramProtocol, local_addr=("127.0.0.1", 0), reuse_address=True
            )
        with pytest.warns(DeprecationWarning, match=r"\*reuse_address\* parameter has been deprecated"):
            transport, _ = await loop.create_datagram_endpoint(
                asyncio.DatagramProtocol, local_addr=("127.0.0.1", 0), reuse_address=False
            )
        assert not transport.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)
        transport.close()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            transport, _ = await loop.create_datagram_endpoint(asyncio.DatagramProtocol, local_addr=("127.0.0.1", 0))
        transport.close()
        with pytest.raises(TypeError, match="no_such_argument"):
            await loop.create_datagram_endpoint(
                asyncio.DatagramProtocol, local_addr=("127.0.0.1", 0), no_such_argument=1
            )

    run(main())


@pytest.mark.parametrize("given", ["path", "sock"])
@pytest.mark.parametrize("cleanup", [True, False, None])
def test_the_path_of_a_unix_server_is_unlinked_when_it_closes(run, loop, tmp_path, given, cleanup):
    path = str(tmp_path / "server")
    options = {} if cleanup is None else {"cleanup_socket": cleanup}
    if cleanup is None:
        cleanup = sys.version_info >= (3, 13)

    async def main():
        if given == "path":
            server = await loop.create_unix_server(asyncio.Protocol, path, **options)
        else:
            sock = socket.socket(socket.AF_UNIX)
            sock.bind(path)
            server = await loop.create_unix_server(asyncio.Protocol, sock=sock, **options)
        assert os.path.exists(path)
        server.close()
        await server.wait_closed()
        assert os.path.exists(path) is not cleanup

    run(main())


def test_a_path_that_another_socket_has_taken_stays(run, loop, tmp_path):
    path = str(tmp_path / "server")

    async def main():
        server = await loop.create_unix_server(asyncio.Protocol, path, cleanup_socket=True)
        os.rename(path, path + ".moved")
        successor = socket.socket(socket.AF_UNIX)
        successor.bind(path)
        server.close()
        await server.wait_closed()
        assert os.path.exists(path)
        successor.close()

    run(main())


def test_a_unix_server_without_a_path_or_whose_path_is_gone_closes_quietly(run, loop, tmp_path, caplog):
    path = str(tmp_path / "server")

    async def main():
        abstract = await loop.create_unix_server(asyncio.Protocol, f"\0netpoll_loop-{os.getpid()}", cleanup_socket=True)
        server = await loop.create_unix_server(asyncio.Protocol, path, cleanup_socket=True)
        os.unlink(path)
        for each in (abstract, server):
            each.close()
            await each.wait_closed()
        assert not caplog.records

    run(main())


@pytest.mark.skipif(sys.version_info < (3, 13), reason="asyncio's create_task() takes no other keywords there")
def test_create_task_takes_eager_start(run, loop):
    async def coro():
        return "eager"

    seen = []

    def factory(loop, coro, **kwargs):
        seen.append(set(kwargs))
        return asyncio.Task(coro, loop=loop, **kwargs)

    async def main():
        task = loop.create_task(coro(), eager_start=True, name="it")
        assert task.done() and task.result() == "eager" and task.get_name() == "it"
        loop.set_task_factory(factory)
        task = loop.create_task(coro(), eager_start=True)
        assert task.done() and seen[-1] >= {"eager_start"}
        with pytest.raises(TypeError):
            loop.create_task(coro_ := coro(), no_such_argument=1)
        coro_.close()

    run(main())
