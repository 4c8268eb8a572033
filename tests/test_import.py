"""Importing netpoll_loop: silent, quick to say no, and typed."""

import importlib.util
import pathlib
import re
import subprocess
import sys
import sysconfig
import textwrap

import pytest

import netpoll_loop

pytestmark = pytest.mark.netpoll_only("about the package itself")

ROOT = pathlib.Path(netpoll_loop.__file__).parent.parent


def python(code, *flags):
    return subprocess.run(
        [sys.executable, *flags, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=ROOT,
    )


def test_the_import_is_silent_under_w_error():
    done = python("import netpoll_loop", "-W", "error", "-X", "dev")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.skipif(not sysconfig.get_config_var("Py_GIL_DISABLED"), reason="this Python always has the GIL")
def test_the_import_leaves_the_gil_off():
    done = python("import sys, netpoll_loop; print(sys._is_gil_enabled())", "-W", "error")
    assert (done.stdout, done.stderr) == ("False\n", "")


def test_the_public_names_are_there():
    done = python("from netpoll_loop import *; print(sorted(n for n in dir() if n[0] != '_'))", "-W", "error")
    assert done.stdout.strip() == str(sorted(netpoll_loop.__all__)), done.stderr
    for name in ("EventLoopPolicy", "Loop", "new_event_loop", "install", "run", "stats", "__version__"):
        assert hasattr(netpoll_loop, name)


def test_the_version_is_that_of_the_build():
    declared = ROOT / "meson.build"
    if not declared.exists():
        pytest.skip("not in a source tree")
    assert re.search(r"\bversion: '(.*?)'", declared.read_text()).group(1) == netpoll_loop.__version__


def test_the_package_says_that_it_is_typed():
    assert (pathlib.Path(netpoll_loop.__file__).parent / "py.typed").exists()


def test_the_import_starts_no_thread_and_no_loop():
    code = """
        import os, asyncio
        before = len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))
        import netpoll_loop
        assert before == (len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task")))
        """
    done = python(code)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("platform", ["darwin", "win32", "freebsd14"])
def test_an_unsupported_system_is_told_so(platform):
    code = f"""
        import sys
        sys.platform = {platform!r}
        try:
            import netpoll_loop
        except ImportError as error:
            print(error)
        assert "netpoll_loop" not in sys.modules
        """
    done = python(code)
    assert done.stdout == f"netpoll_loop needs Linux (epoll); there is no netpoller for {platform!r} yet\n", done.stderr


# --- a second interpreter ---------------------------------------------------------------------------------------------

IN_SECOND = """
    import sys
    sys.path[:0] = PATH
    try:
        import netpoll_loop
    except ImportError as error:
        print(error, flush=True)
    """

REFUSAL = "netpoll_loop can be used only in the main interpreter of a process, not in a subinterpreter\n"


@pytest.mark.parametrize("first", [True, False], ids=["after the main one", "before the main one"])
@pytest.mark.parametrize("gil", ["own", "shared"])
def test_a_second_interpreter_gets_a_clear_import_error(gil, first):
    if not any(map(importlib.util.find_spec, ("_interpreters", "_xxsubinterpreters"))):
        pytest.skip("this Python can't make subinterpreters")
    config = "isolated" if gil == "own" else "legacy"
    code = f"""
        import sys
        {"import netpoll_loop" if first else ""}
        script = {textwrap.dedent(IN_SECOND)!r}.replace("PATH", repr(sys.path))
        if sys.version_info >= (3, 13):
            import _interpreters
            failure = _interpreters.run_string(_interpreters.create({config!r}), script)
            assert failure is None, failure
        else:
            import _xxsubinterpreters
            isolated = {{"isolated": {gil == "own"}}}
            _xxsubinterpreters.run_string(_xxsubinterpreters.create(**isolated), script)
        import netpoll_loop  # the main interpreter still can
        """
    done = python(code)
    assert (done.stdout, done.returncode) == (REFUSAL, 0), done.stderr


@pytest.mark.parametrize(
    "text",
    [
        "module netpoll_loop._core.stream does not support loading in subinterpreters",
        "Interpreter change detected - this module can only be loaded into one interpreter per process.",
    ],
)
def test_what_the_extension_modules_say_of_it_is_put_clearly(text):
    from netpoll_loop import _interpreter

    with pytest.raises(ImportError) as caught:
        _interpreter.explain(ImportError(text))
    assert str(caught.value) + "\n" == REFUSAL
    assert str(caught.value.__cause__) == text


def test_a_missing_extension_module_is_put_clearly():
    code = """
        import sys
        class Missing:
            def find_spec(self, name, path, target=None):
                if name.startswith("netpoll_loop._core."):
                    raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        sys.meta_path.insert(0, Missing())
        try:
            import netpoll_loop
        except ImportError as error:
            print(error)
        """
    done = python(code)
    assert re.match(r"netpoll_loop's extension modules aren't built for this Python \(cpython 3\.\d+\): ", done.stdout)
    assert "`make build`" in done.stdout


def test_any_other_import_error_is_left_as_it_is():
    from netpoll_loop import _interpreter

    _interpreter.explain(ImportError("cannot import name 'x' from 'y'"))
    _interpreter.explain(ModuleNotFoundError("No module named 'ssl'", name="ssl"))
