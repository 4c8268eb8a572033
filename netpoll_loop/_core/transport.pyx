# cython: language_level=3, binding=False, always_allow_keywords=False, embedsignature=True, embedsignature.format=clinic
"""What stream and datagram transports have in common.

The socket and its names, the protocol, write-buffer limits, and the way a
transport closes.  Worker only, but for what only asks (get_extra_info and the
like): that is for any thread, as asyncio's lookups in a dict are.  The socket is
pinned (``socket._io_refs``) while the engine may touch its fd, so that a
``close()`` behind the transport's back can't free the number.
"""

from cpython.contextvars cimport PyContext_Enter
from cpython.object cimport PyObject
from libc.stdint cimport uint32_t
from libc.string cimport memcpy

from netpoll_loop._core.address cimport SocketType, address_object, c_getpeername, family_of, kind_of, sockaddr
from netpoll_loop._core.engine cimport socklen_t, sockaddr_storage
from netpoll_loop._core.freethreading cimport FREE_THREADED
from netpoll_loop._core.handles cimport raise_what_is_set

cimport cython

import os
import sys
import warnings
from asyncio import trsock as _trsock
from asyncio.log import logger

cdef extern from "Python.h":
    """
    /* It gets other bytes: their hash isn't known. */
    static inline void np_forget_hash(PyObject *bytes) {
        _Py_COMP_DIAG_PUSH
        _Py_COMP_DIAG_IGNORE_DEPR_DECLS
        ((PyBytesObject *)bytes)->ob_shash = -1;
        _Py_COMP_DIAG_POP
    }
    """
    PyObject **_PyObject_GetDictPtr(object o)
    void Py_XDECREF(PyObject *o)
    # Without Cython's own references.
    PyObject *BytesFrom "PyBytes_FromStringAndSize"(const char *data, Py_ssize_t size)
    char *BYTES "PyBytes_AS_STRING"(PyObject *o)
    Py_ssize_t SIZE "PyBytes_GET_SIZE"(PyObject *o)
    Py_ssize_t REFERENCES "Py_REFCNT"(PyObject *o)
    void Py_INCREF(PyObject *o)
    void np_forget_hash(PyObject *bytes)

cdef extern from "<sys/socket.h>" nogil:
    int c_getsockname "getsockname"(int fd, sockaddr *address, socklen_t *length)
    int AF_INET
    int AF_INET6
    int AF_UNIX

cdef extern from "<unistd.h>" nogil:
    int c_close "close"(int fd)

cdef enum:
    # Bytes of an object for which it has memory at hand; ... and that a loop keeps.
    POOLED = 479
    KEPT = 4096

cdef object TransportSocket = _trsock.TransportSocket
# For finalizers: at the interpreter's end the names of a module are gone before they run.
cdef object warn = warnings.warn


cdef object os_error(ssize_t negative):
    """The OSError (or subclass) of a negative errno value."""
    return OSError(<int>-negative, os.strerror(<int>-negative))


cdef PyObject *received(Scheduler loop, Py_ssize_t size) noexcept:
    """A new reference to a bytes object of what is in scratch; NULL, and an exception is set.

    Messages of one size are frequent. More than POOLED bytes are malloc's, whose way for them is long: where nobody has the
    object before this one any more, its memory is used again.
    """
    cdef PyObject *made
    cdef PyObject *last = <PyObject *>loop.delivered
    if POOLED < size <= KEPT and REFERENCES(last) == 1 and SIZE(last) == size:
        memcpy(BYTES(last), loop.scratch, size)
        np_forget_hash(last)
        Py_INCREF(last)
        return last
    made = BytesFrom(loop.scratch, size)
    if POOLED < size <= KEPT and made is not NULL and not FREE_THREADED:
        loop.delivered = <object>made
    return made


cdef class SocketTransport(Descriptor):
    def __cinit__(self):
        # Made once a user sets an attribute. Until then the interpreter finds the methods of the transport faster.
        cdef PyObject **attributes = _PyObject_GetDictPtr(self)
        Py_XDECREF(attributes[0])
        attributes[0] = NULL
        self._high_water = HIGH_WATER
        self._low_water = 16 * 1024

    cdef int adopt(self, Scheduler loop, object sock, object extra) except -1:
        """Takes the socket over, and pins it."""
        self.loop = loop
        self.sock = sock
        self.fd = sock.fileno()
        self.family = family_of(sock)
        self.kind = kind_of(sock)
        self.proto = sock.proto
        if extra:
            self.extra = dict(extra)
        if self.extra is None or "peername" not in self.extra:
            self.ask_for_peer()
        if isinstance(sock, SocketType):
            sock._io_refs += 1
        return 0

    cdef bint enter(self, object context, uint32_t bits) except -1:
        """Enters the protocol's context; False if a body of blocking() is in it: at its end the bits are served."""
        try:
            PyContext_Enter(context)
        except RuntimeError:
            if not self.loop.hold_back(self):
                raise
            self.pending_bits |= bits
            self.queued = True
            return False
        return True

    cdef int check_caller(self) except -1:
        """Raises inside a body of blocking()."""
        if self.loop is not None and self.loop.inside:
            self.loop.check_caller(None, None)
        return 0

    cdef int ask_for_peer(self) except -1:
        # As a Python object only if somebody asks for it.
        cdef socklen_t length = RAW_SIZE
        if type(self.sock) is SocketType and self.family in (AF_INET, AF_INET6):
            if c_getpeername(self.fd, <sockaddr *>self.peer_raw, &length) == 0 and length <= RAW_SIZE:
                self.peer_length = length
            else:
                self.set_extra("peername", None)
            return 0
        try:
            self.set_extra("peername", self.sock.getpeername())
        except OSError:
            self.set_extra("peername", None)
        return 0

    cdef int disown(self) except -1:
        """The transport could not be made: the caller keeps its socket."""
        cdef object sock = self.sock
        if self.desc is not NULL:
            self.loop.close_descriptor(self)
        self.sock = None
        self.fd = -1
        if isinstance(sock, SocketType):
            sock._decref_socketios()
        return 0

    cdef int run_failed(self, Scheduler loop, uint32_t bits) except -1:
        """The error indicator is set, and the bits are what was to be served."""
        try:
            raise_what_is_set()
        except (SystemExit, KeyboardInterrupt):
            self.run_again(bits)
            raise
        except BaseException as exc:
            self.failed(loop, exc)
        return 0

    cdef int run_again(self, uint32_t bits) except -1:
        """What an exception kept it from doing waits for the next turn: no edge need come again."""
        self.pending_bits |= bits
        if self.desc is not NULL and not self.queued:
            self.queued = True
            self.loop.ring_push(self)
        return 0

    # ---- what other threads may ask ------------------------------------------

    # Without a GIL, what such a thread is about to return could be freed. What is replaced here is freed after the
    # section: that may run any code, and would open it.

    @cython.critical_section
    cdef Scheduler current_loop(self):
        return self.loop

    @cython.critical_section
    cdef object current_protocol(self):
        return self.protocol

    @cython.critical_section
    cdef int put_protocol(self, object protocol) except -1:
        cdef object former = self.protocol
        self.protocol = protocol
        return 0

    @cython.critical_section
    cdef int let_go_of_all(self) except -1:
        cdef object protocol = self.protocol
        cdef Scheduler loop = self.loop
        self.protocol = None
        self.loop = None
        return 0

    cdef bint is_foreign(self) except -1:
        """Whether another thread than this one runs the callbacks now."""
        cdef Scheduler loop = self.current_loop()
        return loop is not None and loop.thread_id != 0 and not loop.has_p()

    cdef size_t waiting_bytes(self) except? -1:
        """buffered_bytes() for any thread."""
        cdef Scheduler loop = self.current_loop()
        cdef size_t size = 0
        if loop is not None:
            # In the section in which its engine is freed.
            with cython.critical_section(loop):
                size = self.buffered_bytes()
        return size

    # What a kind of transport defines.

    cdef bint reads(self):
        raise NotImplementedError

    cdef size_t buffered_bytes(self):
        raise NotImplementedError

    cdef int discard(self) except -1:
        raise NotImplementedError

    # ---- what asyncio's own code looks at ------------------------------------

    @property
    def _loop(self):
        return self.current_loop()

    @property
    def _protocol(self):
        return self.current_protocol()

    @property
    def _sock_fd(self):
        return self.fd

    @property
    def _sock(self):
        cdef int fd
        cdef object sock
        with cython.critical_section(self):
            sock = self.sock
            fd = -1 if self.released else self.fd
        return sock if sock is not None or fd < 0 else self.make_socket(fd)

    cdef object make_socket(self, int fd):
        """The socket object of a connection that has only an fd.

        To make it is Python code: meanwhile another thread may do the same, or close the fd. Then the object doesn't own
        the fd, and must not close it when it is collected.
        """
        cdef object made = SocketType.__new__(SocketType)
        cdef object sock = None
        try:
            made.__init__(self.family, self.kind, self.proto, fd)
            made._io_refs += 1
            with cython.critical_section(self):
                if self.sock is None and self.fd == fd and not self.released:
                    self.sock = made
                sock = self.sock
        finally:
            if sock is not made:
                made.detach()
        return sock

    @property
    def _extra(self):
        for name in ("socket", "sockname", "peername"):
            self.get_extra_info(name)
        return self.extra

    @cython.critical_section
    def set_extra(self, name, value):
        if self.extra is None:
            self.extra = {}
        self.extra[name] = value

    def get_extra_info(self, name, default=None):
        """asyncio.BaseTransport.get_extra_info: socket, sockname, peername."""
        if self.extra is not None and name in self.extra:
            return self.extra[name]
        if name == "peername":
            if not self.peer_length:
                return default
            value = address_object(<sockaddr_storage *>self.peer_raw, self.peer_length)
        elif name == "sockname":
            value = self.own_name(default)
            if value is default:
                return default
        elif name == "socket":
            sock = self._sock
            if sock is None:
                # Closed, and never asked for before: a closed socket stands for it.
                try:
                    sock = SocketType(self.family, self.kind, self.proto)
                    sock.close()
                except OSError:
                    # Out of descriptors, of which that takes one: then one that was never open.
                    sock = SocketType.__new__(SocketType)
                    sock._io_refs = 0
                    sock._closed = True
            value = TransportSocket(sock)
        else:
            return default
        self.set_extra(name, value)
        return value

    cdef object own_name(self, object closed):
        """What the socket is bound to, None if it can't be asked; `closed` if it wasn't asked before the close."""
        cdef sockaddr_storage name
        cdef socklen_t length = sizeof(name)
        cdef bint known = False
        cdef int fd
        cdef object sock
        with cython.critical_section(self):
            sock = self.sock
            fd = -1 if self.released else self.fd
            if self.name_length:
                length = self.name_length
                memcpy(&name, self.name_raw, length)
                known = True
            elif fd >= 0 and self.family in (AF_INET, AF_INET6, AF_UNIX) and (sock is None or type(sock) is SocketType):
                known = c_getsockname(fd, <sockaddr *>&name, &length) == 0
        if known:
            return address_object(&name, length)
        if fd < 0:
            return closed
        try:
            if sock is None:
                sock = self.make_socket(fd)
            return closed if sock is None else sock.getsockname()
        except OSError:
            return None

    cdef int remember_names(self) except -1:
        # They stay known after the close, as in asyncio.
        cdef sockaddr_storage name
        cdef socklen_t length = sizeof(name)
        if self.extra is not None and "sockname" in self.extra:
            return 0
        if self.family not in (AF_INET, AF_INET6):
            self.get_extra_info("sockname")
        elif c_getsockname(self.fd, <sockaddr *>&name, &length) == 0 and length <= RAW_SIZE:
            with cython.critical_section(self):
                memcpy(self.name_raw, &name, length)
                self.name_length = length
        return 0

    def __repr__(self):
        cdef Scheduler loop = self.current_loop()
        info = [self.__class__.__name__]
        if loop is None:
            info.append("closed")
        elif self._closing:
            info.append("closing")
        info.append(f"fd={self.fd}")
        if loop is not None and not loop._closed:
            info.append("read=polling" if self.reads() else "read=idle")
            size = self.waiting_bytes()
            info.append(f"write=<{'polling' if size else 'idle'}, bufsize={size}>")
        return "<{}>".format(" ".join(info))

    cdef int unclosed(self) except -1:
        """The finalizer of a transport that nobody closed; runs on any thread, and without P."""
        if self.fd < 0 or self.loop is None:
            return 0
        try:
            warn(f"unclosed transport {self!r}", ResourceWarning, source=self)
        finally:
            if self.desc is not NULL and self.loop._thread_id is not None:
                # The engine may be about to report it: it lives on until the worker has closed it.
                self.loop.hold(self)
                self.loop.call_soon_threadsafe(self._abandon)
            else:
                self.abandon()
        return 0

    def _abandon(self):
        if self.loop is not None:
            self.abandon()

    cdef int abandon(self) except -1:
        if self.desc is not NULL:
            self.loop.close_descriptor(self)
        self.release_socket()
        self.fd = -1
        self.loop = None
        return 0

    def get_protocol(self):
        """asyncio.BaseTransport.get_protocol."""
        return self.current_protocol()

    # ---- the write buffer --------------------------------------------------------

    def get_write_buffer_size(self):
        """asyncio.WriteTransport.get_write_buffer_size, in bytes."""
        return self.waiting_bytes()

    def get_write_buffer_limits(self):
        """asyncio.WriteTransport.get_write_buffer_limits: (low, high), in bytes."""
        return (self._low_water, self._high_water)

    def set_write_buffer_limits(self, high=None, low=None):
        """asyncio.WriteTransport.set_write_buffer_limits, in bytes."""
        if high is None:
            high = HIGH_WATER if low is None else 4 * low
        if low is None:
            low = high // 4
        if not high >= low >= 0:
            raise ValueError(f"high ({high!r}) must be >= low ({low!r}) must be >= 0")
        self._high_water = min(high, sys.maxsize)
        self._low_water = min(low, sys.maxsize)
        if not self.is_foreign():
            self.pause_protocol()

    def _set_write_buffer_limits(self, high=None, low=None):
        self.set_write_buffer_limits(high, low)

    cdef int pause_protocol(self) except -1:
        if self._protocol_paused or self.buffered_bytes() <= self._high_water:
            return 0
        self._protocol_paused = True
        try:
            # In a copy: a write() in one of the protocol's own callbacks has entered the context already.
            self.context.copy().run(self.protocol.pause_writing)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            self.loop.call_exception_handler({
                "message": "protocol.pause_writing() failed",
                "exception": exc,
                "transport": self,
                "protocol": self.protocol,
            })
        return 0

    cdef int resume_protocol(self) except -1:
        if not self._protocol_paused or self.buffered_bytes() > self._low_water:
            return 0
        self._protocol_paused = False
        try:
            self.protocol.resume_writing()
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            self.loop.call_exception_handler({
                "message": "protocol.resume_writing() failed",
                "exception": exc,
                "transport": self,
                "protocol": self.protocol,
            })
        return 0

    # ---- reading, as far as it is common -------------------------------------------

    def is_reading(self):
        """asyncio.ReadTransport.is_reading."""
        return not self._closing and not self._paused

    # ---- closing ---------------------------------------------------------------

    def is_closing(self):
        """asyncio.BaseTransport.is_closing."""
        return bool(self._closing)

    def abort(self):
        """asyncio.WriteTransport.abort: closes at once; what is queued is not sent."""
        self.check_caller()
        self._force_close(None)

    def _fatal_error(self, exc, message="Fatal error on transport"):
        loop = self.loop
        if loop is None:
            return
        if isinstance(exc, OSError):
            if loop._debug:
                logger.debug("%r: %s", self, message, exc_info=exc)
        else:
            loop.call_exception_handler({
                "message": message,
                "exception": exc,
                "transport": self,
                "protocol": self.protocol,
            })
        self._force_close(exc)

    def _force_close(self, exc):
        if self._conn_lost or self.loop is None:
            return
        self.discard()
        self._closing = True
        self._conn_lost += 1
        self.loop.call_soon(self._call_connection_lost, exc, context=self.context)

    def _call_connection_lost(self, exc):
        if self.loop is not None:
            self.lose_connection(exc)

    cdef int lose_connection(self, object exc) except -1:
        """Tells the protocol, then leaves the engine and frees the socket."""
        try:
            if self.protocol is not None:
                self.protocol.connection_lost(exc)
        finally:
            self.remember_names()
            self.loop.close_descriptor(self)
            self.release_socket()
            self.context = None
            self.let_go_of_all()
        return 0

    cdef int release_socket(self) except -1:
        # The engine has let go of the fd: now its number may be freed.
        cdef object sock
        cdef int fd = self.fd
        with cython.critical_section(self):
            # Another thread that is in make_socket() comes too late.
            self.released = True
            sock = self.sock
            self.sock = None
        if sock is not None:
            if isinstance(sock, SocketType):
                sock._decref_socketios()
            sock.close()
        elif fd >= 0:
            c_close(fd)
        return 0

    cdef int on_evicted(self, bint loop_closing) except -1:
        if loop_closing or self.loop is None:
            return 0
        # The fd was closed behind our back and its number belongs to somebody else.
        cdef object sock
        with cython.critical_section(self):
            sock = self.sock
            self.fd = -1
            self.sock = None
        if isinstance(sock, SocketType) and sock.fileno() >= 0:
            sock.detach()
        self._force_close(OSError(9, os.strerror(9)))
        return 0
