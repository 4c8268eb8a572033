"""Pipes, FIFOs and terminals as transports, and the subprocesses that talk through them."""

import asyncio
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import threading
import tty

import pytest
from peers import Recorder, pattern, turns, until

# --- pipes ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def pipe(owned):
    """Factory of pipes: (reading file, writing file), unbuffered and blocking."""

    def pipe():
        reading, writing = os.pipe()
        return owned(open(reading, "rb", 0)), owned(open(writing, "wb", 0))

    return pipe


@pytest.fixture
def connect_pipe(loop):
    """`await connect_pipe("read" or "write", file, factory=Recorder)`; closed at the end."""
    transports = []

    async def connect_pipe(direction, file, factory=Recorder):
        transport, protocol = await getattr(loop, f"connect_{direction}_pipe")(factory, file)
        transports.append((transport, protocol))
        return transport, protocol

    yield connect_pipe

    async def close():
        for transport, protocol in transports:
            if not protocol.lost:
                transport.abort() if hasattr(transport, "abort") else transport.close()
        await turns(2)

    loop.run_until_complete(close())


async def _drain(fd, count):
    os.set_blocking(fd, False)
    data = bytearray()
    while len(data) < count:
        try:
            piece = os.read(fd, 65536)
        except BlockingIOError:
            await asyncio.sleep(0.001)
            continue
        assert piece
        data += piece
    return bytes(data)


def test_a_read_pipe_receives_until_the_writer_closes(run, connect_pipe, pipe):
    async def main():
        reading, writing = pipe()
        transport, protocol = await connect_pipe("read", reading)
        assert isinstance(transport, asyncio.ReadTransport)
        assert transport.get_extra_info("pipe") is reading
        assert transport.get_protocol() is protocol
        assert not os.get_blocking(reading.fileno())
        writing.write(b"one")
        await until(lambda: protocol.data == b"one")
        writing.write(b"two")
        writing.close()
        await until(lambda: protocol.lost)
        assert protocol.calls == ["connection_made", "data", "eof_received", "connection_lost"]
        assert protocol.data == b"onetwo"
        assert protocol.lost_with is None
        await turns(1)
        assert reading.closed

    run(main())


def test_a_read_pipe_pauses_and_resumes(run, connect_pipe, pipe):
    async def main():
        reading, writing = pipe()
        transport, protocol = await connect_pipe("read", reading)
        await turns(1)
        transport.pause_reading()
        transport.pause_reading()
        assert not transport.is_reading()
        writing.write(b"held back")
        await turns()
        assert not protocol.data
        transport.resume_reading()
        transport.resume_reading()
        assert not protocol.data
        await until(lambda: protocol.data == b"held back")
        transport.close()
        transport.close()
        assert transport.is_closing()
        await until(lambda: protocol.lost)
        assert protocol.calls == ["connection_made", "data", "connection_lost"]

    run(main())


def test_set_protocol_on_a_read_pipe_takes_effect_at_once(run, connect_pipe, pipe):
    async def main():
        reading, writing = pipe()
        transport, old = await connect_pipe("read", reading)
        new = Recorder()
        transport.set_protocol(new)
        writing.write(b"x")
        await until(lambda: new.data == b"x")
        assert not old.data
        writing.close()
        await until(lambda: new.lost)
        old.calls.append("connection_lost")  # for the fixture: it has nothing left to close

    run(main())


def test_a_write_pipe_writes_everything_and_closes(run, connect_pipe, pipe):
    async def main():
        reading, writing = pipe()
        transport, protocol = await connect_pipe("write", writing)
        assert isinstance(transport, asyncio.WriteTransport)
        assert transport.get_extra_info("pipe") is writing
        data = pattern(1 << 20)
        transport.write(data[:3])
        transport.write(bytearray(data[3:10]))
        transport.writelines([data[10:500], memoryview(data)[500:]])
        assert protocol.calls == ["connection_made", "pause_writing"]
        assert transport.get_write_buffer_size() > 65536
        transport.write_eof() if transport.can_write_eof() else None
        assert await _drain(reading.fileno(), len(data)) == data
        await until(lambda: protocol.lost)
        assert protocol.calls == ["connection_made", "pause_writing", "resume_writing", "connection_lost"]
        assert protocol.lost_with is None
        assert os.read(reading.fileno(), 1) == b""

    run(main())


def test_a_write_pipe_notices_that_the_reader_is_gone(run, connect_pipe, pipe, caplog):
    async def main():
        reading, writing = pipe()
        transport, protocol = await connect_pipe("write", writing)
        reading.close()
        await until(lambda: protocol.lost)
        assert protocol.lost_with is None
        for _ in range(6):
            transport.write(b"dropped")
        assert "pipe closed by peer or os.write(pipe, data) raised exception." in caplog.messages
        reading, writing = pipe()
        transport, protocol = await connect_pipe("write", writing)
        transport.write(bytes(1 << 20))
        reading.close()
        await until(lambda: protocol.lost)
        assert isinstance(protocol.lost_with, BrokenPipeError)

    run(main())


def test_abort_on_a_write_pipe_drops_what_is_queued(run, connect_pipe, pipe):
    async def main():
        reading, writing = pipe()
        transport, protocol = await connect_pipe("write", writing)
        transport.write(bytes(1 << 20))
        await turns(1)
        left = transport.get_write_buffer_size()
        transport.abort()
        await until(lambda: protocol.lost)
        assert protocol.lost_with is None
        assert len(await _drain(reading.fileno(), (1 << 20) - left)) == (1 << 20) - left
        assert os.read(reading.fileno(), 1) == b""

    run(main())


def test_a_fifo_connects_both_ends(run, connect_pipe, owned, tmp_path):
    async def main():
        path = tmp_path / "fifo"
        os.mkfifo(path)
        reading = owned(open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb", 0))
        writing = owned(open(path, "wb", 0))
        _, protocol = await connect_pipe("read", reading)
        transport, _ = await connect_pipe("write", writing)
        data = pattern(300000)
        transport.write(data)
        transport.close()
        await until(lambda: protocol.lost)
        assert protocol.data == data

    run(main())


def test_sockets_work_as_pipes(run, connect_pipe, socket_pair):
    async def main():
        one, other = socket_pair()
        _, protocol = await connect_pipe("read", one)
        transport, writer = await connect_pipe("write", other)
        data = pattern(300000)
        transport.write(data)
        transport.close()
        await until(lambda: protocol.lost and writer.lost)
        assert protocol.data == data

    run(main())


def test_a_terminal_is_read_and_written(run, connect_pipe, owned):
    async def main():
        master, slave = pty.openpty()
        tty.setraw(slave)
        master_file = owned(open(master, "r+b", 0))
        slave_file = owned(open(os.dup(slave), "r+b", 0))
        owned(slave)
        _, protocol = await connect_pipe("read", master_file)
        transport, writer = await connect_pipe("write", slave_file)
        transport.write(b"typed")
        await until(lambda: protocol.data == b"typed")
        transport.close()
        await until(lambda: writer.lost)
        os.close(slave)
        await until(lambda: protocol.lost)  # EIO, which is the end of a terminal

    run(main())


@pytest.mark.parametrize(
    "direction, text",
    [
        ("read", "Pipe transport is for pipes/sockets only."),
        ("write", "Pipe transport is only for pipes, sockets and character devices"),
    ],
)
def test_a_regular_file_is_refused(run, loop, tmp_path, direction, text):
    with open(tmp_path / "file", "w+b") as file, pytest.raises(ValueError, match=re.escape(text)):
        run(getattr(loop, f"connect_{direction}_pipe")(Recorder, file))


def test_streams_work_over_pipes(run, loop, pipe):
    async def main():
        reading, writing = pipe()
        reader = asyncio.StreamReader()
        transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), reading)
        writing.write(b"a line\nand the rest")
        assert await reader.readline() == b"a line\n"
        writing.close()
        assert await reader.read() == b"and the rest"
        transport.close()
        await turns(1)

    run(main())


# --- subprocesses -----------------------------------------------------------------------------------------------------

PIPE = subprocess.PIPE


def python(code, *args):
    return (sys.executable, "-S", "-E", "-c", code, *args)


@pytest.fixture
def no_zombies():
    """No child of this process, dead or alive, is left behind."""
    yield
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


pytestmark = pytest.mark.usefixtures("no_zombies")


@pytest.fixture(autouse=True)
def watched(request):
    """Up to 3.11 a thread waits for each child, and stays a moment longer than the child."""
    yield
    for thread in threading.enumerate():
        if thread.name.startswith("waitpid-"):
            thread.join(10)


def test_communicate_returns_both_outputs(run):
    async def main():
        process = await asyncio.create_subprocess_shell(
            "read line; echo got $line; echo oops >&2; exit 3", stdin=PIPE, stdout=PIPE, stderr=PIPE
        )
        assert await process.communicate(b"hello\n") == (b"got hello\n", b"oops\n")
        assert process.returncode == 3
        assert await process.wait() == 3

    run(main())


def test_exec_passes_arguments_as_they_are(run):
    async def main():
        process = await asyncio.create_subprocess_exec("printf", "%s|", "a b", "$HOME", "*", "", stdout=PIPE)
        assert (await process.communicate())[0] == b"a b|$HOME|*||"

    run(main())


def test_stderr_may_go_to_stdout_and_output_to_nowhere(run):
    async def main():
        process = await asyncio.create_subprocess_shell("echo out; echo err >&2", stdout=PIPE, stderr=subprocess.STDOUT)
        assert await process.communicate() == (b"out\nerr\n", None)
        assert process.stdin is None
        assert process.stderr is None
        process = await asyncio.create_subprocess_shell("echo out", stdout=subprocess.DEVNULL)
        assert await process.communicate() == (None, None)

    run(main())


def test_stdin_and_stdout_stream_line_by_line(run):
    async def main():
        process = await asyncio.create_subprocess_exec("cat", stdin=PIPE, stdout=PIPE)
        for i in range(50):
            process.stdin.write(b"%d\n" % i)
            await process.stdin.drain()
            assert await process.stdout.readline() == b"%d\n" % i
        process.stdin.close()
        await process.stdin.wait_closed()
        assert await process.stdout.read() == b""
        assert await process.wait() == 0

    run(main())


def test_megabytes_go_through_a_child_and_come_back(run):
    async def main():
        data = pattern(8 << 20)
        process = await asyncio.create_subprocess_exec("cat", stdin=PIPE, stdout=PIPE)
        out, _ = await process.communicate(data)
        assert out == data

    run(main(), timeout=20)


def test_a_child_that_closes_its_input_early_does_not_fail_communicate(run):
    async def main():
        process = await asyncio.create_subprocess_shell("exec 0<&-; echo done", stdin=PIPE, stdout=PIPE)
        assert await process.communicate(bytes(4 << 20)) == (b"done\n", None)
        assert process.returncode == 0

    run(main())


def test_writing_to_a_child_that_is_gone_is_a_connection_error(run):
    async def main():
        process = await asyncio.create_subprocess_exec("true", stdin=PIPE)
        await process.wait()
        with pytest.raises(ConnectionError):
            for _ in range(1000):
                process.stdin.write(bytes(100000))
                await process.stdin.drain()

    run(main())


@pytest.mark.parametrize(
    "method, signum", [("kill", signal.SIGKILL), ("terminate", signal.SIGTERM), ("interrupt", signal.SIGINT)]
)
def test_signals_end_a_child_and_give_a_negative_exit_code(run, method, signum):
    async def main():
        process = await asyncio.create_subprocess_exec("sleep", "100")
        assert process.returncode is None
        if method == "interrupt":
            process.send_signal(signum)
        else:
            getattr(process, method)()
        assert await process.wait() == -signum
        for late in (process.kill, process.terminate):
            with pytest.raises(ProcessLookupError):
                late()

    run(main())


def test_a_hundred_children_at_once_all_report(run):
    async def child(number):
        process = await asyncio.create_subprocess_shell(f"echo {number}; exit {number}", stdout=PIPE)
        out, _ = await process.communicate()
        assert out == b"%d\n" % number
        assert process.returncode == number

    async def main():
        await asyncio.gather(*(child(i) for i in range(100)))

    run(main(), timeout=40)


def test_many_may_wait_for_one_child_and_a_cancelled_one_disturbs_nobody(run):
    async def main():
        process = await asyncio.create_subprocess_exec("cat", stdin=PIPE)
        waiters = [asyncio.ensure_future(process.wait()) for _ in range(5)]
        await turns(1)
        waiters[2].cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiters[2]
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(process.wait(), 0.01)
        process.stdin.close()
        for waiter in waiters[:2] + waiters[3:]:
            assert await waiter == 0

    run(main())


def test_a_loop_in_another_thread_runs_children_too(new_loop):
    own = new_loop()
    outcome = []

    async def child():
        process = await asyncio.create_subprocess_exec("echo", "hello", stdout=PIPE)
        out, _ = await asyncio.wait_for(process.communicate(), 10)
        return out, process.returncode

    def work():
        asyncio.set_event_loop(own)
        outcome.append(own.run_until_complete(child()))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(20)
    assert outcome == [(b"hello\n", 0)]


def test_options_of_popen_are_passed_on(run, tmp_path):
    async def main():
        reading, writing = os.pipe()
        os.set_inheritable(writing, False)
        process = await asyncio.create_subprocess_shell(
            f'pwd; echo $NAME; echo "through the pipe" > /proc/self/fd/{writing}',
            stdout=PIPE,
            cwd=tmp_path,
            env={"NAME": "value"},
            pass_fds=[writing],
            start_new_session=True,
        )
        os.close(writing)
        out, _ = await process.communicate()
        assert out == os.fsencode(tmp_path.resolve()) + b"\nvalue\n"
        assert os.read(reading, 100) == b"through the pipe\n"
        os.close(reading)

    run(main())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_preexec_fn_runs_in_the_child(run):
    async def main():
        process = await asyncio.create_subprocess_shell("umask", stdout=PIPE, preexec_fn=lambda: os.umask(0o123))
        assert (await process.communicate())[0].strip() == b"0123"

    run(main())


def test_descriptors_of_the_loop_are_not_inherited(run):
    async def main():
        process = await asyncio.create_subprocess_exec("ls", "-l", "/proc/self/fd", stdout=PIPE, close_fds=False)
        out, _ = await process.communicate()
        assert b"eventpoll" not in out
        assert b"eventfd" not in out

    run(main())


def test_blocked_signals_of_a_thread_of_the_loop_are_not_inherited(run):
    async def main():
        process = await asyncio.create_subprocess_shell("grep SigBlk /proc/self/status", stdout=PIPE)
        assert (await process.communicate())[0].split()[1] == b"0" * 16

    run(main())


def test_a_program_that_is_not_there_raises(run):
    async def main():
        with pytest.raises(FileNotFoundError):
            await asyncio.create_subprocess_exec("/no/such/program", stdin=PIPE, stdout=PIPE)

    run(main())


@pytest.mark.parametrize(
    "options, text",
    [
        ({"universal_newlines": True}, "universal_newlines must be False"),
        ({"text": True}, "text must be False"),
        ({"encoding": "utf-8"}, "encoding must be None"),
        ({"errors": "strict"}, "errors must be None"),
        ({"bufsize": 1}, "bufsize must be 0"),
        ({"shell": True}, "shell must be False"),
    ],
    ids=str,
)
def test_options_without_meaning_here_are_refused(run, options, text):
    async def main():
        with pytest.raises(ValueError, match=text):
            await asyncio.create_subprocess_exec("true", **options)

    run(main())


class _Process(asyncio.SubprocessProtocol):
    def __init__(self):
        self.calls, self.data = [], {1: b"", 2: b""}

    def connection_made(self, transport):
        self.calls.append("connection_made")

    def pipe_data_received(self, fd, data):
        self.data[fd] += data

    def pipe_connection_lost(self, fd, exc):
        self.calls.append(f"pipe_connection_lost {fd}")

    def process_exited(self):
        self.calls.append("process_exited")

    def connection_lost(self, exc):
        self.calls.append("connection_lost")


def test_subprocess_protocols_see_pipes_and_exit_and_the_end_last(run, loop):
    async def main():
        transport, protocol = await loop.subprocess_exec(_Process, *("sh", "-c", "cat; echo err >&2; exit 7"))
        assert isinstance(transport, asyncio.SubprocessTransport)
        assert transport.get_pid() > 0
        assert transport.get_returncode() is None
        stdin = transport.get_pipe_transport(0)
        stdin.write(b"through")
        stdin.close()
        await until(lambda: "connection_lost" in protocol.calls)
        assert protocol.data == {1: b"through", 2: b"err\n"}
        assert transport.get_returncode() == 7
        assert protocol.calls[0] == "connection_made"
        assert protocol.calls[-1] == "connection_lost"
        assert sorted(protocol.calls[1:-1]) == [
            "pipe_connection_lost 0",
            "pipe_connection_lost 1",
            "pipe_connection_lost 2",
            "process_exited",
        ]

    run(main())


def test_closing_the_transport_kills_the_child(run, loop):
    async def main():
        transport, protocol = await loop.subprocess_exec(_Process, "sleep", "100")
        transport.close()
        assert transport.is_closing()
        await until(lambda: "connection_lost" in protocol.calls)
        assert transport.get_returncode() == -signal.SIGKILL

    run(main())


def test_a_child_started_without_the_loop_is_left_to_its_owner(run):
    async def main():
        with subprocess.Popen(["sh", "-c", "exit 5"]) as own:
            process = await asyncio.create_subprocess_exec("true")
            await process.wait()
            assert own.wait(10) == 5

    run(main())


def test_cancelling_communicate_leaves_the_child_to_be_ended(run):
    async def main():
        process = await asyncio.create_subprocess_exec("sleep", "100", stdin=PIPE, stdout=PIPE)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(process.communicate(), 0.05)
        process.kill()
        assert await process.wait() == -signal.SIGKILL

    run(main())


def test_a_socket_is_passed_on_as_stdin(run, socket_pair):
    async def main():
        one, other = socket_pair(blocking=True)
        process = await asyncio.create_subprocess_exec("cat", stdin=one, stdout=PIPE)
        one.close()
        other.send(b"over the socket")
        other.shutdown(socket.SHUT_WR)
        assert (await process.communicate())[0] == b"over the socket"

    run(main())
