# cython: language_level=3
"""The sock_* coroutines: try the system call, park on EAGAIN, retry.

A waiter is woken in its turn and makes the call itself when it runs, as a
goroutine does; whoever has finished or was cancelled wakes the next one, so
that nothing that was received can be lost by a cancellation.  An operation is
an object, not a closure: a closure would keep the socket in a reference cycle.
"""

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.object cimport PyObject
from libc.errno cimport EAGAIN, EALREADY, EBADF, EINPROGRESS, EINTR, EISCONN, errno

from netpoll_loop._core.address cimport SocketType, c_getpeername, family_of, sockaddr
from netpoll_loop._core.engine cimport NP_LEVEL, NP_WAIT, np_short_is_all, sockaddr_storage, socklen_t
from netpoll_loop._core.scheduler cimport SCRATCH_SIZE, Scheduler
from netpoll_loop._core.server cimport ServingLoop
from netpoll_loop._core.watch cimport FdWatch

import os
import socket as _socket
import warnings
from asyncio import base_events as _base_events
from asyncio import sleep as _sleep

cdef extern from "Python.h":
    ctypedef struct PyAsyncMethods:
        int (*am_send)(PyObject *, PyObject *, PyObject **) noexcept
    ctypedef struct PyTypeObject:
        PyAsyncMethods *tp_as_async
        PyObject *(*tp_iternext)(PyObject *) noexcept
    PyObject *PyExc_StopIteration
    PyObject *PyObject_CallOneArg(PyObject *callable, PyObject *arg)
    void PyErr_SetObject(PyObject *type, PyObject *value)
    Py_ssize_t PY_SSIZE_T_MAX
    int PYGEN_RETURN
    int PYGEN_ERROR
    int PYGEN_NEXT
    PyObject *Py_None
    void Py_XDECREF(PyObject *o)
    void PyErr_Fetch(PyObject **, PyObject **, PyObject **)
    void PyErr_Restore(PyObject *, PyObject *, PyObject *)
    int PyErr_CheckSignals() except -1

cdef extern from "<sys/socket.h>" nogil:
    ssize_t c_recv "recv"(int fd, void *buf, size_t size, int flags)
    ssize_t c_send "send"(int fd, const void *buf, size_t size, int flags)
    int MSG_NOSIGNAL
    int MSG_DONTWAIT

# Seconds between two attempts to connect to a Unix listener whose queue is full.
cdef double UNIX_CONNECT_RETRY = 0.005
cdef object inet_pton = _socket.inet_pton
cdef tuple INTERNET = (int(_socket.AF_INET), int(_socket.AF_INET6))
# What connect(2) says of a connect that goes on by itself.
cdef tuple UNDER_WAY = (EINPROGRESS, EINTR, EALREADY, EAGAIN)
cdef object check_ssl_socket = _base_events._check_ssl_socket


cdef int raise_errno(int error) except -1:
    raise OSError(error, os.strerror(error))


cdef ssize_t try_recv(int fd, char *buf, size_t size) except -2:
    """Bytes received, or -1 when there is nothing yet."""
    cdef ssize_t count
    while True:
        count = c_recv(fd, buf, size, MSG_DONTWAIT)
        if count >= 0:
            return count
        if errno == EAGAIN:
            return -1
        if errno != EINTR:
            raise_errno(errno)
        PyErr_CheckSignals()


cdef ssize_t try_send(int fd, const char *buf, size_t size) except -2:
    """Bytes sent, or -1 when the socket takes none now."""
    cdef ssize_t count
    while True:
        count = c_send(fd, buf, size, MSG_NOSIGNAL | MSG_DONTWAIT)
        if count >= 0:
            return count
        if errno == EAGAIN:
            return -1
        if errno != EINTR:
            raise_errno(errno)
        PyErr_CheckSignals()


cdef enum:
    FRESH = 0   # not awaited yet
    PARKED = 1  # waits on its socket, by a future
    DONE = 2    # returned, raised or closed


@cython.no_gc_clear
cdef class Operation:
    """One operation on a socket, tried until it doesn't block: the coroutine that sock_recv and its kin return.

    A coroutine by its methods (collections.abc.Coroutine), not by its type: an operation that can be done at once
    costs one small object, and no exception carries its result (am_send).
    """

    cdef SockLoop loop
    cdef object sock
    cdef str method
    cdef bint writes
    cdef int state
    # While PARKED: where, and the future there.
    cdef FdWatch watch
    cdef list waiters
    cdef object waiter

    cdef int begin(self) except -1:
        """Before the first attempt: looks at the arguments."""
        self.loop.check_sock(self.sock)
        return 0

    cdef object attempt(self):
        """Its result, or None when it would block."""
        raise NotImplementedError

    cdef object outcome(self, object result):
        """What the caller gets for that result."""
        return result

    cdef void end(self) noexcept:
        """It is DONE, whatever came of it."""

    # ---- the steps ----------------------------------------------------------

    cdef object park(self, bint first):
        cdef object waiter = self.loop.park_on(self.watch, self.waiters, first)
        self.waiter = waiter
        self.state = PARKED
        self.watch.pin(self.sock)
        waiter._asyncio_future_blocking = True
        return waiter

    cdef object first_step(self):
        cdef object result
        cdef FdWatch watch = None
        self.state = DONE
        self.begin()
        if self.loop.parked or not self.writes:
            watch = self.watch_there_is()
        self.watch = watch
        if watch is None or not self.has_to_wait(watch):
            result = self.attempt()
            if result is not None:
                self.end()
                return self.outcome(result)
        if watch is None:
            watch = self.watch = self.loop.socket_watch(self.sock)
        self.waiters = watch.write_waiters if self.writes else watch.read_waiters
        return self.park(False)

    cdef FdWatch watch_there_is(self):
        """The watch of this socket object; None if it has never waited."""
        cdef FdWatch watch
        if type(self.sock) is not SocketType and not hasattr(self.sock, "fileno"):
            # No socket: the operation itself says so, in asyncio's words.
            return None
        watch = self.loop.find_watch(self.sock.fileno())
        if watch is None or watch.owner is None or watch.owner() is not self.sock:
            return None
        return watch

    cdef bint has_to_wait(self, FdWatch watch):
        """Somebody came first, or an attempt would surely block: a read has emptied the socket."""
        if self.writes:
            return len(watch.write_waiters) > 0
        return len(watch.read_waiters) > 0 or (watch.drained and watch.desc is not NULL and watch.kind == NP_WAIT)

    cdef object next_step(self):
        cdef object result
        if self.state != PARKED:
            raise RuntimeError("cannot reuse already awaited coroutine")
        self.waiter.result()
        result = self.attempt()
        if result is not None:
            self.leave()
            return self.outcome(result)
        self.loop.take_out(self.waiters, self.waiter)
        self.state = DONE
        return self.park(True)

    cdef int leave(self) except -1:
        if self.state == PARKED:
            self.state = DONE
            self.end()
            self.loop.leave(self.watch, self.waiters, self.waiter)
            self.waiter = None
        return 0

    cdef void failed(self) noexcept:
        """The error indicator is set; nothing of the operation may be left behind."""
        cdef PyObject *t = NULL
        cdef PyObject *v = NULL
        cdef PyObject *tb = NULL
        PyErr_Fetch(&t, &v, &tb)
        try:
            self.leave()
            self.end()
        finally:
            PyErr_Restore(t, v, tb)

    # ---- a coroutine ----------------------------------------------------------

    def __await__(self):
        return self

    def __iter__(self):
        return self

    def __next__(self):
        return self.send(None)

    def send(self, value):
        """Goes on; raises StopIteration with the result, or returns a future to wait for."""
        cdef PyObject *result = NULL
        if am_send(<PyObject *>self, Py_None, &result) == PYGEN_ERROR:
            raise_what_is_set()
        value = <object>result
        Py_XDECREF(result)
        if self.state == PARKED:
            return value
        raise StopIteration(value)

    def throw(self, kind, value=None, traceback=None):
        """Ends it with that exception."""
        if self.state == DONE:
            raise RuntimeError("cannot reuse already awaited coroutine")
        self.abandon()
        if value is None:
            value = kind() if isinstance(kind, type) else kind
        if traceback is not None:
            value = value.with_traceback(traceback)
        raise value

    def close(self):
        """Ends it, if it has not ended."""
        self.abandon()

    cdef int abandon(self) except -1:
        if self.state == FRESH:
            self.state = DONE
        return self.leave()

    def __dealloc__(self):
        if self.state == PARKED:
            self.leave()
        elif self.state == FRESH and self.method is not None:
            warnings.warn(f"coroutine 'SockLoop.{self.method}' was never awaited", RuntimeWarning, stacklevel=1)

    @property
    def __name__(self):
        return self.method

    @property
    def __qualname__(self):
        return f"SockLoop.{self.method}"

    @property
    def cr_running(self):
        return False


cdef int raise_what_is_set() except -1:
    return -1


cdef object step(Operation self):
    return self.first_step() if self.state == FRESH else self.next_step()


ctypedef PyObject *(*quiet_step)(PyObject *self) noexcept

# NULL with the error indicator set, where Cython's own call would raise.
cdef quiet_step step_quietly = <quiet_step>step


cdef int am_send(PyObject *self, PyObject *value, PyObject **result) noexcept:
    """PyAsyncMethods.am_send: a result, or a future to wait for, without an exception."""
    cdef Operation operation = <Operation>self
    result[0] = step_quietly(self)
    if result[0] is NULL:
        operation.failed()
        return PYGEN_ERROR
    return PYGEN_NEXT if operation.state == PARKED else PYGEN_RETURN


cdef PyObject *iternext(PyObject *self) noexcept:
    """tp_iternext: what the interpreter's own await calls. NULL without an error is the end with None."""
    cdef PyObject *result = NULL
    cdef PyObject *stop
    if am_send(self, Py_None, &result) != PYGEN_RETURN:
        return result
    if result != Py_None:
        # An instance: a tuple would be taken for the arguments of StopIteration.
        stop = PyObject_CallOneArg(PyExc_StopIteration, result)
        if stop is not NULL:
            PyErr_SetObject(PyExc_StopIteration, stop)
            Py_XDECREF(stop)
    Py_XDECREF(result)
    return NULL


cdef class Call(Operation):
    """A method of the socket object that raises BlockingIOError when it would block."""

    cdef str function
    cdef tuple args

    cdef int begin(self) except -1:
        Operation.begin(self)
        if self.method == "sock_recvfrom_into" and not self.args[1]:
            self.args = (self.args[0], len(self.args[0]))
        return 0

    cdef bint has_to_wait(self, FdWatch watch):
        return Operation.has_to_wait(self, watch) and not self.is_for_nothing()

    cdef bint is_for_nothing(self):
        """For no bytes there is nothing to wait for: socket.recv_into makes no system call then."""
        if self.method != "sock_recv_into":
            return False
        try:
            return memoryview(self.args[0]).nbytes == 0
        except TypeError:
            # The call itself says what is wrong.
            return True

    cdef object attempt(self):
        try:
            return getattr(self.sock, self.function)(*self.args)
        except (BlockingIOError, InterruptedError):
            return None


cdef class Receive(Operation):
    cdef Py_ssize_t size

    cdef bint has_to_wait(self, FdWatch watch):
        return Operation.has_to_wait(self, watch) and self.size != 0

    cdef object attempt(self):
        cdef Py_ssize_t size = self.size
        cdef ssize_t count
        cdef bytes data
        if size == 0:
            # As socket.recv: without a system call.
            return b""
        if size <= SCRATCH_SIZE:
            count = try_recv(self.sock.fileno(), self.loop.scratch, size)
            data = None if count < 0 else PyBytes_FromStringAndSize(self.loop.scratch, count)
        else:
            data = PyBytes_FromStringAndSize(NULL, size)
            count = try_recv(self.sock.fileno(), PyBytes_AS_STRING(data), size)
            data = None if count < 0 else data[:count]
        if count < size and self.watch is not None and (count < 0 or np_short_is_all(self.watch.desc)):
            self.watch.drained = True
        return data


cdef Call called(SockLoop loop, object sock, str method, bint writes, str function, tuple args):
    cdef Call operation = Call.__new__(Call)
    operation.loop = loop
    operation.sock = sock
    operation.method = method
    operation.writes = writes
    operation.function = function
    operation.args = args
    return operation


cdef class Accept(Operation):
    cdef int begin(self) except -1:
        Operation.begin(self)
        # An object that isn't a socket fails here, in asyncio's words.
        self.sock.fileno()
        return 0

    cdef object attempt(self):
        try:
            conn, address = self.sock.accept()
        except (BlockingIOError, InterruptedError):
            return None
        conn.setblocking(False)
        return conn, address


@cython.no_gc_clear
cdef class SendAll(Operation):
    """Sends from a buffer that it holds until all is sent."""

    cdef object data
    cdef Py_buffer view
    cdef bint held
    cdef ssize_t sent
    # A socket of another type than socket.socket: its own send() is called.
    cdef object left

    cdef int begin(self) except -1:
        Operation.begin(self)
        PyObject_GetBuffer(self.data, &self.view, PyBUF_SIMPLE)
        self.held = True
        if type(self.sock) is not SocketType:
            self.left = memoryview(self.data).cast("B")
        return 0

    def __dealloc__(self):
        # The base class's comes when the fields of this one, which end() needs, have gone.
        self.leave()

    cdef void end(self) noexcept:
        if self.held:
            self.held = False
            self.left = None
            PyBuffer_Release(&self.view)

    cdef object outcome(self, object result):
        return None

    cdef object attempt(self):
        cdef ssize_t count
        if self.left is not None:
            try:
                count = self.sock.send(self.left[self.sent:])
            except (BlockingIOError, InterruptedError):
                return None
        else:
            count = try_send(self.sock.fileno(), <const char *>self.view.buf + self.sent,
                             self.view.len - self.sent)
        if count > 0:
            self.sent += count
        return True if self.sent == self.view.len else None


cdef bint is_resolved(object family, object address) except -1:
    """An address literal in the form that the kernel's answers have: nothing to look up."""
    if type(address) is not tuple or len(address) != (2 if family == _socket.AF_INET else 4):
        return False
    if type(address[1]) is not int:
        return False
    try:
        inet_pton(family, address[0])
    except (OSError, TypeError):
        return False
    return True


cdef bint is_usual(object address) except -1:
    """An address that connect can't find fault with: its messages name the method."""
    return type(address) is tuple and (
        (len(address) == 2 or (len(address) == 4 and address[2] == 0 and address[3] == 0))
        and type(address[0]) is str and type(address[1]) is int and 0 <= address[1] <= 65535
    )


cdef bint is_plain(object sock) except -1:
    """A socket whose connect() nobody has replaced: connect_ex() does the same."""
    return type(sock) is SocketType and "connect" not in SocketType.__dict__


async def begin_connect(sock, address):
    """Whether the socket is connected already."""
    while True:
        try:
            sock.connect(address)
            return True
        except InterruptedError:
            return False
        except BlockingIOError as exc:
            if exc.errno != EAGAIN or sock.family != _socket.AF_UNIX:
                return False
        # The listener's queue is full and nothing has begun: no event will come (connect(2)).
        await _sleep(UNIX_CONNECT_RETRY)


cdef class Connect(Operation):
    """The end of a connect that is under way; on one machine it has come before connect(2) returns.

    With a dedicated netpoller all events come from its thread. Who connected waits for its own there, so that the
    listener's isn't far behind it: on stock asyncio the two come in one poll.
    """

    cdef object address

    cdef object outcome(self, object result):
        return None

    cdef object attempt(self):
        if self.waiter is None and self.loop._mode == "dedicated":
            return None
        if self.has_peer():
            return True
        # Under way, or it has failed. Reading SO_ERROR would leave a socket that can't be connected any more.
        error = self.sock.connect_ex(self.address)
        if error in UNDER_WAY:
            return None
        if error != 0 and error != EISCONN:
            raise OSError(error, f"Connect call failed {self.address}")
        return True

    cdef bint has_peer(self) except -1:
        cdef sockaddr_storage address
        cdef socklen_t length = sizeof(address)
        cdef int fd
        if type(self.sock) is SocketType:
            fd = self.sock.fileno()
            return fd >= 0 and c_getpeername(fd, <sockaddr *>&address, &length) == 0
        try:
            self.sock.getpeername()
        except OSError:
            return False
        return True


cdef class SockLoop(ServingLoop):
    """The serving loop, with sock_recv and its kin."""

    cdef int check_sock(self, object sock) except -1:
        if type(sock) is not SocketType:
            check_ssl_socket(sock)
        self.quiet = 0
        if self._debug and sock.gettimeout() != 0:
            raise ValueError("the socket must be non-blocking")
        return 0

    cdef FdWatch socket_watch(self, object sock):
        """The watch of a socket that has to wait."""
        cdef int fd
        if self._closed:
            self._check_closed()
        fd = sock.fileno()
        if fd < 0:
            raise_errno(EBADF)
        self._ensure_fd_no_transport(fd)
        return self.watch_of(fd, sock)

    cdef object park_on(self, FdWatch watch, list waiters, bint first):
        """A future that is done when it is this waiter's turn to try."""
        cdef object waiter = self.new_future()
        if first:
            waiters.insert(0, waiter)
        else:
            waiters.append(waiter)
        try:
            if watch.desc is NULL or watch.kind == NP_LEVEL:
                watch.update()
        except BaseException:
            waiters.remove(waiter)
            raise
        self.parked += 1
        return waiter

    cdef int take_out(self, list waiters, object waiter) except -1:
        # An eviction has cleared the queue.
        self.parked -= 1
        try:
            waiters.remove(waiter)
        except ValueError:
            pass
        return 0

    cdef int leave(self, FdWatch watch, list waiters, object waiter) except -1:
        # Done, failed or cancelled: the next one in the queue may try.
        self.take_out(waiters, waiter)
        if not watch.read_waiters and not watch.write_waiters:
            watch.unpin()
            if watch.owner is None and watch.kind == NP_WAIT:
                # Of an object without weak references: nothing would tell when its number is somebody else's.
                self.close_descriptor(watch)
        if watch.desc is NULL:
            return 0
        if waiters:
            watch.wake(waiters)
        if watch.kind == NP_LEVEL:
            watch.update()
        return 0

    def sock_recv(self, sock, n):
        """asyncio.loop.sock_recv: at most n bytes; b"" is the end of the stream."""
        cdef Receive operation
        if type(sock) is not SocketType or type(n) is not int or not 0 <= n <= PY_SSIZE_T_MAX:
            return called(self, sock, "sock_recv", False, "recv", (n,))
        operation = Receive.__new__(Receive)
        operation.loop = self
        operation.sock = sock
        operation.method = "sock_recv"
        operation.size = n
        return operation

    def sock_recv_into(self, sock, buf):
        """asyncio.loop.sock_recv_into: the number of bytes received into buf."""
        return called(self, sock, "sock_recv_into", False, "recv_into", (buf,))

    def sock_recvfrom(self, sock, bufsize):
        """asyncio.loop.sock_recvfrom: (data, address)."""
        return called(self, sock, "sock_recvfrom", False, "recvfrom", (bufsize,))

    def sock_recvfrom_into(self, sock, buf, nbytes=0):
        """asyncio.loop.sock_recvfrom_into: (number of bytes, address)."""
        return called(self, sock, "sock_recvfrom_into", False, "recvfrom_into", (buf, nbytes))

    def sock_sendall(self, sock, data):
        """asyncio.loop.sock_sendall: returns when the socket has taken all of data."""
        cdef SendAll operation = SendAll.__new__(SendAll)
        operation.loop = self
        operation.sock = sock
        operation.method = "sock_sendall"
        operation.writes = True
        operation.data = data
        return operation

    def sock_sendto(self, sock, data, address):
        """asyncio.loop.sock_sendto: the number of bytes sent."""
        return called(self, sock, "sock_sendto", True, "sendto", (data, address))

    def sock_accept(self, sock):
        """asyncio.loop.sock_accept: (connection, address)."""
        cdef Accept operation = Accept.__new__(Accept)
        operation.loop = self
        operation.sock = sock
        operation.method = "sock_accept"
        return operation

    async def sock_connect(self, sock, address):
        """asyncio.loop.sock_connect; host names are resolved first."""
        cdef Connect operation
        self.check_sock(sock)
        family = family_of(sock)
        if family in INTERNET and not is_resolved(family, address):
            resolved = await self._ensure_resolved(
                address, family=family, type=sock.type, proto=sock.proto, loop=self)
            _, _, _, _, address = resolved[0]
        if is_plain(sock) and is_usual(address) and sock.gettimeout() == 0:
            # Without an exception for EINPROGRESS.
            error = sock.connect_ex(address)
            if error == 0:
                return
            if error not in UNDER_WAY:
                raise_errno(error)
        elif await begin_connect(sock, address):
            return
        operation = Connect.__new__(Connect)
        operation.loop = self
        operation.sock = sock
        operation.method = "sock_connect"
        operation.writes = True
        operation.address = address
        await operation


# A slot that Cython doesn't know, and one that it would fill with a wrapper of __next__.
for cls in (Operation, Call, Receive, Accept, SendAll, Connect):
    (<PyTypeObject *>cls).tp_as_async.am_send = am_send
    (<PyTypeObject *>cls).tp_iternext = iternext
del cls
