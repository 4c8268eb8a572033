"""Arguments of loop methods that asyncio takes on some Pythons only and uvloop on all: taken on all here too.

A program written for uvloop, or for a newer Python, passes them; where asyncio takes one itself, its own code runs.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import socket
import stat
import sys
import warnings
from asyncio.log import logger
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

__all__ = ("ParametersMixin",)

_Method = TypeVar("_Method", bound=Callable[..., Any])


def _also(name: str) -> Callable[[_Method], _Method]:
    """The signature of asyncio's method of the same name, with one more keyword."""

    def sign(method: _Method) -> _Method:
        theirs = inspect.signature(getattr(asyncio.SelectorEventLoop, method.__name__))
        more = inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None)
        method.__signature__ = theirs.replace(  # type: ignore[attr-defined]
            parameters=[*theirs.parameters.values(), *([] if name in theirs.parameters else [more])]
        )
        return method

    return sign


class ParametersMixin(asyncio.SelectorEventLoop):
    """Gives a loop based on asyncio's unix selector loop the arguments of other Pythons."""

    # Python 3.8 deprecated it, 3.11 removed it.
    @_also("reuse_address")
    async def create_datagram_endpoint(self, protocol_factory: Any, *args: Any, **kwargs: Any) -> Any:
        """asyncio.loop.create_datagram_endpoint.

        ``reuse_address=True`` raises ValueError: with UDP, SO_REUSEADDR lets another process take the port over
        (bpo-37228). False is warned about.
        """
        if "reuse_address" in kwargs:
            if kwargs.pop("reuse_address"):
                raise ValueError(
                    "Passing `reuse_address=True` is no longer supported, as the usage of SO_REUSEPORT in UDP "
                    "poses a significant security concern."
                )
            warnings.warn("The *reuse_address* parameter has been deprecated.", DeprecationWarning, stacklevel=2)
        return await super().create_datagram_endpoint(protocol_factory, *args, **kwargs)

    if sys.version_info < (3, 13):

        @_also("cleanup_socket")
        async def create_unix_server(
            self, protocol_factory: Callable[[], asyncio.BaseProtocol], path: Any = None, **kwargs: Any
        ) -> asyncio.Server:
            """asyncio.loop.create_unix_server.

            ``cleanup_socket=True`` (default False, as before Python 3.13) unlinks the path when the server closes,
            unless another socket has taken its place.
            """
            cleanup = kwargs.pop("cleanup_socket", False)
            server: asyncio.Server = await super().create_unix_server(protocol_factory, path, **kwargs)
            if cleanup:
                for wrapped in server.sockets:
                    name = wrapped.getsockname()
                    # Not those without a name, nor those in the abstract namespace.
                    if isinstance(name, str) and name and not name.startswith("\0"):
                        self._unix_paths[wrapped.fileno()] = (name, os.stat(name).st_ino)
            return server

        @property
        def _unix_paths(self) -> dict[int, tuple[str, int]]:
            """By fd of the listening socket: its path, the path's inode."""
            paths: dict[int, tuple[str, int]] = self.__dict__.setdefault("_unix_paths_by_fd", {})
            return paths

        def _stop_serving(self, sock: socket.socket) -> None:
            path = self._unix_paths.pop(sock.fileno(), None)
            super()._stop_serving(sock)  # type: ignore[misc]
            if path is not None:
                self._unlink(*path)

        @staticmethod
        def _unlink(name: str, inode: int) -> None:
            try:
                found = os.stat(name)
                if found.st_ino == inode and stat.S_ISSOCK(found.st_mode):
                    os.unlink(name)
            except FileNotFoundError:
                pass
            except OSError as error:
                logger.error("Unable to clean up listening UNIX socket %r: %r", name, error)

    if sys.version_info >= (3, 13) and sys.version_info < (3, 13, 3):

        def create_task(
            self, coro: Coroutine[Any, Any, Any], *, name: Any = None, context: Any = None, **kwargs: Any
        ) -> asyncio.Task[Any]:
            """asyncio.loop.create_task, with the keywords of Python 3.13.3 (``eager_start``)."""
            task: asyncio.Task[Any]
            if not kwargs:
                task = super().create_task(coro, name=name, context=context)
            else:
                self._check_closed()
                factory = self.get_task_factory()
                if factory is not None:
                    task = factory(self, coro, name=name, context=context, **kwargs)
                else:
                    task = asyncio.Task(coro, loop=self, name=name, context=context, **kwargs)
            # Who calls is where it was created. asyncio's own frame is gone already.
            traceback = getattr(task, "_source_traceback", None)
            if traceback and traceback[-1].filename == __file__:
                del traceback[-1]
            return task
