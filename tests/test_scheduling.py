"""Scheduling: callbacks, timers, handles, contexts, tasks, errors, debug mode, and a loop's life from run to close."""

import asyncio
import concurrent.futures
import contextvars
import copy
import functools
import gc
import inspect
import itertools
import logging
import pickle
import random
import socket
import sys
import threading
import time
import warnings
import weakref

import pytest
from conftest import make_loop
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

PY312 = sys.version_info >= (3, 12)
PY314 = sys.version_info >= (3, 14)

VAR = contextvars.ContextVar("VAR", default="default")


def spin(loop, turns=1):
    """Runs the loop for this many turns: `stop` before `run_forever` means exactly one."""
    for _ in range(turns):
        loop.stop()
        loop.run_forever()


def nothing(*args):
    pass


def boom(*args):
    raise ZeroDivisionError("boom")


def in_thread(function):
    """Runs the function on another thread; its result or exception."""
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result(10)


# --- call_soon --------------------------------------------------------------------------------------------------------


def test_callbacks_run_in_the_order_in_which_they_were_scheduled(loop):
    seen = []
    for i in range(3000):
        loop.call_soon(seen.append, i)
    spin(loop)
    assert seen == list(range(3000))


def test_a_callback_gets_its_positional_arguments(loop):
    seen = []
    for n in range(12):
        loop.call_soon(lambda *args: seen.append(args), *range(n))
    spin(loop)
    assert seen == [tuple(range(n)) for n in range(12)]


def test_call_soon_within_a_callback_waits_for_the_next_turn(loop):
    seen = []

    def first():
        seen.append("first")
        loop.call_soon(seen.append, "from first")

    loop.call_soon(first)
    loop.call_soon(seen.append, "second")
    spin(loop)
    assert seen == ["first", "second"]
    spin(loop)
    assert seen == ["first", "second", "from first"]


def test_the_ready_queue_grows_while_it_is_being_worked_off(loop):
    seen = []

    def spawn(depth):
        seen.append(depth)
        if depth < 12:
            loop.call_soon(spawn, depth + 1)
            loop.call_soon(spawn, depth + 1)

    loop.call_soon(spawn, 0)
    spin(loop, 14)
    assert seen == sorted(seen)
    assert len(seen) == 2**13 - 1


def test_bound_methods_partials_builtins_and_callable_objects_are_callbacks(loop):
    class Callable:
        def __init__(self):
            self.calls = []

        def __call__(self, *args):
            self.calls.append(args)

        def method(self, *args):
            self.calls.append(args)

    target = Callable()
    loop.call_soon(target, 1)
    loop.call_soon(target.method, 2)
    loop.call_soon(target.calls.append, (3,))
    loop.call_soon(functools.partial(target, 4), 5)
    spin(loop)
    assert target.calls == [(1,), (2,), (3,), (4, 5)]


def test_after_a_run_the_loop_keeps_no_reference_to_callback_and_arguments(loop):
    class Thing:
        def method(self, *args):
            pass

    thing, argument = Thing(), Thing()
    watch = [weakref.ref(thing), weakref.ref(argument)]
    for _ in range(100):
        loop.call_soon(thing.method, argument)
        loop.call_soon_threadsafe(thing.method, argument)
        loop.call_later(0, thing.method, argument)
        loop.call_later(3600, thing.method, argument).cancel()
    spin(loop, 3)
    time.sleep(2 * time.get_clock_info("monotonic").resolution)
    spin(loop)
    del thing, argument
    gc.collect()
    assert [ref() for ref in watch] == [None, None]


def test_a_kept_handle_is_never_recycled_for_another_callback(loop):
    seen = []
    old = [loop.call_soon(nothing) for _ in range(50)]
    spin(loop)
    for i in range(500):
        loop.call_soon(seen.append, i)
    for handle in old:
        handle.cancel()
    spin(loop)
    assert seen == list(range(500))


# --- handles ----------------------------------------------------------------------------------------------------------


def make_handles(loop, callback, *args):
    """One handle of each kind, the same for every loop: same line of source, same time."""
    return [
        loop.call_soon(callback, *args),
        loop.call_soon_threadsafe(callback, *args),
        loop.call_at(1e9 + 0.5, callback, *args),
    ]


def test_handles_are_asyncios(loop):
    soon, threadsafe, timer = make_handles(loop, nothing)
    later = loop.call_later(3600, nothing)
    for handle in (soon, threadsafe, timer, later):
        assert isinstance(handle, asyncio.Handle)
        assert not handle.cancelled()
    for handle in (timer, later):
        assert isinstance(handle, asyncio.TimerHandle)
    for handle in (soon, threadsafe):
        assert not isinstance(handle, asyncio.TimerHandle)
    assert timer.when() == 1e9 + 0.5


@pytest.mark.parametrize("debug", [False, True])
@pytest.mark.parametrize("state", ["pending", "cancelled"])
@pytest.mark.parametrize(
    ("callback", "args"),
    [
        (nothing, ()),
        (nothing, (1, "two")),
        (len, ([],)),
        (nothing, ("x" * 500,)),
        (functools.partial(nothing, 1), (2,)),
        (contextvars.copy_context, ()),
    ],
)
def test_a_handles_repr_is_asyncios(loop, stock_loop, debug, state, callback, args):
    texts = []
    for each in (loop, stock_loop):
        each.set_debug(debug)
        handles = make_handles(each, callback, *args)
        if state == "cancelled":
            for handle in handles:
                handle.cancel()
        texts.append([repr(handle) for handle in handles])
    ours, stock = texts
    if any("created at" in text for text in stock):
        # `call_soon_threadsafe` and a compiled frame above the caller must not show.
        assert all(__file__ in text for text in ours)
    assert ours == stock


def test_a_cancelled_callback_is_not_called(loop):
    seen = []
    for i in range(10):
        handles = [
            loop.call_soon(seen.append, i),
            loop.call_soon_threadsafe(seen.append, i),
            loop.call_later(0, seen.append, i),
            loop.call_at(loop.time(), seen.append, i),
        ]
        if i % 2:
            for handle in handles:
                handle.cancel()
                assert handle.cancelled()
                handle.cancel()
                assert handle.cancelled()
    loop.call_later(0.01, loop.stop)
    loop.run_forever()
    assert sorted(seen) == sorted([0, 2, 4, 6, 8] * 4)


def test_a_callback_cancels_one_that_is_due_in_the_same_turn(loop):
    seen = []
    loop.call_soon(lambda: [handle.cancel() for handle in handles])
    handles = [loop.call_soon(seen.append, "soon"), loop.call_at(loop.time() - 1, seen.append, "timer")]
    spin(loop, 2)
    assert seen == []


def test_a_callback_may_cancel_its_own_handle(loop, exceptions):
    seen = []

    def cancel_myself():
        handle.cancel()
        seen.append(handle.cancelled())

    handle = loop.call_soon(cancel_myself)
    spin(loop)
    handle = loop.call_later(0, cancel_myself)
    loop.call_later(0.01, loop.stop)
    loop.run_forever()
    assert seen == [True, True]
    assert exceptions == []


def test_cancelling_after_the_run_is_harmless(loop):
    seen = []
    handles = [loop.call_soon(seen.append, 1), loop.call_at(loop.time() - 1, seen.append, 2)]
    spin(loop)
    assert sorted(seen) == [1, 2]
    assert not any(handle.cancelled() for handle in handles)
    for handle in handles:
        handle.cancel()
        assert handle.cancelled()
    spin(loop)
    assert sorted(seen) == [1, 2]


def test_cancelling_lets_go_of_callback_and_arguments_at_once(loop):
    class Thing:
        pass

    handles = []
    for schedule in (loop.call_soon, loop.call_soon_threadsafe, lambda *args: loop.call_later(3600, *args)):
        thing = Thing()
        watch = weakref.ref(thing)
        handle = schedule(nothing, thing)
        handles.append(handle)
        del thing
        assert watch() is not None
        handle.cancel()
        gc.collect()
        assert watch() is None


def test_cancelling_a_timer_from_another_thread_is_safe(loop):
    seen = []
    handle = loop.call_later(0.2, seen.append, "timer")
    in_thread(lambda: loop.call_soon_threadsafe(handle.cancel))
    loop.call_later(0.4, loop.stop)
    loop.run_forever()
    assert seen == []


@pytest.mark.skipif(sys.version_info < (3, 14), reason="new in Python 3.14")
@pytest.mark.parametrize("how", ["cancel", "cancelled"])
def test_other_threads_wait_for_a_running_threadsafe_callback(loop, how):
    started, seen = threading.Event(), []

    def callback():
        started.set()
        # Long enough for the thread to get into the call.
        time.sleep(0.2)
        assert handles[0].cancelled() is False  # its own thread doesn't wait
        seen.append("ended")

    def in_thread():
        handles.append(loop.call_soon_threadsafe(callback))
        started.wait(5)
        getattr(handles[0], how)()
        seen.append("returned")
        loop.call_soon_threadsafe(loop.stop)

    handles = []
    thread = threading.Thread(target=in_thread)
    thread.start()
    loop.run_forever()
    thread.join(5)
    assert seen == ["ended", "returned"]


def test_timer_handles_compare_by_time_and_hash_by_time(loop, stock_loop):
    def answers(loop):
        a = loop.call_at(1e9, nothing, 1)
        b = loop.call_at(2e9, nothing, 1)
        same = loop.call_at(1e9, nothing, 1)
        other = loop.call_at(1e9, len, 1)
        cancelled = loop.call_at(1e9, nothing, 1)
        cancelled.cancel()
        return [
            (x == y, x != y, x < y, x <= y, x > y, x >= y)
            for x, y in itertools.product((a, b, same, other, cancelled), repeat=2)
        ] + [hash(a) == hash(1e9), a == 1e9, a != 1e9]

    assert answers(loop) == answers(stock_loop)
    with pytest.raises(TypeError):
        loop.call_at(1e9, nothing) < 1e9  # noqa: B015
    handles = [loop.call_at(when, nothing) for when in (3e9, 1e9, 2e9)]
    assert [handle.when() for handle in sorted(handles)] == [1e9, 2e9, 3e9]


def test_plain_handles_compare_by_identity(loop):
    a, b = loop.call_soon(nothing), loop.call_soon(nothing)
    assert a == a and a != b
    assert len({a, b}) == 2


def test_handles_can_be_weakly_referenced(loop):
    for handle in make_handles(loop, nothing):
        assert weakref.ref(handle)() is handle


@pytest.mark.skipif(not hasattr(asyncio.Handle, "get_context"), reason="Handle.get_context is new in Python 3.12")
def test_a_handle_tells_its_context(loop):
    context = contextvars.copy_context()
    for handle in (
        loop.call_soon(nothing, context=context),
        loop.call_soon_threadsafe(nothing, context=context),
        loop.call_later(3600, nothing, context=context),
        loop.call_at(1e9, nothing, context=context),
    ):
        assert handle.get_context() is context
    assert isinstance(loop.call_soon(nothing).get_context(), contextvars.Context)


# --- contexts ---------------------------------------------------------------------------------------------------------

SCHEDULERS = {
    "call_soon": lambda loop: loop.call_soon,
    "call_soon_threadsafe": lambda loop: loop.call_soon_threadsafe,
    "call_later": lambda loop: lambda *args, **kwargs: loop.call_later(0, *args, **kwargs),
    "call_at": lambda loop: lambda *args, **kwargs: loop.call_at(loop.time(), *args, **kwargs),
}


@pytest.fixture(params=SCHEDULERS)
def schedule(request, loop):
    """Each method that schedules a callback, bound to the loop, with a time that is already due."""
    return SCHEDULERS[request.param](loop)


def run_due(loop):
    loop.call_later(0.005, loop.stop)
    loop.run_forever()


def test_a_callback_runs_in_a_copy_of_the_context_that_scheduled_it(loop, schedule):
    seen = []

    def body():
        token = VAR.set("at scheduling")
        schedule(lambda: seen.append(VAR.get()))
        VAR.set("after scheduling")
        VAR.reset(token)

    contextvars.copy_context().run(body)
    run_due(loop)
    assert seen == ["at scheduling"]


def test_what_a_callback_sets_stays_in_its_copy(loop, schedule):
    seen = []
    schedule(VAR.set, "leak")
    schedule(lambda: seen.append(VAR.get()))
    run_due(loop)
    assert seen == ["default"]
    assert VAR.get() == "default"


def test_what_a_callback_sets_is_seen_by_what_it_schedules_and_by_nobody_else(loop, schedule):
    seen = []

    def read(who):
        seen.append((who, VAR.get()))

    def set_and_schedule(i):
        schedule(read, f"before {i}")
        VAR.set(i)
        schedule(read, f"after {i}")
        schedule(read, f"after {i}, too")

    for i in range(3):
        schedule(set_and_schedule, i)
        schedule(read, f"beside {i}")
    run_due(loop)
    assert sorted(seen) == sorted(
        [(f"beside {i}", "default") for i in range(3)]
        + [(f"before {i}", "default") for i in range(3)]
        + [(f"after {i}{too}", i) for i in range(3) for too in ("", ", too")]
    )


@pytest.mark.skipif(not hasattr(asyncio.Handle, "get_context"), reason="Handle.get_context is new in Python 3.12")
def test_each_callback_has_a_context_of_its_own_that_stays_the_same(loop, schedule):
    handles, during = [], []

    def run(i):
        during.append(handles[i].get_context())

    for i in range(20):
        handles.append(schedule(run, i))
    before = [handle.get_context() for handle in handles[:10]]
    run_due(loop)
    after = [handle.get_context() for handle in handles]
    assert all(a is b for a, b in zip(before, after, strict=False))
    assert all(a is b for a, b in zip(during, after, strict=True))
    assert len({id(context) for context in after}) == 20


@pytest.mark.skipif(not hasattr(asyncio.Handle, "get_context"), reason="Handle.get_context is new in Python 3.12")
def test_a_context_that_somebody_keeps_is_not_used_for_another_callback(loop):
    kept = []

    async def main():
        def look():
            kept.append(handle.get_context())

        for _ in range(50):
            handle = loop.call_soon(look)
            await asyncio.sleep(0)
            del handle
            await asyncio.sleep(0)

    loop.run_until_complete(main())
    assert len({id(context) for context in kept}) == 50


def test_a_timer_has_the_values_of_when_it_was_scheduled(loop):
    seen = []

    def body(value):
        VAR.set(value)
        loop.call_later(0.001, lambda: seen.append(VAR.get()))
        loop.call_soon(VAR.set, "other")
        loop.call_soon(VAR.set, None)

    for value in range(10):
        contextvars.copy_context().run(body, value)
    run_due(loop)
    assert seen == list(range(10))


def test_an_idle_loop_keeps_no_value_of_a_context_alive(loop, run):
    class Value:
        pass

    async def main():
        def body():
            value = Value()
            VAR.set(value)
            for _ in range(3):
                loop.call_soon(nothing)
            return weakref.ref(value)

        reference = contextvars.copy_context().run(body)
        assert reference() is not None
        await asyncio.sleep(0.01)
        gc.collect()
        assert reference() is None

    run(main())


@pytest.mark.not_on_oracle("a stock loop keeps a cancelled timer, and its context")
def test_a_handle_that_is_kept_keeps_its_values_only(loop):
    values = [type("Value", (), {})() for _ in range(2)]

    def body(value):
        VAR.set(value)
        return loop.call_later(3600, nothing)

    handles = [contextvars.copy_context().run(body, value) for value in values]
    references = [weakref.ref(value) for value in values]
    del values
    run_due(loop)
    gc.collect()
    assert all(reference() is not None for reference in references)
    handles[0].cancel()
    handles.clear()
    run_due(loop)
    gc.collect()
    assert references[0]() is None
    assert references[1]() is not None  # it still waits


def test_a_given_context_is_used_itself(loop, schedule):
    context = contextvars.copy_context()
    context.run(VAR.set, "given")
    seen = []
    schedule(lambda: seen.append(VAR.get()), context=context)
    schedule(VAR.set, "written", context=context)
    run_due(loop)
    assert seen == ["given"]
    assert context[VAR] == "written"


def test_context_none_means_a_copy_of_the_current_one(loop, schedule):
    seen = []
    schedule(lambda: seen.append(VAR.get()), context=None)
    run_due(loop)
    assert seen == ["default"]


def test_the_context_is_left_again_when_the_callback_raises(loop, schedule, exceptions):
    context = contextvars.copy_context()
    seen = []
    schedule(boom, context=context)
    schedule(seen.append, 1, context=context)
    run_due(loop)
    assert seen == [1]
    assert [type(c["exception"]) for c in exceptions] == [ZeroDivisionError]


def test_what_is_no_context_is_an_error_of_the_callback(loop, exceptions):
    seen = []
    loop.call_soon(seen.append, "never", context=5)
    loop.call_later(0, seen.append, "never", context="context")
    loop.call_later(0, seen.append, "next")
    spin(loop, 2)
    assert seen == ["next"]
    assert [str(context["message"])[:22] for context in exceptions] == ["Exception in callback "] * 2


def test_other_threads_run_while_all_callbacks_are_in_c(loop):
    # They run none of the bytecodes between which the interpreter hands the GIL over.
    def other():
        for _ in range(5):
            time.sleep(0.001)
        loop.call_soon_threadsafe(loop.stop)

    again = functools.partial(loop.call_soon)
    again.__setstate__((loop.call_soon, (again,), {}, {}))
    loop.call_soon(again)
    thread = threading.Thread(target=other)
    thread.start()
    loop.run_forever()
    thread.join()
    again.__setstate__((nothing, (), {}, {}))


def test_a_context_that_is_already_entered_is_an_error_of_the_callback(loop, exceptions, caplog):
    context = contextvars.copy_context()
    seen = []

    def enter():
        loop.call_soon(seen.append, "never", context=context)
        loop.call_soon(seen.append, "next")
        spin(loop)

    context.run(enter)
    assert seen == ["next"]
    # Since Python 3.12 the handler itself can't enter that context either, which is then logged.
    assert len(exceptions) + len(caplog.records) == 1


def test_a_reader_runs_in_the_context_that_added_it(loop, socket_pair):
    ours, theirs = socket_pair()
    seen = []

    def body():
        VAR.set("reader")
        loop.add_reader(ours, read)
        VAR.set("later")

    def read():
        seen.append(VAR.get())
        ours.recv(10)
        VAR.set("written by reader")
        loop.stop() if len(seen) == 2 else theirs.send(b"y")

    contextvars.copy_context().run(body)
    theirs.send(b"x")
    loop.run_forever()
    loop.remove_reader(ours)
    assert seen == ["reader", "written by reader"]


def test_tasks_have_contexts_of_their_own(run):
    async def child(value):
        before = VAR.get()
        VAR.set(value)
        await asyncio.sleep(0)
        return before, VAR.get()

    async def main():
        VAR.set("main")
        results = await asyncio.gather(*(child(i) for i in range(5)))
        return results, VAR.get()

    results, after = run(main())
    assert results == [("main", i) for i in range(5)]
    assert after == "main"


# --- call_soon_threadsafe ---------------------------------------------------------------------------------------------


def test_call_soon_threadsafe_wakes_an_idle_loop(loop):
    def wake():
        time.sleep(0.1)
        loop.call_soon_threadsafe(loop.stop)

    thread = threading.Thread(target=wake)
    thread.start()
    loop.run_forever()
    thread.join()


def test_call_soon_threadsafe_wakes_a_loop_that_waits_for_a_far_timer(loop):
    handle = loop.call_later(3600, nothing)
    woken = []

    def wake():
        for _ in range(20):
            done = threading.Event()
            loop.call_soon_threadsafe(done.set)
            woken.append(done.wait(10))
            time.sleep(0.002)
        loop.call_soon_threadsafe(loop.stop)

    thread = threading.Thread(target=wake)
    thread.start()
    loop.run_forever()
    thread.join()
    handle.cancel()
    assert woken == [True] * 20


def test_call_soon_threadsafe_before_the_run_is_not_lost(loop):
    seen = []
    in_thread(lambda: loop.call_soon_threadsafe(seen.append, 1))
    loop.call_soon_threadsafe(seen.append, 2)
    loop.call_soon_threadsafe(loop.stop)
    loop.run_forever()
    assert seen == [1, 2]


def test_call_soon_threadsafe_from_many_threads_loses_nothing_and_keeps_each_threads_order(loop):
    threads, count = 8, 3000
    seen = [[] for _ in range(threads)]
    left = [threads * count]

    def arrive(who, what):
        seen[who].append(what)
        left[0] -= 1
        if not left[0]:
            loop.stop()

    def produce(who):
        for i in range(count):
            loop.call_soon_threadsafe(arrive, who, i)
            if i % 100 == 0:
                time.sleep(0)

    workers = [threading.Thread(target=produce, args=(i,)) for i in range(threads)]
    for worker in workers:
        worker.start()
    loop.run_forever()
    for worker in workers:
        worker.join()
    assert seen == [list(range(count))] * threads


def test_call_soon_and_call_soon_threadsafe_on_the_loops_thread_share_one_order(loop):
    seen = []

    def mix():
        for i in range(0, 100, 2):
            loop.call_soon(seen.append, i)
            loop.call_soon_threadsafe(seen.append, i + 1)

    loop.call_soon(mix)
    spin(loop, 2)
    assert seen == list(range(100))


def test_call_soon_threadsafe_from_a_thread_that_outlives_the_loop_raises(new_loop):
    loop = new_loop()
    loop.close()
    with pytest.raises(RuntimeError, match=r"^Event loop is closed$"):
        in_thread(lambda: loop.call_soon_threadsafe(nothing))


def test_a_timer_may_be_cancelled_while_its_loop_closes(loop_class):
    class Loop(loop_class):
        """Cancels a timer in the middle of close(): the engine is gone, and is_closed() not yet true."""

        def _close_self_pipe(self):
            assert not self.is_closed()
            timer.cancel()
            super()._close_self_pipe()

    loop = Loop()
    timer = loop.call_later(100, int)
    loop.close()
    assert timer.cancelled()


def test_closing_races_with_stop_without_harm(new_loop):
    loops = []
    done = threading.Event()

    def stop():
        while not done.is_set():
            for loop in loops[-1:]:
                loop.stop()

    thread = threading.Thread(target=stop)
    thread.start()
    try:
        for _ in range(100):
            loop = new_loop()
            loops.append(loop)
            loop.close()
            loop.stop()
    finally:
        done.set()
        thread.join(30)


def test_closing_races_with_call_soon_threadsafe_without_harm(new_loop):
    for _ in range(30):
        loop = new_loop()
        go = threading.Barrier(3)
        unexpected = []

        def produce(loop=loop, go=go, unexpected=unexpected):
            go.wait()
            for _ in range(200):
                try:
                    loop.call_soon_threadsafe(nothing)
                except RuntimeError as exc:
                    if str(exc) != "Event loop is closed":
                        unexpected.append(exc)
                    return

        threads = [threading.Thread(target=produce) for _ in range(2)]
        for thread in threads:
            thread.start()
        go.wait()
        spin(loop)
        loop.close()
        for thread in threads:
            thread.join(10)
        assert unexpected == []


def test_a_foreign_threads_call_soon_raises_or_is_safe(run_child):
    """Issue: "a foreign thread's call_soon raises or is safe, never corrupts": in a child, for a crash would be one."""
    done = run_child(
        """
        import threading, time
        loop = new_event_loop()
        ran, accepted, refused = [0], [0] * 4, [0] * 4
        def count(): ran[0] += 1
        def hammer(who):
            for i in range(20000):
                try:
                    loop.call_soon(count)
                except RuntimeError:
                    refused[who] += 1
                else:
                    accepted[who] += 1
        own = [0]
        def chain():
            own[0] += 1
            if any(t.is_alive() for t in threads):
                loop.call_soon(chain)
            else:
                loop.call_later(0.05, loop.stop)
        threads = [threading.Thread(target=hammer, args=(i,)) for i in range(4)]
        loop.call_soon(chain)
        for t in threads: t.start()
        loop.run_forever()
        for t in threads: t.join()
        loop.close()
        assert ran[0] == sum(accepted), (ran, accepted, refused)
        assert sum(accepted) + sum(refused) == 80000
        assert own[0] > 0
        print("sound")
        """
    )
    assert done.stdout == "sound\n"


@pytest.mark.netpoll_only("stock asyncio's heap of timers can break under foreign threads")
def test_foreign_threads_scheduling_and_cancelling_timers_do_not_corrupt_the_loop(run_child):
    done = run_child(
        """
        import threading, random
        loop = new_event_loop()
        def nothing(): pass
        unexpected = []
        def hammer(who):
            rng = random.Random(who)
            kept = []
            for i in range(5000):
                try:
                    kept.append(loop.call_later(rng.random() / 100, nothing))
                    kept.append(loop.call_soon(nothing))
                    if len(kept) > 10:
                        kept.pop(rng.randrange(len(kept))).cancel()
                except RuntimeError:
                    pass
                except BaseException as exc:
                    unexpected.append(exc)
        loop.set_exception_handler(lambda loop, context: unexpected.append(context))
        own = []
        threads = [threading.Thread(target=hammer, args=(i,)) for i in range(4)]
        for i in range(1000):
            loop.call_later(i / 2000, own.append, i)
        def watch():
            if any(t.is_alive() for t in threads) or len(own) < 1000:
                loop.call_later(0.01, watch)
            else:
                loop.stop()
        loop.call_soon(watch)
        for t in threads: t.start()
        loop.run_forever()
        for t in threads: t.join()
        loop.close()
        assert own == list(range(1000))
        assert not unexpected, unexpected
        print("sound")
        """,
        timeout=50,
    )
    assert done.stdout == "sound\n"


# --- timers -----------------------------------------------------------------------------------------------------------


def test_time_is_monotonic_seconds(loop):
    assert isinstance(loop.time(), float)
    before, now, after = time.monotonic(), loop.time(), time.monotonic()
    assert before <= now <= after


def test_timers_run_in_the_order_of_their_times(loop):
    seen = []
    base = loop.time()
    for delay in random.Random(1).sample(range(100), 100):
        loop.call_at(base + delay / 2000, seen.append, delay)
    loop.call_at(base + 0.06, loop.stop)
    loop.run_forever()
    assert seen == list(range(100))


def test_two_timers_of_equal_time_run_in_the_order_in_which_they_were_scheduled(loop):
    """Of two only: asyncio's heap promises no order among more (0, 1, 2 run as 0, 2, 1)."""
    seen = []
    when = loop.time() + 0.01
    loop.call_at(when, seen.append, 0)
    loop.call_at(when, seen.append, 1)
    loop.call_at(when + 0.01, loop.stop)
    loop.run_forever()
    assert seen == [0, 1]


def test_all_timers_of_one_time_run_in_one_turn(loop):
    seen = []
    when = loop.time() - 1
    for i in range(100):
        loop.call_at(when, seen.append, i)
    spin(loop)
    assert sorted(seen) == list(range(100))


def test_a_timer_never_runs_early(loop):
    early = []
    resolution = time.get_clock_info("monotonic").resolution

    def check(when):
        if loop.time() + resolution < when:
            early.append(when - loop.time())

    for i in range(200):
        when = loop.time() + i / 4000
        loop.call_at(when, check, when)
        loop.call_later(i / 4000, check, loop.time() + i / 4000 - resolution)
    loop.call_later(0.06, loop.stop)
    loop.run_forever()
    assert early == []


@pytest.mark.parametrize("delay", [0, -1, -1e9, 0.0, False, float("-inf")])
def test_a_delay_of_zero_or_less_is_due_in_the_next_turn(loop, delay):
    seen = []
    loop.call_later(delay, seen.append, 1)
    time.sleep(0.001)
    spin(loop)
    assert seen == [1]


def test_call_later_counts_from_now_and_not_from_the_start_of_the_turn(loop):
    seen = []

    def slow():
        time.sleep(0.05)
        start = loop.time()
        handle = loop.call_later(0.01, done, start)
        assert handle.when() >= start + 0.01

    def done(start):
        seen.append(loop.time() - start >= 0.01 - time.get_clock_info("monotonic").resolution)
        loop.stop()

    loop.call_soon(slow)
    loop.run_forever()
    assert seen == [True]


def test_an_infinite_timer_never_runs_and_does_not_disturb(loop):
    seen = []
    handle = loop.call_at(float("inf"), seen.append, "never")
    huge = loop.call_later(1e15, seen.append, "never")
    loop.call_later(0.01, loop.stop)
    loop.run_forever()
    assert seen == []
    assert handle.when() == float("inf")
    handle.cancel()
    huge.cancel()


def test_a_timer_scheduled_by_a_timer_waits_for_the_next_turn(loop):
    seen = []

    def first():
        seen.append("first")
        loop.call_at(loop.time() - 1, seen.append, "second")

    loop.call_at(loop.time() - 1, first)
    spin(loop)
    assert seen == ["first"]
    spin(loop)
    assert seen == ["first", "second"]


def test_a_near_timer_shortens_the_wait_for_a_far_one(loop):
    far = loop.call_later(3600, nothing)
    loop.call_later(0.01, lambda: loop.call_later(0.01, loop.stop))
    loop.run_forever()
    far.cancel()


def test_cancelling_the_nearest_timer_leaves_the_others(loop):
    seen = []
    base = loop.time()
    handles = [loop.call_at(base + i / 1000, seen.append, i) for i in range(20)]
    for handle in handles[:10]:
        handle.cancel()
    loop.call_at(base + 0.03, loop.stop)
    loop.run_forever()
    assert seen == list(range(10, 20))


def test_integer_times_are_accepted(loop):
    seen = []
    handle = loop.call_at(1, seen.append, 1)
    assert handle.when() == 1
    loop.call_later(0, seen.append, 2)
    spin(loop)
    time.sleep(0.001)
    spin(loop)
    assert sorted(seen) == [1, 2]


def test_ten_thousand_timers_with_random_cancels_run_exactly_the_rest_in_order(loop):
    rng = random.Random(7)
    seen, cancelled = [], set()
    base = loop.time() + 0.05
    handles = {}

    def fire(i):
        seen.append(i)
        assert i not in cancelled
        for _ in range(2):
            other = rng.randrange(10_000)
            if other not in fired_or_cancelled:
                fired_or_cancelled.add(other)
                cancelled.add(other)
                handles[other].cancel()

    fired_or_cancelled = set()

    def arrive(i):
        fired_or_cancelled.add(i)
        fire(i)

    whens = [base + rng.random() / 4 for _ in range(10_000)]
    for i, when in enumerate(whens):
        handles[i] = loop.call_at(when, arrive, i)
    for i in rng.sample(range(10_000), 3000):
        handles[i].cancel()
        cancelled.add(i)
        fired_or_cancelled.add(i)
    loop.call_at(base + 0.3, loop.stop)
    loop.run_forever()
    assert set(seen) == set(range(10_000)) - cancelled
    assert len(seen) == len(set(seen))
    assert [whens[i] for i in seen] == sorted(whens[i] for i in seen)


def timer_machine(loop_class):
    """A model of the timers under a clock that stands still unless moved: what is due, in order, and nothing else."""

    class Timers(RuleBasedStateMachine):
        @initialize()
        def start(self):
            class Clock(loop_class):
                now = 1000.0

                def time(self):
                    return self.now

            self.loop = Clock()
            self.pending = {}
            self.numbers = itertools.count()
            self.seen = []
            self.expected = []

        def add(self, when):
            number = next(self.numbers)
            self.pending[number] = (when, self.loop.call_at(when, self.seen.append, (when, number)))

        @rule(delay=st.sampled_from([-1.0, 0.0, 0.5, 1.0, 2.0, 5.0]) | st.floats(-2, 10))
        def call_later(self, delay):
            self.add(self.loop.time() + delay)

        @rule(delays=st.lists(st.floats(0, 10), max_size=150))
        def call_many(self, delays):
            for delay in delays:
                self.add(self.loop.time() + delay)

        @precondition(lambda self: self.pending)
        @rule(data=st.data())
        def cancel(self, data):
            number = data.draw(st.sampled_from(sorted(self.pending)))
            self.pending.pop(number)[1].cancel()

        @precondition(lambda self: len(self.pending) > 100)
        @rule(keep=st.integers(0, 10))
        def cancel_most(self, keep):
            for number in sorted(self.pending)[keep:]:
                self.pending.pop(number)[1].cancel()

        @rule(seconds=st.floats(0, 4))
        def advance(self, seconds):
            self.loop.now += seconds
            # One nanosecond is the clock's resolution, within which a timer counts as due.
            due = sorted((when, n) for n, (when, _) in self.pending.items() if when < self.loop.now + 1e-9)
            for _, number in due:
                del self.pending[number]
            self.seen.clear()
            spin(self.loop)
            assert [when for when, _ in self.seen] == [when for when, _ in due]
            assert sorted(self.seen) == due

        def teardown(self):
            if hasattr(self, "loop"):
                self.loop.close()

    return Timers


def test_timers_agree_with_a_model(loop_class):
    run_state_machine_as_test(
        timer_machine(loop_class),
        settings=settings(max_examples=40, stateful_step_count=25, deadline=None, database=None),
    )


def test_an_overridden_time_moves_the_timers(loop_class):
    class Clock(loop_class):
        now = 0.0

        def time(self):
            return self.now

    loop = Clock()
    try:
        seen = []
        assert loop.time() == 0.0
        handle = loop.call_later(1000, seen.append, "timer")
        assert handle.when() == 1000.0
        spin(loop)
        assert seen == []
        loop.now = 999.0
        spin(loop)
        assert seen == []
        loop.now = 1000.0
        spin(loop)
        assert seen == ["timer"]
    finally:
        loop.close()


def test_a_patched_time_moves_the_timers(loop, monkeypatch):
    now = [5.0]
    monkeypatch.setattr(loop, "time", lambda: now[0])
    seen = []

    async def main():
        loop.call_later(3600, seen.append, "hour")
        assert asyncio.get_running_loop().time() == 5.0
        loop.call_soon(lambda: now.__setitem__(0, 5.0 + 3600))
        await asyncio.sleep(3599)
        seen.append("slept")
        await asyncio.sleep(0)

    loop.run_until_complete(main())
    assert sorted(seen) == ["hour", "slept"]
    monkeypatch.undo()
    assert loop.time() > 5.0 + 3600 or abs(loop.time() - time.monotonic()) < 60


# --- nothing starves --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("busy", [0, 1, 100])
def test_a_chain_of_callbacks_starves_neither_timers_nor_io_nor_threads(loop, socket_pair, busy):
    ours, theirs = socket_pair()
    happened = set()

    def chain():
        if len(happened) < 3:
            loop.call_soon(chain)
        else:
            loop.stop()

    def read():
        ours.recv(10)
        happened.add("io")

    for _ in range(busy + 1):
        loop.call_soon(chain)
    loop.add_reader(ours, read)
    loop.call_later(0.02, happened.add, "timer")

    def outside():
        time.sleep(0.02)
        theirs.send(b"x")
        loop.call_soon_threadsafe(happened.add, "thread")

    thread = threading.Thread(target=outside)
    thread.start()
    loop.run_forever()
    thread.join()
    loop.remove_reader(ours)
    assert happened == {"io", "timer", "thread"}


def test_io_does_not_starve_callbacks_and_timers(loop, socket_pair):
    ours, theirs = socket_pair()
    theirs.send(b"x")
    turns = [0]
    happened = []

    def always_readable():
        turns[0] += 1

    def chain(left):
        loop.call_soon(chain, left - 1) if left else happened.append("chain")

    loop.add_reader(ours, always_readable)
    loop.call_soon(chain, 50)
    loop.call_later(0.05, happened.append, "timer")
    loop.call_later(0.1, loop.stop)
    loop.run_forever()
    loop.remove_reader(ours)
    assert happened == ["chain", "timer"]
    assert turns[0] > 1


# --- futures and tasks ------------------------------------------------------------------------------------------------


def test_create_future_is_bound_to_the_loop(loop):
    future = loop.create_future()
    assert isinstance(future, asyncio.Future)
    assert future.get_loop() is loop
    assert asyncio.isfuture(future)
    loop.call_soon(future.set_result, 5)
    assert loop.run_until_complete(future) == 5


def test_create_task_takes_a_name(run, loop):
    async def main():
        named = loop.create_task(asyncio.sleep(0), name="the name")
        unnamed = loop.create_task(asyncio.sleep(0), name=None)
        assert named.get_name() == "the name"
        assert unnamed.get_name().startswith("Task-")
        await asyncio.gather(named, unnamed)

    run(main())


def test_create_task_takes_a_context(run, loop):
    async def write():
        VAR.set("in task")

    async def main():
        context = contextvars.copy_context()
        await loop.create_task(write(), context=context)
        assert context[VAR] == "in task"
        assert VAR.get() == "default"

    run(main())


def test_create_task_takes_name_and_context_together(run, loop):
    async def value():
        return VAR.get()

    async def main():
        context = contextvars.copy_context()
        context.run(VAR.set, "both")
        task = loop.create_task(value(), name="n", context=context)
        assert (await task, task.get_name()) == ("both", "n")

    run(main())


@pytest.mark.skipif(not PY314, reason="eager_start is new in Python 3.14")
def test_create_task_takes_eager_start(run, loop):
    async def main():
        seen = []

        async def body():
            seen.append("started")
            await asyncio.sleep(0)
            return "result"

        task = loop.create_task(body(), eager_start=True, name="eager")
        assert seen == ["started"]
        assert await task == "result"
        lazy = loop.create_task(body(), eager_start=False)
        assert seen == ["started"]
        await lazy

    run(main())


def test_create_task_takes_what_the_running_asyncio_takes(loop):
    stock = inspect.signature(asyncio.SelectorEventLoop.create_task).parameters
    ours = dict(inspect.signature(type(loop).create_task).parameters)
    if (3, 13) <= sys.version_info < (3, 13, 3):
        # Those of 3.13.3, see tests/test_parameters.py.
        ours.pop("kwargs", None)
    # Nobody passes self by name: the method may be written in C.
    assert [(p.name, p.kind) for p in ours.values()][1:] == [(p.name, p.kind) for p in stock.values()][1:]


def test_tasks_start_in_the_order_in_which_they_were_created(run):
    async def main():
        seen = []

        async def body(i):
            seen.append(i)

        await asyncio.gather(*(body(i) for i in range(200)))
        assert seen == list(range(200))

    run(main())


def test_a_task_factory_makes_the_tasks(run, loop):
    made = []

    class MyTask(asyncio.Task):
        pass

    def factory(loop, coro, **kwargs):
        made.append(kwargs.get("name"))
        return MyTask(coro, loop=loop, **kwargs)

    loop.set_task_factory(factory)
    assert loop.get_task_factory() is factory

    async def main():
        task = asyncio.create_task(asyncio.sleep(0, "x"), name="mine")
        assert isinstance(task, MyTask)
        assert task.get_name() == "mine"
        assert await task == "x"

    run(main())
    assert "mine" in made or None in made
    loop.set_task_factory(None)
    assert loop.get_task_factory() is None


@pytest.mark.skipif(not PY312, reason="eager tasks are new in Python 3.12")
def test_eager_tasks_run_at_once_up_to_their_first_wait(run, loop):
    loop.set_task_factory(asyncio.eager_task_factory)

    async def main():
        seen = []

        async def quick():
            seen.append(asyncio.current_task() is not outer)
            return "quick"

        async def slow():
            seen.append("before")
            await asyncio.sleep(0)
            seen.append("after")

        outer = asyncio.current_task()
        task = asyncio.create_task(quick())
        assert task.done() and task.result() == "quick"
        assert asyncio.current_task() is outer
        waiting = asyncio.create_task(slow())
        assert seen == [True, "before"]
        assert waiting in asyncio.all_tasks()
        await waiting
        assert seen == [True, "before", "after"]

    run(main())


@pytest.mark.skipif(not PY312, reason="eager tasks are new in Python 3.12")
def test_an_eager_task_may_be_cancelled_and_may_raise(run, loop):
    loop.set_task_factory(asyncio.eager_task_factory)

    async def main():
        async def fail():
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await asyncio.create_task(fail())
        task = asyncio.create_task(asyncio.sleep(3600))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(main())


def test_all_tasks_and_current_task_know_the_loop(run, loop):
    async def main():
        me = asyncio.current_task()
        assert me is asyncio.current_task(loop)
        other = asyncio.create_task(asyncio.sleep(0))
        assert {me, other} <= asyncio.all_tasks()
        await other
        assert other not in asyncio.all_tasks()

    run(main())
    assert asyncio.all_tasks(loop) == set()
    assert asyncio.current_task(loop) is None


def test_timeouts_and_task_groups_work(run):
    async def main():
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await asyncio.sleep(3600)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.sleep(3600), 0.01)
        async with asyncio.timeout(30):
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(asyncio.sleep(0.001 * i, i)) for i in range(10)]
        assert [task.result() for task in tasks] == list(range(10))
        with pytest.raises(ExceptionGroup) as caught:
            async with asyncio.TaskGroup() as group:
                group.create_task(asyncio.sleep(3600))
                group.create_task(fail())
        assert isinstance(caught.value.exceptions[0], ZeroDivisionError)

    async def fail():
        await asyncio.sleep(0)
        raise ZeroDivisionError

    run(main())


def test_locks_events_queues_and_conditions_work(run):
    async def main():
        queue = asyncio.Queue(3)
        lock, event = asyncio.Lock(), asyncio.Event()
        got = []

        async def consume():
            while True:
                item = await queue.get()
                async with lock:
                    got.append(item)
                if item == 99:
                    event.set()
                    return

        task = asyncio.create_task(consume())
        for i in range(100):
            await queue.put(i)
        await event.wait()
        await task
        assert got == list(range(100))

    run(main())


def test_run_coroutine_threadsafe_brings_the_result_to_another_thread(run, loop):
    async def answer():
        await asyncio.sleep(0.001)
        return threading.get_ident()

    def other_thread():
        return [asyncio.run_coroutine_threadsafe(answer(), loop).result(10) for _ in range(20)]

    async def main():
        assert set(await asyncio.to_thread(other_thread)) == {threading.get_ident()}

    run(main())


# --- exceptions -------------------------------------------------------------------------------------------------------


def test_an_exception_in_a_callback_goes_to_the_exception_handler(loop, stock_loop):
    def contexts(loop):
        got = []
        loop.set_exception_handler(lambda loop, context: got.append((loop, context)))
        handles = [
            loop.call_soon(boom, 1),
            loop.call_soon_threadsafe(boom),
            loop.call_at(loop.time() - 1, boom),
        ]
        spin(loop)
        assert [context["handle"] for _, context in got] == handles
        assert all(owner is loop for owner, _ in got)
        return [(sorted(c), c["message"], type(c["exception"]), str(c["exception"])) for _, c in got]

    assert contexts(loop) == contexts(stock_loop)


def test_callbacks_after_a_raising_one_still_run(loop, exceptions):
    seen = []
    loop.call_soon(boom)
    loop.call_soon(seen.append, 1)
    spin(loop)
    assert seen == [1]
    assert len(exceptions) == 1


def test_a_base_exception_that_is_no_exit_goes_to_the_handler_too(loop, exceptions):
    class Odd(BaseException):
        pass

    def odd():
        raise Odd

    def cancelled():
        raise asyncio.CancelledError

    loop.call_soon(odd)
    loop.call_soon(cancelled)
    spin(loop)
    assert [type(c["exception"]) for c in exceptions] == [Odd, asyncio.CancelledError]


def test_the_default_handler_logs_what_asyncios_logs(loop, stock_loop, caplog):
    texts = []
    for each in (loop, stock_loop):
        caplog.clear()
        each.call_soon(boom, 1, "two")
        spin(each)
        (record,) = caplog.records
        assert record.name == "asyncio" and record.levelno == logging.ERROR
        assert record.exc_info[0] is ZeroDivisionError
        texts.append(record.getMessage())
    assert texts[0] == texts[1]


def test_the_exception_handler_can_be_asked_replaced_and_reset(loop, caplog):
    assert loop.get_exception_handler() is None

    def handler(loop, context):
        pass

    loop.set_exception_handler(handler)
    assert loop.get_exception_handler() is handler
    loop.call_exception_handler({"message": "quiet"})
    assert not caplog.records
    loop.set_exception_handler(None)
    assert loop.get_exception_handler() is None
    loop.call_exception_handler({"message": "loud"})
    assert [record.getMessage() for record in caplog.records] == ["loud"]


def test_an_exception_handler_that_raises_is_logged_and_the_loop_goes_on(loop, caplog):
    seen = []

    def handler(loop, context):
        raise LookupError("handler")

    loop.set_exception_handler(handler)
    loop.call_soon(boom)
    loop.call_soon(seen.append, 1)
    spin(loop)
    assert seen == [1]
    assert any("Unhandled error in exception handler" in r.getMessage() for r in caplog.records)


def test_a_default_exception_handler_that_raises_is_logged_and_the_loop_goes_on(loop_class, caplog):
    class Raising(loop_class):
        def default_exception_handler(self, context):
            raise LookupError

    loop = Raising()
    try:
        seen = []
        loop.call_soon(boom)
        loop.call_soon(seen.append, 1)
        spin(loop)
        assert seen == [1]
        assert [r.getMessage() for r in caplog.records] == ["Exception in default exception handler"]
    finally:
        loop.close()


@pytest.mark.skipif(not PY312, reason="the handler runs in the callback's context since Python 3.12")
def test_the_exception_handler_runs_in_the_context_of_what_failed(loop):
    seen = []
    loop.set_exception_handler(lambda loop, context: seen.append(VAR.get()))
    context = contextvars.copy_context()
    context.run(VAR.set, "of the callback")
    loop.call_soon(boom, context=context)
    spin(loop)
    assert seen == ["of the callback"]


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("how", ["call_soon", "timer", "threadsafe", "reader"])
def test_an_exit_in_a_callback_leaves_run_forever_and_the_loop_can_run_again(loop, exceptions, socket_pair, kind, how):
    ours, theirs = socket_pair()

    def leave():
        raise kind("out")

    if how == "call_soon":
        loop.call_soon(leave)
    elif how == "timer":
        loop.call_later(0.001, leave)
    elif how == "threadsafe":
        in_thread(lambda: loop.call_soon_threadsafe(leave))
    else:
        theirs.send(b"x")
        loop.add_reader(ours, leave)
    with pytest.raises(kind, match="out"):
        loop.run_forever()
    loop.remove_reader(ours)
    assert not loop.is_running()
    assert asyncio._get_running_loop() is None
    seen = []
    loop.call_soon(seen.append, 1)
    spin(loop)
    assert seen == [1]
    assert exceptions == []


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_callbacks_behind_an_exit_are_kept_for_the_next_run(loop, kind):
    seen = []

    def leave():
        raise kind

    loop.call_soon(seen.append, 1)
    loop.call_soon(leave)
    loop.call_soon(seen.append, 2)
    with pytest.raises(kind):
        loop.run_forever()
    assert seen == [1]
    spin(loop)
    assert seen == [1, 2]


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_an_exit_in_a_coroutine_leaves_run_until_complete(loop, kind):
    async def leave():
        await asyncio.sleep(0)
        raise kind("out")

    with pytest.raises(kind, match="out"):
        loop.run_until_complete(leave())
    assert not loop.is_running()
    assert loop.run_until_complete(asyncio.sleep(0, "again")) == "again"


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_an_exit_in_the_exception_handler_leaves_run_forever(loop, kind):
    def handler(loop, context):
        raise kind("handler")

    loop.set_exception_handler(handler)
    loop.call_soon(boom)
    with pytest.raises(kind, match="handler"):
        loop.run_forever()
    assert not loop.is_running()


def test_a_task_exception_that_nobody_fetches_is_reported(loop, exceptions):
    async def fail():
        raise ZeroDivisionError

    async def main():
        loop.create_task(fail())
        await asyncio.sleep(0.001)

    loop.run_until_complete(main())
    gc.collect()
    assert [c["message"] for c in exceptions] == ["Task exception was never retrieved"]


def test_a_pending_task_that_is_destroyed_is_reported(loop, exceptions):
    async def wait():
        await future_of_nobody()

    def future_of_nobody():
        return loop.create_future()

    async def main():
        loop.create_task(wait())
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    loop.run_until_complete(main())
    gc.collect()
    assert [c["message"] for c in exceptions] == ["Task was destroyed but it is pending!"]


# --- debug mode -------------------------------------------------------------------------------------------------------


def test_debug_can_be_asked_and_set(loop):
    assert loop.get_debug() is False
    loop.set_debug(True)
    assert loop.get_debug() is True
    loop.set_debug(False)
    assert loop.get_debug() is False


def test_debug_comes_from_the_environment(run_child):
    code = "loop = new_event_loop(); print(loop.get_debug()); loop.close()"
    assert run_child(code, env={"PYTHONASYNCIODEBUG": ""}).stdout == "False\n"
    assert run_child(code, flags=("-X", "dev")).stdout == "True\n"
    assert run_child(code, flags=("-E",), env={"PYTHONASYNCIODEBUG": "1"}, check=False).stdout in (
        "False\n",
        "",
    )


def test_debug_names_callbacks_that_are_slow(loop, caplog):
    caplog.set_level(logging.WARNING, "asyncio")
    loop.set_debug(True)
    assert loop.slow_callback_duration == 0.1
    loop.slow_callback_duration = 0.01
    loop.call_soon(nothing)
    loop.call_soon(time.sleep, 0.02)
    spin(loop)
    # A report from while it was stuck may be there as well.
    (text,) = [r.getMessage() for r in caplog.records if r.getMessage().startswith("Executing ")]
    assert text.startswith("Executing <Handle ") and "took 0.0" in text and text.endswith(" seconds")
    assert __file__ in text
    caplog.clear()

    async def main():
        time.sleep(0.02)

    loop.run_until_complete(main())
    assert any(r.getMessage().startswith("Executing <Task ") for r in caplog.records)


def test_outside_debug_slow_callbacks_are_not_logged(loop, caplog):
    loop.slow_callback_duration = 0.001
    loop.call_soon(time.sleep, 0.01)
    spin(loop)
    assert not caplog.records


@pytest.mark.parametrize("method", ["call_soon", "call_later", "call_at"])
def test_in_debug_a_call_from_another_thread_is_refused(loop, method):
    args = () if method == "call_soon" else (0,)

    def other_thread():
        with pytest.raises(RuntimeError) as caught:
            getattr(loop, method)(*args, nothing)
        return str(caught.value)

    async def main():
        return await asyncio.to_thread(other_thread)

    loop.set_debug(True)
    assert (
        loop.run_until_complete(main())
        == "Non-thread-safe operation invoked on an event loop other than the current one"
    )


def test_in_debug_call_soon_threadsafe_is_allowed_everywhere(loop):
    loop.set_debug(True)

    async def main():
        done = asyncio.Event()
        await asyncio.to_thread(loop.call_soon_threadsafe, done.set)
        await done.wait()

    loop.run_until_complete(main())


def test_in_debug_a_loop_that_does_not_run_accepts_calls_from_any_thread(loop):
    loop.set_debug(True)
    seen = []
    in_thread(lambda: loop.call_soon(seen.append, 1))
    spin(loop)
    assert seen == [1]


def test_in_debug_handles_remember_where_they_were_made(loop, exceptions):
    loop.set_debug(True)
    here = inspect.currentframe()
    handles = [loop.call_soon(boom), loop.call_soon_threadsafe(boom), loop.call_at(loop.time() - 1, boom)]
    for handle in handles:
        last = handle._source_traceback[-1]
        assert (last.filename, last.lineno, last.name) == (__file__, here.f_lineno - 3, here.f_code.co_name)
    spin(loop)
    assert [c["source_traceback"][-1].filename for c in exceptions] == [__file__] * 3


def test_in_debug_tasks_remember_where_they_were_made(loop, stock_loop):
    async def work():
        pass

    for each in (loop, stock_loop):
        each.set_debug(True)
        task = each.create_task(work())
        assert task._source_traceback[-1].filename == __file__
        assert task._source_traceback[-1].name == "test_in_debug_tasks_remember_where_they_were_made"
        each.run_until_complete(task)


def test_what_debug_knows_of_a_handle_goes_with_it(loop):
    def known():
        gc.collect()
        return sum(type(o).__name__ == "DebugInfo" for o in gc.get_objects())

    before = known()
    late = loop.call_later(60, print)
    loop.set_debug(True)
    kept = loop.call_soon(print)
    for _ in range(100):
        loop.call_soon(int)
        loop.call_later(60, int).cancel()
    late.cancel()
    kept.cancel()
    assert "print" in repr(late) and "print" in repr(kept)
    assert late._source_traceback is None and kept._source_traceback
    loop.call_soon(loop.stop)
    loop.run_forever()
    loop.set_debug(False)
    assert known() == before + 2
    del late, kept
    assert known() == before
    assert loop.call_soon(int)._source_traceback is None  # in the memory of one of them


def test_handles_are_small(loop):
    # Thousands of them may wait. With 16 bytes more a burst of call_soon() is 6 % slower.
    assert type(loop.call_soon(int)).__basicsize__ <= object.__basicsize__ + 64


def test_in_debug_the_default_handler_logs_where_the_handle_was_made(loop, caplog):
    loop.set_debug(True)
    loop.call_soon(boom)
    spin(loop)
    (record,) = caplog.records
    assert "Object created at (most recent call last)" in record.getMessage()
    assert __file__ in record.getMessage()


def test_in_debug_a_running_loop_tracks_where_coroutines_come_from(loop):
    before = sys.get_coroutine_origin_tracking_depth()
    seen = []
    loop.set_debug(True)
    loop.call_soon(lambda: seen.append(sys.get_coroutine_origin_tracking_depth()))
    spin(loop)
    assert seen[0] > 0
    assert sys.get_coroutine_origin_tracking_depth() == before

    async def main():
        loop.set_debug(False)
        await asyncio.sleep(0)
        seen.append(sys.get_coroutine_origin_tracking_depth())

    loop.run_until_complete(main())
    assert seen[-1] == before


@pytest.mark.parametrize("method", ["call_soon", "call_soon_threadsafe", "call_later", "call_at"])
def test_in_debug_coroutines_and_non_callables_are_no_callbacks(loop, stock_loop, method):
    async def coroutine():
        pass

    def texts(loop):
        loop.set_debug(True)
        got = []
        coro = coroutine()
        for wrong in (coroutine, 5, None):
            args = (0, wrong) if method in ("call_later", "call_at") else (wrong,)
            with pytest.raises(TypeError) as caught:
                getattr(loop, method)(*args)
            got.append(str(caught.value))
        args = (0, coro) if method in ("call_later", "call_at") else (coro,)
        with pytest.raises(TypeError, match="coroutines cannot be used with"):
            getattr(loop, method)(*args)
        coro.close()
        return got

    assert texts(loop) == texts(stock_loop)


def test_a_callback_that_is_not_callable_is_an_error_of_its_turn(loop, exceptions):
    loop.call_soon(5)
    spin(loop)
    (context,) = exceptions
    assert isinstance(context["exception"], TypeError)
    assert str(context["exception"]) == "'int' object is not callable"


refusal_ends_stock_loops = pytest.mark.not_on_oracle(
    "https://github.com/python/cpython/issues/130145: a refused run_forever ends the run that goes on",
    (3, 13) <= sys.version_info < (3, 13, 3),
)

# --- run, stop, close -------------------------------------------------------------------------------------------------


def test_run_until_complete_returns_the_result_or_raises_the_exception(loop):
    async def fail():
        raise ZeroDivisionError("mine")

    assert loop.run_until_complete(asyncio.sleep(0, "result")) == "result"
    with pytest.raises(ZeroDivisionError, match="mine"):
        loop.run_until_complete(fail())
    future = loop.create_future()
    future.set_result("done already")
    assert loop.run_until_complete(future) == "done already"

    class Awaitable:
        def __await__(self):
            yield from asyncio.sleep(0).__await__()
            return "awaited"

    assert loop.run_until_complete(Awaitable()) == "awaited"


def test_run_until_complete_that_is_stopped_says_so(loop):
    future = loop.create_future()
    loop.call_soon(loop.stop)
    with pytest.raises(RuntimeError, match=r"^Event loop stopped before Future completed\.$"):
        loop.run_until_complete(future)
    assert not loop.is_running()
    loop.call_soon(future.set_result, 1)
    assert loop.run_until_complete(future) == 1


def test_run_until_complete_leaves_no_callback_on_the_future(loop):
    future = loop.create_future()
    loop.call_soon(loop.stop)
    with pytest.raises(RuntimeError):
        loop.run_until_complete(future)
    seen = []
    future.set_result(1)
    loop.call_soon(seen.append, 1)
    loop.call_later(0.001, seen.append, 2)
    loop.call_later(0.01, loop.stop)
    loop.run_forever()
    assert seen == [1, 2]


def test_stop_before_run_means_one_turn(loop):
    seen = []
    loop.call_soon(lambda: (seen.append("soon"), loop.call_soon(seen.append, "next turn")))
    loop.call_at(loop.time() - 1, seen.append, "timer")
    loop.call_later(3600, seen.append, "far")
    loop.stop()
    loop.run_forever()
    assert seen == ["soon", "timer"]
    loop.stop()
    loop.run_forever()
    assert seen == ["soon", "timer", "next turn"]


def test_stop_lets_the_turn_end_and_keeps_what_was_scheduled_in_it(loop):
    seen = []
    loop.call_soon(loop.stop)
    loop.call_soon(lambda: loop.call_soon(seen.append, "scheduled in the turn"))
    loop.call_soon(seen.append, "same turn")
    loop.run_forever()
    assert seen == ["same turn"]
    spin(loop)
    assert seen == ["same turn", "scheduled in the turn"]


def test_stopping_many_times_stops_once(loop):
    seen = []
    for _ in range(5):
        loop.stop()
    loop.call_soon(loop.stop)
    loop.run_forever()
    loop.call_later(0.01, loop.stop)
    loop.call_soon(seen.append, 1)
    loop.run_forever()
    assert seen == [1]


def test_stop_from_another_thread_through_call_soon_threadsafe(loop):
    thread = threading.Timer(0.05, lambda: loop.call_soon_threadsafe(loop.stop))
    thread.start()
    loop.run_forever()
    thread.join()


def test_run_forever_can_be_called_again_and_again(loop):
    seen = []
    for i in range(200):
        loop.call_soon(seen.append, i)
        loop.call_soon(loop.stop)
        loop.run_forever()
    assert seen == list(range(200))


def test_the_running_loop_is_known_while_and_only_while_it_runs(loop):
    seen = []
    loop.call_soon(lambda: seen.append((asyncio.get_running_loop(), asyncio._get_running_loop(), loop.is_running())))
    assert asyncio._get_running_loop() is None
    assert not loop.is_running()
    spin(loop)
    assert seen == [(loop, loop, True)]
    assert asyncio._get_running_loop() is None
    assert not loop.is_running()


@refusal_ends_stock_loops
@pytest.mark.parametrize("method", ["run_forever", "run_until_complete"])
def test_a_running_loop_cannot_be_run_within_itself(loop, method):
    async def main():
        future = loop.create_future()
        args = (future,) if method == "run_until_complete" else ()
        with pytest.raises(RuntimeError, match=r"^This event loop is already running$"):
            getattr(loop, method)(*args)
        assert asyncio.get_running_loop() is loop

    loop.run_until_complete(main())


@refusal_ends_stock_loops
def test_another_loop_cannot_be_run_within_a_running_one(loop, new_loop, stock_loop):
    async def main():
        other = new_loop()
        with pytest.raises(RuntimeError, match=r"^Cannot run the event loop while another loop is running$"):
            other.run_forever()
        assert asyncio.get_running_loop() is loop
        assert not other.is_running()

    loop.run_until_complete(main())

    async def stock_main():
        with pytest.raises(RuntimeError, match=r"^Cannot run the event loop while another loop is running$"):
            loop.run_forever()
        assert asyncio.get_running_loop() is stock_loop

    stock_loop.run_until_complete(stock_main())
    spin(loop)


@refusal_ends_stock_loops
@pytest.mark.parametrize("method", ["run_forever", "run_until_complete"])
def test_a_loop_cannot_be_run_from_two_threads(loop, method):
    running = threading.Event()
    thread = threading.Thread(target=loop.run_forever)
    loop.call_soon(running.set)
    thread.start()
    try:
        assert running.wait(10)
        assert loop.is_running()
        args = (loop.create_future(),) if method == "run_until_complete" else ()
        with pytest.raises(RuntimeError, match=r"^This event loop is already running$"):
            getattr(loop, method)(*args)
        assert loop.is_running()
        assert asyncio._get_running_loop() is None
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
    assert not thread.is_alive()


def test_a_loop_may_be_run_by_one_thread_after_the_other(loop):
    idents = []

    async def main():
        loop.call_soon(lambda: idents.append(threading.get_ident()))
        await asyncio.sleep(0.001)

    for _ in range(3):
        in_thread(lambda: loop.run_until_complete(main()))
        loop.run_until_complete(main())
    assert idents[1] == idents[3] == threading.get_ident()
    assert idents[0] != threading.get_ident()


def test_two_loops_run_on_two_threads_at_once(new_loop):
    def pingpong(loop):
        async def main():
            for _ in range(200):
                await asyncio.sleep(0)
            await asyncio.sleep(0.01)
            return asyncio.get_running_loop() is loop

        return loop.run_until_complete(main())

    loops = [new_loop() for _ in range(4)]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert list(pool.map(pingpong, loops)) == [True] * 4


def test_a_running_loop_cannot_be_closed(loop):
    async def main():
        with pytest.raises(RuntimeError, match=r"^Cannot close a running event loop$"):
            loop.close()
        return "still running"

    assert loop.run_until_complete(main()) == "still running"


def test_closing_twice_is_allowed_and_a_closed_loop_says_so(new_loop):
    loop = new_loop()
    assert not loop.is_closed()
    loop.close()
    assert loop.is_closed()
    loop.close()
    assert loop.is_closed()
    assert not loop.is_running()


def test_a_closed_loop_drops_its_callbacks(new_loop):
    class Thing:
        pass

    loop = new_loop()
    things = [Thing() for _ in range(3)]
    watch = [weakref.ref(thing) for thing in things]
    loop.call_soon(nothing, things[0])
    loop.call_later(3600, nothing, things[1])
    loop.call_soon_threadsafe(nothing, things[2])
    things.clear()
    loop.close()
    gc.collect()
    assert [ref() for ref in watch] == [None] * 3


@pytest.mark.parametrize(
    "call",
    [
        lambda loop: loop.call_soon(nothing),
        lambda loop: loop.call_soon_threadsafe(nothing),
        lambda loop: loop.call_later(1, nothing),
        lambda loop: loop.call_at(1, nothing),
        lambda loop: loop.run_forever(),
        lambda loop: loop.run_until_complete(loop.create_future()),
        lambda loop: loop.run_in_executor(None, nothing),
        lambda loop: loop.add_reader(0, nothing),
        lambda loop: loop.add_writer(0, nothing),
        lambda loop: loop.add_signal_handler(10, nothing),
    ],
)
def test_a_closed_loop_refuses_with_event_loop_is_closed(new_loop, call):
    loop = new_loop()
    loop.close()
    with pytest.raises(RuntimeError, match=r"^Event loop is closed$"):
        call(loop)


def test_a_closed_loop_creates_no_task(new_loop):
    async def main():
        pass

    loop = new_loop()
    loop.close()
    coro = main()
    with pytest.raises(RuntimeError, match=r"^Event loop is closed$"):
        loop.create_task(coro)
    coro.close()


def test_an_unclosed_loop_warns_when_it_is_collected(mode, monkeypatch):
    import conftest

    loop = conftest.make_loop(mode)
    with pytest.warns(ResourceWarning, match="unclosed event loop"):
        del loop
        gc.collect()


def test_hundreds_of_loops_leave_nothing_behind(mode):
    import conftest

    before = len(conftest.open_fds())
    for _ in range(200):
        loop = conftest.make_loop(mode)
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()
    del loop
    gc.collect()
    assert len(conftest.open_fds()) == before


def test_the_loops_repr_tells_its_state(new_loop, stock_loop):
    def texts(loop):
        name = type(loop).__name__
        seen = [repr(loop)]
        loop.call_soon(lambda: seen.append(repr(loop)))
        spin(loop)
        loop.set_debug(True)
        seen.append(repr(loop))
        loop.close()
        seen.append(repr(loop))
        return [text.replace(name, "LOOP") for text in seen]

    assert texts(new_loop()) == texts(stock_loop)


def test_the_loop_is_an_abstract_event_loop_with_every_public_method_of_asyncios(loop, stock_loop):
    assert isinstance(loop, asyncio.AbstractEventLoop)
    missing = {name for name in dir(stock_loop) if not name.startswith("_")} - set(dir(loop))
    assert missing == set()


def test_the_loop_can_be_weakly_referenced_and_hashed_but_not_pickled(loop):
    assert weakref.ref(loop)() is loop
    assert {loop: 1}[loop] == 1
    assert loop == loop
    for duplicate in (pickle.dumps, copy.deepcopy):
        with pytest.raises((TypeError, AttributeError, pickle.PicklingError)):
            duplicate(loop)


def test_attributes_can_be_set_on_the_loop(loop):
    loop.my_attribute = 1
    assert loop.my_attribute == 1


# --- subclassing ------------------------------------------------------------------------------------------------------


def test_a_subclass_can_override_what_schedules(loop_class):
    seen = []

    class Mine(loop_class):
        def __init__(self):
            super().__init__()
            self.ready = True

        def call_soon(self, callback, *args, context=None):
            seen.append("call_soon")
            return super().call_soon(callback, *args, context=context)

        def call_at(self, when, callback, *args, context=None):
            seen.append("call_at")
            return super().call_at(when, callback, *args, context=context)

        def create_task(self, coro, **kwargs):
            seen.append("create_task")
            return super().create_task(coro, **kwargs)

    loop = Mine()
    try:
        assert loop.ready

        async def main():
            await asyncio.sleep(0.001)
            await asyncio.create_task(asyncio.sleep(0))
            return "done"

        assert loop.run_until_complete(main()) == "done"
    finally:
        loop.close()
    assert seen.count("create_task") == 2
    assert seen.count("call_at") == 1
    assert seen.count("call_soon") >= 4


def test_a_subclass_can_override_how_exceptions_are_handled(loop_class):
    seen = []

    class Mine(loop_class):
        def call_exception_handler(self, context):
            seen.append(context["message"])

    loop = Mine()
    try:
        loop.call_soon(boom)
        spin(loop)
    finally:
        loop.close()
    assert len(seen) == 1 and seen[0].startswith("Exception in callback boom(")


def test_a_subclass_can_override_stop_and_close(loop_class):
    seen = []

    class Mine(loop_class):
        def close(self):
            seen.append("close")
            super().close()

        def stop(self):
            seen.append("stop")
            super().stop()

    loop = Mine()
    loop.call_soon(loop.stop)
    loop.run_forever()
    loop.close()
    assert seen == ["stop", "close"]
    assert loop.is_closed()


# --- asynchronous generators ------------------------------------------------------------------------------------------


async def ticker(log, n=100):
    try:
        for i in range(n):
            yield i
    finally:
        await asyncio.sleep(0)
        log.append("finalized")


def test_a_generator_that_is_dropped_is_finalized_by_the_loop(run):
    async def main():
        log = []
        generator = ticker(log)
        assert await generator.__anext__() == 0
        del generator
        gc.collect()
        for _ in range(5):
            await asyncio.sleep(0)
        assert log == ["finalized"]

    run(main())


def test_a_generator_that_another_thread_drops_is_finalized_by_the_loop(run):
    async def main():
        log = []
        box = [ticker(log)]
        await box[0].__anext__()
        await asyncio.to_thread(box.clear)
        await asyncio.sleep(0.05)
        gc.collect()
        for _ in range(100):
            if log:
                break
            await asyncio.sleep(0.01)
        assert log == ["finalized"]

    run(main())


def test_shutdown_asyncgens_closes_those_that_are_left(loop):
    log = []
    kept = []

    async def main():
        for _ in range(5):
            generator = ticker(log)
            kept.append(generator)
            await generator.__anext__()

    loop.run_until_complete(main())
    assert log == []
    loop.run_until_complete(loop.shutdown_asyncgens())
    assert log == ["finalized"] * 5


def test_an_error_while_closing_a_generator_is_reported(loop, exceptions):
    async def bad():
        try:
            yield 1
        finally:
            raise ZeroDivisionError

    kept = []

    async def main():
        kept.append(bad())
        await kept[0].__anext__()

    loop.run_until_complete(main())
    loop.run_until_complete(loop.shutdown_asyncgens())
    (context,) = exceptions
    assert context["message"].startswith("an error occurred during closing of asynchronous generator")
    assert isinstance(context["exception"], ZeroDivisionError)
    assert context["asyncgen"] is kept[0]


def test_a_generator_after_shutdown_asyncgens_warns(loop):
    async def main():
        generator = ticker([])
        with pytest.warns(ResourceWarning, match=r"was scheduled after loop\.shutdown_asyncgens\(\) call"):
            await generator.__anext__()
        await generator.aclose()

    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.run_until_complete(main())


def test_the_generator_hooks_are_set_only_while_the_loop_runs(loop):
    before = sys.get_asyncgen_hooks()
    seen = []
    loop.call_soon(lambda: seen.append(sys.get_asyncgen_hooks()))
    spin(loop)
    assert seen[0] != before and seen[0].firstiter and seen[0].finalizer
    assert sys.get_asyncgen_hooks() == before

    def leave():
        raise KeyboardInterrupt

    loop.call_soon(leave)
    with pytest.raises(KeyboardInterrupt):
        loop.run_forever()
    assert sys.get_asyncgen_hooks() == before


# --- executors --------------------------------------------------------------------------------------------------------


def test_run_in_executor_runs_elsewhere_and_brings_back_result_or_exception(run, loop):
    async def main():
        assert await loop.run_in_executor(None, threading.get_ident) != threading.get_ident()
        assert await loop.run_in_executor(None, max, 1, 3, 2) == 3
        with pytest.raises(ZeroDivisionError):
            await loop.run_in_executor(None, boom)
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            assert await loop.run_in_executor(pool, pow, 2, 5) == 32
        assert await asyncio.gather(*(loop.run_in_executor(None, pow, i, 2) for i in range(100))) == [
            i * i for i in range(100)
        ]

    run(main())


def test_the_default_executor_is_a_thread_pool_and_nothing_else(loop, stock_loop):
    texts = []
    for each in (loop, stock_loop):
        with pytest.raises(TypeError) as caught:
            each.set_default_executor(object())
        texts.append(str(caught.value))
    assert texts[0] == texts[1] == "executor must be ThreadPoolExecutor instance"
    pool = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="mine")
    loop.set_default_executor(pool)

    async def main():
        return await loop.run_in_executor(None, lambda: threading.current_thread().name)

    assert loop.run_until_complete(main()).startswith("mine")


def test_after_shutdown_default_executor_there_is_no_default_executor(loop):
    async def main():
        await loop.run_in_executor(None, nothing)
        await loop.shutdown_default_executor()
        with pytest.raises(RuntimeError, match=r"^Executor shutdown has been called$"):
            loop.run_in_executor(None, nothing)
        await loop.shutdown_default_executor()

    loop.run_until_complete(main())


def test_shutdown_default_executor_waits_for_the_work(loop):
    seen = []

    async def main():
        loop.run_in_executor(None, lambda: (time.sleep(0.05), seen.append(1)))
        await loop.shutdown_default_executor()
        assert seen == [1]

    loop.run_until_complete(main())


@pytest.mark.skipif(
    sys.version_info < (3, 13), reason="new in Python 3.12, and https://github.com/python/cpython/issues/111358"
)
def test_shutdown_default_executor_gives_up_after_its_timeout(loop):
    free = threading.Event()

    async def main():
        future = loop.run_in_executor(None, free.wait, 10)
        with pytest.warns(RuntimeWarning, match="did not finishing joining its threads within 0.01 seconds"):
            await loop.shutdown_default_executor(timeout=0.01)
        free.set()
        await future

    loop.run_until_complete(main())


def test_in_debug_a_coroutine_function_is_nothing_for_an_executor(loop):
    async def coroutine():
        pass

    loop.set_debug(True)
    with pytest.raises(TypeError, match=r"^coroutines cannot be used with run_in_executor\(\)$"):
        loop.run_in_executor(None, coroutine)


# --- running programs -------------------------------------------------------------------------------------------------


def test_a_runner_uses_the_loop_factory(new_loop):
    with asyncio.Runner(loop_factory=new_loop) as runner:
        loop = runner.get_loop()

        async def main():
            assert asyncio.get_running_loop() is loop
            return "result"

        assert runner.run(main()) == "result"
        assert runner.run(asyncio.sleep(0, 2)) == 2
    assert loop.is_closed()


@pytest.mark.skipif(not PY312, reason="asyncio.run takes loop_factory since Python 3.12")
def test_asyncio_run_uses_the_loop_factory(new_loop):
    made = []

    def factory():
        made.append(new_loop())
        return made[-1]

    async def main():
        left = asyncio.create_task(asyncio.sleep(3600))
        await asyncio.sleep(0)
        return asyncio.get_running_loop(), left

    loop, left = asyncio.run(main(), loop_factory=factory)
    assert made == [loop]
    assert loop.is_closed()
    assert left.cancelled()


def test_a_runner_finalizes_generators_and_cancels_tasks(new_loop):
    log = []

    async def background():
        try:
            await asyncio.sleep(3600)
        finally:
            log.append("cancelled")

    kept = []

    async def main():
        kept.append(asyncio.create_task(background()))
        kept.append(ticker(log))
        await kept[1].__anext__()
        await asyncio.sleep(0)

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(main())
    assert log == ["cancelled", "finalized"]


@pytest.mark.netpoll_only("its own entry point")
def test_netpoll_loops_own_run_runs_a_program(mode, monkeypatch):
    import netpoll_loop

    monkeypatch.setenv("NETPOLL_LOOP_NETPOLLER", mode)

    async def main():
        await asyncio.sleep(0)
        return asyncio.get_running_loop()

    loop = netpoll_loop.run(main())
    assert isinstance(loop, netpoll_loop.Loop)
    assert loop.is_closed()


@pytest.mark.netpoll_only("its own entry point")
@pytest.mark.skipif(PY314, reason="policies are deprecated in Python 3.14")
def test_the_policy_makes_the_loops(run_child):
    done = run_child(
        """
        import netpoll_loop
        asyncio.set_event_loop_policy(netpoll_loop.EventLoopPolicy())
        async def main():
            return type(asyncio.get_running_loop())
        assert issubclass(asyncio.run(main()), netpoll_loop.Loop)
        asyncio.set_event_loop_policy(None)
        netpoll_loop.install()
        assert issubclass(asyncio.run(main()), netpoll_loop.Loop)
        print("ok")
        """
    )
    assert done.stdout == "ok\n"


def test_nest_asyncio_works_or_is_refused_loudly(run_child):
    pytest.importorskip("nest_asyncio")
    done = run_child(
        """
        import warnings
        import nest_asyncio
        loop = new_event_loop()
        asyncio.set_event_loop(loop)
        async def inner():
            await asyncio.sleep(0.01)
            return "inner"
        async def main():
            await asyncio.sleep(0)
            return loop.run_until_complete(inner())
        try:
            nest_asyncio.apply(loop)
            before = [loop.run_until_complete(main()) for _ in range(3)]
            assert before == ["inner"] * 3
            print("works")
        except (RuntimeError, ValueError) as exc:
            assert str(exc), "refused without a word"
            print("refused")
        loop.close()
        """
    )
    assert done.stdout in ("works\n", "refused\n")


def test_importing_and_running_warns_of_nothing(run_child):
    done = run_child("run_main(asyncio.sleep(0.001)); print('silent')", flags=("-W", "error", "-X", "dev"))
    assert (done.stdout, done.stderr) == ("silent\n", "")


# --- reentrance -------------------------------------------------------------------------------------------------------


def test_a_destructor_may_schedule_while_the_loop_lets_go_of_a_handle(loop):
    seen = []

    class Scheduler:
        def __del__(self):
            loop.call_soon(seen.append, "from __del__")
            loop.call_later(0, seen.append, "timer from __del__")

    for _ in range(100):
        loop.call_soon(nothing, Scheduler())
        loop.call_later(3600, nothing, Scheduler()).cancel()
    loop.call_later(0.05, loop.stop)
    loop.run_forever()
    assert seen.count("from __del__") == 200
    assert seen.count("timer from __del__") == 200


def test_the_garbage_collector_may_run_anywhere(loop, exceptions):
    class Cycle:
        def __init__(self, i):
            self.me = self
            self.i = i

        def __del__(self):
            if not loop.is_closed():
                loop.call_soon_threadsafe(collected.append, self.i)

    collected = []
    threshold = gc.get_threshold()
    gc.set_threshold(1)
    try:
        for i in range(300):
            loop.call_soon(nothing, Cycle(i))
            loop.call_later(i / 30000, nothing, Cycle(i)).cancel()
        loop.call_later(0.02, loop.stop)
        loop.run_forever()
    finally:
        gc.set_threshold(*threshold)
    gc.collect()
    spin(loop)
    assert len(collected) == 600
    assert exceptions == []


def test_a_loop_survives_an_exception_in_time(loop_class):
    class Broken(loop_class):
        broken = False

        def time(self):
            if self.broken:
                raise LookupError("clock")
            return super().time()

    loop = Broken()
    try:
        loop.call_later(0.001, nothing)
        loop.broken = True
        with pytest.raises(LookupError, match="clock"):
            loop.run_forever()
        loop.broken = False
        assert not loop.is_running()
        assert loop.run_until_complete(asyncio.sleep(0, "again")) == "again"
    finally:
        loop.broken = False
        loop.close()


# ---- handles and the garbage collector -------------------------------------------------------------


class Holder:
    """Refers to its handle, which refers to its method: a cycle."""

    def called(self, *args):
        pass


@pytest.mark.parametrize("how", ["call_soon", "call_soon_threadsafe", "call_later", "call_at"])
@pytest.mark.parametrize("fate", ["runs", "fails", "is cancelled", "waits when the loop stops", "waits for ever"])
def test_a_handle_in_a_cycle_is_collected(new_loop, how, fate):
    """A handle that waits in a running loop isn't tracked by the garbage collector; afterwards it has to be."""
    loop = new_loop()
    loop.set_exception_handler(lambda loop, context: None)
    far = fate in ("waits when the loop stops", "waits for ever")
    when = {"call_later": (3600 if far else 0,), "call_at": (loop.time() + 3600 if far else 0,)}.get(how, ())

    def make(holder):
        callback = holder.called if fate != "fails" else (lambda *args: 1 / 0)
        args = (holder, 1, 2) if fate == "runs" else (holder,)
        holder.handle = getattr(loop, how)(*when, callback, *args)
        if fate == "is cancelled":
            holder.handle.cancel()

    async def main():
        holder = Holder()
        make(holder)
        if not far:
            for _ in range(3):
                await asyncio.sleep(0)
        return weakref.ref(holder)

    async def last():
        holder = Holder()
        make(holder)
        loop.stop()
        return weakref.ref(holder)

    if fate == "waits when the loop stops":
        task = loop.create_task(last())
        loop.run_forever()
        reference = task.result()
        del task
    else:
        reference = loop.run_until_complete(main())
    if far:
        loop.close()
    gc.collect()
    assert reference() is None


def test_an_unclosed_loop_is_collected_with_what_waits_in_it(mode):
    """Of a reader that has never run, too."""
    loop = make_loop(mode)
    near, far = socket.socketpair()
    with near, far:

        async def main():
            holder = Holder()
            holder.loop = loop
            loop.call_later(3600, holder.called)
            loop.call_soon(holder.called)
            loop.add_reader(near, holder.called)
            loop.stop()
            return weakref.ref(holder)

        task = loop.create_task(main())
        loop.run_forever()
        reference = task.result()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            del loop, task, main
            gc.collect()
        assert reference() is None
