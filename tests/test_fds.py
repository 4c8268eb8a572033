"""`add_reader` and its three siblings: on every kind of descriptor, level-triggered, as selectors report them."""

import array
import asyncio
import contextlib
import errno
import fcntl
import gc
import os
import pty
import resource
import socket
import struct
import sys
import termios
import time
import tty
import weakref

import pytest

eventfd = pytest.mark.skipif(not hasattr(os, "eventfd"), reason="no os.eventfd")


def nothing(*args):
    pass


@pytest.fixture
def pipe(owned):
    """Factory of non-blocking pipes: (read end, write end), raw descriptors."""

    def factory():
        ends = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        for fd in ends:
            owned(fd)
        return ends

    return factory


@pytest.fixture
def watched(loop):
    """`watched(fd)`: takes the descriptor's callbacks off at the end, before it is closed."""
    fds = []

    def watch(fd):
        fds.append(fd)
        return fd

    yield watch
    for fd in fds:
        if not loop.is_closed():
            with contextlib.suppress(ValueError, OSError):
                loop.remove_reader(fd)
            with contextlib.suppress(ValueError, OSError):
                loop.remove_writer(fd)


async def until(condition, message="condition"):
    """Waits until the condition holds; the test's own limit ends a wait in vain."""
    while not condition():
        await asyncio.sleep(0.001)


async def settle(loop):
    """Time enough, in every mode, for a wrong call to happen."""
    for _ in range(5):
        await asyncio.sleep(0)
    await asyncio.sleep(0.03)


async def first_call(loop, add, remove, fd):
    """Adds a callback and waits for its first call, then removes it."""
    called = asyncio.Event()
    add(fd, called.set)
    try:
        await called.wait()
    finally:
        assert remove(fd) is True


# --- kinds of descriptors ---------------------------------------------------------------------------------------------


def test_a_reader_is_called_when_a_socket_has_data(run, loop, socket_pair):
    ours, theirs = socket_pair()

    async def main():
        calls = []
        loop.add_reader(ours, calls.append, "ready")
        await settle(loop)
        assert calls == []
        theirs.send(b"x")
        await until(lambda: calls)
        loop.remove_reader(ours)

    run(main())


def test_a_writer_is_called_while_a_socket_has_room(run, loop, socket_pair):
    ours, theirs = socket_pair()

    async def main():
        await first_call(loop, loop.add_writer, loop.remove_writer, ours)
        with contextlib.suppress(BlockingIOError):
            while True:
                ours.send(bytes(65536))
        calls = []
        loop.add_writer(ours, calls.append, 1)
        await settle(loop)
        assert calls == []
        with contextlib.suppress(BlockingIOError):
            while True:
                theirs.recv(1 << 20)
        await until(lambda: calls)
        loop.remove_writer(ours)

    run(main())


def test_tcp_sockets_and_listeners_work(run, loop, listener, owned):
    server = listener()

    async def main():
        calls = []
        loop.add_reader(server, calls.append, 1)
        await settle(loop)
        assert calls == []
        client = owned(socket.socket())
        client.setblocking(False)
        assert client.connect_ex(server.getsockname()) in (0, errno.EINPROGRESS)
        await first_call(loop, loop.add_writer, loop.remove_writer, client)
        await until(lambda: calls)
        peer = owned(server.accept()[0])
        await settle(loop)
        count = len(calls)
        await settle(loop)
        assert len(calls) == count
        loop.remove_reader(server)
        client.send(b"x")
        await first_call(loop, loop.add_reader, loop.remove_reader, peer)

    run(main())


def test_udp_sockets_work(run, loop, owned):
    a, b = (owned(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) for _ in range(2))
    a.bind(("127.0.0.1", 0))
    a.setblocking(False)

    async def main():
        await first_call(loop, loop.add_writer, loop.remove_writer, a)
        b.sendto(b"x", a.getsockname())
        await first_call(loop, loop.add_reader, loop.remove_reader, a)
        assert a.recv(10) == b"x"

    run(main())


def test_pipes_work(run, loop, pipe):
    r, w = pipe()

    async def main():
        await first_call(loop, loop.add_writer, loop.remove_writer, w)
        os.write(w, b"x")
        await first_call(loop, loop.add_reader, loop.remove_reader, r)
        assert os.read(r, 10) == b"x"

    run(main())


def test_named_pipes_work(run, loop, owned, tmp_path):
    path = tmp_path / "fifo"
    os.mkfifo(path)
    r = owned(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
    w = owned(os.open(path, os.O_WRONLY | os.O_NONBLOCK))

    async def main():
        os.write(w, b"x")
        await first_call(loop, loop.add_reader, loop.remove_reader, r)
        await first_call(loop, loop.add_writer, loop.remove_writer, w)

    run(main())


@eventfd
def test_eventfds_work(run, loop, owned):
    fd = owned(os.eventfd(0, os.EFD_NONBLOCK))

    async def main():
        calls = []
        loop.add_reader(fd, lambda: calls.append(os.eventfd_read(fd)))
        await settle(loop)
        assert calls == []
        for i in range(1, 6):
            os.eventfd_write(fd, i)
            await until(lambda i=i: len(calls) == i)
        assert calls == [1, 2, 3, 4, 5]
        loop.remove_reader(fd)
        await first_call(loop, loop.add_writer, loop.remove_writer, fd)

    run(main())


def test_terminals_work(run, loop, owned):
    master, slave = pty.openpty()
    owned(master), owned(slave)
    tty.setraw(slave, termios.TCSANOW)
    for fd in (master, slave):
        os.set_blocking(fd, False)

    async def main():
        await first_call(loop, loop.add_writer, loop.remove_writer, master)
        os.write(master, b"typed")
        await first_call(loop, loop.add_reader, loop.remove_reader, slave)
        assert os.read(slave, 100) == b"typed"
        os.write(slave, b"shown")
        await first_call(loop, loop.add_reader, loop.remove_reader, master)
        assert os.read(master, 100) == b"shown"

    run(main())


def test_an_epoll_descriptor_can_be_watched(run, loop, owned, socket_pair):
    import select

    ours, theirs = socket_pair()
    inner = owned(select.epoll())
    inner.register(ours, select.EPOLLIN)

    async def main():
        theirs.send(b"x")
        await first_call(loop, loop.add_reader, loop.remove_reader, inner)

    run(main())


def test_a_pidfd_can_be_watched(run, loop, owned):
    import subprocess

    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(0.1)"])
    fd = owned(os.pidfd_open(child.pid))

    async def main():
        await first_call(loop, loop.add_reader, loop.remove_reader, fd)

    try:
        run(main())
    finally:
        child.kill()
        child.wait()


@pytest.mark.parametrize("method", ["add_reader", "add_writer"])
def test_a_regular_file_raises_what_asyncio_raises(loop, stock_loop, tmp_path, method):
    (tmp_path / "file").write_bytes(b"x")
    answers = []
    for each in (loop, stock_loop):
        with open(tmp_path / "file", "rb") as file:
            with pytest.raises(PermissionError) as caught:
                getattr(each, method)(file, nothing)
            answers.append((caught.value.errno, str(caught.value)))
            assert each.remove_reader(file) is False
            assert each.remove_writer(file) is False
    assert answers[0] == answers[1]


def test_after_a_refused_file_its_number_can_be_used_by_a_socket(run, loop, tmp_path, owned):
    (tmp_path / "file").write_bytes(b"x")
    file = owned(os.open(tmp_path / "file", os.O_RDONLY))

    async def main():
        with pytest.raises(PermissionError):
            loop.add_reader(file, nothing)
        a, b = socket.socketpair()
        with a, b:
            os.dup2(a.fileno(), file)
            b.send(b"x")
            await first_call(loop, loop.add_reader, loop.remove_reader, file)

    run(main())


# --- what they answer -------------------------------------------------------------------------------------------------


def test_removing_tells_whether_there_was_something(loop, socket_pair):
    ours, _ = socket_pair()
    assert loop.remove_reader(ours) is False
    assert loop.remove_writer(ours) is False
    assert loop.add_reader(ours, nothing) is None
    assert loop.remove_writer(ours) is False
    assert loop.add_writer(ours, nothing) is None
    assert loop.remove_reader(ours) is True
    assert loop.remove_reader(ours) is False
    assert loop.remove_writer(ours) is True
    assert loop.remove_writer(ours) is False


def test_a_number_and_the_object_that_has_it_are_the_same(loop, socket_pair):
    ours, _ = socket_pair()
    loop.add_reader(ours, nothing)
    assert loop.remove_reader(ours.fileno()) is True
    loop.add_writer(ours.fileno(), nothing)
    assert loop.remove_writer(ours) is True


def test_any_object_with_a_fileno_is_a_descriptor(run, loop, pipe):
    r, w = pipe()

    class HasFileno:
        def fileno(self):
            return r

    async def main():
        os.write(w, b"x")
        await first_call(loop, loop.add_reader, loop.remove_reader, HasFileno())

    run(main())


class Fileno:
    def __init__(self, value):
        self.value = value

    def fileno(self):
        if isinstance(self.value, BaseException):
            raise self.value
        return self.value


@pytest.mark.parametrize("method", ["add_reader", "add_writer", "remove_reader", "remove_writer"])
@pytest.mark.parametrize(
    "wrong",
    [-1, -100, "text", None, 1.5, b"5", object, Fileno("x"), Fileno(-1), Fileno(None), Fileno(OSError("mine"))],
    ids=repr,
)
def test_what_is_no_descriptor_raises_what_asyncio_raises(loop, stock_loop, method, wrong):
    answers = []
    args = (nothing,) if method.startswith("add") else ()
    for each in (loop, stock_loop):
        with pytest.raises(Exception) as caught:
            getattr(each, method)(wrong, *args)
        answers.append((type(caught.value), str(caught.value)))
    assert answers[0] == answers[1]


@pytest.mark.parametrize("method", ["add_reader", "add_writer", "remove_reader", "remove_writer"])
@pytest.mark.parametrize("number", ["closed", "huge", "overflow"])
def test_a_number_that_is_not_open_raises_what_asyncio_raises(loop, stock_loop, method, number):
    def answer(loop):
        fd = {"huge": 10**6, "overflow": 2**31}.get(number)
        if fd is None:
            fd = os.open("/dev/null", os.O_RDONLY)
            os.close(fd)
        args = (nothing,) if method.startswith("add") else ()
        try:
            return getattr(loop, method)(fd, *args)
        except Exception as exc:
            return type(exc), str(exc), getattr(exc, "errno", None)

    assert answer(loop) == answer(stock_loop)


@pytest.mark.parametrize("method", ["add_reader", "add_writer", "remove_reader", "remove_writer"])
def test_a_closed_socket_raises_what_asyncio_raises(loop, stock_loop, method):
    answers = []
    for each in (loop, stock_loop):
        sock = socket.socket()
        sock.close()
        args = (nothing,) if method.startswith("add") else ()
        try:
            answers.append(getattr(each, method)(sock, *args))
        except Exception as exc:
            answers.append((type(exc), str(exc)))
    assert answers[0] == answers[1]


@pytest.mark.parametrize("direction", ["reader", "writer"])
def test_a_socket_that_was_closed_while_watched_can_still_be_removed(loop, direction):
    add, remove = getattr(loop, f"add_{direction}"), getattr(loop, f"remove_{direction}")
    a, b = socket.socketpair()
    with b:
        add(a, nothing)
        a.close()
        assert remove(a) is True


# --- replacing, both directions ---------------------------------------------------------------------------------------


def test_adding_again_replaces_the_callback(run, loop, socket_pair, watched):
    ours, theirs = socket_pair()

    async def main():
        calls = []
        theirs.send(b"x")
        for add, remove in ((loop.add_reader, loop.remove_reader), (loop.add_writer, loop.remove_writer)):
            add(watched(ours), calls.append, "old")
            add(ours, calls.append, "new")
            await until(lambda: calls)
            assert set(calls) == {"new"}
            assert remove(ours) is True
            assert remove(ours) is False
            calls.clear()

    run(main())


def test_replacing_cancels_a_callback_that_is_already_due(run, loop, socket_pair, watched):
    ours, theirs = socket_pair()

    async def main():
        calls = []
        theirs.send(b"x")
        loop.add_reader(watched(ours), calls.append, "old")
        # The poll of this turn finds it ready; the callback of the same turn is first.
        loop.call_soon(loop.add_reader, ours, calls.append, "new")
        await until(lambda: "new" in calls)
        assert "old" not in calls

    run(main())


def test_replacing_and_removing_let_go_of_the_old_callback(loop, socket_pair):
    ours, _ = socket_pair()

    class Callback:
        def __call__(self):
            pass

    for add, remove in ((loop.add_reader, loop.remove_reader), (loop.add_writer, loop.remove_writer)):
        first, second = Callback(), Callback()
        watch = [weakref.ref(first), weakref.ref(second)]
        add(ours, first)
        add(ours, second)
        del first
        gc.collect()
        assert watch[0]() is None
        remove(ours)
        del second
        gc.collect()
        assert watch[1]() is None


def test_reader_and_writer_of_one_descriptor_are_independent(run, loop, socket_pair, watched):
    ours, theirs = socket_pair()

    async def main():
        reads, writes = [], []
        loop.add_reader(watched(ours), lambda: reads.append(ours.recv(10)))
        loop.add_writer(ours, writes.append, 1)
        await until(lambda: len(writes) > 3)
        assert reads == []
        theirs.send(b"one")
        await until(lambda: reads == [b"one"])
        loop.remove_writer(ours)
        count = len(writes)
        theirs.send(b"two")
        await until(lambda: reads == [b"one", b"two"])
        assert len(writes) == count
        loop.add_writer(ours, writes.append, 1)
        loop.remove_reader(ours)
        theirs.send(b"three")
        await until(lambda: len(writes) > count + 3)
        assert reads == [b"one", b"two"]

    run(main())


def test_a_callback_may_add_and_remove_itself_and_others(run, loop, socket_pair, watched):
    ours, theirs = socket_pair()

    async def main():
        events = []
        done = asyncio.Event()

        def readable():
            events.append("read")
            loop.remove_reader(ours)
            loop.add_writer(ours, writable)

        def writable():
            events.append("write")
            loop.remove_writer(ours)
            if len(events) < 20:
                loop.add_reader(ours, readable)
            else:
                done.set()

        loop.add_reader(watched(ours), readable)
        theirs.send(b"x")
        await done.wait()
        assert events == ["read", "write"] * 10

    run(main())


def test_many_descriptors_are_each_called_with_their_own_arguments(run, loop, socket_pair):
    pairs = [socket_pair() for _ in range(300)]

    async def main():
        seen = set()

        def read(i):
            assert pairs[i][0].recv(100) == b"%d" % i
            seen.add(i)
            loop.remove_reader(pairs[i][0])

        for i, (ours, _) in enumerate(pairs):
            loop.add_reader(ours, read, i)
        for i, (_, theirs) in enumerate(pairs):
            theirs.send(b"%d" % i)
        await until(lambda: len(seen) == len(pairs))

    run(main())


def test_a_reader_that_was_added_by_another_thread_through_call_soon_threadsafe_wakes_an_idle_loop(
    run, loop, socket_pair, watched
):
    ours, theirs = socket_pair()
    theirs.send(b"x")

    async def main():
        called = asyncio.Event()
        await asyncio.to_thread(loop.call_soon_threadsafe, loop.add_reader, watched(ours), called.set)
        await called.wait()

    run(main())


# --- level-triggered --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["socket", "pipe"])
def test_a_callback_that_does_not_read_is_called_again_and_again(run, loop, socket_pair, pipe, watched, kind):
    if kind == "socket":
        ours, theirs = socket_pair()
        theirs.send(b"xyz")
        read = lambda: ours.recv(1)  # noqa: E731
    else:
        ours, theirs = pipe()
        os.write(theirs, b"xyz")
        read = lambda: os.read(ours, 1)  # noqa: E731

    async def main():
        calls = []
        loop.add_reader(watched(ours), calls.append, 1)
        await until(lambda: len(calls) >= 20)
        loop.remove_reader(ours)
        await settle(loop)
        # Neither did removing use the readiness up.
        got = []
        loop.add_reader(ours, lambda: got.append(read()))
        await until(lambda: len(got) == 3)
        await settle(loop)
        assert got == [b"x", b"y", b"z"]

    run(main())


def test_a_callback_that_reads_one_byte_is_called_for_each(run, loop, socket_pair, watched):
    ours, theirs = socket_pair()

    async def main():
        got = bytearray()
        loop.add_reader(watched(ours), lambda: got.extend(ours.recv(1)))
        theirs.send(bytes(range(200)))
        await until(lambda: len(got) == 200)
        assert got == bytes(range(200))

    run(main())


@pytest.mark.parametrize("direction", ["reader", "writer"])
def test_a_callback_that_raises_is_called_again(run, loop, socket_pair, watched, exceptions, direction):
    ours, theirs = socket_pair()
    theirs.send(b"x")

    async def main():
        def fail():
            raise ZeroDivisionError

        getattr(loop, f"add_{direction}")(watched(ours), fail)
        await until(lambda: len(exceptions) >= 5)
        assert getattr(loop, f"remove_{direction}")(ours) is True
        count = len(exceptions)
        await settle(loop)
        assert len(exceptions) == count
        assert all(isinstance(c["exception"], ZeroDivisionError) for c in exceptions)

    run(main())


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_a_callback_that_exits_is_called_again_in_the_next_run(run, loop, socket_pair, watched, kind):
    ours, theirs = socket_pair()
    theirs.send(b"x")
    left = [3]

    def leave():
        left[0] -= 1
        if left[0]:
            raise kind
        loop.stop()

    loop.add_reader(watched(ours), leave)
    for _ in range(2):
        with pytest.raises(kind):
            loop.run_forever()
    loop.run_forever()
    assert left == [0]


def test_readiness_from_before_the_loop_runs_and_between_runs_is_seen(loop, socket_pair, watched):
    ours, theirs = socket_pair()
    got = []

    def read():
        got.append(ours.recv(1))
        loop.stop()

    theirs.send(b"abc")
    loop.add_reader(watched(ours), read)
    for _ in range(3):
        loop.run_forever()
    theirs.send(b"d")
    loop.run_forever()
    assert got == [b"a", b"b", b"c", b"d"]


def test_a_writer_is_called_each_turn_while_there_is_room(run, loop, socket_pair, watched):
    ours, _ = socket_pair()

    async def main():
        calls = []
        loop.add_writer(watched(ours), calls.append, 1)
        await until(lambda: len(calls) >= 20)

    run(main())


def test_in_one_turn_a_callback_is_called_once(loop, socket_pair, watched, mode):
    if mode == "dedicated":
        pytest.skip("there a turn and a poll are not the same")
    ours, theirs = socket_pair()
    theirs.send(b"x")
    calls = []
    loop.add_reader(watched(ours), calls.append, 1)
    for i in range(1, 6):
        loop.stop()
        loop.run_forever()
        assert len(calls) == i


# --- ends and errors --------------------------------------------------------------------------------------------------


def test_a_hang_up_wakes_reader_and_writer(run, loop, socket_pair, watched):
    ours, theirs = socket_pair()

    async def main():
        with contextlib.suppress(BlockingIOError):
            while True:
                ours.send(bytes(65536))
        reads, writes = [], []
        loop.add_reader(watched(ours), reads.append, 1)
        loop.add_writer(ours, writes.append, 1)
        await settle(loop)
        assert reads == writes == []
        theirs.close()
        await until(lambda: reads and writes)

    run(main())


def test_a_reset_wakes_reader_and_writer(run, loop, tcp_pair, watched):
    ours, theirs = tcp_pair()

    async def main():
        with contextlib.suppress(BlockingIOError):
            while True:
                ours.send(bytes(65536))
        reads, writes = [], []
        loop.add_reader(watched(ours), reads.append, 1)
        loop.add_writer(ours, writes.append, 1)
        await settle(loop)
        assert reads == writes == []
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        theirs.close()
        await until(lambda: reads and writes)
        assert ours.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNRESET

    run(main())


def test_the_end_of_a_pipe_wakes_the_reader_of_the_other_end(run, loop, owned, watched):
    r, w = os.pipe()
    owned(r)

    async def main():
        calls = []
        loop.add_reader(watched(r), lambda: calls.append(os.read(r, 10)))
        await settle(loop)
        os.close(w)
        await until(lambda: calls)
        assert calls[0] == b""

    run(main())


def test_closing_the_reading_end_wakes_the_writer_of_a_full_pipe(run, loop, owned, watched):
    r, w = os.pipe2(os.O_NONBLOCK)
    owned(w)

    async def main():
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(w, bytes(65536))
        calls = []
        loop.add_writer(watched(w), calls.append, 1)
        await settle(loop)
        assert calls == []
        os.close(r)
        await until(lambda: calls)

    run(main())


def test_a_half_closed_peer_keeps_the_reader_readable_and_the_writer_alive(run, loop, tcp_pair, watched):
    ours, theirs = tcp_pair()

    async def main():
        got = []
        loop.add_reader(watched(ours), lambda: got.append(ours.recv(10)))
        theirs.send(b"last")
        theirs.shutdown(socket.SHUT_WR)
        await until(lambda: len(got) >= 5)
        assert got[0] == b"last" and set(got[1:]) == {b""}
        loop.remove_reader(ours)
        await first_call(loop, loop.add_writer, loop.remove_writer, ours)
        ours.send(b"answer")
        assert theirs.recv(10) == b"answer"

    run(main())


def test_a_refused_connection_wakes_the_writer(run, loop, free_port, owned):
    sock = owned(socket.socket())
    sock.setblocking(False)

    async def main():
        error = sock.connect_ex(("127.0.0.1", free_port()))
        if error == errno.EINPROGRESS:
            await first_call(loop, loop.add_writer, loop.remove_writer, sock)
            error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        assert error == errno.ECONNREFUSED

    run(main())


@pytest.mark.parametrize("what", ["nothing", "reader", "writer", "both"])
def test_our_own_shutdown_wakes_the_reader(run, loop, tcp_pair, watched, what):
    ours, _ = tcp_pair()

    async def main():
        calls = []
        loop.add_reader(watched(ours), calls.append, "read")
        if what == "both":
            loop.add_writer(ours, calls.append, "write")
        await settle(loop)
        assert "read" not in calls
        ours.shutdown(socket.SHUT_RD if what == "reader" else socket.SHUT_RDWR)
        await until(lambda: "read" in calls)

    run(main())


# --- who owns the descriptor ------------------------------------------------------------------------------------------


def test_a_descriptor_of_a_transport_cannot_be_watched(run, loop, stock_loop, socket_pair):
    def answer(loop):
        ours, _ = socket_pair()

        async def main():
            transport, _ = await loop.create_connection(asyncio.Protocol, sock=ours)
            texts = []
            for method in ("add_reader", "add_writer", "remove_reader", "remove_writer"):
                args = (nothing,) if method.startswith("add") else ()
                for target in (ours.fileno(), transport.get_extra_info("socket")):
                    with pytest.raises(RuntimeError) as caught:
                        getattr(loop, method)(target, *args)
                    texts.append(str(caught.value))
            transport.abort()
            await asyncio.sleep(0.01)
            return texts

        texts = run(main(), on=loop)
        return [text.split("<")[0] for text in texts], all("is used by transport <" in t for t in texts)

    ours, stock = answer(loop), answer(stock_loop)
    assert ours[1] and stock[1]
    assert [t.rstrip("0123456789 isuedbytranpo") for t in ours[0]] == [
        t.rstrip("0123456789 isuedbytranpo") for t in stock[0]
    ]
    assert all(text.startswith("File descriptor ") for text in ours[0])


def test_a_descriptor_is_free_again_when_its_transport_is_closing(run, loop, socket_pair):
    ours, theirs = socket_pair()

    async def main():
        copy = ours.dup()
        copy.setblocking(False)
        number = ours.fileno()
        transport, _ = await loop.create_connection(asyncio.Protocol, sock=ours)
        transport.close()
        await settle(loop)
        assert ours.fileno() == -1
        with copy:
            os.dup2(copy.fileno(), number)
            try:
                theirs.send(b"x")
                await first_call(loop, loop.add_reader, loop.remove_reader, number)
            finally:
                os.close(number)

    run(main())


# --- leaving ----------------------------------------------------------------------------------------------------------


def cpu_seconds(seconds):
    """CPU time that this process uses, all threads, while the loop does nothing for so long."""

    async def measure():
        before = resource.getrusage(resource.RUSAGE_SELF)
        await asyncio.sleep(seconds)
        after = resource.getrusage(resource.RUSAGE_SELF)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    return measure()


@pytest.mark.parametrize("events", ["reader", "writer", "both"])
def test_removing_takes_the_descriptor_out_so_that_a_living_dup_does_not_spin(run, loop, socket_pair, events):
    """https://github.com/MagicStack/uvloop/issues/61: the open file lives on in the dup, and epoll reports it."""
    ours, theirs = socket_pair()
    dup = ours.dup()

    async def main():
        theirs.send(b"never read")
        calls = []
        if events in ("reader", "both"):
            loop.add_reader(ours, calls.append, 1)
        if events in ("writer", "both"):
            loop.add_writer(ours, calls.append, 1)
        await until(lambda: calls)
        loop.remove_reader(ours)
        loop.remove_writer(ours)
        ours.close()
        calls.clear()
        used = await cpu_seconds(0.5)
        assert calls == []
        assert used < 0.25, f"{used} s of CPU in 0.5 s of idling"

    with dup:
        run(main())


def test_a_removed_reader_is_not_called_any_more(run, loop, socket_pair):
    ours, theirs = socket_pair()

    async def main():
        calls = []
        for _ in range(50):
            loop.add_reader(ours, calls.append, 1)
            theirs.send(b"x")
            loop.remove_reader(ours)
            await asyncio.sleep(0)
        await settle(loop)
        assert calls == []
        assert ours.recv(100) == b"x" * 50

    run(main())


def test_idling_with_a_quiet_reader_uses_no_cpu(run, loop, socket_pair, watched):
    ours, _ = socket_pair()

    async def main():
        loop.add_reader(watched(ours), nothing)
        assert await cpu_seconds(0.5) < 0.25

    run(main())


def test_a_number_that_is_used_again_gets_its_new_callbacks_only(run, loop):
    async def main():
        for i in range(100):
            a, b = socket.socketpair()
            a.setblocking(False)
            old = []
            loop.add_reader(a, old.append, i)
            if i % 2:
                b.send(b"old")
                await until(lambda old=old: old)
            loop.remove_reader(a)
            a.close()
            b.close()
            c, d = socket.socketpair()
            try:
                c.setblocking(False)
                old.clear()
                new = []
                loop.add_reader(c, new.append, i)
                await asyncio.sleep(0)
                assert not new
                d.send(b"new")
                await until(lambda new=new: new)
                assert c.recv(10) == b"new"
                loop.remove_reader(c)
                assert not old
            finally:
                c.close()
                d.close()

    run(main(), timeout=30)


def test_a_number_that_was_closed_behind_our_back_can_be_added_again(run, loop):
    """The user removes only the number, after the close; asyncio, too, lets the next socket be added then."""

    async def main():
        for _ in range(50):
            a, b = socket.socketpair()
            number = a.fileno()
            old, new = [], []
            loop.add_reader(a, old.append, 1)
            await asyncio.sleep(0)
            a.close()
            c, d = socket.socketpair()
            with b, c, d:
                if c.fileno() != number:
                    continue
                loop.remove_reader(number)
                loop.add_reader(c, new.append, 1)
                d.send(b"x")
                await until(lambda new=new: new)
                assert old == []
                loop.remove_reader(c)

    run(main(), timeout=30)


@pytest.mark.netpoll_only("asyncio modifies the stale registration there and raises FileNotFoundError or hangs")
def test_another_socket_on_a_number_that_was_never_removed_is_registered_afresh(run, loop):
    async def main():
        for _ in range(50):
            a, b = socket.socketpair()
            number = a.fileno()
            old, new = [], []
            loop.add_reader(a, old.append, 1)
            await asyncio.sleep(0)
            a.close()
            c, d = socket.socketpair()
            with b, c, d:
                if c.fileno() != number:
                    loop.remove_reader(number)
                    continue
                loop.add_reader(c, new.append, 1)
                d.send(b"x")
                await until(lambda new=new: new)
                assert old == []
                loop.remove_reader(c)

    run(main(), timeout=30)


class Wrapper:
    """One of several objects for a descriptor."""

    def __init__(self, sock):
        self.fd = sock.fileno()

    def fileno(self):
        return self.fd


def test_several_objects_for_one_descriptor(run, loop, socket_pair):
    async def main():
        ours, theirs = socket_pair()
        seen = []
        one, other = Wrapper(ours), Wrapper(ours)
        loop.add_reader(one, seen.append, "reader")
        loop.add_writer(other, seen.append, "writer")
        theirs.send(b"x")
        await until(lambda: set(seen) == {"reader", "writer"})
        # A replacement, given by an object that doesn't live on.
        loop.add_reader(Wrapper(ours), seen.append, "replacement")
        seen.clear()
        await until(lambda: {"replacement", "writer"} <= set(seen))
        assert "reader" not in seen
        assert loop.remove_reader(one)
        assert loop.remove_writer(other)
        assert not loop.remove_reader(ours)

    run(main(), timeout=30)


def test_a_socket_operation_goes_on_while_another_object_watches_its_descriptor(run, loop, socket_pair):
    async def main():
        ours, theirs = socket_pair()
        ours.setblocking(False)
        seen = []
        received = asyncio.ensure_future(loop.sock_recv(ours, 10))
        await asyncio.sleep(0)
        loop.add_writer(Wrapper(ours), seen.append, 1)
        await until(lambda: seen)
        assert loop.remove_writer(ours)
        theirs.send(b"hello")
        assert await received == b"hello"

    run(main(), timeout=30)


def test_closing_the_loop_leaves_the_users_descriptors_open(new_loop, socket_pair):
    loop = new_loop()
    ours, theirs = socket_pair()
    loop.add_reader(ours, nothing)
    loop.add_writer(ours, nothing)
    loop.close()
    theirs.send(b"x")
    assert ours.recv(10) == b"x"
    number = array.array("i", [0])
    fcntl.ioctl(ours, termios.FIONREAD, number)
    assert number[0] == 0


def test_closing_the_loop_lets_go_of_the_callbacks(new_loop, socket_pair):
    class Callback:
        def __call__(self):
            pass

    loop = new_loop()
    ours, _ = socket_pair()
    callback = Callback()
    watch = weakref.ref(callback)
    loop.add_reader(ours, callback)
    loop.close()
    del callback
    gc.collect()
    assert watch() is None or sys.version_info < (3, 14)
    del loop
    gc.collect()


def test_two_loops_may_watch_one_descriptor_one_after_the_other(new_loop, socket_pair):
    ours, theirs = socket_pair()
    theirs.send(b"x")
    for _ in range(3):
        loop = new_loop()
        loop.add_reader(ours, loop.stop)
        loop.run_forever()
        assert loop.remove_reader(ours) is True
    assert ours.recv(1) == b"x"


def test_descriptors_above_1024_work(run, loop, socket_pair, owned):
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    high = 3000
    if soft <= high:
        pytest.skip(f"RLIMIT_NOFILE is {soft}")
    ours, theirs = socket_pair()
    number = owned(fcntl.fcntl(ours, fcntl.F_DUPFD_CLOEXEC, high))

    async def main():
        theirs.send(b"x")
        await first_call(loop, loop.add_reader, loop.remove_reader, number)
        await first_call(loop, loop.add_writer, loop.remove_writer, number)

    run(main())


def test_readers_come_and_go_fast_without_losing_an_event(run, loop, socket_pair):
    ours, theirs = socket_pair()

    async def main():
        deadline = time.monotonic() + 1
        rounds = 0
        while time.monotonic() < deadline and rounds < 2000:
            future = loop.create_future()
            loop.add_reader(ours, future.set_result, None)
            loop.call_soon(theirs.send, b"x") if rounds % 2 else theirs.send(b"x")
            await future
            loop.remove_reader(ours)
            assert ours.recv(10) == b"x"
            rounds += 1
        assert rounds > 10

    run(main())
