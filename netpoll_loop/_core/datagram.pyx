# cython: language_level=3, binding=False, embedsignature=True, embedsignature.format=clinic
"""Datagram transports: UDP and Unix datagram sockets.

The engine reports readiness, the worker receives and sends.  Behaviour and
texts are those of asyncio's ``_SelectorDatagramTransport``: one datagram for
each turn and transport, what the socket doesn't take is kept with its address.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.contextvars cimport PyContext_CopyCurrent, PyContext_Enter, PyContext_Exit
from cpython.object cimport PyObject
from libc.errno cimport EAGAIN, EINTR, EINVAL, errno
from libc.stdint cimport uint32_t
from libc.string cimport memcmp, memcpy

from netpoll_loop._core.address cimport RAW_SIZE, SocketType, address_object
from netpoll_loop._core.engine cimport NP_ERR, NP_HUP, NP_R, NP_W, NP_WAIT, sockaddr_storage, socklen_t
from netpoll_loop._core.handles cimport raise_what_is_set
from netpoll_loop._core.scheduler cimport SCRATCH_SIZE
from netpoll_loop._core.transport cimport SocketTransport, os_error, received

import collections
import os
import sys
from asyncio import constants as _constants
from asyncio import futures as _futures
from asyncio import transports as _transports
from asyncio.log import logger

cdef extern from "Python.h":
    void Py_DECREF(PyObject *o)

cdef extern from "<sys/socket.h>" nogil:
    cdef struct sockaddr:
        pass
    ssize_t c_recvfrom "recvfrom"(int fd, void *buf, size_t size, int flags, sockaddr *address, socklen_t *length)
    ssize_t c_sendto "sendto"(int fd, const void *buf, size_t size, int flags, sockaddr *address, socklen_t length)
    int MSG_DONTWAIT
    int MSG_NOSIGNAL
    int AF_INET
    int AF_INET6

cdef object set_result_unless_cancelled = _futures._set_result_unless_cancelled
cdef int LOG_THRESHOLD = _constants.LOG_THRESHOLD_FOR_CONNLOST_WRITES
# What each kept datagram counts beyond its bytes, and whether empty ones are sent: since Python 3.12.2/3.13.
cdef size_t HEADER_BYTES = 8 if sys.version_info >= (3, 13) else 0


class _DatagramTransportFacade(_transports._FlowControlMixin, _transports.DatagramTransport):
    """What ``isinstance`` sees: asyncio's classes have slots, a C class can't inherit them."""

    __slots__ = ()


_DatagramTransportFacade.__name__ = _DatagramTransportFacade.__qualname__ = "DatagramTransport"
cdef object facade = _DatagramTransportFacade


cdef enum:
    SENDERS = 32


cdef struct sender_address:
    socklen_t length
    char raw[RAW_SIZE]


cdef class DatagramTransport(SocketTransport):
    """asyncio.DatagramTransport."""

    cdef object address
    cdef object buffer
    cdef size_t buffer_size
    # An Internet socket of the socket module's own class: read and written without it.
    cdef bint plain
    # Some senders, each in the place that its address says: as the protocol was told, and as
    # the kernel said; and the place of the last one.
    cdef list senders
    cdef sender_address raw_senders[SENDERS]
    cdef int last
    cdef bint connected

    max_size = SCRATCH_SIZE

    def __init__(self, loop, sock, protocol, address=None, waiter=None, extra=None):
        self.adopt(loop, sock, extra)
        try:
            self.address = address
            self.buffer = collections.deque()
            self.senders = [None] * SENDERS
            self.protocol = protocol
            self.connected = self.get_extra_info("peername") is not None
            self.plain = type(sock) is SocketType and self.family in (AF_INET, AF_INET6)
            self.loop.open_descriptor(self, self.fd, NP_WAIT)
            self.context = PyContext_CopyCurrent()
            loop.call_soon(protocol.connection_made, self, context=self.context)
            # Reading starts when connection_made has been called.
            loop.call_soon(self._start_reading)
            if waiter is not None:
                loop.call_soon(set_result_unless_cancelled, waiter, None)
        except BaseException:
            self.disown()
            raise

    @property
    def __class__(self):
        return facade

    def __del__(self):
        self.unclosed()

    def set_protocol(self, protocol):
        """asyncio.BaseTransport.set_protocol."""
        self.put_protocol(protocol)

    cdef bint reads(self):
        return self.started and not self._paused and not self._closing

    cdef size_t buffered_bytes(self):
        return self.buffer_size

    cdef int discard(self) except -1:
        self.buffer.clear()
        self.buffer_size = 0
        return 0

    # ---- reading ---------------------------------------------------------------

    def _start_reading(self):
        if self._closing or self._paused or self.started or self.desc is NULL:
            return
        self.started = True
        self.loop.still.append(self)

    def pause_reading(self):
        """As asyncio's transport has it, though the documented class doesn't."""
        if self.is_reading():
            self._paused = True

    def resume_reading(self):
        """Reads again; never calls the protocol itself."""
        if self._closing or not self._paused:
            return
        self._paused = False
        self.started = True
        if self.desc is not NULL:
            self.loop.still.append(self)

    cdef int on_ready(self, uint32_t bits) except -1:
        self.pending_bits |= bits
        if self.queued or self.desc is NULL:
            return 0
        if self.reads() or (bits & (NP_W | NP_ERR | NP_HUP) and self.buffer):
            self.queued = True
            self.loop.ring_push(self)
        return 0

    cdef int run(self) except -1:
        cdef uint32_t bits = self.pending_bits
        self.queued = False
        cdef object loop = self.loop
        self.pending_bits = 0
        if loop is None:
            return 0
        try:
            return self.serve(bits)
        except (SystemExit, KeyboardInterrupt):
            self.run_again(bits)
            raise
        except BaseException as exc:
            self.failed(loop, exc)
        return 0

    cdef int serve(self, uint32_t bits) except -1:
        cdef object context
        if bits & (NP_R | NP_ERR | NP_HUP) and self.reads():
            context = self.context
            if not self.enter(context, bits):
                return 0
            try:
                self.read()
            finally:
                PyContext_Exit(context)
        if bits & (NP_W | NP_ERR | NP_HUP) and self.loop is not None and self.buffer:
            context = self.context
            if not self.enter(context, bits):
                return 0
            try:
                self.write_ready()
            finally:
                PyContext_Exit(context)
        return 0

    cdef int read_plain(self) except -1:
        """read() without the socket module."""
        cdef sockaddr_storage raw
        cdef socklen_t length = sizeof(raw)
        cdef ssize_t count = c_recvfrom(
            self.fd, self.loop.scratch, SCRATCH_SIZE, MSG_DONTWAIT, <sockaddr *>&raw, &length
        )
        cdef int error = errno
        cdef int place
        cdef PyObject *piece
        if count < 0:
            if error not in (EAGAIN, EINTR):
                self.loop.still.append(self)
                self.protocol.error_received(os_error(-error))
            return 0
        try:
            place = self.sender_of(&raw, length)
            piece = received(self.loop, count)
            if piece is NULL:
                raise_what_is_set()
            data = <object>piece
            Py_DECREF(piece)
        except BaseException as exc:
            self._fatal_error(exc, "Fatal read error on datagram transport")
            return 0
        # Edge-triggered: until EAGAIN there may be more, whatever the protocol raises.
        self.loop.still.append(self)
        self.protocol.datagram_received(data, self.senders[place])
        return 0

    cdef int sender_of(self, sockaddr_storage *raw, socklen_t length) except -1:
        """The sender's place in `senders`."""
        # Port, and the last byte of an IPv4 address.
        cdef unsigned char *bytes_ = <unsigned char *>raw
        cdef int place = (bytes_[2] ^ bytes_[3] ^ bytes_[7]) & (SENDERS - 1)
        if length > RAW_SIZE:
            raise OSError(EINVAL, os.strerror(EINVAL))
        if self.raw_senders[place].length != length or memcmp(raw, self.raw_senders[place].raw, length):
            self.senders[place] = address_object(raw, length)
            memcpy(self.raw_senders[place].raw, raw, length)
            self.raw_senders[place].length = length
        self.last = place
        return place

    cdef int read(self) except -1:
        if self._conn_lost:
            return 0
        if self.plain:
            return self.read_plain()
        try:
            data, address = self.sock.recvfrom(SCRATCH_SIZE)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError as exc:
            self.loop.still.append(self)
            self.protocol.error_received(exc)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            self._fatal_error(exc, "Fatal read error on datagram transport")
            return 0
        else:
            # Edge-triggered: until EAGAIN there may be more, whatever the protocol raises.
            self.loop.still.append(self)
            self.protocol.datagram_received(data, address)
        return 0

    # ---- writing ---------------------------------------------------------------

    cdef int send_plain(self, object data, bint named) except -1:
        """To the peer, or to the one whose datagram came last."""
        cdef Py_buffer view
        cdef ssize_t count
        cdef int error
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        while True:
            count = c_sendto(
                self.fd, view.buf, view.len, MSG_DONTWAIT | MSG_NOSIGNAL,
                <sockaddr *>self.raw_senders[self.last].raw if named else NULL,
                self.raw_senders[self.last].length if named else 0,
            )
            error = errno
            if count >= 0 or error != EINTR:
                break
        PyBuffer_Release(&view)
        if count < 0:
            raise os_error(-error)
        return 0

    cdef int send(self, object data, object address) except -1:
        self.loop.quiet = 0
        # A tuple can't change: the object that was delivered is still the address that it was made from.
        if self.plain and (self.connected or (address is not None and address is self.senders[self.last])):
            return self.send_plain(data, not self.connected)
        if self.connected:
            self.sock.send(data)
        else:
            self.sock.sendto(data, address)
        return 0

    def sendto(self, data, addr=None):
        """asyncio.DatagramTransport.sendto."""
        if not isinstance(data, (bytes, bytearray, memoryview)):
            raise TypeError(
                f"data argument must be a bytes-like object, not {type(data).__name__!r}"
            )
        if not data and HEADER_BYTES == 0:
            # Before 3.13 asyncio sends no empty datagrams.
            return
        self.check_caller()
        if self.address:
            if addr not in (None, self.address):
                raise ValueError(f"Invalid address: must be None or {self.address}")
            addr = self.address
        if self._conn_lost and (self.address or self.loop is None):
            if self._conn_lost >= LOG_THRESHOLD:
                logger.warning("socket.send() raised exception.")
            self._conn_lost += 1
            return
        if not self.buffer:
            try:
                self.send(data, addr)
                return
            except (BlockingIOError, InterruptedError):
                pass
            except OSError as exc:
                self.protocol.error_received(exc)
                return
            except (SystemExit, KeyboardInterrupt):
                raise
            except BaseException as exc:
                self._fatal_error(exc, "Fatal write error on datagram transport")
                return
        # What is kept must not change.
        data = bytes(data)
        self.buffer.append((data, addr))
        self.buffer_size += len(data) + HEADER_BYTES
        self.pause_protocol()

    cdef int write_ready(self) except -1:
        while self.buffer:
            data, address = self.buffer.popleft()
            self.buffer_size -= len(data) + HEADER_BYTES
            try:
                self.send(data, address)
            except (BlockingIOError, InterruptedError):
                self.buffer.appendleft((data, address))
                self.buffer_size += len(data) + HEADER_BYTES
                break
            except OSError as exc:
                if self.buffer:
                    # The rest is tried in the next turn; no edge need come.
                    self.run_again(NP_W)
                try:
                    self.protocol.error_received(exc)
                finally:
                    if not self.buffer:
                        self.all_tried()
                return 0
            except (SystemExit, KeyboardInterrupt):
                raise
            except BaseException as exc:
                self._fatal_error(exc, "Fatal write error on datagram transport")
                return 0
        return self.all_tried()

    cdef int all_tried(self) except -1:
        self.resume_protocol()
        if not self.buffer and self._closing and not self._conn_lost:
            self._conn_lost += 1
            self._call_connection_lost(None)
        return 0

    def close(self):
        """asyncio.BaseTransport.close: sends what is kept, then closes."""
        if self._closing:
            return
        self._closing = True
        if not self.buffer:
            self._conn_lost += 1
            self.loop.call_soon(self._call_connection_lost, None, context=self.context)
