"""os.fork() and interpreter exit: every loop is told, in the right order, and nothing that it does wrong spreads."""

import gc
import logging
import os
import sys
import threading

import pytest

from netpoll_loop import forking

pytestmark = [
    pytest.mark.netpoll_only("the fork hooks are its own"),
    # What else runs in pytest's own process isn't ours.
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),
]

#: What Python 3.12+ warns of when the kernel sees a second thread during a fork. (Made an error it would be swallowed.)
THREADS_WARNING = "multi-threaded, use of fork"


class Told:
    """Stands for a loop; notes what it is told, here and by a pipe from a forked child."""

    def __init__(self, fail=()):
        self.calls = []
        self.fail = fail

    def call_soon_threadsafe(self, callback):
        try:
            callback()
        except RuntimeError:
            logging.getLogger("asyncio").exception("callback")

    def __getattr__(self, name):
        def note():
            self.calls.append(name)
            if name in self.fail:
                raise RuntimeError(name)

        if name in ("_before_fork", "_after_fork_parent", "_after_fork_child", "_at_exit"):
            return note
        raise AttributeError(name)


def fork(in_child=lambda: b""):
    """Forks; returns what the child's function gave."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.write(writer, in_child())
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, "rb") as pipe:
        answer = pipe.read()
    assert os.waitpid(pid, 0)[1] == 0
    return answer


@pytest.fixture
def told():
    loops = []

    def make(**kwargs):
        loop = Told(**kwargs)
        forking.register(loop)
        loops.append(loop)
        return loop

    yield make
    loops.clear()


def test_a_fork_tells_parent_and_child(told):
    loop = told()
    assert fork(lambda: ",".join(loop.calls).encode()) == b"_before_fork,_after_fork_child"
    assert loop.calls == ["_before_fork", "_after_fork_parent"]


def test_each_fork_tells_every_loop_again(told):
    loops = [told(), told()]
    fork()
    fork()
    assert [loop.calls for loop in loops] == [["_before_fork", "_after_fork_parent"] * 2] * 2


def test_registering_twice_is_registering_once(told):
    loop = told()
    forking.register(loop)
    fork()
    assert loop.calls == ["_before_fork", "_after_fork_parent"]


def test_the_child_tells_its_inherited_loops_nothing_more(told):
    loop = told()

    def grandchild():
        fork()
        forking._at_exit()
        return ",".join(loop.calls).encode()

    assert fork(grandchild) == b"_before_fork,_after_fork_child"


def test_the_child_tells_its_own_loops(told):
    def grandchild():
        own = Told()
        forking.register(own)
        fork()
        forking._at_exit()
        return ",".join(own.calls).encode()

    assert fork(grandchild) == b"_before_fork,_after_fork_parent,_at_exit"


def test_a_failing_loop_is_logged_and_the_others_are_told(told, caplog):
    failing = told(fail=("_before_fork", "_after_fork_parent"))
    other = told()
    with caplog.at_level(logging.ERROR, "asyncio"):
        fork()
    assert other.calls == ["_before_fork", "_after_fork_parent"]
    assert failing.calls == ["_before_fork", "_after_fork_parent"]
    assert [record.exc_info[0] for record in caplog.records] == [RuntimeError] * 2


def test_a_loop_that_another_thread_closes_meanwhile_keeps_nothing_from_the_others(told, caplog):
    class Closing(Told):
        """Was open a moment ago."""

        def is_closed(self):
            return False

        def call_soon_threadsafe(self, callback):
            raise RuntimeError("Event loop is closed")

    closing = Closing()
    forking.register(closing)
    other = told()
    with caplog.at_level(logging.ERROR, "asyncio"):
        fork()
    assert other.calls == ["_before_fork", "_after_fork_parent"]
    assert caplog.records == []


def test_a_thread_that_makes_a_loop_while_another_one_forks_waits_for_its_end():
    loop = Told()
    thread = threading.Thread(target=forking.register, args=(loop,))
    forking._before()
    try:
        thread.start()
        thread.join(0.2)
        assert loop.calls == []
    finally:
        forking._after_in_parent()
        thread.join(30)
    assert not thread.is_alive()
    assert loop.calls == []
    fork()
    assert loop.calls == ["_before_fork", "_after_fork_parent"]


def test_a_loop_that_a_fork_hook_makes_is_told_of_that_fork():
    loop = Told()
    forking._before()
    try:
        forking.register(loop)
        assert loop.calls == ["_before_fork"]
    finally:
        forking._after_in_parent()
    assert loop.calls == ["_before_fork", "_after_fork_parent"]


@pytest.mark.parametrize("what", ["new_event_loop().close()", "import concurrent.futures.thread"])
def test_hooks_that_are_installed_in_the_middle_of_a_fork_release_no_lock_that_they_have_not_taken(run_child, what):
    done = run_child(
        f"""
    import netpoll_loop
    def hook():
        {what}
    os.register_at_fork(before=hook)
    for _ in range(2):
        pid = os.fork()
        if not pid:
            os._exit(0)
        os.waitpid(pid, 0)
    new_event_loop().close()
    print("done")
        """
    )
    assert (done.stdout, done.stderr) == ("done\n", "")


def test_a_collected_loop_is_forgotten(told):
    loop = Told()
    forking.register(loop)
    key = id(loop)
    assert forking._loops[key]() is loop
    del loop
    gc.collect()
    assert key not in forking._loops


def test_loops_may_come_and_go_while_the_process_forks():
    stop = threading.Event()

    def churn():
        while not stop.is_set():
            for loop in [Told() for _ in range(20)]:
                forking.register(loop)

    threads = [threading.Thread(target=churn) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(20):
            forking._before()
            forking._after_in_parent()
    finally:
        stop.set()
        for thread in threads:
            thread.join(30)


def test_two_threads_fork_one_after_the_other(told):
    loop = told()
    start = threading.Barrier(2)

    def forks():
        start.wait()
        for _ in range(20):
            forking._before()
            forking._after_in_parent()

    threads = [threading.Thread(target=forks) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert loop.calls == ["_before_fork", "_after_fork_parent"] * 40


# --- with real loops --------------------------------------------------------------------------------------------------

BUSY = """
    class Echo(asyncio.Protocol):
        def connection_made(self, transport):
            self.transport = transport
        def data_received(self, data):
            self.transport.write(data)
    async def traffic():
        # A transport, so that the netpoller thread runs where there is one.
        loop = asyncio.get_running_loop()
        server = await loop.create_server(Echo, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        async def exchange():
            writer.write(b"ping")
            return await reader.readexactly(4)
        assert await exchange() == b"ping"
        return server, writer, exchange
    def threads():
        return len(os.listdir("/proc/self/task"))
    """


def test_a_fork_inside_a_running_loop_leaves_both_sides_whole(run_child):
    done = run_child(
        BUSY
        + """
    async def main():
        server, writer, exchange = await traffic()
        for _ in range(3):
            pid = os.fork()
            if not pid:
                # The running loop is dead here; a new one works.
                asyncio._set_running_loop(None)
                async def again():
                    server, writer, exchange = await traffic()
                    assert await exchange() == b"ping"
                    writer.close()
                    server.close()
                run_main(again())
                os._exit(7)
            assert await exchange() == b"ping"
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
            assert await exchange() == b"ping"
        writer.close()
        server.close()
        print("parent done")
    run_main(main())
        """
    )
    assert done.stdout == "parent done\n"
    assert THREADS_WARNING not in done.stderr


def test_a_child_that_only_exits_hangs_nowhere_and_breaks_nothing(run_child):
    done = run_child(
        BUSY
        + """
    def fork(ended):
        pid = os.fork()
        if not pid:
            sys.exit(3)
        ended.set_result(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    async def main():
        server, writer, exchange = await traffic()
        loop = asyncio.get_running_loop()
        ended = loop.create_future()
        loop.call_soon(fork, ended)
        assert await ended == 3
        assert await exchange() == b"ping"
        writer.close()
        server.close()
        print("parent done")
    run_main(main())
        """,
    )
    assert done.stdout == "parent done\n"


def test_a_fork_finds_no_netpoller_thread_and_leaves_it_as_it_was(run_child, mode):
    done = run_child(
        """
    # Hooks run in reverse order, so that the first one sees what is left.
    counts = []
    os.register_at_fork(before=lambda: counts.append(threads()))
    """
        + BUSY
        + """
    async def main():
        server, writer, exchange = await traffic()
        counts.append(threads())
        pid = os.fork()
        if not pid:
            os._exit(0)
        os.waitpid(pid, 0)
        assert await exchange() == b"ping"
        counts.append(threads())
        writer.close()
        server.close()
    run_main(main())
    print(*counts)
        """
    )
    assert THREADS_WARNING not in done.stderr
    running = "1" if mode == "inline" else "2"
    assert done.stdout.split() == [running, "1", running]


def test_a_fork_from_another_thread(run_child):
    done = run_child(
        BUSY
        + """
    def fork():
        pid = os.fork()
        if not pid:
            os._exit(5)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    async def main():
        server, writer, exchange = await traffic()
        forked = asyncio.get_running_loop().run_in_executor(None, fork)
        while not forked.done():
            assert await exchange() == b"ping"
        assert await forked == 5
        assert await exchange() == b"ping"
        writer.close()
        server.close()
        print("done")
    run_main(main())
        """,
    )
    assert done.stdout == "done\n"


@pytest.mark.parametrize("how", ["pass", "sys.exit(0)", "raise KeyboardInterrupt", "loop.close()"])
def test_interpreter_exit_with_a_loop_that_is_not_closed(run_child, how):
    done = run_child(
        BUSY
        + f"""
    loop = new_event_loop()
    kept = loop.run_until_complete(traffic())
    kept[1].write(b"x" * 10_000_000)
    {how}
        """,
        check=False,
    )
    assert done.returncode == (-2 if "Keyboard" in how else 0), done.stderr
    assert "Fatal" not in done.stderr
    if sys.flags.dev_mode is False and "Keyboard" not in how:
        assert "Traceback" not in done.stderr
