"""The ways in: set_event_loop_policy, install, a loop factory, run."""

import asyncio
import subprocess
import sys
import textwrap
import threading
import warnings

import pytest

import netpoll_loop

pytestmark = pytest.mark.netpoll_only("the policy is its own")

PY314 = sys.version_info >= (3, 14)


@pytest.fixture
def policy_restored():
    """Puts the process's policy back; policies are deprecated in 3.14."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield
        asyncio.set_event_loop_policy(None)


async def running_loop():
    return asyncio.get_running_loop()


def python(code, *flags):
    """Output of a program of its own, which must not fail nor write to stderr."""
    done = subprocess.run(
        [sys.executable, *flags, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout.strip()


# --- policy -----------------------------------------------------------------------------------------------------------


def test_the_policy_makes_asyncio_run_use_it(policy_restored):
    asyncio.set_event_loop_policy(netpoll_loop.EventLoopPolicy())
    assert type(asyncio.run(running_loop())) is netpoll_loop.Loop


def test_install_sets_the_policy(policy_restored):
    netpoll_loop.install()
    assert type(asyncio.get_event_loop_policy()) is netpoll_loop.EventLoopPolicy
    assert type(asyncio.run(running_loop())) is netpoll_loop.Loop


def test_the_policy_is_asyncios_default_policy_otherwise(policy_restored):
    assert issubclass(netpoll_loop.EventLoopPolicy, asyncio.DefaultEventLoopPolicy)
    policy = netpoll_loop.EventLoopPolicy()
    assert isinstance(policy, asyncio.AbstractEventLoopPolicy)
    loop = policy.new_event_loop()
    try:
        policy.set_event_loop(loop)
        assert policy.get_event_loop() is loop
        policy.set_event_loop(None)
        with pytest.raises(TypeError):
            policy.set_event_loop("loop")
    finally:
        loop.close()


def test_the_policy_may_be_subclassed():
    class Policy(netpoll_loop.EventLoopPolicy):
        def new_event_loop(self):
            loop = super().new_event_loop()
            loop.set_debug(True)
            return loop

    loop = Policy(netpoller="inline").new_event_loop()
    try:
        assert type(loop) is netpoll_loop.Loop
        assert loop.get_debug()
    finally:
        loop.close()


def test_each_thread_has_its_own_current_loop(policy_restored):
    asyncio.set_event_loop_policy(netpoll_loop.EventLoopPolicy())
    found = []

    def work():
        found.append(asyncio.run(running_loop()))
        with pytest.raises(RuntimeError, match="There is no current event loop in thread"):
            asyncio.get_event_loop_policy().get_event_loop()

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert [type(loop) for loop in found] == [netpoll_loop.Loop] * 2
    assert found[0] is not found[1]


@pytest.mark.skipif(PY314, reason="child watchers are gone in Python 3.14")
def test_the_child_watcher_is_a_pidfd_watcher_that_serves_any_loop(policy_restored):
    asyncio.set_event_loop_policy(netpoll_loop.EventLoopPolicy())
    watcher = asyncio.get_child_watcher()
    assert isinstance(watcher, asyncio.PidfdChildWatcher)
    assert watcher.is_active()

    async def main():
        child = subprocess.Popen([sys.executable, "-c", "raise SystemExit(7)"])
        ended = asyncio.get_running_loop().create_future()
        with watcher:
            watcher.add_child_handler(child.pid, lambda pid, code, tag: ended.set_result((pid, code, tag)), "tag")
        assert await ended == (child.pid, 7, "tag")
        child.returncode = 7
        return True

    assert asyncio.run(main())
    in_thread = []
    thread = threading.Thread(target=lambda: in_thread.append(asyncio.run(main())))
    thread.start()
    thread.join(30)
    assert in_thread == [True]


# --- factory and run --------------------------------------------------------------------------------------------------


def test_new_event_loop_is_a_loop_factory():
    with asyncio.Runner(loop_factory=netpoll_loop.new_event_loop) as runner:
        assert type(runner.run(running_loop())) is netpoll_loop.Loop
    if sys.version_info >= (3, 12):
        loop = asyncio.run(running_loop(), loop_factory=netpoll_loop.new_event_loop)
        assert type(loop) is netpoll_loop.Loop


def test_run_returns_the_result_and_closes_the_loop():
    loop = netpoll_loop.run(running_loop())
    assert type(loop) is netpoll_loop.Loop
    assert loop.is_closed()


def test_run_raises_what_the_coroutine_raises():
    async def main():
        raise KeyError("x")

    with pytest.raises(KeyError, match="x"):
        netpoll_loop.run(main())


@pytest.mark.parametrize("debug", [True, False])
def test_run_sets_debug(debug):
    async def main():
        return asyncio.get_running_loop().get_debug()

    assert netpoll_loop.run(main(), debug=debug) is debug


def test_run_in_a_running_loop_is_refused_in_asyncios_words(recwarn):
    async def main():
        netpoll_loop.run(running_loop())

    with pytest.raises(RuntimeError, match=r"asyncio\.run\(\) cannot be called from a running event loop"):
        netpoll_loop.run(main())
    assert not recwarn.list


def test_run_refuses_what_is_no_coroutine():
    with pytest.raises((ValueError, TypeError)) as stock:
        asyncio.run(1)
    with pytest.raises((ValueError, TypeError)) as ours:
        netpoll_loop.run(1)
    assert (type(ours.value), str(ours.value)) == (type(stock.value), str(stock.value))


# --- programs of their own --------------------------------------------------------------------------------------------


def test_run_is_silent_under_w_error():
    assert python("import netpoll_loop, asyncio; netpoll_loop.run(asyncio.sleep(0)); print(1)", "-W", "error") == "1"


@pytest.mark.skipif(PY314, reason="policies are deprecated in Python 3.14: asyncio warns")
def test_the_policy_is_silent_under_w_error():
    code = """
        import asyncio, netpoll_loop
        asyncio.set_event_loop_policy(netpoll_loop.EventLoopPolicy())
        asyncio.run(asyncio.sleep(0))
        print(1)
        """
    assert python(code, "-W", "error") == "1"
