"""Where asyncio, uvloop and netpoll_loop differ: what docs/compatibility.md says is measured here, on each loop."""

import warnings

import pytest

from conformance import compatibility, differences

pytestmark = pytest.mark.netpoll_only("it measures all three loops itself")


@pytest.mark.parametrize("loop_name", differences.LOOPS)
@pytest.mark.parametrize("difference", differences.DIFFERENCES, ids=lambda difference: difference.name)
# A socket that was closed under an operation, as some of them do, can leave asyncio's own things behind.
@pytest.mark.allow_leaks("what a stock loop leaves behind")
def test_the_loop_answers_what_the_documentation_says(difference, loop_name):
    if loop_name == "uvloop":
        pytest.importorskip("uvloop")
    loop = differences.new_loop(loop_name)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            assert difference.measure(loop) == difference.answer(loop_name)
    finally:
        loop.close()


@pytest.mark.parametrize("difference", differences.DIFFERENCES, ids=lambda difference: difference.name)
def test_each_entry_is_a_difference(difference):
    assert len(set(difference.answers)) > 1


def test_the_document_is_what_the_tool_writes():
    assert compatibility.DOCUMENT.read_text() == compatibility.text(), "run: python -m conformance.compatibility"
