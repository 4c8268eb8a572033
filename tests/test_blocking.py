"""blocking(): the loop goes on while a callback blocks its thread, and nobody notices anything else."""

import asyncio
import contextvars
import gc
import itertools
import os
import signal
import sqlite3
import sys
import threading
import time
import warnings

import pytest

import netpoll_loop
from netpoll_loop import blocking
from netpoll_loop._core import handoff

pytestmark = pytest.mark.netpoll_only("netpoll_loop's own function")

#: Seconds: a body that is sure to be taken over; how long anything may take.
LONG = 0.03
LIMIT = 10


def state():
    """What a coroutine can see of where it runs."""
    return threading.get_ident(), asyncio.current_task(), asyncio.get_running_loop()


async def ticks(count=5):
    for _ in range(count):
        await asyncio.sleep(0.001)
    return count


def test_other_tasks_run_while_a_body_blocks_and_the_task_stays_on_its_thread(run):
    async def main():
        other = asyncio.create_task(ticks())
        before = state()
        with blocking():
            deadline = time.monotonic() + LIMIT
            while not other.done():
                assert time.monotonic() < deadline, "the loop stood still"
                time.sleep(0.001)
        assert state() == before
        assert await other == 5

    run(main())


def test_many_bodies_at_once_each_come_back_to_their_own_task(run):
    async def block(number):
        before = state()
        for _ in range(3):
            with blocking():
                time.sleep(LONG / 3)
            assert state() == before
            await asyncio.sleep(0)
            before = state()
        return number

    async def main():
        ticker = asyncio.create_task(ticks(20))
        assert await asyncio.gather(*map(block, range(40))) == list(range(40))
        await ticker

    run(main())


def test_more_bodies_than_workers_all_end(run, new_loop, caplog):
    loop = new_loop(max_workers=3)

    async def block():
        with blocking():
            time.sleep(0.01)

    async def main():
        await asyncio.gather(*(block() for _ in range(12)))

    loop.run_until_complete(asyncio.wait_for(main(), LIMIT))
    assert sum("worker threads are inside blocking()" in record.message for record in caplog.records) == 1


def test_with_all_workers_inside_the_loop_goes_on_and_the_next_bodies_wait_in_their_order(new_loop, caplog):
    loop = new_loop(max_workers=3)
    go = threading.Event()
    order = []

    async def block(number):
        order.append(number)
        with blocking():
            assert go.wait(LIMIT), "the loop stood still"

    async def main():
        bodies = asyncio.gather(*map(block, range(12)))
        while len(order) < 3:
            await asyncio.sleep(0)
        # One thread is left; whoever goes into a body now would take it along.
        await ticks()
        assert order == [0, 1, 2]
        go.set()
        await bodies

    loop.run_until_complete(main())
    assert order == list(range(12))
    assert sum("worker threads are inside blocking()" in record.message for record in caplog.records) == 1


def test_the_task_that_has_started_another_one_eagerly_waits_too(new_loop):
    if not hasattr(asyncio, "eager_task_factory"):
        pytest.skip("this Python has no eager tasks")
    loop = new_loop(max_workers=3)
    go = threading.Event()
    entered = []

    async def block():
        entered.append(1)
        with blocking():
            assert go.wait(LIMIT), "the loop stood still"

    async def outer():
        await asyncio.sleep(0)
        await asyncio.Task(block(), eager_start=True, loop=loop)

    async def main():
        bodies = asyncio.gather(*(outer() for _ in range(12)))
        while len(entered) < 3:
            await asyncio.sleep(0)
        await ticks()
        assert len(entered) == 3
        go.set()
        await bodies

    loop.run_until_complete(main())
    assert len(entered) == 12


def test_a_burst_of_bodies_comes_one_in_a_turn(run):
    go = threading.Event()
    entered = []
    seen = []

    async def block():
        entered.append(1)
        with blocking():
            assert go.wait(LIMIT), "the loop stood still"

    async def main():
        bodies = asyncio.gather(*(block() for _ in range(30)))
        while len(entered) < 30:
            await asyncio.sleep(0)
            seen.append(len(entered))
        go.set()
        await bodies

    run(main())
    # The first ones aren't known yet.
    steps = [later - earlier for earlier, later in itertools.pairwise(seen) if earlier > 4]
    assert steps
    assert max(steps) == 1


def test_what_an_open_body_waits_for_is_not_delayed_for_ever(new_loop, monkeypatch):
    monkeypatch.setattr(handoff, "DELAY_LIMIT", 0.05)
    loop = new_loop(max_workers=3)
    go = threading.Event()

    async def block(number):
        # The last one is of the same kind, and what the others wait for.
        if number == 8:
            go.set()
        with blocking():
            assert go.wait(LIMIT), "the loop stood still"

    async def main():
        # Room for one: the others before it stay in a body, and one thread after the other is used up.
        await asyncio.gather(*map(block, (0, 1, 2, 8)))

    loop.run_until_complete(main())
    assert go.is_set()


def test_tasks_that_do_not_block_after_all_are_delayed_once(new_loop, monkeypatch):
    monkeypatch.setattr(handoff, "DELAY_LIMIT", 0.3)
    loop = new_loop(max_workers=3)
    go = threading.Event()

    async def perhaps(number):
        if number < 3:
            with blocking():
                assert go.wait(2 * LIMIT), "the loop stood still"

    async def main():
        bodies = asyncio.gather(*map(perhaps, range(3)))
        await ticks()
        # One after the other these would take half a minute.
        await asyncio.wait_for(asyncio.gather(*map(perhaps, range(3, 103))), LIMIT)
        go.set()
        await bodies

    loop.run_until_complete(main())


def test_a_callable_whose_attributes_raise_is_no_reason_to_fail(new_loop):
    loop = new_loop(max_workers=3)
    go = threading.Event()

    class Odd:
        called = 0

        def __getattr__(self, name):
            raise LookupError(name)

        def __call__(self):
            self.called += 1

    async def block():
        with blocking():
            assert go.wait(LIMIT), "the loop stood still"

    async def main():
        odd = Odd()
        bodies = asyncio.gather(*(block() for _ in range(6)))
        for _ in range(20):
            loop.call_soon(odd)
            await asyncio.sleep(0.001)
        assert odd.called == 20
        go.set()
        await bodies

    loop.run_until_complete(main())


@pytest.mark.parametrize("run_on", ["caller", "worker"])
@pytest.mark.parametrize("workers", [1, 2, 3, 5])
def test_each_thread_that_is_free_again_is_noticed(new_loop, monkeypatch, workers, run_on):
    # No limit helps: if the end of a body went unnoticed the loop would sleep.
    monkeypatch.setattr(handoff, "DELAY_LIMIT", 1e6)
    loop = new_loop(max_workers=workers, run_on=run_on)

    async def block(number):
        for i in range(6):
            with blocking():
                time.sleep(0.0001 * (number * 7 + i * 5 % 11))
            if i % 2:
                await asyncio.sleep(0)
        return number

    async def main():
        assert await asyncio.gather(*map(block, range(20))) == list(range(20))

    loop.run_until_complete(asyncio.wait_for(main(), 3 * LIMIT))


def test_a_thread_that_is_slow_to_be_free_again_is_noticed(new_loop, monkeypatch):
    monkeypatch.setattr(handoff, "DELAY_LIMIT", 1e6)
    loop = new_loop(max_workers=3)
    gates = [threading.Event() for _ in range(40)]
    entered = []
    set_hooks = sys.set_asyncgen_hooks

    def slowly(*hooks, **named):
        # A worker calls it before it begins to run the loop, and when it no longer does.
        if threading.current_thread() is not threading.main_thread():
            time.sleep(0.003)
        set_hooks(*hooks, **named)

    async def block(number, all_in):
        entered.append(number)
        if number >= 3:
            # The next to last one ends: room for one more.
            gates[number - 2].set()
        if number == len(gates) - 1:
            all_in.set()
        with blocking():
            assert gates[number].wait(LIMIT), "the loop slept"

    async def main():
        all_in = asyncio.Event()
        bodies = asyncio.gather(*(block(number, all_in) for number in range(len(gates))))
        while len(entered) < 3:
            await asyncio.sleep(0)
        await ticks()
        # From here on nothing happens but that a body ends.
        gates[0].set()
        await all_in.wait()
        for gate in gates:
            gate.set()
        await bodies

    monkeypatch.setattr(sys, "set_asyncgen_hooks", slowly)
    loop.run_until_complete(main())
    assert entered == list(range(len(gates)))


def test_a_delayed_step_can_be_cancelled_and_survives_the_end_of_the_run(new_loop):
    loop = new_loop(max_workers=3)
    go = threading.Event()
    entered = []

    async def block(number):
        entered.append(number)
        with blocking():
            assert go.wait(LIMIT), "the loop stood still"

    async def main():
        tasks = [asyncio.ensure_future(block(number)) for number in range(6)]
        while len(entered) < 3:
            await asyncio.sleep(0)
        await ticks()
        assert entered == [0, 1, 2]
        tasks[4].cancel()
        return tasks

    # M0 is inside one of them: the run can't end before.
    timer = threading.Timer(LONG, go.set)
    timer.start()
    tasks = loop.run_until_complete(main())
    results = loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
    timer.join()
    assert [type(result) for result in results] == [type(None)] * 4 + [asyncio.CancelledError, type(None)]
    assert sorted(entered) == [0, 1, 2, 3, 5]


def test_a_body_that_no_spare_watches_gives_p_to_who_waits_for_it(new_loop):
    loop = new_loop(max_workers=1)
    came_back = threading.Event()
    seen = []

    async def first():
        with blocking():
            time.sleep(LONG)
        came_back.set()

    async def second():
        # On the only spare. The first body ends meanwhile, and its thread waits.
        time.sleep(3 * LONG)
        with blocking():
            seen.append(came_back.wait(LIMIT / 2))

    async def main():
        await asyncio.gather(first(), second())

    loop.run_until_complete(main())
    assert seen == [True]


def test_no_two_callbacks_run_at_once(run):
    inside = []

    async def work():
        for _ in range(20):
            inside.append(1)
            assert len(inside) == 1
            for _ in range(200):
                pass
            inside.pop()
            with blocking():
                time.sleep(0.0015)
            await asyncio.sleep(0)

    async def main():
        await asyncio.gather(*(work() for _ in range(8)))

    run(main())


def test_a_short_body_gives_nothing_away(run):
    """Unless its thread has to wait for a CPU inside: then it isn't short."""

    async def main():
        thread = threading.get_ident()
        for _ in range(50):
            seen = []
            asyncio.get_running_loop().call_soon(lambda seen=seen: seen.append(threading.get_ident()))
            for _ in range(100):
                with blocking():
                    pass
            given = bool(seen)
            await asyncio.sleep(0)
            if not given:
                assert seen == [thread]
                return
        pytest.fail("each time a body of no length has given the loop away")

    run(main())


@pytest.mark.parametrize("seconds", [0, LONG])
def test_an_exception_leaves_the_body_and_the_task_is_whole(run, seconds):
    async def main():
        before = state()
        with pytest.raises(LookupError, match="lost"), blocking():
            time.sleep(seconds)
            raise LookupError("lost")
        assert state() == before
        await ticks()

    run(main())


def test_outside_a_loop_and_inside_another_body_it_does_nothing(run):
    with blocking():
        pass

    async def main():
        with blocking():
            with blocking():
                time.sleep(LONG)
            time.sleep(LONG)
        await ticks()

    run(main())


def test_in_a_plain_callback(run, loop):
    async def main():
        done = loop.create_future()

        def callback():
            other = []
            loop.call_soon(other.append, 1)
            with blocking():
                deadline = time.monotonic() + LIMIT
                while not other and time.monotonic() < deadline:
                    time.sleep(0.001)
            assert asyncio.get_running_loop() is loop
            done.set_result(other)

        loop.call_soon(callback)
        assert await done == [1]

    run(main())


@pytest.mark.parametrize("form", ["bare", "called"])
def test_as_a_decorator(run, form):
    def wait(seconds, *, result):
        """Waits."""
        time.sleep(seconds)
        return result

    wait = blocking(wait) if form == "bare" else blocking()(wait)
    assert (wait.__name__, wait.__doc__) == ("wait", "Waits.")
    assert wait(0, result=1) == 1

    async def main():
        other = asyncio.create_task(ticks(3))
        assert wait(LONG, result=2) == 2
        assert other.done()

    run(main())


def test_what_can_not_be_decorated_is_refused():
    async def coroutine():
        pass

    with pytest.raises(TypeError, match="plain functions"):
        blocking(coroutine)
    with pytest.raises(TypeError, match="a callable is expected"):
        blocking(7)


# ---- wrong use ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["call_soon", "call_later", "create_task", "create_future", "write"])
def test_the_loop_can_not_be_used_inside(run, loop, name):
    async def nothing():
        pass

    async def main():
        server = await loop.create_server(asyncio.Protocol, "127.0.0.1", 0)
        transport, _ = await loop.create_connection(asyncio.Protocol, *server.sockets[0].getsockname())
        coroutine = nothing()
        uses = {
            "call_soon": lambda: loop.call_soon(print),
            "call_later": lambda: loop.call_later(1, print),
            "create_task": lambda: loop.create_task(coroutine),
            "create_future": lambda: loop.create_future().set_result(None),
            "write": lambda: transport.write(b"x"),
        }
        if name != "create_future":
            with pytest.raises(RuntimeError, match=r"inside blocking\(\)|Non-thread-safe operation"), blocking():
                uses[name]()
        coroutine.close()
        transport.abort()
        server.close()
        await ticks()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        run(main())


def test_thread_safe_calls_are_allowed_inside(run, loop):
    async def main():
        seen = []
        with blocking():
            loop.call_soon_threadsafe(seen.append, 1)
            assert asyncio.run_coroutine_threadsafe(ticks(2), loop).result(LIMIT) == 2
        assert seen == [1]

    run(main())


@pytest.mark.parametrize("kind", ["sleep(0)", "sleep", "future"])
def test_an_await_inside_raises_and_the_loop_goes_on(run, loop, kind):
    reports = []
    loop.set_exception_handler(lambda loop, context: reports.append(context))

    async def main():
        future = loop.create_future()
        loop.call_later(LONG, future.set_result, None)

        async def wrong():
            with blocking():
                if kind == "sleep(0)":
                    await asyncio.sleep(0)
                elif kind == "sleep":
                    await asyncio.sleep(0.001)
                else:
                    await future

        with pytest.raises(RuntimeError, match=r"await inside blocking\(\)|no running event loop"):
            await asyncio.wait_for(wrong(), LIMIT)
        await ticks()
        assert asyncio.get_running_loop() is loop

    run(main())
    gc.collect()


# ---- what stays true ---------------------------------------------------------------------------------------------


def test_context_variables(run):
    variable = contextvars.ContextVar("variable", default=0)

    async def block(number):
        variable.set(number)
        with blocking():
            time.sleep(LONG)
            assert variable.get() == number
            variable.set(-number)
        assert variable.get() == -number

    async def main():
        await asyncio.gather(*(block(n) for n in range(1, 8)))
        assert variable.get() == 0

    run(main())


@pytest.mark.skipif(sys.version_info < (3, 11), reason="create_task(context=)")
def test_tasks_that_share_a_context_with_a_body_wait_for_its_end(run):
    async def main():
        context = contextvars.copy_context()
        order = []

        async def block():
            with blocking():
                time.sleep(LONG)
            order.append("body")

        async def other():
            order.append("other")
            await asyncio.sleep(0)
            order.append("again")

        tasks = [asyncio.create_task(f(), context=context) for f in (block, other)]
        free = asyncio.create_task(ticks())
        await asyncio.gather(*tasks, free)
        assert order == ["body", "other", "again"]

    run(main())


def test_data_received_is_not_called_again_while_it_blocks(run, loop):
    async def main():
        active, received = [], []
        done = loop.create_future()

        class Slow(asyncio.Protocol):
            def data_received(self, data):
                assert not active
                active.append(1)
                with blocking():
                    time.sleep(LONG)
                active.pop()
                received.append(data)
                if sum(map(len, received)) == 3:
                    done.set_result(None)

        server = await loop.create_server(Slow, "127.0.0.1", 0)
        _, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        for _ in range(3):
            writer.write(b"x")
            await asyncio.sleep(0.005)
        await done
        writer.close()
        server.close()
        assert b"".join(received) == b"xxx"

    run(main())


def test_a_cancellation_takes_effect_at_the_next_await(run):
    async def main():
        reached = []

        async def block():
            with blocking():
                time.sleep(LONG)
            reached.append("after the body")
            await asyncio.sleep(0)
            reached.append("after the await")

        task = asyncio.create_task(block())
        asyncio.get_running_loop().call_later(LONG / 3, task.cancel)
        with pytest.raises(asyncio.CancelledError):
            await task
        assert reached == ["after the body"]

    run(main())


def test_async_with_takes_a_cancellation_at_its_end(run):
    async def main():
        async def block():
            async with asyncio.timeout(LONG / 3):
                async with blocking():
                    time.sleep(LONG)

        with pytest.raises(TimeoutError):
            await block()
        # Nothing of it is left for the next await.
        await ticks()

    run(main())


def test_timeouts_and_task_groups(run):
    async def block():
        with blocking():
            time.sleep(LONG)
        await asyncio.sleep(0)

    async def main():
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(LONG / 3):
                await block()

        async def fail():
            await asyncio.sleep(LONG / 3)
            raise LookupError

        with pytest.raises(ExceptionGroup) as caught:
            async with asyncio.TaskGroup() as group:
                group.create_task(block())
                group.create_task(fail())
        assert [type(exc) for exc in caught.value.exceptions] == [LookupError]
        await ticks()

    run(main())


def test_all_tasks_lists_the_tasks_of_every_thread(run):
    async def main():
        made = []
        seen = {}

        async def block():
            with blocking():
                time.sleep(LONG)
            seen["first"] = asyncio.all_tasks()

        async def maker():
            made.append(asyncio.create_task(asyncio.sleep(10)))
            seen["worker"] = asyncio.all_tasks()

        first = asyncio.create_task(block())
        await asyncio.sleep(0)
        made.append(asyncio.create_task(maker()))
        await first
        expected = {asyncio.current_task(), first, *made}
        assert seen["worker"] >= {asyncio.current_task(), first, *made}
        assert asyncio.all_tasks() >= {task for task in expected if not task.done()}
        made[-1].cancel()
        if made[0] is not made[-1]:
            made[0].cancel()

    run(main())


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks")
def test_eager_tasks(run, loop):
    loop.set_task_factory(asyncio.eager_task_factory)

    async def block():
        before = state()
        with blocking():
            time.sleep(LONG)
        assert state() == before
        return 1

    async def main():
        me = asyncio.current_task()
        assert await asyncio.create_task(block()) == 1
        assert asyncio.current_task() is me

    run(main())


def test_async_generators_started_on_a_worker_are_closed(run, loop):
    closed = []

    async def numbers():
        try:
            yield 1
            yield 2
        finally:
            closed.append(1)

    async def block():
        with blocking():
            time.sleep(LONG)

    async def main():
        task = asyncio.create_task(block())
        await asyncio.sleep(0)
        generator = numbers()
        await generator.__anext__()
        await task
        kept.append(generator)

    kept = []
    run(main())
    loop.run_until_complete(loop.shutdown_asyncgens())
    assert closed == [1]


def test_threads_are_named_and_end_with_the_loop(new_loop):
    loop = new_loop()

    async def main():
        with blocking():
            time.sleep(LONG)
            names.extend(thread.name for thread in threading.enumerate())

    names = []
    loop.run_until_complete(main())
    loop.close()
    assert any(name.startswith("netpoll_loop worker ") for name in names)
    assert not [t for t in threading.enumerate() if t.name.startswith("netpoll_loop worker ")]


def test_debug_mode(run, loop):
    loop.set_debug(True)

    async def main():
        with blocking():
            time.sleep(LONG)
        await ticks()

    run(main())


def test_a_thread_bound_object_of_the_task_itself_stays_usable(run):
    async def main():
        connection = sqlite3.connect(":memory:")
        with blocking():
            time.sleep(LONG)
            connection.execute("select 1")
        connection.execute("select 1")
        connection.close()

    run(main())


# ---- ends --------------------------------------------------------------------------------------------------------


def test_the_end_of_a_run_waits_for_its_own_thread(new_loop):
    loop = new_loop()
    order = []

    def callback():
        with blocking():
            time.sleep(LONG)
        order.append("body")

    loop.call_soon(callback)
    loop.call_later(LONG / 3, loop.stop)
    loop.run_forever()
    assert order == ["body"]


def test_a_body_that_outlives_the_loop_ends_with_an_error(new_loop):
    loop = new_loop()
    raised = []
    over = threading.Event()
    release = threading.Event()

    async def block():
        try:
            with blocking():
                over.wait(LIMIT)
        except RuntimeError as exc:
            raised.append(str(exc))
        finally:
            release.set()

    async def main():
        # The second body is on a worker thread.
        tasks.append(asyncio.ensure_future(hold()))
        await asyncio.sleep(0)
        tasks.append(asyncio.ensure_future(block()))
        await asyncio.sleep(LONG * 3)

    async def hold():
        with blocking():
            time.sleep(LONG)

    tasks = []
    loop.run_until_complete(main())
    for task in tasks:
        task._log_destroy_pending = False
    loop.close()
    over.set()
    assert release.wait(LIMIT)
    assert raised == ["Event loop is closed"]
    deadline = time.monotonic() + LIMIT
    while any(t.name.startswith("netpoll_loop worker ") for t in threading.enumerate()):
        assert time.monotonic() < deadline, "a worker thread is left"
        time.sleep(0.001)


@pytest.mark.parametrize("exception", [KeyboardInterrupt, SystemExit])
def test_an_exit_raised_on_a_worker_comes_out_of_run_forever(new_loop, exception):
    loop = new_loop()

    def fail():
        threads.append(threading.get_ident())
        raise exception

    def callback():
        loop.call_soon(fail)
        with blocking():
            time.sleep(LONG)
        after.append(1)

    threads, after = [], []
    loop.call_soon(callback)
    with pytest.raises(exception):
        loop.run_forever()
    assert threads != [threading.get_ident()]
    assert after == [1]


def test_ctrl_c_in_a_body_on_the_main_thread(new_loop):
    loop = new_loop()

    async def main():
        loop.call_later(LONG, os.kill, os.getpid(), signal.SIGINT)
        with blocking():
            time.sleep(LIMIT)

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        loop.run_until_complete(main())
    assert time.monotonic() - started < LIMIT


def test_runners_sigint_cancels_the_main_task_while_a_worker_runs_the_loop():
    async def main():
        loop = asyncio.get_running_loop()

        def callback():
            with blocking():
                time.sleep(LONG * 3)

        loop.call_soon(callback)
        loop.call_later(LONG, os.kill, os.getpid(), signal.SIGINT)
        try:
            await asyncio.sleep(LIMIT)
        except asyncio.CancelledError:
            cancelled.append(1)
            raise

    cancelled = []
    with pytest.raises(KeyboardInterrupt), asyncio.Runner(loop_factory=netpoll_loop.new_event_loop) as runner:
        runner.run(main())
    assert cancelled == [1]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="fork")
def test_fork_in_a_body(run):
    async def main():
        other = asyncio.create_task(ticks(10))
        with blocking():
            time.sleep(LONG)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                pid = os.fork()
            if pid == 0:
                os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
        await other

    run(main())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="fork")
def test_a_fork_in_a_body_leaves_the_offer_to_the_spares(run, loop):
    """subprocess.run(..., preexec_fn=...) is one."""

    async def main():
        with blocking():
            time.sleep(LONG)  # there is a spare from here on
        with blocking():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                pid = os.fork()
            if pid == 0:
                os._exit(0)
            os.waitpid(pid, 0)
            assert asyncio.run_coroutine_threadsafe(asyncio.sleep(0, 5), loop).result(LIMIT) == 5

    run(main())


def test_a_task_that_ends_inside_a_body_is_awaited_all_the_same(run, exceptions):
    async def ends():
        blocking().__enter__()
        return 5

    async def rows():
        with blocking():
            for i in range(3):
                yield i

    async def first():
        return await anext(rows())

    async def main():
        assert await asyncio.create_task(ends()) == 5
        assert await asyncio.create_task(first()) == 0
        while not exceptions:  # of the generator, which is closed outside its body
            await asyncio.sleep(0.001)

    run(main())
    assert "await inside blocking()" in str(exceptions.pop()["exception"])
    assert not exceptions


def test_an_interrupt_while_a_worker_thread_starts_loses_no_thread(new_loop, monkeypatch):
    """Ctrl-C in Thread.start(), which waits for the thread to begin."""
    loop = new_loop(max_workers=1)
    start = threading.Thread.start
    over = threading.Event()

    def start_and_be_interrupted(thread):
        monkeypatch.undo()
        start(thread)
        raise KeyboardInterrupt

    async def one():
        with blocking():
            time.sleep(LONG)

    async def waits(delay, busy):
        await asyncio.sleep(delay)
        time.sleep(busy)
        with blocking():
            assert over.wait(LIMIT)

    async def ends():
        await asyncio.sleep(0.01)
        with blocking():
            time.sleep(0.1)
        over.set()

    async def main():
        await asyncio.gather(waits(0, 0), ends(), waits(0.02, 0.3))

    monkeypatch.setattr(threading.Thread, "start", start_and_be_interrupted)
    with pytest.raises(KeyboardInterrupt):
        loop.run_until_complete(one())
    loop.run_until_complete(main())


def test_signal_handlers_run_while_a_worker_has_the_loop(run, loop):
    async def main():
        seen = []
        loop.add_signal_handler(signal.SIGUSR1, seen.append, 1)
        with blocking():
            time.sleep(LONG)
            os.kill(os.getpid(), signal.SIGUSR1)
            deadline = time.monotonic() + LIMIT
            while not seen and time.monotonic() < deadline:
                time.sleep(0.001)
        loop.remove_signal_handler(signal.SIGUSR1)
        assert seen == [1]

    run(main())
