"""spin_us=: an idle poller polls for a while before it blocks. Everything else stays as it is."""

import asyncio
import os
import threading

import pytest

import netpoll_loop
from netpoll_loop.options import SPIN_MAX, SPIN_VARIABLE, resolve_spin_us

pytestmark = pytest.mark.netpoll_only("netpoll_loop's own option")

#: Seconds.
LIMIT = 10

only_with_cpus = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="with one CPU nobody spins")


@pytest.fixture
def make(mode):
    loops = []

    def make(spin_us):
        loops.append(netpoll_loop.new_event_loop(netpoller=mode, spin_us=spin_us))
        return loops[-1]

    yield make
    for loop in loops:
        loop.close()


def polls(loop):
    return netpoll_loop.stats(loop).polls


async def round_trips(count):
    async def serve(reader, writer):
        while data := await reader.read(100):
            writer.write(data)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    for n in range(count):
        writer.write(b"%8d" % n)
        assert await reader.readexactly(8) == b"%8d" % n
    writer.close()
    await writer.wait_closed()
    server.close()
    await server.wait_closed()


@pytest.mark.parametrize("spin_us", [1, 50, 5000])
def test_io_timers_and_thread_safe_calls_work(make, spin_us):
    loop = make(spin_us)

    async def main():
        await round_trips(100)
        started = loop.time()
        await asyncio.sleep(0.01)
        assert loop.time() - started >= 0.01 - 1e-3
        for seconds in 0, 0.001, 0.02:
            woken = asyncio.Event()
            thread = threading.Timer(seconds, loop.call_soon_threadsafe, (woken.set,))
            thread.start()
            await asyncio.wait_for(woken.wait(), LIMIT)
            thread.join()

    loop.run_until_complete(asyncio.wait_for(main(), LIMIT))


@only_with_cpus
def test_it_polls_while_it_is_idle_and_then_blocks(make, mode):
    if mode == "dedicated":
        pytest.skip("there the loop's thread spins on a word, which no counter shows")
    counts = []
    for spin_us in 0, 2000, 20_000:
        loop = make(spin_us)
        loop.run_until_complete(asyncio.sleep(0))
        before = polls(loop)
        loop.run_until_complete(asyncio.sleep(0.1))
        counts.append(polls(loop) - before)
    assert counts[0] < 20 < counts[1]
    # However long it is idle, it polls for so long only.
    assert counts[1] < counts[2]


def test_ctrl_c_ends_a_spin(make):
    loop = make(SPIN_MAX)
    timer = threading.Timer(0.03, os.kill, (os.getpid(), 2))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        loop.run_until_complete(asyncio.sleep(LIMIT))
    timer.join()


@pytest.mark.parametrize("value", [0, 1, 50, SPIN_MAX])
def test_by_argument_or_environment(value, monkeypatch):
    monkeypatch.setenv(SPIN_VARIABLE, str(value))
    assert resolve_spin_us() == value
    assert resolve_spin_us(7) == 7
    monkeypatch.setenv(SPIN_VARIABLE, "")
    assert resolve_spin_us() == 0


@pytest.mark.parametrize(("value", "error"), [(-1, ValueError), (SPIN_MAX + 1, ValueError), (1.5, TypeError)])
def test_other_values_are_refused(value, error, monkeypatch):
    for entry in netpoll_loop.new_event_loop, netpoll_loop.EventLoopPolicy:
        with pytest.raises(error, match="spin_us"):
            entry(spin_us=value)
    monkeypatch.setenv(SPIN_VARIABLE, str(value))
    with pytest.raises(ValueError, match=SPIN_VARIABLE):
        netpoll_loop.new_event_loop()
