from netpoll_loop._core.handles cimport Runnable
from netpoll_loop._core.scheduler cimport Scheduler


cdef class Admission:
    # Code objects of the coroutines whose tasks have entered bodies.
    cdef set blockers
    # Steps that wait, in order; the one that went back into the ready queue last.
    cdef object waiting
    cdef Runnable admitted

    cdef int note(self) except -1
    cdef bint may_block(self, object runnable) except -1
    cdef Py_ssize_t sift(self, Scheduler loop, bint room) except -1
    cdef int admit_all(self, Scheduler loop) except -1
