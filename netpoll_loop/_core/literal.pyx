# cython: language_level=3
"""getaddrinfo of plain address literals: an earlier answer of the C library, with another address and port in it.

A literal is plain if inet_pton(3) takes it. What the C library answers to a family, type, protocol and flags is found
out in dns.py, where everything else about literals stands too. For all loops, from any thread: with the GIL held, or
under the lock of `templates`.
"""

cimport cython
from cpython.list cimport PyList_New, PyList_SET_ITEM
from cpython.ref cimport Py_INCREF
from libc.limits cimport INT_MAX, INT_MIN
from libc.string cimport strchr, strlen

from netpoll_loop._core.scheduler cimport Scheduler

import socket as _socket

cdef extern from "Python.h":
    bint PyLong_Check(object o)
    bint PyLong_CheckExact(object o)
    long PyLong_AsLongAndOverflow(object o, int *overflow) except? -1
    bint PyUnicode_CheckExact(object o)
    bint PyUnicode_IS_ASCII(object text)
    void *PyUnicode_DATA(object text)
    Py_ssize_t PyUnicode_GET_LENGTH(object text)
    object PyUnicode_FromString(const char *text)
    int PySys_Audit(const char *event, const char *format, ...) except -1

cdef extern from "<netinet/in.h>" nogil:
    int AF_INET
    int AF_INET6
    enum:
        INET6_ADDRSTRLEN

cdef extern from "<arpa/inet.h>" nogil:
    int inet_pton(int family, const char *source, void *target)
    const char *inet_ntop(int family, const void *source, char *target, unsigned int size)

cdef enum:
    # A program asks in a few ways only; who asks in more has the oldest forgotten.
    MAX_TEMPLATES = 64

cdef dict socket_names = vars(_socket)
# None if it was patched before this.
cdef object own_getaddrinfo = _socket.getaddrinfo if _socket.getaddrinfo.__module__ == "socket" else None


@cython.final
cdef class Template:
    """One way of asking, and the first three of each entry in the answer to it."""

    cdef bint ipv6
    cdef int family
    cdef int kind
    cdef int proto
    cdef int flags
    cdef list entries


# The youngest first. A template that is in here doesn't change.
cdef list templates = []


@cython.critical_section
cdef Template find(list among, bint ipv6, int family, int kind, int proto, int flags):
    cdef Template template
    for template in among:
        if (
            template.kind == kind
            and template.ipv6 == ipv6
            and template.family == family
            and template.proto == proto
            and template.flags == flags
        ):
            return template
    return None


@cython.critical_section
cdef int add(list to, Template template) except -1:
    to.insert(0, template)
    del to[MAX_TEMPLATES:]
    return 0


cdef inline bint is_patched() except -1:
    return socket_names["getaddrinfo"] is not own_getaddrinfo


cdef inline bint is_int(object number, int *value) except -1:
    """An int, and one of C's: then `value` is set."""
    cdef int overflow = 0
    cdef long found
    if not PyLong_Check(number):
        return False
    found = PyLong_AsLongAndOverflow(number, &overflow)
    if overflow or not INT_MIN <= found <= INT_MAX:
        return False
    value[0] = <int>found
    return True


cdef list look_up(object host, object port, object family, object kind, object proto, object flags):
    cdef int number, c_family, c_kind, c_proto, c_flags
    cdef const char *text
    cdef char packed[16]
    cdef char canonical[INET6_ADDRSTRLEN]
    cdef bint ipv6
    cdef Template template
    cdef tuple address, entry
    cdef list entries, answers
    cdef Py_ssize_t i
    if is_patched() or not (PyUnicode_CheckExact(host) and PyUnicode_IS_ASCII(host) and PyLong_CheckExact(port)):
        return None
    if not (is_int(port, &number) and 0 <= number <= 65535):
        return None
    if not (is_int(family, &c_family) and is_int(kind, &c_kind)):
        return None
    if not (is_int(proto, &c_proto) and is_int(flags, &c_flags)):
        return None
    text = <const char *>PyUnicode_DATA(host)
    if <Py_ssize_t>strlen(text) != PyUnicode_GET_LENGTH(host):
        return None
    ipv6 = strchr(text, c":") is not NULL
    if inet_pton(AF_INET6 if ipv6 else AF_INET, text, packed) != 1:
        return None
    template = find(templates, ipv6, c_family, c_kind, c_proto, c_flags)
    if template is None:
        return None
    # As socket.getaddrinfo does, so that who watches lookups sees this one.
    PySys_Audit("socket.getaddrinfo", "OOiii", <void *>host, <void *>port, c_family, c_kind, c_proto)
    if ipv6:
        inet_ntop(AF_INET6, packed, canonical, sizeof(canonical))
        address = (PyUnicode_FromString(canonical), port, 0, 0)
    else:
        # inet_pton takes only the one canonical spelling.
        address = (host, port)
    entries = template.entries
    answers = PyList_New(len(entries))
    for i in range(len(entries)):
        found_family, found_kind, found_proto = <tuple>entries[i]
        entry = (found_family, found_kind, found_proto, "", address)
        Py_INCREF(entry)
        PyList_SET_ITEM(answers, i, entry)
    return answers


def patched():
    """Somebody has patched socket.getaddrinfo, and wants to be asked, also about literals."""
    return is_patched()


def answer(host, port, family, type, proto, flags):
    """The answer to a plain literal; None if it isn't one, or if it is asked for in a new way.

    Raises only what audit hooks raise.
    """
    return look_up(host, port, family, type, proto, flags)


def answer_on(Scheduler loop not None, host, port, family, type, proto, flags):
    """`answer` on a loop; None, too, if it is closed or in debug mode."""
    if loop._closed or loop._debug:
        return None
    return look_up(host, port, family, type, proto, flags)


def learn(bint ipv6, int family, int type, int proto, int flags, list entries):
    """From now on plain literals are answered with these entries, tuples of family, type and protocol."""
    cdef Template template = find(templates, ipv6, family, type, proto, flags)
    if template is not None:
        return
    template = Template.__new__(Template)
    template.ipv6 = ipv6
    template.family = family
    template.kind = type
    template.proto = proto
    template.flags = flags
    template.entries = entries
    add(templates, template)
