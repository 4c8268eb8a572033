# cython: language_level=3
"""The sock_* coroutines: try the system call, park on EAGAIN, retry.

A waiter is woken in its turn and makes the call itself when it runs, as a
goroutine does; whoever has finished or was cancelled wakes the next one, so
that nothing that was received can be lost by a cancellation.  An operation is
an object, not a closure: a closure would keep the socket in a reference cycle.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.errno cimport EAGAIN, EBADF, EINTR, errno

from netpoll_loop._core.engine cimport NP_LEVEL
from netpoll_loop._core.scheduler cimport SCRATCH_SIZE, Scheduler
from netpoll_loop._core.server cimport ServingLoop
from netpoll_loop._core.watch cimport FdWatch

import os
import socket as _socket
from asyncio import base_events as _base_events
from asyncio import sleep as _sleep

cdef extern from "Python.h":
    int PyErr_CheckSignals() except -1

cdef extern from "<sys/socket.h>" nogil:
    ssize_t c_recv "recv"(int fd, void *buf, size_t size, int flags)
    ssize_t c_send "send"(int fd, const void *buf, size_t size, int flags)
    int MSG_NOSIGNAL
    int MSG_DONTWAIT

# Seconds between two attempts to connect to a Unix listener whose queue is full.
cdef double UNIX_CONNECT_RETRY = 0.005
cdef object SocketType = _socket.socket
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


cdef class Operation:
    """One operation on a socket, tried until it doesn't block."""

    cdef object sock

    cdef object attempt(self):
        """Its result, or None when it would block."""
        raise NotImplementedError


cdef class Call(Operation):
    """A method of the socket object that raises BlockingIOError when it would block."""

    cdef str method
    cdef tuple args

    cdef object attempt(self):
        try:
            return getattr(self.sock, self.method)(*self.args)
        except (BlockingIOError, InterruptedError):
            return None


cdef Call call(object sock, str method, tuple args):
    cdef Call operation = Call.__new__(Call)
    operation.sock = sock
    operation.method = method
    operation.args = args
    return operation


cdef class Receive(Operation):
    cdef Py_ssize_t size
    cdef Scheduler loop

    cdef object attempt(self):
        cdef Py_ssize_t size = self.size
        cdef ssize_t count
        cdef bytes data
        if size <= SCRATCH_SIZE:
            count = try_recv(self.sock.fileno(), self.loop.scratch, size)
            return None if count < 0 else PyBytes_FromStringAndSize(self.loop.scratch, count)
        data = PyBytes_FromStringAndSize(NULL, size)
        count = try_recv(self.sock.fileno(), PyBytes_AS_STRING(data), size)
        return None if count < 0 else data[:count]


cdef class Accept(Operation):
    cdef object attempt(self):
        try:
            conn, address = self.sock.accept()
        except (BlockingIOError, InterruptedError):
            return None
        conn.setblocking(False)
        return conn, address


cdef class SendAll(Operation):
    """Sends from a buffer that it holds until all is sent."""

    cdef Py_buffer view
    cdef bint held
    cdef ssize_t sent
    # A socket of another type than socket.socket: its own send() is called.
    cdef object left

    cdef int hold(self, object data) except -1:
        PyObject_GetBuffer(data, &self.view, PyBUF_SIMPLE)
        self.held = True
        if type(self.sock) is not SocketType:
            self.left = memoryview(data).cast("B")
        return 0

    cdef void release(self) noexcept:
        if self.held:
            self.held = False
            self.left = None
            PyBuffer_Release(&self.view)

    def __dealloc__(self):
        if self.held:
            PyBuffer_Release(&self.view)

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


cdef class Connect(Operation):
    """The end of a connect that is under way."""

    cdef object address

    cdef object attempt(self):
        error = self.sock.getsockopt(_socket.SOL_SOCKET, _socket.SO_ERROR)
        if error != 0:
            raise OSError(error, f"Connect call failed {self.address}")
        try:
            self.sock.getpeername()
        except OSError:
            # Woken too early: an event from before the connect.
            return None
        return True


cdef class SockLoop(ServingLoop):
    """The serving loop, with sock_recv and its kin."""

    # Coroutines that wait on a socket.
    cdef Py_ssize_t parked

    cdef int check_sock(self, object sock) except -1:
        check_ssl_socket(sock)
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

    cdef bint others_wait(self, object sock, bint write) except -1:
        """Whether somebody came first."""
        cdef FdWatch watch
        if self.parked == 0:
            return False
        if not hasattr(sock, "fileno"):
            # No socket: the operation itself says so, in asyncio's words.
            return False
        watch = self.find_watch(sock.fileno())
        if watch is None or (watch.owner is not None and watch.owner() is not sock):
            return False
        return len(watch.write_waiters if write else watch.read_waiters) > 0

    cdef object park_on(self, FdWatch watch, object waiters, bint first):
        """A future that is done when it is this waiter's turn to try."""
        cdef object waiter = self.create_future()
        if first:
            waiters.appendleft(waiter)
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

    cdef int take_out(self, object waiters, object waiter) except -1:
        # An eviction has cleared the queue.
        self.parked -= 1
        try:
            waiters.remove(waiter)
        except ValueError:
            pass
        return 0

    cdef int leave(self, FdWatch watch, object waiters, object waiter) except -1:
        # Done, failed or cancelled: the next one in the queue may try.
        self.take_out(waiters, waiter)
        if not watch.read_waiters and not watch.write_waiters:
            watch.unpin()
        if watch.desc is NULL:
            return 0
        if waiters:
            watch.wake(waiters)
        if watch.kind == NP_LEVEL:
            watch.update()
        return 0

    cdef object try_now(self, Operation operation, bint write):
        """The result, or None: it would block, or others came first."""
        if self.others_wait(operation.sock, write):
            return None
        return operation.attempt()

    async def _park(self, Operation operation, bint write):
        """Parks until it is done; for an operation that could not be done at once."""
        cdef FdWatch watch
        cdef object waiters
        cdef bint again = False
        sock = operation.sock
        watch = self.socket_watch(sock)
        waiters = watch.write_waiters if write else watch.read_waiters
        while True:
            waiter = self.park_on(watch, waiters, again)
            watch.pin(sock)
            try:
                await waiter
                result = operation.attempt()
            except BaseException:
                self.leave(watch, waiters, waiter)
                raise
            if result is not None:
                self.leave(watch, waiters, waiter)
                return result
            self.take_out(waiters, waiter)
            again = True

    async def _call(self, Operation operation, bint write):
        result = self.try_now(operation, write)
        return result if result is not None else await self._park(operation, write)

    async def sock_recv(self, sock, n):
        """asyncio.loop.sock_recv: at most n bytes; b"" is the end of the stream."""
        cdef Receive operation
        self.check_sock(sock)
        if type(sock) is not SocketType or not isinstance(n, int) or n < 0:
            return await self._call(call(sock, "recv", (n,)), False)
        operation = Receive.__new__(Receive)
        operation.sock = sock
        operation.size = n
        operation.loop = self
        result = self.try_now(operation, False)
        return result if result is not None else await self._park(operation, False)

    async def sock_recv_into(self, sock, buf):
        """asyncio.loop.sock_recv_into: the number of bytes received into buf."""
        self.check_sock(sock)
        return await self._call(call(sock, "recv_into", (buf,)), False)

    async def sock_recvfrom(self, sock, bufsize):
        """asyncio.loop.sock_recvfrom: (data, address)."""
        self.check_sock(sock)
        return await self._call(call(sock, "recvfrom", (bufsize,)), False)

    async def sock_recvfrom_into(self, sock, buf, nbytes=0):
        """asyncio.loop.sock_recvfrom_into: (number of bytes, address)."""
        self.check_sock(sock)
        if not nbytes:
            nbytes = len(buf)
        return await self._call(call(sock, "recvfrom_into", (buf, nbytes)), False)

    async def sock_sendall(self, sock, data):
        """asyncio.loop.sock_sendall: returns when the socket has taken all of data."""
        cdef SendAll operation
        self.check_sock(sock)
        operation = SendAll.__new__(SendAll)
        operation.sock = sock
        operation.hold(data)
        try:
            if self.try_now(operation, True) is None:
                await self._park(operation, True)
        finally:
            operation.release()

    async def sock_sendto(self, sock, data, address):
        """asyncio.loop.sock_sendto: the number of bytes sent."""
        self.check_sock(sock)
        return await self._call(call(sock, "sendto", (data, address)), True)

    async def sock_accept(self, sock):
        """asyncio.loop.sock_accept: (connection, address)."""
        cdef Accept operation
        self.check_sock(sock)
        sock.fileno()
        operation = Accept.__new__(Accept)
        operation.sock = sock
        return await self._call(operation, False)

    async def sock_connect(self, sock, address):
        """asyncio.loop.sock_connect; host names are resolved first."""
        cdef Connect operation
        self.check_sock(sock)
        if sock.family in (_socket.AF_INET, _socket.AF_INET6):
            resolved = await self._ensure_resolved(
                address, family=sock.family, type=sock.type, proto=sock.proto, loop=self)
            _, _, _, _, address = resolved[0]
        while True:
            try:
                sock.connect(address)
                return
            except InterruptedError:
                break
            except BlockingIOError as exc:
                if exc.errno != EAGAIN or sock.family != _socket.AF_UNIX:
                    break
            # The listener's queue is full and nothing has begun: no event will come (connect(2)).
            await _sleep(UNIX_CONNECT_RETRY)
        operation = Connect.__new__(Connect)
        operation.sock = sock
        operation.address = address
        await self._park(operation, True)
