from libc.stdint cimport uint32_t

from netpoll_loop._core.engine cimport np_desc
from netpoll_loop._core.handles cimport Runnable


cdef class Descriptor(Runnable):
    # NULL while it isn't open in the engine.
    cdef np_desc *desc
    cdef readonly int fd
    # Whether it waits in the ready queue.
    cdef bint queued
    cdef object __weakref__

    cdef int on_ready(self, uint32_t bits) except -1
    cdef int on_evicted(self, bint loop_closing) except -1
