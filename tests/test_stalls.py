"""Stall reports: a callback that is stuck is reported while it is, with its stack, once."""

import asyncio
import logging
import os
import threading
import time
import warnings

import pytest

import netpoll_loop

pytestmark = pytest.mark.netpoll_only("netpoll_loop's own reports")

#: Seconds: the limit in these tests; a callback that waits for its report gives up.
STALL = 0.05
LIMIT = 10


class Reports(logging.Handler):
    """Collects the reports; `seen` is set by the first one."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.texts = []
        self.seen = threading.Event()

    def emit(self, record):
        text = record.getMessage()
        if "is stalled" in text:
            self.texts.append(text)
            self.seen.set()


@pytest.fixture
def reports():
    handler = Reports()
    logger = logging.getLogger("asyncio")
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)


@pytest.fixture
def make(mode):
    loops = []

    def make(**options):
        loops.append(netpoll_loop.new_event_loop(netpoller=mode, **options))
        return loops[-1]

    yield make
    for loop in loops:
        loop.close()


def monitors():
    return [thread for thread in threading.enumerate() if thread.name == "netpoll_loop stall monitor"]


@pytest.mark.parametrize("run_on", ["caller", "worker"])
def test_a_stuck_coroutine_is_reported_while_it_is_stuck(make, reports, run_on):
    loop = make(stall_report=STALL, run_on=run_on)

    def stuck_here():
        assert reports.seen.wait(LIMIT)

    async def slow():
        stuck_here()

    async def main():
        await asyncio.create_task(slow(), name="the slow one")

    loop.run_until_complete(main())
    (text,) = reports.texts
    assert "the slow one" in text and "slow" in text
    assert "in stuck_here" in text and __file__ in text
    assert ("MainThread" in text) == (run_on == "caller")


def test_each_stall_is_reported_once(make, reports):
    loop = make(stall_report=STALL)

    async def main():
        for count in 1, 2:
            reports.seen.clear()
            assert reports.seen.wait(LIMIT)
            # However long it goes on.
            time.sleep(4 * STALL)
            assert len(reports.texts) == count
            await asyncio.sleep(0.001)

    loop.run_until_complete(main())


def test_debug_mode_reports_after_slow_callback_duration(make, reports):
    loop = make()
    loop.set_debug(True)
    loop.slow_callback_duration = STALL

    def callback():
        assert reports.seen.wait(LIMIT)
        loop.stop()

    loop.call_soon(callback)
    loop.run_forever()
    (text,) = reports.texts
    assert "callback" in text


def test_debug_mode_may_be_switched_while_the_loop_runs(make, reports):
    loop = make()
    loop.slow_callback_duration = STALL

    async def main():
        assert monitors() == []
        loop.set_debug(True)
        assert len(monitors()) == 1
        assert reports.seen.wait(LIMIT)
        loop.set_debug(False)
        assert monitors() == []

    loop.run_until_complete(main())


def test_what_cannot_describe_itself_is_reported_all_the_same(make, reports):
    class Shy:
        def __repr__(self):
            raise ZeroDivisionError

        def __call__(self):
            assert reports.seen.wait(LIMIT)

    loop = make()
    loop.slow_callback_duration = STALL
    loop.set_debug(True)
    loop.call_soon(Shy())
    loop.call_soon(loop.stop)
    # asyncio's own report of the slow callback, after it, can't describe it either.
    with pytest.raises(ZeroDivisionError):
        loop.run_forever()
    assert "a callback has been running" in reports.texts[0]


def test_waiting_and_short_callbacks_are_no_stalls(make, reports):
    loop = make(stall_report=STALL)

    async def busy():
        limit = time.monotonic() + 4 * STALL
        while time.monotonic() < limit:
            time.sleep(0.001)
            await asyncio.sleep(0)

    async def main():
        await asyncio.sleep(4 * STALL)
        await busy()

    loop.run_until_complete(main())
    assert reports.texts == []


def test_a_body_of_blocking_is_no_stall(make, reports):
    loop = make(stall_report=STALL)

    async def main():
        with netpoll_loop.blocking():
            time.sleep(4 * STALL)

    loop.run_until_complete(main())
    assert reports.texts == []


def test_without_it_there_is_no_thread(make):
    async def main():
        return monitors()

    assert make().run_until_complete(main()) == []
    loop = make(stall_report=STALL)
    assert len(loop.run_until_complete(main())) == 1
    assert monitors() == []


def test_a_fork_finds_no_monitor_and_the_parent_has_it_again(make, reports):
    loop = make(stall_report=STALL)

    async def main():
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            pid = os.fork()
        if pid == 0:
            os._exit(len(monitors()))
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        limit = time.monotonic() + LIMIT
        while not monitors() and time.monotonic() < limit:
            await asyncio.sleep(0.001)
        assert reports.seen.wait(LIMIT)

    loop.run_until_complete(main())


@pytest.mark.parametrize(
    ("value", "error"), [("1", TypeError), (0, ValueError), (-1, ValueError), (float("nan"), ValueError)]
)
def test_other_values_are_refused(value, error):
    with pytest.raises(error, match="stall_report"):
        netpoll_loop.new_event_loop(stall_report=value)
    with pytest.raises(error, match="stall_report"):
        netpoll_loop.EventLoopPolicy(stall_report=value)
