from netpoll_loop._core.descriptor cimport Descriptor
from netpoll_loop._core.engine cimport sockaddr_storage, socklen_t
from netpoll_loop._core.handles cimport Runnable
from netpoll_loop._core.scheduler cimport Scheduler
from netpoll_loop._core.watch cimport WatchLoop


cdef class Listener(Descriptor):
    cdef Scheduler loop
    cdef object sock
    cdef object protocol_factory
    cdef object sslcontext
    cdef object server
    cdef object context
    cdef object handshake_timeout
    cdef object shutdown_timeout
    # Connections accepted in a turn, at most.
    cdef Py_ssize_t accepts
    cdef int family
    cdef int proto
    # Set while a retry timer runs, after the process ran out of descriptors.
    cdef object retry

    cdef int deliver(self, int fd, sockaddr_storage *address, socklen_t length) except -1
    cdef int accept_failed(self, int error) except -1


cdef class Accepted(Runnable):
    cdef Listener listener
    cdef object context
    cdef int fd
    cdef socklen_t length
    cdef sockaddr_storage address

    cdef int connect(self) except -1


cdef class ServingLoop(WatchLoop):
    pass
