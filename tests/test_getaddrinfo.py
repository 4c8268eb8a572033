"""loop.getaddrinfo: the same answers and the same errors as socket.getaddrinfo, literals without a thread."""

import inspect
import itertools
import logging
import socket

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from netpoll_loop import dns

# --- what people and programs pass ------------------------------------------------------------------------------------

octets = st.integers(0, 255)
ipv4 = st.builds("{}.{}.{}.{}".format, octets, octets, octets, octets)
groups = st.integers(0, 0xFFFF).map("{:x}".format) | st.integers(0, 0xFFFF).map("{:04X}".format)
ipv6_full = st.lists(groups, min_size=8, max_size=8).map(":".join)
ipv6_short = st.builds(
    lambda before, after: ":".join(before) + "::" + ":".join(after),
    st.lists(groups, max_size=4),
    st.lists(groups, max_size=3),
)
ipv6 = ipv6_full | ipv6_short | st.builds("{}{}".format, st.sampled_from(["::ffff:", "::", "64:ff9b::"]), ipv4)
scopes = st.sampled_from(["lo", "0", "1", "7", "99", "4294967296", "nonesuch", "", "1x", "lo%lo", " 1"])
scoped = st.builds("{}%{}".format, ipv6 | st.just("fe80::1") | st.just("ff02::1") | ipv4, scopes)
# What inet_aton(3) takes besides: fewer parts, octal, hexadecimal; and near misses of all kinds.
number = st.integers(0, 2**33).flatmap(lambda n: st.sampled_from([f"{n}", f"0{n:o}", f"0x{n:x}", f"0X{n:X}", f"00{n}"]))
aton = st.lists(number, min_size=1, max_size=5).map(".".join)
near = st.text(alphabet="0123456789abcdefxX.:% \t\n\x00-\u0661\uff11", max_size=20)
odd = st.sampled_from(
    ["127.1", "0x7f.1", "0177.0.0.1", "2130706433", "1.2.3.4 ", " 1.2.3.4", "1.2.3.4\n", "1.2.3.4.", "01.2.3.4"]
    + ["256.0.0.1", "1.2.3", "1..2", "::1\n", "[::1]", ":::", "1:2:3:4:5:6:7:8:9", "fe80::1%lo", "fe80::1%1", "::g"]
)
hosts = ipv4 | ipv6 | scoped | aton | near | odd
any_host = hosts | hosts.map(lambda text: text.encode("utf-8")) | st.none()

int_ports = st.integers(0, 65535) | st.sampled_from([-1, 65536, 70000, 2**31, 2**32, 2**63, 2**64, -(2**63), True])
text_ports = int_ports.map(str) | st.sampled_from(
    ["", "080", " 80", "+80", "80 ", "0x50", "http", "nonesuch", "\u0663", "8\x000"]
)
ports = int_ports | text_ports | text_ports.map(lambda text: text.encode("utf-8")) | st.none() | st.just(80.0)

families = st.sampled_from([0, socket.AF_INET, socket.AF_INET6, int(socket.AF_INET), socket.AF_UNIX, 99, -1, 2.0, True])
types = st.sampled_from(
    [0, socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW, socket.SOCK_SEQPACKET, int(socket.SOCK_STREAM), 6, 99]
    + [socket.SOCK_STREAM | socket.SOCK_NONBLOCK, 1.0, 2**40]
)
protos = st.sampled_from([0, socket.IPPROTO_TCP, socket.IPPROTO_UDP, socket.IPPROTO_SCTP, socket.IPPROTO_ICMP, 255, -1])
flag_names = [
    "AI_PASSIVE",
    "AI_CANONNAME",
    "AI_NUMERICHOST",
    "AI_NUMERICSERV",
    "AI_V4MAPPED",
    "AI_ALL",
    "AI_ADDRCONFIG",
]
flags = st.lists(st.sampled_from([getattr(socket, name) for name in flag_names]), max_size=3).map(
    lambda chosen: sum(set(chosen))
) | st.sampled_from([0x8000, -1, socket.AI_PASSIVE, 4.0])
usually_0 = st.just(0)


def with_types(answer):
    return [(*entry, *map(type, entry), *map(type, entry[4])) for entry in answer]


def said_by(error):
    return type(error), getattr(error, "errno", None), str(error)


def outcome(function, *args, **kwargs):
    """What a call gave: its result with all types, or everything that an exception says."""
    try:
        return with_types(function(*args, **kwargs))
    except Exception as error:
        return said_by(error)


calls = st.tuples(any_host, ports, usually_0 | families, types, usually_0 | protos, usually_0 | flags)

CALLS = [
    ("127.0.0.1", 80, 0, 0, 0, 0),
    ("fe80::1%lo", 80, 0, 1, 0, 0),
    ("fe80::1%nonesuch", 80, 0, 1, 0, 0),
    ("::ffff:1.2.3.4", 80, socket.AF_INET, 1, 0, 0),
    ("1.2.3.4", 80, socket.AF_INET6, 1, 0, socket.AI_V4MAPPED),
    ("1.2.3.4", 80, socket.AF_INET6, 1, 0, 0),
    ("127.1", 80, 0, 1, 0, socket.AI_CANONNAME),
    ("::1", 80, 0, socket.SOCK_DGRAM, 0, socket.AI_ADDRCONFIG),
    (None, 80, 0, 1, 0, 0),
    (None, 80, 0, 1, 0, socket.AI_PASSIVE),
    (None, None, 0, 1, 0, 0),
    ("", 80, 0, 1, 0, 0),
    ("127.0.0.1", "080", 0, 1, 0, 0),
    ("127.0.0.1", b"80", 0, 1, 0, 0),
    ("127.0.0.1", "http", 0, 1, 0, 0),
    ("127.0.0.1", "nonesuch", 0, 1, 0, 0),
    ("127.0.0.1", 70000, 0, 1, 0, 0),
    ("127.0.0.1", 2**64, 0, 1, 0, 0),
    ("127.0.0.1", 80, 2.0, 1, 0, 0),
    ("127.0.0.1", 80, 0, 1, socket.IPPROTO_UDP, 0),
    (bytearray(b"127.0.0.1"), 80, 0, 1, 0, 0),
]


def with_examples(test):
    for call in CALLS:
        test = example(call)(test)
    return test


# --- the answers ------------------------------------------------------------------------------------------------------


@pytest.mark.netpoll_only("resolve_literal is its own")
@with_examples
@settings(max_examples=2000, deadline=None)
@given(calls)
def test_a_literal_gets_the_answer_of_socket_getaddrinfo_or_is_left_to_it(call):
    if dns.resolve_literal(*call) is not None:
        assert outcome(dns.resolve_literal, *call) == outcome(socket.getaddrinfo, *call)


def test_the_loop_answers_and_fails_as_socket_getaddrinfo_does(loop, run):
    def ask(host, port, family, type, proto, flags):
        return run(loop.getaddrinfo(host, port, family=family, type=type, proto=proto, flags=flags))

    @with_examples
    @settings(max_examples=200, deadline=None, database=None)
    @given(calls)
    def check(call):
        if isinstance(call[5], int) and call[5] >= 0:
            # Else each near miss of a literal would be looked up in the network.
            call = (*call[:5], call[5] | int(socket.AI_NUMERICHOST))
        assert outcome(ask, *call) == outcome(socket.getaddrinfo, *call)

    check()


# Ways to ask, right ones and wrong ones; more than the loop keeps in mind.
WAYS = [
    *itertools.product(
        [0], [0, 1, socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW], [0], [0, 1, 4, 0x20, 0x400]
    ),
    *itertools.product(
        [0, socket.AF_INET, socket.AF_INET6],
        [0, socket.SOCK_STREAM, socket.SOCK_STREAM | socket.SOCK_NONBLOCK, True],
        [0, socket.IPPROTO_TCP, socket.IPPROTO_UDP],
        [socket.AI_PASSIVE, socket.AI_NUMERICHOST | socket.AI_NUMERICSERV, socket.AI_CANONNAME],
    ),
    (int(socket.AF_INET), 1, 6, 0),
    (socket.AF_UNIX, 1, 0, 0),
    (0, 1, 0, 2**31),
    (2.0, 1, 0, 0),
    (0, 1.0, 0, 0),
    (0, 1, 0, None),
]


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "255.255.255.255", "::1", "2001:DB8:0:0:0::7", "::ffff:192.0.2.1", "01.2.3.4"]
)
def test_it_makes_no_difference_whether_a_way_of_asking_is_new(loop, run, host):
    async def ask(port, family, type, proto, flags):
        try:
            return with_types(await loop.getaddrinfo(host, port, family=family, type=type, proto=proto, flags=flags))
        except Exception as error:
            return said_by(error)

    async def main():
        for way in WAYS:
            for port in (80, 0, 65535):
                assert await ask(port, *way) == outcome(socket.getaddrinfo, host, port, *way), (port, *way)

    run(main(), timeout=30)


@pytest.mark.parametrize("port", [-1, 65536, 2**31, 2**64, True, 80.0, "80", "http", None])
def test_no_other_port_is_taken_for_a_known_one(loop, run, port):
    for asked in (80, port):
        expected = outcome(socket.getaddrinfo, "127.0.0.1", asked, type=socket.SOCK_STREAM)
        assert outcome(lambda: run(loop.getaddrinfo("127.0.0.1", asked, type=socket.SOCK_STREAM))) == expected  # noqa: B023


class Text(str):
    pass


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1\0", "127.0.0.1\0x", "127.0.0.1%\0", "\u0661.2.3.4", "127.0.0.1 ", "\ud800", "::\uff11", Text("::1")],
)
def test_no_other_text_is_taken_for_a_literal(loop, run, host):
    def ask():
        return run(loop.getaddrinfo(host, 80, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST))

    run(loop.getaddrinfo("127.0.0.1", 80, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST))
    run(loop.getaddrinfo("::1", 80, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST))
    assert outcome(ask) == outcome(socket.getaddrinfo, host, 80, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)


@pytest.mark.parametrize("host", ["localhost", b"localhost"])
def test_a_name_gets_the_answer_of_socket_getaddrinfo(loop, run, host):
    expected = socket.getaddrinfo(host, "http", type=socket.SOCK_STREAM)
    assert run(loop.getaddrinfo(host, "http", type=socket.SOCK_STREAM)) == expected


def test_an_unknown_host_raises_gaierror(loop, run):
    with pytest.raises(socket.gaierror):
        run(loop.getaddrinfo("host.invalid", 80), timeout=30)


def test_answers_are_not_shared(loop, run):
    first = run(loop.getaddrinfo("127.0.0.1", 80, type=socket.SOCK_STREAM))
    first.clear()
    assert run(loop.getaddrinfo("127.0.0.1", 80, type=socket.SOCK_STREAM))


# --- the way to them --------------------------------------------------------------------------------------------------


@pytest.fixture
def executor_calls(loop, monkeypatch):
    """What was given to the loop's executor."""
    given_to = []
    run_in_executor = loop.run_in_executor

    def recording(executor, function, *args):
        given_to.append(args)
        return run_in_executor(executor, function, *args)

    monkeypatch.setattr(loop, "run_in_executor", recording)
    return given_to


@pytest.mark.netpoll_only("stock asyncio asks a thread")
@pytest.mark.parametrize(
    ("host", "port", "flags"),
    [
        ("127.0.0.1", 80, 0),
        ("127.0.0.1", "80", 0),
        ("127.0.0.1", None, 0),
        (b"127.0.0.1", b"80", 0),
        ("::1", 80, socket.AI_PASSIVE),
        ("fe80::1%lo", 80, 0),
        ("127.1", 80, socket.AI_CANONNAME),
        ("127.0.0.1", 80, socket.AI_ADDRCONFIG),
        (None, 80, socket.AI_PASSIVE),
    ],
)
def test_a_literal_needs_no_thread(loop, run, executor_calls, host, port, flags):
    assert run(loop.getaddrinfo(host, port, flags=flags)) == socket.getaddrinfo(host, port, flags=flags)
    assert executor_calls == []


@pytest.mark.parametrize(("host", "port"), [("localhost", 80), ("127.0.0.1", "http"), ("", 80), (None, "http")])
def test_a_name_or_a_service_never_blocks_the_loop(loop, run, executor_calls, host, port):
    outcome(lambda: run(loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)))
    assert len(executor_calls) == 1


def test_a_patched_socket_getaddrinfo_is_asked(loop, run, monkeypatch):
    answer = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", 1))]
    stock = run(loop.getaddrinfo("127.0.0.1", 80))
    with monkeypatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: answer)
        assert run(loop.getaddrinfo("127.0.0.1", 80)) == answer
    assert run(loop.getaddrinfo("127.0.0.1", 80)) == stock


@pytest.mark.parametrize("host", ["127.0.0.1", "0::1", "127.1", "fe80::1%lo"])
def test_an_audit_hook_sees_the_lookup_once(run_child, host):
    done = run_child(
        f"""
        import socket
        seen = []
        sys.addaudithook(
            lambda event, args: event == "socket.getaddrinfo" and seen.append([(type(arg), arg) for arg in args])
        )
        def since():
            found = seen[:]
            seen.clear()
            return found
        async def main():
            loop = asyncio.get_running_loop()
            for type in (1, socket.SOCK_DGRAM, True):
                socket.getaddrinfo({host!r}, 80, type=type)
                expected = since()
                for turn in range(3):
                    await loop.getaddrinfo({host!r}, 80, type=type)
                    found = since()
                    assert len(found) == 1 and found == expected, found
        run_main(main())
        """
    )
    assert done.stderr == ""


@pytest.mark.parametrize("error", ["RuntimeError", "OSError", "ValueError"])
def test_an_audit_hook_can_refuse_a_lookup(run_child, error):
    done = run_child(
        f"""
        refused = []
        def hook(event, args):
            if event == "socket.getaddrinfo" and refused:
                raise {error}("no lookups")
        sys.addaudithook(hook)
        async def main():
            loop = asyncio.get_running_loop()
            await loop.getaddrinfo("127.0.0.1", 80, type=1)
            refused.append(True)
            try:
                await loop.getaddrinfo("127.0.0.1", 80, type=1)
            except {error} as error:
                assert str(error) == "no lookups"
            else:
                raise AssertionError("it was looked up")
        run_main(main())
        """
    )
    assert done.stderr == ""


def test_in_debug_mode_literals_are_looked_up_in_a_thread_and_logged(loop, run, executor_calls, caplog):
    ask = {"family": socket.AF_INET, "type": socket.SOCK_STREAM}
    expected = run(loop.getaddrinfo("127.0.0.1", 80, **ask))
    executor_calls.clear()
    loop.set_debug(True)
    with caplog.at_level(logging.DEBUG, "asyncio"):
        assert run(loop.getaddrinfo("127.0.0.1", 80, **ask)) == expected
    assert len(executor_calls) == 1
    assert "Get address info 127.0.0.1:80" in caplog.text


def test_it_is_a_coroutine_function(loop):
    assert inspect.iscoroutinefunction(loop.getaddrinfo)


def test_nothing_is_looked_up_before_it_is_awaited(loop, run, monkeypatch):
    answer = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", 1))]
    run(loop.getaddrinfo("127.0.0.1", 80))
    coroutine = loop.getaddrinfo("127.0.0.1", 80)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: answer)
    assert run(coroutine) == answer


def test_a_subclass_can_resolve_names_its_own_way(loop_class, run):
    class Loop(loop_class):
        async def getaddrinfo(self, host, port, **options):
            return await super().getaddrinfo("192.0.2.7" if host == "own" else host, port, **options)

    own = Loop()
    try:
        expected = socket.getaddrinfo("192.0.2.7", 80, type=socket.SOCK_STREAM)
        for _ in range(2):
            assert run(own.getaddrinfo("own", 80, type=socket.SOCK_STREAM), on=own) == expected
    finally:
        own.run_until_complete(own.shutdown_default_executor())
        own.close()


def test_a_closed_loop_resolves_nothing(new_loop, run):
    closed = new_loop()
    closed.close()
    with pytest.raises(RuntimeError, match="Event loop is closed"):
        run(closed.getaddrinfo("127.0.0.1", 80))
