"""TLS over the transports of the loop: ssl=, start_tls, handshakes that fail, large data, the orderly end."""

import asyncio
import socket
import ssl

import pytest
from peers import Echo, Recorder, pattern, put_away, read_to_end, send_all, turns, until


@pytest.fixture
def distrusting_context():
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


@pytest.fixture
def secure_pair(loop, server_context, client_context):
    """`await secure_pair(client_factory, server_factory)` -> transport, protocol of the client; those of the server."""
    made = []

    async def secure_pair(client=Recorder, server=Recorder, **options):
        def factory():
            made.append(server())
            return made[-1]

        listening = await loop.create_server(factory, "127.0.0.1", 0, ssl=server_context, **options)
        transport, protocol = await loop.create_connection(
            client, *listening.sockets[0].getsockname(), ssl=client_context, server_hostname="localhost", **options
        )
        made.append(protocol)
        await until(lambda: made[0].transport)
        listening.close()
        return transport, protocol, made[0].transport, made[0]

    yield secure_pair

    async def close():
        for protocol in made:
            if protocol.transport is not None and not protocol.transport.is_closing():
                protocol.transport.abort()
        await turns(3)

    loop.run_until_complete(close())


def test_both_sides_talk_and_know_the_other(run, secure_pair):
    async def main():
        transport, client, server_transport, server = await secure_pair()
        assert isinstance(transport, asyncio.Transport)
        transport.write(b"to the server")
        server_transport.writelines([b"to ", b"the client"])
        await until(lambda: server.data == b"to the server" and client.data == b"to the client")
        assert isinstance(transport.get_extra_info("ssl_object"), ssl.SSLObject)
        assert ("DNS", "localhost") in transport.get_extra_info("peercert")["subjectAltName"]
        assert transport.get_extra_info("cipher") == transport.get_extra_info("ssl_object").cipher()
        assert transport.get_extra_info("sslcontext") is not None
        assert transport.get_extra_info("peername") == server_transport.get_extra_info("sockname")
        assert isinstance(transport.get_extra_info("socket"), asyncio.trsock.TransportSocket)
        transport.close()
        await until(lambda: client.lost and server.lost)
        assert client.lost_with is None
        assert server.lost_with is None
        assert server.calls == ["connection_made", "data", "eof_received", "connection_lost"]

    run(main())


def test_megabytes_cross_both_ways_intact(run, secure_pair):
    async def main():
        transport, client, server_transport, server = await secure_pair()
        data = pattern(8 << 20)
        for start in range(0, len(data), 100000):
            transport.write(data[start : start + 100000])
            server_transport.write(memoryview(data)[start : start + 100000])
        await until(lambda: len(client.data) == len(server.data) == len(data))
        assert client.data == data
        assert server.data == data
        assert client.calls.count("pause_writing") == client.calls.count("resume_writing") > 0

    run(main(), timeout=30)


def test_close_sends_what_is_queued_first(run, secure_pair):
    async def main():
        transport, client, _, server = await secure_pair()
        data = pattern(3 << 20)
        transport.write(data)
        transport.close()
        await until(lambda: server.lost and client.lost)
        assert server.data == data

    run(main(), timeout=30)


def test_reading_pauses_and_resumes(run, secure_pair):
    async def main():
        transport, client, server_transport, _ = await secure_pair()
        transport.pause_reading()
        assert not transport.is_reading()
        server_transport.write(b"held back")
        await turns()
        assert not client.data
        transport.resume_reading()
        await until(lambda: client.data == b"held back")

    run(main())


def test_abort_ends_both_sides(run, secure_pair):
    async def main():
        transport, client, _, server = await secure_pair()
        transport.abort()
        await until(lambda: client.lost and server.lost)
        assert client.lost_with is None

    run(main())


def test_streams_speak_tls(run, server_context, client_context):
    async def serve(reader, writer):
        writer.write((await reader.readline()).upper())
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    async def main():
        server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=server_context)
        async with server:
            reader, writer = await asyncio.open_connection(
                *server.sockets[0].getsockname(), ssl=client_context, server_hostname="localhost"
            )
            writer.write(b"hello\n")
            assert await reader.read() == b"HELLO\n"
            writer.close()
            await writer.wait_closed()

    run(main())


def test_tls_over_unix_sockets(run, server_context, client_context, tmp_path):
    async def serve(reader, writer):
        writer.write(await reader.readline())
        await writer.drain()
        writer.close()

    async def main():
        server = await asyncio.start_unix_server(serve, tmp_path / "tls", ssl=server_context)
        reader, writer = await asyncio.open_unix_connection(
            tmp_path / "tls", ssl=client_context, server_hostname="localhost"
        )
        writer.write(b"hello\n")
        assert await reader.readline() == b"hello\n"
        writer.close()
        await writer.wait_closed()
        server.close()
        await server.wait_closed()

    run(main())


def test_many_handshakes_at_once_all_succeed(run, loop, server_context, client_context):
    async def client(address, number):
        reader, writer = await asyncio.open_connection(*address, ssl=client_context, server_hostname="localhost")
        writer.write(b"%d" % number)
        assert await reader.readexactly(len(str(number))) == b"%d" % number
        writer.close()
        await writer.wait_closed()

    async def main():
        server = await loop.create_server(Echo, "127.0.0.1", 0, ssl=server_context)
        await asyncio.gather(*(client(server.sockets[0].getsockname(), i) for i in range(50)))
        server.close()
        await server.wait_closed()

    run(main(), timeout=30)


# --- start_tls --------------------------------------------------------------------------------------------------------


def test_start_tls_turns_a_plain_connection_into_a_secure_one_on_both_sides(
    run, loop, socket_pair, server_context, client_context
):
    async def main():
        one, other = socket_pair()
        transport, plain = await loop.create_connection(Recorder, sock=one)
        server_transport, server_plain = await loop.create_connection(Recorder, sock=other)
        transport.write(b"STARTTLS")
        await until(lambda: server_plain.data == b"STARTTLS")
        client, server = Recorder(), Recorder()
        secure, server_secure = await asyncio.gather(
            loop.start_tls(transport, client, client_context, server_hostname="localhost"),
            loop.start_tls(server_transport, server, server_context, server_side=True),
        )
        assert secure is not transport
        data = pattern(1 << 20)
        secure.write(data)
        server_secure.write(data)
        await until(lambda: len(client.data) == len(server.data) == len(data))
        assert client.data == server.data == data
        assert "connection_made" not in client.calls
        secure.close()
        await until(lambda: client.lost and server.lost)
        assert plain.calls == ["connection_made"]
        assert server_plain.calls == ["connection_made", "data"]
        await turns(1)

    run(main())


def test_data_that_the_peer_sent_right_behind_its_hello_is_not_lost(
    run, loop, tcp_pair, server_context, client_context
):
    """The plain end does the handshake in one go while the loop's end has not asked for TLS yet."""

    async def main():
        sock, peer = tcp_pair()
        transport, plain = await loop.create_connection(Recorder, sock=sock)
        transport.pause_reading()

        def talk():
            peer.settimeout(10)
            with client_context.wrap_socket(peer, server_hostname="localhost") as secure:
                secure.sendall(b"right behind")
                return secure.recv(100)

        talking = loop.run_in_executor(None, talk)
        await turns()
        server = Recorder()
        secure = await loop.start_tls(transport, server, server_context, server_side=True)
        await until(lambda: server.data == b"right behind")
        secure.write(b"answer")
        assert await talking == b"answer"
        secure.abort()
        await until(lambda: server.lost)
        assert plain.calls == ["connection_made"]

    run(main())


def test_streams_upgrade_with_start_tls(run, server_context, client_context):
    async def serve(reader, writer):
        assert await reader.readline() == b"STARTTLS\n"
        writer.write(b"OK\n")
        await writer.drain()
        await writer.start_tls(server_context)
        writer.write((await reader.readline()).upper())
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    async def main():
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with server:
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            writer.write(b"STARTTLS\n")
            assert await reader.readline() == b"OK\n"
            await writer.start_tls(client_context, server_hostname="localhost")
            assert writer.get_extra_info("ssl_object") is not None
            writer.write(b"secret\n")
            assert await reader.readline() == b"SECRET\n"
            writer.close()
            await writer.wait_closed()

    run(main())


@pytest.mark.parametrize("wrong", ["context", "transport"])
def test_start_tls_refuses_what_asyncio_refuses(run, loop, socket_pair, client_context, wrong):
    async def main():
        one, _ = socket_pair()
        transport, protocol = await loop.create_connection(Recorder, sock=one)
        if wrong == "context":
            with pytest.raises(TypeError, match="sslcontext is expected to be an instance of ssl.SSLContext, got None"):
                await loop.start_tls(transport, protocol, None)
        else:
            with pytest.raises(TypeError, match=r"transport .* is not supported by start_tls\(\)"):
                await loop.start_tls(asyncio.Transport(), protocol, client_context)
        put_away(transport)
        await turns(1)

    run(main())


# --- failing ----------------------------------------------------------------------------------------------------------


def test_an_unknown_authority_fails_the_handshake_on_both_sides(
    run, loop, exceptions, server_context, distrusting_context
):
    async def main():
        made = []

        def factory():
            made.append(Recorder())
            return made[-1]

        server = await loop.create_server(factory, "127.0.0.1", 0, ssl=server_context)
        with pytest.raises(ssl.SSLCertVerificationError):
            await loop.create_connection(
                Recorder, *server.sockets[0].getsockname(), ssl=distrusting_context, server_hostname="localhost"
            )
        await until(lambda: made)
        await turns()
        assert made[0].calls == []
        server.close()
        await server.wait_closed()

    run(main())


def test_a_wrong_host_name_fails_the_handshake(run, loop, server_context, client_context):
    async def main():
        server = await loop.create_server(Recorder, "127.0.0.1", 0, ssl=server_context)
        with pytest.raises(ssl.SSLCertVerificationError, match="ostname mismatch"):
            await loop.create_connection(
                Recorder, *server.sockets[0].getsockname(), ssl=client_context, server_hostname="elsewhere"
            )
        server.close()
        await server.wait_closed()

    run(main())


def test_a_peer_that_does_not_speak_tls_fails_the_handshake(run, loop, socket_pair, client_context):
    async def main():
        one, peer = socket_pair()
        peer.send(b"HTTP/1.0 400 what?\r\n\r\n")
        with pytest.raises(ssl.SSLError):
            await loop.create_connection(Recorder, sock=one, ssl=client_context, server_hostname="localhost")
        await turns(1)
        assert one.fileno() == -1

    run(main())


def test_a_peer_that_hangs_up_during_the_handshake_is_a_connection_error(run, loop, socket_pair, client_context):
    async def main():
        one, peer = socket_pair()
        connecting = asyncio.ensure_future(
            loop.create_connection(Recorder, sock=one, ssl=client_context, server_hostname="localhost")
        )
        await turns(1)
        peer.close()
        with pytest.raises(ConnectionError):
            await connecting

    run(main())


def test_a_silent_peer_fails_the_handshake_in_time(run, loop, socket_pair, server_context, client_context):
    async def main():
        one, peer = socket_pair()
        with pytest.raises(ConnectionAbortedError, match="SSL handshake is taking longer than 0.1 seconds"):
            await loop.create_connection(
                Recorder, sock=one, ssl=client_context, server_hostname="localhost", ssl_handshake_timeout=0.1
            )
        server = await loop.create_server(Recorder, "127.0.0.1", 0, ssl=server_context, ssl_handshake_timeout=0.1)
        with socket.create_connection(server.sockets[0].getsockname()) as silent:
            silent.setblocking(False)
            assert await read_to_end(silent) == b""
        server.close()
        await server.wait_closed()

    run(main())


def test_a_cancelled_handshake_leaves_nothing_behind(run, loop, socket_pair, client_context):
    async def main():
        one, peer = socket_pair()
        connecting = asyncio.ensure_future(
            loop.create_connection(Recorder, sock=one, ssl=client_context, server_hostname="localhost")
        )
        await turns(1)
        connecting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await connecting
        await until(lambda: one.fileno() == -1)
        await turns(1)

    run(main())


def test_rubbish_in_the_stream_is_a_fatal_error(run, loop, tcp_pair, server_context, client_context, exceptions):
    async def main():
        sock, peer = tcp_pair()

        def handshake():
            peer.settimeout(10)
            incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            secure = client_context.wrap_bio(incoming, outgoing, server_hostname="localhost")
            while True:
                try:
                    secure.do_handshake()
                    peer.sendall(outgoing.read())
                    return
                except ssl.SSLWantReadError:
                    peer.sendall(outgoing.read())
                    incoming.write(peer.recv(65536))

        shaking = loop.run_in_executor(None, handshake)
        _, server = await loop.connect_accepted_socket(Recorder, sock, ssl=server_context)
        await shaking
        peer.setblocking(False)
        await send_all(peer, b"rubbish" * 100)
        await until(lambda: server.lost)
        assert isinstance(server.lost_with, ssl.SSLError)

    run(main())


class Blunt(Recorder):
    """Writes, and then?"""

    def __init__(self, then):
        super().__init__()
        self.then = then

    def data_received(self, data):
        super().data_received(data)
        if len(self.data) == len(data):
            self.transport.write(b"last words")
            self.then(self.transport)


def fails(transport):
    raise ZeroDivisionError


def uploads(transport):
    """The peer goes on sending, which nobody reads: the end of the connection is an error for OpenSSL."""
    transport.pause_reading()
    asyncio.get_running_loop().call_later(0.02, transport.write, b"and more")
    asyncio.get_running_loop().call_later(0.02, transport.close)


@pytest.mark.parametrize(
    "then", [lambda transport: transport.abort(), fails, uploads], ids=["abort", "fails", "uploads"]
)
def test_what_is_written_before_an_end_by_force_has_been_sent(
    run, loop, server_context, client_context, exceptions, then
):
    async def main():
        listening = await loop.create_server(lambda: Blunt(then), "127.0.0.1", 0, ssl=server_context)

        def peer():
            with (
                socket.create_connection(listening.sockets[0].getsockname(), timeout=10) as sock,
                client_context.wrap_socket(sock, server_hostname="localhost") as secure,
            ):
                secure.sendall(b"!")
                received = secure.recv(100)
                if then is uploads:
                    secure.sendall(b"u" * 50_000)
                    received += secure.recv(100)
                return received

        for _ in range(6):
            await asyncio.sleep(0)
            expected = b"last wordsand more" if then is uploads else b"last words"
            assert await loop.run_in_executor(None, peer) == expected
        listening.close()
        exceptions.clear()

    run(main())


# --- sendfile ---------------------------------------------------------------------------------------------------------


def test_sendfile_over_tls_falls_back_to_reading(run, loop, secure_pair, tmp_path):
    async def main():
        data = pattern(1 << 20)
        (tmp_path / "file").write_bytes(data)
        transport, _, _, server = await secure_pair()
        with open(tmp_path / "file", "rb") as file:
            assert await loop.sendfile(transport, file) == len(data)
            assert file.tell() == len(data)
            assert await loop.sendfile(transport, file, 1000, 5000) == 5000
            with pytest.raises(RuntimeError, match="fallback is disabled and native sendfile is not supported"):
                await loop.sendfile(transport, file, fallback=False)
        await until(lambda: len(server.data) == len(data) + 5000)
        assert server.data == data + data[1000:6000]

    run(main(), timeout=20)
