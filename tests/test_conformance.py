"""The conformance tool itself: its ledger, its verdict, and workers that hang, crash or never get to a test."""

import asyncio
import os
import socket
import sys
import textwrap

import pytest

from conformance import driver, ledger, loops, records, reference, sources, suites
from conformance.__main__ import expression
from conformance.delayed import DelayedEventLoop

pytestmark = pytest.mark.netpoll_only("about the tool")


# --- running tests in workers -----------------------------------------------------------------------------------------


@pytest.fixture
def job(tmp_path):
    """Factory of jobs over one module of unittest tests, `sample`, with this source."""

    def factory(source, *, kind=loops.STOCK, limit=20.0, install=False):
        (tmp_path / "sample.py").write_text(textwrap.dedent(source))
        environment = {**os.environ, "PYTHONPATH": str(sources.ROOT)}
        settings = {"loop": kind, "install": install, "path": [str(tmp_path)]}
        return driver.Job([sys.executable, "-m", "conformance.worker"], environment, str(tmp_path), settings, limit)

    return factory


def run(job, *tests):
    reported = []
    results = driver.run(job, tests, lambda test, outcome: reported.append(test))
    assert sorted(reported) == sorted(set(tests)), "each test is reported once"
    return {test.rpartition(".")[2]: result for test, result in results.items()}


def test_outcomes_of_tests(job):
    results = run(
        job(
            """
            import unittest
            class T(unittest.TestCase):
                def test_pass(self): pass
                def test_fail(self): self.assertEqual(1, 2)
                def test_error(self): raise KeyError("what happened")
                def test_skip(self): self.skipTest("not here")
                @unittest.skip("never")
                def test_skipped(self): pass
                @unittest.expectedFailure
                def test_xfail(self): self.fail()
                @unittest.expectedFailure
                def test_xpass(self): pass
                def test_subtests(self):
                    for number in range(3):
                        with self.subTest(number=number):
                            self.assertNotEqual(number, 1)
            """
        ),
        *(
            f"sample.T.test_{name}"
            for name in ("skipped", "pass", "fail", "error", "skip", "xfail", "xpass", "subtests")
        ),
    )
    assert {name: result.outcome for name, result in results.items()} == {
        "test_skipped": records.SKIP,
        "test_pass": records.PASS,
        "test_fail": records.FAIL,
        "test_error": records.ERROR,
        "test_skip": records.SKIP,
        "test_xfail": records.XFAIL,
        "test_xpass": records.FAIL,
        "test_subtests": records.FAIL,
    }
    assert "what happened" in results["test_error"].detail
    assert "number=1" in results["test_subtests"].detail


def test_a_crash_is_the_result_of_its_test_and_the_run_goes_on(job):
    results = run(
        job(
            """
            import os, signal, unittest
            class T(unittest.TestCase):
                def test_1(self): pass
                def test_2(self): os.kill(os.getpid(), signal.SIGSEGV)
                def test_3(self): os._exit(3)
                def test_4(self): pass
            """
        ),
        *(f"sample.T.test_{number}" for number in (1, 2, 3, 4)),
    )
    assert [results[f"test_{number}"].outcome for number in (1, 2, 3, 4)] == ["pass", "crash", "crash", "pass"]
    assert "SIGSEGV" in results["test_2"].detail
    assert "status 3" in results["test_3"].detail


def test_a_crash_between_tests_loses_none_that_comes_after(job):
    source = """
        import os, unittest
        class A(unittest.TestCase):
            def test_1(self): pass
            @classmethod
            def tearDownClass(cls): os._exit(9)
        class B(unittest.TestCase):
            def test_2(self): pass
        """
    results = run(job(source), "sample.A.test_1", "sample.B.test_2")
    assert [results["test_1"].outcome, results["test_2"].outcome] == ["pass", "pass"]


def test_a_hang_is_the_result_of_its_test_with_its_stack_and_the_run_goes_on(job):
    results = run(
        job(
            """
            import time, unittest
            class T(unittest.TestCase):
                def test_1(self): self.stuck_in_here()
                def test_2(self): pass
                def stuck_in_here(self): time.sleep(1000)
            """,
            limit=2.0,
        ),
        "sample.T.test_1",
        "sample.T.test_2",
    )
    assert [results["test_1"].outcome, results["test_2"].outcome] == ["hang", "pass"]
    assert "stuck_in_here" in results["test_1"].detail


def test_a_test_that_never_began_is_missing_and_says_why(job):
    source = """
        import unittest
        class SetUp(unittest.TestCase):
            @classmethod
            def setUpClass(cls): raise OSError("no room")
            def test_1(self): pass
        class T(unittest.TestCase):
            def test_2(self): pass
        """
    results = run(job(source), "sample.SetUp.test_1", "sample.T.test_2", "sample.T.test_gone", "nowhere.T.test_3")
    assert results["test_1"].outcome == records.MISSING and "no room" in results["test_1"].detail
    assert results["test_2"].outcome == records.PASS
    assert results["test_gone"].outcome == records.MISSING and "test_gone" in results["test_gone"].detail
    assert results["test_3"].outcome == records.MISSING and "nowhere" in results["test_3"].detail


def test_a_forked_child_reports_nothing(job):
    results = run(
        job(
            """
            import os, unittest
            class T(unittest.TestCase):
                def test_1(self):
                    if not os.fork():
                        raise SystemExit  # On through unittest, in the child.
                    os.wait()
            """
        ),
        "sample.T.test_1",
    )
    assert results["test_1"].outcome == records.PASS


def test_discovery_finds_the_ids_and_notes_what_cannot_be_imported(job):
    found, notes = driver.discover(
        job("import unittest\nclass T(unittest.TestCase):\n  def test_1(self): pass\n"), ["sample", "nowhere"]
    )
    assert found == ["sample.T.test_1"]
    assert len(notes) == 1 and "nowhere" in notes[0]


# --- which loop a suite gets ------------------------------------------------------------------------------------------

DOORS = """
    import asyncio, selectors, unittest
    def wanted(loop):
        loop.close()
        return {wanted} in [f"{{c.__module__}}.{{c.__qualname__}}" for c in type(loop).__mro__]
    class T(unittest.TestCase):
        def test_new(self): assert wanted(asyncio.new_event_loop())
        def test_default_policy_put_back(self):
            asyncio.set_event_loop_policy(None)
            assert wanted(asyncio.new_event_loop())
        def test_class(self): assert wanted(asyncio.SelectorEventLoop())
        def test_with_selector(self): assert wanted(asyncio.SelectorEventLoop(selectors.PollSelector()))
        def test_run(self):
            async def main(): return asyncio.get_running_loop()
            assert wanted(asyncio.run(main()))
    """


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [(loops.NETPOLL, "netpoll_loop.loop.Loop"), (loops.DELAYED, "conformance.delayed.DelayedEventLoop")],
)
def test_every_door_of_asyncio_leads_to_the_loop(job, kind, wanted):
    names = ("new", "default_policy_put_back", "class", "with_selector", "run")
    results = run(
        job(DOORS.format(wanted=repr(wanted)), kind=kind, install=True), *(f"sample.T.test_{name}" for name in names)
    )
    assert {name: (result.outcome, result.detail) for name, result in results.items()} == {
        f"test_{name}": (records.PASS, "") for name in names
    }
    assert all(result.ours == 1 and result.stock == 0 for result in results.values()), "they are counted"


def test_the_shim_is_our_loop_under_uvloops_name(run_child):
    shim = os.pathsep.join([str(sources.HERE / "shim"), str(sources.ROOT)])
    done = run_child(
        """
        import netpoll_loop, uvloop
        async def main():
            assert isinstance(asyncio.get_running_loop(), netpoll_loop.Loop)
        uvloop.run(main())
        assert uvloop.Loop is netpoll_loop.Loop and uvloop.__version__
        print(uvloop.__file__)
        """,
        "auto",
        env={"PYTHONPATH": shim, "CONFORMANCE_LOOP": loops.NETPOLL},
    )
    assert str(sources.HERE) in done.stdout


# --- the delayed loop -------------------------------------------------------------------------------------------------


def turns_until_data_is_seen(loop):
    """How many turns of the loop pass from a peer's send to add_reader's callback."""

    async def main():
        near, far = socket.socketpair()
        near.setblocking(False)
        seen = []
        with near, far:
            loop.add_reader(near, lambda: seen.append(near.recv(10)))
            await asyncio.sleep(0)
            far.send(b"x")
            turns = 0
            while not seen:
                await asyncio.sleep(0)
                turns += 1
            await asyncio.sleep(0)
            loop.remove_reader(near)
        assert seen == [b"x"], "once, though the selector reported it twice"
        return turns

    try:
        return loop.run_until_complete(main())
    finally:
        loop.close()


def test_the_delayed_loop_is_one_turn_behind():
    assert turns_until_data_is_seen(DelayedEventLoop()) == turns_until_data_is_seen(asyncio.SelectorEventLoop()) + 1


def test_the_delayed_loop_drops_what_was_removed_meanwhile():
    loop = DelayedEventLoop()
    near, far = socket.socketpair()
    near.setblocking(False)
    seen = []

    async def main():
        loop.add_reader(near, seen.append, "first")
        far.send(b"x")
        await asyncio.sleep(0)
        loop.add_reader(near, seen.append, "second")
        await asyncio.sleep(0.01)
        loop.remove_reader(near)

    with near, far:
        loop.run_until_complete(main())
        loop.close()
    assert set(seen) == {"second"}


def test_the_delayed_loop_serves_streams():
    async def main():
        async def echo(reader, writer):
            writer.write(await reader.readexactly(100_000))
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(echo, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(b"x" * 100_000)
        assert len(await reader.read()) == 100_000
        writer.close()
        server.close()

    with asyncio.Runner(loop_factory=DelayedEventLoop) as runner:
        runner.run(asyncio.wait_for(main(), 10))


# --- the ledger and the verdict ---------------------------------------------------------------------------------------

LEDGER = """
[[difference]]
reason = "about the C library beneath"
tests = ["t.c"]

[[difference]]
reason = "only where the netpoller does the I/O"
tests = ["t.d"]
netpoller = ["dedicated"]
python = ["3.11", "3.12.1"]

[[flicker]]
reason = "a race in the test"
tests = ["t.f"]
reference = "1/20"
ours = "1/20"
"""


def loaded(text=LEDGER, netpoller="auto", python="3.11.7", debug=False):
    return ledger.load(text, netpoller=netpoller, python=python, debug=debug)


def outcomes(**by_name):
    return {f"t.{name}": driver.Outcome(outcome) for name, outcome in by_name.items()}


def test_entries_apply_where_they_say():
    assert set(loaded().differences) == {"t.c"}
    assert set(loaded(netpoller="dedicated").differences) == {"t.c", "t.d"}
    assert set(loaded(netpoller="dedicated", python="3.12.1").differences) == {"t.c", "t.d"}
    assert set(loaded(netpoller="dedicated", python="3.12.10").differences) == {"t.c"}
    assert set(loaded(netpoller="dedicated", python="3.13.0").differences) == {"t.c"}
    assert set(loaded().flickers) == {"t.f"}


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('[[difference]]\ntests = ["a"]', "without a reason"),
        ('[[difference]]\nreason = " "\ntests = ["a"]', "without a reason"),
        ('[[difference]]\nreason = "r"', "without tests"),
        ('[[difference]]\nreason = "r"\ntests = ["a", "a"]', "listed twice"),
        ('[[difference]]\nreason = "r"\ntests = ["a"]\nmode = "auto"', "unknown key"),
        ('[[diference]]\nreason = "r"\ntests = ["a"]', "unknown table"),
        ('[[flicker]]\nreason = "r"\ntests = ["a"]', "without its rates"),
    ],
)
def test_a_wrong_ledger_is_refused(text, complaint):
    with pytest.raises(ledger.LedgerError, match=complaint):
        loaded(text)


def test_the_verdict_counts_and_its_line():
    verdict = ledger.judge(["t.a", "t.b", "t.c", "t.f"], outcomes(a="pass", b="fail", c="error", f="fail"), loaded())
    assert verdict.line("uvloop") == "conformance uvloop: reference 4, ours 1, explained 2, unexplained 1"
    assert verdict.unexplained == {"t.b": "fail"}


def test_a_listed_test_that_passes_is_unexplained():
    verdict = ledger.judge(["t.c", "t.f"], outcomes(c="pass", f="pass"), loaded())
    assert list(verdict.unexplained) == ["t.c"]


def test_a_listed_test_that_the_reference_does_not_pass_is_unexplained():
    assert list(ledger.judge(["t.c"], outcomes(c="fail"), loaded()).unexplained) == ["t.f"]
    assert not ledger.judge(["t.c"], outcomes(c="fail"), loaded(), selected=True).unexplained


@pytest.mark.parametrize("outcome", ["fail", "error", "skip", "xfail", "hang", "crash", "missing"])
def test_whatever_is_not_a_pass_is_a_difference(outcome):
    assert ledger.judge(["t.a"], outcomes(a=outcome), ledger.Ledger()).unexplained == {"t.a": outcome}


def test_a_test_without_a_result_is_a_difference():
    assert ledger.judge(["t.a"], {}, ledger.Ledger()).unexplained == {"t.a": "missing"}


def test_a_failure_on_the_delayed_loop_explains_the_same_failure():
    verdict = ledger.judge(["t.a", "t.b"], outcomes(a="fail", b="fail"), ledger.Ledger(), also_fails=["t.a"])
    assert list(verdict.explained) == ["t.a"]
    assert list(verdict.unexplained) == ["t.b"]


@pytest.mark.parametrize("suite", suites.SUITES.values(), ids=lambda suite: suite.name)
@pytest.mark.parametrize("netpoller", ["auto", "dedicated", "inline"])
def test_the_committed_ledger_is_well_formed(suite, netpoller):
    ledger.load_for(suite.name, netpoller=netpoller, debug=False)


# --- small parts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "matching"),
    [
        ("tcp", {"a.TCP.test_write", "a.TCP.test_read"}),
        ("tcp and not read", {"a.TCP.test_write"}),
        ("(udp or tcp) and read", {"a.TCP.test_read"}),
    ],
)
def test_expressions_select_as_pytest_does(text, matching):
    tests = ["a.TCP.test_write", "a.TCP.test_read", "a.UDP.test_send"]
    assert {test for test in tests if expression(text)(test)} == matching


@pytest.mark.parametrize("text", ["and", "a b", "(a", "a or"])
def test_a_wrong_expression_is_refused(text):
    with pytest.raises(ValueError, match="not an expression"):
        expression(text)


def test_references_are_kept_as_lists_of_ids(tmp_path, monkeypatch):
    monkeypatch.setattr(reference, "FOLDER", tmp_path)
    suite = suites.SUITES["uvloop"]
    reference.save(suite, ["t.a", "t.b", "t.c"], {"t.a": 3, "t.b": 2, "t.c": 0}, 3)
    assert reference.load(suite) == (["t.a"], {"t.b": "2/3"})


def test_an_sdist_with_another_hash_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "CACHE", tmp_path)
    (tmp_path / "x-1.tar.gz").write_bytes(b"not it")
    sdist = sources.Sdist("x", "1", "0" * 64)
    monkeypatch.setattr(sources.Sdist, "_download", lambda self, into: tmp_path / "x-1.tar.gz")
    with pytest.raises(SystemExit, match="SHA-256"):
        sdist.unpack()
    assert not sdist.folder.exists()
