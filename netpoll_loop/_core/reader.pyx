# cython: language_level=3
"""asyncio.StreamReader, fed without the two Python methods that lie between it and its transport.

They are ``StreamReaderProtocol.data_received`` and ``StreamReader.feed_data``: who
has replaced either, or has made a class of one, gets the call.
"""

from cpython.object cimport PyObject
from libc.string cimport memcpy

from asyncio import streams as _streams

cdef extern from "Python.h":
    bint PyMethod_Check(object o)
    PyObject *PyMethod_GET_FUNCTION(object o)
    Py_ssize_t PyByteArray_GET_SIZE(object o)
    char *PyByteArray_AS_STRING(object o)
    int PyByteArray_Resize(object o, Py_ssize_t size) except -1

cdef object StreamReader = _streams.StreamReader
cdef object StreamReaderProtocol = _streams.StreamReaderProtocol
cdef object asyncios_data_received = StreamReaderProtocol.data_received
cdef object asyncios_feed_data = StreamReader.feed_data


cdef inline bint is_method(object method, object function) noexcept:
    return PyMethod_Check(method) and PyMethod_GET_FUNCTION(method) == <PyObject *>function


cdef object reader_to_feed(object protocol):
    """The reader behind protocol; None where anything of it isn't asyncio's own, or it has had its end."""
    cdef object reader
    if type(protocol) is not StreamReaderProtocol or not is_method(protocol.data_received, asyncios_data_received):
        return None
    reference = protocol._stream_reader_wr
    reader = reference() if reference is not None else None
    if type(reader) is not StreamReader or reader._eof or not is_method(reader.feed_data, asyncios_feed_data):
        return None
    return reader if type(reader._buffer) is bytearray else None


cdef int append(object buffer, const char *data, Py_ssize_t count) except -1:
    """Appends to the reader's bytearray. Raises BufferError if it is exported, MemoryError."""
    cdef Py_ssize_t size = PyByteArray_GET_SIZE(buffer)
    PyByteArray_Resize(buffer, size + count)
    memcpy(PyByteArray_AS_STRING(buffer) + size, data, count)
    return 0


cdef int fed(object reader, Py_ssize_t size) except -1:
    """What follows when its buffer has grown, to so many bytes: it wakes who waits, and stops the transport if it is full."""
    cdef object waiter = reader._waiter
    if waiter is not None:
        reader._waiter = None
        if not waiter.cancelled():
            waiter.set_result(None)
    if size > 2 * reader._limit and reader._transport is not None and not reader._paused:
        try:
            reader._transport.pause_reading()
        except NotImplementedError:
            reader._transport = None
        else:
            reader._paused = True
    return 0
