"""A worker process for suites of unittest tests. Run as `python -m conformance.worker`; the job is in the environment.

CONFORMANCE_JOB names a JSON file: `loop` (see `loops`), `install` (replace asyncio's doors?), `path` (put first on
sys.path), `tests` (ids to run, in this order) or `discover` (modules whose test ids are wanted),
`fd` (the record pipe).
"""

import faulthandler
import json
import os
import sys
import traceback
import unittest

from conformance import loops, records


class Result(unittest.TestResult):
    """Turns unittest's calls into records. One test has one outcome, the worst of its parts'."""

    _worse = (records.PASS, records.XFAIL, records.SKIP, records.ERROR, records.FAIL)

    def __init__(self, recorder: records.Recorder, names: dict[int, str], census: loops.Census) -> None:
        super().__init__()
        self._recorder, self._names, self._census = recorder, names, census
        # Not in startTest: 3.12.1 doesn't call it for a test that a decorator skips.
        self._outcome, self._detail = records.PASS, ""

    def _name(self, test):
        return self._names.get(id(test))

    def startTest(self, test):
        super().startTest(test)
        self._census.take()
        self._recorder.start(self._name(test))

    def stopTest(self, test):
        super().stopTest(test)
        self._recorder.end(self._name(test), self._outcome, self._detail, **self._census.take())
        self._outcome, self._detail = records.PASS, ""

    def _note(self, test, outcome, detail):
        if self._name(getattr(test, "test_case", test)) is None:
            # A class's or module's set-up; none of its tests will start.
            self._recorder.note(f"{test}: {detail}")
        elif self._worse.index(outcome) > self._worse.index(self._outcome):
            self._outcome, self._detail = outcome, detail

    def _text(self, err):
        return "".join(traceback.format_exception(*err))

    def addError(self, test, err):
        self._note(test, records.ERROR, self._text(err))

    def addFailure(self, test, err):
        self._note(test, records.FAIL, self._text(err))

    def addSubTest(self, test, subtest, err):
        if err is not None:
            kind = records.FAIL if issubclass(err[0], test.failureException) else records.ERROR
            self._note(test, kind, f"{subtest}\n{self._text(err)}")

    def addSkip(self, test, reason):
        self._note(test, records.SKIP, reason)

    def addExpectedFailure(self, test, err):
        self._note(test, records.XFAIL, self._text(err))

    def addUnexpectedSuccess(self, test):
        self._note(test, records.FAIL, "unexpected success")


def flatten(suite):
    for test in suite:
        if isinstance(test, unittest.TestSuite):
            yield from flatten(test)
        else:
            yield test


def main() -> None:
    with open(os.environ.pop("CONFORMANCE_JOB")) as file:
        job = json.load(file)
    faulthandler.enable()
    recorder = records.Recorder(job["fd"])
    sys.path[:] = job["path"] + [entry for entry in sys.path if entry not in ("", os.getcwd())]
    if job["install"]:
        loops.install(job["loop"])
    census = loops.census(job["loop"])
    loader = unittest.TestLoader()

    if "discover" in job:
        for module in job["discover"]:
            for test in flatten(loader.loadTestsFromName(module)):
                if type(test).__name__ == "_FailedTest":
                    recorder.note(f"{module}: {test._exception}")
                elif not isinstance(test, unittest.FunctionTestCase):
                    recorder.end(test.id(), records.PASS)
        return

    names, tests = {}, []
    for name in job["tests"]:
        found = list(flatten(loader.loadTestsFromName(name)))
        for test in found:
            if type(test).__name__ == "_FailedTest":
                recorder.end(name, records.MISSING, str(test._exception))
            else:
                names[id(test)] = name
                tests.append(test)
        loader.errors.clear()
    unittest.TestSuite(tests).run(Result(recorder, names, census))


if __name__ == "__main__":
    main()
