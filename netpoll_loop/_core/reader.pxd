cdef object reader_to_feed(object protocol)
cdef int append(object buffer, const char *data, Py_ssize_t count) except -1
cdef int fed(object reader, Py_ssize_t size) except -1
