from collections.abc import Callable
from types import TracebackType
from typing import ParamSpec, TypeVar

from netpoll_loop._core.sock import SockLoop
from netpoll_loop.stalls import StallMonitor

_P = ParamSpec("_P")
_R = TypeVar("_R")

MAX_WORKERS: int
DELAY_LIMIT: float

class HandoffLoop(SockLoop):
    _stall_report: float | None
    _stall_monitor: StallMonitor | None
    def _progress(self) -> tuple[int, int] | None: ...
    @property
    def _m0_serves(self) -> bool: ...
    def _on_m0(self, function: Callable[[], _R]) -> _R: ...
    def _set_workers(self, run_on_worker: bool, max_workers: int) -> None: ...

class Body:
    def __enter__(self) -> None: ...
    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None: ...
    async def __aenter__(self) -> None: ...
    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None: ...
    def __call__(self, function: Callable[_P, _R]) -> Callable[_P, _R]: ...

def decorated(function: Callable[_P, _R]) -> Callable[_P, _R]: ...
