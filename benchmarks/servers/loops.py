"""The event loops that can be compared: a table from a name to the way that loop is installed.

To add one, give its name, the package that its loop class lives in, and how to set it up.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import warnings
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from importlib import metadata
from typing import Any, TypeAlias, TypeVar

T = TypeVar("T")
Factory: TypeAlias = Callable[[], asyncio.AbstractEventLoop]


@dataclass(frozen=True)
class LoopKind:
    """A loop by its package, and what sets it up.

    ``set_up`` is called with the package's name and options of the loop; it may return a factory for
    ``asyncio.Runner``. If it returns None, the policy that it set makes the loop.
    """

    package: str
    set_up: Callable[[str, dict[str, Any]], Factory | None]
    #: The package of the loop's class, where that is another one.
    class_package: str | None = None

    def version(self) -> str | None:
        """The package's version; None for the standard library."""
        if self.package == "asyncio":
            return None
        try:
            return metadata.version(self.package)
        except metadata.PackageNotFoundError:  # built in place
            return getattr(importlib.import_module(self.package), "__version__", None)


def _stock(package: str, options: dict[str, Any]) -> Factory | None:
    return None


def _policy(package: str, options: dict[str, Any]) -> Factory | None:
    """Through ``package.EventLoopPolicy``: the way that works without a change to the program."""
    module = importlib.import_module(package)
    if not hasattr(asyncio, "set_event_loop_policy"):  # gone in 3.16
        return lambda: module.new_event_loop(**options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        asyncio.set_event_loop_policy(module.EventLoopPolicy(**options))
    return None


def _factory(package: str, options: dict[str, Any]) -> Factory | None:
    """Through ``package.new_event_loop``."""
    module = importlib.import_module(package)
    return lambda: module.new_event_loop(**options)


def _class(package: str, options: dict[str, Any]) -> Factory | None:
    """By calling ``package.Loop``."""
    return lambda: importlib.import_module(package).Loop(**options)


def _fastnet_over(base: str | None) -> Callable[[str, dict[str, Any]], Factory | None]:
    """aiofastnet replaces the network methods of another loop."""

    def set_up(package: str, options: dict[str, Any]) -> Factory | None:
        factory: Factory = importlib.import_module("aiofastnet").loop_factory(
            importlib.import_module(base).new_event_loop if base else None
        )
        return factory

    return set_up


LOOPS = {
    "asyncio": LoopKind("asyncio", _stock),
    "uvloop": LoopKind("uvloop", _factory),
    "netpoll_loop": LoopKind("netpoll_loop", _policy),
    "rloop": LoopKind("rloop", _factory),
    "zuvloop": LoopKind("zuvloop", _factory),
    "rsloop": LoopKind("rsloop", _factory),
    "blazio": LoopKind("blazio", _factory),
    "talyn": LoopKind("talyn", _class),
    "aiofastnet+asyncio": LoopKind("aiofastnet", _fastnet_over(None), "asyncio"),
    "aiofastnet+uvloop": LoopKind("aiofastnet", _fastnet_over("uvloop"), "uvloop"),
}


def installed(name: str) -> bool:
    """Whether that loop can be imported here."""
    return importlib.util.find_spec(LOOPS[name].package) is not None


def run(name: str, main: Coroutine[Any, Any, T], **options: Any) -> T:
    """Run ``main`` on a fresh loop of that name.

    Raises RuntimeError if what runs isn't that loop: numbers of the wrong loop would be believed.
    """
    kind = LOOPS[name]
    try:
        with asyncio.Runner(loop_factory=kind.set_up(kind.package, options)) as runner:
            loop = type(runner.get_loop())
            if loop.__module__.partition(".")[0] != (kind.class_package or kind.package):
                raise RuntimeError(f"{name} was asked for, {loop.__module__}.{loop.__qualname__} is running")
            return runner.run(main)
    finally:
        main.close()
