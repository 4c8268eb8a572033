from cpython.object cimport PyObject
from libc.stdint cimport uint32_t

from netpoll_loop._core.address cimport RAW_SIZE
from netpoll_loop._core.descriptor cimport Descriptor
from netpoll_loop._core.engine cimport socklen_t
from netpoll_loop._core.scheduler cimport Scheduler


cdef enum:
    # asyncio's limit of the write buffer, in bytes, if the user sets no other one.
    HIGH_WATER = 64 * 1024


cdef class SocketTransport(Descriptor):
    # Users put attributes on transports.
    cdef dict __dict__
    cdef Scheduler loop
    cdef object protocol
    cdef object sock
    cdef object extra
    # Copied when the connection was made; all of the protocol's callbacks run in it.
    cdef object context

    cdef public size_t _high_water
    cdef public size_t _low_water
    cdef public int _conn_lost
    cdef public bint _protocol_paused
    cdef public bint _closing
    cdef public bint _paused
    cdef bint started
    # The fd is closed, or about to be.
    cdef bint released
    # What has happened since the last run.
    cdef uint32_t pending_bits

    # Of the socket: address family, type, protocol.
    cdef int family
    cdef int kind
    cdef int proto
    # Lengths of the addresses below; 0: not known (yet).
    cdef socklen_t peer_length
    cdef socklen_t name_length
    cdef char peer_raw[RAW_SIZE]
    cdef char name_raw[RAW_SIZE]

    cdef int adopt(self, Scheduler loop, object sock, object extra) except -1
    cdef bint enter(self, object context, uint32_t bits) except -1
    cdef int check_caller(self) except -1
    cdef object make_socket(self, int fd)
    cdef object own_name(self, object closed)
    cdef int ask_for_peer(self) except -1
    cdef int disown(self) except -1
    cdef int run_failed(self, Scheduler loop, uint32_t bits) except -1
    cdef int run_again(self, uint32_t bits) except -1
    cdef Scheduler current_loop(self)
    cdef object current_protocol(self)
    cdef int put_protocol(self, object protocol) except -1
    cdef int let_go_of_all(self) except -1
    cdef bint is_foreign(self) except -1
    cdef size_t waiting_bytes(self) except? -1
    cdef bint reads(self)
    cdef size_t buffered_bytes(self)
    cdef int discard(self) except -1
    cdef int remember_names(self) except -1
    cdef int unclosed(self) except -1
    cdef int abandon(self) except -1
    cdef int pause_protocol(self) except -1
    cdef int resume_protocol(self) except -1
    cdef int lose_connection(self, object exc) except -1
    cdef int release_socket(self) except -1


cdef object os_error(ssize_t negative)
cdef PyObject *received(Scheduler loop, Py_ssize_t size) noexcept
