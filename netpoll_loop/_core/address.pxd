from netpoll_loop._core.engine cimport sockaddr_storage, socklen_t

cdef extern from "<sys/socket.h>" nogil:
    cdef struct sockaddr:
        pass
    int c_getpeername "getpeername"(int fd, sockaddr *address, socklen_t *length)

# What fits an IPv4 or IPv6 address; others are kept as Python objects.
cdef enum:
    RAW_SIZE = 28

# socket.socket, which tests replace by something that is no class.
cdef object SocketType

cdef object address_object(sockaddr_storage *address, socklen_t length)
cdef object family_of(object sock)
cdef object kind_of(object sock)
