"""One server on one loop: prints one JSON line with its port when it serves, and serves until SIGTERM."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import resource
import signal
from typing import Any

from benchmarks.servers import KINDS
from benchmarks.servers.loops import LOOPS, run


async def _serve_until_sigterm(kind: str, loop_name: str, host: str, port: int) -> None:
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, ended.set)
    async with KINDS[kind].serve()(host, port) as bound:
        about = {
            "port": bound,
            "pid": os.getpid(),
            "kind": kind,
            "loop": loop_name,
            "loop_class": f"{type(loop).__module__}.{type(loop).__qualname__}",
            "loop_version": LOOPS[loop_name].version(),
            "python": platform.python_version(),
        }
        print(json.dumps(about), flush=True)
        await ended.wait()


def _raise_fd_limit() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.servers", description=__doc__)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--loop", choices=LOOPS, default="netpoll_loop")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0: any free one (default)")
    parser.add_argument("--netpoller", metavar="MODE", help="auto, dedicated or inline (netpoll_loop only)")
    arguments = parser.parse_args()
    options: dict[str, Any] = {} if arguments.netpoller is None else {"netpoller": arguments.netpoller}
    if options and arguments.loop != "netpoll_loop":
        parser.error("--netpoller is an option of netpoll_loop")
    _raise_fd_limit()
    with contextlib.suppress(KeyboardInterrupt):
        run(
            arguments.loop,
            _serve_until_sigterm(arguments.kind, arguments.loop, arguments.host, arguments.port),
            **options,
        )


if __name__ == "__main__":
    main()
