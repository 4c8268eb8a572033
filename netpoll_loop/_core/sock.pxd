from netpoll_loop._core.server cimport ServingLoop
from netpoll_loop._core.watch cimport FdWatch


cdef class SockLoop(ServingLoop):
    # Coroutines that wait on a socket.
    cdef Py_ssize_t parked

    cdef int check_sock(self, object sock) except -1
    cdef FdWatch socket_watch(self, object sock)
    cdef object park_on(self, FdWatch watch, list waiters, bint first)
    cdef int take_out(self, list waiters, object waiter) except -1
    cdef int leave(self, FdWatch watch, list waiters, object waiter) except -1
