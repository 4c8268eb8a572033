"""Small programs to copy from. Each runs by itself: ``python examples/echo_server.py --port 8888``.

With ``--once`` a program is its own client: it serves one exchange, prints it, and ends.
"""
