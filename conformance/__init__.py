"""Other people's test suites, run unchanged on netpoll_loop: if I swap the loop, what breaks?

    python -m conformance uvloop|aiohttp|cpython [--netpoller auto|dedicated|inline] [-k EXPR] [--json FILE]

For each test that the suite's reference loop passes and ours doesn't, the tool wants a written reason; one without a
reason makes it exit with status 1. A reason for a test that passes does so too, so the reasons can't rot.

How it works, and where:

| step | module |
| --- | --- |
| the suites: which versions, which tests, which reference, on what environment | `suites` |
| sdists by version and hash, virtual environments; all in `.cache/`, which git ignores | `sources` |
| test ids shared out to worker processes; time limits, hangs, crashes | `driver` |
| a worker process: unittest tests, one after another | `worker` |
| the same for suites that pytest runs | `pytest_worker` |
| what a worker does so that the suite gets our loop | `loops`, `shim/uvloop` |
| stock asyncio with each I/O event delayed by one turn | `delayed` |
| which tests the reference passes: `reference/` | `reference` |
| reasons: `expected/`, and the verdict | `ledger` |
| docs/compatibility.md | `compatibility` |

Everything that a worker imports is standard library only and works without netpoll_loop: the reference runs use it too.
"""
