"""`Channel`: values passed between coroutines, whichever loops and threads they run on.

Everything a channel owns is changed under one lock, by any thread; the lock is never held while something waits. Who
has to wait parks: it leaves a `_Waiter` in a queue, and waits for a future of its own loop. Who readies it decides
under the lock what it gets, and only then wakes its loop. So a value is at every moment in one place: with a sender
that is parked, in the buffer, or with the one receiver that it was given to.

A coroutine that is being destroyed (GeneratorExit, out of the garbage collector) may run on a thread that has the lock.
It leaves its waiter in `_orphans`, and whoever has the lock, or takes it next, puts that right.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import threading
import typing

__all__ = ["Channel", "ChannelClosed"]

_T = typing.TypeVar("_T")


class ChannelClosed(Exception):
    """The channel was closed: nothing more can be sent, or nothing is left to receive."""


class _Waiter:
    """A parked sender or receiver. Its fields are changed under the channel's lock; `future` on `loop` only."""

    __slots__ = ("closed", "done", "future", "loop", "number", "sends", "value")

    def __init__(self, sends: bool, value: typing.Any = None) -> None:
        self.sends = sends
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[None] = self.loop.create_future()
        #: What a sender brings, or what a receiver was given.
        self.value: typing.Any = value
        #: The value's place in the order in which values came into the channel.
        self.number = 0
        #: Has sent its value, or was given one.
        self.done = False
        #: The channel was closed meanwhile.
        self.closed = False

    def wake(self) -> None:
        """From any thread. Raises RuntimeError when the loop is closed."""
        if asyncio._get_running_loop() is self.loop:
            self._resume()
        else:
            self.loop.call_soon_threadsafe(self._resume)

    def _resume(self) -> None:
        if not self.future.done():
            self.future.set_result(None)


class _State(typing.Generic[_T]):
    """What a channel owns; `with state:` is its lock, needed for everything but appending to `orphans`."""

    __slots__ = ("closed", "lock", "maxsize", "next_number", "orphans", "receivers", "senders", "values")

    def __init__(self, maxsize: int) -> None:
        self.maxsize = maxsize
        self.closed = False
        self.lock = threading.Lock()
        #: With their numbers, ascending.
        self.values: collections.deque[tuple[int, _T]] = collections.deque()
        self.next_number = 0
        #: In order. Receivers wait only while there is no value and no sender, senders only while the buffer is full.
        self.senders: collections.OrderedDict[_Waiter, None] = collections.OrderedDict()
        self.receivers: collections.OrderedDict[_Waiter, None] = collections.OrderedDict()
        self.orphans: collections.deque[_Waiter] = collections.deque()

    def __enter__(self) -> None:
        self.lock.acquire()

    def __exit__(self, *details: object) -> None:
        self.lock.release()
        if self.orphans:
            self.adopt_orphans()

    def accept(self, value: _T) -> bool:
        """Whether the value could go to a receiver or into the buffer."""
        if self.closed:
            raise ChannelClosed("the channel is closed")
        number = self.next_number
        if not self.give(number, value):
            if len(self.values) >= self.maxsize:
                return False
            self.values.append((number, value))
        self.next_number += 1
        return True

    def take(self) -> _T:
        """The oldest value; the first sender's moves up."""
        found: _T
        if self.values:
            found = self.values.popleft()[1]
            while self.senders and len(self.values) < self.maxsize:
                sender = self.accept_sender()
                self.values.append((sender.number, sender.value))
        else:
            found = self.accept_sender().value
        return found

    def accept_sender(self) -> _Waiter:
        sender, _ = self.senders.popitem(last=False)
        sender.number = self.next_number
        self.next_number += 1
        sender.done = True
        # A closed loop doesn't take the value back.
        with contextlib.suppress(RuntimeError):
            sender.wake()
        return sender

    def give(self, number: int, value: _T) -> bool:
        """Whether a receiver could be given the value."""
        while self.receivers:
            receiver, _ = self.receivers.popitem(last=False)
            if receiver.loop.is_closed():
                continue
            receiver.number, receiver.value, receiver.done = number, value, True
            try:
                receiver.wake()
            except RuntimeError:
                # Closed just now.
                receiver.value, receiver.done = None, False
                continue
            return True
        return False

    def withdraw(self, waiter: _Waiter) -> None:
        """It waits no longer, and has to leave no trace."""
        if waiter.sends:
            self.withdraw_sender(waiter)
        else:
            self.withdraw_receiver(waiter)

    def withdraw_sender(self, sender: _Waiter) -> None:
        if not sender.done:
            self.senders.pop(sender, None)
            return
        for index, (number, _) in enumerate(self.values):
            if number == sender.number:
                del self.values[index]
                break
            if number > sender.number:
                break
        while self.senders and len(self.values) < self.maxsize:
            first = self.accept_sender()
            self.values.append((first.number, first.value))

    def withdraw_receiver(self, receiver: _Waiter) -> None:
        if not receiver.done:
            self.receivers.pop(receiver, None)
            return
        receiver.done = False
        number, value = receiver.number, typing.cast(_T, receiver.value)
        if self.give(number, value):
            return
        # To the front, but behind what came before it and was given back, too.
        index = 0
        while index < len(self.values) and self.values[index][0] < number:
            index += 1
        self.values.insert(index, (number, value))

    def close(self) -> None:
        self.closed = True
        waiters = [*self.senders, *self.receivers]
        self.senders.clear()
        self.receivers.clear()
        for waiter in waiters:
            waiter.closed = True
            with contextlib.suppress(RuntimeError):
                waiter.wake()

    def adopt_orphans(self) -> None:
        """If the lock is taken, who has it does this after the release."""
        while self.orphans and self.lock.acquire(blocking=False):
            try:
                while self.orphans:
                    self.withdraw(self.orphans.popleft())
            finally:
                self.lock.release()

    async def wait(self, waiter: _Waiter) -> None:
        """Without the lock: until the waiter is done, or the channel closed."""
        try:
            await waiter.future
        except GeneratorExit:
            self.orphans.append(waiter)
            self.adopt_orphans()
            raise
        except BaseException:
            with self:
                self.withdraw(waiter)
            raise
        if waiter.closed:
            raise ChannelClosed("the channel was closed")


class Channel(typing.Generic[_T]):
    """A queue of at most `maxsize` values between coroutines of any loops; Go's channel, with Go's rules.

        channel = netpoll_loop.Channel(10)
        await channel.send(value)           # waits while there are 10
        value = await channel.receive()     # waits while there is none
        async for value in channel: ...     # until it is closed and empty

    With 0, the default, nothing is kept: `send` waits for a receiver (a rendezvous).

    Senders and receivers are served first come, first served, on whichever loop they are: those of netpoll_loop,
    asyncio's own, several at once. Every method may be called on any thread, but for finalizers and handlers of
    `signal.signal`. Raises TypeError for a `maxsize` that is no int, ValueError for a negative one.

    Cancelling a `receive` takes nothing: a value that it was given in the same moment goes to the next receiver, or
    back to the front, even if that makes one more than `maxsize`. Cancelling a `send` takes its value back, unless a
    receiver has it by then.
    """

    __slots__ = ("__weakref__", "_state")

    def __init__(self, maxsize: int = 0) -> None:
        if not isinstance(maxsize, int):
            raise TypeError(f"maxsize must be an int, not {type(maxsize).__name__!r}")
        if maxsize < 0:
            raise ValueError("maxsize must not be negative")
        self._state: _State[_T] = _State(maxsize)

    @property
    def maxsize(self) -> int:
        """How many values the channel keeps."""
        return self._state.maxsize

    @property
    def closed(self) -> bool:
        """Whether `close` was called. There may be values left."""
        return self._state.closed

    def __len__(self) -> int:
        """How many values are in the channel; those that senders wait with aren't counted."""
        return len(self._state.values)

    def __bool__(self) -> bool:
        """A channel is true, empty or not."""
        return True

    def __repr__(self) -> str:
        state = self._state
        waiting = f"{len(state.senders)} senders, {len(state.receivers)} receivers waiting"
        closed = " closed" if state.closed else ""
        return f"<{type(self).__name__}{closed} {len(state.values)}/{state.maxsize} values, {waiting}>"

    async def send(self, value: _T) -> None:
        """Puts a value in; waits while the channel is full.

        Raises ChannelClosed when the channel is closed, or becomes so while this waits: the value is not sent then.
        """
        state = self._state
        with state:
            if state.accept(value):
                return
            waiter = _Waiter(True, value)
            state.senders[waiter] = None
        await state.wait(waiter)

    async def receive(self) -> _T:
        """Takes the oldest value out; waits while there is none.

        Raises ChannelClosed when the channel is closed and empty, or becomes so while this waits.
        """
        state = self._state
        with state:
            if state.values or state.senders:
                return state.take()
            if state.closed:
                raise ChannelClosed("the channel is closed, and empty")
            waiter = _Waiter(False)
            state.receivers[waiter] = None
        await state.wait(waiter)
        return typing.cast(_T, waiter.value)

    def send_nowait(self, value: _T) -> None:
        """Puts a value in at once. Needs no loop.

        Raises asyncio.QueueFull when the channel is full (with `maxsize` 0: when no receiver waits), ChannelClosed when
        it is closed.
        """
        with self._state:
            accepted = self._state.accept(value)
        if not accepted:
            raise asyncio.QueueFull

    def receive_nowait(self) -> _T:
        """Takes the oldest value out at once. Needs no loop.

        Raises asyncio.QueueEmpty when there is none, ChannelClosed when the channel is closed besides.
        """
        state = self._state
        with state:
            if state.values or state.senders:
                return state.take()
            if state.closed:
                raise ChannelClosed("the channel is closed, and empty")
        raise asyncio.QueueEmpty

    def close(self) -> None:
        """Ends the channel: what is in it can still be received, nothing more can be sent. Again: does nothing.

        Senders and receivers that wait get ChannelClosed; what the senders waited with is not sent.
        """
        with self._state:
            self._state.close()

    def __aiter__(self) -> Channel[_T]:
        return self

    async def __anext__(self) -> _T:
        try:
            return await self.receive()
        except ChannelClosed:
            raise StopAsyncIteration from None
