# cython: language_level=3
"""TLS: asyncio's ``SSLProtocol``, with what it does for each read and each write compiled.

What happens once for a connection (handshake, shutdown, limits, errors) is
inherited, and so is the state: each attribute is asyncio's, and each function here
does what the method of its name does there.  Worker only.

In two ways OpenSSL is asked otherwise than asyncio asks it, which only the time
shows.  A read asks for no more than a record can hold (asyncio: for 256 KiB, and so
for a block of memory as large).  And who has read everything that came isn't told
so by an exception.
"""

from cpython.buffer cimport PyBUF_READ
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.memoryview cimport PyMemoryView_FromMemory

from netpoll_loop._core.reader cimport append, fed, reader_to_feed

from asyncio import sslproto as _sslproto

cdef extern from "Python.h":
    Py_ssize_t PyByteArray_GET_SIZE(object o)

cdef enum:
    # Bytes in a record, at most (RFC 8446, 5.1).
    RECORD_MAX = 16 * 1024

cdef object AsyncioProtocol = _sslproto.SSLProtocol
# A Python without the ssl module has neither.
cdef object SSLObject = None if _sslproto.ssl is None else _sslproto.ssl.SSLObject
cdef object AgainErrors = getattr(_sslproto, "SSLAgainErrors", ())
cdef object DO_HANDSHAKE = _sslproto.SSLProtocolState.DO_HANDSHAKE
cdef object WRAPPED = _sslproto.SSLProtocolState.WRAPPED
cdef object FLUSHING = _sslproto.SSLProtocolState.FLUSHING
cdef object SHUTDOWN = _sslproto.SSLProtocolState.SHUTDOWN


class SSLTransport(_sslproto._SSLProtocolTransport):
    """The transport that the application sees."""

    def write(self, data):
        """asyncio.WriteTransport.write."""
        cdef object protocol
        if not isinstance(data, (bytes, bytearray, memoryview)):
            raise TypeError(f"data: expecting a bytes-like instance, got {type(data).__name__}")
        if not data:
            return
        protocol = self._ssl_protocol
        if type(protocol) is SSLProtocol and protocol._state is WRAPPED and not protocol._write_backlog:
            encrypt(protocol, data)
        else:
            protocol._write_appdata((data,))


class SSLProtocol(_sslproto.SSLProtocol):
    """Between the transport of the socket, which it is the protocol of, and the application."""

    # What our transports receive doesn't go through the buffer that has this size.
    max_size = RECORD_MAX

    def _get_app_transport(self):
        if self._app_transport is None and not self._app_transport_created:
            self._app_transport = SSLTransport(self._loop, self)
            self._app_transport_created = True
            return self._app_transport
        return super()._get_app_transport()

    def _do_read(self):
        decrypt(self)

    def _process_outgoing(self):
        send(self)


cdef object ssl_protocol = SSLProtocol


cdef object adopted(object protocol):
    """protocol; if it is asyncio's SSLProtocol (start_tls() has made it), it is one of ours from here on."""
    cdef object transport
    if type(protocol) is AsyncioProtocol:
        transport = protocol._app_transport
        protocol.__class__ = ssl_protocol
        if type(transport) is _sslproto._SSLProtocolTransport:
            transport.__class__ = SSLTransport
        protocol._ssl_buffer = protocol._ssl_buffer_view = b""
    return protocol


cdef bint is_tls(object protocol):
    """Whether what is received for it may go to records_received()."""
    return type(protocol) is ssl_protocol


cdef int records_received(object protocol, const char *records, Py_ssize_t size) except -1:
    """What get_buffer() and buffer_updated() do with what was received. Of records, nothing is kept."""
    cdef object state
    protocol._incoming.write(PyMemoryView_FromMemory(<char *>records, size, PyBUF_READ))
    state = protocol._state
    if state is WRAPPED:
        decrypt(protocol)
    elif state is DO_HANDSHAKE:
        protocol._do_handshake()
    elif state is FLUSHING:
        protocol._do_flush()
    elif state is SHUTDOWN:
        protocol._do_shutdown()
    return 0


cdef int decrypt(object protocol) except -1:
    """_do_read."""
    cdef object state = protocol._state
    if state is not WRAPPED and state is not FLUSHING:
        return 0
    try:
        if not protocol._app_reading_paused:
            if protocol._app_protocol_is_buffer:
                deliver_into_buffer(protocol)
            else:
                deliver(protocol)
            if protocol._write_backlog:
                protocol._do_write()
            else:
                send(protocol)
        control_reading(protocol)
    except Exception as exc:
        protocol._fatal_error(exc, "Fatal error on SSL protocol")
    return 0


cdef object openssl(object protocol):
    """Its SSLObject, or what that hands read() and write() on to."""
    cdef object sslobj = protocol._sslobj
    return sslobj._sslobj if type(sslobj) is SSLObject else sslobj


cdef int deliver(object protocol) except -1:
    """_do_read__copied."""
    cdef object sslobj = openssl(protocol)
    cdef object incoming = protocol._incoming
    cdef bytes first = None
    cdef bytes chunk = None
    cdef list chunks = None
    cdef Py_ssize_t waits, wants
    try:
        while True:
            # Decrypted, it is never more than it was before.
            waits = incoming.pending
            wants = waits if 0 < waits < RECORD_MAX else RECORD_MAX
            chunk = sslobj.read(wants)
            if not chunk:
                break
            if first is None:
                first = chunk
            elif chunks is None:
                chunks = [first, chunk]
            else:
                chunks.append(chunk)
            # It would have filled the chunk if it had more of the record, and nothing has come of the next.
            if PyBytes_GET_SIZE(chunk) < wants and not incoming.pending:
                break
    except AgainErrors:
        pass
    if first is not None:
        give(protocol._app_protocol, first, chunks)
    if chunk is not None and not chunk:
        # close_notify
        protocol._call_eof_received()
        protocol._start_shutdown()
    return 0


cdef int deliver_into_buffer(object protocol) except -1:
    """_do_read__buffered, into a buffer of any type: asyncio's slices of a bytearray are copies (cpython gh-156275)."""
    cdef object sslobj = openssl(protocol)
    cdef object incoming = protocol._incoming
    cdef object buffer = memoryview(protocol._app_protocol_get_buffer(protocol._get_read_buffer_size()))
    cdef Py_ssize_t size = len(buffer)
    cdef Py_ssize_t filled = 0
    cdef Py_ssize_t count = 1
    try:
        while True:
            count = sslobj.read(size - filled, buffer[filled:] if filled else buffer)
            if count <= 0:
                break
            filled += count
            if filled == size:
                protocol._loop.call_soon(protocol._do_read)
                break
            if not incoming.pending:
                break
    except AgainErrors:
        pass
    if filled > 0:
        protocol._app_protocol_buffer_updated(filled)
    if count == 0:
        # close_notify
        protocol._call_eof_received()
        protocol._start_shutdown()
    return 0


cdef int give(object app_protocol, bytes first, list chunks) except -1:
    """chunks: all of them, if first is not the only one."""
    cdef object reader = reader_to_feed(app_protocol)
    cdef object buffer
    cdef bytes chunk
    if reader is None:
        app_protocol.data_received(first if chunks is None else b"".join(chunks))
        return 0
    buffer = reader._buffer
    if chunks is None:
        append(buffer, PyBytes_AS_STRING(first), PyBytes_GET_SIZE(first))
    else:
        for chunk in chunks:
            append(buffer, PyBytes_AS_STRING(chunk), PyBytes_GET_SIZE(chunk))
    return fed(reader, PyByteArray_GET_SIZE(buffer))


cdef int encrypt(object protocol, object data) except -1:
    """_write_appdata, of one piece, while nothing waits."""
    cdef Py_ssize_t size = len(data)
    cdef Py_ssize_t count = 0
    try:
        try:
            count = openssl(protocol).write(data)
        except AgainErrors:
            keep(protocol, data, size)
        except BaseException:
            keep(protocol, data, size)
            raise
        if 0 < count < size:
            keep(protocol, data[count:], size - count)
            protocol._do_write()
        else:
            send(protocol)
    except Exception as exc:
        protocol._fatal_error(exc, "Fatal error on SSL protocol")
    return 0


cdef int keep(object protocol, object data, Py_ssize_t size) except -1:
    protocol._write_backlog.append(data)
    protocol._write_buffer_size += size
    return 0


cdef int send(object protocol) except -1:
    """_process_outgoing."""
    cdef object outgoing = protocol._outgoing
    cdef object records
    if not protocol._ssl_writing_paused:
        records = outgoing.read()
        if records:
            protocol._transport.write(records)
    # Of _control_app_writing, the question alone.
    size = outgoing.pending + protocol._write_buffer_size
    if size <= protocol._outgoing_low_water if protocol._app_writing_paused else size >= protocol._outgoing_high_water:
        protocol._control_app_writing()
    return 0


cdef int control_reading(object protocol) except -1:
    """_control_ssl_reading: the question alone."""
    size = protocol._incoming.pending
    if size <= protocol._incoming_low_water if protocol._ssl_reading_paused else size >= protocol._incoming_high_water:
        protocol._control_ssl_reading()
    return 0
