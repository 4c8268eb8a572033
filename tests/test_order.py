"""Order: which callback runs before which, and in which turn.

Each scenario is a function that writes what happens into a log. It is run on stock asyncio and on the loop under test,
in the same test, and the two logs must be equal, turn by turn, where the order is promised to be exactly asyncio's: in
`inline` and `auto`. In `dedicated` another thread does the I/O, so that only the order within each connection is
promised; what a scenario promises there is said by its `lanes`: events of one lane keep their order.

Everything here uses unix socket pairs, whose data is at the other end when `send` returns: no turn depends on the
network's timing.
"""

import asyncio
import socket
import time

import pytest

import netpoll_loop

#: In these modes a log is compared with stock asyncio's whole, else lane by lane.
EXACT = ("auto", "inline", "asyncio")

TURNS = 12


class Log:
    """What happened, as (lane, what). `turn N` marks are in the lane "turn", which only exact comparison looks at."""

    def __init__(self):
        self.events = []

    def __call__(self, lane, what=None):
        self.events.append((lane, what))

    def lane(self, name):
        return [what for lane, what in self.events if lane == name]

    def lanes(self):
        return {lane: self.lane(lane) for lane, _ in self.events if lane != "turn"}


def count_turns(loop, log, turns=TURNS):
    """Marks the begin of each turn: the first of the ready callbacks, for it always schedules itself first."""

    def mark(n):
        log("turn", n)
        if n < turns:
            loop.call_soon(mark, n + 1)
        else:
            loop.stop()

    loop.call_soon(mark, 1)


class Pairs:
    """Socket pairs of one run of a scenario: (the loop's end, the outside end), non-blocking."""

    def __init__(self):
        self.sockets = []

    def __call__(self):
        pair = socket.socketpair()
        for sock in pair:
            sock.setblocking(False)
        self.sockets += pair
        return pair

    def close(self):
        for sock in self.sockets:
            sock.close()


def record(loop, scenario):
    """The log of one run of the scenario on this loop."""
    log, pairs = Log(), Pairs()
    try:
        finish = scenario(loop, log, pairs)
        loop.run_forever()
        if finish is not None:
            finish()
        # What closing transports still have to say.
        for _ in range(3):
            loop.stop()
            loop.run_forever()
    finally:
        pairs.close()
    return log


@pytest.fixture
def compare(loop, stock_loop, mode, oracle):
    """Runs the scenario on both loops and compares the logs as exactly as the mode promises."""

    def takeovers():
        return netpoll_loop.stats(loop).stalls if mode == "auto" and not oracle else 0

    def compare(scenario):
        expected = record(stock_loop, scenario)
        for _ in range(10):
            before = takeovers()
            got = record(loop, scenario)
            if takeovers() == before:
                break
            # On a busy machine a turn can last two ticks: then the netpoller polled, and the order is not promised.
        if mode in EXACT:
            assert got.events == expected.events
        else:
            # There, a turn comes sooner than the other thread's report: the same things must happen in the end.
            assert got.lanes() == expected.lanes()
        return expected

    return compare


def until_quiet(loop, log, settle=0.05):
    """Instead of `count_turns` where the log must be complete in every mode: stops when nothing more happens."""
    last = [-1]

    def check():
        if len(log.events) == last[0]:
            loop.stop()
        else:
            last[0] = len(log.events)
            loop.call_later(settle, check)

    loop.call_later(settle, check)


# --- callbacks, timers and readers within a turn ----------------------------------------------------------------------


def test_ready_callbacks_come_before_io_and_io_before_timers(compare, mode):
    def scenario(loop, log, pairs):
        ours, theirs = pairs()
        theirs.send(b"x")
        loop.call_at(loop.time() - 1, log, "timer", "due")

        def read():
            log("reader", ours.recv(10))

        loop.add_reader(ours, read)
        loop.call_soon(log, "soon", 1)
        loop.call_soon(log, "soon", 2)
        count_turns(loop, log, 4) if mode in EXACT else until_quiet(loop, log)
        return lambda: loop.remove_reader(ours)

    compare(scenario)


def test_what_io_callbacks_schedule_runs_in_the_next_turn(compare, mode):
    def scenario(loop, log, pairs):
        ours, theirs = pairs()
        theirs.send(b"abc")

        def read():
            data = ours.recv(1)
            log("all", data)
            loop.call_soon(log, "all", data + b" soon")
            loop.call_at(loop.time() - 1, log, "timer", data)

        loop.add_reader(ours, read)
        count_turns(loop, log, 8) if mode in EXACT else until_quiet(loop, log)
        return lambda: loop.remove_reader(ours)

    if mode in EXACT:
        compare(scenario)


def test_the_reader_runs_before_the_writer_of_the_same_descriptor(compare, mode):
    def scenario(loop, log, pairs):
        ours, theirs = pairs()
        theirs.send(b"abc")
        left = [3]

        def read():
            log("fd", ("read", ours.recv(1)))

        def write():
            log("fd", "write")
            left[0] -= 1
            if not left[0]:
                loop.remove_writer(ours)
                loop.remove_reader(ours)

        # The order of adding them does not matter.
        loop.add_writer(ours, write)
        loop.add_reader(ours, read)
        count_turns(loop, log, 6) if mode in EXACT else until_quiet(loop, log)

    compare(scenario)


def test_of_two_descriptors_the_one_that_was_ready_first_comes_first(compare, mode):
    def scenario(loop, log, pairs):
        pair_list = [pairs() for _ in range(5)]

        def read(i):
            log("reader" if mode in EXACT else i, (i, pair_list[i][0].recv(10)))
            loop.remove_reader(pair_list[i][0])

        for i, (ours, _) in enumerate(pair_list):
            loop.add_reader(ours, read, i)

        def send():
            for i in (3, 1, 4, 0, 2):
                pair_list[i][1].send(b"x")

        loop.call_soon(lambda: loop.call_soon(send))
        count_turns(loop, log, 6) if mode in EXACT else until_quiet(loop, log)

    compare(scenario)


def test_a_callback_removes_a_reader_that_is_due_later_in_the_turn(compare, mode):
    def scenario(loop, log, pairs):
        first, second = pairs(), pairs()

        def read(name, mine, other):
            log("turns", "one of the two")
            loop.remove_reader(mine)
            loop.remove_reader(other)

        loop.add_reader(first[0], read, "first", first[0], second[0])
        loop.add_reader(second[0], read, "second", second[0], first[0])
        first[1].send(b"x")
        second[1].send(b"x")
        count_turns(loop, log, 4) if mode in EXACT else until_quiet(loop, log)

    assert compare(scenario).lane("turns") == ["one of the two"]


def test_a_ready_callback_removes_a_reader_before_the_poll_of_its_turn_is_worked_off(compare, mode):
    """The poll comes first in a turn, the ready callbacks before its results: the reader must not be called."""

    def scenario(loop, log, pairs):
        ours, theirs = pairs()
        theirs.send(b"x")
        loop.add_reader(ours, log, "reader", "called")
        loop.call_soon(lambda: log("removed", loop.remove_reader(ours)))
        count_turns(loop, log, 4) if mode in EXACT else until_quiet(loop, log)

    assert compare(scenario).lane("reader") == []


def test_a_callback_cancels_a_timer_of_the_same_turn(compare, mode):
    def scenario(loop, log, pairs):
        timer = loop.call_at(loop.time() - 1, log, "timer", "called")
        loop.call_soon(timer.cancel)
        count_turns(loop, log, 3)

    assert compare(scenario).lane("timer") == []


def test_timers_that_fall_due_during_a_turn_wait_for_the_next(compare):
    def scenario(loop, log, pairs):
        def slow():
            log("all", "slow")
            loop.call_later(0.001, log, "all", "timer")
            time.sleep(0.005)
            loop.call_soon(log, "all", "soon")

        loop.call_soon(slow)
        count_turns(loop, log, 4)

    compare(scenario)


def test_timers_and_callbacks_interleave_as_in_asyncio(compare):
    def scenario(loop, log, pairs):
        past = loop.time() - 100

        def timer(depth):
            log("all", ("timer", depth))
            if depth < 5:
                loop.call_soon(soon, depth + 1)
                loop.call_at(past + depth, timer, depth + 1)

        def soon(depth):
            log("all", ("soon", depth))
            if depth < 5:
                loop.call_at(past - depth, timer, depth + 1)
                loop.call_soon_threadsafe(soon, depth + 1)

        loop.call_soon(soon, 0)
        loop.call_at(past, timer, 0)
        loop.call_at(past - 1, timer, 1)
        count_turns(loop, log)

    compare(scenario)


def test_call_soon_threadsafe_from_the_loops_own_thread_keeps_its_place(compare):
    def scenario(loop, log, pairs):
        def mixed():
            loop.call_soon(log, "all", 1)
            loop.call_soon_threadsafe(log, "all", 2)
            loop.call_soon(log, "all", 3)
            loop.call_soon_threadsafe(log, "all", 4)

        loop.call_soon_threadsafe(log, "all", 0)
        loop.call_soon(mixed)
        count_turns(loop, log, 4)

    compare(scenario)


def test_stopping_in_the_middle_of_a_turn_finishes_the_turn(compare, mode):
    def scenario(loop, log, pairs):
        ours, theirs = pairs()
        theirs.send(b"x")
        loop.add_reader(ours, lambda: log("all", ours.recv(1)))
        loop.call_soon(loop.stop)
        loop.call_soon(log, "all", "after stop")
        loop.call_soon(lambda: loop.call_soon(log, "all", "next run"))
        loop.call_at(loop.time() - 1, log, "all", "timer")

        def finish():
            log("all", "stopped")
            loop.stop()
            loop.run_forever()
            loop.remove_reader(ours)

        return finish

    if mode in EXACT:
        compare(scenario)


def test_done_callbacks_and_task_steps_come_in_asyncios_order(compare):
    def scenario(loop, log, pairs):
        async def worker(name, steps):
            for i in range(steps):
                log("all", (name, i))
                await asyncio.sleep(0)
            return name

        async def main():
            tasks = [loop.create_task(worker(n, s)) for n, s in (("a", 3), ("b", 1), ("c", 2))]
            for task in tasks:
                task.add_done_callback(lambda t: log("all", ("done", t.result())))
            future = loop.create_future()
            future.add_done_callback(lambda f: log("all", "future"))
            future.set_result(None)
            log("all", await asyncio.gather(*tasks))

        task = loop.create_task(main())
        count_turns(loop, log)
        return task.result

    compare(scenario)


def test_cancellation_and_timeouts_come_in_asyncios_order(compare):
    def scenario(loop, log, pairs):
        async def sleeper(name):
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                log("all", (name, "cancelled"))
                await asyncio.sleep(0)
                log("all", (name, "cleaned"))
                raise

        async def main():
            try:
                async with asyncio.timeout(0):
                    await sleeper("timeout")
            except TimeoutError:
                log("all", "timed out")
            tasks = [loop.create_task(sleeper(i)) for i in range(3)]
            await asyncio.sleep(0)
            for task in reversed(tasks):
                task.cancel()
            log("all", len(await asyncio.gather(*tasks, return_exceptions=True)))

        task = loop.create_task(main())
        count_turns(loop, log)
        return task.result

    compare(scenario)


# --- transports -------------------------------------------------------------------------------------------------------


class Talker(asyncio.Protocol):
    """Logs each call; `on` may add reactions by method name."""

    def __init__(self, log, lane, on=None):
        self.log, self.lane, self.on = log, lane, on or {}

    def react(self, name, *args):
        reaction = self.on.get(name)
        return reaction(self, *args) if reaction else None

    def connection_made(self, transport):
        self.transport = transport
        self.log(self.lane, "connection_made")
        self.react("connection_made")

    def data_received(self, data):
        self.log(self.lane, ("data_received", bytes(data)))
        self.react("data_received", data)

    def eof_received(self):
        self.log(self.lane, "eof_received")
        return self.react("eof_received")

    def connection_lost(self, exc):
        self.log(self.lane, ("connection_lost", type(exc).__name__))
        self.react("connection_lost")

    def pause_writing(self):
        self.log(self.lane, "pause_writing")

    def resume_writing(self):
        self.log(self.lane, "resume_writing")


class BufferedTalker(asyncio.BufferedProtocol):
    def __init__(self, log, lane):
        self.log, self.lane = log, lane
        self.buffer = bytearray(4)

    def connection_made(self, transport):
        self.transport = transport
        self.log(self.lane, "connection_made")

    def get_buffer(self, sizehint):
        self.log(self.lane, "get_buffer")
        return self.buffer

    def buffer_updated(self, nbytes):
        self.log(self.lane, ("buffer_updated", bytes(self.buffer[:nbytes])))

    def eof_received(self):
        self.log(self.lane, "eof_received")

    def connection_lost(self, exc):
        self.log(self.lane, ("connection_lost", type(exc).__name__))


def connect(loop, log, sock, protocol):
    """A transport over the socket; logs the turn in which `create_connection` returns."""

    async def main():
        await loop.create_connection(lambda: protocol, sock=sock)
        log("connect", "returned")

    return loop.create_task(main())


def transport_scenario(mode, talk):
    """A scenario around one transport over one end of a socket pair; `talk(loop, log, theirs)` makes the protocol."""

    def scenario(loop, log, pairs):
        ours, theirs = pairs()
        protocol = talk(loop, log, theirs)
        task = connect(loop, log, ours, protocol)
        count_turns(loop, log, TURNS) if mode in EXACT else until_quiet(loop, log)

        def finish():
            task.result()
            protocol.transport.abort()

        return finish

    return scenario


def test_connection_made_comes_first_then_the_data_then_the_eof(compare, mode):
    def talk(loop, log, theirs):
        theirs.send(b"hello")
        theirs.shutdown(socket.SHUT_WR)
        return Talker(log, "a")

    expected = compare(transport_scenario(mode, talk))
    assert expected.lane("a") == [
        "connection_made",
        ("data_received", b"hello"),
        "eof_received",
        ("connection_lost", "NoneType"),
    ]


def test_a_buffered_protocol_is_called_in_asyncios_order(compare, mode):
    def talk(loop, log, theirs):
        theirs.send(b"hello!")
        theirs.shutdown(socket.SHUT_WR)
        return BufferedTalker(log, "a")

    expected = compare(transport_scenario(mode, talk))
    assert [what for what in expected.lane("a") if what != "get_buffer"] == [
        "connection_made",
        ("buffer_updated", b"hell"),
        ("buffer_updated", b"o!"),
        "eof_received",
        ("connection_lost", "NoneType"),
    ]


def test_a_peer_that_closes_at_once_is_reported_in_order(compare, mode):
    def talk(loop, log, theirs):
        theirs.send(b"last words")
        theirs.close()
        return Talker(log, "a")

    compare(transport_scenario(mode, talk))


def test_eof_that_is_kept_open_ends_with_our_close(compare, mode):
    def talk(loop, log, theirs):
        theirs.shutdown(socket.SHUT_WR)

        def close(protocol):
            protocol.transport.write(b"after eof")
            log("peer", theirs.recv(100))
            loop.call_soon(protocol.transport.close)
            return True

        return Talker(log, "a", {"eof_received": close})

    expected = compare(transport_scenario(mode, talk))
    assert expected.lane("peer") == [b"after eof"]


def test_what_data_received_schedules_comes_before_the_next_data(compare, mode):
    def talk(loop, log, theirs):
        theirs.send(b"one")

        def answer(protocol, data):
            loop.call_soon(log, "a", "soon")
            if data == b"one":
                theirs.send(b"two")

        return Talker(log, "a", {"data_received": answer})

    expected = compare(transport_scenario(mode, talk))
    assert expected.lane("a")[:5] == [
        "connection_made",
        ("data_received", b"one"),
        "soon",
        ("data_received", b"two"),
        "soon",
    ]


def test_close_in_data_received_delivers_no_more_data(compare, mode):
    def talk(loop, log, theirs):
        theirs.send(b"one")

        def close(protocol, data):
            theirs.send(b"two")
            protocol.transport.close()
            log("a", "closed")

        return Talker(log, "a", {"data_received": close})

    expected = compare(transport_scenario(mode, talk))
    assert expected.lane("a") == [
        "connection_made",
        ("data_received", b"one"),
        "closed",
        ("connection_lost", "NoneType"),
    ]


def test_abort_in_data_received_delivers_no_more_data(compare, mode):
    def talk(loop, log, theirs):
        theirs.send(b"one")

        def abort(protocol, data):
            theirs.send(b"two")
            protocol.transport.abort()
            log("a", "aborted")

        return Talker(log, "a", {"data_received": abort})

    compare(transport_scenario(mode, talk))


def test_close_in_connection_made_is_followed_by_connection_lost(compare, mode):
    def talk(loop, log, theirs):
        theirs.send(b"never seen")
        return Talker(log, "a", {"connection_made": lambda protocol: protocol.transport.close()})

    compare(transport_scenario(mode, talk))


def test_a_write_in_connection_made_is_at_the_peer_at_once(compare, mode):
    def talk(loop, log, theirs):
        def write(protocol):
            protocol.transport.write(b"first")
            protocol.transport.writelines([b"second", b"third"])
            log("peer", theirs.recv(100))

        return Talker(log, "a", {"connection_made": write})

    expected = compare(transport_scenario(mode, talk))
    assert expected.lane("peer")[0].startswith(b"first")


def test_pausing_in_data_received_holds_the_next_data_back(compare, mode):
    def talk(loop, log, theirs):
        theirs.send(b"one")

        def pause(protocol, data):
            if data == b"one":
                protocol.transport.pause_reading()
                theirs.send(b"two")
                loop.call_soon(log, "a", "paused")
                loop.call_soon(lambda: loop.call_soon(resume, protocol))

        def resume(protocol):
            log("a", "resume")
            protocol.transport.resume_reading()
            log("a", "resumed")

        return Talker(log, "a", {"data_received": pause})

    expected = compare(transport_scenario(mode, talk))
    assert expected.lane("a")[:6] == [
        "connection_made",
        ("data_received", b"one"),
        "paused",
        "resume",
        "resumed",
        ("data_received", b"two"),
    ]


def test_pausing_in_connection_made_holds_everything_back(compare, mode):
    def talk(loop, log, theirs):
        theirs.send(b"one")
        theirs.shutdown(socket.SHUT_WR)

        def pause(protocol):
            protocol.transport.pause_reading()
            loop.call_later(0, lambda: loop.call_soon(resume, protocol))

        def resume(protocol):
            log("a", "resume")
            protocol.transport.resume_reading()

        return Talker(log, "a", {"connection_made": pause})

    expected = compare(transport_scenario(mode, talk))
    assert expected.lane("a")[:3] == ["connection_made", "resume", ("data_received", b"one")]


def test_write_eof_and_close_end_in_order(compare, mode):
    def talk(loop, log, theirs):
        def end(protocol):
            protocol.transport.write(b"x")
            protocol.transport.write_eof()
            log("peer", theirs.recv(10))
            theirs.shutdown(socket.SHUT_WR)

        return Talker(log, "a", {"connection_made": end})

    compare(transport_scenario(mode, talk))


def test_a_full_buffer_pauses_and_resumes_the_writer_in_order(compare, mode):
    """The peer reads only after `pause_writing`; how many turns it takes is the kernel's, not compared."""

    def scenario(loop, log, pairs):
        ours, theirs = pairs()
        received = bytearray()

        def fill(protocol):
            protocol.transport.set_write_buffer_limits(high=1000, low=100)
            protocol.transport.write(bytes(3_000_000))
            log("a", "written")
            loop.call_soon(drain, protocol)

        def drain(protocol):
            try:
                while data := theirs.recv(1 << 20):
                    received.extend(data)
            except BlockingIOError:
                pass
            if len(received) < 3_000_000:
                loop.call_later(0.001, drain, protocol)
            else:
                loop.call_later(0.01, protocol.transport.close)

        protocol = Talker(Log(), "a", {"connection_made": fill})
        protocol.log = log
        task = connect(loop, Log(), ours, protocol)
        until_quiet(loop, log, 0.3)

        def finish():
            task.result()
            log("a", len(received))

        return finish

    expected = compare(scenario)
    assert expected.lane("a") == [
        "connection_made",
        "pause_writing",
        "written",
        "resume_writing",
        ("connection_lost", "NoneType"),
        3_000_000,
    ]


def test_two_transports_talk_in_asyncios_order(compare, mode):
    def scenario(loop, log, pairs):
        ours, theirs = pairs()

        def start(protocol):
            protocol.transport.write(b"ping 0")

        def answer(protocol, data):
            n = int(data.split()[1])
            if n < 5:
                protocol.transport.write(b"p%bng %d" % (b"io"[n % 2 : n % 2 + 1], n + 1))
            else:
                protocol.transport.close()

        a = Talker(log, "a", {"connection_made": start, "data_received": answer})
        b = Talker(log, "b", {"data_received": answer})
        tasks = [connect(loop, log, ours, a), connect(loop, log, theirs, b)]
        count_turns(loop, log, 25) if mode in EXACT else until_quiet(loop, log)

        def finish():
            for task in tasks:
                task.result()

        return finish

    expected = compare(scenario)
    assert expected.lane("a")[-1] == ("connection_lost", "NoneType")
    assert expected.lane("b")[-2:] == ["eof_received", ("connection_lost", "NoneType")]


def test_data_timers_and_callbacks_of_one_turn_come_in_asyncios_order(compare, mode):
    def scenario(loop, log, pairs):
        ours, theirs = pairs()

        def send(n):
            theirs.send(b"%d" % n)
            loop.call_soon(log, "soon", n)
            loop.call_at(loop.time() - 1, log, "timer", n)
            if n < 4:
                loop.call_soon(send, n + 1)

        protocol = Talker(log, "a", {"connection_made": lambda protocol: loop.call_soon(loop.call_soon, send, 1)})
        task = connect(loop, log, ours, protocol)
        count_turns(loop, log, 15) if mode in EXACT else until_quiet(loop, log)

        def finish():
            task.result()
            protocol.transport.abort()

        return finish

    if mode in EXACT:
        compare(scenario)


def test_streams_hand_on_data_in_asyncios_order(compare, mode):
    def scenario(loop, log, pairs):
        ours, theirs = pairs()
        theirs.send(b"line 1\nline 2\nrest")

        async def main():
            reader, writer = await asyncio.open_connection(sock=ours)
            log("a", "open")
            log("a", await reader.readline())
            log("a", await reader.readline())
            theirs.send(b" of it")
            log("a", await reader.readexactly(len(b"rest of it")))
            writer.write(b"answer")
            await writer.drain()
            log("a", theirs.recv(10))
            theirs.close()
            log("a", await reader.read())
            writer.close()
            await writer.wait_closed()
            log("a", "closed")

        task = loop.create_task(main())
        count_turns(loop, log, 25) if mode in EXACT else until_quiet(loop, log)
        return task.result

    compare(scenario)


def test_sock_methods_resume_in_asyncios_order(compare, mode):
    def scenario(loop, log, pairs):
        ours, theirs = pairs()
        theirs.send(b"at once")

        async def receive(name):
            got = b""
            while got != b"at once01":
                got += (chunk := await loop.sock_recv(ours, 100))
                log("turn", chunk)  # where the stream is cut is the turn's doing
            log(name, got)

        async def send():
            for i in range(2):
                await asyncio.sleep(0)
                await loop.sock_sendall(theirs, b"%d" % i)
                log("send", i)

        tasks = [loop.create_task(receive("receive")), loop.create_task(send())]
        count_turns(loop, log, 15) if mode in EXACT else until_quiet(loop, log)

        def finish():
            for task in tasks:
                task.result()

        return finish

    compare(scenario)


def test_datagrams_keep_their_order(run, loop, owned):
    """RFC 768 promises none, loopback gives it, and a loop must not lose it."""

    async def main():
        got = []
        done = loop.create_future()

        class Collect(asyncio.DatagramProtocol):
            def datagram_received(self, data, addr):
                got.append(int(data))
                if len(got) == 100 and not done.done():
                    done.set_result(None)

        transport, _ = await loop.create_datagram_endpoint(Collect, local_addr=("127.0.0.1", 0))
        sender = owned(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        for i in range(100):
            sender.sendto(b"%d" % i, transport.get_extra_info("sockname"))
        await done
        transport.close()
        await asyncio.sleep(0)
        assert got == list(range(100))

    run(main())


@pytest.mark.parametrize("connections", [1, 20])
def test_bytes_of_each_connection_keep_their_order_under_load(run, loop, listener, connections):
    """In every mode: per connection, nothing is lost, doubled or swapped, and `connection_lost` is last."""

    async def main():
        server_protocols = []

        class Echo(asyncio.Protocol):
            def __init__(self):
                self.calls = []
                server_protocols.append(self)

            def connection_made(self, transport):
                self.transport = transport
                self.calls.append("made")

            def data_received(self, data):
                self.calls.append("data")
                self.transport.write(data)

            def eof_received(self):
                self.calls.append("eof")

            def connection_lost(self, exc):
                self.calls.append("lost")

        server = await loop.create_server(Echo, sock=listener())
        host, port = server.sockets[0].getsockname()

        async def client(number):
            reader, writer = await asyncio.open_connection(host, port)
            sent = b"".join(b"%d:%d;" % (number, i) for i in range(3000))

            async def send():
                for i in range(0, len(sent), 977):
                    writer.write(sent[i : i + 977])
                    if i % 7 == 0:
                        await writer.drain()
                        await asyncio.sleep(0)
                writer.write_eof()

            async def receive():
                return await reader.read()

            _, got = await asyncio.gather(send(), receive())
            writer.close()
            await writer.wait_closed()
            assert got == sent

        await asyncio.gather(*map(client, range(connections)))
        server.close()
        while any(p.calls[-1] != "lost" for p in server_protocols):
            await asyncio.sleep(0.001)
        for protocol in server_protocols:
            calls = protocol.calls
            assert calls[0] == "made" and calls[-2:] == ["eof", "lost"]
            assert set(calls[1:-2]) == {"data"}

    run(main(), timeout=30)
