"""The three suites: what each is made of, the loop that it is measured against, how one of its workers is started."""

import abc
import os
import pathlib
import platform
import shutil
import sys
import sysconfig
from collections.abc import Sequence

from conformance import driver, loops, sources

UVLOOP = sources.Sdist("uvloop", "0.23.0", "28d160f51ab4da3b187063652e643dea6831072add4adc1e6d62afbe73b6be27")
AIOHTTP = sources.Sdist("aiohttp", "3.14.5", "5558a7f5a05af9ecf744af91e5baefc436f93c9333e656c27ec253f9a6bbe178")

#: The loop that a suite is measured against: uvloop's on uvloop, the others on stock asyncio.
REFERENCE = "reference"


class Suite(abc.ABC):
    name: str
    version: str
    #: What the reference run is called in reports.
    reference: str
    #: Seconds that one test may take.
    limit: float

    @staticmethod
    def _without_package(sdist: sources.Sdist) -> pathlib.Path:
        """The sdist without its unbuilt package, which its tests would import instead of the built one."""
        folder = sdist.unpack()
        whole, partial = folder / "without-package", folder / "without-package.new"
        if not whole.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
            left_out = {sdist.name, "vendor", whole.name, partial.name}
            partial.mkdir()
            for entry in folder.iterdir():
                if entry.is_dir() and entry.name not in left_out:
                    shutil.copytree(entry, partial / entry.name)
                elif entry.is_file():
                    shutil.copy(entry, partial)
            partial.rename(whole)
        return whole

    def obstacle(self) -> str | None:
        """Why the suite can't be run here at all; None if it can."""
        return None

    @abc.abstractmethod
    def job(self, kind: str, netpoller: str) -> driver.Job:
        """How to start a worker on that kind of loop: REFERENCE, or one of `loops`."""

    @abc.abstractmethod
    def discover(self) -> list[str]:
        """The ids of every test that the reference run tries."""

    @abc.abstractmethod
    def module(self, test: str) -> str:
        """The part of an id that names its file; a worker gets the tests of one file."""

    def chunks(self, tests: Sequence[str]) -> list[list[str]]:
        chunks: dict[str, list[str]] = {}
        for test in tests:
            chunks.setdefault(self.module(test), []).append(test)
        return list(chunks.values())

    def _environment(self, netpoller: str, *path: pathlib.Path) -> dict[str, str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
        environment["PYTHONPATH"] = os.pathsep.join(map(str, (*path, sources.ROOT)))
        environment["NETPOLL_LOOP_NETPOLLER"] = netpoller
        environment.pop("PYTHONWARNINGS", None)
        return environment


class Uvloop(Suite):
    name, version, reference, limit = "uvloop", UVLOOP.version, "uvloop", 30

    def job(self, kind, netpoller):
        folder = UVLOOP.unpack()
        python = sources.environment("uvloop")
        package = sources.library("uvloop", self.version) if kind == REFERENCE else sources.HERE / "shim"
        environment = self._environment(netpoller, package)
        environment["CONFORMANCE_LOOP"] = kind
        environment["CONFORMANCE_UVLOOP"] = str(folder)
        tests = self._without_package(UVLOOP)
        settings = {"loop": loops.STOCK if kind == REFERENCE else kind, "install": False, "path": [str(tests)]}
        return driver.Job([python, "-m", "conformance.worker"], environment, str(tests), settings, self.limit)

    def discover(self):
        folder = UVLOOP.unpack()
        modules = [f"tests.{path.stem}" for path in sorted((folder / "tests").glob("test_*.py"))]
        tests, notes = driver.discover(self.job(REFERENCE, "auto"), modules)
        for note in notes:
            print(f"conformance: {note}")
        # Test_AIO_... run on asyncio whatever is called uvloop.
        return [test for test in tests if "AIO" not in test.split(".")[2]]

    def module(self, test):
        return ".".join(test.split(".")[:2])


#: Modules of CPython's test_asyncio that don't count, and why.
NOT_FUNCTIONAL = {
    "test_proactor_events": "the proactor loop of another system",
    "test_selector_events": "private internals of the selector loop, on mocked sockets and selectors",
    "test_windows_events": "another system",
    "test_windows_utils": "another system",
    "test_tools": "the command line tool, no loop",
}


class CPython(Suite):
    name, reference, limit = "cpython", "asyncio", 60
    version = platform.python_version()

    def job(self, kind, netpoller):
        settings = {"loop": loops.STOCK if kind == REFERENCE else kind, "install": True, "path": []}
        # Some of the tests leave files where they run.
        scratch = sources.CACHE / "scratch"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        return driver.Job(
            [sys.executable, "-m", "conformance.worker"],
            self._environment(netpoller),
            str(scratch),
            settings,
            self.limit,
        )

    def obstacle(self):
        return (
            None if sources.has_test_package() else "this Python was installed without its own tests (package `test`)"
        )

    def discover(self):
        folder = pathlib.Path(sysconfig.get_path("stdlib"), "test", "test_asyncio")
        names = [path.stem for path in sorted(folder.glob("test_*.py")) if path.stem not in NOT_FUNCTIONAL]
        tests, notes = driver.discover(self.job(REFERENCE, "auto"), [f"test.test_asyncio.{name}" for name in names])
        for note in notes:
            print(f"conformance: {note}")
        return tests

    def module(self, test):
        return ".".join(test.split(".")[:3])


class Aiohttp(Suite):
    name, version, reference, limit = "aiohttp", AIOHTTP.version, "asyncio", 60

    #: The suite's own settings (pytest.ini), less coverage, xdist, and its time limit, which the driver keeps.
    ARGUMENTS = (
        "-c", "pytest.ini", "-o", "addopts=", "-o", "timeout=0", "-p", "no:cacheprovider", "--strict-markers",
        "-m", "not dev_mode and not autobahn and not internal", "--doctest-modules", "--tb=short",
    )  # fmt: skip

    def job(self, kind, netpoller):
        python = sources.environment("aiohttp")
        settings = {"loop": loops.STOCK if kind == REFERENCE else kind, "arguments": list(self.ARGUMENTS)}
        return driver.Job(
            [python, "-m", "conformance.pytest_worker"],
            self._environment(netpoller),
            str(self._without_package(AIOHTTP)),
            settings,
            self.limit,
        )

    def discover(self):
        tests, notes = driver.discover(self.job(REFERENCE, "auto"), ["tests"])
        for note in notes:
            print(f"conformance: {note}")
        return tests

    def module(self, test):
        return test.split("::")[0]


SUITES: dict[str, Suite] = {suite.name: suite for suite in (Uvloop(), Aiohttp(), CPython())}
