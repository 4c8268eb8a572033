# cython: language_level=3
"""The sock_* coroutines: try the system call, park on EAGAIN, retry.

A waiter is woken in its turn and makes the call itself when it runs, as a
goroutine does; whoever has finished or was cancelled wakes the next one, so
that nothing that was received can be lost by a cancellation.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.errno cimport EAGAIN, EINTR, errno

from netpoll_loop._core.engine cimport NP_LEVEL
from netpoll_loop._core.scheduler cimport SCRATCH_SIZE
from netpoll_loop._core.server cimport ServingLoop
from netpoll_loop._core.watch cimport FdWatch

import os
import socket as _socket
from asyncio import base_events as _base_events

cdef extern from "Python.h":
    int PyErr_CheckSignals() except -1

cdef extern from "<sys/socket.h>" nogil:
    ssize_t c_recv "recv"(int fd, void *buf, size_t size, int flags)
    ssize_t c_send "send"(int fd, const void *buf, size_t size, int flags)
    int MSG_NOSIGNAL

cdef object SocketType = _socket.socket
cdef object check_ssl_socket = _base_events._check_ssl_socket


cdef int raise_errno(int error) except -1:
    raise OSError(error, os.strerror(error))


cdef ssize_t try_recv(int fd, char *buf, size_t size) except -2:
    """Bytes received, or -1 when there is nothing yet."""
    cdef ssize_t count
    while True:
        count = c_recv(fd, buf, size, 0)
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
        count = c_send(fd, buf, size, MSG_NOSIGNAL)
        if count >= 0:
            return count
        if errno == EAGAIN:
            return -1
        if errno != EINTR:
            raise_errno(errno)
        PyErr_CheckSignals()


cdef class SockLoop(ServingLoop):
    """The serving loop, with sock_recv and its kin."""

    cdef int check_sock(self, object sock) except -1:
        check_ssl_socket(sock)
        if self._debug and sock.gettimeout() != 0:
            raise ValueError("the socket must be non-blocking")
        return 0

    cdef FdWatch socket_watch(self, object sock):
        """The watch of a socket that has to wait."""
        cdef int fd = sock.fileno()
        if fd < 0:
            raise_errno(9)
        self._ensure_fd_no_transport(fd)
        return self.watch_of(fd, sock)

    cdef bint readers_wait(self, object sock) except -1:
        cdef FdWatch watch = self.find_watch(sock.fileno())
        return watch is not None and len(watch.read_waiters) > 0 and (
            watch.owner is None or watch.owner() is sock)

    cdef bint writers_wait(self, object sock) except -1:
        cdef FdWatch watch = self.find_watch(sock.fileno())
        return watch is not None and len(watch.write_waiters) > 0 and (
            watch.owner is None or watch.owner() is sock)

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
        return waiter

    cdef int unpark(self, FdWatch watch, object waiters, object waiter) except -1:
        # No longer waiting, for whatever reason; remove_* may have cleared the queue.
        try:
            waiters.remove(waiter)
        except ValueError:
            pass
        return 0

    cdef int pass_on(self, FdWatch watch, object waiters) except -1:
        # Done (or cancelled): the next one in the queue may try.
        if waiters and watch.desc is not NULL:
            watch.wake(waiters)
        if watch.kind == NP_LEVEL and watch.desc is not NULL:
            watch.update()
        return 0

    async def _sock_wait(self, sock, bint write, attempt):
        # attempt() returns None for EAGAIN; the caller has tried once already,
        # unless others were in the queue before.
        cdef FdWatch watch = self.socket_watch(sock)
        cdef object waiters = watch.write_waiters if write else watch.read_waiters
        cdef bint again = False
        while True:
            waiter = self.park_on(watch, waiters, again)
            try:
                await waiter
            except BaseException:
                self.unpark(watch, waiters, waiter)
                self.pass_on(watch, waiters)
                raise
            try:
                result = attempt()
            except BaseException:
                self.unpark(watch, waiters, waiter)
                self.pass_on(watch, waiters)
                raise
            self.unpark(watch, waiters, waiter)
            if result is not None:
                self.pass_on(watch, waiters)
                return result
            again = True

    cdef object recv_now(self, object sock, Py_ssize_t size):
        cdef ssize_t count
        cdef object data
        if type(sock) is not SocketType or size < 0:
            try:
                return sock.recv(size)
            except (BlockingIOError, InterruptedError):
                return None
        if size <= SCRATCH_SIZE:
            count = try_recv(sock.fileno(), self.scratch, size)
            return None if count < 0 else PyBytes_FromStringAndSize(self.scratch, count)
        data = PyBytes_FromStringAndSize(NULL, size)
        count = try_recv(sock.fileno(), PyBytes_AS_STRING(data), size)
        return None if count < 0 else data[:count]

    async def sock_recv(self, sock, n):
        """asyncio.loop.sock_recv: at most n bytes; b"" is the end of the stream."""
        self.check_sock(sock)
        if not self.readers_wait(sock):
            data = self.recv_now(sock, n)
            if data is not None:
                return data
        return await self._sock_wait(sock, False, lambda: self.recv_now(sock, n))

    async def sock_recv_into(self, sock, buf):
        """asyncio.loop.sock_recv_into: the number of bytes received into buf."""
        self.check_sock(sock)

        def attempt():
            try:
                return sock.recv_into(buf)
            except (BlockingIOError, InterruptedError):
                return None

        if not self.readers_wait(sock):
            count = attempt()
            if count is not None:
                return count
        return await self._sock_wait(sock, False, attempt)

    async def sock_recvfrom(self, sock, bufsize):
        """asyncio.loop.sock_recvfrom: (data, address)."""
        self.check_sock(sock)

        def attempt():
            try:
                return sock.recvfrom(bufsize)
            except (BlockingIOError, InterruptedError):
                return None

        if not self.readers_wait(sock):
            result = attempt()
            if result is not None:
                return result
        return await self._sock_wait(sock, False, attempt)

    async def sock_recvfrom_into(self, sock, buf, nbytes=0):
        """asyncio.loop.sock_recvfrom_into: (number of bytes, address)."""
        self.check_sock(sock)
        if not nbytes:
            nbytes = len(buf)

        def attempt():
            try:
                return sock.recvfrom_into(buf, nbytes)
            except (BlockingIOError, InterruptedError):
                return None

        if not self.readers_wait(sock):
            result = attempt()
            if result is not None:
                return result
        return await self._sock_wait(sock, False, attempt)

    async def sock_sendall(self, sock, data):
        """asyncio.loop.sock_sendall: returns when the socket has taken all of data."""
        cdef Py_buffer view
        cdef ssize_t sent = 0
        cdef ssize_t count
        cdef bint raw = type(sock) is SocketType
        self.check_sock(sock)
        if not raw:
            return await self._sendall_by_method(sock, data)
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            if not self.writers_wait(sock):
                count = try_send(sock.fileno(), <const char *>view.buf, view.len)
                if count > 0:
                    sent = count
            if sent == view.len:
                return None

            def attempt():
                nonlocal sent
                cdef ssize_t n = try_send(sock.fileno(), <const char *>view.buf + sent, view.len - sent)
                if n > 0:
                    sent += n
                return True if sent == view.len else None

            await self._sock_wait(sock, True, attempt)
        finally:
            PyBuffer_Release(&view)

    async def _sendall_by_method(self, sock, data):
        left = memoryview(data).cast("B")
        if not self.writers_wait(sock):
            try:
                left = left[sock.send(left):]
            except (BlockingIOError, InterruptedError):
                pass
        if not left:
            return

        def attempt():
            nonlocal left
            try:
                left = left[sock.send(left):]
            except (BlockingIOError, InterruptedError):
                return None
            return None if left else True

        await self._sock_wait(sock, True, attempt)

    async def sock_sendto(self, sock, data, address):
        """asyncio.loop.sock_sendto: the number of bytes sent."""
        self.check_sock(sock)

        def attempt():
            try:
                return sock.sendto(data, address)
            except (BlockingIOError, InterruptedError):
                return None

        if not self.writers_wait(sock):
            count = attempt()
            if count is not None:
                return count
        return await self._sock_wait(sock, True, attempt)

    async def sock_accept(self, sock):
        """asyncio.loop.sock_accept: (connection, address)."""
        self.check_sock(sock)

        def attempt():
            try:
                conn, address = sock.accept()
            except (BlockingIOError, InterruptedError):
                return None
            conn.setblocking(False)
            return conn, address

        if not self.readers_wait(sock):
            result = attempt()
            if result is not None:
                return result
        return await self._sock_wait(sock, False, attempt)

    async def sock_connect(self, sock, address):
        """asyncio.loop.sock_connect; host names are resolved first."""
        self.check_sock(sock)
        if sock.family in (_socket.AF_INET, _socket.AF_INET6):
            resolved = await self._ensure_resolved(
                address, family=sock.family, type=sock.type, proto=sock.proto, loop=self)
            _, _, _, _, address = resolved[0]
        try:
            sock.connect(address)
            return
        except (BlockingIOError, InterruptedError):
            pass

        def attempt():
            error = sock.getsockopt(_socket.SOL_SOCKET, _socket.SO_ERROR)
            if error != 0:
                raise OSError(error, f"Connect call failed {address}")
            try:
                sock.getpeername()
            except OSError:
                # Woken too early: an event from before the connect.
                return None
            return True

        await self._sock_wait(sock, True, attempt)
