"""Benchmarks of netpoll_loop beside other asyncio event loops.

- ``python -m benchmarks.compare``: throughput, latency and server CPU of every kind of server
- ``python -m benchmarks.memory``: resident memory of idle connections
- ``python -m benchmarks.subprocess_spawn``: how fast children are started and waited for
- ``python -m benchmarks.demo``: the short one that ``make demo`` runs

``servers`` is what is measured, ``loadgen`` (C) is what loads it, ``harness`` starts, watches and ends
both. Loops are always measured in turns, within one run.
"""
