from libc.stdint cimport uint32_t

from netpoll_loop._core.descriptor cimport Descriptor
from netpoll_loop._core.engine cimport np_kind
from netpoll_loop._core.handles cimport Handle
from netpoll_loop._core.scheduler cimport Scheduler


cdef object fileno_of(object fileobj)


cdef class FdWatch(Descriptor):
    cdef WatchLoop loop
    cdef Handle reader
    cdef Handle writer
    # Futures of sock_* coroutines that wait for a direction, first come first.
    cdef list read_waiters
    cdef list write_waiters
    # The socket object that registered it, by weak reference; None for a bare fd.
    cdef object owner
    # The socket that sock_* coroutines wait on; pinned: close() by others waits for them.
    cdef object pinned
    cdef np_kind kind
    # For NP_WAIT: a sock_recv has emptied the socket, and no event has come since.
    cdef bint drained
    # Directions whose waiters are to be woken when it runs.
    cdef uint32_t pending_bits

    cdef int arm(self) except 1
    cdef int update(self) except -1
    cdef int give_up(self) except -1
    cdef Handle swap(self, bint writes, Handle handle)
    cdef int push_handle(self, Handle handle) except -1
    cdef int wake(self, list waiters) except -1
    cdef int pin(self, object sock) except -1
    cdef int unpin(self) except -1


cdef class WatchLoop(Scheduler):
    cdef FdWatch watch_of(self, int fd, object owner)
    cdef FdWatch find_watch(self, int fd)
    cdef FdWatch watched(self, object fileobj)
    cdef int add_callback(self, int fd, object owner, bint writes, Handle handle) except -1
    cdef object remove_callback(self, object fd, bint writes)
