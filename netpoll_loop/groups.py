"""Worker groups: `run(main, workers=N)` runs N loops, the Ps, on N threads of one process.

M0, the thread that calls `run`, runs no user's code. Its loop accepts for all (netpoll_loop.listeners), takes the
process's signals, and waits until the last worker has ended. Each worker thread runs its loop by an `asyncio.Runner`:
first `main`, then, until every `main` has ended, what others start on it; then the runner ends as in `asyncio.run`.

What M0 and the workers share is changed under the group's lock. What belongs to a loop is touched by its thread only,
and by others through `call_soon_threadsafe`. M0 never waits for a worker, so that workers may wait for M0.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import contextvars
import ctypes
import errno
import functools
import inspect
import os
import signal
import socket
import sys
import threading
import typing
from asyncio.log import logger
from collections.abc import Callable, Coroutine, Iterable

from netpoll_loop import listeners
from netpoll_loop.go import Go
from netpoll_loop.listeners import Listeners, Serving, Share, SharedServer, Tally
from netpoll_loop.loop import Loop

__all__ = ["Group", "WorkerLoop", "run_group"]

_T = typing.TypeVar("_T")
_R = typing.TypeVar("_R")

#: Seconds that a second Ctrl-C waits for a worker's callback before it interrupts it.
INTERRUPT_AFTER = 0.1


class _Handler(typing.NamedTuple):
    """What a loop has called for a signal."""

    callback: Callable[..., object]
    args: tuple[typing.Any, ...]
    context: contextvars.Context


class Worker:
    """One P of a group: its loop, the thread that runs it, and what has become of its `main`."""

    def __init__(self, group: Group, index: int, loop: WorkerLoop) -> None:
        self.group = group
        self.index = index
        self.loop = loop
        loop._worker = self
        self.thread = threading.Thread(target=self._run, name=f"netpoll_loop P{index}", daemon=True)
        #: Under the group's lock: pieces of work and accepted connections; the work itself.
        self.load = Tally()
        self.works: set[Go[typing.Any]] = set()
        self.shares: dict[int, Share] = {}
        self.alive = True
        #: How often each address was opened with port 0. The loop's.
        self.ephemeral: dict[typing.Hashable, int] = {}
        #: The loop's thread writes these, M0 reads them when it has ended.
        self.task: asyncio.Task[typing.Any] | None = None
        self.cancel_asked = False
        self.cancelled = False
        self.result: typing.Any = None
        self._interrupts = 0
        self._release = loop.create_future()

    # ---- any thread ---------------------------------------------------------------------------------

    def place(self, work: Go[typing.Any], context: contextvars.Context) -> None:
        """netpoll_loop.go.Worker.place."""
        self.group.place(work, context)

    def call(self, callback: Callable[..., object]) -> None:
        """Calls it on the loop, if that isn't closed."""
        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(callback)

    # ---- the loop's callbacks --------------------------------------------------------------------------

    def cancel(self) -> None:
        """Cancels `main`."""
        self.cancel_asked = True
        if self.task is not None:
            self.task.cancel()

    def interrupt(self) -> None:
        self._interrupts += 1
        raise KeyboardInterrupt

    def release(self) -> None:
        """Every `main` has ended."""
        if not self._release.done():
            self._release.set_result(None)

    # ---- the thread ----------------------------------------------------------------------------------

    def _run(self) -> None:
        group = self.group
        main_ended = False
        try:
            with asyncio.Runner(debug=group.debug, loop_factory=lambda: self.loop) as runner:
                try:
                    self.result = runner.run(self._main())
                except asyncio.CancelledError as exc:
                    self.cancelled = True
                    if not self.cancel_asked:
                        group.failed(exc)
                except BaseException as exc:
                    group.failed(exc)
                main_ended = True
                group.main_ended()
                runner.run(self._released())
        except BaseException as exc:
            # Out of a callback, or out of the runner's end.
            group.failed(exc)
        finally:
            if not main_ended:
                group.main_ended()
            group.left(self)

    async def _main(self) -> typing.Any:
        if self.cancel_asked:
            raise asyncio.CancelledError
        self.task = asyncio.current_task()
        try:
            coroutine = self.group.main()
            if not asyncio.iscoroutine(coroutine):
                raise ValueError(f"a coroutine was expected, got {coroutine!r}")
            return await coroutine
        finally:
            self.task = None

    async def _released(self) -> None:
        await self._release


class Group:
    """The workers of one `run`, seen from M0 and from all of them."""

    def __init__(
        self,
        main: Callable[[], Coroutine[typing.Any, typing.Any, typing.Any]],
        workers: int,
        debug: bool | None,
        options: dict[str, typing.Any],
    ) -> None:
        self.main = main
        self.debug = debug
        # Reentrant, for finalizers that call go().
        self.lock = threading.RLock()
        self.m0 = Loop("inline", run_on="caller")
        self.listeners = Listeners(self.m0, self.lock)
        self.workers: list[Worker] = []
        self._failures: list[BaseException] = []
        self._mains = workers
        self._running = workers
        self._finished = self.m0.create_future()
        self._interrupts = 0
        self._turn = 0
        #: M0's: by signal and loop, what is called there.
        self._signals: dict[int, dict[WorkerLoop, _Handler]] = {}
        try:
            for index in range(workers):
                self.workers.append(Worker(self, index, WorkerLoop(**options)))
        except BaseException:
            self._close()
            raise

    def _close(self) -> None:
        for worker in self.workers:
            if worker.thread.ident is None:
                worker.loop.close()
        self.listeners.close()
        self.m0.close()

    # ---- M0 -----------------------------------------------------------------------------------------

    def run(self) -> list[typing.Any]:
        """Runs `main` on each worker; their results, or what is to be raised."""
        handler = self._install_sigint()
        try:
            self._start_threads()
            while self._running:
                try:
                    self.m0.run_until_complete(self._finished)
                except BaseException as exc:
                    # Out of a signal handler.
                    if self._interrupts > 2:
                        # Workers that can't be interrupted end with the process.
                        raise
                    self.failed(exc)
            for worker in self.workers:
                if worker.thread.ident is not None:
                    worker.thread.join()
        finally:
            if handler is not None and signal.getsignal(signal.SIGINT) is handler:
                signal.signal(signal.SIGINT, signal.default_int_handler)
            self._close()
        return self._outcome()

    def _start_threads(self) -> None:
        for index, worker in enumerate(self.workers):
            try:
                worker.thread.start()
            except BaseException as exc:
                self.failed(exc)
                for rest in self.workers[index:]:
                    rest.loop.close()
                    self.main_ended()
                    self.left(rest)
                return

    def _outcome(self) -> list[typing.Any]:
        failures: list[BaseException] = []
        for exc in self._failures:
            if not any(exc is other for other in failures):
                failures.append(exc)
        for exc in failures:
            if isinstance(exc, (KeyboardInterrupt, SystemExit)):
                raise exc
        errors = [exc for exc in failures if not isinstance(exc, asyncio.CancelledError)]
        if len(errors) > 1:
            raise BaseExceptionGroup("unhandled errors in a worker group", errors)
        if errors or failures:
            raise (errors or failures)[0]
        if self._interrupts and any(worker.cancelled for worker in self.workers):
            raise KeyboardInterrupt
        return [worker.result for worker in self.workers]

    def _install_sigint(self) -> Callable[..., object] | None:
        """As asyncio.Runner: only in the main thread, and only if nobody else handles it."""
        if (
            threading.current_thread() is not threading.main_thread()
            or signal.getsignal(signal.SIGINT) is not signal.default_int_handler
        ):
            return None
        handler = self._on_sigint
        try:
            signal.signal(signal.SIGINT, handler)
        except ValueError:
            return None
        return handler

    def _on_sigint(self, signum: int, frame: typing.Any) -> None:
        self._interrupts += 1
        if self._interrupts > 2:
            raise KeyboardInterrupt
        self.m0.call_soon_threadsafe(self._interrupted, self._interrupts)

    def _interrupted(self, count: int) -> None:
        if count == 1:
            self._cancel_all()
            return
        for worker in self.workers:
            worker.call(worker.interrupt)
        self.m0.call_later(INTERRUPT_AFTER, self._interrupt_busy)

    def _interrupt_busy(self) -> None:
        """Those whose callback goes on: as in a main thread, between two bytecodes."""
        for worker in self.workers:
            ident = worker.loop._thread_id
            if worker.alive and not worker._interrupts and ident is not None and ident > 0:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(ident), ctypes.py_object(KeyboardInterrupt))

    def _cancel_all(self) -> None:
        for worker in self.workers:
            worker.call(worker.cancel)

    # ---- any thread ----------------------------------------------------------------------------------

    def place(self, work: Go[typing.Any], context: contextvars.Context) -> None:
        """Starts the work on the loop that has the least to do; in turn among equals."""
        with self.lock:
            while True:
                count = len(self.workers)
                turn, best = 0, None
                for i in range(count):
                    worker = self.workers[(self._turn + i) % count]
                    if worker.alive and (best is None or worker.load.value() < best.load.value()):
                        turn, best = self._turn + i + 1, worker
                if best is None:
                    raise RuntimeError("Event loop is closed")
                best.works.add(work)
                best.load.add()
                try:
                    work._start_on(best.loop, context, functools.partial(_work_done, best))
                except RuntimeError:
                    _work_done(best, work)
                    if not best.loop.is_closed():
                        raise
                    best.alive = False
                else:
                    self._turn = turn % count
                    return

    def failed(self, exc: BaseException) -> None:
        """A `main` has failed, or a callback asks the process to end: the others are cancelled."""
        with self.lock:
            self._failures.append(exc)
        self._cancel_all()

    def main_ended(self) -> None:
        with self.lock:
            self._mains -= 1
            last = self._mains == 0
        if last:
            for worker in self.workers:
                worker.call(worker.release)

    def left(self, worker: Worker) -> None:
        """The worker's loop is closed."""
        if not worker.loop.is_closed():
            # The runner's end was interrupted before that.
            worker.loop.close()
        with self.lock:
            worker.alive = False
            works = list(worker.works)
        for share in list(worker.shares.values()):
            self.listeners.abandon(share)
        worker.shares.clear()
        for work in works:
            work._abandon()
        self._on_m0(functools.partial(self._worker_left, worker))

    def _worker_left(self, worker: Worker) -> None:
        for sig in list(self._signals):
            self._remove_signal(worker.loop, sig)
        self._running -= 1
        if not self._running:
            self._finished.set_result(None)

    def _on_m0(self, callback: Callable[[], object]) -> None:
        with contextlib.suppress(RuntimeError):
            self.m0.call_soon_threadsafe(callback)

    # ---- signals --------------------------------------------------------------------------------------

    def ask_m0(self, function: Callable[[], _R]) -> _R:
        """Calls function() on M0, and returns its result. Raises what it raises."""
        answer: concurrent.futures.Future[_R] = concurrent.futures.Future()

        def errand() -> None:
            try:
                answer.set_result(function())
            except BaseException as exc:
                answer.set_exception(exc)

        self.m0.call_soon_threadsafe(errand)
        return answer.result()

    def add_signal(
        self, loop: WorkerLoop, sig: int, callback: Callable[..., object], args: tuple[typing.Any, ...]
    ) -> None:
        context = contextvars.copy_context()

        def add() -> None:
            handlers = self._signals.get(sig)
            if handlers is None:
                self.m0.add_signal_handler(sig, self._signalled, sig)
                handlers = self._signals[sig] = {}
            handlers[loop] = _Handler(callback, args, context)

        self.ask_m0(add)

    def remove_signal(self, loop: WorkerLoop, sig: int) -> bool:
        return self.ask_m0(lambda: self._remove_signal(loop, sig))

    def _remove_signal(self, loop: WorkerLoop, sig: int) -> bool:
        handlers = self._signals.get(sig)
        if handlers is None or handlers.pop(loop, None) is None:
            # M0's loop checks the number.
            return handlers is None and self.m0.remove_signal_handler(sig)
        if not handlers:
            del self._signals[sig]
            self.m0.remove_signal_handler(sig)
        return True

    def _signalled(self, sig: int) -> None:
        for loop, handler in list(self._signals.get(sig, {}).items()):
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(handler.callback, *handler.args, context=handler.context)


def _work_done(worker: Worker, work: Go[typing.Any]) -> None:
    worker.works.discard(work)
    worker.load.drop()


class WorkerLoop(Loop):
    """A loop of a worker group: what it listens on is shared, and M0 takes the signals."""

    _worker: Worker

    def add_signal_handler(self, sig: int, callback: typing.Any, *args: typing.Any) -> None:  # type: ignore[override]
        """asyncio.loop.add_signal_handler: the callback runs on this loop, as do those of others on theirs.

        Raises RuntimeError, too, when `run` was not called by the main thread.
        """
        if asyncio.iscoroutine(callback) or inspect.iscoroutinefunction(callback):
            raise TypeError("coroutines cannot be used with add_signal_handler()")
        self._check_closed()
        self._worker.group.add_signal(self, sig, callback, args)

    def remove_signal_handler(self, sig: int) -> bool:
        """asyncio.loop.remove_signal_handler, of this loop's handler; others keep theirs."""
        return self._worker.group.remove_signal(self, sig)

    async def create_server(
        self,
        protocol_factory: Callable[[], asyncio.BaseProtocol],
        host: str | Iterable[str] | None = None,
        port: typing.Any = None,
        *,
        family: int = socket.AF_UNSPEC,
        flags: int = socket.AI_PASSIVE,
        sock: socket.socket | None = None,
        backlog: int = 100,
        ssl: typing.Any = None,
        reuse_address: bool | None = None,
        reuse_port: bool | None = None,
        keep_alive: bool | None = None,
        ssl_handshake_timeout: float | None = None,
        ssl_shutdown_timeout: float | None = None,
        start_serving: bool = True,
    ) -> asyncio.Server:
        """asyncio.loop.create_server. An address that several loops of the group open is one socket.

        The socket's options are those of the first. With port 0, the n-th time that each loop opens the address is the
        same port. Each server is closed for itself, and the socket with the last.
        """
        _check_tls(ssl, ssl_handshake_timeout, ssl_shutdown_timeout)
        live = Tally()
        shares: list[Share] = []
        try:
            if host is not None or port is not None:
                if sock is not None:
                    raise ValueError("host/port and sock can not be specified at the same time")
                options = [(socket.SO_REUSEADDR, 1)] if reuse_address or reuse_address is None else []
                options += [(socket.SO_REUSEPORT, 1)] if reuse_port else []
                options += [(socket.SO_KEEPALIVE, 1)] if keep_alive else []
                found = await self._resolve(host, port, family, flags)
                for info in found:
                    with contextlib.suppress(_CannotBind):
                        shares.append(self._share_address(info, options, live))
                if not shares:
                    raise OSError(f"could not bind on any address out of {[info[4] for info in found]!r}")
            elif sock is None:
                raise ValueError("Neither host/port nor sock were specified")
            elif sock.type != socket.SOCK_STREAM:
                raise ValueError(f"A Stream Socket was expected, got {sock!r}")
            else:
                _check_plain(sock)
                shares.append(self._share_given(sock, live))
            return await self._serve(
                shares,
                live,
                protocol_factory,
                (ssl, backlog, ssl_handshake_timeout, ssl_shutdown_timeout),
                start_serving,
            )
        except BaseException:
            self._drop_shares(shares)
            raise

    async def create_unix_server(  # type: ignore[override]
        self,
        protocol_factory: Callable[[], asyncio.BaseProtocol],
        path: str | bytes | os.PathLike[str] | None = None,
        *,
        sock: socket.socket | None = None,
        backlog: int = 100,
        ssl: typing.Any = None,
        ssl_handshake_timeout: float | None = None,
        ssl_shutdown_timeout: float | None = None,
        start_serving: bool = True,
        cleanup_socket: bool = sys.version_info >= (3, 13),
    ) -> asyncio.Server:
        """asyncio.loop.create_unix_server. A path that several loops of the group open is one socket."""
        _check_tls(ssl, ssl_handshake_timeout, ssl_shutdown_timeout)
        live = Tally()
        shares: list[Share] = []
        try:
            if path is not None:
                if sock is not None:
                    raise ValueError("path and sock can not be specified at the same time")
                where = os.fspath(path)
                shares.append(
                    self._worker.group.listeners.share(
                        self, listeners.unix_key(where), live, where, lambda: listeners.bind_unix(where)
                    )
                )
            elif sock is None:
                raise ValueError("path was not specified, and no sock specified")
            elif sock.family != socket.AF_UNIX or sock.type != socket.SOCK_STREAM:
                raise ValueError(f"A UNIX Domain Stream Socket was expected, got {sock!r}")
            else:
                _check_plain(sock)
                shares.append(self._share_given(sock, live))
            if cleanup_socket:
                shares[0].listening.unlink = shares[0].listening.unlink or listeners.inode_of(shares[0].sock)
            return await self._serve(
                shares,
                live,
                protocol_factory,
                (ssl, backlog, ssl_handshake_timeout, ssl_shutdown_timeout),
                start_serving,
            )
        except BaseException:
            self._drop_shares(shares)
            raise

    async def _resolve(self, host: typing.Any, port: typing.Any, family: int, flags: int) -> list[typing.Any]:
        """The addresses, each once."""
        hosts: list[typing.Any]
        if host == "":
            hosts = [None]
        elif isinstance(host, str) or not isinstance(host, Iterable):
            hosts = [host]
        else:
            hosts = list(host)
        found: dict[typing.Any, None] = {}
        for each in hosts:
            infos = await self.getaddrinfo(each, port, family=family, type=socket.SOCK_STREAM, flags=flags)
            if not infos:
                raise OSError(f"getaddrinfo({each!r}) returned empty list")
            found.update(dict.fromkeys(infos))
        return list(found)

    def _share_address(self, info: typing.Any, options: list[tuple[int, int]], live: Tally) -> Share:
        family, kind, proto, _, address = info

        def make() -> socket.socket:
            try:
                return listeners.bind(family, kind, proto, address, options)
            except OSError as exc:
                # The family isn't there, or isn't enabled (bpo-30945).
                if exc.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT, errno.ESOCKTNOSUPPORT):
                    if self.get_debug():
                        logger.warning("create_server() failed to bind %r: %s", address, exc)
                    raise _CannotBind from exc
                raise

        key: tuple[typing.Hashable, ...] = (family, address)
        if address[1] == 0:
            count = self._worker.ephemeral[key] = self._worker.ephemeral.get(key, 0) + 1
            key = (*key, count)
        return self._worker.group.listeners.share(self, key, live, address, make)

    def _share_given(self, sock: socket.socket, live: Tally) -> Share:
        """Of the same socket, whichever object or duplicate each loop was given."""
        key = ("socket", os.fstat(sock.fileno()).st_ino)
        sock.setblocking(False)
        share = self._worker.group.listeners.share(self, key, live, sock.getsockname(), sock.dup)
        share.listening.given.append(sock)
        return share

    async def _serve(
        self,
        shares: list[Share],
        live: Tally,
        protocol_factory: Callable[[], asyncio.BaseProtocol],
        options: tuple[typing.Any, ...],
        start_serving: bool,
    ) -> asyncio.Server:
        server = SharedServer(self, [share.sock for share in shares], live, protocol_factory, *options)
        for share in shares:
            self._worker.shares[share.sock.fileno()] = share
        if start_serving:
            await server.start_serving()
        if self.get_debug():
            logger.info("%r is serving", server)
        return server

    def _drop_shares(self, shares: list[Share]) -> None:
        for share in shares:
            fd = share.sock.fileno()
            if fd >= 0:
                self._worker.shares.pop(fd, None)
                self._worker.group.listeners.stop(share)

    def _start_serving(
        self,
        protocol_factory: Callable[[], asyncio.BaseProtocol],
        sock: socket.socket,
        sslcontext: typing.Any = None,
        server: typing.Any = None,
        backlog: int = 100,
        ssl_handshake_timeout: float | None = None,
        ssl_shutdown_timeout: float | None = None,
    ) -> None:
        share = self._worker.shares[sock.fileno()]
        options = {
            "ssl_handshake_timeout": ssl_handshake_timeout,
            "ssl_shutdown_timeout": ssl_shutdown_timeout,
        }
        serving = Serving(protocol_factory, sslcontext, server, options, contextvars.copy_context())
        self._worker.group.listeners.start(share, serving, backlog)

    def _stop_serving(self, sock: socket.socket) -> None:
        share = self._worker.shares.pop(sock.fileno(), None)
        if share is not None:
            self._worker.group.listeners.stop(share)
        else:
            sock.close()


class _CannotBind(Exception):
    """There is no such family or address here; others of the same name may do."""


def _check_tls(ssl: typing.Any, handshake_timeout: float | None, shutdown_timeout: float | None) -> None:
    if isinstance(ssl, bool):
        raise TypeError("ssl argument must be an SSLContext or None")
    if handshake_timeout is not None and not ssl:
        raise ValueError("ssl_handshake_timeout is only meaningful with ssl")
    if shutdown_timeout is not None and not ssl:
        raise ValueError("ssl_shutdown_timeout is only meaningful with ssl")


def _check_plain(sock: socket.socket) -> None:
    import ssl

    if isinstance(sock, ssl.SSLSocket):
        raise TypeError("Socket cannot be of type SSLSocket")


def run_group(
    main: Callable[[], Coroutine[typing.Any, typing.Any, _T]],
    workers: int,
    *,
    debug: bool | None,
    options: dict[str, typing.Any],
) -> list[_T]:
    """Runs `main` on each of `workers` loops, made with `options`; see netpoll_loop.run."""
    return Group(main, workers, debug, options).run()
