"""Bad input: what asyncio answers to a mistake, netpoll_loop answers too, in the same words.

Each case is one wrong call. It is made on a loop of stock asyncio and on the loop under test, in the same test, and
type, text and errno of what is raised must be equal. Object representations and descriptor numbers are left out.
"""

import asyncio
import inspect
import io
import os
import re
import signal
import socket
import ssl
import sys
import threading

import pytest

PY312 = sys.version_info >= (3, 12)

pytestmark = [
    # A wrong call often leaves an object of the standard library half made; those warnings are not the subject.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


def nothing(*args):
    pass


async def coroutine_function():
    pass


def plain(text):
    """The text without what differs from run to run: representations, descriptors, addresses in memory."""
    text = re.sub(r"<.*>", "<>", text, flags=re.DOTALL)
    text = re.sub(r"[Ff]ile descriptor \d+", "file descriptor N", text)
    text = re.sub(r"\('127.0.0.1', \d+\)", "(HOST, PORT)", text)
    return re.sub(r"0x[0-9a-f]+", "0x", text)


def described(exc):
    return type(exc), plain(str(exc)), getattr(exc, "errno", None)


class Surroundings:
    """What the calls may use: ports, paths, sockets."""

    def __init__(self, tmp_path, owned, free_port):
        self.owned = owned
        self.free_port = free_port()
        self.file = tmp_path / "file"
        self.file.write_bytes(b"content")
        self.folder = tmp_path
        self.missing = tmp_path / "missing" / "deeper"
        busy = owned(socket.socket())
        busy.bind(("127.0.0.1", 0))
        busy.listen(1)
        self.busy_port = busy.getsockname()[1]
        self.busy_path = tmp_path / "busy"
        unix = owned(socket.socket(socket.AF_UNIX))
        unix.bind(str(self.busy_path))
        unix.listen(1)
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self.server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)

    def stream(self):
        """A non-blocking, connected unix socket."""
        pair = socket.socketpair()
        for sock in pair:
            sock.setblocking(False)
            self.owned(sock)
        return pair[0]

    def socket(self, family=socket.AF_INET, kind=socket.SOCK_STREAM):
        sock = self.owned(socket.socket(family, kind))
        sock.setblocking(False)
        return sock

    def closed(self):
        sock = self.socket()
        sock.close()
        return sock

    def open(self, mode="rb"):
        return self.owned(open(self.file, mode))


@pytest.fixture
def env(tmp_path, owned, free_port):
    return Surroundings(tmp_path, owned, free_port)


@pytest.fixture
def compare(loop, stock_loop, run, env):
    """Makes the call on both loops; fails unless both answer the same."""

    def answer(case, loop):
        async def awaited(awaitable):
            return await awaitable

        try:
            result = case(loop, env)
            if inspect.isawaitable(result):
                result = run(awaited(result), on=loop)
        except Exception as exc:
            return described(exc)
        made = result[0] if isinstance(result, tuple) and result else result
        if hasattr(made, "close"):
            made.close()
            run(asyncio.sleep(0.001), on=loop)
        return "returned", type(result).__name__ if result is not None else None

    def compare(case):
        stock = answer(case, stock_loop)
        ours = answer(case, loop)
        assert ours == stock
        return stock

    return compare


def cases(**named):
    """Parametrizes `case` with the calls, named by their keyword."""
    return pytest.mark.parametrize("case", named.values(), ids=named.keys())


# --- scheduling -------------------------------------------------------------------------------------------------------


@cases(
    call_later_none=lambda loop, env: loop.call_later(None, nothing),
    call_later_text=lambda loop, env: loop.call_later("1", nothing),
    call_later_list=lambda loop, env: loop.call_later([], nothing),
    call_at_none=lambda loop, env: loop.call_at(None, nothing),
    run_until_complete_none=lambda loop, env: loop.run_until_complete(None),
    run_until_complete_int=lambda loop, env: loop.run_until_complete(5),
    run_until_complete_function=lambda loop, env: loop.run_until_complete(nothing),
    run_until_complete_coroutine_function=lambda loop, env: loop.run_until_complete(coroutine_function),
    run_until_complete_generator=lambda loop, env: loop.run_until_complete(i for i in range(3)),
    create_task_none=lambda loop, env: loop.create_task(None),
    create_task_function=lambda loop, env: loop.create_task(nothing),
    create_task_coroutine_function=lambda loop, env: loop.create_task(coroutine_function),
    create_task_future=lambda loop, env: loop.create_task(loop.create_future()),
    set_task_factory_int=lambda loop, env: loop.set_task_factory(5),
    set_exception_handler_int=lambda loop, env: loop.set_exception_handler(5),
    set_default_executor_none=lambda loop, env: loop.set_default_executor(None),
    set_default_executor_object=lambda loop, env: loop.set_default_executor(object()),
    run_in_executor_wrong_executor=lambda loop, env: loop.run_in_executor(5, nothing),
    call_exception_handler_none=lambda loop, env: loop.call_exception_handler({}),
)
def test_wrong_values_for_scheduling(compare, case):
    compare(case)


def test_a_future_of_another_loop_cannot_be_run(loop, stock_loop, new_loop):
    texts = []
    for each, other in ((loop, new_loop()), (stock_loop, loop)):
        with pytest.raises(ValueError) as caught:
            each.run_until_complete(other.create_future())
        texts.append(str(caught.value))
    assert texts[0] == texts[1]


#: Every method that can be called with too few or too many arguments, and how many it takes.
COUNTS = {
    "call_soon": (1, None),
    "call_soon_threadsafe": (1, None),
    "call_later": (2, None),
    "call_at": (2, None),
    "time": (0, 0),
    "create_future": (0, 0),
    "create_task": (1, 1),
    "set_task_factory": (1, 1),
    "get_task_factory": (0, 0),
    "run_forever": (0, 0),
    "run_until_complete": (1, 1),
    "stop": (0, 0),
    "close": (0, 0),
    "is_running": (0, 0),
    "is_closed": (0, 0),
    "get_debug": (0, 0),
    "set_debug": (1, 1),
    "set_exception_handler": (1, 1),
    "get_exception_handler": (0, 0),
    "default_exception_handler": (1, 1),
    "call_exception_handler": (1, 1),
    "set_default_executor": (1, 1),
    "run_in_executor": (2, None),
    "add_reader": (2, None),
    "add_writer": (2, None),
    "remove_reader": (1, 1),
    "remove_writer": (1, 1),
    "add_signal_handler": (2, None),
    "remove_signal_handler": (1, 1),
    "shutdown_asyncgens": (0, 0),
    "sock_recv": (2, 2),
    "sock_recv_into": (2, 2),
    "sock_recvfrom": (2, 2),
    "sock_recvfrom_into": (2, 3),
    "sock_sendall": (2, 2),
    "sock_sendto": (3, 3),
    "sock_connect": (2, 2),
    "sock_accept": (1, 1),
    "sock_sendfile": (2, 4),
    "create_connection": (1, 3),
    "create_server": (1, 3),
    "create_unix_connection": (1, 2),
    "create_unix_server": (1, 2),
    "create_datagram_endpoint": (1, 3),
    "connect_accepted_socket": (2, 2),
    "connect_read_pipe": (2, 2),
    "connect_write_pipe": (2, 2),
    "subprocess_exec": (2, None),
    "subprocess_shell": (2, 2),
    "getaddrinfo": (2, 2),
    "getnameinfo": (1, 2),
    "start_tls": (3, 3),
    "sendfile": (2, 4),
}


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("wrong", ["too few", "too many", "unknown keyword"])
def test_a_wrong_number_of_arguments_is_a_type_error_at_the_call(loop, stock_loop, name, wrong):
    """Of the type only: the interpreter's words for it name the class and differ for compiled functions."""
    least, most = COUNTS[name]
    args = [nothing] * least
    kwargs = {}
    if wrong == "too few":
        if not least:
            pytest.skip("takes none")
        args.pop()
    elif wrong == "too many":
        if most is None:
            pytest.skip("takes any number")
        args += [nothing] * (most - least + 1)
    else:
        kwargs["no_such_keyword"] = 1
    if wrong == "unknown keyword" and name.startswith("subprocess_"):
        pytest.skip("hands keywords on")
    for each in (stock_loop, loop):
        result = None
        try:
            with pytest.raises(TypeError):
                result = getattr(each, name)(*args, **kwargs)
                if asyncio.iscoroutine(result):
                    # What takes **kwargs finds the mistake when it runs.
                    result.send(None)
        finally:
            if asyncio.iscoroutine(result):
                result.close()


@pytest.mark.parametrize("name", sorted(COUNTS))
def test_the_parameters_have_asyncios_names(loop, name):
    """Programs pass them by keyword."""

    def names(function):
        return [
            (parameter.name, parameter.kind)
            for parameter in inspect.signature(function).parameters.values()
            if parameter.name != "self"
        ]

    stock = names(getattr(asyncio.SelectorEventLoop, name))
    # Those of other Pythons come behind asyncio's own (tests/test_parameters.py).
    ours = names(getattr(type(loop), name))[: len(stock)]
    variable = {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}
    assert [kind if kind in variable else (n, kind) for n, kind in ours] == [
        kind if kind in variable else (n, kind) for n, kind in stock
    ]


# --- closed, running, twice -------------------------------------------------------------------------------------------

WITH_A_LOOP = {
    "call_soon": lambda loop, env: loop.call_soon(nothing),
    "call_soon_threadsafe": lambda loop, env: loop.call_soon_threadsafe(nothing),
    "call_later": lambda loop, env: loop.call_later(1, nothing),
    "call_at": lambda loop, env: loop.call_at(1, nothing),
    "time": lambda loop, env: loop.time(),
    "create_future": lambda loop, env: loop.create_future(),
    "run_forever": lambda loop, env: loop.run_forever(),
    "run_until_complete": lambda loop, env: loop.run_until_complete(loop.create_future()),
    "stop": lambda loop, env: loop.stop(),
    "run_in_executor": lambda loop, env: loop.run_in_executor(None, nothing),
    "set_debug": lambda loop, env: loop.set_debug(True),
    "set_exception_handler": lambda loop, env: loop.set_exception_handler(None),
    "call_exception_handler": lambda loop, env: loop.call_exception_handler({"message": "m"}),
    "add_reader": lambda loop, env: loop.add_reader(env.stream(), nothing),
    "add_writer": lambda loop, env: loop.add_writer(env.stream(), nothing),
    "remove_reader": lambda loop, env: loop.remove_reader(env.stream()),
    "remove_writer": lambda loop, env: loop.remove_writer(env.stream()),
    "add_signal_handler": lambda loop, env: loop.add_signal_handler(signal.SIGUSR1, nothing),
    "remove_signal_handler": lambda loop, env: loop.remove_signal_handler(signal.SIGUSR1),
    "sock_recv": lambda loop, env: loop.sock_recv(env.stream(), 10),
    "sock_recv_into": lambda loop, env: loop.sock_recv_into(env.stream(), bytearray(5)),
    "sock_recvfrom": lambda loop, env: loop.sock_recvfrom(env.stream(), 10),
    "sock_accept": lambda loop, env: loop.sock_accept(env.socket()),
    "create_connection": lambda loop, env: loop.create_connection(asyncio.Protocol, "127.0.0.1", env.busy_port),
    "create_connection_sock": lambda loop, env: loop.create_connection(asyncio.Protocol, sock=env.stream()),
    "create_server": lambda loop, env: loop.create_server(asyncio.Protocol, "127.0.0.1", env.free_port),
    "create_unix_connection": lambda loop, env: loop.create_unix_connection(asyncio.Protocol, str(env.busy_path)),
    "create_unix_server": lambda loop, env: loop.create_unix_server(asyncio.Protocol, str(env.folder / "new")),
    "create_datagram_endpoint": lambda loop, env: loop.create_datagram_endpoint(
        asyncio.DatagramProtocol, local_addr=("127.0.0.1", 0)
    ),
    "connect_accepted_socket": lambda loop, env: loop.connect_accepted_socket(asyncio.Protocol, env.stream()),
    "connect_read_pipe": lambda loop, env: loop.connect_read_pipe(asyncio.Protocol, env.stream()),
    "connect_write_pipe": lambda loop, env: loop.connect_write_pipe(asyncio.Protocol, env.stream()),
    "getaddrinfo": lambda loop, env: loop.getaddrinfo("localhost", 80),
    "getnameinfo": lambda loop, env: loop.getnameinfo(("127.0.0.1", 80)),
    "shutdown_asyncgens": lambda loop, env: loop.shutdown_asyncgens(),
    "shutdown_default_executor": lambda loop, env: loop.shutdown_default_executor(),
}


@pytest.mark.allow_leaks("asyncio leaves a closed loop's server half made")
@pytest.mark.parametrize("name", WITH_A_LOOP)
def test_a_closed_loop_answers_each_method_as_asyncios_does(new_loop, env, name, request):
    if name == "create_server" and not PY312:
        pytest.skip("3.11's server stays half made on a closed loop")

    def answer(loop):
        loop.close()
        try:
            result = WITH_A_LOOP[name](loop, env)
            if asyncio.iscoroutine(result):
                try:
                    result.send(None)
                except StopIteration as stop:
                    return "returned", type(stop.value).__name__
                finally:
                    result.close()
                return "waits"
        except Exception as exc:
            return described(exc)
        return "returned"

    stock, ours = answer(asyncio.SelectorEventLoop()), answer(new_loop())
    if name.startswith("getaddrinfo") or "addr" in name:
        assert ours[0] == stock[0]
    else:
        assert ours == stock


@pytest.mark.parametrize("name", ["run_forever", "run_until_complete", "close"])
@pytest.mark.parametrize("thread", ["same", "other"])
def test_a_running_loop_is_not_run_or_closed(loop, stock_loop, name, thread):
    if (3, 13) <= sys.version_info < (3, 13, 3) and name == "run_forever":
        pytest.skip("https://github.com/python/cpython/issues/130145")

    def answer(loop):
        def call():
            future = loop.create_future()
            try:
                getattr(loop, name)(*((future,) if name == "run_until_complete" else ()))
            except Exception as exc:
                return described(exc)
            return "returned"

        async def main():
            return call() if thread == "same" else await asyncio.to_thread(call)

        return loop.run_until_complete(main())

    stock = answer(stock_loop)
    assert stock[0] is RuntimeError
    assert answer(loop) == stock
    assert not loop.is_closed()


# --- descriptors and sockets ------------------------------------------------------------------------------------------


@cases(
    add_reader_minus_one=lambda loop, env: loop.add_reader(-1, nothing),
    add_writer_minus_one=lambda loop, env: loop.add_writer(-1, nothing),
    remove_reader_minus_one=lambda loop, env: loop.remove_reader(-1),
    remove_writer_minus_one=lambda loop, env: loop.remove_writer(-1),
    add_reader_closed=lambda loop, env: loop.add_reader(env.closed(), nothing),
    add_writer_closed=lambda loop, env: loop.add_writer(env.closed(), nothing),
    add_reader_not_open=lambda loop, env: loop.add_reader(999_999, nothing),
    add_writer_not_open=lambda loop, env: loop.add_writer(999_999, nothing),
    remove_reader_not_open=lambda loop, env: loop.remove_reader(999_999),
    add_reader_regular_file=lambda loop, env: loop.add_reader(env.open(), nothing),
    add_writer_regular_file=lambda loop, env: loop.add_writer(env.open("ab"), nothing),
    add_reader_text=lambda loop, env: loop.add_reader("socket", nothing),
    add_reader_none=lambda loop, env: loop.add_reader(None, nothing),
    add_reader_float=lambda loop, env: loop.add_reader(1.0, nothing),
    sock_recv_closed=lambda loop, env: loop.sock_recv(env.closed(), 5),
    sock_recv_not_connected=lambda loop, env: loop.sock_recv(env.socket(), 5),
    sock_sendall_closed=lambda loop, env: loop.sock_sendall(env.closed(), b"x"),
    sock_sendall_not_connected=lambda loop, env: loop.sock_sendall(env.socket(), b"x"),
    sock_sendall_text=lambda loop, env: loop.sock_sendall(env.stream(), "text"),
    sock_accept_not_listening=lambda loop, env: loop.sock_accept(env.socket()),
    sock_accept_closed=lambda loop, env: loop.sock_accept(env.closed()),
    sock_connect_refused=lambda loop, env: loop.sock_connect(env.socket(), ("127.0.0.1", env.free_port)),
    sock_connect_unknown=lambda loop, env: loop.sock_connect(env.socket(), ("no.such.host.invalid", 80)),
    sock_connect_missing_path=lambda loop, env: loop.sock_connect(env.socket(socket.AF_UNIX), str(env.missing)),
    sock_connect_file=lambda loop, env: loop.sock_connect(env.socket(socket.AF_UNIX), str(env.file)),
    sock_sendto_text=lambda loop, env: loop.sock_sendto(env.socket(kind=socket.SOCK_DGRAM), "text", ("127.0.0.1", 9)),
    sock_sendto_unresolved=lambda loop, env: loop.sock_sendto(env.socket(kind=socket.SOCK_DGRAM), b"x", ("", -1)),
    sock_sendfile_text_file=lambda loop, env: loop.sock_sendfile(env.stream(), env.open("r")),
    sock_sendfile_count_zero=lambda loop, env: loop.sock_sendfile(env.stream(), env.open(), 0, 0),
    sock_sendfile_count_text=lambda loop, env: loop.sock_sendfile(env.stream(), env.open(), 0, "5"),
    sock_sendfile_offset_negative=lambda loop, env: loop.sock_sendfile(env.stream(), env.open(), -1),
    sock_sendfile_offset_text=lambda loop, env: loop.sock_sendfile(env.stream(), env.open(), "0"),
    sock_sendfile_datagram=lambda loop, env: loop.sock_sendfile(env.socket(kind=socket.SOCK_DGRAM), env.open()),
)
def test_wrong_descriptors_and_sockets(compare, case):
    compare(case)


# --- connections ------------------------------------------------------------------------------------------------------


@cases(
    nothing_given=lambda loop, env: loop.create_connection(asyncio.Protocol),
    host_and_sock=lambda loop, env: loop.create_connection(asyncio.Protocol, "127.0.0.1", 80, sock=env.stream()),
    no_socket=lambda loop, env: loop.create_connection(asyncio.Protocol, sock=5),
    closed_socket=lambda loop, env: loop.create_connection(asyncio.Protocol, sock=env.closed()),
    datagram_socket=lambda loop, env: loop.create_connection(asyncio.Protocol, sock=env.socket(kind=socket.SOCK_DGRAM)),
    factory_not_callable=lambda loop, env: loop.create_connection(5, sock=env.stream()),
    factory_wants_arguments=lambda loop, env: loop.create_connection(lambda x: None, sock=env.stream()),
    refused=lambda loop, env: loop.create_connection(asyncio.Protocol, "127.0.0.1", env.free_port),
    unknown_host=lambda loop, env: loop.create_connection(asyncio.Protocol, "no.such.host.invalid", 80),
    unknown_service=lambda loop, env: loop.create_connection(asyncio.Protocol, "127.0.0.1", "no-such-service"),
    port_too_large=lambda loop, env: loop.create_connection(asyncio.Protocol, "127.0.0.1", 99999),
    port_negative=lambda loop, env: loop.create_connection(asyncio.Protocol, "127.0.0.1", -1),
    port_of_wrong_type=lambda loop, env: loop.create_connection(asyncio.Protocol, "127.0.0.1", 1.5),
    host_of_wrong_type=lambda loop, env: loop.create_connection(asyncio.Protocol, 5, 80),
    host_with_zero_byte=lambda loop, env: loop.create_connection(asyncio.Protocol, "127.0.0.1\0", 80),
    host_not_ascii=lambda loop, env: loop.create_connection(asyncio.Protocol, "\udcff", 80),
    host_too_long=lambda loop, env: loop.create_connection(asyncio.Protocol, "x" * 70 + ".invalid", 80),
    family_does_not_fit=lambda loop, env: loop.create_connection(asyncio.Protocol, "::1", 80, family=socket.AF_INET),
    local_addr_does_not_fit=lambda loop, env: loop.create_connection(
        asyncio.Protocol, "127.0.0.1", env.busy_port, local_addr=("127.0.0.1", env.busy_port)
    ),
    local_addr_of_wrong_type=lambda loop, env: loop.create_connection(
        asyncio.Protocol, "127.0.0.1", env.busy_port, local_addr=5
    ),
    local_host_unknown=lambda loop, env: loop.create_connection(
        asyncio.Protocol, "127.0.0.1", env.busy_port, local_addr=("no.such.host.invalid", 0)
    ),
    server_hostname_without_ssl=lambda loop, env: loop.create_connection(
        asyncio.Protocol, "127.0.0.1", 80, server_hostname="x"
    ),
    ssl_without_hostname=lambda loop, env: loop.create_connection(asyncio.Protocol, sock=env.stream(), ssl=True),
    ssl_of_wrong_type=lambda loop, env: loop.create_connection(
        asyncio.Protocol, sock=env.stream(), ssl=5, server_hostname="x"
    ),
    handshake_timeout_without_ssl=lambda loop, env: loop.create_connection(
        asyncio.Protocol, "127.0.0.1", 80, ssl_handshake_timeout=1
    ),
    shutdown_timeout_without_ssl=lambda loop, env: loop.create_connection(
        asyncio.Protocol, "127.0.0.1", 80, ssl_shutdown_timeout=1
    ),
    handshake_timeout_negative=lambda loop, env: loop.create_connection(
        asyncio.Protocol, sock=env.stream(), ssl=env.context, server_hostname="x", ssl_handshake_timeout=-1
    ),
    unix_nothing_given=lambda loop, env: loop.create_unix_connection(asyncio.Protocol),
    unix_path_and_sock=lambda loop, env: loop.create_unix_connection(asyncio.Protocol, "x", sock=env.stream()),
    unix_tcp_socket=lambda loop, env: loop.create_unix_connection(asyncio.Protocol, sock=env.socket()),
    unix_missing=lambda loop, env: loop.create_unix_connection(asyncio.Protocol, str(env.missing)),
    unix_file=lambda loop, env: loop.create_unix_connection(asyncio.Protocol, str(env.file)),
    unix_folder=lambda loop, env: loop.create_unix_connection(asyncio.Protocol, str(env.folder)),
    unix_path_too_long=lambda loop, env: loop.create_unix_connection(asyncio.Protocol, "/tmp/" + "x" * 200),
    unix_path_of_wrong_type=lambda loop, env: loop.create_unix_connection(asyncio.Protocol, 5),
    unix_path_with_zero_byte=lambda loop, env: loop.create_unix_connection(asyncio.Protocol, "/tmp/a\0b"),
    unix_server_hostname_without_ssl=lambda loop, env: loop.create_unix_connection(
        asyncio.Protocol, str(env.busy_path), server_hostname="x"
    ),
    unix_ssl_without_hostname=lambda loop, env: loop.create_unix_connection(
        asyncio.Protocol, str(env.busy_path), ssl=True
    ),
    accepted_datagram=lambda loop, env: loop.connect_accepted_socket(
        asyncio.Protocol, env.socket(kind=socket.SOCK_DGRAM)
    ),
    accepted_no_socket=lambda loop, env: loop.connect_accepted_socket(asyncio.Protocol, None),
    accepted_ssl_of_wrong_type=lambda loop, env: loop.connect_accepted_socket(asyncio.Protocol, env.stream(), ssl=5),
    accepted_timeout_without_ssl=lambda loop, env: loop.connect_accepted_socket(
        asyncio.Protocol, env.stream(), ssl_handshake_timeout=1
    ),
)
def test_wrong_connections(compare, case):
    compare(case)


# --- servers ----------------------------------------------------------------------------------------------------------


@cases(
    nothing_given=lambda loop, env: loop.create_server(asyncio.Protocol),
    host_and_sock=lambda loop, env: loop.create_server(asyncio.Protocol, "127.0.0.1", 0, sock=env.socket()),
    port_in_use=lambda loop, env: loop.create_server(asyncio.Protocol, "127.0.0.1", env.busy_port),
    not_our_address=lambda loop, env: loop.create_server(asyncio.Protocol, "203.0.113.1", 0),
    unknown_host=lambda loop, env: loop.create_server(asyncio.Protocol, "no.such.host.invalid", 0),
    one_of_the_hosts_unknown=lambda loop, env: loop.create_server(
        asyncio.Protocol, ["127.0.0.1", "no.such.host.invalid"], env.free_port
    ),
    port_too_large=lambda loop, env: loop.create_server(asyncio.Protocol, "127.0.0.1", 99999),
    port_negative=lambda loop, env: loop.create_server(asyncio.Protocol, "127.0.0.1", -5),
    port_of_wrong_type=lambda loop, env: loop.create_server(asyncio.Protocol, "127.0.0.1", []),
    host_of_wrong_type=lambda loop, env: loop.create_server(asyncio.Protocol, 5, 0),
    no_socket=lambda loop, env: loop.create_server(asyncio.Protocol, sock=5),
    closed_socket=lambda loop, env: loop.create_server(asyncio.Protocol, sock=env.closed()),
    datagram_socket=lambda loop, env: loop.create_server(asyncio.Protocol, sock=env.socket(kind=socket.SOCK_DGRAM)),
    connected_socket=lambda loop, env: loop.create_server(asyncio.Protocol, sock=env.stream()),
    ssl_is_bool=lambda loop, env: loop.create_server(asyncio.Protocol, "127.0.0.1", 0, ssl=True),
    ssl_of_wrong_type=lambda loop, env: loop.create_server(asyncio.Protocol, "127.0.0.1", 0, ssl=5),
    handshake_timeout_without_ssl=lambda loop, env: loop.create_server(
        asyncio.Protocol, "127.0.0.1", 0, ssl_handshake_timeout=1
    ),
    shutdown_timeout_without_ssl=lambda loop, env: loop.create_server(
        asyncio.Protocol, "127.0.0.1", 0, ssl_shutdown_timeout=1
    ),
    backlog_of_wrong_type=lambda loop, env: loop.create_server(asyncio.Protocol, "127.0.0.1", 0, backlog="5"),
    unix_nothing_given=lambda loop, env: loop.create_unix_server(asyncio.Protocol),
    unix_path_and_sock=lambda loop, env: loop.create_unix_server(asyncio.Protocol, "x", sock=env.stream()),
    unix_tcp_socket=lambda loop, env: loop.create_unix_server(asyncio.Protocol, sock=env.socket()),
    unix_file_in_the_way=lambda loop, env: loop.create_unix_server(asyncio.Protocol, str(env.file)),
    unix_folder_in_the_way=lambda loop, env: loop.create_unix_server(asyncio.Protocol, str(env.folder)),
    unix_folder_missing=lambda loop, env: loop.create_unix_server(asyncio.Protocol, str(env.missing)),
    unix_path_too_long=lambda loop, env: loop.create_unix_server(asyncio.Protocol, "/tmp/" + "x" * 200),
    unix_path_of_wrong_type=lambda loop, env: loop.create_unix_server(asyncio.Protocol, 5),
    unix_ssl_is_bool=lambda loop, env: loop.create_unix_server(asyncio.Protocol, str(env.folder / "n"), ssl=True),
    unix_handshake_timeout_without_ssl=lambda loop, env: loop.create_unix_server(
        asyncio.Protocol, str(env.folder / "n"), ssl_handshake_timeout=1
    ),
    unix_datagram_socket=lambda loop, env: loop.create_unix_server(
        asyncio.Protocol, sock=env.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    ),
)
def test_wrong_servers(compare, case):
    compare(case)


def test_serving_twice_and_serving_a_closed_server(run, loop, stock_loop):
    async def answers(loop):
        server = await loop.create_server(asyncio.Protocol, "127.0.0.1", 0)
        got = []
        serving = asyncio.ensure_future(server.serve_forever())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        for call in (server.serve_forever, server.start_serving):
            try:
                got.append(type(await call()))
            except Exception as exc:
                got.append(described(exc))
        serving.cancel()
        await asyncio.wait([serving])
        server.close()
        for call in (server.serve_forever, server.start_serving):
            try:
                got.append(type(await call()))
            except Exception as exc:
                got.append(described(exc))
        return got

    assert run(answers(loop)) == run(answers(stock_loop), on=stock_loop)


# --- transports -------------------------------------------------------------------------------------------------------


def with_transport(use, protocol=asyncio.Protocol, peer_data=b""):
    """A case: `use(transport)` on a fresh stream transport."""

    async def main(loop, env):
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        env.owned(theirs)
        transport, _ = await loop.create_connection(protocol, sock=env.owned(ours))
        try:
            result = use(transport)
            if inspect.isawaitable(result):
                result = await result
            return result
        finally:
            transport.abort()
            await asyncio.sleep(0.001)

    return lambda loop, env: main(loop, env)


def closed(then):
    def use(transport):
        transport.close()
        return then(transport)

    return use


def aborted(then):
    async def use(transport):
        transport.abort()
        await asyncio.sleep(0.001)
        return then(transport)

    return use


def after_eof(then):
    def use(transport):
        transport.write_eof()
        return then(transport)

    return use


@cases(
    write_text=with_transport(lambda t: t.write("text")),
    write_none=with_transport(lambda t: t.write(None)),
    write_int=with_transport(lambda t: t.write(5)),
    write_list=with_transport(lambda t: t.write([1, 2])),
    write_object=with_transport(lambda t: t.write(object())),
    write_empty_text=with_transport(lambda t: t.write("")),
    write_text_after_eof=with_transport(after_eof(lambda t: t.write("text"))),
    write_after_eof=with_transport(after_eof(lambda t: t.write(b"x"))),
    write_nothing_after_eof=with_transport(after_eof(lambda t: t.write(b""))),
    eof_twice=with_transport(after_eof(lambda t: t.write_eof())),
    write_after_close=with_transport(closed(lambda t: t.write(b"x"))),
    write_text_after_close=with_transport(closed(lambda t: t.write("x"))),
    write_after_abort=with_transport(aborted(lambda t: t.write(b"x"))),
    eof_after_close=with_transport(closed(lambda t: t.write_eof())),
    eof_after_abort=with_transport(aborted(lambda t: t.write_eof())),
    close_twice=with_transport(closed(lambda t: t.close())),
    abort_after_close=with_transport(closed(lambda t: t.abort())),
    pause_after_close=with_transport(closed(lambda t: t.pause_reading())),
    resume_after_close=with_transport(closed(lambda t: t.resume_reading())),
    resume_after_abort=with_transport(aborted(lambda t: t.resume_reading())),
    resume_without_pause=with_transport(lambda t: t.resume_reading()),
    pause_twice=with_transport(lambda t: (t.pause_reading(), t.pause_reading())),
    limits_negative_high=with_transport(lambda t: t.set_write_buffer_limits(high=-1)),
    limits_negative_low=with_transport(lambda t: t.set_write_buffer_limits(low=-1)),
    limits_low_above_high=with_transport(lambda t: t.set_write_buffer_limits(high=1, low=2)),
    limits_text=with_transport(lambda t: t.set_write_buffer_limits(high="5")),
    limits_only_low=with_transport(lambda t: t.set_write_buffer_limits(low=5)),
    limits_zero=with_transport(lambda t: t.set_write_buffer_limits(high=0)),
    extra_info_unknown=with_transport(lambda t: t.get_extra_info("no such thing")),
    extra_info_unhashable=with_transport(lambda t: t.get_extra_info([])),
    protocol_of_wrong_type=with_transport(lambda t: t.set_protocol(None)),
)
def test_wrong_use_of_a_transport(compare, case):
    compare(case)


@cases(
    int=with_transport(lambda t: t.writelines(5)),
    text=with_transport(lambda t: t.writelines(["a", "b"])),
    ints=with_transport(lambda t: t.writelines([1, 2])),
    none=with_transport(lambda t: t.writelines(None)),
    after_eof=with_transport(after_eof(lambda t: t.writelines([b"x"]))),
)
@pytest.mark.skipif(not PY312, reason="asyncio's words for it are new in Python 3.12")
def test_wrong_writelines(compare, case):
    compare(case)


@pytest.mark.parametrize("wrong", [5, ["text"], [1, 2]], ids=repr)
def test_writelines_of_what_is_no_list_of_bytes_is_a_type_error(compare, wrong):
    def use(transport):
        with pytest.raises(TypeError):
            transport.writelines(wrong)

    compare(with_transport(use))


@pytest.mark.parametrize("name", ["write", "writelines", "set_protocol", "get_extra_info"])
def test_a_transport_method_without_its_argument_is_a_type_error(compare, name):
    def use(transport):
        with pytest.raises(TypeError):
            getattr(transport, name)()

    compare(with_transport(use))


@cases(
    no_transport=lambda loop, env: loop.start_tls(None, asyncio.Protocol(), env.context),
    no_context=with_transport(lambda t: _tls(t, None)),
    bool_context=with_transport(lambda t: _tls(t, True)),
    timeout_negative=with_transport(
        lambda t: _tls(t, ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), server_hostname="x", ssl_handshake_timeout=-1)
    ),
    sendfile_text_file=with_transport(lambda t: asyncio.get_running_loop().sendfile(t, io.StringIO("x"))),
    sendfile_closing=with_transport(closed(lambda t: asyncio.get_running_loop().sendfile(t, io.BytesIO(b"x")))),
    sendfile_negative_offset=with_transport(
        lambda t: asyncio.get_running_loop().sendfile(t, io.BytesIO(b"x"), offset=-1)
    ),
    sendfile_zero_count=with_transport(lambda t: asyncio.get_running_loop().sendfile(t, io.BytesIO(b"x"), 0, 0)),
    sendfile_no_transport=lambda loop, env: loop.sendfile(None, env.open()),
    sendfile_no_file=with_transport(lambda t: asyncio.get_running_loop().sendfile(t, None)),
)
def test_wrong_tls_and_sendfile(compare, case):
    compare(case)


def _tls(transport, context, **kwargs):
    return asyncio.get_running_loop().start_tls(transport, transport.get_protocol(), context, **kwargs)


class Buffered(asyncio.BufferedProtocol):
    """`get_buffer` answers `buffer` or raises it; with one of 5 bytes `buffer_updated` raises."""

    def __init__(self, buffer, done):
        self.buffer, self.done = buffer, done

    def get_buffer(self, sizehint):
        if isinstance(self.buffer, BaseException):
            raise self.buffer
        return self.buffer

    def buffer_updated(self, nbytes):
        if len(self.buffer) == 5:
            raise ZeroDivisionError("updated")

    def connection_lost(self, exc):
        self.done.done() or self.done.set_result(exc)


@pytest.mark.parametrize(
    "buffer",
    [b"", bytearray(), b"read-only", "text", None, 5, ZeroDivisionError("mine"), bytearray(b"12345")],
    ids=repr,
)
def test_a_buffered_protocol_with_a_wrong_buffer_loses_its_connection_as_in_asyncio(run, loop, stock_loop, buffer):
    async def answer(loop):
        reported = []
        loop.set_exception_handler(lambda loop, context: reported.append(context["message"]))
        ours, theirs = socket.socketpair()
        with theirs:
            done = loop.create_future()
            await loop.create_connection(lambda: Buffered(buffer, done), sock=ours)
            theirs.send(b"data")
            exc = await done
        return described(exc), reported

    assert run(answer(loop)) == run(answer(stock_loop), on=stock_loop)


@pytest.mark.parametrize("method", ["connection_made", "data_received", "eof_received", "connection_lost"])
def test_a_protocol_that_raises_is_reported_as_in_asyncio(run, loop, stock_loop, method):
    async def answer(loop):
        reported = []
        loop.set_exception_handler(
            # "Exception in callback NameOfTheTransport._call_connection_lost(...)": not the transport's class.
            lambda loop, context: reported.append(
                (
                    re.sub(r"callback \w+\.(\w+)\(.*", r"callback \1", plain(context["message"])),
                    type(context["exception"]),
                )
            )
        )
        lost = loop.create_future()

        class Raising(asyncio.Protocol):
            def connection_lost(self, exc):
                lost.done() or lost.set_result(type(exc))

        def fail(self, *args):
            if method == "connection_lost":
                lost.set_result(None)
            raise ZeroDivisionError(method)

        setattr(Raising, method, fail)
        ours, theirs = socket.socketpair()
        with theirs:
            transport, _ = await loop.create_connection(Raising, sock=ours)
            theirs.send(b"data")
            await asyncio.sleep(0.01)
            theirs.shutdown(socket.SHUT_WR)
            how = await lost
            await asyncio.sleep(0.01)
            return how, reported, transport.is_closing()

    assert run(answer(loop)) == run(answer(stock_loop), on=stock_loop)


# --- datagrams --------------------------------------------------------------------------------------------------------


def with_datagram(use, connected=False):
    async def main(loop, env):
        receiver = env.socket(kind=socket.SOCK_DGRAM)
        receiver.bind(("127.0.0.1", 0))
        remote = {"remote_addr": receiver.getsockname()} if connected else {"local_addr": ("127.0.0.1", 0)}
        transport, _ = await loop.create_datagram_endpoint(asyncio.DatagramProtocol, **remote)
        try:
            return use(transport)
        finally:
            transport.abort()
            await asyncio.sleep(0.001)

    return lambda loop, env: main(loop, env)


@cases(
    send_text=with_datagram(lambda t: t.sendto("text", ("127.0.0.1", 9))),
    send_none=with_datagram(lambda t: t.sendto(None, ("127.0.0.1", 9))),
    send_int=with_datagram(lambda t: t.sendto(5, ("127.0.0.1", 9))),
    send_elsewhere_when_connected=with_datagram(lambda t: t.sendto(b"x", ("127.0.0.1", 9)), connected=True),
    send_after_close=with_datagram(lambda t: (t.close(), t.sendto(b"x", ("127.0.0.1", 9)))),
    limits_negative=with_datagram(lambda t: t.set_write_buffer_limits(high=-1)),
    nothing_given=lambda loop, env: loop.create_datagram_endpoint(asyncio.DatagramProtocol),
    stream_socket=lambda loop, env: loop.create_datagram_endpoint(asyncio.DatagramProtocol, sock=env.stream()),
    no_socket=lambda loop, env: loop.create_datagram_endpoint(asyncio.DatagramProtocol, sock=5),
    sock_and_address=lambda loop, env: loop.create_datagram_endpoint(
        asyncio.DatagramProtocol, local_addr=("127.0.0.1", 0), sock=env.socket(kind=socket.SOCK_DGRAM)
    ),
    address_no_pair=lambda loop, env: loop.create_datagram_endpoint(
        asyncio.DatagramProtocol, local_addr=("127.0.0.1",)
    ),
    address_text=lambda loop, env: loop.create_datagram_endpoint(asyncio.DatagramProtocol, local_addr="127.0.0.1"),
    not_our_address=lambda loop, env: loop.create_datagram_endpoint(
        asyncio.DatagramProtocol, local_addr=("203.0.113.1", 0)
    ),
    families_differ=lambda loop, env: loop.create_datagram_endpoint(
        asyncio.DatagramProtocol, local_addr=("127.0.0.1", 0), remote_addr=("::1", 9)
    ),
    unknown_host=lambda loop, env: loop.create_datagram_endpoint(
        asyncio.DatagramProtocol, remote_addr=("no.such.host.invalid", 9)
    ),
    unix_without_path=lambda loop, env: loop.create_datagram_endpoint(
        asyncio.DatagramProtocol, family=socket.AF_UNIX, local_addr=5
    ),
    unknown_family=lambda loop, env: loop.create_datagram_endpoint(
        asyncio.DatagramProtocol, family=9999, local_addr=("127.0.0.1", 0)
    ),
)
def test_wrong_datagrams(compare, case):
    compare(case)


# --- names, pipes, subprocesses, signals ------------------------------------------------------------------------------


@cases(
    unknown=lambda loop, env: loop.getaddrinfo("no.such.host.invalid", 80),
    unknown_service=lambda loop, env: loop.getaddrinfo("127.0.0.1", "no-such-service"),
    both_none=lambda loop, env: loop.getaddrinfo(None, None),
    wrong_host=lambda loop, env: loop.getaddrinfo(5, 80),
    wrong_port=lambda loop, env: loop.getaddrinfo("127.0.0.1", 1.5),
    wrong_family=lambda loop, env: loop.getaddrinfo("127.0.0.1", 80, family=999),
    text_family=lambda loop, env: loop.getaddrinfo("127.0.0.1", 80, family="inet"),
    wrong_kind=lambda loop, env: loop.getaddrinfo("127.0.0.1", 80, type=999),
    not_of_that_family=lambda loop, env: loop.getaddrinfo("127.0.0.1", 80, family=socket.AF_INET6),
    not_numeric=lambda loop, env: loop.getaddrinfo("localhost", 80, flags=socket.AI_NUMERICHOST),
    nameinfo_text=lambda loop, env: loop.getnameinfo("127.0.0.1"),
    nameinfo_name=lambda loop, env: loop.getnameinfo(("localhost.invalid", 80)),
    nameinfo_short=lambda loop, env: loop.getnameinfo(("127.0.0.1",)),
    nameinfo_port=lambda loop, env: loop.getnameinfo(("127.0.0.1", "x")),
)
def test_wrong_names(compare, case):
    compare(case)


@cases(
    read_regular_file=lambda loop, env: loop.connect_read_pipe(asyncio.Protocol, env.open()),
    write_regular_file=lambda loop, env: loop.connect_write_pipe(asyncio.BaseProtocol, env.open("ab")),
    read_none=lambda loop, env: loop.connect_read_pipe(asyncio.Protocol, None),
    write_none=lambda loop, env: loop.connect_write_pipe(asyncio.BaseProtocol, None),
    read_number=lambda loop, env: loop.connect_read_pipe(asyncio.Protocol, 999_999),
    read_closed=lambda loop, env: loop.connect_read_pipe(asyncio.Protocol, env.closed()),
    write_closed=lambda loop, env: loop.connect_write_pipe(asyncio.BaseProtocol, env.closed()),
    exec_not_found=lambda loop, env: loop.subprocess_exec(asyncio.SubprocessProtocol, str(env.missing)),
    exec_not_executable=lambda loop, env: loop.subprocess_exec(asyncio.SubprocessProtocol, str(env.file)),
    exec_folder=lambda loop, env: loop.subprocess_exec(asyncio.SubprocessProtocol, str(env.folder)),
    exec_number=lambda loop, env: loop.subprocess_exec(asyncio.SubprocessProtocol, 5),
    exec_number_argument=lambda loop, env: loop.subprocess_exec(asyncio.SubprocessProtocol, "/bin/echo", 5),
    exec_text_mode=lambda loop, env: loop.subprocess_exec(
        asyncio.SubprocessProtocol, "/bin/true", universal_newlines=True
    ),
    exec_shell=lambda loop, env: loop.subprocess_exec(asyncio.SubprocessProtocol, "/bin/true", shell=True),
    exec_bufsize=lambda loop, env: loop.subprocess_exec(asyncio.SubprocessProtocol, "/bin/true", bufsize=1),
    exec_encoding=lambda loop, env: loop.subprocess_exec(asyncio.SubprocessProtocol, "/bin/true", encoding="utf8"),
    exec_errors=lambda loop, env: loop.subprocess_exec(asyncio.SubprocessProtocol, "/bin/true", errors="strict"),
    exec_text=lambda loop, env: loop.subprocess_exec(asyncio.SubprocessProtocol, "/bin/true", text=True),
    exec_missing_folder=lambda loop, env: loop.subprocess_exec(
        asyncio.SubprocessProtocol, "/bin/true", cwd=str(env.missing)
    ),
    shell_list=lambda loop, env: loop.subprocess_shell(asyncio.SubprocessProtocol, ["true"]),
    shell_without_shell=lambda loop, env: loop.subprocess_shell(asyncio.SubprocessProtocol, "true", shell=False),
    shell_text_mode=lambda loop, env: loop.subprocess_shell(
        asyncio.SubprocessProtocol, "true", universal_newlines=True
    ),
    shell_bufsize=lambda loop, env: loop.subprocess_shell(asyncio.SubprocessProtocol, "true", bufsize=5),
)
def test_wrong_pipes_and_subprocesses(compare, case):
    compare(case)


@cases(
    text=lambda loop, env: loop.add_signal_handler("SIGUSR1", nothing),
    none=lambda loop, env: loop.add_signal_handler(None, nothing),
    float=lambda loop, env: loop.add_signal_handler(10.0, nothing),
    zero=lambda loop, env: loop.add_signal_handler(0, nothing),
    negative=lambda loop, env: loop.add_signal_handler(-1, nothing),
    too_large=lambda loop, env: loop.add_signal_handler(1000, nothing),
    kill=lambda loop, env: loop.add_signal_handler(signal.SIGKILL, nothing),
    stop=lambda loop, env: loop.add_signal_handler(signal.SIGSTOP, nothing),
    coroutine_function=lambda loop, env: loop.add_signal_handler(signal.SIGUSR1, coroutine_function),
    remove_text=lambda loop, env: loop.remove_signal_handler("SIGUSR1"),
    remove_zero=lambda loop, env: loop.remove_signal_handler(0),
    remove_never_added=lambda loop, env: loop.remove_signal_handler(signal.SIGUSR1),
)
def test_wrong_signals(compare, case):
    try:
        compare(case)
    finally:
        signal.set_wakeup_fd(-1)


def test_a_signal_handler_from_another_thread_is_refused(loop, stock_loop):
    answers = []

    def call(loop):
        try:
            loop.add_signal_handler(signal.SIGUSR1, nothing)
        except Exception as exc:
            answers.append(described(exc))

    for each in (stock_loop, loop):
        thread = threading.Thread(target=call, args=(each,))
        thread.start()
        thread.join()
    assert len(answers) == 2
    assert answers[0] == answers[1]


# --- netpoll_loop's own options ---------------------------------------------------------------------------------------


@pytest.mark.netpoll_only("its own option")
@pytest.mark.parametrize("wrong", ["x", "", "AUTO", "auto ", None, 5, b"auto", ["auto"]], ids=repr)
@pytest.mark.parametrize("entry", ["new_event_loop", "EventLoopPolicy", "Loop"])
def test_an_unknown_netpoller_is_refused_by_naming_the_choices(mode, entry, wrong):
    import netpoll_loop

    if wrong is None:
        pytest.skip("None may mean the default")
    with pytest.raises((ValueError, TypeError)) as caught:
        made = getattr(netpoll_loop, entry)(netpoller=wrong)
        if entry == "EventLoopPolicy":
            made.new_event_loop()
    if isinstance(wrong, str):
        assert isinstance(caught.value, ValueError)
    for choice in ("auto", "dedicated", "inline"):
        assert choice in str(caught.value)


@pytest.mark.netpoll_only("its own option")
def test_an_unknown_netpoller_in_the_environment_is_refused_by_naming_the_choices(run_child):
    done = run_child(
        """
        os.environ["NETPOLL_LOOP_NETPOLLER"] = "x"
        import netpoll_loop
        try:
            netpoll_loop.new_event_loop()
        except ValueError as exc:
            print(exc)
        """
    )
    for choice in ("auto", "dedicated", "inline"):
        assert choice in done.stdout


@pytest.mark.netpoll_only("its own options")
def test_an_unknown_option_is_a_type_error(mode):
    import netpoll_loop

    for entry in (netpoll_loop.new_event_loop, netpoll_loop.Loop):
        with pytest.raises(TypeError):
            entry(no_such_option=1)


@pytest.mark.netpoll_only("its own function")
@pytest.mark.parametrize("wrong", [None, 5, "loop", asyncio.SelectorEventLoop], ids=repr)
def test_stats_of_what_is_no_loop_of_ours_is_a_type_error(mode, wrong):
    import netpoll_loop

    with pytest.raises(TypeError):
        netpoll_loop.stats(wrong)


@pytest.mark.netpoll_only("its own function")
def test_stats_of_a_closed_loop_are_given_or_refused_in_words(new_loop):
    import netpoll_loop

    loop = new_loop()
    loop.close()
    try:
        netpoll_loop.stats(loop)
    except RuntimeError as exc:
        assert str(exc) == "Event loop is closed"


# --- nothing stays behind ---------------------------------------------------------------------------------------------


def test_after_many_refused_calls_the_loop_still_works(run, loop, env):
    async def main():
        for _ in range(20):
            for wrong in (
                lambda: loop.create_connection(asyncio.Protocol, "127.0.0.1", env.free_port),
                lambda: loop.create_server(asyncio.Protocol, "127.0.0.1", env.busy_port),
                lambda: loop.create_unix_connection(asyncio.Protocol, str(env.file)),
                lambda: loop.sock_connect(env.socket(), ("127.0.0.1", env.free_port)),
                lambda: loop.connect_read_pipe(asyncio.Protocol, env.open()),
            ):
                with pytest.raises((OSError, ValueError)):
                    await wrong()
        _, writer = await asyncio.open_connection(sock=env.stream())
        writer.write(b"works")
        writer.close()
        await writer.wait_closed()
        assert os.path.exists(env.file)
        return "works"

    assert run(main()) == "works"
