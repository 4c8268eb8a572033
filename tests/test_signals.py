"""Signals: handlers of the loop and of the signal module, on an idle, a busy and a blocked loop, on any thread.

Most run in child programs, which say "ready" when the signal may come.
"""

import asyncio
import re
import signal
import threading
import time

import pytest

#: What the loop of a child does while the signal comes; `blocked` is inside one callback that computes.
STATES = {
    "idle": "pass",
    "busy": "again = lambda: loop.call_soon(again); again()",
    "timers": "again = lambda: loop.call_later(0.0005, again); again()",
}

states = pytest.mark.parametrize("state", STATES)

#: `on_thread(signum)` sends the signal to another thread than the main one, 0.1 s later, when the loop is at rest.
ON_THREAD = """\
import signal, threading, time
def on_thread(signum):
    target = threading.Thread(target=time.sleep, args=(100,), daemon=True)
    target.start()
    def send():
        time.sleep(0.1)
        signal.pthread_kill(target.ident, signum)
    threading.Thread(target=send, daemon=True).start()
"""


def _program(state, code):
    """Code in which `state` stands for what keeps the loop busy."""
    return code.replace("$STATE", STATES[state])


@states
def test_a_handler_of_the_loop_is_called_with_its_arguments(start_child, state):
    child = start_child(
        _program(
            state,
            """
            import signal
            loop = new_event_loop()
            def handler(*args):
                print("called", args, flush=True)
                loop.stop()
            loop.add_signal_handler(signal.SIGUSR1, handler, 1, "two")
            loop.call_soon(lambda: print("ready", flush=True))
            $STATE
            loop.run_forever()
            assert loop.remove_signal_handler(signal.SIGUSR1)
            assert not loop.remove_signal_handler(signal.SIGUSR1)
            loop.close()
            """,
        )
    )
    assert child.read_line() == "ready\n"
    child.kill(signal.SIGUSR1)
    done = child.finish()
    assert done.stdout == "called (1, 'two')\n", done.stderr
    assert done.returncode == 0


@states
def test_ctrl_c_leaves_run_forever_with_keyboard_interrupt(start_child, state):
    child = start_child(
        _program(
            state,
            """
            loop = new_event_loop()
            loop.call_soon(lambda: print("ready", flush=True))
            $STATE
            try:
                loop.run_forever()
            except KeyboardInterrupt:
                print("interrupted")
            loop.run_until_complete(asyncio.sleep(0.01))
            loop.close()
            """,
        )
    )
    assert child.read_line() == "ready\n"
    child.kill(signal.SIGINT)
    done = child.finish()
    assert done.stdout == "interrupted\n", done.stderr
    assert done.returncode == 0


def test_ctrl_c_interrupts_a_callback_that_computes(start_child):
    child = start_child(
        """
        loop = new_event_loop()
        def compute():
            print("ready", flush=True)
            while True:
                pass
        loop.call_soon(compute)
        try:
            loop.run_forever()
        except KeyboardInterrupt:
            print("interrupted")
        loop.close()
        """
    )
    assert child.read_line() == "ready\n"
    child.kill(signal.SIGINT)
    done = child.finish()
    assert done.stdout == "interrupted\n", done.stderr


@states
def test_under_a_runner_ctrl_c_cancels_the_main_task_first(start_child, state):
    child = start_child(
        _program(
            state,
            """
            async def main():
                loop = asyncio.get_running_loop()
                $STATE
                print("ready", flush=True)
                try:
                    await asyncio.sleep(100)
                except asyncio.CancelledError:
                    await asyncio.sleep(0.01)
                    print("cleaned up")
                    raise
            try:
                run_main(main())
            except KeyboardInterrupt:
                print("interrupted")
            """,
        )
    )
    assert child.read_line() == "ready\n"
    child.kill(signal.SIGINT)
    done = child.finish()
    assert done.stdout == "cleaned up\ninterrupted\n", done.stderr


@pytest.mark.not_on_oracle("asyncio leaves the loop running where Ctrl-C comes between the steps of a run's end")
def test_ctrl_c_at_any_line_of_a_runs_beginning_and_end_leaves_no_running_loop(run_child):
    done = run_child(
        """
        import signal

        LINES = {"run_forever", "_run_forever_setup", "_run_forever_cleanup"}
        wanted = 0
        while True:
            loop, passed, interrupted = new_event_loop(), 0, False

            def trace(frame, event, argument):
                global passed, interrupted
                if frame.f_code.co_name not in LINES:
                    return None
                if event == "line":
                    passed += 1
                    if passed == wanted + 1:
                        interrupted = True
                        signal.raise_signal(signal.SIGINT)
                return trace

            sleep = asyncio.sleep(0)
            sys.settrace(trace)
            try:
                loop.run_until_complete(sleep)
            except KeyboardInterrupt:
                pass
            except RuntimeError as exc:
                assert "Event loop stopped before Future completed" in str(exc)
            finally:
                sys.settrace(None)
            sleep.close()
            assert not loop.is_running() and asyncio._get_running_loop() is None, wanted
            assert loop.run_until_complete(asyncio.sleep(0, 7)) == 7
            assert signal.set_wakeup_fd(-1) == -1, wanted
            loop.close()
            wanted += 1
            if not interrupted:
                break
        print("interrupted", wanted > 10)
        """,
        flags=["-W", "ignore"],
    )
    assert done.stdout.split() == ["interrupted", "True"]


def test_an_uncaught_ctrl_c_ends_the_program_by_the_signal(start_child):
    child = start_child(
        "async def main():\n    print('ready', flush=True)\n    await asyncio.sleep(100)\nrun_main(main())"
    )
    assert child.read_line() == "ready\n"
    child.kill(signal.SIGINT)
    assert child.finish().returncode == -signal.SIGINT


@states
def test_a_plain_signal_handler_runs_although_nothing_else_wakes_the_loop(start_child, state):
    child = start_child(
        _program(
            state,
            """
            import signal
            loop = new_event_loop()
            signal.signal(signal.SIGUSR1, lambda signum, frame: print("handled", flush=True))
            loop.call_soon(lambda: print("ready", flush=True))
            $STATE
            loop.run_forever()
            """,
        )
    )
    assert child.read_line() == "ready\n"
    for _ in range(3):
        child.kill(signal.SIGUSR1)
        assert child.read_line() == "handled\n"
    child.kill(signal.SIGKILL)
    child.finish()


def test_an_exception_of_a_plain_handler_leaves_run_forever(start_child):
    child = start_child(
        """
        import signal
        loop = new_event_loop()
        def handler(signum, frame):
            raise ZeroDivisionError
        def ready():
            signal.signal(signal.SIGUSR1, handler)
            print("ready", flush=True)
        loop.call_soon(ready)
        try:
            loop.run_forever()
        except ZeroDivisionError:
            print("raised")
        loop.run_until_complete(asyncio.sleep(0.01))
        loop.close()
        """
    )
    assert child.read_line() == "ready\n"
    time.sleep(0.2)  # while it is still inside the callback the exception would be the callback's
    child.kill(signal.SIGUSR1)
    done = child.finish()
    assert done.stdout == "raised\n", done.stderr
    assert done.returncode == 0


def test_a_handler_of_the_loop_runs_when_the_signal_lands_on_another_thread(run_child):
    run_child(
        ON_THREAD
        + """
loop = new_event_loop()
loop.add_signal_handler(signal.SIGUSR1, loop.stop)
on_thread(signal.SIGUSR1)
loop.run_forever()
loop.close()
"""
    )


@pytest.mark.not_on_oracle("a plain handler waits for the next event if another thread took the signal")
@pytest.mark.parametrize("signum", ["SIGUSR1", "SIGINT"])
def test_a_plain_handler_runs_when_the_signal_lands_on_another_thread(run_child, signum):
    done = run_child(
        ON_THREAD
        + f"""
loop = new_event_loop()
signal.signal(signal.{signum}, lambda signum, frame: (print("handled"), loop.call_soon_threadsafe(loop.stop)))
on_thread(signal.{signum})
loop.run_forever()
loop.close()
"""
    )
    assert done.stdout == "handled\n"


@pytest.mark.not_on_oracle("a plain handler waits for the next event if another thread took the signal")
def test_a_signal_blocked_on_the_main_thread_is_handled_through_another(start_child):
    child = start_child(
        """
        import signal, threading, time
        threading.Thread(target=time.sleep, args=(100,), daemon=True).start()
        signal.signal(signal.SIGUSR1, lambda signum, frame: print("handled", flush=True))
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
        loop = new_event_loop()
        loop.call_later(0.1, lambda: print("ready", flush=True))
        loop.run_forever()
        """
    )
    assert child.read_line() == "ready\n"
    child.kill(signal.SIGUSR1)
    assert child.read_line() == "handled\n"
    child.kill(signal.SIGKILL)
    child.finish()


def test_sigchld_has_a_handler_beside_subprocesses(run_child):
    done = run_child(
        """
        import signal
        async def main():
            called = asyncio.Event()
            asyncio.get_running_loop().add_signal_handler(signal.SIGCHLD, called.set)
            process = await asyncio.create_subprocess_shell("exit 3")
            assert await process.wait() == 3
            await called.wait()
            print("called")
        run_main(main())
        """
    )
    assert done.stdout == "called\n"


def test_several_signals_at_once_each_reach_their_handler(run_child):
    done = run_child(
        """
        import signal
        signals = [signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP, signal.SIGTERM, signal.SIGALRM]
        loop = new_event_loop()
        seen = set()
        def handler(signum):
            seen.add(signum)
            if len(seen) == len(signals):
                loop.stop()
        for signum in signals:
            loop.add_signal_handler(signum, handler, signum)
        def send():
            for signum in signals:
                os.kill(os.getpid(), signum)
        loop.call_soon(send)
        loop.run_forever()
        loop.close()
        print("all")
        """
    )
    assert done.stdout == "all\n"


def test_thousands_of_signals_do_not_lose_the_last(run_child):
    run_child(
        """
        import signal
        loop = new_event_loop()
        count = 0
        def handler():
            global count
            count += 1
        loop.add_signal_handler(signal.SIGUSR1, handler)
        async def main():
            for _ in range(200):
                for _ in range(20):
                    os.kill(os.getpid(), signal.SIGUSR1)
                await asyncio.sleep(0)
            before = count
            os.kill(os.getpid(), signal.SIGUSR1)
            while count == before:
                await asyncio.sleep(0.001)
        loop.run_until_complete(main())
        loop.close()
        """
    )


def test_a_removed_handler_gives_the_default_back(run_child):
    done = run_child(
        """
        import signal
        loop = new_event_loop()
        loop.add_signal_handler(signal.SIGINT, print)
        loop.add_signal_handler(signal.SIGUSR1, print)
        assert loop.remove_signal_handler(signal.SIGINT)
        assert loop.remove_signal_handler(signal.SIGUSR1)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL
        loop.call_soon(os.kill, os.getpid(), signal.SIGUSR1)
        loop.run_forever()
        """,
        check=False,
    )
    assert done.returncode == -signal.SIGUSR1


def test_closing_the_loop_removes_its_handlers(run_child):
    run_child(
        """
        import signal
        loop = new_event_loop()
        loop.add_signal_handler(signal.SIGUSR1, print)
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()
        assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL
        assert signal.set_wakeup_fd(-1) == -1
        """
    )


def test_a_handler_may_be_replaced_and_may_fail(run_child):
    done = run_child(
        """
        import signal
        loop = new_event_loop()
        loop.set_exception_handler(lambda loop, context: (print(repr(context["exception"])), loop.stop()))
        loop.add_signal_handler(signal.SIGUSR1, print, "never")
        def fail():
            raise ZeroDivisionError("mine")
        loop.add_signal_handler(signal.SIGUSR1, fail)
        loop.call_soon(os.kill, os.getpid(), signal.SIGUSR1)
        loop.run_forever()
        loop.close()
        """
    )
    assert done.stdout == "ZeroDivisionError('mine')\n"


def test_the_wakeup_descriptor_of_the_user_is_back_after_each_run(run_child):
    run_child(
        """
        import signal, socket
        mine, other = socket.socketpair()
        mine.setblocking(False)
        signal.set_wakeup_fd(mine.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGUSR1, lambda signum, frame: None)
        loop = new_event_loop()
        for _ in range(2):
            loop.run_until_complete(asyncio.sleep(0.01))
            assert signal.set_wakeup_fd(mine.fileno(), warn_on_full_buffer=False) == mine.fileno()
        loop.close()
        assert signal.set_wakeup_fd(-1) == mine.fileno()
        """
    )


@pytest.mark.parametrize("added", ["before", "in a run"])
def test_the_wakeup_descriptor_of_a_closed_loop_is_not_left_behind(run_child, added):
    """Another file would get its number, and a byte for each signal."""
    code = f"""
        import asyncio, signal
        loop = new_event_loop()
        async def add():
            loop.add_signal_handler(signal.SIGTERM, print)
        async def remove():
            assert loop.remove_signal_handler(signal.SIGTERM)
        if {added == "before"}:
            loop.add_signal_handler(signal.SIGTERM, print)
        else:
            loop.run_until_complete(add())
        loop.run_until_complete(asyncio.sleep(0))
        loop.run_until_complete(remove())
        loop.close()
        assert signal.set_wakeup_fd(-1) == -1
        print("done")
    """
    assert run_child(code).stdout == "done\n"


@pytest.mark.not_on_oracle("stock resets it to -1")
def test_the_wakeup_descriptor_of_the_user_survives_a_handler_of_the_loop(run_child):
    run_child(
        """
        import signal, socket
        mine, other = socket.socketpair()
        mine.setblocking(False)
        signal.set_wakeup_fd(mine.fileno(), warn_on_full_buffer=False)
        loop = new_event_loop()
        async def main():
            loop.add_signal_handler(signal.SIGUSR1, loop.stop)
            loop.remove_signal_handler(signal.SIGUSR1)
        loop.run_until_complete(main())
        loop.close()
        assert signal.set_wakeup_fd(-1) == mine.fileno()
        """
    )


def test_handlers_set_between_runs_and_before_the_first_work(run_child):
    run_child(
        """
        import signal
        loop = new_event_loop()
        for _ in range(3):
            loop.add_signal_handler(signal.SIGUSR1, loop.stop)
            loop.call_soon(os.kill, os.getpid(), signal.SIGUSR1)
            loop.run_forever()
            loop.remove_signal_handler(signal.SIGUSR1)
        loop.add_signal_handler(signal.SIGUSR1, loop.stop)
        loop.run_until_complete(asyncio.sleep(0))
        os.kill(os.getpid(), signal.SIGUSR1)
        loop.run_forever()
        loop.close()
        """
    )


# --- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "signum, error, text",
    [
        ("SIGINT", TypeError, "sig must be an int, not 'SIGINT'"),
        (None, TypeError, "sig must be an int, not None"),
        (1.5, TypeError, "sig must be an int, not 1.5"),
        (0, ValueError, "invalid signal number 0"),
        (-1, ValueError, "invalid signal number -1"),
        (1000, ValueError, "invalid signal number 1000"),
    ],
)
def test_impossible_signals_are_refused_as_by_asyncio(loop, signum, error, text):
    with pytest.raises(error, match=re.escape(text)):
        loop.add_signal_handler(signum, print)
    with pytest.raises(error, match=re.escape(text)):
        loop.remove_signal_handler(signum)


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGSTOP])
def test_signals_that_cannot_be_caught_are_refused_as_by_asyncio(loop, signum):
    with pytest.raises(RuntimeError, match=f"sig {int(signum)} cannot be caught"):
        loop.add_signal_handler(signum, print)
    assert signal.set_wakeup_fd(-1) == -1
    assert loop.remove_signal_handler(signum) is False


def test_coroutines_are_refused_as_handlers(loop):
    async def handler():
        pass

    with pytest.raises(TypeError, match=re.escape("coroutines cannot be used with add_signal_handler()")):
        loop.add_signal_handler(signal.SIGUSR1, handler)
    coro = handler()
    with pytest.raises(TypeError, match=re.escape("coroutines cannot be used with add_signal_handler()")):
        loop.add_signal_handler(signal.SIGUSR1, coro)
    coro.close()


def test_a_closed_loop_takes_no_handler(new_loop):
    loop = new_loop()
    loop.close()
    with pytest.raises(RuntimeError, match="Event loop is closed"):
        loop.add_signal_handler(signal.SIGUSR1, print)


def test_off_the_main_thread_handlers_are_refused_as_by_asyncio(new_loop):
    own = new_loop()
    errors = []

    def work():
        async def main():
            try:
                own.add_signal_handler(signal.SIGUSR1, print)
            except RuntimeError as exc:
                errors.append(str(exc))
            await asyncio.sleep(0)

        own.run_until_complete(main())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(10)
    assert len(errors) == 1
    assert "set_wakeup_fd only works in main thread" in errors[0]
