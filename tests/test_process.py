"""The loop as part of a process: fork, exit, blocked callbacks, idleness, and what hundreds of loops leave behind.

Mostly child programs.
"""

import asyncio
import pathlib
import signal
import socket
import sys
import threading
import time

import pytest
from peers import Recorder, pattern, put_away, turns, until

#: In a child: `pair()` is a transport whose netpoller, if there is one, has been at work, and the socket opposite.
PAIR = """\
import os, socket, time

def held():
    # Descriptors and threads; one that was joined is listed for a moment longer.
    limit = time.monotonic() + 10
    while len(os.listdir("/proc/self/task")) > 1 and time.monotonic() < limit:
        time.sleep(0.001)
    return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))

async def pair(protocol=asyncio.Protocol):
    one, other = socket.socketpair()
    other.settimeout(10)
    one.setblocking(False)
    transport, _ = await asyncio.get_running_loop().create_connection(protocol, sock=one)
    transport.write(b"started")
    await asyncio.sleep(0.02)
    assert other.recv(7) == b"started"
    return transport, other

async def echo_once():
    async def serve(reader, writer):
        writer.write(await reader.readexactly(5))
        await writer.drain()
        writer.close()
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    writer.write(b"hello")
    assert await reader.read() == b"hello"
    writer.close()
    await writer.wait_closed()
    server.close()
"""


# --- fork -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["in_a_coroutine", "between_runs"])
def test_a_fork_raises_no_warning_the_child_runs_a_new_loop_and_the_parent_goes_on(run_child, where):
    """From 3.12 on os.fork() warns when the process has another thread, which -W error makes fatal."""
    done = run_child(
        PAIR
        + f"""
where = {where!r}

def fork():
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            loop = new_event_loop()
            loop.run_until_complete(asyncio.wait_for(echo_once(), 10))
            loop.close()
            status = 0
        finally:
            os._exit(status)
    return pid

async def main():
    transport, other = await pair()
    pid = fork() if where == "in_a_coroutine" else None
    return transport, other, pid

async def after(transport, other, pid):
    transport.write(b"parent goes on")
    assert other.recv(100) == b"parent goes on"
    await echo_once()
    while os.waitpid(pid, os.WNOHANG) == (0, 0):
        await asyncio.sleep(0.01)
    transport.close()
    await asyncio.sleep(0.01)
    other.close()

loop = new_event_loop()
for _ in range(3):
    transport, other, pid = loop.run_until_complete(main())
    pid = pid or fork()
    loop.run_until_complete(after(transport, other, pid))
loop.close()
print("done")
""",
        flags=["-W", "error"],
    )
    assert done.stdout == "done\n"
    assert done.stderr == ""


def test_a_forked_child_that_leaves_the_inherited_loop_alone_exits_cleanly(run_child):
    done = run_child(
        PAIR
        + """
async def main():
    transport, other = await pair()
    transport.write(bytes(1 << 20))
    pid = os.fork()
    if pid == 0:
        return 0
    received = 0
    while received < 1 << 20:
        received += len(other.recv(65536))
        await asyncio.sleep(0)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 5, status
    transport.close()
    other.close()
    return 1

loop = new_event_loop()
parent = loop.run_until_complete(main())
if not parent:
    sys.exit(5)
loop.close()
print("done")
""",
        flags=["-W", "ignore"],
    )
    assert done.stdout == "done\n"


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_multiprocessing_starts_processes_from_a_coroutine(run_child, method):
    run_child(
        PAIR
        + f"""
import multiprocessing

def work():
    new = new_event_loop()
    new.run_until_complete(echo_once())
    new.close()

async def main():
    transport, other = await pair()
    context = multiprocessing.get_context({method!r})
    # a child that is spawned can't import what this program defined
    process = context.Process(target=work) if {method!r} == "fork" else context.Process(target=pow, args=(2, 3))
    process.start()
    while process.is_alive():
        await asyncio.sleep(0.01)
    process.join()
    assert process.exitcode == 0, process.exitcode
    transport.close()
    await asyncio.sleep(0.01)
    other.close()

run_main(main())
""",
        flags=["-W", "error"],
    )


# --- the end of the interpreter ---------------------------------------------------------------------------------------

ENDINGS = {
    "end_of_program": "loop.run_until_complete(prepare())",
    "sys_exit": "loop.run_until_complete(prepare()); sys.exit(0)",
    "sys_exit_in_a_callback": "loop.run_until_complete(prepare()); loop.call_soon(sys.exit, 0); loop.run_forever()",
    "sys_exit_in_a_coroutine": """
async def leave():
    await prepare()
    sys.exit(0)
loop.run_until_complete(leave())""",
    "running_in_a_daemon_thread": """
import threading, time
def work():
    asyncio.set_event_loop(loop)
    loop.create_task(prepare())
    loop.run_forever()
threading.Thread(target=work, daemon=True).start()
time.sleep(0.2)""",
    "closed_at_exit": "import atexit; loop.run_until_complete(prepare()); atexit.register(loop.close)",
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_the_interpreter_ends_with_an_open_loop_and_queued_writes(run_child, ending):
    done = run_child(
        PAIR
        + f"""
loop = new_event_loop()
kept = []
async def prepare():
    for _ in range(3):
        transport, other = await pair()
        transport.write(bytes(4 << 20))
        kept.append((transport, other))
    kept.append(await asyncio.get_running_loop().create_server(asyncio.Protocol, "127.0.0.1", 0))
{ENDINGS[ending]}
""",
        timeout=20,
        check=False,
        flags=["-W", "ignore"],
    )
    assert done.returncode == 0, done.stderr
    assert "Fatal" not in done.stderr


@pytest.mark.parametrize("size", [1000, 100000])
def test_what_was_written_before_os_exit_is_delivered(start_child, listener, size):
    server = listener()
    child = start_child(
        f"""
        async def main():
            _, writer = await asyncio.open_connection("127.0.0.1", int(sys.argv[1]))
            await asyncio.sleep(0.02)
            writer.write(bytes({size}))
            os._exit(7)
        run_main(main())
        """,
        args=[server.getsockname()[1]],
    )
    server.settimeout(20)
    sock, _ = server.accept()
    with sock:
        sock.settimeout(20)
        received = b"".join(iter(lambda: sock.recv(65536), b""))
    assert len(received) == size
    assert child.finish().returncode == 7


def test_leaving_run_forever_flushes_what_stock_would_have_sent(run, loop, socket_pair):
    """uvloop issue 631 is what happens when small writes wait for a later turn."""

    async def main():
        sock, peer = socket_pair()
        transport, _ = await loop.create_connection(Recorder, sock=sock)
        await turns(1)
        transport.write(b"last words")
        loop.call_soon(transport.write, b", and more")
        await asyncio.sleep(0)
        return transport, peer

    transport, peer = run(main())
    peer.settimeout(10)
    received = b""
    while len(received) < 20:
        received += peer.recv(100)
    assert received == b"last words, and more"
    put_away(transport)
    run(turns(1))


# --- blocked callbacks ------------------------------------------------------------------------------------------------


@pytest.mark.netpoll_only("about worker threads")
@pytest.mark.parametrize("run_on", ["caller", "worker"])
@pytest.mark.parametrize("where", ["main", "atexit"])
def test_the_interpreter_ends_with_an_open_loop_that_has_had_worker_threads(run_child, where, run_on):
    if sys.version_info[:2] == (3, 12) and (where, run_on) == ("atexit", "worker"):
        pytest.skip("Python 3.12 starts no thread in an atexit function")
    done = run_child(
        f"""
        import atexit, time
        import netpoll_loop

        loop = new_event_loop(run_on={run_on!r})

        async def main():
            with netpoll_loop.blocking():
                time.sleep(0.02)
            print("ran", flush=True)

        if {where!r} == "atexit":
            atexit.register(loop.run_until_complete, main())
        else:
            loop.run_until_complete(main())
        """
    )
    assert done.stdout.split() == ["ran"]
    assert "Error" not in done.stderr


class Reader(threading.Thread):
    """Reads `count` bytes from the socket, blocking, then sets `done`."""

    def __init__(self, sock, count):
        super().__init__(name="reader")
        self.sock, self.count, self.data, self.done = sock, count, bytearray(), threading.Event()
        sock.settimeout(20)

    def run(self):
        while len(self.data) < self.count:
            piece = self.sock.recv(1 << 20)
            if not piece:
                return
            self.data += piece
        self.done.set()


def _block(done):
    """A callback that sleeps until the peer has everything, at least as long as anybody's tick."""
    time.sleep(0.05)
    return done.wait(10)


def _compute(done):
    """A callback that never leaves Python until the peer has everything."""
    deadline = time.monotonic() + 10
    while not done.is_set() and time.monotonic() < deadline:
        sum(range(100))
    return done.is_set()


@pytest.mark.parametrize("size", [1, 1000, 100000, 4 << 20])
@pytest.mark.parametrize("how", ["write", "writelines", "pieces", "stream"])
@pytest.mark.parametrize("block", [_block, _compute], ids=["sleeping", "computing"])
def test_the_peer_reads_everything_before_the_blocked_callback_ends(run, loop, mode, tcp_pair, size, how, block):
    if size > 100000 and mode not in ("auto", "dedicated"):
        pytest.skip("only a netpoller thread sends what did not fit the socket buffer")

    async def main():
        sock, peer = tcp_pair()
        data = pattern(size)
        reader = Reader(peer, size)
        if how == "stream":
            _, writer = await asyncio.open_connection(sock=sock)
            transport = writer.transport
        else:
            transport, _ = await loop.create_connection(Recorder, sock=sock)
        reader.start()
        await asyncio.sleep(0.02)
        if how == "stream":
            writer.write(data)
        elif how == "write":
            transport.write(data)
        elif how == "writelines":
            transport.writelines([data[: size // 2], data[size // 2 :]])
        else:
            for start in range(0, size, max(1, size // 10)):
                transport.write(data[start : start + max(1, size // 10)])
        in_time = block(reader.done)
        transport.abort()
        await turns(1)
        sock.close()
        reader.join(20)
        assert in_time, f"the peer had {len(reader.data)} of {size} bytes when the callback ended"
        assert reader.data == data

    run(main(), timeout=40)


@pytest.mark.netpoll_only("needs a netpoller thread")
def test_close_behind_queued_data_also_goes_out_under_a_blocked_callback(run, loop, mode, tcp_pair):
    if mode == "inline":
        pytest.skip("inline has no netpoller thread")

    async def main():
        sock, peer = tcp_pair()
        data = pattern(4 << 20)
        reader = Reader(peer, len(data))
        transport, protocol = await loop.create_connection(Recorder, sock=sock)
        reader.start()
        await asyncio.sleep(0.02)
        transport.write(data)
        transport.close()
        assert _block(reader.done)
        reader.join(20)
        assert reader.data == data
        await until(lambda: protocol.lost)

    run(main(), timeout=40)


# --- idleness ---------------------------------------------------------------------------------------------------------


def _voluntary_switches(pid):
    total = 0
    for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
        for line in (task / "status").read_text().splitlines():
            if line.startswith("voluntary_ctxt_switches"):
                total += int(line.split()[1])
    return total


def test_an_idle_process_makes_no_wake_ups(start_child, mode):
    child = start_child(
        PAIR
        + """
import time
class Answer(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport = transport
    def data_received(self, data):
        self.transport.write(data)

async def main():
    transport, other = await pair(Answer)
    server = await asyncio.get_running_loop().create_server(Answer, "127.0.0.1", 0)
    await echo_once()
    transport.write(bytes(1 << 20))
    time.sleep(0.1)  # long enough for a tick
    other.setblocking(False)
    received = 0
    while received < 1 << 20:
        try:
            received += len(other.recv(1 << 20))
        except BlockingIOError:
            await asyncio.sleep(0.001)
    asyncio.get_running_loop().call_later(3600, print)
    await asyncio.sleep(0.3)
    print("idle", flush=True)
    await asyncio.sleep(3600)

run_main(main())
"""
    )
    assert child.read_line() == "idle\n"
    time.sleep(0.5)
    before = _voluntary_switches(child.pid)
    time.sleep(10 if mode == "auto" else 3)
    wake_ups = _voluntary_switches(child.pid) - before
    child.kill(signal.SIGKILL)
    child.finish()
    assert wake_ups <= 3


# --- many loops -------------------------------------------------------------------------------------------------------


def test_hundreds_of_loops_leave_no_descriptor_thread_or_memory(run_child):
    run_child(
        PAIR
        + """
import gc

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

async def main():
    await echo_once()
    one, other = socket.socketpair()
    transport, _ = await asyncio.get_running_loop().create_connection(asyncio.Protocol, sock=one)
    transport.write(bytes(1000000))
    transport.abort()
    await asyncio.sleep(0)
    other.close()

def rounds(count):
    for _ in range(count):
        loop = new_event_loop()
        loop.run_until_complete(main())
        loop.close()
    del loop
    gc.collect()
    return *held(), resident()

rounds(60)
fds, threads, memory = rounds(20)
fds_after, threads_after, memory_after = rounds(200)
assert fds_after == fds, (fds, fds_after)
assert threads_after == threads, (threads, threads_after)
assert memory_after - memory < 4 << 20, memory_after - memory
""",
        timeout=50,
        flags=["-W", "ignore"],
    )


def test_hundreds_of_open_loops_live_side_by_side(new_loop):
    loops = [new_loop() for _ in range(100)]
    for number, loop in enumerate(loops):
        assert loop.run_until_complete(asyncio.sleep(0, number)) == number


def test_an_unclosed_loop_is_collected_with_a_warning(run_child):
    run_child(
        PAIR
        + """
import gc, warnings, weakref
before = held()
loop = new_event_loop()
async def main():
    transport, other = await pair()
    transport.close()
    await asyncio.sleep(0.01)
    other.close()
loop.run_until_complete(main())
ref = weakref.ref(loop)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    del loop
    gc.collect()
assert ref() is None
assert [str(w.message)[:19] for w in caught if w.category is ResourceWarning] == ["unclosed event loop"], caught
assert held() == before
"""
    )


@pytest.mark.parametrize("datagrams", [False, True], ids=["streams", "datagrams"])
def test_transports_that_are_found_last_at_the_interpreters_end_make_no_noise(run_child, datagrams):
    done = run_child(
        f"""
        # What sys has is freed last, when the modules have lost their names.
        transports = sys.kept = []
        class Protocol(asyncio.DatagramProtocol if {datagrams} else asyncio.Protocol):
            def connection_made(self, transport):
                transports.append(transport)
        async def main():
            loop = asyncio.get_running_loop()
            if {datagrams}:
                await loop.create_datagram_endpoint(Protocol, local_addr=("127.0.0.1", 0))
                return
            server = await loop.create_server(Protocol, "127.0.0.1", 0)
            await loop.create_connection(Protocol, *server.sockets[0].getsockname())
            while len(transports) < 2:
                await asyncio.sleep(0.001)
        run_main(main())
        """,
        flags=["-W", "ignore::ResourceWarning"],
    )
    assert done.stderr == ""


@pytest.mark.netpoll_only("about the netpoller thread")
def test_the_netpoller_thread_has_a_name_and_takes_no_signals(run_child, mode):
    done = run_child(
        PAIR
        + """
async def main():
    transport, other = await pair()
    for tid in os.listdir("/proc/self/task"):
        if int(tid) != os.getpid():
            with open(f"/proc/self/task/{tid}/status") as file:
                status = dict(line.split(":", 1) for line in file)
            print(status["Name"].strip(), status["SigBlk"].strip())
    transport.close()
    await asyncio.sleep(0.01)
    other.close()
run_main(main())
"""
    )
    lines = done.stdout.splitlines()
    assert len(lines) == (mode != "inline")
    for line in lines:
        name, blocked = line.split()
        assert "netpoll" in name
        every = sum(1 << (s - 1) for s in signal.valid_signals() if s not in (signal.SIGKILL, signal.SIGSTOP))
        # faults of the thread itself may stay open
        own = sum(1 << (s - 1) for s in (signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL))
        assert int(blocked, 16) | own | every == int(blocked, 16) | own, blocked


def test_two_loops_in_two_threads_run_beside_each_other(new_loop):
    results = []

    def work(loop):
        asyncio.set_event_loop(loop)

        async def main():
            one, other = socket.socketpair()
            reader, writer = await asyncio.open_connection(sock=one)
            other_reader, other_writer = await asyncio.open_connection(sock=other)
            for i in range(200):
                writer.write(b"%d\n" % i)
                other_writer.write(await other_reader.readline())
                assert await reader.readline() == b"%d\n" % i
            for w in (writer, other_writer):
                w.close()
                await w.wait_closed()
            return "done"

        results.append(loop.run_until_complete(asyncio.wait_for(main(), 20)))

    threads = [threading.Thread(target=work, args=(new_loop(),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert results == ["done"] * 4
