"""An unchanged aiohttp application, served and asked through the policy."""

import asyncio

import pytest

aiohttp = pytest.importorskip("aiohttp")
from aiohttp import web  # noqa: E402

BODY = bytes(range(256)) * 4096  # 1 MiB


def application():
    app = web.Application(client_max_size=len(BODY) + 1)

    async def hello(request):
        return web.Response(text="hello")

    async def echo(request):
        return web.Response(body=await request.read())

    async def stream(request):
        response = web.StreamResponse()
        await response.prepare(request)
        for start in range(0, len(BODY), 50_000):
            await response.write(BODY[start : start + 50_000])
        await response.write_eof()
        return response

    async def websocket(request):
        ws = web.WebSocketResponse()
        await ws.prepare(request)
        async for message in ws:
            await ws.send_str(message.data.upper())
        return ws

    async def fail(request):
        raise ZeroDivisionError

    async def file(request):
        return web.FileResponse(__file__)

    routes = (hello, echo, stream, websocket, fail, file)
    app.router.add_routes([web.route("*", f"/{handler.__name__}", handler) for handler in routes])
    return app


async def served(use):
    """Serves the application, and lets `use` ask it: use(session, base address)."""
    runner = web.AppRunner(application())
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = site._server.sockets[0].getsockname()
    try:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=20)) as session:
            await use(session, f"http://{host}:{port}")
    finally:
        await runner.cleanup()


def test_requests_are_answered_many_at_a_time(run):
    async def ask(session, base):
        async def one(number):
            for _ in range(10):
                async with session.get(f"{base}/hello") as response:
                    assert (response.status, await response.text()) == (200, "hello")
                payload = BODY[number : number + 1000 * number]
                async with session.post(f"{base}/echo", data=payload) as response:
                    assert await response.read() == payload

        await asyncio.gather(*[one(number) for number in range(30)])

    run(served(ask), timeout=30)


def test_large_bodies_come_whole_in_both_directions(run):
    async def ask(session, base):
        async with session.post(f"{base}/echo", data=BODY) as response:
            assert await response.read() == BODY
        async with session.get(f"{base}/stream") as response:
            assert await response.read() == BODY

    run(served(ask), timeout=30)


def test_a_file_is_sent(run):
    async def ask(session, base):
        async with session.get(f"{base}/file") as response:
            with open(__file__, "rb") as source:
                assert await response.read() == source.read()

    run(served(ask), timeout=30)


def test_a_websocket_talks(run):
    async def ask(session, base):
        async with session.ws_connect(f"{base}/websocket") as ws:
            for number in range(100):
                await ws.send_str(f"message {number}")
                assert await ws.receive_str() == f"MESSAGE {number}"

    run(served(ask), timeout=30)


def test_a_failing_handler_is_a_500_and_the_server_lives_on(run):
    async def ask(session, base):
        for _ in range(3):
            async with session.get(f"{base}/fail") as response:
                assert response.status == 500
        async with session.get(f"{base}/hello") as response:
            assert response.status == 200

    run(served(ask), timeout=30)


def test_a_client_that_leaves_in_the_middle_disturbs_nobody(run):
    async def ask(session, base):
        host, port = base.removeprefix("http://").split(":")
        for _ in range(20):
            _, writer = await asyncio.open_connection(host, int(port))
            writer.write(b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\npart")
            await writer.drain()
            writer.transport.abort()
        async with session.get(f"{base}/hello") as response:
            assert await response.text() == "hello"

    run(served(ask), timeout=30)
