"""What every behaviour test stands on: loops in each mode, an oracle, time limits and leak checks.

Each test that takes `mode` (or a fixture built on it: `new_loop`, `loop`, `run`, ...) runs once for each
netpoller mode. asyncio's own behaviour is the definition of right, so the same tests also run on other loops:

    pytest tests                        # netpoll_loop in auto, dedicated and inline
    pytest tests --modes=inline         # one or some of them
    pytest tests --oracle               # stock asyncio: are the tests themselves true?
    pytest tests --oracle=uvloop        # for comparison; uvloop differs from asyncio in known places
    NETPOLL_LOOP_ORACLE=asyncio pytest  # the same by environment

What only concerns netpoll_loop carries `@pytest.mark.netpoll_only("why")` and is skipped there; what a stock
version gets wrong carries `@pytest.mark.not_on_oracle("why")`.

Time limits are nested, so that a hang always says where: `run(...)` fails the test and prints the tasks'
stacks; then pytest-timeout interrupts the main thread; then faulthandler prints every thread and ends the
process.
"""

import asyncio
import contextlib
import faulthandler
import gc
import io
import os
import pathlib
import signal
import socket
import ssl
import subprocess
import sys
import textwrap
import threading
import time
import typing

import pytest

MODES = ("auto", "dedicated", "inline")

#: "auto" that changes its mind about who sends in every turn; where connections are what is tested.
SWITCHING = "switching"
SWITCHING_MODULES = frozenset(
    f"test_{name}"
    for name in ("aiohttp", "fd_reuse", "memory", "offload", "sendfile", "servers", "streams", "tls", "tls_records")
)
ORACLES = ("asyncio", "uvloop")

#: Seconds: a coroutine given to `run`; one whole test; what is added before the process is ended.
RUN_LIMIT = 10
TEST_LIMIT = 60
GRACE = 20

#: Seconds that threads and descriptors get to disappear after a test.
LEAK_LIMIT = 5

_REAL_STDERR = 2


# --- choosing the loop ------------------------------------------------------------------------------------------------


def pytest_addoption(parser):
    group = parser.getgroup("netpoll_loop")
    group.addoption(
        "--oracle",
        nargs="?",
        const="asyncio",
        default=os.environ.get("NETPOLL_LOOP_ORACLE") or None,
        choices=ORACLES,
        help="run the tests on another loop instead of netpoll_loop: asyncio (default) or uvloop",
    )
    group.addoption("--modes", default=",".join(MODES), help="comma-separated netpoller modes to run")


def pytest_configure(config):
    global _REAL_STDERR
    config.addinivalue_line("markers", "netpoll_only(reason): about netpoll_loop only; skipped on an oracle")
    config.addinivalue_line("markers", "not_on_oracle(reason, when=True): stock loops get this wrong; skipped there")
    config.addinivalue_line("markers", "allow_leaks(reason): threads or descriptors may outlive this test")
    config.addinivalue_line("markers", "timeout(seconds): time limit of the test (pytest-timeout)")
    _REAL_STDERR = os.dup(2)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # A shell's background job ignores it, and so would the child programs that are to be interrupted.
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_unconfigure(config):
    faulthandler.cancel_dump_traceback_later()


def _modes(config):
    oracle = config.getoption("--oracle")
    if oracle:
        return [oracle]
    chosen = [m.strip() for m in config.getoption("--modes").split(",") if m.strip()]
    unknown = set(chosen) - set(MODES)
    if unknown:
        raise pytest.UsageError(f"--modes: unknown {sorted(unknown)}; the modes are {', '.join(MODES)}")
    return chosen


def pytest_generate_tests(metafunc):
    if "mode" in metafunc.fixturenames:
        modes = _modes(metafunc.config)
        if "auto" in modes and metafunc.module.__name__ in SWITCHING_MODULES:
            modes = [*modes, SWITCHING]
        metafunc.parametrize("mode", modes, scope="function")


def pytest_collection_modifyitems(config, items):
    oracle = config.getoption("--oracle")
    for item in items:
        if item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(TEST_LIMIT, method="signal"))
        if oracle:
            for name in ("netpoll_only", "not_on_oracle"):
                marker = item.get_closest_marker(name)
                if marker is not None and all(marker.args[1:]):
                    item.add_marker(pytest.mark.skip(reason=f"{name}: {marker.args[0]}"))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """The last resort. Not earlier, for pytest's own use of the same timer would replace it."""
    marker = item.get_closest_marker("timeout")
    limit = (marker.args[0] if marker and marker.args else TEST_LIMIT) + GRACE
    faulthandler.dump_traceback_later(limit, exit=True, file=_REAL_STDERR)


@pytest.hookimpl(trylast=True)
def pytest_runtest_logfinish():
    faulthandler.cancel_dump_traceback_later()


def make_loop(mode, **options):
    """A new loop: of netpoll_loop for a mode's name, else the oracle's."""
    if mode == "asyncio":
        return asyncio.SelectorEventLoop()
    if mode == "uvloop":
        return pytest.importorskip("uvloop").new_event_loop()
    import netpoll_loop

    if mode == SWITCHING:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("NETPOLL_LOOP_CHAOS", "1")
            return netpoll_loop.new_event_loop(netpoller="auto", **options)
    return netpoll_loop.new_event_loop(netpoller=mode, **options)


def wait_in_a_callback(loop, condition, limit=10):
    """The callback that runs doesn't end before condition(stats) holds: the loop, one of ours, is stalled meanwhile."""
    import netpoll_loop

    deadline = time.monotonic() + limit
    while not condition(netpoll_loop.stats(loop)):
        assert time.monotonic() < deadline, netpoll_loop.stats(loop)
        time.sleep(0.001)


@pytest.fixture
def oracle(pytestconfig) -> str | None:
    """The name of the oracle that the tests run on, None when they run on netpoll_loop."""
    return pytestconfig.getoption("--oracle")


# --- leaks ------------------------------------------------------------------------------------------------------------


def open_fds() -> dict[int, str]:
    """Every open descriptor of this process and what it is."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
    return {fd: what for fd, what in found.items() if what != f"/proc/{os.getpid()}/fd"}


def native_threads() -> set[int]:
    """Every thread of this process that the kernel knows, Python's or not."""
    return {int(tid) for tid in os.listdir("/proc/self/task")}


def _describe_thread(tid):
    """Its number, name, where it waits in the kernel, and the system call that it is in."""
    words = [str(tid)]
    for name in ("comm", "wchan", "syscall", "stack"):
        with contextlib.suppress(OSError):
            words.append(pathlib.Path(f"/proc/self/task/{tid}/{name}").read_text().strip())
    return " | ".join(words)


@pytest.fixture(autouse=True)
def no_leaks(request):
    """No test leaves a thread or a descriptor behind. Set up before and torn down after every other fixture."""
    fds_before, threads_before = open_fds(), native_threads()
    yield
    if request.node.get_closest_marker("allow_leaks"):
        return
    deadline = time.monotonic() + LEAK_LIMIT
    while True:
        fds = {fd: what for fd, what in open_fds().items() if fds_before.get(fd) != what}
        threads = native_threads() - threads_before
        if not fds and not threads:
            return
        if time.monotonic() > deadline:
            break
        gc.collect()
        time.sleep(0.01)
    names = sorted(map(_describe_thread, threads))
    pytest.fail(f"leaked descriptors {fds}, threads {names}, Python threads {threading.enumerate()}")


# --- loops ------------------------------------------------------------------------------------------------------------


def finish(loop):
    """What asyncio.Runner does at its end: cancel, shut down generators and executor, close."""
    if loop.is_closed():
        return
    assert not loop.is_running(), "the test left its loop running"
    try:
        tasks = asyncio.all_tasks(loop)
        for task in tasks:
            task.cancel()
        if tasks:
            loop.run_until_complete(asyncio.wait(tasks, timeout=RUN_LIMIT))
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.run_until_complete(loop.shutdown_default_executor())
    finally:
        loop.close()


@pytest.fixture
def new_loop(mode):
    """Factory of loops in this mode, `new_loop(**options)`; all are closed at the end."""
    loops = []

    def factory(**options):
        loop = make_loop(mode, **options)
        loops.append(loop)
        return loop

    yield factory
    with contextlib.ExitStack() as stack:
        for loop in loops:
            stack.callback(finish, loop)


@pytest.fixture
def loop(new_loop):
    """A fresh loop, the current one of this thread, closed afterwards."""
    loop = new_loop()
    asyncio.set_event_loop(loop)
    yield loop
    asyncio.set_event_loop(None)


@pytest.fixture
def loop_class(mode, monkeypatch):
    """The class of this mode's loops, to be subclassed; made without arguments it is in this mode."""
    if mode == "asyncio":
        return asyncio.SelectorEventLoop
    if mode == "uvloop":
        return pytest.importorskip("uvloop").Loop
    import netpoll_loop

    monkeypatch.setenv("NETPOLL_LOOP_NETPOLLER", "auto" if mode == SWITCHING else mode)
    if mode == SWITCHING:
        monkeypatch.setenv("NETPOLL_LOOP_CHAOS", "1")
    return netpoll_loop.Loop


@pytest.fixture
def stock_loop():
    """A loop of stock asyncio, to ask it the same question in the same test; not current."""
    loop = asyncio.SelectorEventLoop()
    yield loop
    finish(loop)


def _stacks(loop):
    out = io.StringIO()
    for task in asyncio.all_tasks(loop) - {asyncio.current_task(loop)}:
        task.print_stack(file=out)
    return out.getvalue()


@pytest.fixture
def run(request, loop):
    """`run(coro, timeout=10, on=None)`: the coroutine's result on `loop` (or another one), within a time limit."""

    def run(coro, timeout=RUN_LIMIT, on=None):
        target = loop if on is None else on

        async def limited():
            task = asyncio.ensure_future(coro)
            try:
                done, _ = await asyncio.wait([task], timeout=timeout)
            except BaseException:
                task.cancel()
                raise
            if not done:
                stacks = _stacks(target)
                task.cancel()
                pytest.fail(f"{request.node.nodeid}: still running after {timeout} s\n{stacks}", pytrace=False)
            return task.result()

        return target.run_until_complete(limited())

    return run


@pytest.fixture
def exceptions(loop) -> list[dict[str, typing.Any]]:
    """The contexts given to the loop's exception handler. Without this fixture they are only logged."""
    contexts: list[dict[str, typing.Any]] = []
    loop.set_exception_handler(lambda loop, context: contexts.append(context))
    return contexts


# --- sockets and files ------------------------------------------------------------------------------------------------


@pytest.fixture
def owned():
    """`owned(thing)`: closes the socket, file or raw descriptor at the end if the test has not; returns it."""
    things = []

    def own(thing):
        things.append(thing)
        return thing

    yield own
    for thing in reversed(things):
        with contextlib.suppress(OSError):
            if isinstance(thing, int):
                os.close(thing)
            else:
                thing.close()


@pytest.fixture
def socket_pair(owned):
    """Factory of connected unix socket pairs, non-blocking unless asked otherwise."""

    def factory(kind=socket.SOCK_STREAM, blocking=False):
        pair = socket.socketpair(socket.AF_UNIX, kind)
        for sock in pair:
            sock.setblocking(blocking)
            owned(sock)
        return pair

    return factory


@pytest.fixture
def listener(owned):
    """Factory of listening TCP sockets on loopback, non-blocking."""

    def factory(family=socket.AF_INET, backlog=128):
        sock = owned(socket.socket(family, socket.SOCK_STREAM))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("::1" if family == socket.AF_INET6 else "127.0.0.1", 0))
        sock.listen(backlog)
        sock.setblocking(False)
        return sock

    return factory


@pytest.fixture
def tcp_pair(owned, listener):
    """Factory of connected TCP pairs (client, server side), non-blocking."""

    def factory(family=socket.AF_INET):
        with listener(family) as server:
            client = owned(socket.create_connection(server.getsockname()[:2], timeout=RUN_LIMIT))
            server.settimeout(RUN_LIMIT)
            peer = owned(server.accept()[0])
        for sock in (client, peer):
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return client, peer

    return factory


@pytest.fixture
def free_port():
    """Factory of TCP ports of 127.0.0.1 on which nothing listens now."""

    def factory(host="127.0.0.1"):
        with socket.socket() as sock:
            sock.bind((host, 0))
            return sock.getsockname()[1]

    return factory


# --- child programs ---------------------------------------------------------------------------------------------------

#: Put before the code of a child: `new_event_loop()` is then a loop of the mode under test.
PRELUDE = """\
import asyncio, os, sys
def new_event_loop(**options):
    mode = os.environ["NETPOLL_LOOP_TEST_MODE"]
    if mode == "asyncio":
        return asyncio.SelectorEventLoop()
    if mode == "uvloop":
        import uvloop
        return uvloop.new_event_loop()
    import netpoll_loop
    return netpoll_loop.new_event_loop(**options)
def run_main(main):
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        return runner.run(main)
"""


class Child:
    """A running child program; `finish` waits for it, with a limit."""

    def __init__(self, argv, env, name):
        self.name = name
        self.popen = subprocess.Popen(
            argv, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.pid = self.popen.pid

    def read_line(self):
        """The next line of its standard output: how a child says that it is ready. "" at the end."""
        return self.popen.stdout.readline()

    def kill(self, signum=signal.SIGTERM):
        self.popen.send_signal(signum)

    def finish(self, timeout=30, input=None):
        """The `CompletedProcess`. A child that hangs is made to print its stacks, and the test fails."""
        try:
            out, err = self.popen.communicate(input, timeout)
        except subprocess.TimeoutExpired:
            self.popen.send_signal(signal.SIGABRT)
            try:
                out, err = self.popen.communicate(timeout=10)
            except subprocess.TimeoutExpired:
                self.popen.kill()
                out, err = self.popen.communicate()
            pytest.fail(f"{self.name}: child still running after {timeout} s\n{out}\n{err}", pytrace=False)
        return subprocess.CompletedProcess(self.popen.args, self.popen.returncode, out, err)

    def close(self):
        if self.popen.poll() is None:
            self.popen.kill()
        for pipe in (self.popen.stdin, self.popen.stdout, self.popen.stderr):
            with contextlib.suppress(OSError):
                pipe.close()
        self.popen.wait()


@pytest.fixture
def start_child(request, mode):
    """`start_child(code_or_path, mode, args=(), env=None, flags=())` -> a running `Child`.

    Code sees `asyncio`, `os`, `sys`, `new_event_loop(**options)` (a loop of `mode`, by default this
    test's) and `run_main(coro)`; a path is run as it is, told the mode by NETPOLL_LOOP_NETPOLLER.
    """
    children = []

    def start(code, mode=mode, *, args=(), env=None, flags=()):
        environ = {**os.environ, "NETPOLL_LOOP_TEST_MODE": mode, "PYTHONFAULTHANDLER": "1", **(env or {})}
        environ.setdefault("PYTHONPATH", str(pathlib.Path(__file__).resolve().parent.parent))
        environ.pop("PYTHONASYNCIODEBUG", None)
        if mode in MODES:
            environ["NETPOLL_LOOP_NETPOLLER"] = mode
        if isinstance(code, pathlib.Path):
            program = [str(code)]
        else:
            program = ["-c", PRELUDE + textwrap.dedent(code)]
        child = Child([sys.executable, *flags, *program, *map(str, args)], environ, request.node.nodeid)
        children.append(child)
        return child

    yield start
    for child in children:
        child.close()


@pytest.fixture
def run_child(start_child, mode):
    """`run_child(code_or_path, mode, timeout=30, check=True, **start)`: runs a child program to its end.

    `check` fails the test unless it exits 0.
    """

    def run(code, mode=mode, timeout=30, *, check=True, input=None, **start):
        done = start_child(code, mode, **start).finish(timeout, input)
        if check and done.returncode:
            pytest.fail(f"child ended with {done.returncode}\n{done.stdout}\n{done.stderr}", pytrace=False)
        return done

    return run


# --- TLS --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def authority():
    """One that signs the server's certificate, and that the client trusts."""
    return pytest.importorskip("trustme").CA()


@pytest.fixture(scope="session")
def server_context(authority):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost", "127.0.0.1").configure_cert(context)
    return context


@pytest.fixture(scope="session")
def client_context(authority):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(context)
    return context
