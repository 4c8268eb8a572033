"""What the loop holds in memory: bounded while a peer is slower or faster than we are, and given back afterwards.

The bounds are those of docs/semantics.md, "Memory". Nothing here looks at a clock but to end a test that hangs.
"""

import array
import asyncio
import contextlib
import ctypes
import fcntl
import gc
import resource
import socket
import sys
import termios
import threading
import time

import pytest
from conftest import MODES, RUN_LIMIT, SWITCHING, open_fds
from peers import POLL, Recorder, pattern, put_away, turns, until

KIB = 1024
MIB = 1024 * KIB

#: Read ahead: of one connection, of all connections of a loop, and at once.
AHEAD = 256 * KIB
AHEAD_ALL = 64 * MIB
ONE_READ = 256 * KIB
#: What "dedicated" reads of a connection beyond that, if it holds nothing else of it.
FIRST_READ = 16 * KIB

#: Written in "auto" to one transport, before the turn's end.
BATCH = 256 * KIB

#: The limit of a transport unless set_write_buffer_limits() says otherwise, and of a StreamReader.
HIGH = 64 * KIB

GREETING = b"!"


def stats(loop):
    import netpoll_loop

    return netpoll_loop.stats(loop)


def in_kernel(sock):
    """Bytes that wait in the socket to be received; of a Unix socket all that its peer's kernel has accepted."""
    count = array.array("i", [0])
    fcntl.ioctl(sock, termios.FIONREAD, count)
    return count[0]


@pytest.fixture
def many_fds():
    """`many_fds(wanted)`: how many descriptors may be opened, once the soft limit is where it can be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)

    def raise_limit(wanted):
        used = max(open_fds()) + 1
        limit = used + wanted + 100
        if hard != resource.RLIM_INFINITY:
            limit = min(limit, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, limit), hard))
        return min(wanted, max(soft, limit) - used - 100)

    yield raise_limit
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# --- a load that ends -------------------------------------------------------------------------------------------------


class _Mallinfo(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks")] + [
        (name, ctypes.c_size_t) for name in ("fsmblks", "uordblks", "fordblks", "keepcost")
    ]


def allocated():
    """(bytes that malloc has given out and not got back, Python's small objects); no bytes without glibc 2.33."""
    gc.collect()
    try:
        mallinfo2 = ctypes.CDLL(None).mallinfo2
    except AttributeError:
        return 0, sys.getallocatedblocks()
    mallinfo2.restype = _Mallinfo
    info = mallinfo2()
    return info.uordblks + info.hblkhd, sys.getallocatedblocks()


QUESTION = pattern(2000)
ANSWER = pattern(20_000)


class Answering(asyncio.Protocol):
    """Reads nothing until told; its socket takes a part of the answer only."""

    def __init__(self, load):
        self.load = load
        self.asked = 0

    def connection_made(self, transport):
        self.transport = transport
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * KIB)
        transport.pause_reading()
        # Says which client it serves: not all come in the order in which they have connected.
        transport.write(GREETING)
        self.load.served.append(self)

    def data_received(self, data):
        self.asked += len(data)
        if self.asked == len(QUESTION):
            for at in range(0, len(ANSWER), 5000):
                self.transport.write(ANSWER[at : at + 5000])
            self.load.answered += 1

    def connection_lost(self, exc):
        self.load.lost += 1


class Load:
    """Connections that are all open at once, with data in each direction that waits; they end in each way there is."""

    def __init__(self, count, path):
        self.count = count
        self.path = str(path)
        self.served = []
        self.answered = self.lost = 0

    async def run(self, loop):
        before = stats(loop).descriptors
        server = await loop.create_unix_server(lambda: Answering(self), self.path, backlog=128)
        clients = []
        try:
            while len(clients) < self.count:
                for _ in range(min(100, self.count - len(clients))):
                    client = socket.socket(socket.AF_UNIX)
                    clients.append(client)
                    client.connect(self.path)
                    client.setblocking(False)
                await until(lambda: len(self.served) == len(clients))
            assert stats(loop).descriptors >= before + self.count
            for client in clients:
                client.send(QUESTION)
            if stats(loop).mode == "dedicated":
                await until(lambda: stats(loop).bytes_ahead == self.count * len(QUESTION))
            else:
                assert stats(loop).bytes_ahead == 0
            quarter = self.count // 4
            for protocol in self.served[:quarter]:
                protocol.transport.abort()  # what was asked has not been read
            for protocol in self.served[quarter:]:
                protocol.transport.resume_reading()
            await until(lambda: self.answered == self.count - quarter)
            await until(lambda: stats(loop).bytes_unsent == self.buffered())
            assert stats(loop).bytes_unsent > self.count * 5000
            for protocol in self.served[quarter : 2 * quarter]:
                protocol.transport.abort()  # what was answered has not been sent
            for protocol in self.served[2 * quarter : 3 * quarter]:
                protocol.transport.close()  # once it was sent
            received = 0
            for client in clients:
                with contextlib.suppress(ConnectionResetError):
                    received += await self.read(client)
                client.close()
            assert received >= (self.count - 2 * quarter) * len(ANSWER)
            await until(lambda: self.lost == self.count)
        finally:
            for client in clients:
                client.close()
            server.close()
            await server.wait_closed()
            self.served.clear()
        await turns()
        now = stats(loop)
        assert (now.descriptors, now.bytes_ahead, now.bytes_unsent) == (before, 0, 0)

    def buffered(self):
        return sum(protocol.transport.get_write_buffer_size() for protocol in self.served)

    async def read(self, client):
        """To the end, or as long as an answer is; a client that was cut off has less."""
        size = 0
        while size < len(GREETING) + len(ANSWER):
            try:
                piece = client.recv(MIB)
            except BlockingIOError:
                await asyncio.sleep(0)
                continue
            if not piece:
                break
            size += len(piece)
        return size


@pytest.mark.netpoll_only("its counters")
def test_after_a_load_of_thousands_of_connections_all_is_as_before(new_loop, run, many_fds, tmp_path):
    count = min(5000, many_fds(10_000) // 2)
    assert count >= 100, "not enough descriptors"

    def load(loop, count):
        (tmp_path / "socket").unlink(missing_ok=True)
        run(Load(count, tmp_path / "socket").run(loop), timeout=40, on=loop)
        return allocated()

    loop = new_loop()
    base, base_blocks = load(loop, 100)
    first, first_blocks = load(loop, count)
    for _ in range(2):
        again, again_blocks = load(loop, count)
    loop.close()
    end, end_blocks = allocated()
    print(f"{count} connections; malloc: {base} after 100, {first}, {again}, {end} closed")
    print(f"blocks: {base_blocks} after 100, {first_blocks}, {again_blocks}, {end_blocks} closed")
    # The table of descriptors stays, tables that are as large as they have been (of callbacks, of transports), and
    # at most 1,024 handles of each kind.
    assert first - base < (2 * count + 256) * 200 + 512 * KIB
    assert first_blocks - base_blocks < 4000
    # 32 bytes lost for each connection would be more.
    assert again - first < 256 * KIB
    assert again_blocks - first_blocks < 1000
    assert end - base < 256 * KIB
    assert end_blocks - base_blocks < 1000


# --- a peer that never reads ------------------------------------------------------------------------------------------


class Writer(Recorder):
    """Writes while it may, as one does with StreamWriter.drain(): it waits between pause_writing and resume_writing."""

    def __init__(self):
        super().__init__()
        self.may_write = asyncio.Event()
        self.may_write.set()
        self.written = 0
        self.largest = 0

    def pause_writing(self):
        super().pause_writing()
        self.may_write.clear()

    def resume_writing(self):
        super().resume_writing()
        self.may_write.set()

    async def write(self, data, piece, ask):
        while self.written < len(data):
            self.transport.write(data[self.written : self.written + piece])
            self.written += len(data[self.written : self.written + piece])
            if ask:
                self.largest = max(self.largest, self.transport.get_write_buffer_size())
            await self.may_write.wait()  # at once, without a turn of the loop, while it may


@pytest.mark.parametrize("ask", [False, True], ids=["silent", "asking"])
@pytest.mark.parametrize("piece", [1000, 20_000, 100_000])
@pytest.mark.parametrize("high", [10_000, None, MIB])
def test_a_writer_that_waits_when_told_is_held_by_a_peer_that_never_reads(
    loop, run, socket_pair, mode, high, piece, ask
):
    """At the limit and one write. Whoever asks for the size of the buffer never finds more, in "auto" neither."""
    sock, peer = socket_pair()
    data = pattern(3 * MIB)

    async def main():
        transport, protocol = await loop.create_connection(Writer, sock=sock)
        if high is not None:
            transport.set_write_buffer_limits(high=high)
        task = asyncio.create_task(protocol.write(data, piece, ask))
        written = -1
        while protocol.may_write.is_set() or protocol.written != written:
            assert not task.done()
            written = protocol.written
            await turns()
        assert protocol.calls[-1] == "pause_writing"
        size = transport.get_write_buffer_size()
        assert written == size + in_kernel(peer)

        limit = high or HIGH
        assert protocol.largest <= limit + piece
        if mode in ("auto", SWITCHING) and not ask and limit >= HIGH:
            limit = max(limit, BATCH)
        assert size <= limit + piece
        if mode in (*MODES, SWITCHING):
            assert stats(loop).bytes_unsent == size

        # And goes on when it is read.
        received = bytearray()
        while len(received) < len(data):
            try:
                received += peer.recv(MIB)
            except BlockingIOError:
                await asyncio.sleep(POLL)
        await task
        assert received == data
        await until(lambda: not transport.get_write_buffer_size())
        if mode in (*MODES, SWITCHING):
            assert stats(loop).bytes_unsent == 0
        put_away(transport)
        await turns()

    run(main(), timeout=20)


def test_a_buffer_over_the_limit_has_paused_its_protocol_whoever_asks_for_its_size(loop, run, socket_pair, mode):
    """What "auto" sends at the end of the turn is sent by the asking: then its size and what was told have to agree."""
    sock, peer = socket_pair()

    async def main():
        transport, protocol = await loop.create_connection(Writer, sock=sock)
        for _ in range(20):
            transport.write(bytes(100_000))
            if transport.get_write_buffer_size() > HIGH:
                break
        assert not protocol.may_write.is_set()
        transport.abort()
        await turns()

    run(main())


@pytest.mark.parametrize("end", ["sent", "aborted"])
def test_an_idle_loop_keeps_nothing_that_it_was_given_to_write(loop, run, socket_pair, end):
    """Sent or thrown away, the bytes are freed although nothing happens in the loop from then on."""
    pairs = [socket_pair() for _ in range(20)]
    threads = []

    def watch(data, unused, over):
        deadline = time.monotonic() + 5
        while (used := [sys.getrefcount(piece) for piece in data]) != unused and time.monotonic() < deadline:
            time.sleep(POLL)
        loop.call_soon_threadsafe(over.set_result, sum(a - b for a, b in zip(used, unused, strict=True)))

    def write(transports, data, over):
        unused = [sys.getrefcount(piece) for piece in data]
        for transport in transports:
            for piece in data:
                transport.write(piece)
            if end == "aborted":
                assert transport.get_write_buffer_size() > 0
                transport.abort()
        threads.append(threading.Thread(target=watch, args=(data, unused, over)))
        threads[-1].start()

    async def main():
        transports = []
        for sock, _ in pairs:
            if end == "sent":
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MIB)
            transports.append((await loop.create_connection(Recorder, sock=sock))[0])
        await turns()
        # Where "auto" changes its mind about who sends in every turn, each of the three has its turn in three rounds.
        for delay in (0, 0, 0, 1, 1, 1) if end == "sent" else (0,):
            data = [bytes([i]) * (40_000 if end == "sent" else 400_000) for i in range(3)]
            over = loop.create_future()
            for _ in range(delay):
                await asyncio.sleep(0)
            loop.call_soon(write, transports, data, over)
            assert await over == 0
            for _, peer in pairs:
                with contextlib.suppress(BlockingIOError):
                    while peer.recv(MIB):
                        pass
        for transport in transports:
            put_away(transport)
        await turns()

    try:
        run(main(), timeout=40)
    finally:
        for thread in threads:
            thread.join(RUN_LIMIT)


# --- a peer that is faster than Python --------------------------------------------------------------------------------

STREAM = pattern(2 * MIB)


class Reading(asyncio.Protocol):
    """What it gets is the part of STREAM that begins at `start`."""

    def __init__(self, start=0):
        self.start = start
        self.received = 0
        self.lost = False

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        at = self.start + self.received
        assert STREAM[at : at + len(data)] == data
        self.received += len(data)

    def connection_lost(self, exc):
        self.lost = True


class Flood:
    """Peers that send to Unix sockets as fast as these take it: `size` bytes of STREAM each, from its own start."""

    def __init__(self, loop, pairs, size):
        self.loop = loop
        self.socks = [sock for sock, _ in pairs]
        self.peers = [peer for _, peer in pairs]
        self.starts = [i * 1009 for i in range(len(pairs))]
        self.size = size
        self.sent = [0] * len(pairs)
        assert self.starts[-1] + size <= len(STREAM)

    def push(self):
        """Sends what the sockets take; the number of bytes."""
        before = sum(self.sent)
        view = memoryview(STREAM)
        for i, (peer, start) in enumerate(zip(self.peers, self.starts, strict=True)):
            with contextlib.suppress(BlockingIOError):
                while self.sent[i] < self.size:
                    end = min(self.sent[i] + 64 * KIB, self.size)
                    self.sent[i] += peer.send(view[start + self.sent[i] : start + end])
        return sum(self.sent) - before

    def taken(self):
        """Bytes that have left the kernel at our end."""
        return sum(self.sent) - sum(map(in_kernel, self.socks))

    def steps(self, full):
        """Steps, with a pause after each, until nobody takes anything any more although full() holds."""
        deadline = time.monotonic() + RUN_LIMIT
        still, before = 0, None
        while still < 20:
            moved, now = self.push(), self.taken()
            still = 0 if moved or now != before or not full() else still + 1
            before = now
            assert time.monotonic() < deadline, f"{now} taken, {stats(self.loop)}"
            yield

    async def fill_beside_a_blocked_callback(self, full):
        """taken() at the end of the callback."""
        done = self.loop.create_future()

        def block():
            try:
                for _ in self.steps(full):
                    time.sleep(POLL)
                done.set_result(self.taken())
            except BaseException as exc:
                done.set_exception(exc)

        self.loop.call_soon(block)
        return await done

    async def fill(self, full):
        for _ in self.steps(full):
            await asyncio.sleep(POLL)
        return self.taken()

    async def finish(self, protocols):
        """The rest is sent, and all of it arrives."""
        while any(protocol.received < self.size for protocol in protocols):
            assert not any(protocol.lost for protocol in protocols)
            self.push()
            await asyncio.sleep(POLL)
        assert self.sent == [protocol.received for protocol in protocols]


def reads_ahead(mode, how):
    """ "auto" does it in a stall, and leaves alone what is paused."""
    return mode == "dedicated" or (mode in ("auto", SWITCHING) and how == "blocked")


async def flooded(loop, pairs, size, how, bound):
    """What was read ahead of protocols that don't get it, because of a callback that blocks or since they have paused.

    Then they get all of it. Where anything is read ahead, it is as much as the bound says.
    """
    flood = Flood(loop, pairs, size)
    protocols = []
    for (sock, _), start in zip(pairs, flood.starts, strict=True):
        _, protocol = await loop.create_connection(lambda start=start: Reading(start), sock=sock)
        protocols.append(protocol)
    await turns()

    def full():
        return not reads_ahead(stats(loop).mode, how) or stats(loop).bytes_ahead >= bound

    if how == "paused":
        for protocol in protocols:
            protocol.transport.pause_reading()
        taken = await flood.fill(full)
        ahead = stats(loop).bytes_ahead
        assert not any(protocol.received for protocol in protocols)
        for protocol in protocols:
            protocol.transport.resume_reading()
        await flood.finish(protocols)
    else:
        taken = await flood.fill_beside_a_blocked_callback(full)
        ahead = None
        await flood.finish(protocols)
    assert ahead in (None, taken)
    assert stats(loop).bytes_ahead == 0
    for protocol in protocols:
        put_away(protocol.transport)
    await turns()
    return taken


@pytest.mark.netpoll_only("receiving ahead")
@pytest.mark.parametrize("how", ["blocked", "paused"])
def test_what_is_read_ahead_of_one_connection_is_bounded(loop, run, socket_pair, mode, how):
    taken = run(flooded(loop, [socket_pair()], MIB, how, AHEAD), timeout=20)
    assert taken == (AHEAD if reads_ahead(mode, how) else 0)


@pytest.mark.netpoll_only("receiving ahead")
@pytest.mark.parametrize("how", ["blocked", "paused"])
def test_what_is_read_ahead_of_all_connections_is_bounded(loop, run, socket_pair, mode, how, many_fds):
    """None of them is at its own bound when the loop is."""
    size, count = 240 * KIB, 300
    if many_fds(2 * count) < 2 * count:
        pytest.skip("not enough descriptors")
    pairs = [socket_pair() for _ in range(count)]
    taken = run(flooded(loop, pairs, size, how, AHEAD_ALL), timeout=30)
    if reads_ahead(mode, how):
        assert AHEAD_ALL <= taken < AHEAD_ALL + ONE_READ + count * FIRST_READ
    else:
        assert taken == 0


@pytest.mark.parametrize("limit", [1000, HIGH])
def test_a_stream_reader_that_nobody_reads_is_bounded(loop, run, socket_pair, mode, limit):
    """asyncio's reader pauses over twice its limit, so that it has at most one receive more."""
    sock, peer = socket_pair()

    async def main():
        reader, writer = await asyncio.open_connection(sock=sock, limit=limit)
        sent, before = 0, None
        view = memoryview(STREAM)
        while writer.transport.is_reading() or sent != before:
            before = sent
            with contextlib.suppress(BlockingIOError):
                while sent < len(view):
                    sent += peer.send(view[sent : sent + 64 * KIB])
            await turns()
        ahead = AHEAD if mode == "dedicated" else 0
        assert sent - in_kernel(sock) <= 2 * limit + ONE_READ + ahead
        received = await reader.read(MIB)
        while len(received) < len(view):
            with contextlib.suppress(BlockingIOError):
                while sent < len(view):
                    sent += peer.send(view[sent : sent + 64 * KIB])
            received += await reader.read(MIB)
        assert received == STREAM
        writer.close()
        await writer.wait_closed()

    run(main())
