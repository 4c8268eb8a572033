"""Child processes: watched by pidfd, with the exit status, and nothing left behind.

What asyncio promises about subprocesses in general is tested elsewhere; this is about how their end is noticed.
"""

import asyncio
import errno
import gc
import os
import signal
import subprocess
import sys
import threading

import pytest


def fd_target(fd):
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        return ""


async def exit_code(*argv, **kwargs):
    child = await asyncio.create_subprocess_exec(*argv, **kwargs)
    return await child.wait()


def zombies():
    """Children of this process that have ended and that nobody has waited for."""
    found = []
    for name in os.listdir("/proc"):
        try:
            with open(f"/proc/{int(name)}/stat") as file:
                state, parent = file.read().rpartition(")")[2].split()[:2]
        except (OSError, ValueError):
            continue
        if state == "Z" and int(parent) == os.getpid():
            found.append(int(name))
    return found


@pytest.mark.parametrize("code", [0, 1, 7, 255])
def test_the_exit_code(run, code):
    assert run(exit_code("sh", "-c", f"exit {code}")) == code


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL, signal.SIGABRT])
def test_the_signal_that_ended_it_is_negative(run, signum):
    assert run(exit_code("sh", "-c", f"kill -{signum} $$")) == -signum


def test_output_before_the_end_is_complete(run):
    async def main():
        child = await asyncio.create_subprocess_exec(
            "sh", "-c", "cat; echo done", stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        out, _ = await child.communicate(b"x" * 500_000)
        return len(out), out[-5:], child.returncode

    assert run(main()) == (500_005, b"done\n", 0)


def test_many_children_at_once(run):
    async def main():
        return await asyncio.gather(*(exit_code("sh", "-c", f"exit {code}") for code in range(40)))

    assert run(main(), timeout=30) == list(range(40))
    assert zombies() == []


@pytest.mark.netpoll_only("stock asyncio of 3.11 has a thread for each child")
def test_a_child_needs_no_thread_and_no_signal_handler(run):
    async def main():
        before = threading.active_count()
        child = await asyncio.create_subprocess_exec("cat", stdin=subprocess.PIPE)
        try:
            assert threading.active_count() == before
            assert signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL
        finally:
            child.stdin.close()
            await child.wait()

    run(main())


def test_in_a_loop_outside_the_main_thread(new_loop):
    loop = new_loop()
    codes = []
    thread = threading.Thread(target=lambda: codes.append(loop.run_until_complete(exit_code("sh", "-c", "exit 3"))))
    thread.start()
    thread.join(30)
    assert codes == [3]


def test_no_descriptor_stays_open(run):
    def fds():
        return len(os.listdir("/proc/self/fd"))

    run(exit_code("true"))
    before = fds()
    for _ in range(5):
        run(exit_code("true"))
    assert fds() == before


@pytest.mark.netpoll_only("stock asyncio leaves the pidfd open")
def test_a_loop_closed_with_a_running_child_frees_its_pidfd(new_loop):
    def pidfds():
        return [what for what in map(fd_target, os.listdir("/proc/self/fd")) if "pidfd" in what]

    async def start():
        return await asyncio.create_subprocess_exec("sleep", "60")

    loop = new_loop()
    child = loop.run_until_complete(start())
    assert len(pidfds()) == 1
    child._transport.close()
    loop.close()
    child._transport._proc.wait(10)
    del child, loop
    gc.collect()
    assert pidfds() == []


def test_cancelling_the_start_kills_and_reaps_the_child(loop, run):
    async def main():
        starting = asyncio.ensure_future(asyncio.create_subprocess_exec("sleep", "60", stdout=subprocess.PIPE))
        await asyncio.sleep(0)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting

    run(main())
    assert zombies() == []


@pytest.mark.not_on_oracle("in 3.11 a thread waits for the child, and nobody can be quicker")
def test_a_child_that_somebody_else_waited_for_reports_255(run, caplog):
    async def main():
        child = await asyncio.create_subprocess_exec("sleep", "60")
        child.kill()
        os.waitpid(child.pid, 0)
        return child.pid, await child.wait()

    pid, code = run(main())
    assert code == 255
    assert f"child process pid {pid}" in caplog.text
    assert "will report returncode 255" in caplog.text


@pytest.mark.netpoll_only("stock asyncio reports 255")
def test_a_child_that_its_own_popen_waited_for_keeps_its_exit_code(run, caplog):
    async def main():
        child = await asyncio.create_subprocess_exec("sleep", "60")
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        child._transport.close()  # polls the Popen
        return await child.wait()

    assert run(main()) == -signal.SIGKILL
    assert not caplog.records


def test_ignored_sigchld_reports_255(run, caplog):
    former = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        assert run(exit_code("sh", "-c", "exit 3")) == 255
    finally:
        signal.signal(signal.SIGCHLD, former)
    assert "exit status already read" in caplog.text or "will report returncode 255" in caplog.text


def test_a_program_that_is_not_there(run):
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(FileNotFoundError):
        run(exit_code("/nonexistent/program"))
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.netpoll_only("stock asyncio leaves a child behind that nobody waits for")
def test_a_child_is_waited_for_although_no_descriptor_is_free(run, monkeypatch):
    def full(pid, flags=0):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    async def main():
        child = await asyncio.create_subprocess_exec("sh", "-c", "exit 3")
        return await child.wait()

    from netpoll_loop import subprocesses

    assert subprocesses.pidfd_works()
    monkeypatch.setattr(os, "pidfd_open", full)
    assert run(main()) == 3


@pytest.mark.netpoll_only("stock asyncio is what it falls back to")
def test_without_pidfds_children_work_asyncios_way(run_child):
    done = run_child(
        """
        def refuse(pid, flags=0):
            raise PermissionError(1, "Operation not permitted")
        os.pidfd_open = refuse
        async def main():
            child = await asyncio.create_subprocess_exec("sh", "-c", "exit 3")
            return await child.wait()
        async def both():
            assert await main() == 3
        run_main(both())
        print("ok")
        """
    )
    assert done.stdout == "ok\n"


def test_the_limit_of_descriptors_gives_oserror(run_child):
    done = run_child(
        """
        from resource import RLIMIT_NOFILE, getrlimit, setrlimit
        async def main():
            child = await asyncio.create_subprocess_exec("true")
            await child.wait()
            fds = len(os.listdir("/proc/self/fd")) - 1
            setrlimit(RLIMIT_NOFILE, (fds, getrlimit(RLIMIT_NOFILE)[1]))
            try:
                await asyncio.create_subprocess_exec("true", stdout=-1)
            except OSError as error:
                print(error.errno)
        run_main(main())
        """
    )
    assert done.stdout == f"{errno.EMFILE}\n", done.stderr


@pytest.mark.parametrize("descriptors", [True, False])
def test_no_signal_is_sent_to_a_number_that_was_reaped(run, monkeypatch, descriptors):
    """https://github.com/python/cpython/issues/127049"""
    reaped, stale = set(), []
    waitpid, kill = os.waitpid, os.kill

    def watched_waitpid(pid, options):
        found = waitpid(pid, options)
        if found[0]:
            reaped.add(found[0])
        return found

    def watched_kill(pid, signum):
        if pid in reaped:
            stale.append(pid)
        else:
            kill(pid, signum)

    async def main():
        if not descriptors:
            monkeypatch.setattr(os, "pidfd_open", out_of_descriptors)
        for _ in range(5):
            child = await asyncio.create_subprocess_exec("sleep", "1000")
            while child.returncode is None:
                child.kill()
                await asyncio.sleep(0)
            assert await child.wait() == -signal.SIGKILL

    def out_of_descriptors(pid, flags=0):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(os, "waitpid", watched_waitpid)
    monkeypatch.setattr(os, "kill", watched_kill)
    run(main())
    assert not stale


def test_an_unexpected_error_of_waitpid_frees_the_pidfd(run, monkeypatch, exceptions):
    async def main():
        child = await asyncio.create_subprocess_exec("cat", stdin=subprocess.PIPE)
        waitpid = os.waitpid
        called = asyncio.Event()

        def failing(pid, options):
            called.set()
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        monkeypatch.setattr(os, "waitpid", failing)
        child.stdin.close()
        await asyncio.wait_for(called.wait(), 5)
        monkeypatch.setattr(os, "waitpid", waitpid)
        assert not [fd for fd in os.listdir("/proc/self/fd") if "pidfd" in fd_target(fd)]
        waitpid(child.pid, 0)
        child._transport._process_exited(0)
        await child.wait()

    run(main())
    assert [context["exception"].errno for context in exceptions] == [errno.EIO]


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="child watchers are gone in Python 3.14")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_watcher_that_reaps_every_child_is_the_one_that_is_asked(loop):
    watcher = asyncio.FastChildWatcher()
    policy = asyncio.get_event_loop_policy()
    before = policy._watcher
    asyncio.set_event_loop(loop)
    watcher.attach_loop(loop)
    policy.set_child_watcher(watcher)

    async def main():
        return [await (await asyncio.create_subprocess_exec("/bin/sh", "-c", f"exit {n}")).wait() for n in range(20)]

    try:
        assert loop.run_until_complete(asyncio.wait_for(main(), 20)) == list(range(20))
    finally:
        policy.set_child_watcher(before)
        watcher.close()
        asyncio.set_event_loop(None)
