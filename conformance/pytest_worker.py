"""A worker process for suites that pytest runs. Run as `python -m conformance.pytest_worker`; see `worker` for the job.

Beside `worker`'s keys a job has `arguments`: pytest's own, without the paths. Paths come from the ids.
"""

import faulthandler
import json
import os
import sys

import pytest

from conformance import loops, records


class Plugin:
    """Selects the job's tests by exact id, and turns pytest's reports into records."""

    _worse = (records.PASS, records.XFAIL, records.SKIP, records.ERROR, records.FAIL)

    def __init__(self, recorder: records.Recorder, census: loops.Census, tests: list[str] | None) -> None:
        self._recorder, self._census = recorder, census
        self._tests = None if tests is None else set(tests)
        self._outcome, self._detail = records.PASS, ""

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config, items):
        if self._tests is None:
            for item in items:
                self._recorder.end(item.nodeid, records.PASS)
            return
        config.hook.pytest_deselected(items=[item for item in items if item.nodeid not in self._tests])
        items[:] = [item for item in items if item.nodeid in self._tests]

    def pytest_collectreport(self, report):
        if report.failed:
            self._recorder.note(f"{report.nodeid}: {report.longreprtext}")

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item):
        self._outcome, self._detail = records.PASS, ""
        self._census.take()
        self._recorder.start(item.nodeid)
        result = yield
        self._recorder.end(item.nodeid, self._outcome, self._detail, **self._census.take())
        return result

    def pytest_runtest_logreport(self, report):
        if report.passed:
            return
        if report.skipped:
            outcome = records.XFAIL if hasattr(report, "wasxfail") else records.SKIP
        else:
            outcome = records.FAIL if report.when == "call" else records.ERROR
        if self._worse.index(outcome) > self._worse.index(self._outcome):
            self._outcome, self._detail = outcome, report.longreprtext


def main() -> int:
    with open(os.environ.pop("CONFORMANCE_JOB")) as file:
        job = json.load(file)
    faulthandler.enable()
    recorder = records.Recorder(job["fd"])
    loops.install(job["loop"])
    tests = job.get("tests")
    paths = job["discover"] if tests is None else list(dict.fromkeys(test.split("::")[0] for test in tests))
    plugin = Plugin(recorder, loops.census(job["loop"]), tests)
    arguments = [*job["arguments"], *(["--collect-only", "-qq"] if tests is None else ["-q"]), *paths]
    return int(pytest.main(arguments, plugins=[plugin]))


if __name__ == "__main__":
    sys.exit(main())
