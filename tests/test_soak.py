"""Everything about worker threads at once, for a while: nothing hangs, nothing is lost, no two callbacks run at once.

A second in the ordinary run; NETPOLL_LOOP_SOAK=60 makes them 60.
"""

import asyncio
import contextlib
import contextvars
import os
import random
import signal
import sys
import threading
import time
import warnings

import pytest

import netpoll_loop

pytestmark = pytest.mark.netpoll_only("netpoll_loop's worker threads")

#: Seconds.
LENGTH = float(os.environ.get("NETPOLL_LOOP_SOAK") or 1)
LIMIT = LENGTH + 30

variable = contextvars.ContextVar("variable")


class Soak:
    """One loop's mix. What must hold is asserted where it is seen; the first failure ends the run."""

    def __init__(self, loop, rng):
        self.loop = loop
        self.rng = rng
        self.inside = 0
        self.counts = dict.fromkeys(
            ("bodies", "cancelled", "thread calls", "signals", "echoes", "children", "stops"), 0
        )
        self.over = False

    @contextlib.contextmanager
    def alone(self):
        """Only one thread is ever in here: Python code of a callback."""
        self.inside += 1
        assert self.inside == 1, "two callbacks at once"
        yield
        assert self.inside == 1, "two callbacks at once"
        self.inside -= 1

    async def blocker(self, number):
        """Bodies of all lengths, nested ones, ones that raise; P is back after each."""
        variable.set(number)
        while not self.over:
            kind = self.rng.random()
            seconds = self.rng.choice((0, 0, 0.0002, 0.001, 0.004))
            try:
                with netpoll_loop.blocking():
                    time.sleep(seconds)
                    if kind < 0.2:
                        with netpoll_loop.blocking():
                            time.sleep(seconds)
                    elif kind < 0.4:
                        raise LookupError(number)
            except LookupError as exc:
                assert exc.args == (number,)
            with self.alone():
                assert asyncio.get_running_loop() is self.loop
                assert asyncio.current_task().get_name() == f"blocker {number}"
                assert variable.get() == number
                self.counts["bodies"] += 1
            await asyncio.sleep(self.rng.choice((0, 0, 0.001)))

    async def victim(self):
        """Cancelled at any point of a body; `async with` takes it at its end."""
        while True:
            async with netpoll_loop.blocking():
                time.sleep(0.001)
            await asyncio.sleep(0)

    async def canceller(self):
        while not self.over:
            victim = asyncio.create_task(self.victim())
            await asyncio.sleep(self.rng.random() * 0.004)
            victim.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await victim
            assert victim.cancelled()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.001):
                    async with netpoll_loop.blocking():
                        time.sleep(0.002)
                    await asyncio.sleep(1)
            self.counts["cancelled"] += 1

    async def echo(self):
        async def serve(reader, writer):
            with contextlib.suppress(ConnectionError):
                while data := await reader.read(100):
                    if self.rng.random() < 0.1:
                        with netpoll_loop.blocking():
                            time.sleep(0.001)
                    writer.write(data)
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        while not self.over:
            number = b"%8d" % self.counts["echoes"]
            writer.write(number)
            assert await reader.readexactly(8) == number
            self.counts["echoes"] += 1
        writer.close()
        await writer.wait_closed()
        server.close()

    async def parent(self):
        """A subprocess, and a fork in a callback, while others are in bodies."""
        while not self.over:
            child = await asyncio.create_subprocess_exec(sys.executable, "-S", "-c", "")
            assert await child.wait() == 0
            with self.alone(), warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # of a fork with threads
                pid = os.fork()
                if pid == 0:
                    os._exit(0)
                assert os.waitpid(pid, 0) == (pid, 0)
            self.counts["children"] += 1
            await asyncio.sleep(self.rng.random() * 0.02)

    def threads_calling_in(self):
        """On a thread of its own: callbacks and coroutines for the loop."""

        async def answer(number):
            with self.alone():
                return number

        number = 0
        while not self.over:
            number += 1
            with contextlib.suppress(RuntimeError):  # between two runs, and at the end, nobody answers
                future = asyncio.run_coroutine_threadsafe(answer(number), self.loop)
                while not self.over:
                    with contextlib.suppress(TimeoutError):
                        assert future.result(0.05) == number
                        self.counts["thread calls"] += 1
                        break
            time.sleep(0.0005)

    def on_signal(self):
        with self.alone():
            self.counts["signals"] += 1


@pytest.mark.timeout(LIMIT + 20)
@pytest.mark.parametrize("run_on", ["caller", "worker"])
@pytest.mark.parametrize("max_workers", [2, 64])
def test_everything_at_once(mode, run_on, max_workers):
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    loop = netpoll_loop.new_event_loop(netpoller=mode, run_on=run_on, max_workers=max_workers)
    soak = Soak(loop, random.Random(seed))
    failures = []
    loop.set_exception_handler(lambda loop, context: failures.append(context))
    thread = threading.Thread(target=soak.threads_calling_in)
    deadline = time.monotonic() + LENGTH

    async def setup():
        loop.add_signal_handler(signal.SIGUSR1, soak.on_signal)
        tasks = [asyncio.create_task(soak.blocker(n), name=f"blocker {n}") for n in range(6)]
        return [*tasks, *(asyncio.create_task(part()) for part in (soak.canceller, soak.echo, soak.parent))]

    async def teardown(tasks):
        soak.over = True
        async with asyncio.timeout(LIMIT):
            await asyncio.gather(*tasks)
        loop.remove_signal_handler(signal.SIGUSR1)

    try:
        tasks = loop.run_until_complete(setup())
        thread.start()
        while time.monotonic() < deadline and not failures and not any(task.done() for task in tasks):
            # Runs that end at any moment, with bodies open on other threads.
            loop.call_later(soak.rng.random() * 0.2, loop.stop)
            os.kill(os.getpid(), signal.SIGUSR1)
            loop.run_forever()
            soak.counts["stops"] += 1
        loop.run_until_complete(teardown(tasks))
    finally:
        soak.over = True
        thread.join(LIMIT)
        loop.close()
    assert not thread.is_alive()
    assert failures == []
    assert all(soak.counts.values()), soak.counts
    print(soak.counts)
