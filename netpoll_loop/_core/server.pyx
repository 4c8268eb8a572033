# cython: language_level=3
"""Listening sockets: accept, and hand each connection to a transport.

asyncio's Server object stays asyncio's; this is what its ``_start_serving``
registers.  Turn for turn it does what asyncio does: the event queues the
listener, the listener accepts what waits (at most the backlog, and 32) and queues
each connection, whose run makes the protocol and the transport.  A connection that
was accepted is delivered, also after the server was closed.
"""

from cpython.contextvars cimport PyContext_CopyCurrent, PyContext_Enter, PyContext_Exit
from libc.errno cimport EAGAIN, ECONNABORTED, EINTR, EMFILE, ENFILE, ENOBUFS, ENOMEM
from libc.stdint cimport uint32_t

from netpoll_loop._core.address cimport SocketType, address_object
from netpoll_loop._core.engine cimport (
    NP_LISTEN, NP_R, np_accept, np_accepted, np_arm,
)
from netpoll_loop._core.stream cimport stream_of_fd
from netpoll_loop._core.watch cimport WatchLoop, fileno_of

import os
import socket as _socket
import sys
from asyncio import constants as _constants
from asyncio import trsock as _trsock
from asyncio.log import logger

cdef extern from "<unistd.h>" nogil:
    int c_close "close"(int fd)


cdef int accepts_more = sys.version_info >= (3, 14)
# In a turn. The peers of these have something to do while the next are accepted, and the loop's other descriptors aren't kept
# waiting for a whole backlog. With 16, connections of one request each are served more slowly.
cdef Py_ssize_t ACCEPTS = 32


cdef class Accepted(Runnable):
    """A connection on its way from the listener to its transport."""

    def __dealloc__(self):
        if self.fd >= 0:
            c_close(self.fd)

    cdef int connect(self) except -1:
        cdef Listener listener = self.listener
        cdef Scheduler loop = listener.loop
        cdef int fd = self.fd
        protocol = None
        if loop._closed:
            return 0
        try:
            if listener.sslcontext is None:
                protocol = listener.protocol_factory()
                self.fd = -1
                stream_of_fd(loop, fd, listener.family, listener.proto, protocol,
                             None, listener.server, &self.address, self.length)
            else:
                self.fd = -1
                conn = SocketType(listener.family, _socket.SOCK_STREAM, listener.proto, fileno=fd)
                extra = {"peername": address_object(&self.address, self.length)}
                loop.create_task(loop._accept_connection2(
                    listener.protocol_factory, conn, extra, listener.sslcontext, listener.server,
                    listener.handshake_timeout, listener.shutdown_timeout,
                ))
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            context = {
                "message": "Error on transport creation for incoming connection",
                "exception": exc,
            }
            if protocol is not None:
                context["protocol"] = protocol
            loop.call_exception_handler(context)
        return 0

    cdef int run(self) except -1:
        cdef object loop = self.listener.loop
        PyContext_Enter(self.context)
        try:
            self.connect()
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            self.failed(loop, exc)
        finally:
            PyContext_Exit(self.context)
        return 0


cdef class Listener(Descriptor):
    """One listening socket that is being served."""

    def __init__(self, loop, sock, protocol_factory, sslcontext, server, backlog,
                 handshake_timeout, shutdown_timeout):
        self.loop = loop
        self.sock = sock
        self.fd = fileno_of(sock)
        self.family = sock.family
        self.proto = sock.proto
        self.protocol_factory = protocol_factory
        self.sslcontext = sslcontext
        self.server = server
        # From 3.14 on asyncio accepts one more; before that it would never accept with a backlog of 0, and spin.
        self.accepts = min(max(backlog + accepts_more, 1), ACCEPTS)
        self.handshake_timeout = handshake_timeout
        self.shutdown_timeout = shutdown_timeout
        self.context = PyContext_CopyCurrent()

    def start(self):
        """Begins to accept."""
        cdef int error
        self.loop.need_netpoller()
        self.loop.open_descriptor(self, self.fd, NP_LISTEN)
        error = np_arm(self.loop.engine, self.desc, NP_R)
        if error < 0:
            self.loop.close_descriptor(self)
            raise OSError(-error, os.strerror(-error))

    def stop(self):
        """Accepts no more; what was accepted already is delivered."""
        cdef sockaddr_storage address
        cdef socklen_t length = 0
        cdef int fd
        if self.retry is not None:
            self.retry.cancel()
            self.retry = None
        if self.desc is NULL:
            return
        np_arm(self.loop.engine, self.desc, 0)
        while True:
            length = sizeof(address)
            fd = np_accepted(self.loop.engine, self.desc, &address, &length)
            if fd < 0:
                break
            self.deliver(fd, &address, length)
        self.loop.close_descriptor(self)

    def __repr__(self):
        return f"<Listener fd={self.fd} server={self.server!r}>"

    cdef int on_ready(self, uint32_t bits) except -1:
        if not self.queued:
            self.queued = True
            self.loop.ring_push(self)
        return 0

    cdef int run(self) except -1:
        cdef sockaddr_storage address
        cdef socklen_t length
        cdef int fd
        cdef Py_ssize_t i
        self.queued = False
        if self.desc is NULL or self.retry is not None:
            return 0
        PyContext_Enter(self.context)
        try:
            for i in range(self.accepts):
                length = sizeof(address)
                fd = np_accept(self.loop.engine, self.desc, &address, &length)
                if fd >= 0:
                    self.deliver(fd, &address, length)
                    if self.desc is NULL:
                        return 0
                elif fd in (-EAGAIN, -EINTR, -ECONNABORTED):
                    break
                else:
                    self.accept_failed(-fd)
                    return 0
            else:
                # There may be more, and where the netpoller looks for the worker that doesn't poll in each turn.
                self.on_ready(NP_R)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            self.failed(self.loop, exc)
        finally:
            PyContext_Exit(self.context)
            if self.desc is not NULL:
                self.loop.rearm.append(self)
        return 0

    cdef int deliver(self, int fd, sockaddr_storage *address, socklen_t length) except -1:
        cdef Accepted accepted = Accepted.__new__(Accepted)
        accepted.fd = fd
        accepted.listener = self
        accepted.context = PyContext_CopyCurrent()
        accepted.address = address[0]
        accepted.length = length
        if self.loop._debug:
            logger.debug("%r got a new connection from %r: fd=%d", self.server,
                         address_object(address, length), fd)
        self.loop.ring_push(accepted)
        return 0

    cdef int accept_failed(self, int error) except -1:
        cdef object exc = OSError(error, os.strerror(error))
        if error in (EMFILE, ENFILE, ENOBUFS, ENOMEM):
            self.loop.call_exception_handler({
                "message": "socket.accept() out of system resource",
                "exception": exc,
                "socket": _trsock.TransportSocket(self.sock),
            })
            if self.desc is not NULL:
                np_arm(self.loop.engine, self.desc, 0)
                self.retry = self.loop.call_later(_constants.ACCEPT_RETRY_DELAY, self._accept_again)
            return 0
        self.loop.call_exception_handler({
            "message": "socket.accept() failed",
            "exception": exc,
            "socket": _trsock.TransportSocket(self.sock),
        })
        return 0

    def _accept_again(self):
        cdef int error = 0
        self.retry = None
        if self.desc is not NULL:
            error = np_arm(self.loop.engine, self.desc, NP_R)
        if error < 0:
            self.accept_failed(-error)

    cdef int on_evicted(self, bint loop_closing) except -1:
        if self.retry is not None:
            self.retry.cancel()
            self.retry = None
        return 0


cdef class ServingLoop(WatchLoop):
    """The watch loop, with listening sockets."""

    def _start_serving(self, protocol_factory, sock, sslcontext=None, server=None, backlog=100,
                       ssl_handshake_timeout=_constants.SSL_HANDSHAKE_TIMEOUT,
                       ssl_shutdown_timeout=_constants.SSL_SHUTDOWN_TIMEOUT):
        self._check_closed()
        Listener(self, sock, protocol_factory, sslcontext, server, backlog,
                 ssl_handshake_timeout, ssl_shutdown_timeout).start()

    def _stop_listening(self, sock):
        listener = self.find_descriptor(sock.fileno())
        if isinstance(listener, Listener):
            listener.stop()
