"""Benchmarks: netpoll_loop next to other event loops.

- ``python -m benchmarks``: every row of the table (`rows.py`), with ratios, targets, JSON and plots
- ``python -m benchmarks.memory``: memory of idle connections
- ``python -m benchmarks.micro``: one workload on one loop; what the rows without a server run
- ``python -m benchmarks.groups``: several loops in one process, with and without the GIL
- ``python -m benchmarks.blocking``: what ``blocking()`` costs, beside the executor
- ``python -m benchmarks.instructions``: what an operation costs, counted by callgrind
- ``python -m benchmarks.stalls``: a large write, and a callback that goes on computing
- ``python -m benchmarks.demo``: what ``make demo`` runs
- ``python -m benchmarks.servers``: one of the measured servers alone
"""
