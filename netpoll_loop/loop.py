"""The event loop: the C core joined to asyncio's unix event loop.

What runs for each callback or packet is in ``_core``; what runs once for each
connection or loop is inherited from asyncio (create_connection, Server,
start_tls, executor, async generators, debug) or stands here.  The worker
thread, the one that runs the loop, is the only one that may call it, but for
the thread-safe calls.
"""

from __future__ import annotations

import asyncio
import contextvars
import selectors
import signal
import socket
import sys
import threading
import weakref
from asyncio import events as _events
from asyncio.log import logger
from collections.abc import Mapping
from typing import Any

import netpoll_loop._core.entries  # noqa: F401  (gives the scheduler's hottest methods their second entries)
from netpoll_loop import forking
from netpoll_loop._core.datagram import DatagramTransport
from netpoll_loop._core.handoff import MAX_WORKERS, HandoffLoop
from netpoll_loop._core.literal import answer_on
from netpoll_loop._core.stream import StreamTransport
from netpoll_loop._core.tls import SSLProtocol
from netpoll_loop.connecting import ConnectMixin
from netpoll_loop.dns import resolve_literal
from netpoll_loop.options import (
    resolve_max_workers,
    resolve_netpoller,
    resolve_run_on,
    resolve_spin_us,
    resolve_stall_report,
)
from netpoll_loop.parameters import ParametersMixin
from netpoll_loop.stalls import StallMonitor
from netpoll_loop.subprocesses import SubprocessMixin

__all__ = ("Loop",)


class _EngineSelector(selectors.BaseSelector):
    """The engine in the shape of a selector, for asyncio's own code and its reprs.

    Registrations are the loop's readers and writers: ``data`` is a pair of handles.
    """

    def __init__(self, loop: Loop) -> None:
        self._loop = weakref.ref(loop)

    def _core(self) -> Loop:
        loop = self._loop()
        if loop is None:
            raise RuntimeError("the loop of this selector is gone")
        return loop

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        reader, writer = data
        loop = self._core()
        if events & selectors.EVENT_READ:
            loop._add_reader(fileobj, reader._callback, *reader._args)
        if events & selectors.EVENT_WRITE:
            loop._add_writer(fileobj, writer._callback, *writer._args)
        return self.get_key(fileobj)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        key = self.get_key(fileobj)
        loop = self._core()
        loop._remove_reader(fileobj)
        loop._remove_writer(fileobj)
        return key

    def modify(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        self.unregister(fileobj)
        return self.register(fileobj, events, data)

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        raise NotImplementedError("the loop polls its engine itself")

    def close(self) -> None:
        pass

    def get_key(self, fileobj: Any) -> selectors.SelectorKey:
        fd = fileobj if isinstance(fileobj, int) else fileobj.fileno()
        loop = self._loop()
        registered = None if loop is None else loop._registered(fd)
        if registered is None:
            raise KeyError(f"{fileobj!r} is not registered")
        events, data = registered
        return selectors.SelectorKey(fileobj, fd, events, data)

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        loop = self._loop()
        if loop is None:
            return {}
        return {fd: self.get_key(fd) for fd in loop._registered_fds() if loop._registered(fd) is not None}


class _Transports(weakref.WeakValueDictionary[int, Any]):
    """``loop._transports``: ours are looked up in the core, asyncio's own are kept here."""

    def __init__(self, loop: Loop) -> None:
        super().__init__()
        self._loop = weakref.ref(loop)

    def _ours(self, fd: int) -> Any:
        loop = self._loop()
        return None if loop is None else loop._stream_transport(fd)

    def __getitem__(self, fd: int) -> Any:
        transport = self._ours(fd)
        if transport is None:
            return super().__getitem__(fd)
        if transport._hidden:
            raise KeyError(fd)
        return transport

    def get(self, fd: int, default: Any = None) -> Any:
        transport = self._ours(fd)
        if transport is None:
            return super().get(fd, default) if len(self) else default
        return default if transport._hidden else transport

    def __setitem__(self, fd: int, transport: Any) -> None:
        if type(transport) is StreamTransport:
            transport._hidden = False
        else:
            super().__setitem__(fd, transport)

    def __delitem__(self, fd: int) -> None:
        transport = self._ours(fd)
        if transport is not None:
            transport._hidden = True
        else:
            super().__delitem__(fd)


class Loop(HandoffLoop, ConnectMixin, ParametersMixin, SubprocessMixin):
    """An asyncio event loop over the netpoller.

    ``netpoller`` is "auto", "dedicated" or "inline"; None takes the environment
    variable NETPOLL_LOOP_NETPOLLER, or "auto".  ``run_on`` is "caller" or
    "worker"; None takes NETPOLL_LOOP_RUN_ON, or "caller".  ``max_workers``
    bounds the threads that blocking() may use, 64 if None.  ``stall_report``:
    seconds after which a callback that still runs is reported, in debug mode
    ``slow_callback_duration``; None: only there.  ``spin_us``: microseconds
    that an idle poller polls before it blocks; None takes NETPOLL_LOOP_SPIN_US,
    or 0.  Raises ValueError for another
    value, OSError when the engine can't be opened.
    """

    def __init__(
        self,
        netpoller: str | None = None,
        *,
        run_on: str | None = None,
        max_workers: int | None = None,
        stall_report: float | None = None,
        spin_us: int | None = None,
    ) -> None:
        # Whatever fails below, __del__ finds a closed loop.
        self._closed = True
        self._set_workers(resolve_run_on(run_on) == "worker", resolve_max_workers(max_workers, MAX_WORKERS))
        self._stall_report = resolve_stall_report(stall_report)
        self._open_engine(resolve_netpoller(netpoller), resolve_spin_us(spin_us) * 1000)
        self._old_wakeup_fd = None
        super().__init__(_EngineSelector(self))
        self._transports = _Transports(self)
        forking.register(self)

    # ---- running ----------------------------------------------------------------

    @property
    def _nest_patched(self) -> bool:
        raise RuntimeError(
            "nest_asyncio can't patch netpoll_loop.Loop: its turn is not asyncio's _run_once. "
            "Run the code on asyncio's own loop, or without nested run_until_complete()"
        )

    def _run_forever_setup(self) -> None:
        # First what can fail: the netpoller thread of "dedicated".
        self._enter_run()
        self._set_coroutine_origin_tracking(self._debug)
        self._old_agen_hooks = sys.get_asyncgen_hooks()
        self._thread_id = threading.get_ident()
        sys.set_asyncgen_hooks(firstiter=self._asyncgen_firstiter_hook, finalizer=self._asyncgen_finalizer_hook)
        if threading.current_thread() is threading.main_thread():
            # For the whole run: a signal wakes the poller, whichever thread it lands on.
            ours = self._csock.fileno()
            self._old_wakeup_fd = -1
            former = signal.set_wakeup_fd(ours, warn_on_full_buffer=False)
            # Ours, if a handler that is installed has kept it since the last run: nothing to go back to.
            self._old_wakeup_fd = -1 if former == ours else former
        _events._set_running_loop(self)
        self._watch_for_stalls()

    def _watch_for_stalls(self) -> None:
        if self._debug or self._stall_report is not None:
            if self._stall_monitor is None:
                self._stall_monitor = StallMonitor(self, self._stall_report)
            self._stall_monitor.start()
        elif self._stall_monitor is not None:
            self._stall_monitor.stop()

    def set_debug(self, enabled: bool) -> None:
        """asyncio.loop.set_debug; it also turns stall reports on or off."""
        super().set_debug(enabled)
        if self.is_running():
            self._watch_for_stalls()

    def _run_forever_cleanup(self) -> None:
        """May have to begin anew, where Ctrl-C has come."""
        self._set_coroutine_origin_tracking(False)
        if self._old_agen_hooks is not None:
            sys.set_asyncgen_hooks(*self._old_agen_hooks)
            self._old_agen_hooks = None
        if self._old_wakeup_fd is not None:
            # With handlers installed, signals between two runs wait for the next one.
            if not self._signal_handlers:
                self._restore_wakeup_fd(self._old_wakeup_fd)
            self._old_wakeup_fd = None
        # The last: it waits for a thread, and Ctrl-C can come meanwhile.
        if self._stall_monitor is not None:
            self._stall_monitor.stop()

    @staticmethod
    def _restore_wakeup_fd(fd: int) -> None:
        try:
            signal.set_wakeup_fd(fd)
        except (ValueError, OSError) as exc:
            logger.info("set_wakeup_fd(%d) failed: %s", fd, exc)
            # Whatever it was is gone. Ours must not stay: its number will be another file's.
            signal.set_wakeup_fd(-1)

    def run_forever(self) -> None:
        """Runs until stop() is called."""
        self._check_closed()
        self._check_running()
        self._run_prepared()

    def close(self) -> None:
        """asyncio.loop.close: drops what is queued; joins the netpoller thread."""
        if self.is_running():
            raise RuntimeError("Cannot close a running event loop")
        if self.is_closed():
            return
        self._close_core()
        super().close()

    def add_signal_handler(self, sig: int, callback: Any, *args: Any) -> None:  # type: ignore[override]
        """asyncio.loop.add_signal_handler; from a worker thread too, while the main thread serves signals."""
        if self._m0_serves:
            context = contextvars.copy_context()
            self._on_m0(lambda: context.run(super(Loop, self).add_signal_handler, sig, callback, *args))
        else:
            super().add_signal_handler(sig, callback, *args)

    def remove_signal_handler(self, sig: int) -> bool:
        """asyncio.loop.remove_signal_handler; from a worker thread too, while the main thread serves signals."""
        return self._on_m0(lambda: self._remove_signal(sig)) if self._m0_serves else self._remove_signal(sig)

    def _remove_signal(self, sig: int) -> bool:
        removed = super().remove_signal_handler(sig)
        if removed and not self._signal_handlers and self.is_running() and self._old_wakeup_fd is not None:
            # The base class has reset it to -1; this run still needs it.
            self._restore_wakeup_fd(self._csock.fileno())
        return removed

    def _stop_serving(self, sock: socket.socket) -> None:
        self._stop_listening(sock)
        # Closes the socket, and from 3.13 on unlinks the path of a Unix one.
        super()._stop_serving(sock)

    # ---- transports -----------------------------------------------------------------

    def _make_socket_transport(
        self,
        sock: socket.socket,
        protocol: asyncio.BaseProtocol,
        waiter: asyncio.Future[Any] | None = None,
        *,
        extra: dict[str, Any] | None = None,
        server: Any = None,
    ) -> asyncio.Transport:
        self._ensure_fd_no_transport(sock)
        return StreamTransport(self, sock, protocol, waiter, extra, server)

    def _make_datagram_transport(
        self,
        sock: socket.socket,
        protocol: asyncio.DatagramProtocol,
        address: Any = None,
        waiter: asyncio.Future[Any] | None = None,
        extra: dict[str, Any] | None = None,
    ) -> asyncio.DatagramTransport:
        self._ensure_fd_no_transport(sock)
        return DatagramTransport(self, sock, protocol, address, waiter, extra)

    def _make_ssl_transport(
        self,
        rawsock: socket.socket,
        protocol: asyncio.BaseProtocol,
        sslcontext: Any,
        waiter: Any = None,
        *,
        server_side: bool = False,
        server_hostname: str | None = None,
        extra: dict[str, Any] | None = None,
        server: Any = None,
        ssl_handshake_timeout: Any = None,
        ssl_shutdown_timeout: Any = None,
        **kwargs: Any,
    ) -> asyncio.Transport:
        self._ensure_fd_no_transport(rawsock)
        ssl_protocol = SSLProtocol(
            self,
            protocol,
            sslcontext,
            waiter,
            server_side,
            server_hostname,
            ssl_handshake_timeout=ssl_handshake_timeout,
            ssl_shutdown_timeout=ssl_shutdown_timeout,
            **kwargs,
        )
        StreamTransport(self, rawsock, ssl_protocol, extra=extra, server=server)
        transport: asyncio.Transport = ssl_protocol._app_transport
        return transport

    # ---- names ------------------------------------------------------------------------

    async def getaddrinfo(
        self,
        host: Any,
        port: Any,
        *,
        family: int = 0,
        type: int = 0,
        proto: int = 0,
        flags: int = 0,
    ) -> list[Any]:
        """asyncio.loop.getaddrinfo; address literals are answered without a thread."""
        answer = answer_on(self, host, port, family, type, proto, flags)
        if answer is not None:
            return answer
        self._check_closed()
        if not self._debug:
            answer = resolve_literal(host, port, family, type, proto, flags)
            if answer is not None:
                return answer
        return await super().getaddrinfo(host, port, family=family, type=type, proto=proto, flags=flags)
