"""The models in tests/model, verified by spin; `make model` runs all of them."""

import os
import pathlib
import shutil
import subprocess

import pytest

RUN = pathlib.Path(__file__).parent / "model" / "run.sh"

#: All of them take minutes: NETPOLL_LOOP_MODELS=all.
ALL = os.environ.get("NETPOLL_LOOP_MODELS") == "all"

pytestmark = [
    pytest.mark.netpoll_only("netpoll_loop's own protocols"),
    pytest.mark.skipif(shutil.which("spin") is None, reason="spin isn't installed"),
    pytest.mark.timeout(1200 if ALL else 300),
]


@pytest.mark.parametrize("model", ["park", "writes", "reads", "handoff"])
def test_the_model_holds_and_each_seeded_bug_is_found(model, tmp_path):
    if not ALL and model != "reads":
        pytest.skip("takes minutes; NETPOLL_LOOP_MODELS=all, or make model")
    done = subprocess.run(
        ["sh", str(RUN), model],
        env={**os.environ, "BUILD": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=1100 if ALL else 280,
        check=False,
    )
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and not any(line.startswith("FAIL") for line in lines), done.stdout + done.stderr
    assert any(line.startswith("ok ") for line in lines) and any(line.startswith("found ") for line in lines)
