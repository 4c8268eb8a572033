"""Our SSLProtocol against asyncio's: the same bytes, in the same pieces, lead to the same calls.

What runs for each read and write of a TLS connection is compiled; the rest is inherited from asyncio's class, whose
attributes it works on. Here both stand between the same pretended transport and the same application, and everything
that either can see is compared, step by step.
"""

import asyncio
import collections
import random
import ssl
from asyncio import sslproto

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from peers import BufferedRecorder, Recorder, pattern, read, send_all, until

#: Bytes that arrive at once, at most: what the buffer of either class takes.
PIECE = 16 * 1024


class Loop:
    """What an SSLProtocol wants of a loop."""

    def __init__(self, log):
        self.log = log
        self.soon = collections.deque()

    def get_debug(self):
        return False

    def time(self):
        return 0.0

    def create_future(self):
        return asyncio.Future(loop=self)

    def call_soon(self, callback, *args, context=None):
        self.soon.append((callback, args))

    def call_later(self, delay, callback, *args):
        return self

    def cancel(self):
        pass

    def call_exception_handler(self, context):
        self.log.append(("exception handler", context["message"], told(context["exception"])))

    def run(self):
        while self.soon:
            callback, args = self.soon.popleft()
            callback(*args)


def told(exc):
    return exc and (type(exc).__name__, getattr(exc, "reason", None) or str(exc))


class Below:
    """The transport of the socket: what it is asked for goes to the log, and what it sends to the peer."""

    def __init__(self, log):
        self.log = log
        self.sent = bytearray()
        self.closing = False

    def write(self, data):
        self.log.append(("sends", len(data)))
        self.sent += data

    def is_closing(self):
        return self.closing

    def close(self):
        self.closing = True
        self.log.append("closes")

    def abort(self):
        self._force_close(None)

    def _force_close(self, exc):
        self.closing = True
        self.log.append(("aborts", told(exc)))

    def pause_reading(self):
        self.log.append("pauses reading below")

    def resume_reading(self):
        self.log.append("resumes reading below")


class App:
    """The application. `reactions`: what it does, in turn, when data comes."""

    def __init__(self, log, reactions=()):
        self.log = log
        self.reactions = list(reactions)
        self.transport = None

    def connection_made(self, transport):
        self.transport = transport

    def _received(self, data):
        self.log.append(("data", bytes(data)))
        if self.reactions:
            self.reactions.pop(0)(self.transport)

    def pause_writing(self):
        self.log.append("pause_writing")

    def resume_writing(self):
        self.log.append("resume_writing")

    def eof_received(self):
        self.log.append("eof_received")

    def connection_lost(self, exc):
        self.log.append(("connection_lost", told(exc)))


class Whole(App, asyncio.Protocol):
    def data_received(self, data):
        assert type(data) is bytes
        self._received(data)


class Buffered(App, asyncio.BufferedProtocol):
    """With a buffer of 5,000 bytes: less than a record. A memoryview: of others, asyncio fills only the beginning."""

    def get_buffer(self, sizehint):
        self.buffer = memoryview(bytearray(5000))
        return self.buffer

    def buffer_updated(self, nbytes):
        self._received(self.buffer[:nbytes])


def fails(transport):
    raise ZeroDivisionError("the application's")


REACTIONS = {
    "nothing": lambda transport: None,
    "answers": lambda transport: transport.write(b"a" * 700),
    "answers at length": lambda transport: transport.write(b"A" * 70_000),
    "pauses": lambda transport: transport.pause_reading(),
    "closes": lambda transport: transport.close(),
    "aborts": lambda transport: transport.abort(),
    "fails": fails,
}


class Moody(ssl.SSLObject):
    """OpenSSL takes a part only, wants to read first (as in a renegotiation), or fails, when it is told to."""

    moods = ()

    def write(self, data):
        mood = self.moods.pop() if self.moods else "takes it"
        if mood == "wants to read":
            raise ssl.SSLWantReadError
        if mood == "fails":
            raise ssl.SSLError(1, "a mood")
        return super().write(data[: len(data) // 2 + 1] if mood == "takes half" else data)


class Side:
    """One of the two classes, connected to a peer, handshake done. `early`: sizes of what is written before that."""

    def __init__(self, kind, server_context, client_context, application, reactions, early, moods):
        self.log = []
        self.loop = Loop(self.log)
        self.below = Below(self.log)
        self.application = application
        if application == "reader":
            self.reader = asyncio.StreamReader(limit=3000, loop=self.loop)
            self.app = asyncio.StreamReaderProtocol(self.reader, loop=self.loop)
        else:
            self.app = {"whole": Whole, "buffered": Buffered}[application](
                self.log, [REACTIONS[name] for name in reactions]
            )
        self.tls = kind(self.loop, self.app, server_context, None, True)
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.peer_in, self.peer_out = incoming, outgoing
        self.peer = client_context.wrap_bio(incoming, outgoing, server_hostname="localhost")
        self.arriving = bytearray()
        self.paused_below = False
        self.tls.connection_made(self.below)
        self.transport = self.tls._app_transport
        for size in early:
            self.transport.write(b"e" * size)
        while not self._peer_shakes():
            self.arriving += outgoing.read()
            self.step_arrives(len(self.arriving))
            incoming.write(self.below.sent)
            self.below.sent.clear()
        self.arriving += outgoing.read()
        self.step_arrives(len(self.arriving))
        if moods:
            self.tls._sslobj.moods = list(moods)
        # The length of a signature, and so of the handshake, is not always the same.
        self.log.clear()

    def _peer_shakes(self):
        try:
            self.peer.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True

    def step(self, name, argument):
        try:
            getattr(self, f"step_{name}")(argument)
        except Exception as exc:
            self.log.append(("raised", told(exc)))
        self.loop.run()
        transport = self.transport
        self.log.append(name)
        if self.application == "reader":
            self.log.append(("reader", bytes(self.reader._buffer), self.reader.at_eof(), told(self.reader.exception())))
        if transport._ssl_protocol is not None:
            self.log.append(
                (transport.get_write_buffer_size(), transport.get_read_buffer_size(), transport.is_reading())
            )
            self.log.append(transport.is_closing())

    def step_peer_sends(self, size):
        self.peer.write(bytes(size % 251 for _ in range(size)) or b"x")
        self.arriving += self.peer_out.read()

    def step_peer_closes(self, _):
        try:
            self.peer.unwrap()
        except ssl.SSLError:
            pass
        self.arriving += self.peer_out.read()

    def step_spoil(self, place):
        if self.arriving:
            self.arriving[place % len(self.arriving)] ^= 0x55

    def step_arrives(self, size):
        """So many of the bytes that the peer has sent, if the transport below would still read."""
        piece = self.arriving[:size]
        if not piece or self.below.closing:
            return
        piece = piece[:PIECE]
        buffer = self.tls.get_buffer(-1)
        del self.arriving[: len(piece)]
        buffer[: len(piece)] = piece
        self.tls.buffer_updated(len(piece))

    def step_write(self, size):
        self.transport.write([bytes, bytearray, lambda n: memoryview(bytes(n))][size % 3](size))

    def step_writelines(self, size):
        self.transport.writelines([b"", b"1" * size, bytearray(size // 2)])

    def step_write_wrong(self, _):
        self.transport.write("text")

    def step_pause(self, _):
        self.transport.pause_reading()

    def step_resume(self, _):
        self.transport.resume_reading()

    def step_below_pauses(self, _):
        if not self.paused_below:
            self.paused_below = True
            self.tls.pause_writing()

    def step_below_resumes(self, _):
        if self.paused_below:
            self.paused_below = False
            self.tls.resume_writing()

    def step_limits(self, high):
        self.transport.set_write_buffer_limits(high, high // 3)

    def step_read_limits(self, high):
        self.transport.set_read_buffer_limits(high, high // 3)

    def step_switch(self, _):
        if self.application == "whole":
            log, transport = self.log, self.app.transport
            self.transport.set_protocol(Buffered(log))
            self.transport.get_protocol().transport = transport

    def step_eof(self, _):
        self.tls.eof_received()

    def step_lost(self, _):
        if self.below.closing:
            self.tls.connection_lost(None)

    def step_close(self, _):
        self.transport.close()

    def step_abort(self, _):
        self.transport.abort()

    def arrived(self):
        """What the peer can read of what was sent."""
        self.peer_in.write(self.below.sent)
        self.below.sent.clear()
        data = bytearray()
        try:
            while piece := self.peer.read(1 << 20):
                data += piece
        except ssl.SSLError as exc:
            return bytes(data), told(exc)
        return bytes(data), "end"


SIZES = st.one_of(st.integers(0, 50), st.integers(51, 3000), st.sampled_from([16383, 16384, 16385, 40_000, 200_000]))
HARMLESS = st.one_of(
    st.tuples(st.just("arrives"), SIZES),
    st.tuples(st.just("arrives"), st.just(PIECE)),
    st.tuples(st.just("peer_sends"), SIZES),
    st.tuples(st.sampled_from(["write", "writelines", "limits", "read_limits"]), SIZES),
    st.tuples(
        st.sampled_from(["pause", "resume", "below_pauses", "below_resumes", "switch", "write_wrong"]), st.just(0)
    ),
)
ENDS = st.tuples(st.sampled_from(["spoil", "peer_closes", "eof", "lost", "close", "abort"]), SIZES)


@pytest.fixture(scope="module")
def contexts(authority):
    """Each pair of contexts, (server, client): plain or moody, of each version."""
    made = {}
    for moody in (False, True):
        server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("localhost").configure_cert(server)
        if moody:
            server.sslobject_class = Moody
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            client.maximum_version = version
            authority.configure_trust(client)
            made[moody, version] = server, client
    return made


@pytest.mark.netpoll_only("compares the two classes")
@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(["whole", "buffered", "reader"]),
    st.lists(st.sampled_from(sorted(REACTIONS)), max_size=4),
    st.lists(HARMLESS, max_size=20),
    st.lists(st.one_of(HARMLESS, ENDS), max_size=12),
    st.sampled_from([ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]),
    st.lists(SIZES, max_size=2),
    st.lists(st.sampled_from(["takes it", "takes it", "takes half", "wants to read", "fails"]), max_size=5),
)
def test_every_step_has_the_same_effect_as_with_asyncios_class(
    contexts, application, reactions, first, rest, version, early, moods
):
    from netpoll_loop._core.tls import SSLProtocol

    asyncios, ours = (
        Side(kind, *contexts[bool(moods), version], application, reactions, early, moods)
        for kind in (sslproto.SSLProtocol, SSLProtocol)
    )
    for name, argument in (*first, *rest):
        asyncios.step(name, argument)
        ours.step(name, argument)
        assert ours.log == asyncios.log
    assert ours.arrived() == asyncios.arrived()


# --- through a loop ---------------------------------------------------------------------------------------------------


class RawPeer:
    """The client's end, of which the test sees the records."""

    def __init__(self, sock, context):
        self.sock = sock
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_hostname="localhost")

    async def shake(self):
        while True:
            try:
                return self.tls.do_handshake()
            except ssl.SSLWantReadError:
                await send_all(self.sock, self.outgoing.read())
                self.incoming.write(await read(self.sock))
            finally:
                await send_all(self.sock, self.outgoing.read())

    def records(self, data):
        self.tls.write(data)
        return self.outgoing.read()

    async def read_exactly(self, count):
        data = bytearray()
        while len(data) < count:
            try:
                data += self.tls.read(count - len(data))
            except ssl.SSLWantReadError:
                self.incoming.write(await read(self.sock))
        return bytes(data)


@pytest.fixture
def shake(loop, tcp_pair, server_context, client_context):
    """`await shake(factory, upgraded=False)` -> transport, protocol of the server's end; the peer."""

    async def shake(factory, upgraded=False):
        sock, far = tcp_pair()
        peer = RawPeer(far, client_context)
        if upgraded:
            plain, protocol = await loop.connect_accepted_socket(factory, sock)
            starting = loop.start_tls(plain, protocol, server_context, server_side=True)
            transport, _ = await asyncio.gather(starting, peer.shake())
        else:
            accepting = loop.connect_accepted_socket(factory, sock, ssl=server_context)
            (transport, protocol), _ = await asyncio.gather(accepting, peer.shake())
        return transport, protocol, peer

    return shake


class ViewRecorder(BufferedRecorder):
    def get_buffer(self, sizehint):
        return memoryview(self.buffer)


ASYNCIOS_COPIES = pytest.mark.not_on_oracle("cpython gh-156275: all but the first record is decrypted into copies")


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    "application", [Recorder, pytest.param(BufferedRecorder, marks=ASYNCIOS_COPIES), ViewRecorder, "reader"]
)
def test_records_that_come_in_any_pieces_are_one_stream(run, shake, application, seed):
    dice = random.Random(seed)
    sizes = [dice.choice([1, 100, 1000, 16384, 50_000, 200_000]) for _ in range(30)]
    data = pattern(sum(sizes), seed)

    async def main():
        reader = asyncio.StreamReader(limit=100_000)
        factory = application if application != "reader" else lambda: asyncio.StreamReaderProtocol(reader)
        transport, protocol, peer = await shake(factory)

        async def send():
            start = 0
            waiting = bytearray()
            for size in sizes:
                waiting += peer.records(data[start : start + size])
                start += size
                while waiting and dice.random() < 0.8:
                    count = dice.choice([1, 5, 100, 1000, 20_000, 1 << 20])
                    await send_all(peer.sock, waiting[:count])
                    del waiting[:count]
                    await asyncio.sleep(0)
            with pytest.raises(ssl.SSLWantReadError):
                peer.tls.unwrap()
            await send_all(peer.sock, waiting + peer.outgoing.read())

        sending = asyncio.ensure_future(send())
        if application == "reader":
            received = await reader.read()
        else:
            await until(lambda: "eof_received" in protocol.calls)
            received = protocol.data
        await sending
        assert received == data
        transport.close()

    run(main(), timeout=20)


@pytest.mark.parametrize("seed", range(4))
def test_what_is_written_in_any_pieces_is_one_stream(run, shake, seed):
    dice = random.Random(seed)
    sizes = [dice.choice([0, 1, 100, 1000, 16384, 50_000, 200_000]) for _ in range(40)]
    data = pattern(sum(sizes), seed)

    async def main():
        transport, protocol, peer = await shake(Recorder)
        transport.set_write_buffer_limits(dice.choice([0, 1000, 100_000, 10_000_000]))
        reading = asyncio.ensure_future(peer.read_exactly(len(data)))
        start = 0
        for size in sizes:
            piece = data[start : start + size]
            start += size
            if dice.random() < 0.2:
                transport.writelines([piece[: size // 2], bytearray(piece[size // 2 :])])
            else:
                transport.write(dice.choice([bytes, bytearray, memoryview])(piece))
            if dice.random() < 0.5:
                await asyncio.sleep(0)
        assert await reading == data
        assert protocol.calls.count("pause_writing") - protocol.calls.count("resume_writing") in (0, 1)
        transport.abort()

    run(main(), timeout=20)


@pytest.mark.netpoll_only("asyncio has a buffer of 256 KiB for each connection")
@pytest.mark.parametrize("upgraded", [False, True])
def test_a_connection_has_no_large_buffer_of_its_own(run, shake, upgraded):
    """Also where asyncio's start_tls() has made the protocol, with such a buffer."""

    async def main():
        transport, _, _ = await shake(Recorder, upgraded)
        assert type(transport._ssl_protocol) is not sslproto.SSLProtocol
        assert isinstance(transport._ssl_protocol, sslproto.SSLProtocol)
        assert len(transport._ssl_protocol._ssl_buffer) <= PIECE
        transport.abort()

    run(main())
