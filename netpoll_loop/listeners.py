"""Listening sockets that the loops of a worker group share: one for each address, whichever loops open it.

M0, the thread that called `run`, accepts: it runs no user's code, so that no stalled worker keeps a connection waiting
in the kernel. Each connection goes to the serving loop with the fewest live ones, by `call_soon_threadsafe`, and that
loop makes the protocol and the transport. What a loop hasn't picked up after `RETAKE` goes to another one, as Go's
sysmon retakes the P of a thread that is stuck.

Where a connection is, and who moves it: in the kernel's backlog (M0: accept), in a share's `inbox` (its loop: makes
the transport; M0: retakes it; any thread, when the share ends: passes it on), with a transport.

Everything here is changed under the group's lock, but for the descriptors that M0's loop watches: only M0 touches them.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import contextvars
import errno
import functools
import os
import socket
import threading
import time
import typing
from asyncio import base_events, trsock
from asyncio.constants import ACCEPT_RETRY_DELAY
from asyncio.log import logger
from collections.abc import Callable

from netpoll_loop.binding import Key, bound_key, unlink

__all__ = ["Listeners", "Server", "Share", "Tally"]

#: Seconds after which a connection that its loop hasn't picked up is given to another. Two ticks of the netpoller.
RETAKE = 0.02

_OUT_OF_RESOURCES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Tally:
    """A count that grows under the group's lock, and that anybody may lower, finalizers too, without it."""

    __slots__ = ("_count", "_down")

    def __init__(self) -> None:
        self._count = 0
        self._down: collections.deque[None] = collections.deque()

    def add(self) -> None:
        self._count += 1

    def drop(self) -> None:
        """Any thread, with or without the lock."""
        self._down.append(None)

    def value(self) -> int:
        """Under the lock."""
        while self._down:
            self._down.popleft()
            self._count -= 1
        return self._count


class Handed(typing.NamedTuple):
    """A connection on its way to a loop."""

    sock: socket.socket
    address: typing.Any
    #: `time.monotonic()` when it was put there.
    since: float


class Serving(typing.NamedTuple):
    """What a server that serves wants done with a connection."""

    protocol_factory: Callable[[], asyncio.BaseProtocol]
    sslcontext: typing.Any
    server: Server
    ssl_options: dict[str, typing.Any]
    context: contextvars.Context


class Share:
    """One loop's part in a listening socket: what its server holds, and calls its socket."""

    def __init__(self, listening: Listening, loop: typing.Any, live: Tally) -> None:
        self.listening = listening
        self.loop = loop
        #: The connections of its server, on all of its sockets.
        self.live = live
        self.sock = listening.sock.dup()
        self.sock.setblocking(False)
        self.serving: Serving | None = None
        self.inbox: collections.deque[Handed] = collections.deque()

    def stuck(self, now: float) -> bool:
        return bool(self.inbox) and now - self.inbox[0].since > RETAKE

    def dropped(self) -> None:
        """A connection is gone: any thread, finalizers too."""
        self.live.drop()
        self.loop._worker.load.drop()

    # ---- on the loop -------------------------------------------------------------------------------

    def deliver(self, serving: Serving) -> None:
        """Makes a transport of the oldest connection, unless it was retaken. In a copy of the server's context."""
        with self.listening.lock:
            if not self.inbox:
                return
            sock, address, _ = self.inbox.popleft()
            self.listening.picked_up()
        loop, server = self.loop, serving.server
        if serving.sslcontext is not None:
            loop.create_task(self._deliver_tls(serving, sock, address))
            return
        protocol = None
        try:
            protocol = serving.protocol_factory()
            attached = server._share_attach()
            loop._make_socket_transport(sock, protocol, extra={"peername": address}, server=attached)
        except BaseException as exc:
            sock.close()
            self.dropped()
            if isinstance(exc, (SystemExit, KeyboardInterrupt)):
                raise
            loop.call_exception_handler(_failure(exc, protocol))
        else:
            if attached is None:
                self.dropped()

    async def _deliver_tls(self, serving: Serving, sock: socket.socket, address: typing.Any) -> None:
        # As asyncio's _accept_connection2.
        protocol = attached = transport = None
        try:
            protocol = serving.protocol_factory()
            waiter = self.loop.create_future()
            attached = serving.server._share_attach()
            transport = self.loop._make_ssl_transport(
                sock,
                protocol,
                serving.sslcontext,
                waiter=waiter,
                server_side=True,
                extra={"peername": address},
                server=attached,
                **serving.ssl_options,
            )
            try:
                await waiter
            except BaseException:
                transport.close()
                raise
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            if self.loop.get_debug():
                self.loop.call_exception_handler(_failure(exc, protocol))
            if isinstance(exc, asyncio.CancelledError):
                raise
        finally:
            if transport is None:
                sock.close()
            if transport is None or attached is None:
                # Else the server says when it is gone.
                self.dropped()


def _failure(exc: BaseException, protocol: asyncio.BaseProtocol | None) -> dict[str, typing.Any]:
    context: dict[str, typing.Any] = {
        "message": "Error on transport creation for incoming connection",
        "exception": exc,
    }
    if protocol is not None:
        context["protocol"] = protocol
    return context


class Server(base_events.Server):
    """asyncio's server, on one loop of a group. Its sockets are duplicates of the listening sockets."""

    def __init__(self, loop: typing.Any, sockets: list[socket.socket], live: Tally, *args: typing.Any) -> None:
        super().__init__(loop, sockets, *args)
        self._live = live

    def _share_attach(self) -> Server | None:
        """Itself, or None when it has closed and said so: the connection is served all the same."""
        return None if self._sockets is None and self._waiters is None else self  # type: ignore[attr-defined]

    def _detach(self, *transport: typing.Any) -> None:
        # Finalizers come here, too.
        self._live.drop()
        self.get_loop()._worker.load.drop()  # type: ignore[attr-defined]
        super()._detach(*transport)  # type: ignore[misc]


class Listening:
    """One listening socket."""

    def __init__(self, owner: Listeners, sock: socket.socket) -> None:
        self.owner = owner
        self.lock = owner.lock
        self.sock = sock
        self.shares: list[Share] = []
        #: The path of a Unix socket and its inode, to be unlinked at the end.
        self.unlink: tuple[str, int] | None = None
        #: A user's own socket objects, closed with the last server as theirs would be.
        self.given: list[socket.socket] = []
        self.backlog = 0
        self.waiting = 0
        self.paused = False
        self.closed = False
        #: M0's: whether its loop watches the socket; the timer after which it does again.
        self.watched = False
        self.retry: asyncio.TimerHandle | None = None
        self.turn = 0

    def has(self, loop: typing.Any) -> bool:
        return any(share.loop is loop for share in self.shares)

    def picked_up(self) -> None:
        """Under the lock: a connection has left an inbox."""
        self.waiting -= 1
        if self.paused and self.waiting <= self.backlog // 2:
            self.paused = False
            self.owner.on_m0(functools.partial(self.owner.watch, self))

    def choose(self, now: float, besides: Share | None = None) -> Share | None:
        """The share with the fewest live connections, in turn among equals; those that are stuck only if all are."""
        best: Share | None = None
        best_rank: tuple[bool, int] = (True, 0)
        count = len(self.shares)
        for i in range(count):
            share = self.shares[(self.turn + i) % count]
            if share.serving is None or share is besides:
                continue
            rank = (share.stuck(now), share.live.value())
            if best is None or rank < best_rank:
                best, best_rank = share, rank
        if best is not None:
            self.turn = self.shares.index(best) + 1
        return best

    def hand(self, sock: socket.socket, address: typing.Any, besides: Share | None = None) -> bool:
        """Under the lock, on any thread: gives a connection to a loop. False when none serves."""
        now = time.monotonic()
        while (share := self.choose(now, besides)) is not None:
            serving = share.serving
            assert serving is not None
            share.inbox.append(Handed(sock, address, now))
            try:
                share.loop.call_soon_threadsafe(share.deliver, serving, context=serving.context.copy())
            except RuntimeError:
                # The loop is closed, and about to leave the group.
                share.inbox.pop()
                share.serving = None
                continue
            self.waiting += 1
            share.live.add()
            share.loop._worker.load.add()
            return True
        return False

    def take_back(self, share: Share) -> Handed:
        """Under the lock."""
        handed = share.inbox.popleft()
        self.waiting -= 1
        share.dropped()
        return handed

    def pass_on(self, share: Share) -> None:
        """Under the lock: what the share hasn't picked up goes to the others that serve, if there are any."""
        while share.inbox and any(other.serving for other in self.shares if other is not share):
            handed = self.take_back(share)
            if not self.hand(handed.sock, handed.address, share):
                handed.sock.close()


class Listeners:
    """The listening sockets of a group.

    `m0` is the loop of M0. Its `_add_reader` and `_remove_reader` are called on M0 only, the other methods of this
    class, but for `watch`, on any thread.
    """

    def __init__(self, m0: typing.Any, lock: threading.RLock) -> None:  # type: ignore[valid-type,unused-ignore]
        self.m0 = m0
        self.lock = lock
        self._by_key: dict[Key, Listening] = {}
        self._open: set[Listening] = set()
        #: Whether a timer of M0 looks after connections that aren't picked up.
        self._watching = False

    def on_m0(self, callback: Callable[[], object]) -> None:
        # RuntimeError: it is closed, after a KeyboardInterrupt that left a worker behind.
        with contextlib.suppress(RuntimeError):
            self.m0.call_soon_threadsafe(callback)

    # ---- opening and closing, on the loops -----------------------------------------------------------

    def share(
        self,
        loop: typing.Any,
        key: Key,
        live: Tally,
        where: typing.Any,
        make: Callable[[], socket.socket],
        again: bool = False,
    ) -> Share:
        """The loop's part in the socket that has the key; `make` makes it if there is none.

        Raises OSError(EADDRINUSE) when the loop has it open already, unless it may open it again (SO_REUSEPORT: the
        n-th socket of each loop is the same then), and what `make` raises.
        """
        with self.lock:
            first, count = key, 0
            while (listening := self._by_key.get(key)) is not None and again and listening.has(loop):
                count += 1
                key = (*first, "again", count)
            if listening is None:
                sock = make()
                sock.setblocking(False)
                listening = Listening(self, sock)
                self._open.add(listening)
                self._by_key[key] = listening
                # Who opens the port that "port 0" has become means the same socket.
                self._by_key.setdefault(bound_key(sock), listening)
            if listening.has(loop):
                raise OSError(
                    errno.EADDRINUSE,
                    f"error while attempting to bind on address {where!r}: {os.strerror(errno.EADDRINUSE).lower()}",
                )
            try:
                share = Share(listening, loop, live)
            except BaseException:
                if not listening.shares:
                    self.on_m0(functools.partial(self.watch, listening))
                raise
            listening.shares.append(share)
            return share

    def start(self, share: Share, serving: Serving, backlog: int) -> None:
        """The share's loop takes connections from now on."""
        with self.lock:
            share.serving = serving
            share.listening.backlog = max(share.listening.backlog, backlog, 1)
            # asyncio's server has called it with its own, and for the kernel the last one counts.
            share.sock.listen(share.listening.backlog)
        self.on_m0(functools.partial(self.watch, share.listening))

    def stop(self, share: Share) -> None:
        """The share's loop takes no more connections. The last one closes the socket, before this returns."""
        listening = share.listening
        with self.lock:
            share.serving = None
            listening.pass_on(share)
            if share in listening.shares:
                listening.shares.remove(share)
            share.sock.close()
            last = not listening.shares
        if last:
            done = threading.Event()
            self.on_m0(functools.partial(self.watch, listening, done))
            # M0 never waits for a worker; it may be gone.
            while not done.wait(0.1) and not self.m0.is_closed():
                pass

    def abandon(self, share: Share) -> None:
        """The share's loop is closed: nothing that was handed to it may be lost silently."""
        self.stop(share)
        with self.lock:
            while share.inbox:
                handed = share.listening.take_back(share)
                logger.debug("%r was accepted, but its loop has ended", handed.sock)
                handed.sock.close()

    # ---- on M0 ------------------------------------------------------------------------------------

    def watch(self, listening: Listening, done: threading.Event | None = None) -> None:
        """Begins or ends to accept, and closes the socket, as the shares want it now."""
        with self.lock:
            if listening.closed:
                pass
            elif not listening.shares:
                self._close(listening)
            else:
                self._watch_if(
                    listening,
                    not listening.paused
                    and listening.retry is None
                    and any(share.serving is not None for share in listening.shares),
                )
        if done is not None:
            done.set()

    def close(self) -> None:
        """Closes all that is open still; the workers have ended, or are left behind."""
        with self.lock:
            for listening in list(self._open):
                self._close(listening)

    def _watch_if(self, listening: Listening, wanted: bool) -> None:
        if wanted and not listening.watched:
            self.m0._add_reader(listening.sock, self._accept, listening)
        elif listening.watched and not wanted:
            self.m0._remove_reader(listening.sock)
        listening.watched = wanted

    def _close(self, listening: Listening) -> None:
        listening.closed = True
        self._watch_if(listening, False)
        if listening.retry is not None:
            listening.retry.cancel()
        for key in [key for key, found in self._by_key.items() if found is listening]:
            del self._by_key[key]
        self._open.discard(listening)
        for sock in (listening.sock, *listening.given):
            sock.close()
        if listening.unlink is not None:
            unlink(*listening.unlink)

    def _accept(self, listening: Listening) -> None:
        for _ in range(listening.backlog):
            try:
                sock, address = listening.sock.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as exc:
                self._accept_failed(listening, exc)
                return
            sock.setblocking(False)
            with self.lock:
                if not listening.hand(sock, address):
                    # As what is in the backlog of a socket that is closed.
                    sock.close()
                if listening.waiting >= listening.backlog:
                    listening.paused = True
                    self._watch_if(listening, False)
            if not self._watching:
                self._watching = True
                self.m0.call_later(RETAKE, self._retake)
            if listening.paused:
                return

    def _accept_failed(self, listening: Listening, exc: OSError) -> None:
        exhausted = exc.errno in _OUT_OF_RESOURCES
        context = {
            "message": f"socket.accept() {'out of system resource' if exhausted else 'failed'}",
            "exception": exc,
            "socket": trsock.TransportSocket(listening.sock),
        }
        with self.lock:
            share = next((share for share in listening.shares if share.serving is not None), None)
        if share is not None:
            with contextlib.suppress(RuntimeError):
                share.loop.call_soon_threadsafe(share.loop.call_exception_handler, context)
        if exhausted:
            listening.retry = self.m0.call_later(ACCEPT_RETRY_DELAY, self._accept_again, listening)
            self.watch(listening)

    def _accept_again(self, listening: Listening) -> None:
        listening.retry = None
        self.watch(listening)

    def _retake(self) -> None:
        """Gives what waits too long for its loop to others that aren't behind."""
        now = time.monotonic()
        with self.lock:
            for listening in self._open:
                for share in list(listening.shares):
                    while share.stuck(now) and any(
                        other.serving is not None and not other.stuck(now)
                        for other in listening.shares
                        if other is not share
                    ):
                        handed = listening.take_back(share)
                        if not listening.hand(handed.sock, handed.address, share):
                            handed.sock.close()
            self._watching = any(listening.waiting for listening in self._open)
        if self._watching:
            self.m0.call_later(RETAKE, self._retake)
