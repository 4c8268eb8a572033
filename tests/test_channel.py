"""Channel: values between coroutines of any loops, each exactly once and in order, whoever is cancelled or closed."""

import asyncio
import collections
import contextlib
import gc
import itertools
import random
import threading
import time

import hypothesis
import pytest
from hypothesis import stateful
from hypothesis import strategies as st
from peers import turns, until

import netpoll_loop
from netpoll_loop import Channel, ChannelClosed

pytestmark = pytest.mark.netpoll_only("channels are netpoll_loop's")

LIMIT = 20  # seconds


# --- one loop ---------------------------------------------------------------------------------------------------------


def test_values_come_out_in_order(run, loop):
    async def main():
        channel = Channel(3)
        for value in range(3):
            await channel.send(value)
        assert len(channel) == channel.maxsize == 3
        assert [await channel.receive() for _ in range(3)] == [0, 1, 2]
        assert len(channel) == 0

    run(main())


def test_a_full_channel_makes_the_sender_wait(run, loop):
    async def main():
        channel = Channel(1)
        await channel.send(1)
        sender = asyncio.create_task(channel.send(2))
        await turns()
        assert not sender.done() and len(channel) == 1
        assert await channel.receive() == 1
        await sender
        assert await channel.receive() == 2

    run(main())


def test_a_channel_without_room_is_a_rendezvous(run, loop):
    async def main():
        channel = Channel()
        sender = asyncio.create_task(channel.send("value"))
        await turns()
        assert not sender.done() and len(channel) == 0
        assert await channel.receive() == "value"
        await sender
        receiver = asyncio.create_task(channel.receive())
        await turns()
        await channel.send("second")
        assert await receiver == "second"

    run(main())


def test_without_waiting(run, loop):
    async def main():
        channel = Channel(1)
        with pytest.raises(asyncio.QueueEmpty):
            channel.receive_nowait()
        channel.send_nowait(1)
        with pytest.raises(asyncio.QueueFull):
            channel.send_nowait(2)
        sender = asyncio.create_task(channel.send(3))
        await turns()
        assert channel.receive_nowait() == 1
        assert channel.receive_nowait() == 3
        await sender
        unbuffered = Channel()
        with pytest.raises(asyncio.QueueFull):
            unbuffered.send_nowait(1)
        receiver = asyncio.create_task(unbuffered.receive())
        await turns()
        unbuffered.send_nowait(4)
        assert await receiver == 4

    run(main())


def test_no_loop_is_needed_without_waiting():
    channel = Channel(2)
    channel.send_nowait(None)
    channel.close()
    assert channel.receive_nowait() is None
    with pytest.raises(ChannelClosed):
        channel.receive_nowait()


def test_what_is_in_a_closed_channel_can_be_received(run, loop):
    async def main():
        channel = Channel(5)
        for value in range(3):
            await channel.send(value)
        channel.close()
        channel.close()
        assert channel.closed
        with pytest.raises(ChannelClosed):
            await channel.send(3)
        with pytest.raises(ChannelClosed):
            channel.send_nowait(3)
        assert await channel.receive() == 0
        assert [value async for value in channel] == [1, 2]
        with pytest.raises(ChannelClosed):
            await channel.receive()

    run(main())


def test_closing_wakes_all_who_wait(run, loop):
    async def main():
        empty, full = Channel(), Channel(1)
        await full.send(0)
        waiting = [asyncio.create_task(empty.receive()) for _ in range(3)]
        waiting += [asyncio.create_task(full.send(value)) for value in range(1, 4)]
        iterating = asyncio.create_task(anext(empty, "end"))
        await turns()
        empty.close()
        full.close()
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(result) for result in results] == [ChannelClosed] * 6
        assert await iterating == "end"
        # What the senders waited with was not sent.
        assert [value async for value in full] == [0]

    run(main())


def test_receivers_are_served_first_come_first_served(run, loop):
    async def main():
        channel = Channel()
        order = []

        async def receive(name):
            order.append((name, await channel.receive()))

        tasks = []
        for name in "abc":
            tasks.append(asyncio.create_task(receive(name)))
            await turns()
        for value in range(3):
            await channel.send(value)
        await asyncio.gather(*tasks)
        assert order == [("a", 0), ("b", 1), ("c", 2)]

    run(main())


def test_senders_are_served_first_come_first_served(run, loop):
    async def main():
        channel = Channel(1)
        tasks = []
        for value in range(5):
            tasks.append(asyncio.create_task(channel.send(value)))
            await turns()
        assert [await channel.receive() for _ in range(5)] == list(range(5))
        await asyncio.gather(*tasks)

    run(main())


def test_a_cancelled_receiver_leaves_its_place(run, loop):
    async def main():
        channel = Channel()
        first, second = (asyncio.create_task(channel.receive()) for _ in range(2))
        await turns()
        first.cancel()
        await turns()
        await channel.send("value")
        assert await second == "value"
        for _ in range(100):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(channel.receive(), 0.0001)
        assert "0 senders, 0 receivers waiting" in repr(channel)

    run(main())


@pytest.mark.parametrize("maxsize", [0, 2])
def test_the_value_of_a_receiver_cancelled_in_the_same_moment_goes_to_the_next(run, loop, maxsize):
    async def main():
        channel = Channel(maxsize)
        first, second = (asyncio.create_task(channel.receive()) for _ in range(2))
        await turns()
        channel.send_nowait("value")
        first.cancel()
        assert await second == "value"
        with pytest.raises(asyncio.CancelledError):
            await first

    run(main())


@pytest.mark.parametrize("maxsize", [0, 1, 5])
def test_values_of_cancelled_receivers_come_back_in_order(run, loop, maxsize):
    async def main():
        channel = Channel(maxsize)
        receivers = [asyncio.create_task(channel.receive()) for _ in range(4)]
        await turns()
        for value in range(4):
            channel.send_nowait(value)
        for receiver in (receivers[2], receivers[0], receivers[3], receivers[1]):
            receiver.cancel()
        await asyncio.wait(receivers)
        assert [channel.receive_nowait() for _ in range(4)] == [0, 1, 2, 3]

    run(main())


def test_a_cancelled_send_takes_its_value_back(run, loop):
    async def main():
        channel = Channel(1)
        channel.send_nowait(0)
        senders = [asyncio.create_task(channel.send(value)) for value in (1, 2)]
        await turns()
        senders[0].cancel()
        await turns()
        assert channel.receive_nowait() == 0
        # It was moved into the channel, but nobody has it yet.
        senders[1].cancel()
        await asyncio.wait(senders)
        assert all(sender.cancelled() for sender in senders)
        with pytest.raises(asyncio.QueueEmpty):
            channel.receive_nowait()

    run(main())


def test_a_timeout_takes_no_value(run, loop):
    async def main():
        channel = Channel()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await channel.receive()
        sender = asyncio.create_task(channel.send(1))
        assert await channel.receive() == 1
        await sender

    run(main())


def test_a_coroutine_that_is_thrown_away_gives_its_value_back(run, loop):
    async def main():
        channel = Channel()
        loop.set_exception_handler(lambda loop, context: None)
        coroutine = channel.receive()
        future = coroutine.send(None)
        assert asyncio.isfuture(future)
        channel.send_nowait("value")
        coroutine.close()
        assert channel.receive_nowait() == "value"

    run(main())


@pytest.mark.parametrize("bad, error", [("1", TypeError), (1.0, TypeError), (None, TypeError), (-1, ValueError)])
def test_a_bad_size_is_refused(bad, error):
    with pytest.raises(error, match="maxsize"):
        Channel(bad)


def test_it_is_true_and_says_what_is_in_it():
    channel = Channel(2)
    assert channel
    channel.send_nowait(1)
    assert repr(channel) == "<Channel 1/2 values, 0 senders, 0 receivers waiting>"
    channel.close()
    assert repr(channel) == "<Channel closed 1/2 values, 0 senders, 0 receivers waiting>"


# --- against a model --------------------------------------------------------------------------------------------------


class Model:
    """What a channel has to do, said as plainly as possible."""

    def __init__(self, maxsize):
        self.maxsize = maxsize
        self.values, self.senders, self.receivers = [], [], []
        self.closed = False
        self.outcome = {}

    def settle(self):
        while self.receivers and (self.values or self.senders):
            who = self.receivers.pop(0)
            self.outcome[who] = self.pop()
        while self.senders and len(self.values) < self.maxsize:
            self.accept()

    def accept(self):
        who, value = self.senders.pop(0)
        self.values.append(value)
        self.outcome[who] = "sent"

    def pop(self):
        if not self.values:
            self.accept()
        return self.values.pop(0)

    def send(self, who, value):
        if self.closed:
            self.outcome[who] = ChannelClosed
        else:
            self.senders.append((who, value))
            self.settle()

    def receive(self, who):
        if self.closed and not self.values:
            self.outcome[who] = ChannelClosed
        else:
            self.receivers.append(who)
            self.settle()

    def cancel(self, who):
        self.outcome[who] = asyncio.CancelledError
        self.senders = [each for each in self.senders if each[0] != who]
        self.receivers = [each for each in self.receivers if each != who]

    def close(self):
        self.closed = True
        for who in [*(who for who, _ in self.senders), *self.receivers]:
            self.outcome[who] = ChannelClosed
        self.senders, self.receivers = [], []


def outcome_of(task):
    if task.cancelled():
        return asyncio.CancelledError
    if task.exception() is not None:
        return type(task.exception())
    return "sent" if task.result() is None else task.result()


class ChannelMachine(stateful.RuleBasedStateMachine):
    """Random calls; after each the coroutines run until all wait, and must be where the model says."""

    @stateful.initialize(maxsize=st.integers(0, 3), stock=st.booleans())
    def begin(self, maxsize, stock):
        self.loop = asyncio.SelectorEventLoop() if stock else netpoll_loop.new_event_loop("inline")
        self.channel = Channel(maxsize)
        self.model = Model(maxsize)
        self.tasks = {}
        self.number = itertools.count(1)

    def start(self, coroutine):
        who = next(self.number)
        self.tasks[who] = self.loop.create_task(coroutine)
        return who

    def pending(self):
        return [who for who in self.tasks if who not in self.model.outcome]

    @stateful.rule()
    def send(self):
        value = next(self.number)
        self.model.send(self.start(self.channel.send(value)), value)

    @stateful.rule()
    def receive(self):
        self.model.receive(self.start(self.channel.receive()))

    @stateful.rule()
    def send_nowait(self):
        value = next(self.number)
        room = self.model.receivers or len(self.model.values) < self.model.maxsize
        expected = ChannelClosed if self.model.closed else None if room else asyncio.QueueFull
        with pytest.raises(expected) if expected else contextlib.nullcontext():
            self.channel.send_nowait(value)
            self.model.send(0, value)

    @stateful.rule()
    def receive_nowait(self):
        if self.model.values or self.model.senders:
            expected = self.model.pop()
            self.model.settle()
            assert self.channel.receive_nowait() == expected
        else:
            with pytest.raises(ChannelClosed if self.model.closed else asyncio.QueueEmpty):
                self.channel.receive_nowait()

    @stateful.precondition(lambda self: self.pending())
    @stateful.rule(data=st.data())
    def cancel(self, data):
        who = data.draw(st.sampled_from(self.pending()))
        self.tasks[who].cancel()
        self.model.cancel(who)

    @stateful.precondition(lambda self: self.model.receivers and not self.model.closed)
    @stateful.rule(cancelled=st.integers(1, 3))
    def cancel_receivers_that_were_just_served(self, cancelled):
        served = self.model.receivers[:cancelled]
        values = [next(self.number) for _ in served]
        for value in values:
            self.channel.send_nowait(value)
        # Each gives its value back when it runs, so in this order.
        for who in served:
            self.tasks[who].cancel()
            self.model.cancel(who)
        self.model.values[:0] = values
        self.model.settle()

    @stateful.rule()
    def close(self):
        self.channel.close()
        self.model.close()

    def run_all(self):
        async def quiet():
            for _ in range(5):
                await asyncio.sleep(0)

        self.loop.run_until_complete(quiet())

    @stateful.invariant()
    def as_the_model_says(self):
        if not hasattr(self, "model"):
            return
        self.run_all()
        found = {who: outcome_of(task) for who, task in self.tasks.items() if task.done()}
        assert found == {who: what for who, what in self.model.outcome.items() if who}
        assert len(self.channel) == len(self.model.values)
        assert self.channel.closed == self.model.closed

    def teardown(self):
        if not hasattr(self, "model"):
            return
        for task in self.tasks.values():
            task.cancel()
        self.run_all()
        state = self.channel._state
        assert not state.senders and not state.receivers and not state.orphans
        self.loop.close()


TestAgainstTheModel = ChannelMachine.TestCase
TestAgainstTheModel.settings = hypothesis.settings(max_examples=100, stateful_step_count=40, deadline=None)


# --- several loops ----------------------------------------------------------------------------------------------------


class Threads:
    """Runs coroutines on loops of their own, each on a thread, with a time limit for all."""

    def __init__(self):
        self.errors = []

    def run(self, *functions, factories):
        threads = []
        for index, function in enumerate(functions):
            factory = factories[index % len(factories)]
            threads.append(threading.Thread(target=self.work, args=(function, factory), daemon=True))
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + LIMIT
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        assert not any(thread.is_alive() for thread in threads), "still running"
        assert self.errors == []

    def work(self, function, factory):
        try:
            with asyncio.Runner(loop_factory=factory) as runner:
                runner.run(function())
        except BaseException as exc:
            self.errors.append(exc)


@pytest.fixture
def factories(mode):
    return [lambda: netpoll_loop.new_event_loop(mode), asyncio.SelectorEventLoop]


@pytest.mark.parametrize("maxsize", [0, 1, 16])
def test_nothing_is_lost_or_doubled_between_threads(factories, maxsize):
    channel = Channel(maxsize)
    each, senders = 1000, 3
    left = itertools.count(1)
    received = [[] for _ in range(3)]

    def sender(number):
        async def send():
            for i in range(each):
                await channel.send((number, i))
            if next(left) == senders:
                channel.close()

        return send

    def receiver(into):
        async def receive():
            async for value in channel:
                into.append(value)

        return receive

    Threads().run(*map(sender, range(senders)), *map(receiver, received), factories=factories)
    everything = [value for values in received for value in values]
    assert sorted(everything) == [(number, i) for number in range(senders) for i in range(each)]
    for values in received:
        for number in range(senders):
            # Of one sender, each receiver sees an ascending part.
            mine = [i for sender, i in values if sender == number]
            assert mine == sorted(mine)


@pytest.mark.parametrize("maxsize", [0, 3])
def test_a_storm_of_cancellations_loses_and_doubles_nothing(factories, maxsize):
    channel = Channel(maxsize)
    sent, withdrawn = collections.Counter(), collections.Counter()
    received = collections.Counter()
    numbers = itertools.count()
    senders_left, tasks_each = itertools.count(1), 300

    async def cancelled_at_random(coroutine):
        task = asyncio.ensure_future(coroutine)
        for _ in range(random.randrange(6)):
            await asyncio.sleep(0)
        if random.random() < 0.5:
            task.cancel()
        return (await asyncio.gather(task, return_exceptions=True))[0]

    async def send():
        async def one():
            value = next(numbers)
            result = await cancelled_at_random(channel.send(value))
            (sent if result is None else withdrawn)[value] += 1

        for _ in range(tasks_each // 10):
            await asyncio.gather(*(one() for _ in range(10)))
        if next(senders_left) == 2:
            channel.close()

    async def receive():
        async def one():
            result = await cancelled_at_random(channel.receive())
            if isinstance(result, int):
                received[result] += 1
            return isinstance(result, ChannelClosed)

        while not any(await asyncio.gather(*(one() for _ in range(5)))):
            pass

    Threads().run(send, send, receive, receive, factories=factories)
    with contextlib.suppress(ChannelClosed):
        while True:
            received[channel.receive_nowait()] += 1
    assert len(sent) + len(withdrawn) == 2 * tasks_each
    assert set(received.values()) <= {1}
    # A send that was cancelled may have been too late; one that returned was sent.
    assert set(sent) <= set(received)
    assert set(received) <= set(sent) | set(withdrawn)


def test_a_closed_loop_swallows_no_value(new_loop, run, loop):
    channel = Channel(1)
    other = new_loop()
    waiting = other.create_task(channel.receive())
    other.run_until_complete(asyncio.sleep(0.01))
    waiting._log_destroy_pending = False
    other.close()

    async def main():
        await channel.send("value")
        assert await channel.receive() == "value"

    run(main())


def test_a_loop_closed_after_it_was_given_a_value_gives_it_back(new_loop, run, loop):
    channel = Channel(1)
    other = new_loop()
    waiting = other.create_task(channel.receive())
    other.run_until_complete(asyncio.sleep(0.01))
    waiting._log_destroy_pending = False
    channel.send_nowait("value")
    other.close()
    del waiting
    gc.collect()

    async def main():
        assert await channel.receive() == "value"

    run(main())


def test_a_sender_whose_loop_is_closed_has_no_say(new_loop, run, loop):
    channel = Channel(1)
    channel.send_nowait(0)
    other = new_loop()
    waiting = other.create_task(channel.send(1))
    other.run_until_complete(asyncio.sleep(0.01))
    waiting._log_destroy_pending = False
    other.close()

    async def main():
        assert [await channel.receive() for _ in range(2)] == [0, 1]
        await channel.send(2)
        assert await channel.receive() == 2

    run(main())


def test_another_thread_wakes_an_idle_loop(run, loop):
    channel = Channel()

    async def main():
        def send():
            for value in range(3):
                while True:
                    with contextlib.suppress(asyncio.QueueFull):
                        channel.send_nowait(value)
                        break
                    time.sleep(0.001)

        thread = threading.Thread(target=send, daemon=True)
        thread.start()
        assert [await channel.receive() for _ in range(3)] == [0, 1, 2]
        await until(lambda: not thread.is_alive())

    run(main())
