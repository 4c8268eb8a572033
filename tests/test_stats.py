"""stats(loop): a typed snapshot of the counters."""

import asyncio
import dataclasses

import pytest

import netpoll_loop

pytestmark = pytest.mark.netpoll_only("the counters are its own")

COUNTERS = [
    "polls",
    "events",
    "handoffs",
    "inline_syscalls",
    "netpoller_syscalls",
    "bytes_received",
    "bytes_sent",
    "stalls",
    "wakeups",
    "descriptors",
    "bytes_ahead",
    "bytes_unsent",
]


def test_a_new_loop_has_done_nothing(loop, mode):
    stats = netpoll_loop.stats(loop)
    assert stats.mode == mode
    for name in (
        "handoffs",
        "netpoller_syscalls",
        "bytes_received",
        "bytes_sent",
        "stalls",
        "bytes_ahead",
        "bytes_unsent",
    ):
        assert getattr(stats, name) == 0


def test_every_field_has_its_type(loop):
    stats = netpoll_loop.stats(loop)
    for name in COUNTERS:
        assert type(getattr(stats, name)) is int
        assert getattr(stats, name) >= 0
    assert stats.poller in ("none", "worker", "netpoller")
    assert type(stats.netpoller_thread) is bool
    assert type(stats.offloading) is bool
    assert type(stats.batching) is bool
    assert {field.name for field in dataclasses.fields(stats)} == {
        *COUNTERS,
        "poller",
        "offloading",
        "batching",
        "netpoller_thread",
        "mode",
    }


def test_a_snapshot_does_not_change(loop):
    stats = netpoll_loop.stats(loop)
    with pytest.raises(dataclasses.FrozenInstanceError):
        stats.polls = 1


def test_the_counters_count(loop, run, mode):
    async def echo():
        async def serve(reader, writer):
            writer.write(await reader.readexactly(1000))
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(b"x" * 1000)
        assert len(await reader.read()) == 1000
        writer.close()
        await writer.wait_closed()
        server.close()
        await server.wait_closed()

    before = netpoll_loop.stats(loop)
    run(echo())
    after = netpoll_loop.stats(loop)
    assert after.bytes_sent - before.bytes_sent == 2000
    assert after.bytes_received - before.bytes_received == 2000
    assert after.polls > before.polls
    assert after.events > before.events
    assert after.inline_syscalls + after.netpoller_syscalls > before.inline_syscalls + before.netpoller_syscalls
    if mode == "inline":
        assert (after.netpoller_syscalls, after.handoffs, after.netpoller_thread) == (0, 0, False)


def test_any_thread_may_ask(loop, run):
    assert run(asyncio.to_thread(netpoll_loop.stats, loop)).polls >= 0


def test_a_closed_loop_may_be_asked(new_loop):
    loop = new_loop()
    loop.close()
    assert netpoll_loop.stats(loop).poller == "none"
    assert netpoll_loop.stats(loop).netpoller_thread is False
    assert netpoll_loop.stats(loop).descriptors == 0


@pytest.mark.parametrize("thing", ["stock loop", None, 1, netpoll_loop.Loop], ids=str)
def test_another_loop_is_refused(thing, stock_loop):
    thing = stock_loop if thing == "stock loop" else thing
    with pytest.raises(TypeError, match=r"stats\(\) takes a netpoll_loop\.Loop, not "):
        netpoll_loop.stats(thing)
