cdef object adopted(object protocol)
cdef bint is_tls(object protocol)
cdef int records_received(object protocol, const char *records, Py_ssize_t size) except -1
