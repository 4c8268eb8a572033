from libc.stdint cimport uint32_t

from netpoll_loop._core.engine cimport sockaddr_storage, socklen_t
from netpoll_loop._core.handles cimport Handle
from netpoll_loop._core.scheduler cimport Scheduler
from netpoll_loop._core.transport cimport SocketTransport


cdef enum Leaves:
    # When what is written now is sent: at once; at once, behind what waits; with the other writes of the turn.
    BY_ITSELF
    WITH_WHAT_WAITS
    WITH_THE_TURN


cdef class StreamTransport(SocketTransport):
    cdef object server
    cdef object empty_waiter
    # A writer callback of loop.sock_sendfile, while it sends past us.
    cdef Handle sendfile_writer

    cdef public bint _eof
    # Hidden from loop._transports while loop.sendfile owns the socket.
    cdef public bint _hidden
    cdef bint buffered
    # The protocol is asyncio.StreamReaderProtocol: see reader.pyx.
    cdef bint feeds
    # It is our SSLProtocol: see tls.pyx.
    cdef bint decrypts
    # Bytes that the next read asks for, if it isn't a small one.
    cdef size_t room
    # End of file was seen and the protocol keeps the connection half-open.
    cdef bint read_eof
    # Something was queued and is not known to be sent: an NP_W is to come, after which write_progress() does
    # what waits for it (resume, close, eof).
    cdef bint writing
    # The callback in which it was written to last, as the place of the ready queue.
    cdef size_t wrote_in
    # shutdown(SHUT_WR) was called. A second one fails if the peer has closed meanwhile.
    cdef bint shut
    # The loop holds it by a weak reference only.
    cdef bint let_go

    cdef int serve(self, uint32_t bits) except -1
    cdef int read(self) except -1
    cdef int read_records(self) except -1
    cdef int read_buffered(self) except -1
    cdef int after_read(self) except -1
    cdef int received_eof(self) except -1
    cdef int write_progress(self) except -1
    cdef int send_or_queue(self, object data, const char *buf, size_t size) except -1
    cdef int queue_rest(self, object data, const char *buf, size_t size, size_t sent) except -1
    cdef int nothing_read(self, ssize_t count) except -1
    cdef int reading_failed(self, str message) except -1
    cdef void expect(self, size_t count) noexcept
    cdef int read_into(self, object reader) except -1
    cdef int begin_queueing(self) except -1
    cdef Leaves when(self, size_t size)
    cdef int send_what_waits(self) except -1
    cdef int hand_over(self, object data, const char *buf, size_t size, Leaves when) except -1
    cdef bint unsent(self) except -1
    cdef int update_hold(self) except -1
    cdef int shut_down_writing(self) except -1
    cdef int watch_writable(self, Handle handle) except -1
    cdef bint unwatch_writable(self) except -1


cdef StreamTransport stream_of_fd(Scheduler loop, int fd, int family, int proto, object protocol,
                                  object waiter, object server, sockaddr_storage *peer, socklen_t length)
