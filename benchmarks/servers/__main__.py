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

from benchmarks.servers import KINDS, compute
from benchmarks.servers.loops import LOOPS, run


async def _serve_until_sigterm(
    kind: str, loop_name: str, host: str, port: int, options: dict[str, Any], computing: bool
) -> None:
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, ended.set)
    async with KINDS[kind].serve()(host, port, **options) as bound:
        about = {
            "port": bound,
            "pid": os.getpid(),
            "kind": kind,
            "loop": loop_name,
            "loop_class": f"{type(loop).__module__}.{type(loop).__qualname__}",
            "loop_version": LOOPS[loop_name].version(),
            "python": platform.python_version(),
        }
        if computing:
            about["computing"] = compute.start()
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
    parser.add_argument("--computing", action="store_true", help="one thread of pure Python computes beside the loop")
    parser.add_argument("--cpus", help="the CPUs to run on, as 0,1")
    parser.add_argument("--spins", type=int, help="turns of an empty loop for each message")
    parser.add_argument("--stall", type=float, help="seconds that SIGUSR1 stalls the loop for")
    parser.add_argument("--reuse-port", action="store_true", default=None, help="share the port with others")
    parser.add_argument("--listener", type=int, help="the descriptor of an inherited socket that listens")
    arguments = parser.parse_args()
    known = {option for kind in KINDS.values() for option in kind.options}
    given = {option: value for option, value in vars(arguments).items() if option in known and value is not None}
    if strange := given.keys() - set(KINDS[arguments.kind].options):
        parser.error(f"{arguments.kind} has no option {', '.join(strange)}")
    if arguments.cpus:
        os.sched_setaffinity(0, {int(cpu) for cpu in arguments.cpus.split(",")})
    options: dict[str, Any] = {} if arguments.netpoller is None else {"netpoller": arguments.netpoller}
    if options and arguments.loop != "netpoll_loop":
        parser.error("--netpoller is an option of netpoll_loop")
    _raise_fd_limit()
    with contextlib.suppress(KeyboardInterrupt):
        run(
            arguments.loop,
            _serve_until_sigterm(
                arguments.kind, arguments.loop, arguments.host, arguments.port, given, arguments.computing
            ),
            **options,
        )


if __name__ == "__main__":
    main()
