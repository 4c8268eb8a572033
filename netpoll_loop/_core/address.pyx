# cython: language_level=3
"""Socket addresses: from the kernel's form to the tuples of the socket module."""

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.string cimport strlen

import _socket
import os
import socket

cdef extern from "<netinet/in.h>" nogil:
    cdef struct in_addr:
        pass
    cdef struct in6_addr:
        pass
    cdef struct sockaddr_in:
        unsigned short sin_port
        in_addr sin_addr
    cdef struct sockaddr_in6:
        unsigned short sin6_port
        unsigned int sin6_flowinfo
        in6_addr sin6_addr
        unsigned int sin6_scope_id
    unsigned short ntohs(unsigned short)
    unsigned int ntohl(unsigned int)
    int AF_INET
    int AF_INET6
    int AF_UNIX

cdef extern from "<arpa/inet.h>" nogil:
    const char *inet_ntop(int family, const void *source, char *target, socklen_t size)

cdef extern from "<sys/un.h>" nogil:
    cdef struct sockaddr_un:
        char sun_path[108]

SocketType = socket.socket
cdef object raw_family = _socket.socket.family
cdef object raw_kind = _socket.socket.type


cdef object family_of(object sock):
    """sock.family, as a plain number: making an enum's member of it costs more than a system call."""
    return raw_family.__get__(sock) if type(sock) is SocketType else sock.family


cdef object kind_of(object sock):
    """sock.type, in the same way."""
    return raw_kind.__get__(sock) if type(sock) is SocketType else sock.type


cdef object address_object(sockaddr_storage *address, socklen_t length):
    """What socket.getpeername() would return; None for a family it doesn't know."""
    cdef char text[64]
    cdef sockaddr_in *v4
    cdef sockaddr_in6 *v6
    cdef Py_ssize_t size
    cdef char *path
    if length == 0:
        return None
    if address.ss_family == AF_INET:
        v4 = <sockaddr_in *>address
        inet_ntop(AF_INET, &v4.sin_addr, text, sizeof(text))
        return (text[:strlen(text)].decode("ascii"), ntohs(v4.sin_port))
    if address.ss_family == AF_INET6:
        v6 = <sockaddr_in6 *>address
        inet_ntop(AF_INET6, &v6.sin6_addr, text, sizeof(text))
        return (
            text[:strlen(text)].decode("ascii"),
            ntohs(v6.sin6_port),
            ntohl(v6.sin6_flowinfo),
            v6.sin6_scope_id,
        )
    if address.ss_family == AF_UNIX:
        size = <Py_ssize_t>length - 2
        if size <= 0:
            return ""
        path = (<sockaddr_un *>address).sun_path
        if path[0] == 0:
            # The abstract namespace: bytes, as the socket module gives them.
            return PyBytes_FromStringAndSize(path, size)
        return os.fsdecode(path[:min(<Py_ssize_t>strlen(path), size)])
    return None
