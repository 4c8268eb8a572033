# cython: language_level=3, binding=False, embedsignature=True, embedsignature.format=clinic
"""Stream transports: TCP and Unix stream sockets.

The bytes that wait to be sent, and in dedicated mode those that were received
ahead, live in the engine; the transport decides when to read, what to tell the
protocol, and what a sent or failed write means.  Worker only.

Behaviour and texts are those of asyncio's ``_SelectorSocketTransport``.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.contextvars cimport PyContext_CopyCurrent, PyContext_Enter, PyContext_Exit
from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc
from cpython.object cimport PyObject
from cpython.ref cimport Py_INCREF
from libc.errno cimport EAGAIN, errno
from libc.string cimport memcpy

from netpoll_loop._core.address cimport RAW_SIZE, address_object, c_getpeername, family_of, sockaddr
from netpoll_loop._core.engine cimport (
    NP_AT_ONCE, NP_BY_NETPOLLER, NP_ERR, NP_HUP, NP_R, NP_STREAM, NP_W, iovec, np_discard, np_flush, np_full,
    np_hand_over, np_more, np_notify_writable, np_pending, np_queue, np_queue_for_turn, np_read_ahead,
    np_recv, np_send, np_send_error, np_sender, np_sendv, np_tell, np_tell_full,
)
from netpoll_loop._core.handles cimport raise_what_is_set
from netpoll_loop._core.reader cimport append, fed, reader_to_feed
from netpoll_loop._core.scheduler cimport SCRATCH_SIZE, Scheduler
from netpoll_loop._core.tls cimport adopted, is_tls, records_received
from netpoll_loop._core.transport cimport HIGH_WATER, SocketTransport, os_error, received

import os
import sys
from asyncio import constants as _constants
from asyncio import futures as _futures
from asyncio import protocols as _protocols
from asyncio import streams as _streams
from asyncio import transports as _transports
from asyncio.log import logger

cdef extern from "Python.h":
    object PyObject_CallMethodOneArg(object o, object name, object arg)
    object PyObject_CallMethodNoArgs(object o, object name)
    void Py_DECREF(void *o)
    Py_ssize_t PyByteArray_GET_SIZE(object o)
    char *PyByteArray_AS_STRING(object o)
    int PyByteArray_Resize(object o, Py_ssize_t size) except -1
    void PyErr_Clear()
    # Without Cython's own handling of references and errors.
    PyObject *BytesFrom "PyBytes_FromStringAndSize"(const char *data, Py_ssize_t size)
    char *BYTES "PyBytes_AS_STRING"(PyObject *o)
    int _PyBytes_Resize(PyObject **o, Py_ssize_t size)
    int Resize "PyByteArray_Resize"(object o, Py_ssize_t size)
    PyObject *CallMethodOneArg "PyObject_CallMethodOneArg"(PyObject *o, PyObject *name, PyObject *arg)

cdef extern from "<sys/socket.h>" nogil:
    int c_shutdown "shutdown"(int fd, int how)
    int c_setsockopt "setsockopt"(int fd, int level, int name, const void *value, socklen_t size)
    int SHUT_WR
    int SOCK_STREAM
    int AF_INET
    int AF_INET6

cdef extern from "<netinet/in.h>" nogil:
    int IPPROTO_TCP

cdef extern from "<netinet/tcp.h>" nogil:
    int TCP_NODELAY

cdef extern from "<poll.h>" nogil:
    cdef struct pollfd:
        int fd
        short events
        short revents
    int POLLOUT
    int c_poll "poll"(pollfd *fds, unsigned long count, int timeout)

cdef enum:
    IOV_MAX = 64
    # Bytes. What is not larger is received into the loop's own buffer and copied.
    SMALL_READ = 4096
    # Written in a turn to one transport, and sent together at its end.
    BATCH_MAX = 256 * 1024
    LARGE_WRITE = 32 * 1024

# Received and written data comes in blocks that grow and shrink, and a StreamReader's buffer with each read. At first the
# GNU C library gives each one of 128 KiB, and each free end of its heap, back to the kernel at once, to get it anew, page
# fault by page fault. The first large block that is freed teaches it to keep those that are smaller (mallopt(3), "dynamic
# mmap threshold"), so here is one.
PyMem_RawFree(PyMem_RawMalloc(1024 * 1024))

cdef object BufferedProtocol = _protocols.BufferedProtocol
cdef object StreamReaderProtocol = _streams.StreamReaderProtocol
cdef object set_result_unless_cancelled = _futures._set_result_unless_cancelled
cdef object is_finalizing = sys.is_finalizing
cdef int LOG_THRESHOLD = _constants.LOG_THRESHOLD_FOR_CONNLOST_WRITES
cdef bint attach_takes_transport = sys.version_info >= (3, 13)
cdef str WRITABLE_TYPES = (
    "bytes, bytearray, or memoryview object" if sys.version_info >= (3, 14) else "bytes-like object"
)
cdef object s_data_received = "data_received"
cdef object s_get_buffer = "get_buffer"
cdef object s_buffer_updated = "buffer_updated"
cdef object s_eof_received = "eof_received"


class _StreamTransportFacade(_transports._FlowControlMixin, _transports.Transport):
    """What ``isinstance`` sees: asyncio's classes have slots, a C class can't inherit them."""

    __slots__ = ()


_StreamTransportFacade.__name__ = _StreamTransportFacade.__qualname__ = "StreamTransport"
cdef object facade = _StreamTransportFacade
cdef int (*serve_quietly)(PyObject *, uint32_t) noexcept


cdef int attach(object server, object transport) except -1:
    if attach_takes_transport:
        server._attach(transport)
    else:
        server._attach()
    return 0


cdef int detach(object server, object transport) except -1:
    if attach_takes_transport:
        server._detach(transport)
    else:
        server._detach()
    return 0


cdef StreamTransport stream_of_fd(Scheduler loop, int fd, int family, int proto, object protocol,
                                  object waiter, object server, sockaddr_storage *peer, socklen_t length):
    """The transport of a connection that has no socket object; it owns fd from here on. length: 0 without a peer."""
    cdef StreamTransport self = StreamTransport.__new__(StreamTransport)
    self.loop = loop
    self.family = family
    self.kind = SOCK_STREAM
    self.proto = proto
    self.fd = fd
    try:
        if 0 < length <= RAW_SIZE and family in (AF_INET, AF_INET6):
            memcpy(self.peer_raw, peer, length)
            self.peer_length = length
        else:
            self.extra = {"peername": address_object(peer, length)}
        self._begin(protocol, waiter, server)
    except BaseException:
        if self.desc is not NULL:
            loop.close_descriptor(self)
        self.release_socket()
        self.fd = -1
        raise
    return self


def connected_stream(Scheduler loop, sock, protocol, waiter):
    """The transport of what a socket.socket has connected to; the socket is used up."""
    cdef sockaddr_storage peer
    cdef socklen_t length = sizeof(peer)
    cdef int family = family_of(sock)
    cdef int proto = sock.proto
    cdef int fd = sock.detach()
    if c_getpeername(fd, <sockaddr *>&peer, &length) != 0:
        # It has gone again.
        length = 0
    return stream_of_fd(loop, fd, family, proto, protocol, waiter, None, &peer, length)


cdef class StreamTransport(SocketTransport):
    """asyncio.Transport over a connected stream socket."""

    # What asyncio's start_tls and sendfile ask for.
    _start_tls_compatible = True
    _sendfile_compatible = _constants._SendfileMode.TRY_NATIVE
    max_size = SCRATCH_SIZE

    def __init__(self, loop, sock, protocol, waiter=None, extra=None, server=None):
        self.adopt(loop, sock, extra)
        try:
            self._begin(protocol, waiter, server)
        except BaseException:
            self.disown()
            raise

    def _begin(self, protocol, waiter, server):
        cdef int one = 1
        cdef Scheduler loop = self.loop
        loop.need_netpoller()
        self.set_protocol(protocol)
        if self.family in (AF_INET, AF_INET6):
            c_setsockopt(self.fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one))
        loop.open_descriptor(self, self.fd, NP_STREAM)
        if server is not None:
            if server._sockets is None and server._waiters is None:
                # The server has closed and said so; the connection is served all the same.
                server = None
            elif server._sockets is None:
                # Closed, yet waiting for its connections: one more of them.
                if attach_takes_transport:
                    server._clients.add(self)
                else:
                    server._active_count += 1
            else:
                attach(server, self)
        self.server = server
        self.context = PyContext_CopyCurrent()
        loop.call_soon(protocol.connection_made, self, context=self.context)
        # Reading starts when connection_made has been called.
        loop.call_soon(self._start_reading)
        if waiter is not None:
            loop.call_soon(set_result_unless_cancelled, waiter, None)

    @property
    def __class__(self):
        return facade

    # ---- what asyncio's own code looks at ------------------------------------

    @property
    def _server(self):
        return self.server

    @property
    def _empty_waiter(self):
        return self.empty_waiter

    def __del__(self):
        self.unclosed()

    cdef int abandon(self) except -1:
        SocketTransport.abandon(self)
        server = self.server
        if server is not None:
            self.server = None
            if not is_finalizing():
                # Else nobody waits for the server any more, and what it counts with may be gone.
                detach(server, self)
        return 0

    cdef bint reads(self):
        return self.started and not self._paused and not self._closing and not self.read_eof

    cdef size_t buffered_bytes(self):
        return np_pending(self.desc) if self.desc is not NULL else 0

    def set_write_buffer_limits(self, high=None, low=None):
        """asyncio.WriteTransport.set_write_buffer_limits, in bytes."""
        if not self.is_foreign():
            self.send_what_waits()
        SocketTransport.set_write_buffer_limits(self, high, low)

    def get_write_buffer_size(self):
        """asyncio.WriteTransport.get_write_buffer_size, in bytes."""
        # Another thread only looks: what may follow from a send is for the one that runs the callbacks.
        if not self.is_foreign():
            self.send_what_waits()
        return self.waiting_bytes()

    def abort(self):
        """asyncio.WriteTransport.abort: closes at once; what is queued is not sent."""
        cdef int failed = 0
        self.check_caller()
        self.send_what_waits()
        if self._conn_lost or self.loop is None:
            return
        # This waits for what the netpoller has in hand. If that has failed, write() would have said so.
        self.discard()
        if self.desc is not NULL:
            failed = np_send_error(self.desc)
        if failed:
            self._fatal_error(os_error(failed), "Fatal write error on socket transport")
        else:
            self._force_close(None)

    cdef int send_what_waits(self) except -1:
        """For who looks, what waits for the end of the turn only is in the socket already, as far as it takes it."""
        cdef ssize_t left
        if not self.writing and self.buffered_bytes():
            left = np_flush(self.loop.engine, self.desc)
            self.loop.reap()
        else:
            left = np_send_error(self.desc)
        if left < 0:
            self._fatal_error(os_error(left), "Fatal write error on socket transport")
        elif left > 0:
            # write() would have said so.
            self.update_hold()
            self.pause_protocol()
        return 0

    # ---- the protocol ----------------------------------------------------------

    def set_protocol(self, protocol):
        """asyncio.BaseTransport.set_protocol."""
        if self.room == 0:
            self.room = SMALL_READ
        protocol = adopted(protocol)
        self.decrypts = is_tls(protocol)
        # asyncio asks for the class; uvloop, and so its users, also for the methods.
        self.buffered = isinstance(protocol, BufferedProtocol) or (
            hasattr(protocol, "get_buffer") and not hasattr(protocol, "data_received")
        )
        self.put_protocol(protocol)
        self.feeds = type(protocol) is StreamReaderProtocol

    # ---- reading ---------------------------------------------------------------

    def _start_reading(self):
        if self._closing or self._paused or self.started or self.desc is NULL:
            return
        self.started = True
        np_read_ahead(self.loop.engine, self.desc, 1)
        if np_more(self.desc):
            self.loop.still.append(self)

    def pause_reading(self):
        """asyncio.ReadTransport.pause_reading: no data_received until resumed."""
        if self._closing or self._paused:
            return
        self._paused = True
        np_read_ahead(self.loop.engine, self.desc, 0)
        self.update_hold()
        if self.loop._debug:
            logger.debug("%r pauses reading", self)

    def resume_reading(self):
        """asyncio.ReadTransport.resume_reading; never calls the protocol itself."""
        if self._closing or not self._paused:
            return
        self._paused = False
        self.started = True
        np_read_ahead(self.loop.engine, self.desc, 1)
        self.update_hold()
        if not self.read_eof and self.desc is not NULL and np_more(self.desc):
            self.loop.still.append(self)
        if self.loop._debug:
            logger.debug("%r resumes reading", self)

    cdef int on_ready(self, uint32_t bits) except -1:
        self.pending_bits |= bits
        if self.queued:
            return 0
        if bits & NP_W or self.reads():
            self.queued = True
            self.loop.ring_push(self)
        return 0

    cdef int run(self) except -1:
        cdef uint32_t bits = self.pending_bits
        self.queued = False
        cdef Scheduler loop = self.loop
        self.pending_bits = 0
        if loop is None or serve_quietly(<PyObject *>self, bits) == 0:
            return 0
        return self.run_failed(loop, bits)

    cdef int serve(self, uint32_t bits) except -1:
        cdef object context
        cdef bint send_failed = np_send_error(self.desc) != 0
        if send_failed:
            bits |= NP_W | NP_ERR
        if bits & (NP_R | NP_HUP | NP_ERR) and self.reads():
            context = self.context
            if not self.enter(context, bits):
                return 0
            try:
                if self.decrypts:
                    self.read_records()
                elif self.buffered:
                    self.read_buffered()
                else:
                    self.read()
            finally:
                PyContext_Exit(context)
            if send_failed and self.desc is not NULL and self.reads() and np_more(self.desc):
                # What the peer sent before it reset the connection comes first.
                return self.on_ready(NP_W | NP_ERR)
        if bits & NP_W and self.loop is not None:
            if self.sendfile_writer is not None:
                handle = self.sendfile_writer
                self.sendfile_writer = None
                self.loop.ring_push(handle)
            # A protocol that wrote in resume_writing() may be paused although all is sent by now.
            if self.unsent() or self._protocol_paused or bits & NP_ERR:
                context = self.context
                if not self.enter(context, NP_W):
                    return 0
                try:
                    self.write_progress()
                finally:
                    PyContext_Exit(context)
        return 0

    cdef int read(self) except -1:
        cdef ssize_t count
        cdef PyObject *data = NULL
        cdef PyObject *result
        if self._conn_lost:
            return 0
        if self.feeds:
            reader = reader_to_feed(self.protocol)
            if reader is not None:
                return self.read_into(reader)
        if self.room <= SMALL_READ:
            # Small pieces are copied: a bytes object of the right size is cheaper than one that has to shrink.
            count = np_recv(self.loop.engine, self.desc, self.loop.scratch, SCRATCH_SIZE)
            if count > 0:
                data = received(self.loop, count)
        else:
            data = BytesFrom(NULL, self.room)
            if data is NULL:
                return self.reading_failed("Fatal read error on socket transport")
            count = np_recv(self.loop.engine, self.desc, BYTES(data), self.room)
            if count > 0 and count != <ssize_t>self.room:
                _PyBytes_Resize(&data, count)
            elif count <= 0:
                Py_DECREF(data)
        if count > 0:
            if data is NULL:
                # Without the memory for them the bytes are lost: the stream must not go on.
                self.reading_failed("Fatal read error on socket transport")
            else:
                self.expect(count)
                protocol = self.protocol  # it may be replaced meanwhile
                result = CallMethodOneArg(<PyObject *>protocol, <PyObject *>s_data_received, data)
                Py_DECREF(data)
                if result is NULL:
                    self.reading_failed("Fatal error: protocol.data_received() call failed.")
                else:
                    Py_DECREF(result)
            return self.after_read()
        return self.nothing_read(count)

    cdef int nothing_read(self, ssize_t count) except -1:
        if np_send_error(self.desc):
            # serve() tells of that: the end of what can be read comes from it.
            return 0
        if count == 0:
            return self.received_eof()
        if count != -EAGAIN:
            self._fatal_error(os_error(count), "Fatal read error on socket transport")
        return 0

    cdef int reading_failed(self, str message) except -1:
        """The error indicator is set."""
        try:
            raise_what_is_set()
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            self._fatal_error(exc, message)
        return 0

    cdef void expect(self, size_t count) noexcept:
        """How much room the next read gets, by what this one has found."""
        if count >= self.room or (self.room <= SMALL_READ and count > SMALL_READ):
            self.room = SMALL_READ
            while self.room <= count and self.room < SCRATCH_SIZE:
                self.room *= 2
        elif count < self.room // 4 and self.room > SMALL_READ:
            self.room //= 2

    cdef int read_into(self, object reader) except -1:
        cdef object buffer = reader._buffer
        cdef Py_ssize_t size = PyByteArray_GET_SIZE(buffer)
        cdef ssize_t count
        if self.room > SMALL_READ and Resize(buffer, size + self.room) == 0:
            # Large pieces are received to where they belong.
            count = np_recv(self.loop.engine, self.desc, PyByteArray_AS_STRING(buffer) + size, self.room)
            PyByteArray_Resize(buffer, size + (count if count > 0 else 0))
        else:
            PyErr_Clear()
            count = np_recv(self.loop.engine, self.desc, self.loop.scratch, SCRATCH_SIZE)
            if count > 0:
                try:
                    append(buffer, self.loop.scratch, count)
                except BaseException as exc:
                    self._fatal_error(exc, "Fatal error: protocol.data_received() call failed.")
                    return 0
        if count <= 0:
            return self.nothing_read(count)
        self.expect(count)
        try:
            fed(reader, size + count)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            self._fatal_error(exc, "Fatal error: protocol.data_received() call failed.")
        return self.after_read()

    cdef int read_records(self) except -1:
        cdef ssize_t count
        cdef object protocol = self.protocol  # it may be replaced meanwhile
        if self._conn_lost:
            return 0
        count = np_recv(self.loop.engine, self.desc, self.loop.scratch, SCRATCH_SIZE)
        if count <= 0:
            return self.nothing_read(count)
        try:
            records_received(protocol, self.loop.scratch, count)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            self._fatal_error(exc, "Fatal error: protocol.buffer_updated() call failed.")
        return self.after_read()

    cdef int read_buffered(self) except -1:
        cdef Py_buffer view
        cdef ssize_t count
        cdef object buf
        if self._conn_lost:
            return 0
        if not np_more(self.desc):
            return 0
        try:
            buf = PyObject_CallMethodOneArg(self.protocol, s_get_buffer, -1)
            if not len(buf):
                raise RuntimeError("get_buffer() returned an empty buffer")
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            self._fatal_error(exc, "Fatal error: protocol.get_buffer() call failed.")
            return 0
        if self.desc is NULL or self._conn_lost:
            return 0
        try:
            PyObject_GetBuffer(buf, &view, PyBUF_WRITABLE)
        except (BufferError, TypeError):
            # The words of socket.recv_into, which asyncio calls here.
            self._fatal_error(
                TypeError(f"recv_into() argument 1 must be read-write bytes-like object, not {type(buf).__name__}"),
                "Fatal read error on socket transport",
            )
            return 0
        except Exception as exc:
            self._fatal_error(exc, "Fatal read error on socket transport")
            return 0
        count = np_recv(self.loop.engine, self.desc, view.buf, view.len)
        PyBuffer_Release(&view)
        if count > 0:
            try:
                PyObject_CallMethodOneArg(self.protocol, s_buffer_updated, count)
            except (SystemExit, KeyboardInterrupt):
                raise
            except BaseException as exc:
                self._fatal_error(exc, "Fatal error: protocol.buffer_updated() call failed.")
            return self.after_read()
        return self.nothing_read(count)

    cdef int after_read(self) except -1:
        # One bounded read a turn; the rest waits on the list of the still readable.
        if self.desc is not NULL and not self._paused and not self._closing and np_more(self.desc):
            self.loop.still.append(self)
        return 0

    cdef int received_eof(self) except -1:
        if self.loop._debug:
            logger.debug("%r received EOF", self)
        try:
            keep_open = PyObject_CallMethodNoArgs(self.protocol, s_eof_received)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            self._fatal_error(exc, "Fatal error: protocol.eof_received() call failed.")
            return 0
        self.read_eof = True
        if keep_open:
            self.update_hold()
        else:
            self.close()
        return 0

    # ---- writing ---------------------------------------------------------------

    def write(self, data):
        """asyncio.WriteTransport.write: sends at once what the socket takes."""
        cdef Py_buffer view
        if isinstance(data, bytes):
            if self._eof:
                raise RuntimeError("Cannot call write() after write_eof()")
            self.send_or_queue(data, PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))
            return
        if not isinstance(data, (bytearray, memoryview)):
            raise TypeError(f"data argument must be a {WRITABLE_TYPES}, not {type(data).__name__!r}")
        if self._eof:
            raise RuntimeError("Cannot call write() after write_eof()")
        try:
            PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        except BufferError as exc:
            self._fatal_error(exc, "Fatal write error on socket transport")
            return
        try:
            self.send_or_queue(None, <const char *>view.buf, view.len)
        finally:
            PyBuffer_Release(&view)

    cdef int send_or_queue(self, object data, const char *buf, size_t size) except -1:
        cdef ssize_t sent
        if self.empty_waiter is not None:
            raise RuntimeError("unable to write; sendfile is in progress")
        self.check_caller()
        if size == 0:
            return 0
        if self._conn_lost:
            if self._conn_lost >= LOG_THRESHOLD:
                logger.warning("socket.send() raised exception.")
            self._conn_lost += 1
            return 0
        if self.desc is NULL:
            self.loop._check_closed()
            return 0
        cdef Leaves when = self.when(size)
        if when != BY_ITSELF:
            return self.hand_over(data, buf, size, when)
        sent = np_send(self.loop.engine, self.desc, buf, size)
        if <size_t>sent == size:
            return 0
        if sent < 0:
            self._fatal_error(os_error(sent), "Fatal write error on socket transport")
            return 0
        self.queue_rest(data, buf, size, sent)
        return self.pause_protocol()

    cdef Leaves when(self, size_t size):
        """When the loop is busy, what is written now leaves with the other writes of the turn.

        But a large write is sent while it is in the CPU's cache, with what waits already. If a callback writes more
        than one of those, the second and those that follow leave in larger pieces.
        """
        cdef np_sender sender = np_hand_over(self.loop.engine, self.desc, size)
        cdef bint again
        if self.let_go or (self.writing and sender != NP_BY_NETPOLLER):
            return BY_ITSELF
        if size < LARGE_WRITE:
            return WITH_THE_TURN if sender != NP_AT_ONCE else BY_ITSELF
        again = self.wrote_in == self.loop.head
        self.wrote_in = self.loop.head
        if again and self.loop.coalesces and self.loop.running:
            return WITH_THE_TURN
        if not np_pending(self.desc):
            return BY_ITSELF
        return WITH_THE_TURN if sender == NP_BY_NETPOLLER else WITH_WHAT_WAITS

    cdef int hand_over(self, object data, const char *buf, size_t size, Leaves when) except -1:
        """It is sent with other writes.  No event tells of it: see unsent().

        The protocol is paused for what the socket doesn't take, not for what only waits for the end of the turn. That
        is bounded by BATCH_MAX, or by a lower limit of the user's.
        """
        cdef int error
        cdef size_t waits
        if data is None:
            data = PyBytes_FromStringAndSize(buf, size)
            buf = PyBytes_AS_STRING(data)
        Py_INCREF(data)
        error = np_queue_for_turn(self.loop.engine, self.desc, buf, size, <void *>data)
        if error < 0:
            Py_DECREF(<void *>data)
            self._fatal_error(os_error(error), "Fatal write error on socket transport")
            return 0
        if when == WITH_WHAT_WAITS:
            # A failure comes as an event.
            np_flush(self.loop.engine, self.desc)
        waits = np_pending(self.desc)
        if waits <= self._high_water:
            return 0
        if waits <= BATCH_MAX and self._high_water >= HIGH_WATER:
            np_tell_full(self.loop.engine, self.desc)
            return 0
        if np_flush(self.loop.engine, self.desc) > 0:
            self.update_hold()
            self.pause_protocol()
        self.loop.reap()
        return 0

    cdef bint unsent(self) except -1:
        """Whether something is queued, or the netpoller has just failed to send it. What becomes of it comes as an event."""
        if self.writing or self.desc is NULL:
            return self.writing
        if np_pending(self.desc):
            self.writing = np_tell(self.loop.engine, self.desc)
        return self.writing or np_send_error(self.desc) != 0

    cdef int queue_rest(self, object data, const char *buf, size_t size, size_t sent) except -1:
        """Queues buf[sent:]; data is the bytes object that owns buf, None to copy."""
        cdef int error
        if data is None:
            data = PyBytes_FromStringAndSize(buf + sent, size - sent)
            buf = PyBytes_AS_STRING(data)
        else:
            buf += sent
        # Before the engine has it: the netpoller may finish it at any time after.
        self.begin_queueing()
        Py_INCREF(data)
        error = np_queue(self.loop.engine, self.desc, buf, size - sent, <void *>data)
        if error < 0:
            Py_DECREF(<void *>data)
            self._fatal_error(os_error(error), "Fatal write error on socket transport")
        elif not np_tell(self.loop.engine, self.desc):
            # The engine has sent it already, or failed to: no event need come of it. To ask before it was queued
            # would not do: what the netpoller was just finishing would have been the answer.
            self.on_ready(NP_W)
        return 0

    cdef int begin_queueing(self) except -1:
        if not self.writing:
            self.writing = True
            self.update_hold()
        return 0

    def writelines(self, list_of_data):
        """asyncio.WriteTransport.writelines: one vectored send."""
        cdef iovec iov[IOV_MAX]
        cdef Py_buffer views[IOV_MAX]
        cdef int count = 0
        cdef int i
        cdef ssize_t sent
        cdef size_t left
        if self._eof:
            raise RuntimeError("Cannot call writelines() after write_eof()")
        if self.empty_waiter is not None:
            raise RuntimeError("unable to writelines; sendfile is in progress")
        self.check_caller()
        if not list_of_data:
            return
        parts = list(list_of_data)
        if len(parts) > IOV_MAX:
            self.write(b"".join(parts))
            return
        owners = []
        try:
            for part in parts:
                if not isinstance(part, (bytes, bytearray, memoryview)):
                    # asyncio's text; other objects with a buffer are taken as it takes them.
                    part = memoryview(part)
                PyObject_GetBuffer(part, &views[count], PyBUF_SIMPLE)
                count += 1
                if views[count - 1].len == 0:
                    count -= 1
                    PyBuffer_Release(&views[count])
                    continue
                owners.append(part if isinstance(part, bytes) else None)
                iov[count - 1].iov_base = views[count - 1].buf
                iov[count - 1].iov_len = views[count - 1].len
            if count == 0:
                return
            if self._conn_lost:
                if self._conn_lost >= LOG_THRESHOLD:
                    logger.warning("socket.send() raised exception.")
                self._conn_lost += 1
                return
            if self.desc is NULL:
                self.loop._check_closed()
                return
            left = 0
            for i in range(count):
                left += iov[i].iov_len
            when = self.when(left)
            if when != BY_ITSELF:
                # In one piece, so that it leaves in one.
                data = b"".join(parts)
                self.hand_over(data, PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data), when)
                return
            sent = np_sendv(self.loop.engine, self.desc, iov, count)
            if sent < 0:
                self._fatal_error(os_error(sent), "Fatal write error on socket transport")
                return
            left = sent
            for i in range(count):
                if left >= iov[i].iov_len:
                    left -= iov[i].iov_len
                    continue
                self.queue_rest(owners[i], <const char *>iov[i].iov_base, iov[i].iov_len, left)
                left = 0
                if self._conn_lost:
                    return
        finally:
            for i in range(count):
                PyBuffer_Release(&views[i])
        self.pause_protocol()

    cdef int pause_protocol(self) except -1:
        if np_pending(self.desc) > self._high_water:
            self.unsent()  # the event is what resumes it
        return SocketTransport.pause_protocol(self)

    cdef int write_progress(self) except -1:
        cdef ssize_t left
        cdef bint was_writing = self.writing
        if self._conn_lost:
            return 0
        left = np_flush(self.loop.engine, self.desc)
        self.loop.reap()
        if left < 0:
            self.writing = False
            exc = os_error(left)
            self._fatal_error(exc, "Fatal write error on socket transport")
            if self.empty_waiter is not None and not self.empty_waiter.done():
                self.empty_waiter.set_exception(exc)
            return 0
        if left == 0:
            self.writing = False
        if not self._protocol_paused and <size_t>left > self._high_water:
            if np_full(self.loop.engine, self.desc) or self._high_water < HIGH_WATER:
                self.pause_protocol()
            else:
                # The netpoller is just sending it.
                np_tell_full(self.loop.engine, self.desc)
        self.resume_protocol()
        if not was_writing or self.desc is NULL or self.writing:
            return 0
        # What resume_writing() has written since has an event only if somebody asks for it.
        if (self._closing or self._eof or self.empty_waiter is not None) and self.unsent():
            return 0
        if self.empty_waiter is not None and not self.empty_waiter.done():
            self.empty_waiter.set_result(None)
        if self._closing:
            if not self._conn_lost:
                self._conn_lost += 1
                self._call_connection_lost(None)
        else:
            if self._eof:
                try:
                    self.shut_down_writing()
                except OSError as exc:
                    # The peer has gone meanwhile.
                    self._fatal_error(exc, "Fatal write error on socket transport")
                    return 0
            self.update_hold()
        return 0

    cdef int update_hold(self) except -1:
        """The loop keeps the transport alive while something can come of it, as asyncio's selector does."""
        cdef bint wanted = self._closing or not (self._paused or self.read_eof) or self.unsent()
        if wanted == self.let_go and self.desc is not NULL:
            self.let_go = not wanted
            if wanted:
                self.loop.hold(self)
            else:
                self.loop.unhold(self)
        return 0

    cdef int shut_down_writing(self) except -1:
        if self.shut:
            # In resume_writing(), by write_eof().
            return 0
        self.shut = True
        if c_shutdown(self.fd, SHUT_WR) < 0:
            raise OSError(errno, os.strerror(errno))
        return 0

    def write_eof(self):
        """asyncio.WriteTransport.write_eof: half-close when all is sent."""
        if self._closing or self._eof:
            return
        self.check_caller()
        self.send_what_waits()
        if self._closing:
            return
        self._eof = True
        if not self.unsent():
            self.shut_down_writing()

    def can_write_eof(self):
        """asyncio.WriteTransport.can_write_eof: always true."""
        return True

    def _make_empty_waiter(self):
        if self.empty_waiter is not None:
            raise RuntimeError("Empty waiter is already set")
        self.empty_waiter = self.loop.create_future()
        if not self.unsent():
            self.empty_waiter.set_result(None)
        return self.empty_waiter

    def _reset_empty_waiter(self):
        self.empty_waiter = None

    cdef int watch_writable(self, Handle handle) except -1:
        """One run of handle when the socket is writable (loop.sock_sendfile)."""
        cdef pollfd p
        self.sendfile_writer = handle
        np_notify_writable(self.loop.engine, self.desc, 1)
        # It may have become writable before we asked.
        p.fd = self.fd
        p.events = POLLOUT
        p.revents = 0
        if c_poll(&p, 1, 0) > 0:
            np_notify_writable(self.loop.engine, self.desc, 0)
            self.on_ready(NP_W)
        return 0

    cdef bint unwatch_writable(self) except -1:
        if self.sendfile_writer is None:
            return False
        self.sendfile_writer.cancel()
        self.sendfile_writer = None
        return True

    # ---- closing ---------------------------------------------------------------

    def close(self):
        """asyncio.BaseTransport.close: sends what is queued, then closes."""
        if self._closing:
            return
        self.check_caller()
        self.send_what_waits()
        if self._closing:
            return
        self._closing = True
        if not self.unsent():
            self._conn_lost += 1
            self.loop.call_soon(self._call_connection_lost, None, context=self.context)

    def _force_close(self, exc):
        cdef ssize_t left = 0
        if not self._conn_lost and not self.writing and self.buffered_bytes() and self.fd >= 0:
            # It waits for the end of the turn only: asyncio would have sent it.
            left = np_flush(self.loop.engine, self.desc)
            if left < 0 and exc is None:
                exc = os_error(left)
        SocketTransport._force_close(self, exc)

    cdef int discard(self) except -1:
        if self.desc is not NULL:
            np_discard(self.loop.engine, self.desc)
            self.loop.reap()
        self.writing = False
        return 0

    def _call_connection_lost(self, exc):
        if self.loop is None:
            return
        try:
            self.lose_connection(exc)
        finally:
            self.unwatch_writable()
            if self.empty_waiter is not None and not self.empty_waiter.done():
                self.empty_waiter.set_exception(ConnectionError("Connection is closed by peer"))
            server = self.server
            if server is not None:
                self.server = None
                detach(server, self)


cdef int serve_stream(StreamTransport transport, uint32_t bits) except -1:
    return transport.serve(bits)


# -1 with the error indicator set, where Cython's own call would raise.
serve_quietly = <int (*)(PyObject *, uint32_t) noexcept>serve_stream
