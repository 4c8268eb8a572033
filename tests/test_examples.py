"""Every program in examples/ runs, in each mode, and ends by itself."""

import os
import pathlib
import subprocess
import sys

import pytest

EXAMPLES = pathlib.Path(__file__).parent.parent / "examples"
PROGRAMS = sorted(path.name for path in EXAMPLES.glob("*.py") if path.name != "__init__.py")

pytestmark = pytest.mark.netpoll_only("the examples use netpoll_loop")


def run_example(name, mode, *options):
    """Runs an example to its end; fails by name when it hangs or writes to stderr."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *options],
        env={**os.environ, "NETPOLL_LOOP_NETPOLLER": mode, "PYTHONPATH": str(EXAMPLES.parent)},
        capture_output=True,
        text=True,
        timeout=40,
        check=False,
    )
    # Setting a policy is deprecated since 3.14; it works until 3.16.
    errors = [line for line in done.stderr.splitlines() if line.strip() and "set_event_loop_policy" not in line]
    assert (done.returncode, errors) == (0, []), done.stderr
    return done.stdout


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_example_runs_once(name, mode, tmp_path):
    options = {"unix_chat.py": ["--path", str(tmp_path / "socket"), "--once"], "channel.py": []}
    assert run_example(name, mode, *options.get(name, ["--port", "0", "--once"])).strip()
