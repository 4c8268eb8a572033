from netpoll_loop._core.engine cimport sockaddr_storage, socklen_t

# What fits an IPv4 or IPv6 address; others are kept as Python objects.
cdef enum:
    RAW_SIZE = 28

cdef object address_object(sockaddr_storage *address, socklen_t length)
