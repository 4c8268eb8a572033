"""Child processes of a loop: each is watched through a pidfd, by the loop itself.

A pidfd becomes readable when its process has ended (pidfd_open(2)), so a child costs one file descriptor and no thread,
no SIGCHLD handler, no child watcher of a policy, and loops outside the main thread need nothing special. Everything
else (Popen, pipes, transports) is asyncio's. Where pidfds don't work (Linux before 5.3, or forbidden by seccomp),
asyncio's own way is used.
"""

import asyncio
import contextlib
import functools
import os
import sys
import threading
import typing
import warnings
from asyncio.log import logger
from asyncio.unix_events import _UnixSubprocessTransport  # type: ignore[attr-defined]
from collections.abc import Callable

__all__ = ["SubprocessMixin", "pidfd_works"]


@functools.cache
def pidfd_works() -> bool:
    """Whether this process may open pidfds; asked once, of the process itself."""
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (AttributeError, OSError):
        return False
    return True


class _Child:
    """One watched child: owns its pidfd until the child has ended, or the loop has dropped the reader.

    `callback` gets the exit code (negative: the signal), or None when somebody else has waited for the child, or
    SIGCHLD is ignored: its status is lost then. It runs on the loop's thread, in the callback that has reaped the
    child: no turn comes in between in which somebody could send a signal to a number that is free again
    (python/cpython issue 127049).
    """

    __slots__ = ("_callback", "_loop", "_pid", "_pidfd")

    def __init__(self, loop: typing.Any, pid: int, callback: Callable[[int | None], object]) -> None:
        self._loop = loop
        self._pid = pid
        self._callback = callback
        self._pidfd = -1
        try:
            self._pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            loop.call_soon(callback, None)
        except OSError:
            # Out of descriptors, with a child that runs already: better a thread than a child nobody waits for.
            threading.Thread(target=self._wait, name=f"netpoll_loop-waitpid-{pid}", daemon=True).start()
        else:
            loop._add_reader(self._pidfd, self._ready)

    def __del__(self) -> None:
        if self._pidfd >= 0:
            os.close(self._pidfd)

    def _ready(self) -> None:
        pid = None
        try:
            pid, returncode = self._reap(os.WNOHANG)
        finally:
            if pid != 0:
                self._loop._remove_reader(self._pidfd)
                os.close(self._pidfd)
                self._pidfd = -1
        if pid != 0:
            self._callback(returncode)

    def _reap(self, options: int) -> tuple[int, int | None]:
        """The pid, 0 if it goes on, and the exit code, None if somebody else has read it."""
        try:
            pid, status = os.waitpid(self._pid, options)
        except ChildProcessError:
            return self._pid, None
        return pid, os.waitstatus_to_exitcode(status) if pid else None

    def _wait(self) -> None:
        # Without reaping it: that is the loop's.
        with contextlib.suppress(ChildProcessError):
            os.waitid(os.P_PID, self._pid, os.WEXITED | os.WNOWAIT)
        try:
            self._loop.call_soon_threadsafe(self._waited)
        except RuntimeError:
            self._reap(0)
            logger.warning("Loop %r that handles pid %r is closed", self._loop, self._pid)

    def _waited(self) -> None:
        self._callback(self._reap(0)[1])


def _lost(pid: int) -> int:
    logger.warning("child process pid %d exit status already read:  will report returncode 255", pid)
    return 255


if sys.version_info < (3, 14):
    # catch_warnings() changes the whole process, and the loops of a group have children at the same time.
    _filters_lock = threading.Lock()

    def _watcher_takes_all() -> bool:
        """Whether the child watcher reaps every child of the process, so that only it knows their exit statuses.

        Any other watcher that the user has set isn't used, yet asyncio documents what an inactive one does.
        """
        with _filters_lock, warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            watcher = asyncio.get_child_watcher()
        with watcher as entered:
            # 3.11 asks what the context manager gives, later versions ask the watcher.
            if not (entered if sys.version_info < (3, 12) else watcher).is_active():
                raise RuntimeError("asyncio.get_child_watcher() is not activated, subprocess support is not installed.")
        return isinstance(watcher, asyncio.FastChildWatcher)


class SubprocessMixin(asyncio.SelectorEventLoop):
    """Gives a loop based on asyncio's unix selector loop its children. Uses `_add_reader` and `_remove_reader`."""

    async def _make_subprocess_transport(
        self,
        protocol: asyncio.SubprocessProtocol,
        args: typing.Any,
        shell: bool,
        stdin: typing.Any,
        stdout: typing.Any,
        stderr: typing.Any,
        bufsize: int,
        extra: typing.Any = None,
        **kwargs: typing.Any,
    ) -> asyncio.SubprocessTransport:
        if not pidfd_works() or (sys.version_info < (3, 14) and _watcher_takes_all()):
            return await super()._make_subprocess_transport(  # type: ignore[misc,no-any-return]
                protocol, args, shell, stdin, stdout, stderr, bufsize, extra=extra, **kwargs
            )
        waiter = self.create_future()
        transport = _UnixSubprocessTransport(
            self, protocol, args, shell, stdin, stdout, stderr, bufsize, waiter=waiter, extra=extra, **kwargs
        )
        _Child(self, transport.get_pid(), functools.partial(self._child_exited, transport))
        try:
            await waiter
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException:
            transport.close()
            # Cancelled again: the child is still waited for, as in 3.14.
            await asyncio.shield(transport._wait())
            raise
        return typing.cast(asyncio.SubprocessTransport, transport)

    def _child_exited(self, transport: typing.Any, returncode: int | None) -> None:
        if returncode is None:
            # transport.close() polls the Popen, which may have been the one that read the status.
            returncode = transport._proc.returncode
        if returncode is None:
            returncode = _lost(transport.get_pid())
        transport._process_exited(returncode)


if sys.version_info < (3, 12):

    class PidfdChildWatcher(asyncio.PidfdChildWatcher):
        """3.11's pidfd watcher serves only the loop that it was attached to; 3.12's, and this one, the running loop."""

        def is_active(self) -> bool:
            return True

        def attach_loop(self, loop: asyncio.AbstractEventLoop | None) -> None:
            pass

        def add_child_handler(  # type: ignore[override]
            self, pid: int, callback: Callable[..., object], *args: typing.Any
        ) -> None:
            def exited(returncode: int | None) -> None:
                callback(pid, _lost(pid) if returncode is None else returncode, *args)

            _Child(asyncio.get_running_loop(), pid, exited)

        def remove_child_handler(self, pid: int) -> bool:
            return True  # as in 3.12: nobody calls it
