# cython: language_level=3
"""The base of everything that is open in the engine.

The engine knows a descriptor by a borrowed pointer to this object; the
scheduler's table of open descriptors keeps it alive for as long as it is open.
"""

cdef class Descriptor(Runnable):
    def __cinit__(self):
        self.fd = -1

    cdef int on_ready(self, uint32_t bits) except -1:
        """An event has come.  Runs no Python callback: it queues what is to run."""
        raise NotImplementedError

    cdef int on_evicted(self, bint loop_closing) except -1:
        """It is no longer open: the loop closes, or another object has its fd number."""
        raise NotImplementedError
