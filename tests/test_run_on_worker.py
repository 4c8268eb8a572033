"""run_on="worker": a worker thread resumes the coroutines, M0 serves signals; the rest is asyncio as it is."""

import asyncio
import contextvars
import os
import signal
import socket
import sys
import threading
import time

import pytest
from aiohttp import ClientSession, web

import netpoll_loop

pytestmark = pytest.mark.netpoll_only("netpoll_loop's own option")

#: Seconds: a callback that is sure to be noticed; how long anything may take.
LONG = 0.03
LIMIT = 10


@pytest.fixture
def make(mode):
    loops = []

    def make():
        loops.append(netpoll_loop.new_event_loop(netpoller=mode, run_on="worker"))
        return loops[-1]

    yield make
    for loop in loops:
        loop.close()


@pytest.fixture
def worker(make):
    return make()


def interrupt_after(seconds, signum=signal.SIGINT):
    """From a thread of its own: the loop's thread may be busy."""
    timer = threading.Timer(seconds, os.kill, (os.getpid(), signum))
    timer.start()
    return timer


def spin():
    """Pure Python that ends only by an exception."""
    limit = time.monotonic() + LIMIT
    while time.monotonic() < limit:
        pass
    raise AssertionError("nobody has interrupted this")


def test_coroutines_and_callbacks_run_on_one_worker_thread(worker):
    seen = []

    async def main():
        loop = asyncio.get_running_loop()
        assert loop is worker
        assert asyncio.current_task() in asyncio.all_tasks()
        loop.call_soon(lambda: seen.append(threading.get_ident()))
        loop.call_later(0.001, lambda: seen.append(threading.get_ident()))
        loop.call_soon_threadsafe(lambda: seen.append(threading.get_ident()))
        await asyncio.sleep(0.01)
        seen.append(threading.get_ident())
        assert threading.current_thread().name.startswith("netpoll_loop worker ")
        return 5

    assert worker.run_until_complete(main()) == 5
    assert worker.run_until_complete(main()) == 5
    assert len(set(seen)) == 1
    assert threading.get_ident() not in seen
    assert not worker.is_running()
    assert asyncio._get_running_loop() is None


def test_all_runs_are_made_by_the_same_worker_thread(worker, monkeypatch):
    """Whoever has handed the end of a run to M0 is there for the next one, however late it gets around to that."""
    seen = set()

    async def main():
        seen.add(threading.get_ident())

    def late(depth, restore=sys.set_coroutine_origin_tracking_depth):
        restore(depth)
        time.sleep(0.005)

    monkeypatch.setattr(sys, "set_coroutine_origin_tracking_depth", late)
    for _ in range(5):
        worker.run_until_complete(main())
    assert len(seen) == 1


def test_the_running_loop_is_told_to_whom_asyncio_asks(worker, monkeypatch):
    # CPython's own tests put the functions in Python in the place of those in C.
    for name in "_get_running_loop", "_set_running_loop":
        monkeypatch.setattr(asyncio.events, name, getattr(asyncio.events, f"_py_{name}"))
    seen = []

    def look():
        seen.append(asyncio.events._get_running_loop())
        # From 3.14 on asyncio's current task, in C, is that of the loop that runs for the functions in C.
        if sys.version_info < (3, 14):
            with netpoll_loop.blocking():
                assert asyncio.events._get_running_loop() is None
        seen.append(asyncio.events._get_running_loop())
        worker.stop()

    worker.call_soon(look)
    worker.run_forever()
    assert seen == [worker, worker]


def test_exceptions_results_and_contexts(worker):
    variable = contextvars.ContextVar("variable", default=0)
    variable.set(3)

    async def main(fails):
        assert variable.get() == 3
        if fails:
            raise LookupError("mine")
        return variable.get()

    assert worker.run_until_complete(main(False)) == 3
    with pytest.raises(LookupError, match="mine"):
        worker.run_until_complete(main(True))


def test_stop_ends_the_run_and_the_next_one_goes_on(worker):
    worker.call_soon(worker.stop)
    worker.run_forever()
    seen = []
    worker.call_soon(seen.append, 1)
    worker.call_later(0.001, worker.stop)
    worker.run_forever()
    assert seen == [1]


def test_a_second_run_is_refused_inside(worker, make):
    other = make()

    async def main():
        for loop in worker, other:
            coroutine = asyncio.sleep(0)
            with pytest.raises(RuntimeError, match="running"):
                loop.run_until_complete(coroutine)
            coroutine.close()

    worker.run_until_complete(main())


def test_thread_safe_calls_wake_it(worker):
    async def main():
        woken = asyncio.Event()
        thread = threading.Timer(LONG, worker.call_soon_threadsafe, (woken.set,))
        thread.start()
        await asyncio.wait_for(woken.wait(), LIMIT)
        thread.join()

    worker.run_until_complete(main())


def test_connections(worker):
    async def main():
        async def serve(reader, writer):
            while data := await reader.read(1000):
                writer.write(data)
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        for n in range(200):
            writer.write(b"%6d" % n)
            assert await reader.readexactly(6) == b"%6d" % n
        writer.close()
        await writer.wait_closed()
        server.close()
        await server.wait_closed()

    worker.run_until_complete(asyncio.wait_for(main(), LIMIT))


@pytest.mark.parametrize("exception", [KeyboardInterrupt, SystemExit])
def test_an_exit_raised_in_a_callback_comes_out_of_run_forever(worker, exception):
    def fail():
        raise exception("mine")

    after = []
    worker.call_soon(fail)
    worker.call_soon(after.append, 1)
    with pytest.raises(exception, match="mine"):
        worker.run_forever()
    worker.call_soon(worker.stop)
    worker.run_forever()
    assert after == [1]


# --- signals ------------------------------------------------------------------------------------------------------


def test_signal_handlers_are_carried_to_the_main_thread_and_run_in_the_loop(worker):
    async def main():
        seen = asyncio.Queue()
        worker.add_signal_handler(signal.SIGUSR1, lambda: seen.put_nowait(threading.get_ident()))
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGUSR1)
            assert await asyncio.wait_for(seen.get(), LIMIT) == threading.get_ident()
        assert worker.remove_signal_handler(signal.SIGUSR1) is True
        assert worker.remove_signal_handler(signal.SIGUSR1) is False
        assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL

    worker.run_until_complete(main())


@pytest.mark.parametrize(
    ("number", "callback", "error"),
    [
        (signal.SIGKILL, print, RuntimeError),
        (signal.NSIG + 1, print, ValueError),
        ("1", print, TypeError),
        (signal.SIGUSR1, asyncio.sleep, TypeError),
    ],
)
def test_what_is_wrong_with_a_signal_handler_is_raised_where_it_was_asked_for(worker, number, callback, error):
    async def main():
        with pytest.raises(error):
            worker.add_signal_handler(number, callback)

    worker.run_until_complete(main())


def test_a_signal_handler_runs_in_the_context_of_who_added_it(worker):
    variable = contextvars.ContextVar("variable", default="none")
    seen = []

    async def main():
        variable.set("mine")
        loop = asyncio.get_running_loop()
        done = loop.create_future()

        def handler():
            seen.append(variable.get())
            done.set_result(None)

        loop.add_signal_handler(signal.SIGUSR1, handler)
        os.kill(os.getpid(), signal.SIGUSR1)
        await asyncio.wait_for(done, LIMIT)
        loop.remove_signal_handler(signal.SIGUSR1)

    worker.run_until_complete(main())
    assert seen == ["mine"]


def test_python_signal_handlers_run_meanwhile(worker):
    seen = []

    async def main():
        os.kill(os.getpid(), signal.SIGUSR1)
        limit = time.monotonic() + LIMIT
        while not seen and time.monotonic() < limit:
            await asyncio.sleep(0.001)

    before = signal.signal(signal.SIGUSR1, lambda *_: seen.append(threading.get_ident()))
    try:
        worker.run_until_complete(main())
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert seen == [threading.get_ident()]


def test_ctrl_c_ends_a_run_that_waits(worker):
    timer = interrupt_after(LONG)
    with pytest.raises(KeyboardInterrupt):
        worker.run_until_complete(asyncio.sleep(LIMIT))
    timer.join()


def test_a_signal_that_another_thread_gets_reaches_the_main_thread(worker):
    """Also one that comes just before the main thread lies down."""

    async def main():
        # On this thread, which runs the coroutine.
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)
        await asyncio.sleep(LIMIT)

    for _ in range(5):
        with pytest.raises(KeyboardInterrupt):
            worker.run_until_complete(main())


def test_ctrl_c_interrupts_a_coroutine_that_spins(worker):
    ends = []

    async def main():
        timer.start()
        try:
            spin()
        finally:
            ends.append(1)

    timer = threading.Timer(LONG, os.kill, (os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        worker.run_until_complete(main())
    timer.join()
    assert ends == [1]
    # The loop is whole.
    assert worker.run_until_complete(asyncio.sleep(0, 7)) == 7


def test_a_coroutine_that_spins_may_catch_ctrl_c_and_go_on(worker):
    async def main():
        timer.start()
        try:
            spin()
        except KeyboardInterrupt:
            await asyncio.sleep(LONG)
            return "caught"

    timer = threading.Timer(LONG, os.kill, (os.getpid(), signal.SIGINT))
    assert worker.run_until_complete(main()) == "caught"
    timer.join()


@pytest.mark.parametrize("busy", [False, True])
def test_runners_sigint_cancels_the_main_task(mode, busy):
    ends = []

    async def main():
        timer.start()
        try:
            if busy:
                limit = time.monotonic() + 3 * LONG
                while time.monotonic() < limit:
                    pass
            await asyncio.sleep(LIMIT)
        except asyncio.CancelledError:
            ends.append(threading.current_thread() is threading.main_thread())
            raise

    timer = threading.Timer(LONG, os.kill, (os.getpid(), signal.SIGINT))
    with (
        pytest.raises(KeyboardInterrupt),
        asyncio.Runner(loop_factory=lambda: netpoll_loop.new_event_loop(netpoller=mode, run_on="worker")) as runner,
    ):
        runner.run(main())
    timer.join()
    assert ends == [False]


def test_a_child_process(worker):
    async def main():
        child = await asyncio.create_subprocess_exec("/bin/cat", stdin=-1, stdout=-1)
        output, _ = await child.communicate(b"through cat")
        return output, child.returncode

    assert worker.run_until_complete(asyncio.wait_for(main(), LIMIT)) == (b"through cat", 0)


def test_run_app_serves_and_ends_by_sigterm(mode):
    seen, tasks = [], []

    async def hello(request):
        return web.Response(text=threading.current_thread().name)

    async def client(app):
        async def ask():
            async with ClientSession() as session:
                seen.append(await (await session.get(f"http://127.0.0.1:{port}")).text())
            os.kill(os.getpid(), signal.SIGTERM)

        tasks.append(asyncio.create_task(ask()))

    app = web.Application()
    app.router.add_get("/", hello)
    app.on_startup.append(client)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
        loop = netpoll_loop.new_event_loop(netpoller=mode, run_on="worker")
        web.run_app(app, sock=listener, loop=loop, print=None)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    assert seen and seen[0].startswith("netpoll_loop worker ")
    assert loop.is_closed()


# --- with blocking() ----------------------------------------------------------------------------------------------


def test_blocking_gives_p_to_another_worker_and_not_to_the_main_thread(worker):
    threads = set()

    async def tick():
        while True:
            threads.add(threading.get_ident())
            await asyncio.sleep(0.001)

    async def main():
        ticker = asyncio.create_task(tick())
        me = threading.get_ident()
        with netpoll_loop.blocking():
            time.sleep(LONG)
        assert threading.get_ident() == me
        assert len(threads) > 0
        ticker.cancel()
        return me

    threads.add(worker.run_until_complete(main()))
    assert threading.get_ident() not in threads
    assert len(threads) > 1


def test_the_environment_chooses(monkeypatch, mode):
    monkeypatch.setenv("NETPOLL_LOOP_RUN_ON", "worker")
    loop = netpoll_loop.new_event_loop(netpoller=mode)

    async def main():
        return threading.current_thread() is threading.main_thread()

    try:
        assert loop.run_until_complete(main()) is False
    finally:
        loop.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
@pytest.mark.timeout(LIMIT + 20)
def test_a_run_whose_worker_threads_have_all_come_back_before_it(mode):
    """A fork ends the spares, and from then on its own thread counts as none of them. So a run can end with none left;
    who comes back from a body then waits for P, and the next run's offer would stand for ever."""
    loop = netpoll_loop.new_event_loop(netpoller=mode, run_on="worker", max_workers=2)
    released = [threading.Event() for _ in range(3)]
    inside = []

    async def body(event):
        with netpoll_loop.blocking():
            inside.append(threading.current_thread())
            assert event.wait(LIMIT)
        return "back"

    async def fork_and_enter():
        with netpoll_loop.blocking():  # so that there is a second thread
            time.sleep(LONG)
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)
        tasks = [asyncio.create_task(body(event)) for event in released]
        await tasks[0]
        return tasks[1:]

    async def rest(tasks):
        return await asyncio.gather(*tasks)

    def release_when_all_are_inside():
        deadline = time.monotonic() + LIMIT
        while len(inside) < len(released) and time.monotonic() < deadline:
            time.sleep(0.001)
        released[0].set()

    helper = threading.Thread(target=release_when_all_are_inside)
    helper.start()
    try:
        tasks = loop.run_until_complete(fork_and_enter())
        assert len(set(inside)) == 3
        for event in released:
            event.set()
        time.sleep(LONG)
        assert loop.run_until_complete(rest(tasks)) == ["back", "back"]
    finally:
        for event in released:
            event.set()
        helper.join()
        loop.close()
