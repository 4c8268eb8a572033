"""A channel between loops: one loop asks, all of them answer, each on a thread of its own.

python examples/channel.py
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import threading

import netpoll_loop

Job = tuple[int, "netpoll_loop.Channel[str]"]


async def answer(jobs: netpoll_loop.Channel[Job]) -> int:
    """Squares numbers until there are no more; how many there were."""
    count = 0
    async for number, answers in jobs:
        await asyncio.sleep(0.01)  # as if it were hard
        await answers.send(f"{number} squared is {number * number}, says {threading.current_thread().name}")
        count += 1
    return count


async def ask(jobs: netpoll_loop.Channel[Job]) -> None:
    """Sends ten numbers, prints what comes back."""
    answers: netpoll_loop.Channel[str] = netpoll_loop.Channel(10)
    for number in range(10):
        await jobs.send((number, answers))
    for _ in range(10):
        print(await answers.receive())
    # Ends the loops of those who answer.
    jobs.close()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="A channel between loops.")
    parser.add_argument("--workers", type=int, default=3)
    arguments = parser.parse_args()

    jobs: netpoll_loop.Channel[Job] = netpoll_loop.Channel()
    started = itertools.count()

    async def worker() -> int:
        if next(started) == 0:
            netpoll_loop.go(ask, jobs)
        return await answer(jobs)

    counts = netpoll_loop.run(worker, workers=arguments.workers)
    print("answered:", *counts)


if __name__ == "__main__":
    main()
