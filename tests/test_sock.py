"""`sock_*`: every method on data, end, errors, cancellation, several waiters, and sockets that go away."""

import array
import asyncio
import contextlib
import errno
import io
import itertools
import os
import random
import socket
import ssl
import struct
import threading

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

MIB = 1 << 20


async def settle():
    """Time enough, in every mode, for something wrong to happen."""
    for _ in range(5):
        await asyncio.sleep(0)
    await asyncio.sleep(0.03)


async def receive_all(loop, sock, chunk=65536):
    data = bytearray()
    while part := await loop.sock_recv(sock, chunk):
        data += part
    return bytes(data)


def fill(sock):
    """Sends until the kernel takes no more; how much that was."""
    sent = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            sent += sock.send(bytes(65536))
    return sent


@pytest.fixture(params=["unix", "tcp"])
def pair(request, socket_pair, tcp_pair):
    """A connected pair of stream sockets, non-blocking."""
    return socket_pair() if request.param == "unix" else tcp_pair()


@pytest.fixture
def udp(owned):
    """Factory of bound UDP sockets on loopback."""

    def factory():
        sock = owned(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        sock.bind(("127.0.0.1", 0))
        sock.setblocking(False)
        return sock

    return factory


# --- sock_recv, sock_recv_into ----------------------------------------------------------------------------------------


def test_recv_takes_data_that_is_there(run, loop, pair):
    ours, theirs = pair
    theirs.send(b"hello")

    async def main():
        assert await loop.sock_recv(ours, 100) == b"hello"

    run(main())


def test_recv_waits_for_data(run, loop, pair):
    ours, theirs = pair

    async def main():
        task = asyncio.create_task(loop.sock_recv(ours, 100))
        await settle()
        assert not task.done()
        theirs.send(b"late")
        assert await task == b"late"

    run(main())


def test_recv_takes_no_more_than_asked(run, loop, pair):
    ours, theirs = pair
    theirs.send(b"abcdef")

    async def main():
        assert [await loop.sock_recv(ours, n) for n in (1, 2, 3)] == [b"a", b"bc", b"def"]

    run(main())


def test_recv_of_zero_bytes_is_empty_at_once_or_when_readable_as_in_asyncio(run, loop, stock_loop, socket_pair):
    async def answer(loop):
        ours, theirs = socket_pair()
        theirs.send(b"x")
        return await loop.sock_recv(ours, 0), await loop.sock_recv(ours, 5)

    assert run(answer(loop)) == run(answer(stock_loop), on=stock_loop)


def test_recv_of_zero_bytes_waits_for_nothing_and_nobody(run, loop, stock_loop, pair):
    async def answer(loop):
        ours, theirs = pair
        empty = [await loop.sock_recv(ours, 0), await loop.sock_recv_into(ours, bytearray())]
        waiting = asyncio.create_task(loop.sock_recv(ours, 5))
        await settle()
        empty += [await loop.sock_recv(ours, 0), await loop.sock_recv_into(ours, bytearray())]
        theirs.send(b"data")
        return empty, await waiting

    assert run(answer(loop)) == run(answer(stock_loop), on=stock_loop) == ([b"", 0, b"", 0], b"data")


@pytest.mark.parametrize("kind", ["unix datagrams", "udp", "packets", "descriptors beside the bytes", "urgent"])
@pytest.mark.parametrize("receive", ["sock_recv", "sock_recv_into", "sock_recvfrom"])
def test_what_one_recv_leaves_is_there_for_the_next(run, loop, owned, udp, tcp_pair, kind, receive):
    # Their reads end at a border, not only where there is no more: no event comes for what is behind it.
    pieces = [b"%d" % i for i in range(5)]
    if kind == "udp":
        ours, theirs = udp(), udp()
        theirs.connect(ours.getsockname())
    elif kind == "urgent":
        ours, theirs = tcp_pair()
    else:
        of_kind = {"unix datagrams": socket.SOCK_DGRAM, "packets": socket.SOCK_SEQPACKET}
        ours, theirs = map(owned, socket.socketpair(socket.AF_UNIX, of_kind.get(kind, socket.SOCK_STREAM)))
        ours.setblocking(False)

    async def next_piece():
        if receive == "sock_recv_into":
            buffer = bytearray(100)
            return bytes(buffer[: await loop.sock_recv_into(ours, buffer)])
        return await loop.sock_recv(ours, 100) if receive == "sock_recv" else (await loop.sock_recvfrom(ours, 100))[0]

    async def main():
        first = asyncio.create_task(loop.sock_recv(ours, 100))
        await settle()
        for number, piece in enumerate(pieces):
            if kind == "urgent":
                theirs.send(piece, socket.MSG_OOB if number == 2 else 0)
            elif kind == "descriptors beside the bytes":
                socket.send_fds(theirs, [piece], [theirs.fileno()])
            else:
                theirs.send(piece)
        data = await first
        while len(data) < (4 if kind == "urgent" else 5):
            data += await next_piece()
        assert data == (b"0134" if kind == "urgent" else b"01234")

    run(main())


def test_recv_answers_empty_at_the_end_and_again(run, loop, pair):
    ours, theirs = pair

    async def main():
        task = asyncio.create_task(loop.sock_recv(ours, 100))
        await settle()
        theirs.shutdown(socket.SHUT_WR)
        assert await task == b""
        assert await loop.sock_recv(ours, 100) == b""

    run(main())


def test_recv_delivers_data_before_the_end(run, loop, pair):
    ours, theirs = pair
    theirs.send(b"last")
    theirs.close()

    async def main():
        assert await loop.sock_recv(ours, 100) == b"last"
        assert await loop.sock_recv(ours, 100) == b""

    run(main())


@pytest.mark.parametrize("waiting", [False, True])
def test_recv_raises_when_the_peer_resets(run, loop, tcp_pair, waiting):
    ours, theirs = tcp_pair()

    async def main():
        if waiting:
            task = asyncio.create_task(loop.sock_recv(ours, 100))
            await settle()
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        theirs.close()
        with pytest.raises(ConnectionResetError):
            await (task if waiting else loop.sock_recv(ours, 100))

    run(main())


@pytest.mark.parametrize("waiting", [False, True])
@pytest.mark.parametrize("kind", [bytearray, lambda n: memoryview(bytearray(n)), "array"])
def test_recv_into_fills_a_buffer(run, loop, pair, waiting, kind):
    ours, theirs = pair
    buffer = array.array("B", bytes(10)) if kind == "array" else kind(10)

    async def main():
        if waiting:
            task = asyncio.create_task(loop.sock_recv_into(ours, buffer))
            await settle()
        theirs.send(b"hello")
        assert await (task if waiting else loop.sock_recv_into(ours, buffer)) == 5
        assert bytes(buffer) == b"hello" + bytes(5)
        theirs.send(b"more than ten bytes")
        assert await loop.sock_recv_into(ours, buffer) == 10
        assert bytes(buffer) == b"more than "

    run(main())


def test_recv_into_answers_zero_at_the_end(run, loop, pair):
    ours, theirs = pair

    async def main():
        task = asyncio.create_task(loop.sock_recv_into(ours, bytearray(5)))
        await settle()
        theirs.close()
        assert await task == 0

    run(main())


def test_recv_into_releases_the_buffer(run, loop, pair):
    ours, theirs = pair

    async def main():
        for waiting in (False, True):
            buffer = bytearray(5)
            if not waiting:
                theirs.send(b"x")
            task = asyncio.create_task(loop.sock_recv_into(ours, buffer))
            await settle()
            if waiting:
                theirs.send(b"x")
            await task
            buffer.extend(b"a buffer that is exported could not grow")
        buffer = bytearray(5)
        task = asyncio.create_task(loop.sock_recv_into(ours, buffer))
        await settle()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        buffer.extend(b"x")

    run(main())


# --- sock_recvfrom, sock_recvfrom_into, sock_sendto -------------------------------------------------------------------


@pytest.mark.parametrize("waiting", [False, True])
def test_recvfrom_and_recvfrom_into_tell_data_and_sender(run, loop, udp, waiting):
    a, b = udp(), udp()

    async def main():
        for into in (False, True):
            buffer = bytearray(100)
            receive = loop.sock_recvfrom_into(a, buffer) if into else loop.sock_recvfrom(a, 100)
            if waiting:
                receive = asyncio.create_task(receive)
                await settle()
            assert await loop.sock_sendto(b, b"datagram", a.getsockname()) == 8
            data, sender = await receive
            if into:
                data = bytes(buffer[:data])
            assert (data, sender) == (b"datagram", b.getsockname())

    run(main())


def test_recvfrom_into_takes_no_more_than_asked(run, loop, udp):
    a, b = udp(), udp()

    async def main():
        buffer = bytearray(100)
        await loop.sock_sendto(b, b"0123456789", a.getsockname())
        assert await loop.sock_recvfrom_into(a, buffer, 4) == (4, b.getsockname())
        assert bytes(buffer[:5]) == b"0123\0"
        await loop.sock_sendto(b, b"0123456789", a.getsockname())
        assert (await loop.sock_recvfrom_into(a, buffer))[0] == 10

    run(main())


def test_recvfrom_takes_empty_datagrams(run, loop, udp):
    a, b = udp(), udp()

    async def main():
        for waiting in (False, True):
            task = asyncio.create_task(loop.sock_recvfrom(a, 100))
            if waiting:
                await settle()
            await loop.sock_sendto(b, b"", a.getsockname())
            assert await task == (b"", b.getsockname())

    run(main())


def test_sendto_takes_any_buffer_and_raises_what_the_kernel_says(run, loop, udp):
    a, b = udp(), udp()

    async def main():
        for data in (b"x", bytearray(b"x"), memoryview(b"x")):
            assert await loop.sock_sendto(b, data, a.getsockname()) == 1
            assert (await loop.sock_recvfrom(a, 10))[0] == b"x"
        with pytest.raises(OSError) as caught:
            await loop.sock_sendto(b, bytes(100_000), a.getsockname())
        assert caught.value.errno == errno.EMSGSIZE

    run(main())


def test_sendto_waits_for_room(run, loop, owned, tmp_path):
    """Over unix sockets, for UDP drops instead."""
    receiver, sender = (owned(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) for _ in range(2))
    receiver.bind(str(tmp_path / "r"))
    for sock in (receiver, sender):
        sock.setblocking(False)

    async def main():
        sent = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                sender.sendto(b"x", str(tmp_path / "r"))
                sent += 1
        task = asyncio.create_task(loop.sock_sendto(sender, b"last", str(tmp_path / "r")))
        await settle()
        for _ in range(sent):
            assert receiver.recv(10) == b"x"
            await asyncio.sleep(0)
        assert await task == 4
        assert await loop.sock_recv(receiver, 10) == b"last"

    run(main())


# --- sock_sendall -----------------------------------------------------------------------------------------------------


def test_sendall_of_little_is_sent_at_once(run, loop, pair):
    ours, theirs = pair

    async def main():
        assert await loop.sock_sendall(ours, b"hello") is None
        assert await loop.sock_recv(theirs, 100) == b"hello"

    run(main())


@pytest.mark.parametrize(
    "kind",
    [
        bytes,
        bytearray,
        memoryview,
        pytest.param(
            lambda data: memoryview(data).cast("I"),
            marks=pytest.mark.not_on_oracle("stock asyncio takes the sent bytes for items"),
            id="memoryview-of-ints",
        ),
    ],
)
def test_sendall_takes_any_buffer(run, loop, pair, kind):
    ours, theirs = pair
    data = os.urandom(4 * MIB)

    async def main():
        receiver = asyncio.create_task(receive_all(loop, theirs))
        await loop.sock_sendall(ours, kind(data))
        ours.shutdown(socket.SHUT_WR)
        assert await receiver == data

    run(main())


def test_sendall_of_nothing_is_done(run, loop, pair):
    ours, _theirs = pair

    async def main():
        assert await loop.sock_sendall(ours, b"") is None
        fill(ours)
        assert await loop.sock_sendall(ours, b"") is None

    run(main())


def test_sendall_of_10_mib_in_both_directions_against_slow_readers(run, loop, pair):
    a, b = pair
    data = {a: os.urandom(10 * MIB), b: os.urandom(10 * MIB)}

    async def send(sock):
        await loop.sock_sendall(sock, data[sock])
        sock.shutdown(socket.SHUT_WR)

    async def receive(sock):
        got = bytearray()
        rng = random.Random(3)
        while part := await loop.sock_recv(sock, rng.randrange(1, 300_000)):
            got += part
            if rng.random() < 0.2:
                await asyncio.sleep(0.0005)
        return got

    async def main():
        _, _, at_a, at_b = await asyncio.gather(send(a), send(b), receive(a), receive(b))
        assert at_a == data[b]
        assert at_b == data[a]

    run(main(), timeout=40)


def test_sendall_raises_when_the_peer_is_gone(run, loop, pair):
    ours, theirs = pair

    async def main():
        theirs.close()
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            for _ in range(3):
                await loop.sock_sendall(ours, b"x")
                await settle()

    run(main())


def test_a_waiting_sendall_raises_when_the_peer_goes(run, loop, pair):
    ours, theirs = pair

    async def main():
        task = asyncio.create_task(loop.sock_sendall(ours, bytes(20 * MIB)))
        await settle()
        assert not task.done()
        theirs.close()
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            await task

    run(main())


def test_cancelling_a_sendall_in_the_middle_stops_it_and_leaves_the_socket_usable(run, loop, pair):
    ours, theirs = pair
    data = os.urandom(20 * MIB)

    async def main():
        task = asyncio.create_task(loop.sock_sendall(ours, data))
        await settle()
        assert not task.done()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        receiver = asyncio.create_task(receive_all(loop, theirs))
        await settle()
        await loop.sock_sendall(ours, b"END")
        ours.shutdown(socket.SHUT_WR)
        got = await receiver
        # A prefix of the data, then only what was sent afterwards.
        assert got[-3:] == b"END"
        assert len(got) < len(data)
        assert got[:-3] == data[: len(got) - 3]

    run(main(), timeout=30)


def test_sendall_and_recv_on_one_socket_do_not_disturb_each_other(run, loop, pair):
    ours, theirs = pair

    async def main():
        receiving = asyncio.create_task(loop.sock_recv(ours, 100))
        sending = asyncio.create_task(loop.sock_sendall(ours, bytes(20 * MIB)))
        await settle()
        receiving.cancel()
        await settle()
        assert receiving.cancelled() and not sending.done()
        receiving = asyncio.create_task(loop.sock_recv(ours, 100))
        await settle()
        sending.cancel()
        await settle()
        theirs.send(b"still")
        assert await receiving == b"still"

    run(main())


# --- sock_connect -----------------------------------------------------------------------------------------------------


def test_connect_to_a_tcp_listener(run, loop, listener, owned):
    server = listener()
    sock = owned(socket.socket())
    sock.setblocking(False)

    async def main():
        assert await loop.sock_connect(sock, server.getsockname()) is None
        assert sock.getpeername() == server.getsockname()

    run(main())


def test_connect_over_ipv6(run, loop, owned):
    try:
        server = owned(socket.create_server(("::1", 0), family=socket.AF_INET6))
    except OSError as exc:
        pytest.skip(f"no IPv6 loopback: {exc}")
    sock = owned(socket.socket(socket.AF_INET6))
    sock.setblocking(False)

    async def main():
        await loop.sock_connect(sock, server.getsockname())
        assert sock.getpeername()[:2] == server.getsockname()[:2]

    run(main())


def test_connect_resolves_a_host_name(run, loop, listener, owned):
    server = listener()
    sock = owned(socket.socket())
    sock.setblocking(False)

    async def main():
        await loop.sock_connect(sock, ("localhost", server.getsockname()[1]))
        assert sock.getpeername() == server.getsockname()

    run(main())


def test_connect_to_a_unix_socket(run, loop, owned, tmp_path):
    server = owned(socket.socket(socket.AF_UNIX))
    server.bind(str(tmp_path / "s"))
    server.listen(1)
    for address in (str(tmp_path / "s"), os.fsencode(tmp_path / "s")):
        sock = owned(socket.socket(socket.AF_UNIX))
        sock.setblocking(False)

        async def main(sock=sock, address=address):
            await loop.sock_connect(sock, address)
            sock.getpeername()

        run(main())
        server.accept()[0].close()


@pytest.mark.not_on_oracle("stock asyncio takes EAGAIN for EINPROGRESS and reports success without a connection")
def test_connect_to_a_unix_listener_that_is_full_does_not_report_success(run, loop, owned, tmp_path):
    server = owned(socket.socket(socket.AF_UNIX))
    server.bind(str(tmp_path / "s"))
    server.listen(0)

    async def main():
        with contextlib.suppress(BlockingIOError, TimeoutError):
            for _ in range(10):
                sock = owned(socket.socket(socket.AF_UNIX))
                sock.setblocking(False)
                async with asyncio.timeout(0.3):
                    await loop.sock_connect(sock, str(tmp_path / "s"))
                sock.getpeername()

    run(main())


def test_a_refused_connect_raises(run, loop, free_port, owned):
    port = free_port()
    sock = owned(socket.socket())
    sock.setblocking(False)

    async def main():
        with pytest.raises(ConnectionRefusedError) as caught:
            await loop.sock_connect(sock, ("127.0.0.1", port))
        assert str(caught.value) in (
            f"[Errno 111] Connect call failed ('127.0.0.1', {port})",
            "[Errno 111] Connection refused",
        )

    run(main())


def test_a_missing_unix_socket_raises(run, loop, owned, tmp_path):
    sock = owned(socket.socket(socket.AF_UNIX))
    sock.setblocking(False)

    async def main():
        with pytest.raises(FileNotFoundError):
            await loop.sock_connect(sock, str(tmp_path / "nothing"))
        (tmp_path / "file").write_bytes(b"")
        with pytest.raises(ConnectionRefusedError):
            await loop.sock_connect(sock, str(tmp_path / "file"))

    run(main())


def test_an_unknown_host_raises(run, loop, owned):
    sock = owned(socket.socket())
    sock.setblocking(False)

    async def main():
        with pytest.raises(socket.gaierror):
            await loop.sock_connect(sock, ("no-such-host.invalid", 80))

    run(main())


def test_connecting_twice_raises_what_asyncio_raises(run, loop, stock_loop, listener, owned):
    server = listener()

    async def answer(loop):
        sock = owned(socket.socket())
        sock.setblocking(False)
        answers = []
        for _ in range(3):  # Linux answers the first connect after one that had to wait with success
            try:
                answers.append(await loop.sock_connect(sock, server.getsockname()))
            except OSError as exc:
                answers.append((type(exc), exc.errno))
        return answers

    assert run(answer(loop)) == run(answer(stock_loop), on=stock_loop) == [None, None, (OSError, errno.EISCONN)]


def test_a_cancelled_connect_can_be_followed_by_the_sockets_close(run, loop, owned):
    """A listener that never accepts and whose queue is full keeps the connect waiting."""
    server = owned(socket.socket())
    server.bind(("127.0.0.1", 0))
    server.listen(0)
    waiting = []
    for _ in range(4):
        sock = owned(socket.socket())
        sock.setblocking(False)
        sock.connect_ex(server.getsockname())
        waiting.append(sock)

    async def main():
        sock = owned(socket.socket())
        sock.setblocking(False)
        task = asyncio.create_task(loop.sock_connect(sock, server.getsockname()))
        await settle()
        assert not task.done()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert loop.remove_writer(sock) is False
        sock.close()
        a, b = socket.socketpair()
        with a, b:
            a.setblocking(False)
            b.send(b"x")
            assert await loop.sock_recv(a, 10) == b"x"

    run(main())


def test_connect_on_a_datagram_socket_sets_the_peer(run, loop, udp):
    a, b = udp(), udp()

    async def main():
        await loop.sock_connect(a, b.getsockname())
        await loop.sock_sendall(a, b"x")
        assert await loop.sock_recvfrom(b, 10) == (b"x", a.getsockname())

    run(main())


# --- sock_accept ------------------------------------------------------------------------------------------------------


def test_accept_answers_a_non_blocking_socket_and_an_address(run, loop, listener, owned):
    server = listener()

    async def main():
        for waiting in (False, True):
            task = asyncio.create_task(loop.sock_accept(server))
            if waiting:
                await settle()
            client = owned(socket.create_connection(server.getsockname()))
            conn, address = await task
            owned(conn)
            assert type(conn) is socket.socket
            assert conn.gettimeout() == 0.0
            assert address == client.getsockname()
            assert conn.getsockname() == client.getpeername()
            assert conn.get_inheritable() is False
            client.send(b"x")
            assert await loop.sock_recv(conn, 10) == b"x"

    run(main())


def test_accept_on_a_unix_listener(run, loop, owned, tmp_path):
    server = owned(socket.socket(socket.AF_UNIX))
    server.bind(str(tmp_path / "s"))
    server.listen(5)
    server.setblocking(False)

    async def main():
        task = asyncio.create_task(loop.sock_accept(server))
        await settle()
        client = owned(socket.socket(socket.AF_UNIX))
        client.connect(str(tmp_path / "s"))
        conn, address = await task
        owned(conn)
        assert conn.family == socket.AF_UNIX
        assert address == ""

    run(main())


def test_accept_on_ipv6_tells_all_of_the_address(run, loop, owned):
    try:
        server = owned(socket.create_server(("::1", 0), family=socket.AF_INET6))
    except OSError as exc:
        pytest.skip(f"no IPv6 loopback: {exc}")
    server.setblocking(False)

    async def main():
        client = owned(socket.create_connection(server.getsockname()[:2]))
        conn, address = await loop.sock_accept(server)
        owned(conn)
        assert address == client.getsockname()
        assert len(address) == 4

    run(main())


def test_accept_of_many_loses_none(run, loop, listener, owned):
    server = listener(backlog=256)
    count = 150

    async def main():
        async def accept():
            return [await loop.sock_accept(server) for _ in range(count)]

        async def connect():
            sock = owned(socket.socket())
            sock.setblocking(False)
            await loop.sock_connect(sock, server.getsockname())
            return sock.getsockname()

        accepted, *names = await asyncio.gather(accept(), *(connect() for _ in range(count)))
        for conn, _ in accepted:
            owned(conn)
        assert sorted(address for _, address in accepted) == sorted(names)

    run(main())


@pytest.mark.not_on_oracle("stock asyncio keeps one waiter for each direction: a second one replaces the first")
def test_several_coroutines_accept_on_one_listener(run, loop, listener, owned):
    server = listener()

    async def main():
        tasks = [asyncio.create_task(loop.sock_accept(server)) for _ in range(5)]
        clients = []
        for _ in range(5):
            await asyncio.sleep(0.001)
            clients.append(owned(socket.create_connection(server.getsockname())))
        accepted = await asyncio.gather(*tasks)
        for conn, _ in accepted:
            owned(conn)
        assert {address for _, address in accepted} == {client.getsockname() for client in clients}

    run(main())


def test_a_cancelled_accept_loses_no_connection(run, loop, listener, owned):
    server = listener()

    async def main():
        for _ in range(20):
            task = asyncio.create_task(loop.sock_accept(server))
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()
        client = owned(socket.create_connection(server.getsockname()))
        conn, address = await loop.sock_accept(server)
        owned(conn)
        assert address == client.getsockname()

    run(main())


def test_accept_on_a_socket_that_does_not_listen_raises(run, loop, owned):
    sock = owned(socket.socket())
    sock.setblocking(False)

    async def main():
        with pytest.raises(OSError) as caught:
            await loop.sock_accept(sock)
        assert caught.value.errno == errno.EINVAL

    run(main())


# --- sock_sendfile ----------------------------------------------------------------------------------------------------


@pytest.fixture
def big_file(tmp_path):
    data = os.urandom(3 * MIB + 12345)
    (tmp_path / "big").write_bytes(data)
    return tmp_path / "big", data


@pytest.mark.parametrize("fallback", [True, False])
@pytest.mark.parametrize(
    ("offset", "count"), [(0, None), (5, None), (0, 10), (1_000_000, 1_500_000), (MIB, 100 * MIB), (3 * MIB, 1)]
)
def test_sendfile_sends_from_offset_count_bytes(run, loop, pair, big_file, offset, count, fallback):
    ours, theirs = pair
    path, data = big_file
    expected = data[offset:] if count is None else data[offset : offset + count]

    async def main():
        receiver = asyncio.create_task(receive_all(loop, theirs, 1 << 18))
        with open(path, "rb") as file:
            assert await loop.sock_sendfile(ours, file, offset, count, fallback=fallback) == len(expected)
            assert file.tell() == offset + len(expected)
        ours.shutdown(socket.SHUT_WR)
        assert await receiver == expected

    run(main())


def test_sendfile_of_nothing_sends_nothing(run, loop, pair, tmp_path):
    ours, _theirs = pair
    (tmp_path / "empty").write_bytes(b"")

    async def main():
        with open(tmp_path / "empty", "rb") as file:
            assert await loop.sock_sendfile(ours, file) == 0
        with open(__file__, "rb") as file:
            assert await loop.sock_sendfile(ours, file, 10**9) == 0

    run(main())


def test_sendfile_falls_back_for_what_has_no_descriptor(run, loop, pair):
    ours, theirs = pair
    data = os.urandom(MIB)

    async def main():
        receiver = asyncio.create_task(receive_all(loop, theirs))
        assert await loop.sock_sendfile(ours, io.BytesIO(data), 10, 100_000) == 100_000
        with pytest.raises(asyncio.SendfileNotAvailableError):
            await loop.sock_sendfile(ours, io.BytesIO(data), fallback=False)
        ours.shutdown(socket.SHUT_WR)
        assert await receiver == data[10:100_010]

    run(main())


def test_sendfile_raises_when_the_peer_goes(run, loop, pair, tmp_path):
    ours, theirs = pair
    with open(tmp_path / "sparse", "wb") as file:
        file.truncate(200 * MIB)

    async def main():
        with open(tmp_path / "sparse", "rb") as file:
            task = asyncio.create_task(loop.sock_sendfile(ours, file))
            await settle()
            assert not task.done()
            theirs.close()
            with pytest.raises((BrokenPipeError, ConnectionResetError)):
                await task

    run(main())


def test_a_cancelled_sendfile_leaves_the_socket_usable(run, loop, pair, tmp_path):
    ours, theirs = pair
    with open(tmp_path / "sparse", "wb") as file:
        file.truncate(200 * MIB)

    async def main():
        with open(tmp_path / "sparse", "rb") as file:
            task = asyncio.create_task(loop.sock_sendfile(ours, file))
            await settle()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        receiver = asyncio.create_task(receive_all(loop, theirs))
        await settle()
        await loop.sock_sendall(ours, b"END")
        ours.shutdown(socket.SHUT_WR)
        got = await receiver
        assert got.endswith(b"END") and len(got) < 200 * MIB
        assert not got[:-3].strip(b"\0")

    run(main())


# --- bad arguments ----------------------------------------------------------------------------------------------------

#: Each method with arguments that would be right.
CALLS = {
    "sock_recv": lambda loop, sock: loop.sock_recv(sock, 10),
    "sock_recv_into": lambda loop, sock: loop.sock_recv_into(sock, bytearray(10)),
    "sock_recvfrom": lambda loop, sock: loop.sock_recvfrom(sock, 10),
    "sock_recvfrom_into": lambda loop, sock: loop.sock_recvfrom_into(sock, bytearray(10)),
    "sock_sendall": lambda loop, sock: loop.sock_sendall(sock, b"x"),
    "sock_sendto": lambda loop, sock: loop.sock_sendto(sock, b"x", ("127.0.0.1", 9)),
    "sock_connect": lambda loop, sock: loop.sock_connect(sock, ("127.0.0.1", 9)),
    "sock_accept": lambda loop, sock: loop.sock_accept(sock),
    "sock_sendfile": lambda loop, sock: loop.sock_sendfile(sock, open(__file__, "rb")),
}


@pytest.fixture(params=CALLS)
def call(request):
    return CALLS[request.param]


async def answer_of(awaitable):
    """Type, text and errno of what it raises; the result's type when it raises nothing."""
    try:
        return type(await awaitable)
    except Exception as exc:
        return type(exc), str(exc), getattr(exc, "errno", None)


def test_in_debug_a_blocking_socket_is_refused(run, loop, stock_loop, call):
    def answer(loop):
        loop.set_debug(True)
        with socket.socket() as sock:
            return run(answer_of(call(loop, sock)), on=loop)

    assert answer(loop) == answer(stock_loop) == (ValueError, "the socket must be non-blocking", None)


def test_a_tls_socket_is_refused(run, loop, stock_loop, call, socket_pair):
    context = ssl.create_default_context()
    context.check_hostname = False

    def answer(loop):
        ours, _ = socket_pair()
        with context.wrap_socket(ours, do_handshake_on_connect=False) as sock:
            return run(answer_of(call(loop, sock)), on=loop)

    ours, stock = answer(loop), answer(stock_loop)
    assert ours == stock
    if call is not CALLS["sock_sendfile"]:
        assert ours[:2] == (TypeError, "Socket cannot be of type SSLSocket")


@pytest.mark.parametrize("wrong", [None, 5, "text", object()], ids=["None", "int", "str", "object"])
def test_what_is_no_socket_raises_what_asyncio_raises(run, loop, stock_loop, call, wrong):
    stock = run(answer_of(call(stock_loop, wrong)), on=stock_loop)
    ours = run(answer_of(call(loop, wrong)))
    assert ours[0] is stock[0]
    assert ours[1] == stock[1]


def test_a_closed_socket_raises_what_asyncio_raises(run, loop, stock_loop, call):
    def answer(loop):
        sock = socket.socket()
        sock.setblocking(False)
        sock.close()
        return run(answer_of(call(loop, sock)), on=loop)

    assert answer(loop) == answer(stock_loop)


@pytest.mark.parametrize(
    "wrong_call",
    [
        lambda loop, sock: loop.sock_recv(sock, "10"),
        lambda loop, sock: loop.sock_recv(sock, -1),
        lambda loop, sock: loop.sock_recv(sock, None),
        lambda loop, sock: loop.sock_recv(sock, 2**70),
        lambda loop, sock: loop.sock_recv_into(sock, b"read-only"),
        lambda loop, sock: loop.sock_recv_into(sock, 5),
        lambda loop, sock: loop.sock_recv_into(sock, "text"),
        lambda loop, sock: loop.sock_recvfrom(sock, -1),
        lambda loop, sock: loop.sock_recvfrom(sock, "1"),
        lambda loop, sock: loop.sock_recvfrom_into(sock, b"read-only"),
        lambda loop, sock: loop.sock_recvfrom_into(sock, bytearray(5), 10),
        lambda loop, sock: loop.sock_recvfrom_into(sock, bytearray(5), -1),
        lambda loop, sock: loop.sock_sendall(sock, "text"),
        lambda loop, sock: loop.sock_sendall(sock, None),
        lambda loop, sock: loop.sock_sendall(sock, [1, 2]),
        lambda loop, sock: loop.sock_sendto(sock, "text", ("127.0.0.1", 9)),
        lambda loop, sock: loop.sock_sendto(sock, b"x", None),
        lambda loop, sock: loop.sock_sendto(sock, b"x", 5),
        lambda loop, sock: loop.sock_sendfile(sock, open(__file__)),
        lambda loop, sock: loop.sock_sendfile(sock, open(__file__, "rb"), -1),
        lambda loop, sock: loop.sock_sendfile(sock, open(__file__, "rb"), 0, 0),
        lambda loop, sock: loop.sock_sendfile(sock, open(__file__, "rb"), 0, -1),
        lambda loop, sock: loop.sock_sendfile(sock, open(__file__, "rb"), "0"),
        lambda loop, sock: loop.sock_sendfile(sock, open(__file__, "rb"), 0, 1.5),
        lambda loop, sock: loop.sock_sendfile(sock, None),
    ],
)
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_wrong_arguments_raise_what_asyncio_raises(run, loop, stock_loop, socket_pair, wrong_call):
    def answer(loop):
        ours, theirs = socket_pair()
        theirs.send(b"some data")
        return run(answer_of(wrong_call(loop, ours)), on=loop)

    assert answer(loop) == answer(stock_loop)


@pytest.mark.parametrize(
    "address", [None, "text", 5, (), ("127.0.0.1",), ("127.0.0.1", "http?"), (1, 2), ("x", -1)], ids=repr
)
def test_wrong_addresses_raise_what_asyncio_raises(run, loop, stock_loop, address):
    def answer(loop):
        with socket.socket() as sock:
            sock.setblocking(False)
            return run(answer_of(loop.sock_connect(sock, address)), on=loop)

    assert answer(loop) == answer(stock_loop)


# --- several waiters --------------------------------------------------------------------------------------------------

several = pytest.mark.not_on_oracle(
    "stock asyncio keeps one waiter for each direction: a second one replaces the first"
)


@several
@pytest.mark.parametrize("waiters", [2, 10])
def test_coroutines_that_wait_for_data_are_served_first_come_first_served(run, loop, pair, waiters):
    ours, theirs = pair

    async def main():
        order = []

        async def receive(i):
            order.append((i, await loop.sock_recv(ours, 1)))

        tasks = [asyncio.create_task(receive(i)) for i in range(waiters)]
        await settle()
        assert order == []
        for i in range(waiters):
            theirs.send(b"%d" % i)
            if i % 3 == 0:
                await settle()
        await asyncio.gather(*tasks)
        assert order == [(i, b"%d" % i) for i in range(waiters)]

    run(main())


@several
def test_one_burst_serves_all_waiters_in_order(run, loop, pair):
    ours, theirs = pair

    async def main():
        tasks = [asyncio.create_task(loop.sock_recv(ours, 2)) for _ in range(5)]
        await settle()
        theirs.send(b"0011223344")
        assert await asyncio.gather(*tasks) == [b"00", b"11", b"22", b"33", b"44"]

    run(main())


@several
def test_cancelling_one_waiter_leaves_the_others(run, loop, pair):
    ours, theirs = pair

    async def main():
        tasks = [asyncio.create_task(loop.sock_recv(ours, 1)) for _ in range(5)]
        await settle()
        for i in (0, 2):
            tasks[i].cancel()
        await settle()
        assert [task.done() for task in tasks] == [True, False, True, False, False]
        theirs.send(b"abc")
        assert await asyncio.gather(tasks[1], tasks[3], tasks[4]) == [b"a", b"b", b"c"]
        last = asyncio.create_task(loop.sock_recv(ours, 1))
        await settle()
        theirs.send(b"d")
        assert await last == b"d"

    run(main())


@several
def test_cancelling_the_waiter_that_was_just_woken_loses_no_data(run, loop, pair):
    ours, theirs = pair

    async def main():
        for _ in range(30):
            first = asyncio.create_task(loop.sock_recv(ours, 100))
            second = asyncio.create_task(loop.sock_recv(ours, 100))
            await asyncio.sleep(0.001)
            theirs.send(b"x")
            loop.call_soon(first.cancel)
            await asyncio.wait([first])
            if first.cancelled():
                assert await second == b"x"
            else:
                assert first.result() == b"x"
                theirs.send(b"y")
                assert await second == b"y"

    run(main())


@several
def test_the_end_wakes_every_waiter(run, loop, pair):
    ours, theirs = pair

    async def main():
        tasks = [asyncio.create_task(loop.sock_recv(ours, 10)) for _ in range(4)]
        tasks.append(asyncio.create_task(loop.sock_recv_into(ours, bytearray(5))))
        await settle()
        theirs.close()
        assert await asyncio.gather(*tasks) == [b"", b"", b"", b"", 0]

    run(main())


@several
def test_several_sendalls_on_one_socket_go_out_whole_and_in_order(run, loop, pair):
    ours, theirs = pair
    parts = [bytes([65 + i]) * MIB for i in range(4)]

    async def main():
        tasks = [asyncio.create_task(loop.sock_sendall(ours, part)) for part in parts]
        await settle()
        receiver = asyncio.create_task(receive_all(loop, theirs))
        await asyncio.gather(*tasks)
        ours.shutdown(socket.SHUT_WR)
        got = await receiver
        assert len(got) == 4 * MIB
        assert got == b"".join(parts)

    run(main(), timeout=30)


# --- sockets that go away ---------------------------------------------------------------------------------------------


def test_our_own_shutdown_wakes_a_waiting_recv(run, loop, pair):
    ours, _ = pair

    async def main():
        for how in (socket.SHUT_RD, socket.SHUT_RDWR):
            task = asyncio.create_task(loop.sock_recv(ours, 10))
            await settle()
            ours.shutdown(how)
            assert await task == b""

    run(main())


def test_our_own_shutdown_wakes_a_waiting_sendall(run, loop, pair):
    ours, _ = pair

    async def main():
        task = asyncio.create_task(loop.sock_sendall(ours, bytes(20 * MIB)))
        await settle()
        assert not task.done()
        ours.shutdown(socket.SHUT_RDWR)
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            await task

    run(main())


def test_shutdown_of_a_listener_wakes_a_waiting_accept(run, loop, listener):
    server = listener()

    async def main():
        task = asyncio.create_task(loop.sock_accept(server))
        await settle()
        server.shutdown(socket.SHUT_RDWR)
        with pytest.raises(OSError) as caught:
            await task
        assert caught.value.errno == errno.EINVAL

    run(main())


def test_shutdown_by_another_thread_wakes_a_waiting_recv(run, loop, pair):
    ours, _ = pair

    async def main():
        task = asyncio.create_task(loop.sock_recv(ours, 10))
        await settle()
        await asyncio.to_thread(ours.shutdown, socket.SHUT_RDWR)
        assert await task == b""

    run(main())


@pytest.mark.netpoll_only("on stock asyncio the old waiter waits for ever")
@pytest.mark.parametrize("operation", ["recv", "sendall", "both"])
def test_a_socket_closed_behind_our_back_fails_its_waiters_when_the_number_is_used_again(run, loop, operation):
    async def main():
        for _ in range(20):
            ours, theirs = socket.socketpair()
            ours.setblocking(False)
            number = ours.fileno()
            old = []
            if operation in ("recv", "both"):
                old.append(asyncio.create_task(loop.sock_recv(ours, 10)))
            if operation in ("sendall", "both"):
                old.append(asyncio.create_task(loop.sock_sendall(ours, bytes(20 * MIB))))
            await settle()
            assert not any(task.done() for task in old)
            ours.close()
            new, peer = socket.socketpair()
            with theirs, new, peer:
                if new.fileno() != number:
                    for task in old:
                        task.cancel()
                    await asyncio.wait(old)
                    continue
                new.setblocking(False)
                peer.setblocking(False)
                receiving = asyncio.create_task(loop.sock_recv(new, 100))
                await loop.sock_sendall(new, b"to peer")
                assert await loop.sock_recv(peer, 100) == b"to peer"
                await settle()
                peer.send(b"for the new one")
                assert await receiving == b"for the new one"
                done, pending = await asyncio.wait(old, timeout=5)
                assert not pending, "an old waiter still waits"
                for task in done:
                    assert isinstance(task.exception(), OSError)

    run(main(), timeout=40)


def test_a_new_socket_on_an_old_number_works_after_its_waiter_was_cancelled(run, loop):
    async def main():
        for i in range(50):
            ours, theirs = socket.socketpair()
            ours.setblocking(False)
            task = asyncio.create_task(loop.sock_recv(ours, 10))
            await asyncio.sleep(0)
            if i % 2:
                await settle()
            task.cancel()
            await asyncio.wait([task])
            ours.close()
            theirs.close()
            new, peer = socket.socketpair()
            with new, peer:
                new.setblocking(False)
                receiving = asyncio.create_task(loop.sock_recv(new, 10))
                await asyncio.sleep(0)
                peer.send(b"new")
                assert await receiving == b"new"

    run(main())


def test_a_living_dup_does_not_steal_or_spoil(run, loop, tcp_pair):
    """epoll knows open files, not numbers: the dup keeps the old registration alive."""
    ours, theirs = tcp_pair()
    dup = ours.dup()

    async def main():
        theirs.send(b"1")
        assert await loop.sock_recv(ours, 1) == b"1"
        task = asyncio.create_task(loop.sock_recv(ours, 1))
        await settle()
        task.cancel()
        await asyncio.wait([task])
        ours.close()
        a, b = socket.socketpair()
        with a, b:
            a.setblocking(False)
            receiving = asyncio.create_task(loop.sock_recv(a, 10))
            await settle()
            theirs.send(b"for the dup")
            await settle()
            assert not receiving.done()
            b.send(b"for a")
            assert await receiving == b"for a"
        assert await loop.sock_recv(dup, 100) == b"for the dup"

    with dup:
        dup.setblocking(False)
        run(main())


def test_sockets_come_and_go_fast_and_every_byte_arrives_at_its_own(run, loop, listener):
    server = listener(backlog=256)

    async def main():
        async def serve(conn):
            with conn:
                while data := await loop.sock_recv(conn, 100):
                    await loop.sock_sendall(conn, data)

        async def accept():
            tasks = set()
            while True:
                conn, _ = await loop.sock_accept(server)
                task = asyncio.create_task(serve(conn))
                tasks.add(task)
                task.add_done_callback(tasks.discard)

        async def client(number):
            for i in range(20):
                with socket.socket() as sock:
                    sock.setblocking(False)
                    await loop.sock_connect(sock, server.getsockname())
                    message = b"%d/%d" % (number, i)
                    await loop.sock_sendall(sock, message)
                    got = b""
                    while len(got) < len(message):
                        part = await loop.sock_recv(sock, 100)
                        assert part
                        got += part
                    assert got == message

        accepting = asyncio.create_task(accept())
        await asyncio.gather(*map(client, range(30)))
        await settle()
        accepting.cancel()
        await asyncio.wait([accepting])

    run(main(), timeout=40)


# --- together with the rest -------------------------------------------------------------------------------------------


def test_a_cancelled_recv_loses_no_data(run, loop, pair):
    ours, theirs = pair

    async def main():
        got = bytearray()
        sent = bytearray()
        for i in range(200):
            task = asyncio.create_task(loop.sock_recv(ours, 100))
            await asyncio.sleep(0)
            if i % 3 == 0:
                theirs.send(b"%d," % i)
                sent += b"%d," % i
            if i % 2:
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            if not task.cancelled():
                got += task.result()
        theirs.shutdown(socket.SHUT_WR)
        got += await receive_all(loop, ours)
        assert got == sent

    run(main())


def test_a_recv_with_a_timeout_can_be_repeated(run, loop, pair):
    ours, theirs = pair

    async def main():
        for _ in range(5):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await loop.sock_recv(ours, 10)
        theirs.send(b"x")
        assert await loop.sock_recv(ours, 10) == b"x"

    run(main())


def test_sock_methods_may_be_used_in_one_run_and_the_next(loop, pair):
    ours, theirs = pair
    for i in range(5):
        theirs.send(b"%d" % i)
        assert loop.run_until_complete(loop.sock_recv(ours, 10)) == b"%d" % i


def test_sock_methods_and_add_reader_may_follow_each_other_on_one_socket(run, loop, pair):
    ours, theirs = pair

    async def main():
        for i in range(10):
            receiving = asyncio.create_task(loop.sock_recv(ours, 10))
            await asyncio.sleep(0)
            theirs.send(b"a")
            assert await receiving == b"a"
            assert loop.remove_reader(ours) is False
            future = loop.create_future()
            loop.add_reader(ours, lambda future=future: future.done() or future.set_result(ours.recv(10)))
            if i % 2:
                await settle()
            theirs.send(b"b")
            assert await future == b"b"
            assert loop.remove_reader(ours) is True

    run(main())


def test_a_socket_may_go_over_to_a_transport_after_sock_methods(run, loop, pair):
    ours, theirs = pair

    async def main():
        task = asyncio.create_task(loop.sock_recv(ours, 10))
        await settle()
        theirs.send(b"first")
        assert await task == b"first"
        reader, writer = await asyncio.open_connection(sock=ours)
        theirs.send(b"second")
        assert await reader.readexactly(6) == b"second"
        writer.write(b"answer")
        assert await loop.sock_recv(theirs, 10) == b"answer"
        writer.close()
        await writer.wait_closed()

    run(main())


def test_a_socket_of_a_transport_cannot_be_used_or_at_least_breaks_nothing(run, loop, stock_loop, socket_pair):
    async def answer(loop):
        ours, _theirs = socket_pair()
        transport, _ = await loop.create_connection(asyncio.Protocol, sock=ours)
        try:
            async with asyncio.timeout(0.2):
                got = await answer_of(loop.sock_recv(ours, 10))
        finally:
            transport.abort()
            await settle()
        return got[0], "is used by transport" in got[1]

    assert run(answer(loop)) == run(answer(stock_loop), on=stock_loop)


def test_many_sockets_wait_at_once(run, loop, socket_pair):
    pairs = [socket_pair() for _ in range(400)]

    async def main():
        tasks = [asyncio.create_task(loop.sock_recv(ours, 10)) for ours, _ in pairs]
        await settle()
        for i in random.Random(5).sample(range(len(pairs)), len(pairs)):
            pairs[i][1].send(b"%d" % i)
        assert await asyncio.gather(*tasks) == [b"%d" % i for i in range(len(pairs))]

    run(main())


def test_a_thread_that_sends_slowly_is_received_whole(run, loop, tcp_pair):
    ours, theirs = tcp_pair()
    theirs.setblocking(True)
    data = os.urandom(200_000)

    def send():
        rng = random.Random(1)
        at = 0
        while at < len(data):
            step = rng.randrange(1, 3000)
            theirs.sendall(data[at : at + step])
            at += step
        theirs.shutdown(socket.SHUT_WR)

    thread = threading.Thread(target=send)

    async def main():
        thread.start()
        assert await receive_all(loop, ours, 1000) == data

    try:
        run(main(), timeout=30)
    finally:
        thread.join()


@settings(
    max_examples=30,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    sends=st.lists(st.integers(0, 200_000), max_size=12),
    receives=st.lists(st.integers(1, 150_000), min_size=1, max_size=6),
    into=st.booleans(),
    pauses=st.lists(st.booleans(), min_size=1, max_size=6),
)
def test_any_chunking_brings_the_same_bytes(run, loop, sends, receives, into, pauses):
    a, b = socket.socketpair()
    with a, b:
        a.setblocking(False)
        b.setblocking(False)
        data = [random.Random(i).randbytes(size) for i, size in enumerate(sends)]

        async def send():
            for i, part in enumerate(data):
                await loop.sock_sendall(a, part)
                if pauses[i % len(pauses)]:
                    await asyncio.sleep(0)
            a.shutdown(socket.SHUT_WR)

        async def receive():
            got = bytearray()
            for i in itertools.count():
                size = receives[i % len(receives)]
                if into:
                    buffer = bytearray(size)
                    count = await loop.sock_recv_into(b, buffer)
                    part = bytes(buffer[:count])
                else:
                    part = await loop.sock_recv(b, size)
                assert len(part) <= size
                if not part:
                    return got
                got += part
            return None

        async def main():
            _, got = await asyncio.gather(send(), receive())
            assert got == b"".join(data)

        run(main())
