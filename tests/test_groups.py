"""Worker groups: run(main, workers=N), the listening sockets that its loops share, go(), signals."""

import asyncio
import collections
import contextlib
import contextvars
import errno
import functools
import gc
import os
import random
import signal
import socket
import struct
import sys
import threading
import time
import weakref

import pytest
from peers import until

import netpoll_loop

pytestmark = pytest.mark.netpoll_only("worker groups are netpoll_loop's")

LIMIT = 15  # seconds


@pytest.fixture
def group(mode):
    """`group(main, workers=3)`: what netpoll_loop.run gives, each main within a time limit."""

    def group(main, workers=3, **options):
        async def limited():
            async with asyncio.timeout(LIMIT):
                return await main()

        return netpoll_loop.run(limited, workers=workers, netpoller=mode, **options)

    return group


class Meeting:
    """Where the mains of a group wait for one another, any number of times; `first()` is true for one of them."""

    def __init__(self, count=3):
        self.count = count
        self.arrived = 0
        self.ticket = threading.Lock()
        self.lock = threading.Lock()

    def first(self):
        return self.ticket.acquire(blocking=False)

    async def wait(self):
        with self.lock:
            self.arrived += 1
            goal = -(-self.arrived // self.count) * self.count
        await until(lambda: self.arrived >= goal)


def me():
    return threading.current_thread().name


class Names(asyncio.Protocol):
    """Tells each client on which thread it is served, and keeps the connection."""

    def connection_made(self, transport):
        self.transport = transport
        transport.write(me().encode() + b"\n")

    def data_received(self, data):
        self.transport.write(data)


@contextlib.contextmanager
def clients():
    """`dial(address)`: a connected plain socket, closed at the end."""
    with contextlib.ExitStack() as stack:

        def dial(address, family=socket.AF_INET):
            sock = stack.enter_context(socket.socket(family))
            sock.settimeout(LIMIT)
            sock.connect(address)
            return sock

        yield dial


def served_by(sock):
    with sock.makefile("rb") as file:
        return file.readline().decode().strip()


def is_even(counter, workers):
    """Within 20 %. On a busy machine a loop may be late for one, which then goes to another."""
    mean = sum(counter.values()) / workers
    return len(counter) == workers and all(abs(count - mean) <= 0.2 * mean for count in counter.values())


def in_thread(function, *args):
    """Beside the loops, not on one of them."""
    return asyncio.get_running_loop().run_in_executor(None, function, *args)


# --- run --------------------------------------------------------------------------------------------------------------


def test_main_runs_on_each_loop_on_a_thread_of_its_own(group):
    async def main():
        return asyncio.get_running_loop(), threading.current_thread()

    results = group(main, 4)
    assert len({loop for loop, _ in results}) == len({thread for _, thread in results}) == 4
    assert all(isinstance(loop, netpoll_loop.Loop) and loop.is_closed() for loop, _ in results)
    assert [thread.name for _, thread in results] == [f"netpoll_loop P{i}" for i in range(4)]
    assert not any(thread.is_alive() for _, thread in results)


def test_one_worker_is_a_group_when_it_is_given_a_function(group):
    async def main():
        return 1

    assert group(main, 1) == [1]
    assert netpoll_loop.run(main(), workers=1) == 1
    assert netpoll_loop.run(main()) == 1


@pytest.mark.parametrize("workers", [1, 3])
def test_each_main_runs_in_a_copy_of_its_own_of_the_callers_context(group, workers):
    variable = contextvars.ContextVar("variable", default=None)
    meeting = Meeting(workers)

    async def main():
        before = variable.get()
        await meeting.wait()
        variable.set(me())
        await meeting.wait()
        return before, variable.get() == me()

    def call():
        variable.set("the caller's")
        assert group(main, workers) == [("the caller's", True)] * workers
        assert variable.get() == "the caller's"

    contextvars.copy_context().run(call)


@pytest.mark.parametrize(
    "workers, error, text",
    [
        (0, ValueError, "workers must be greater than 0"),
        ("2", TypeError, "workers must be an int"),
        (2, TypeError, "main must be a coroutine function"),
    ],
)
def test_what_cannot_be_run_is_refused(workers, error, text, recwarn):
    with pytest.raises(error, match=text):
        netpoll_loop.run(asyncio.sleep(0), workers=workers)
    with pytest.raises(TypeError, match="a coroutine function was expected"):
        netpoll_loop.run(1, workers=2)
    gc.collect()
    assert not recwarn.list


def test_main_has_to_give_a_coroutine():
    with pytest.raises(ValueError, match="a coroutine was expected, got 5"):
        netpoll_loop.run(lambda: 5, workers=1)


def test_a_group_is_not_run_in_a_running_loop(run, loop):
    async def main():
        with pytest.raises(RuntimeError, match=r"asyncio\.run\(\) cannot be called from a running event loop"):
            netpoll_loop.run(main, workers=2)

    run(main())


def test_bad_options_are_refused_as_without_workers():
    with pytest.raises(ValueError, match="netpoller"):
        netpoll_loop.run(lambda: None, workers=2, netpoller="no")


def test_debug_is_set_on_each(group):
    async def main():
        return asyncio.get_running_loop().get_debug()

    assert group(main, 2, debug=True) == [True, True]


def test_a_failure_cancels_the_others_and_is_raised(group):
    meeting, cancelled = Meeting(), []

    async def main():
        try:
            await meeting.wait()
            if meeting.first():
                await asyncio.sleep(0.1)
                raise KeyError("it")
            await asyncio.sleep(LIMIT)
        except asyncio.CancelledError:
            cancelled.append(me())
            raise

    with pytest.raises(KeyError, match="it"):
        group(main)
    assert len(cancelled) == 2


def test_several_failures_are_a_group_and_the_same_one_is_itself(group):
    meeting = Meeting()

    async def main():
        if meeting.first():
            await meeting.wait()
            raise KeyError
        try:
            await meeting.wait()
            await asyncio.sleep(LIMIT)
        finally:
            raise OSError

    with pytest.raises(BaseExceptionGroup) as several:
        group(main)
    assert sorted(type(exc).__name__ for exc in several.value.exceptions) == ["KeyError", "OSError", "OSError"]
    same = ValueError()

    async def fails():
        raise same

    with pytest.raises(ValueError) as info:
        group(fails)
    assert info.value is same


def test_a_main_that_cancels_itself_is_raised_as_by_asyncio(group):
    async def main():
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        group(main)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("where", ["main", "callback"])
def test_what_ends_the_process_is_raised_by_run(group, error, where):
    meeting = Meeting()

    def end():
        raise error("now")

    async def main():
        await meeting.wait()
        if meeting.first():
            if where == "main":
                end()
            asyncio.get_running_loop().call_soon(end)
        await asyncio.sleep(LIMIT)

    with pytest.raises(error, match="now"):
        group(main)


def test_a_loop_goes_on_until_each_main_has_ended(group):
    meeting = Meeting()

    async def main():
        await meeting.wait()
        if not meeting.first():
            return None
        await asyncio.sleep(0.1)
        work = [netpoll_loop.go(me) for _ in range(30)]
        return {await each for each in work}

    results = group(main)
    assert {"netpoll_loop P0", "netpoll_loop P1", "netpoll_loop P2"} in results


def test_the_tasks_of_a_loop_are_cancelled_at_the_end(group):
    cancelled = []

    async def forever():
        try:
            await asyncio.sleep(LIMIT)
        finally:
            cancelled.append(me())

    async def main():
        task = asyncio.create_task(forever())
        await asyncio.sleep(0.01)
        return task

    assert all(task.cancelled() for task in group(main))
    assert len(cancelled) == 3


def test_children_executors_and_blocking_work_on_each_loop(group):
    async def main():
        child = await asyncio.create_subprocess_exec("true")
        with netpoll_loop.blocking():
            time.sleep(0.005)
        return await child.wait(), await asyncio.to_thread(lambda: 5)

    assert group(main) == [(0, 5)] * 3


def test_callbacks_may_run_on_worker_threads_of_the_loops(group):
    async def main():
        server = await asyncio.get_running_loop().create_server(Names, "127.0.0.1", 0)
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, int)
        server.close()
        return await netpoll_loop.go(lambda: 1)

    assert group(main, run_on="worker") == [1] * 3


# --- a shared address -------------------------------------------------------------------------------------------------


async def serve(factory=Names, host="127.0.0.1", port=0, **options):
    server = await asyncio.get_running_loop().create_server(factory, host, port, **options)
    return server, server.sockets[0].getsockname()[1]


def test_an_address_opened_by_all_is_one_socket(group):
    meeting, inodes = Meeting(), set()

    async def main():
        first, port = await serve()
        second, other = await serve()
        inodes.add(os.fstat(first.sockets[0].fileno()).st_ino)
        await meeting.wait()
        # By the port that it was given, too, once all have closed it or not.
        first.close()
        third, again = await serve(port=port)
        await meeting.wait()
        for server in (second, third):
            server.close()
            await server.wait_closed()
        return port, other, again

    results = group(main)
    assert len(set(results)) == 1 and results[0][0] != results[0][1]
    assert len(inodes) == 1


def test_connections_are_spread_evenly(group):
    meeting, count = Meeting(4), 200

    async def main():
        server, port = await serve()
        await meeting.wait()
        spread = None
        if meeting.first():

            def use():
                with clients() as dial:
                    return collections.Counter(served_by(dial(("127.0.0.1", port))) for _ in range(count))

            def storm():
                with clients() as dial:
                    socks = [dial(("127.0.0.1", port)) for _ in range(count)]
                    return collections.Counter(map(served_by, socks))

            spread = [await in_thread(use), await in_thread(storm)]
        await meeting.wait()
        server.close()
        return spread

    (spread,) = filter(None, group(main, 4))
    for counter in spread:
        assert sum(counter.values()) == count and is_even(counter, 4), counter


def test_a_connection_goes_to_the_loop_that_has_the_fewest(group):
    meeting = Meeting()

    async def main():
        server, port = await serve()
        await meeting.wait()
        if meeting.first():

            def use():
                with clients() as dial:
                    first = collections.defaultdict(list)
                    for _ in range(30):
                        sock = dial(("127.0.0.1", port))
                        first[served_by(sock)].append(sock)
                    leaving, socks = first.popitem()
                    assert len(socks) == 10
                    for sock in socks:
                        sock.close()
                    time.sleep(0.2)
                    return leaving, [served_by(dial(("127.0.0.1", port))) for _ in range(10)]

            leaving, then = await in_thread(use)
            assert then.count(leaving) >= 8, then
        await meeting.wait()
        server.close()

    group(main)


@pytest.mark.parametrize("stall", ["sleeps", "computes"])
def test_a_stalled_worker_stops_no_other(group, stall):
    meeting, stalled, go_on, used = Meeting(), [], threading.Event(), threading.Lock()

    async def main():
        server, port = await serve()
        await meeting.wait()
        if meeting.first():
            stalled.append(me())
            if stall == "sleeps":
                go_on.wait(LIMIT)
            else:
                while not go_on.is_set():
                    sum(range(1000))
        elif used.acquire(blocking=False):

            def use():
                with clients() as dial:
                    return [served_by(dial(("127.0.0.1", port))) for _ in range(30)]

            try:
                names = await in_thread(use)
            finally:
                go_on.set()
            assert stalled and stalled[0] not in names and len(set(names)) == 2
        await meeting.wait()
        server.close()

    group(main)


def test_each_loop_closes_its_server_for_itself(group):
    meeting = Meeting()

    async def main():
        server, port = await serve()
        await meeting.wait()
        last = meeting.first()
        if last:
            await meeting.wait()

            def use():
                with clients() as dial:
                    return {served_by(dial(("127.0.0.1", port))) for _ in range(6)}

            assert await in_thread(use) == {me()}
        else:
            server.close()
            await server.wait_closed()
            assert not server.is_serving() and server.sockets == ()
            await meeting.wait()
        server.close()
        await server.wait_closed()
        await meeting.wait()
        if last:
            # It is free at once.
            with pytest.raises(ConnectionRefusedError), clients() as dial:
                dial(("127.0.0.1", port))
            with socket.socket() as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sock.bind(("127.0.0.1", port))

    group(main)


def test_a_loop_that_opens_an_address_twice_is_refused(group):
    async def main():
        server, port = await serve()
        with pytest.raises(OSError, match="error while attempting to bind on address .*: address already in use"):
            await serve(port=port)
        server.close()
        (await serve(port=port))[0].close()

    group(main, 1)


def test_with_reuse_port_a_loop_may_open_an_address_again(group):
    meeting, inodes = Meeting(2), []

    async def main():
        first, port = await serve(reuse_port=True)
        second, _ = await serve(port=port, reuse_port=True)
        inodes.extend(os.fstat(server.sockets[0].fileno()).st_ino for server in (first, second))
        await meeting.wait()
        for server in (first, second):
            server.close()

    group(main, 2)
    assert sorted(collections.Counter(inodes).values()) == [2, 2]


def test_an_address_that_somebody_else_has_is_refused(group, listener):
    port = listener().getsockname()[1]

    async def main():
        with pytest.raises(OSError, match="error while attempting to bind on address"):
            await serve(port=port)

    group(main)


def test_wrong_arguments_are_refused_in_asyncios_words(group):
    async def main():
        loop = asyncio.get_running_loop()
        with pytest.raises(ValueError, match="Neither host/port nor sock were specified"):
            await loop.create_server(Names)
        with pytest.raises(TypeError, match="ssl argument must be an SSLContext or None"):
            await loop.create_server(Names, "127.0.0.1", 0, ssl=True)
        with pytest.raises(ValueError, match="ssl_handshake_timeout is only meaningful with ssl"):
            await loop.create_server(Names, "127.0.0.1", 0, ssl_handshake_timeout=1)
        with pytest.raises(ValueError, match="path was not specified, and no sock specified"):
            await loop.create_unix_server(Names)
        with socket.socket(type=socket.SOCK_DGRAM) as sock:
            with pytest.raises(ValueError, match="host/port and sock can not be specified at the same time"):
                await loop.create_server(Names, "127.0.0.1", 0, sock=sock)
            with pytest.raises(ValueError, match="A Stream Socket was expected"):
                await loop.create_server(Names, sock=sock)
            with pytest.raises(ValueError, match="A UNIX Domain Stream Socket was expected"):
                await loop.create_unix_server(Names, sock=sock)

    group(main, 2)


def test_a_name_may_have_several_addresses(group):
    meeting = Meeting(2)

    async def main():
        server, port = await serve(host=["127.0.0.1", "127.0.0.2", "127.0.0.1"])
        await meeting.wait()
        addresses = [sock.getsockname() for sock in server.sockets]

        def use():
            with clients() as dial:
                return {served_by(dial(address)) for address in addresses for _ in range(4)}

        served = await in_thread(use)
        await meeting.wait()
        server.close()
        return addresses, served

    (one, served), (other, also) = group(main, 2)
    assert one == other and len(one) == 2
    assert len(served | also) == 2


def test_a_socket_given_to_all_is_shared(group, listener):
    sock, meeting = listener(), Meeting()
    address = sock.getsockname()

    async def main():
        server = await asyncio.get_running_loop().create_server(Names, sock=sock)
        await meeting.wait()

        def use():
            with clients() as dial:
                return {served_by(dial(address)) for _ in range(9)}

        served = await in_thread(use) if meeting.first() else None
        await meeting.wait()
        server.close()
        return served

    assert [len(served) for served in group(main) if served] == [3]
    assert sock.fileno() == -1


def test_a_server_serves_when_it_is_told_to(group):
    meeting = Meeting(2)

    async def main():
        server, port = await serve(start_serving=False)
        assert not server.is_serving()
        await meeting.wait()
        starts = meeting.first()
        if starts:
            await server.start_serving()
            assert server.is_serving()
        await meeting.wait()

        def use():
            with clients() as dial:
                return {served_by(dial(("127.0.0.1", port))) for _ in range(4)}

        served = await in_thread(use)
        await meeting.wait()
        server.close()
        return me() if starts else None, served

    results = group(main, 2)
    (name,) = (name for name, _ in results if name)
    assert all(served == {name} for _, served in results)


def test_wait_closed_waits_for_the_connections_of_its_own_loop(group):
    meeting = Meeting(2)

    async def main():
        server, port = await serve()
        await meeting.wait()
        with clients() as dial:
            if meeting.first():
                socks = [dial(("127.0.0.1", port)) for _ in range(2)]
                names = [await in_thread(served_by, sock) for sock in socks]
                assert len(set(names)) == 2
                await meeting.wait()
                mine = socks[names.index(me())]
                server.close()
                closed = asyncio.create_task(server.wait_closed())
                if hasattr(asyncio.Server, "close_clients"):
                    await asyncio.sleep(0.05)
                    assert not closed.done()
                mine.close()
                await closed
                await meeting.wait()
            else:
                await meeting.wait()
                await meeting.wait()
        server.close()
        await server.wait_closed()

    group(main, 2)


def test_serve_forever_ends_when_it_is_cancelled(group):
    async def main():
        server, _ = await serve()
        async with server:
            forever = asyncio.create_task(server.serve_forever())
            await asyncio.sleep(0.01)
            forever.cancel()
            with pytest.raises(asyncio.CancelledError):
                await forever
        assert not server.is_serving()

    group(main)


def test_what_a_stalled_loop_has_not_picked_up_goes_to_others_when_its_server_closes(group):
    meeting, accepted = Meeting(2), []

    class Counting(Names):
        def connection_made(self, transport):
            accepted.append(me())
            super().connection_made(transport)

    async def main():
        server, port = await serve(Counting)
        await meeting.wait()
        if meeting.first():
            with clients() as dial:
                # None is picked up before this callback ends.
                socks = [dial(("127.0.0.1", port)) for _ in range(10)]
                time.sleep(0.005)
                server.close()
                names = await in_thread(lambda: [served_by(sock) for sock in socks])
            assert len(names) == 10 and me() not in names
        await meeting.wait()
        server.close()

    group(main, 2)
    assert len(accepted) == 10


def test_servers_that_come_and_go_lose_no_connection_and_count_right(group):
    meeting, over = Meeting(), threading.Event()

    async def main():
        loop = asyncio.get_running_loop()
        server, port = await serve()
        await meeting.wait()
        if meeting.first():

            def use():
                with clients() as dial:
                    kept = []
                    for i in range(300):
                        sock = dial(("127.0.0.1", port))
                        name = served_by(sock)
                        assert name, i
                        kept.append(sock)
                        if len(kept) > 20:
                            kept.pop(random.randrange(len(kept))).close()

            try:
                await asyncio.gather(*(in_thread(use) for _ in range(3)))
            finally:
                over.set()
        else:
            while not over.is_set():
                await asyncio.sleep(random.random() / 50)
                if random.random() < 0.3:
                    time.sleep(random.random() / 20)
                server.close()
                await asyncio.sleep(0)
                server, _ = await serve(port=port)
        await meeting.wait()
        server.close()

        def load():
            with loop._worker.group.lock:
                return loop._worker.load.value(), server._live.value()

        await until(lambda: load() == (0, 0))

    group(main)


def test_what_a_loop_has_not_picked_up_when_it_ends_is_closed(group):
    with clients() as dial:
        socks = []

        async def late():
            server, port = await serve()
            try:
                await asyncio.sleep(LIMIT)
            finally:
                # In the last callback of the loop.
                socks.extend(dial(("127.0.0.1", port)) for _ in range(5))
                time.sleep(0.1)
                raise SystemExit(3)

        async def main():
            tasks.append(asyncio.create_task(late()))
            await asyncio.sleep(0.05)

        tasks = []
        with pytest.raises(SystemExit):
            group(main, 1)
        for sock in socks:
            with contextlib.suppress(ConnectionResetError):
                assert sock.recv(100) == b""
        assert len(socks) == 5


@pytest.mark.parametrize("backlogs", [(50, 5), (5, 50)])
def test_the_kernels_backlog_is_the_largest_whoever_comes_last(group, backlogs):
    meeting = Meeting(2)

    def kernels(server):
        # Of a listening socket, tcpi_sacked is its backlog.
        info = server.sockets[0].getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 32)
        return struct.unpack_from("=I", info, 28)[0]

    async def main():
        first = meeting.first()
        if first:
            server, _ = await serve(backlog=backlogs[0])
        await meeting.wait()
        if not first:
            server, _ = await serve(backlog=backlogs[1])
        await meeting.wait()
        assert kernels(server) == 50
        await meeting.wait()
        server.close()

    group(main, 2)


def test_more_connections_than_the_backlog_wait_for_a_slow_loop(group):
    async def main():
        server, port = await serve(backlog=4)
        with clients() as dial:

            def use():
                return [served_by(dial(("127.0.0.1", port))) for _ in range(40)]

            asking = in_thread(use)
            for _ in range(20):
                await asyncio.sleep(0.005)
                time.sleep(0.005)
            assert await asking == ["netpoll_loop P0"] * 40
            socks = [socket.socket() for _ in range(40)]
            with contextlib.ExitStack() as stack:
                for sock in socks:
                    stack.enter_context(sock)
                    sock.setblocking(False)
                    with contextlib.suppress(BlockingIOError):
                        sock.connect(("127.0.0.1", port))
                time.sleep(0.1)

                def read():
                    for sock in socks:
                        sock.settimeout(LIMIT)
                    return [served_by(sock) for sock in socks[:5]]

                assert await in_thread(read) == ["netpoll_loop P0"] * 5
        server.close()

    group(main, 1)


def test_accepting_goes_on_when_there_are_descriptors_again(group, monkeypatch):
    contexts, refused = [], [errno.EMFILE]
    accept = socket.socket.accept

    def accept_or_not(sock):
        if refused:
            raise OSError(refused.pop(), "none left")
        return accept(sock)

    async def main():
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: contexts.append(context))
        server, port = await serve()
        with clients() as dial:
            assert await in_thread(lambda: served_by(dial(("127.0.0.1", port)))) == me()
        server.close()

    monkeypatch.setattr(socket.socket, "accept", accept_or_not)
    group(main, 1)
    assert [context["message"] for context in contexts] == ["socket.accept() out of system resource"]


def test_a_protocol_factory_that_fails_costs_its_connection_only(group):
    meeting, contexts, failures = Meeting(2), [], iter(range(3))

    def fails():
        if next(failures, None) is None:
            return Names()
        raise ZeroDivisionError

    async def main():
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: contexts.append(context))
        bad = meeting.first()
        server, port = await serve(fails if bad else Names)
        await meeting.wait()
        served = None
        if bad:

            def use():
                with clients() as dial:
                    socks = [dial(("127.0.0.1", port)) for _ in range(6)]
                    return [served_by(sock) for sock in socks]

            served = await in_thread(use)
        await meeting.wait()
        server.close()
        return served

    (served,) = filter(None, group(main, 2))
    assert {type(context["exception"]) for context in contexts} == {ZeroDivisionError}
    # Its connections are gone at once, so it has the fewest, and by the rule gets the next one, too.
    assert 3 >= served.count("") == len(contexts) > 0


@pytest.mark.parametrize("cleanup", [True, False])
def test_a_unix_path_is_shared(group, tmp_path, cleanup):
    path, meeting = str(tmp_path / "socket"), Meeting()

    async def main():
        loop = asyncio.get_running_loop()
        server = await loop.create_unix_server(Names, path, cleanup_socket=cleanup)
        assert server.sockets[0].getsockname() == path
        await meeting.wait()
        served = None
        if meeting.first():

            def use():
                with clients() as dial:
                    return collections.Counter(served_by(dial(path, socket.AF_UNIX)) for _ in range(30))

            served = await in_thread(use)
        await meeting.wait()
        assert os.path.exists(path)
        await meeting.wait()
        server.close()
        return served

    (served,) = filter(None, group(main))
    assert is_even(served, 3)
    assert os.path.exists(path) is not cleanup


def test_streams_and_their_context(group):
    variable, meeting = contextvars.ContextVar("variable"), Meeting()

    async def main():
        variable.set(me())

        async def answer(reader, writer):
            assert writer.get_extra_info("peername")[0] == "127.0.0.1"
            writer.write(variable.get().encode() + b"|" + me().encode())
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        await meeting.wait()
        for _ in range(10):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            left, right = (await reader.read()).split(b"|")
            assert left == right
            writer.close()
        await meeting.wait()
        server.close()

    group(main)


# --- TLS --------------------------------------------------------------------------------------------------------------


def test_tls_connections_are_spread(group, server_context, client_context):
    meeting = Meeting()

    async def main():
        server, port = await serve(ssl=server_context)
        await meeting.wait()
        names = None
        if meeting.first():
            pairs = [
                await asyncio.open_connection("127.0.0.1", port, ssl=client_context, server_hostname="localhost")
                for _ in range(30)
            ]
            names = collections.Counter([(await reader.readline()).decode().strip() for reader, _ in pairs])
            for reader, writer in pairs:
                writer.write(b"echo")
                assert await reader.readexactly(4) == b"echo"
                writer.close()
                await writer.wait_closed()
        await meeting.wait()
        server.close()
        await server.wait_closed()
        return names

    (names,) = filter(None, group(main))
    assert is_even(names, 3)


@pytest.mark.parametrize("what", ["handshake", "factory"])
def test_a_tls_connection_that_fails_counts_no_longer(group, server_context, what):
    def fails():
        raise ZeroDivisionError

    async def main():
        server, port = await serve(Names if what == "handshake" else fails, ssl=server_context)
        with clients() as dial:
            for _ in range(3):
                sock = dial(("127.0.0.1", port))
                sock.sendall(b"GET / HTTP/1.1\r\n\r\n")

                def to_the_end(sock=sock):
                    with contextlib.suppress(ConnectionResetError):
                        while sock.recv(100):
                            pass

                await in_thread(to_the_end)
        loop = asyncio.get_running_loop()

        def load():
            with loop._worker.group.lock:
                return loop._worker.load.value()

        await until(lambda: load() == 0)
        server.close()
        await server.wait_closed()

    group(main, 1)


# --- aiohttp ----------------------------------------------------------------------------------------------------------


def test_an_aiohttp_application_is_served_by_all(group):
    aiohttp = pytest.importorskip("aiohttp")
    from aiohttp import web

    meeting = Meeting()

    async def hello(request):
        return web.Response(text=me())

    async def main():
        app = web.Application()
        app.router.add_get("/", hello)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        _, port = runner.addresses[0]
        await meeting.wait()
        answers = collections.Counter()
        if meeting.first():
            for _ in range(12):
                async with aiohttp.ClientSession() as session:
                    for _ in range(3):
                        async with session.get(f"http://127.0.0.1:{port}/") as response:
                            answers[await response.text()] += 1
        await meeting.wait()
        await runner.cleanup()
        return answers

    answers = max(group(main), key=len)
    assert sum(answers.values()) == 36 and len(answers) == 3


# --- go ---------------------------------------------------------------------------------------------------------------


def everywhere(group, main, workers=3):
    """Runs main(meeting) on one loop; the others keep still. Returns its result."""
    meeting = Meeting(workers)

    async def each():
        await meeting.wait()
        return await main() if meeting.first() else None

    return [result for result in group(each, workers) if result is not None]


def test_go_takes_coroutines_coroutine_functions_and_functions(group):
    async def work(value=5):
        await asyncio.sleep(0)
        return value

    def plain(*values):
        return asyncio.get_running_loop() is not None and values

    async def main():
        assert await netpoll_loop.go(work) == 5
        assert await netpoll_loop.go(work, 6) == 6
        assert await netpoll_loop.go(work(7)) == 7
        assert await netpoll_loop.go(functools.partial(work, 8)) == 8
        assert await netpoll_loop.go(lambda: work(9)) == 9
        assert await netpoll_loop.go(plain, 1, 2) == (1, 2)
        with pytest.raises(TypeError, match="a coroutine or a function is expected"):
            netpoll_loop.go(5)
        with pytest.raises(TypeError, match="positional argument"):
            netpoll_loop.go(work, 1, 2)
        with pytest.raises(TypeError, match="a coroutine takes no arguments"):
            netpoll_loop.go(work(), 1)

    everywhere(group, main)


def test_go_takes_the_least_loaded_loop(group):
    async def main():
        held = netpoll_loop.Channel()

        async def hold():
            await held.receive()
            return me()

        work = [netpoll_loop.go(hold) for _ in range(9)]
        names = collections.Counter()
        for _ in range(9):
            await held.send(None)
        for each in work:
            names[await each] += 1
        assert sorted(names.values()) == [3, 3, 3]
        # One has three more than the others, until they are done.
        return True

    assert everywhere(group, main) == [True]


def test_connections_count_as_load(group):
    meeting = Meeting(2)

    async def main():
        serves = meeting.first()
        if serves:
            server, port = await serve()
        await meeting.wait()
        if serves:
            with clients() as dial:
                for _ in range(3):
                    await in_thread(served_by, dial(("127.0.0.1", port)))

                async def busy():
                    await asyncio.sleep(0.05)
                    return me()

                names = [await work for work in [netpoll_loop.go(busy) for _ in range(3)]]
                assert me() not in names
            server.close()
        await meeting.wait()

    group(main, 2)


def test_a_handle_is_awaited_by_many_on_all_loops(group):
    meeting, handles = Meeting(), []

    async def work():
        await asyncio.sleep(0.05)
        return object()

    async def main():
        if meeting.first():
            handles.append(netpoll_loop.go(work))
        await meeting.wait()
        (handle,) = handles
        results = await asyncio.gather(*(asyncio.wait_for(handle, LIMIT) for _ in range(5)))
        assert handle.done() and handle.result() is results[0] is await handle
        return results

    assert len({result for results in group(main) for result in results}) == 1


def test_the_exception_of_work_is_raised_where_it_is_awaited(group):
    async def fails():
        raise KeyError("why")

    def fails_at_once():
        raise KeyError("why")

    async def main():
        for function in (fails, fails_at_once):
            handle = netpoll_loop.go(function)
            for _ in range(2):
                with pytest.raises(KeyError, match="why"):
                    await handle
            assert isinstance(handle.exception(), KeyError) and not handle.cancelled()

    everywhere(group, main)


@pytest.mark.parametrize("where", ["in a group", "outside"])
def test_work_that_cannot_begin_fails_in_its_handle(group, mode, where, recwarn):
    async def work():
        pass

    def refuse(loop, coroutine, **options):
        if coroutine.__name__ == "work":
            raise KeyError("refused")
        return asyncio.Task(coroutine, loop=loop, **options)

    async def main():
        loop, contexts = asyncio.get_running_loop(), []
        loop.set_exception_handler(lambda loop, context: contexts.append(context))
        loop.set_task_factory(refuse)
        for what in (work, work(), lambda: work()):
            with pytest.raises(KeyError, match="refused"):
                await asyncio.wait_for(netpoll_loop.go(what), LIMIT)
        loop.set_task_factory(None)
        # Entered on another thread for as long as the loop tries.
        context, entered, leave = contextvars.copy_context(), threading.Event(), threading.Event()
        holding = in_thread(context.run, lambda: entered.set() or leave.wait(LIMIT))
        await until(entered.is_set)
        try:
            for what in (work, work(), lambda: work(), me):
                with pytest.raises(RuntimeError, match="cannot enter context"):
                    await asyncio.wait_for(netpoll_loop.go(what, context=context), LIMIT)
        finally:
            leave.set()
            await holding
        assert not contexts
        if where == "in a group":
            assert loop._worker.load.value() == 0 and not loop._worker.works

    if where == "outside":
        netpoll_loop.run(main(), netpoller=mode)
    else:
        group(main, 1)
    gc.collect()
    assert not recwarn.list


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_work_that_ends_the_process_is_raised_by_run_and_in_its_handle(group, error):
    handles = []

    def function():
        raise error("now")

    async def coroutine():
        raise error("now")

    for work in (function, coroutine):

        async def main(work=work):
            handles.append(netpoll_loop.go(work))
            await asyncio.sleep(LIMIT)

        with pytest.raises(error, match="now"):
            group(main, 1)
        assert isinstance(handles[-1].exception(), error)


def test_work_is_cancelled_by_its_handle_only(group):
    async def forever():
        await asyncio.sleep(LIMIT)

    async def main():
        handle = netpoll_loop.go(forever)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(handle, 0.02)
        assert not handle.done()
        with pytest.raises(asyncio.InvalidStateError):
            handle.result()
        with pytest.raises(asyncio.InvalidStateError):
            handle.exception()
        assert handle.cancel("enough")
        with pytest.raises(asyncio.CancelledError):
            await handle
        assert handle.cancelled() and handle.done() and not handle.cancel()
        with pytest.raises(asyncio.CancelledError):
            handle.exception()

    everywhere(group, main)


def test_work_cancelled_before_it_has_begun_does_not_begin(group, recwarn):
    ran = []

    async def work():
        ran.append(1)

    async def main():
        for function in (work, lambda: ran.append(2)):
            handle = netpoll_loop.go(function)
            assert handle.cancel()
            with pytest.raises(asyncio.CancelledError):
                await handle

    everywhere(group, main, 1)
    assert not ran
    gc.collect()
    assert not recwarn.list


@pytest.mark.parametrize("begun", [False, True])
def test_the_message_of_a_cancellation_reaches_who_awaits(group, begun):
    async def main():
        # As that of a task.
        for message, args in ((None, ()), ("why", ("why",))):
            for start in (netpoll_loop.go, asyncio.create_task):
                work = start(asyncio.sleep(LIMIT))
                if begun:
                    await asyncio.sleep(0.02)
                work.cancel(message)
                with pytest.raises(asyncio.CancelledError) as info:
                    await work
                assert info.value.args == args

    everywhere(group, main, 1)


def test_a_function_that_has_begun_is_not_cancelled(group):
    begun, go_on = threading.Event(), threading.Event()

    def function():
        with netpoll_loop.blocking():
            begun.set()
            go_on.wait(LIMIT)
        return 5

    async def main():
        handle = netpoll_loop.go(function)
        await until(begun.is_set)
        handle.cancel()
        await asyncio.sleep(0.02)
        go_on.set()
        assert await handle == 5

    everywhere(group, main, 1)


@pytest.mark.parametrize("where", ["in a group", "outside"])
def test_an_exception_that_nobody_asks_for_is_reported(group, mode, where):
    contexts = []

    async def fails():
        raise KeyError

    async def main():
        # Of whichever loop it runs on.
        for _ in range(3):
            netpoll_loop.go(fails, name="it")

        def listen():
            asyncio.get_running_loop().set_exception_handler(lambda loop, context: contexts.append(context))

        listen()
        await asyncio.sleep(0.1)
        gc.collect()
        await asyncio.sleep(0.1)

    if where == "outside":
        netpoll_loop.run(main(), netpoller=mode)
    else:
        group(main, 1)
    assert [type(context["exception"]) for context in contexts] == [KeyError] * 3
    assert contexts[0]["message"] == "The exception of go() was never retrieved: it"


@pytest.fixture
def without_collector():
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def fails_at_once():
    raise KeyError


async def fails_in_a_task():
    raise KeyError


async def is_cancelled():
    raise asyncio.CancelledError


@pytest.mark.parametrize("fails", [fails_at_once, fails_in_a_task])
@pytest.mark.parametrize("factory", [None, getattr(asyncio, "eager_task_factory", None)])
def test_an_exception_is_reported_when_the_handle_goes_without_the_collector(group, fails, factory, without_collector):
    async def main():
        loop, contexts = asyncio.get_running_loop(), []
        loop.set_exception_handler(lambda loop, context: contexts.append(context["exception"]))
        loop.set_task_factory(factory)
        handle = netpoll_loop.go(fails)
        await until(handle.done)
        assert not contexts
        del handle
        await until(lambda: contexts)
        assert [type(exc) for exc in contexts] == [KeyError]

    everywhere(group, main, 1)


@pytest.mark.parametrize("fails", [fails_at_once, fails_in_a_task, is_cancelled])
@pytest.mark.parametrize("ask", ["result", "exception"])
def test_a_handle_that_has_failed_goes_without_the_collector(group, fails, ask, without_collector):
    async def use(handle):
        with contextlib.suppress(KeyError, asyncio.CancelledError):
            await until(handle.done)
            try:
                handle.result() if ask == "result" else handle.exception()
            finally:
                # This frame is in the traceback, too.
                del handle

    async def main():
        handle = netpoll_loop.go(fails)
        gone = weakref.ref(handle)
        await use(handle)
        del handle
        await until(lambda: gone() is None)

    everywhere(group, main, 1)


@pytest.mark.parametrize("fails", [fails_at_once, fails_in_a_task, is_cancelled])
def test_a_handle_whose_failure_was_awaited_goes_without_the_collector(group, fails, without_collector):
    async def main():
        handles = [netpoll_loop.go(fails)]
        gone = weakref.ref(handles[0])
        with contextlib.suppress(KeyError, asyncio.CancelledError):
            await handles.pop()
        await until(lambda: gone() is None)

    everywhere(group, main, 1)


def test_go_outside_a_group_starts_on_the_running_loop(run, loop):
    async def work():
        return asyncio.get_running_loop()

    async def main():
        handle = netpoll_loop.go(work)
        assert await handle is loop
        assert await netpoll_loop.go(asyncio.get_running_loop) is loop

    run(main())


def test_go_without_a_loop_is_refused(recwarn):
    with pytest.raises(RuntimeError, match="no running event loop"):
        netpoll_loop.go(asyncio.sleep(0))
    gc.collect()
    assert not recwarn.list


def test_work_has_a_name_and_a_context(group):
    variable = contextvars.ContextVar("variable", default=None)

    async def work():
        before = variable.get()
        variable.set("changed")
        return before, asyncio.current_task().get_name()

    async def main():
        variable.set("mine")
        handle = netpoll_loop.go(work, name="named")
        assert handle.get_name() == "named" and "named" in repr(handle)
        assert await handle == ("mine", "named")
        assert variable.get() == "mine"
        context = contextvars.Context()
        assert (await netpoll_loop.go(work, context=context))[0] is None
        assert context[variable] == "changed"
        assert await netpoll_loop.go(variable.get, context=context) == "changed"

    everywhere(group, main)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="asyncio.eager_task_factory is from 3.12")
@pytest.mark.parametrize("where", ["in a group", "outside"])
def test_work_may_begin_at_once_with_an_eager_task_factory(group, mode, where):
    variable = contextvars.ContextVar("variable", default=None)

    async def at_once():
        return variable.get(), asyncio.current_task() is not None

    async def later():
        await asyncio.sleep(0)
        variable.set("changed")
        return await at_once()

    async def main():
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        variable.set("mine")
        context = contextvars.copy_context()
        assert await netpoll_loop.go(at_once) == ("mine", True)
        assert await netpoll_loop.go(at_once()) == ("mine", True)
        assert await netpoll_loop.go(lambda: at_once()) == ("mine", True)
        assert await netpoll_loop.go(later, context=context) == ("changed", True)
        assert variable.get() == "mine" and context[variable] == "changed"

    if where == "outside":
        netpoll_loop.run(main(), netpoller=mode)
    else:
        group(main, 1)


def test_work_that_nobody_keeps_goes_on(group):
    done = []

    async def work(number):
        for _ in range(3):
            await asyncio.sleep(0.01)
        done.append(number)

    async def main():
        for number in range(30):
            netpoll_loop.go(work, number)
        gc.collect()
        await until(lambda: len(done) == 30)

    everywhere(group, main)
    assert sorted(done) == list(range(30))


def test_work_is_cancelled_at_the_end_of_the_group(group):
    handles = []

    async def forever():
        await asyncio.sleep(LIMIT)

    async def main():
        handles.extend(netpoll_loop.go(forever) for _ in range(6))
        await asyncio.sleep(0.05)
        # These may be too late to begin.
        handles.extend(netpoll_loop.go(forever) for _ in range(6))

    everywhere(group, main)
    assert len(handles) == 12 and all(handle.cancelled() for handle in handles)


def test_work_that_a_loop_starts_while_it_ends_stays_there(group):
    meeting, other_ends, started, results = Meeting(2), threading.Event(), threading.Event(), []

    async def work():
        await asyncio.sleep(0)
        return me()

    async def clean_up(first):
        try:
            await asyncio.sleep(LIMIT)
        finally:
            # The other loop has seen which tasks there are to be cancelled, and would give to new ones no time to end.
            if first:
                other_ends.wait(LIMIT)
                handles = [netpoll_loop.go(work) for _ in range(4)]
                started.set()
                results.append((me(), [await handle for handle in handles]))
            else:
                other_ends.set()
                started.wait(LIMIT)

    async def main():
        task = asyncio.create_task(clean_up(meeting.first()))
        await asyncio.sleep(0)
        await meeting.wait()
        return task

    group(main, 2)
    ((name, names),) = results
    assert names == [name] * 4


def test_work_that_comes_too_late_to_be_cancelled_does_not_begin(group, recwarn):
    ran, handles = [], []

    async def work():
        ran.append("coroutine")
        await asyncio.sleep(LIMIT)

    async def clean_up():
        try:
            await asyncio.sleep(LIMIT)
        finally:
            for _ in range(10):
                await asyncio.sleep(0)

    async def main():
        loop, task = asyncio.get_running_loop(), asyncio.create_task(clean_up())
        worker = loop._worker
        released = worker._released

        def late():
            handles.extend(netpoll_loop.go(what) for what in (work, work(), lambda: ran.append("function")))

        async def released_then_late():
            await released()
            # In the last turn before the tasks are cancelled.
            loop.call_soon(late)

        worker._released = released_then_late
        await asyncio.sleep(0)
        return task

    group(main, 1)
    assert len(handles) == 3 and all(handle.cancelled() for handle in handles)
    assert not ran
    gc.collect()
    assert not recwarn.list


def test_go_under_load_does_each_piece_once(group):
    meeting, done = Meeting(), collections.Counter()
    lock = threading.Lock()

    async def work(key):
        await asyncio.sleep(0)
        with lock:
            done[key] += 1
        return key

    async def main():
        name = me()
        await meeting.wait()
        handles = [netpoll_loop.go(work, (name, i)) for i in range(500)]
        assert [await handle for handle in handles] == [(name, i) for i in range(500)]
        await meeting.wait()
        loop = asyncio.get_running_loop()
        with loop._worker.group.lock:
            assert loop._worker.load.value() == 0 and not loop._worker.works

    group(main)
    assert len(done) == 1500 and set(done.values()) == {1}


# --- signals ----------------------------------------------------------------------------------------------------------


def test_a_signal_reaches_the_handlers_of_all_loops(group):
    meeting = Meeting()

    async def main():
        loop, came = asyncio.get_running_loop(), asyncio.Event()
        threads = []

        def handler(text):
            threads.append((me(), text))
            came.set()

        loop.add_signal_handler(signal.SIGUSR1, handler, "x")
        await meeting.wait()
        if meeting.first():
            os.kill(os.getpid(), signal.SIGUSR1)
        await came.wait()
        assert threads == [(me(), "x")]
        await meeting.wait()
        assert loop.remove_signal_handler(signal.SIGUSR1)
        assert not loop.remove_signal_handler(signal.SIGUSR1)
        await meeting.wait()
        assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL

    group(main)


def test_handlers_go_with_their_loops(group):
    async def main():
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, int)
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, int)

    group(main)
    assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_bad_signal_handlers_are_refused_as_by_asyncio(group):
    async def coroutine():
        pass

    async def main():
        loop = asyncio.get_running_loop()
        with pytest.raises(TypeError, match="coroutines cannot be used"):
            loop.add_signal_handler(signal.SIGUSR1, coroutine)
        with pytest.raises(RuntimeError, match="cannot be caught"):
            loop.add_signal_handler(signal.SIGKILL, int)
        with pytest.raises(ValueError):
            loop.add_signal_handler(1000, int)
        with pytest.raises(TypeError):
            loop.remove_signal_handler("x")

    group(main, 2)


def test_ctrl_c_cancels_all_and_is_raised(group):
    meeting, cancelled = Meeting(), []

    async def main():
        try:
            await meeting.wait()
            if meeting.first():
                os.kill(os.getpid(), signal.SIGINT)
            await asyncio.sleep(LIMIT)
        except asyncio.CancelledError:
            cancelled.append(me())
            raise

    with pytest.raises(KeyboardInterrupt):
        group(main)
    assert len(cancelled) == 3
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_that_is_dealt_with_is_not_raised(group):
    meeting = Meeting()

    async def main():
        try:
            await meeting.wait()
            if meeting.first():
                os.kill(os.getpid(), signal.SIGINT)
            await asyncio.sleep(LIMIT)
        except asyncio.CancelledError:
            asyncio.current_task().uncancel()
            return "dealt with"

    assert group(main) == ["dealt with"] * 3


def test_a_second_ctrl_c_interrupts(start_child, mode):
    child = start_child(
        """
        import netpoll_loop, threading, time
        count = [0]
        async def main():
            count[0] += 1
            if count[0] == 2:
                print("ready", flush=True)
                while True:
                    pass
            try:
                await asyncio.sleep(30)
            except asyncio.CancelledError:
                print("refused", flush=True)
            await asyncio.sleep(30)
        try:
            netpoll_loop.run(main, workers=2, netpoller=os.environ["NETPOLL_LOOP_TEST_MODE"])
        except KeyboardInterrupt:
            print("interrupted", flush=True)
        """
    )
    assert child.read_line() == "ready\n"
    child.kill(signal.SIGINT)
    assert child.read_line() == "refused\n"
    child.kill(signal.SIGINT)
    done = child.finish(20)
    assert (done.returncode, done.stdout) == (0, "interrupted\n"), done


def test_a_third_ctrl_c_leaves_a_worker_that_is_stuck(start_child):
    child = start_child(
        """
        import netpoll_loop, time
        async def main():
            print("ready", flush=True)
            time.sleep(60)
        try:
            netpoll_loop.run(main, workers=1)
        except KeyboardInterrupt:
            print("interrupted", flush=True)
        """
    )
    assert child.read_line() == "ready\n"
    for _ in range(3):
        child.kill(signal.SIGINT)
        time.sleep(0.2)
    done = child.finish(20)
    assert (done.returncode, done.stdout) == (0, "interrupted\n"), done


def test_a_group_may_be_run_outside_the_main_thread(group):
    results = []

    async def main():
        with pytest.raises((RuntimeError, ValueError)):
            asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, int)
        server, _ = await serve()
        server.close()
        return 1

    thread = threading.Thread(target=lambda: results.append(group(main)))
    thread.start()
    thread.join(LIMIT)
    assert results == [[1, 1, 1]]
