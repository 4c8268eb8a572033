"""loop.getaddrinfo: the same answers and the same errors as socket.getaddrinfo, literals without a thread."""

import asyncio
import socket
import sys
import threading

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
near = st.text(alphabet="0123456789abcdefxX.:% \t\n\x00-١１", max_size=20)
odd = st.sampled_from(
    ["127.1", "0x7f.1", "0177.0.0.1", "2130706433", "1.2.3.4 ", " 1.2.3.4", "1.2.3.4\n", "1.2.3.4.", "01.2.3.4"]
    + ["256.0.0.1", "1.2.3", "1..2", "::1\n", "[::1]", ":::", "1:2:3:4:5:6:7:8:9", "fe80::1%lo", "fe80::1%1", "::g"]
)
hosts = ipv4 | ipv6 | scoped | aton | near | odd
any_host = hosts | hosts.map(lambda text: text.encode("utf-8")) | st.none()

int_ports = st.integers(0, 65535) | st.sampled_from([-1, 65536, 70000, 2**31, 2**32, 2**63, 2**64, -(2**63), True])
text_ports = int_ports.map(str) | st.sampled_from(["", "080", " 80", "+80", "80 ", "0x50", "http", "nonesuch", "٣", "8\x000"])
ports = int_ports | text_ports | text_ports.map(lambda text: text.encode("utf-8")) | st.none() | st.just(80.0)

families = st.sampled_from([0, socket.AF_INET, socket.AF_INET6, int(socket.AF_INET), socket.AF_UNIX, 99, -1, 2.0, True])
types = st.sampled_from(
    [0, socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW, socket.SOCK_SEQPACKET, int(socket.SOCK_STREAM), 6, 99]
    + [socket.SOCK_STREAM | socket.SOCK_NONBLOCK, 1.0, 2**40]
)
protos = st.sampled_from([0, socket.IPPROTO_TCP, socket.IPPROTO_UDP, socket.IPPROTO_SCTP, socket.IPPROTO_ICMP, 255, -1])
flag_names = ["AI_PASSIVE", "AI_CANONNAME", "AI_NUMERICHOST", "AI_NUMERICSERV", "AI_V4MAPPED", "AI_ALL", "AI_ADDRCONFIG"]
flags = st.lists(st.sampled_from([getattr(socket, name) for name in flag_names]), max_size=3).map(
    lambda chosen: sum(set(chosen))
) | st.sampled_from([0x8000, -1, socket.AI_PASSIVE, 4.0])
usually_0 = st.just(0)


def outcome(function, *args, **kwargs):
    """What a call gave: its result with all types, or everything that an exception says."""
    try:
        return [(*entry, *map(type, entry), *map(type, entry[4])) for entry in function(*args, **kwargs)]
    except Exception as error:
        return type(error), getattr(error, "errno", None), str(error)


def names_no_host(host, flags):
    """Without this the reference itself would ask the network for every near miss."""
    return flags | socket.AI_NUMERICHOST if isinstance(flags, int) and 0 <= flags else flags


# --- the answers ------------------------------------------------------------------------------------------------------


@settings(max_examples=3000, deadline=None)
@given(any_host, ports, usually_0 | families, types, usually_0 | protos, usually_0 | flags)
@example("fe80::1%lo", 80, 0, 1, 0, 0)
@example("127.0.0.1", 80, 0, 0, 0, 0)
@example("::ffff:1.2.3.4", 80, socket.AF_INET, 1, 0, 0)
@example("1.2.3.4", 80, socket.AF_INET6, 1, 0, socket.AI_V4MAPPED)
@example("1.2.3.4", 80, socket.AF_INET6, 1, 0, 0)
@example("127.1", 80, 0, 1, 0, socket.AI_CANONNAME)
@example(None, 80, 0, 1, 0, socket.AI_PASSIVE)
@example(None, None, 0, 1, 0, 0)
@example("", 80, 0, 1, 0, 0)
@example("127.0.0.1", 80, 2.0, 1, 0, 0)
@example("127.0.0.1", "http", 0, 1, 0, 0)
def test_a_literal_gets_the_answer_of_socket_getaddrinfo_or_none(host, port, family, type, proto, flags):
    answer = outcome(dns.resolve_literal, host, port, family, type, proto, flags) if True else None
    if answer == (TypeError, None, "'NoneType' object is not iterable"):
        return  # it isn't certain, so a thread asks
    assert answer == outcome(socket.getaddrinfo, host, port, family, type, proto, flags)
