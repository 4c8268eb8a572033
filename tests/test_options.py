"""netpoller=: the same three choices wherever it is given; the argument wins over the environment."""

import asyncio

import pytest

import netpoll_loop
from netpoll_loop.options import ENVIRONMENT_VARIABLE, resolve_netpoller

MODES = ["auto", "dedicated", "inline"]
BAD = ["x", "", "AUTO", " auto", b"auto", 1, True, [], object]


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    monkeypatch.delenv(ENVIRONMENT_VARIABLE, raising=False)


def refusal(value, source="netpoller"):
    return f'{source} must be "auto", "dedicated" or "inline", not {value!r}'


def test_the_default_is_auto():
    assert resolve_netpoller() == resolve_netpoller(None) == "auto"


@pytest.mark.parametrize("choice", MODES)
def test_each_choice_may_come_by_argument_or_environment(choice, monkeypatch):
    assert resolve_netpoller(choice) == choice
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, choice)
    assert resolve_netpoller() == choice


@pytest.mark.parametrize("choice", MODES)
def test_the_argument_wins(choice, monkeypatch):
    for other in ("inline", "x"):
        monkeypatch.setenv(ENVIRONMENT_VARIABLE, other)
        assert resolve_netpoller(choice) == choice


def test_an_empty_variable_is_unset(monkeypatch):
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "")
    assert resolve_netpoller() == "auto"


@pytest.mark.parametrize("bad", BAD, ids=repr)
@pytest.mark.parametrize(
    "entry",
    [
        resolve_netpoller,
        netpoll_loop.Loop,
        netpoll_loop.new_event_loop,
        netpoll_loop.EventLoopPolicy,
        netpoll_loop.install,
    ],
    ids=lambda entry: entry.__name__,
)
def test_anything_else_is_refused_by_every_entry(entry, bad):
    with pytest.raises(ValueError) as caught:
        entry(netpoller=bad)
    assert str(caught.value) == refusal(bad)


def test_run_refuses_it_before_the_coroutine_starts():
    async def main():
        raise AssertionError

    coro = main()
    with pytest.raises(ValueError) as caught:
        netpoll_loop.run(coro, netpoller="x")
    assert str(caught.value) == refusal("x")
    coro.close()


def test_a_bad_variable_is_named(monkeypatch):
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "x")
    for entry in (resolve_netpoller, netpoll_loop.new_event_loop, netpoll_loop.EventLoopPolicy().new_event_loop):
        with pytest.raises(ValueError) as caught:
            entry()
        assert str(caught.value) == refusal("x", ENVIRONMENT_VARIABLE)


@pytest.mark.parametrize("choice", MODES)
def test_every_entry_makes_loops_of_the_choice(choice, monkeypatch):
    async def mode():
        return netpoll_loop.stats(asyncio.get_running_loop()).mode

    def mode_of(loop):
        try:
            return netpoll_loop.stats(loop).mode
        finally:
            loop.close()

    assert mode_of(netpoll_loop.Loop(netpoller=choice)) == choice
    assert mode_of(netpoll_loop.new_event_loop(choice)) == choice
    assert mode_of(netpoll_loop.EventLoopPolicy(choice).new_event_loop()) == choice
    assert netpoll_loop.run(mode(), netpoller=choice) == choice
    policy = netpoll_loop.EventLoopPolicy()
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, choice)
    assert mode_of(policy.new_event_loop()) == choice
    assert netpoll_loop.run(mode()) == choice


def test_a_refused_loop_leaves_nothing_behind(recwarn):
    for _ in range(3):
        with pytest.raises(ValueError):
            netpoll_loop.Loop(netpoller="x")
    assert not recwarn.list
