"""Makes a loop the one that a suite gets, inside a worker process, before the suite's modules are imported.

`stock`: asyncio's own, nothing is changed. `delayed`: `conformance.delayed`. `netpoll`: netpoll_loop.

asyncio has two doors to a loop: the policy, which `new_event_loop`, `run` and `Runner` ask, and the name
`SelectorEventLoop` (`EventLoop` from 3.13 on). Both are replaced in asyncio's modules, so that a suite that puts the
default policy back gets our loop again. The stock classes underneath stay: ours inherits from one of them.
"""

import asyncio
import asyncio.base_events
import asyncio.events
import asyncio.selector_events
import asyncio.unix_events
import sys

STOCK, DELAYED, NETPOLL = "stock", "delayed", "netpoll"
KINDS = (STOCK, DELAYED, NETPOLL)


class Census:
    """Counts the loops made in this process: of the kind wanted, and of asyncio's own classes."""

    def __init__(self, wanted: type) -> None:
        self.wanted, self.ours, self.stock = wanted, 0, 0
        base = asyncio.selector_events.BaseSelectorEventLoop
        init = base.__init__

        def counted(loop, *args, **kwargs):
            if isinstance(loop, wanted):
                self.ours += 1
            elif type(loop).__module__.startswith("asyncio."):
                self.stock += 1
            init(loop, *args, **kwargs)

        base.__init__ = counted

    def take(self) -> dict[str, int]:
        counts = {"ours": self.ours, "stock": self.stock}
        self.ours = self.stock = 0
        return counts


def census(kind: str) -> Census:
    if kind == NETPOLL:
        import netpoll_loop

        return Census(netpoll_loop.Loop)
    if kind == DELAYED:
        from conformance.delayed import DelayedEventLoop

        return Census(DelayedEventLoop)
    return Census(asyncio.unix_events._UnixSelectorEventLoop)


def stand_in(kind: str) -> tuple[type, type]:
    """A policy and the class of its loops, for that kind."""
    if sys.version_info < (3, 14):
        default_policy = asyncio.unix_events.DefaultEventLoopPolicy
    else:
        default_policy = asyncio.unix_events._DefaultEventLoopPolicy
    stock_loop = asyncio.unix_events._UnixSelectorEventLoop
    if kind == STOCK:
        return default_policy, stock_loop
    if kind == DELAYED:
        from conformance.delayed import DelayedEventLoop

        class Policy(default_policy):
            _loop_factory = DelayedEventLoop

        return Policy, DelayedEventLoop

    import netpoll_loop
    from netpoll_loop.loop import _EngineSelector

    class SelectorEventLoop(netpoll_loop.Loop):
        # Suites parametrise by selector; ours has one of its own.
        def __init__(self, selector=None):
            if type(selector) is _EngineSelector:
                stock_loop.__init__(self, selector)
                return
            super().__init__()
            if selector is not None:
                selector.close()

    SelectorEventLoop.__qualname__ = SelectorEventLoop.__name__
    return netpoll_loop.EventLoopPolicy, SelectorEventLoop


def install(kind: str) -> None:
    """Replaces asyncio's doors. Call it before the suite's modules are imported."""
    if kind == STOCK:
        return
    stock_policy, stock_loop = stand_in(STOCK)
    policy, loop = stand_in(kind)
    for module in (asyncio, asyncio.unix_events, asyncio.events):
        for name, value in list(vars(module).items()):
            if name in ("SelectorEventLoop", "EventLoop") and value is stock_loop:
                setattr(module, name, loop)
            elif name in ("DefaultEventLoopPolicy", "_DefaultEventLoopPolicy") and value is stock_policy:
                setattr(module, name, policy)
