# cython: language_level=3
"""Readiness of file descriptors: add_reader/add_writer and parked coroutines.

One FdWatch stands for one fd number that users watch.  With reader or writer
callbacks it is level-triggered, as asyncio documents; with nothing but parked
sock_* coroutines it is registered once, edge-triggered, for as long as its
socket object lives.
"""

from cpython.object cimport PyObject
from libc.errno cimport ENOENT
from libc.stdint cimport uint32_t

from netpoll_loop._core.engine cimport NP_ERR, NP_HUP, NP_LEVEL, NP_R, NP_W, NP_WAIT, np_arm, np_is_same
from netpoll_loop._core.handles cimport new_handle, settle
from netpoll_loop._core.stream cimport StreamTransport

import errno
import os
import weakref

cdef extern from "Python.h":
    PyObject **tuple_items "&PyTuple_GET_ITEM"(object tuple, Py_ssize_t i)

cdef extern from "<limits.h>":
    int INT_MAX

cdef object fileno_of(object fileobj):
    """The number of an fd or of an object with fileno(); selectors' own check, with its texts."""
    cdef object fd
    if isinstance(fileobj, int):
        fd = fileobj
    else:
        try:
            fd = int(fileobj.fileno())
        except (AttributeError, TypeError, ValueError):
            raise ValueError(f"Invalid file object: {fileobj!r}") from None
    if fd < 0:
        raise ValueError(f"Invalid file descriptor: {fd}")
    return fd


cdef int c_int(object fd) except -1:
    if fd > INT_MAX:
        raise OverflowError("Python int too large to convert to C int")
    return fd


cdef object reference_to(object owner):
    """A weak reference to the object that an fd was given by; None for a bare fd."""
    if isinstance(owner, int):
        return None
    try:
        return weakref.ref(owner)
    except TypeError:
        return None


cdef class FdWatch(Descriptor):
    def __cinit__(self):
        self.read_waiters = []
        self.write_waiters = []

    cdef int arm(self) except 1:
        """Registers what is wanted now.

        -errno if that fails: -ENOENT if the number was closed without being removed, and is another file's by now.
        """
        cdef unsigned interest = 0
        cdef np_kind kind = NP_LEVEL if self.reader is not None or self.writer is not None else NP_WAIT
        cdef bint waited = len(self.read_waiters) > 0 or len(self.write_waiters) > 0
        self.loop.quiet = 0
        if waited and self.desc is not NULL and kind != self.kind and not np_is_same(self.loop.engine, self.desc):
            # Opened anew the number would be any file; the coroutines wait for theirs.
            return -ENOENT
        if kind == NP_WAIT:
            if self.kind == NP_LEVEL and self.desc is not NULL:
                # The last callback has gone: out of epoll at once (uvloop issue 61).
                self.loop.close_descriptor(self)
            if self.desc is NULL and waited:
                self.kind = NP_WAIT
                self.drained = False
                self.loop.open_descriptor(self, self.fd, NP_WAIT)
            return 0
        if self.reader is not None or self.read_waiters:
            interest |= NP_R
        if self.writer is not None or self.write_waiters:
            interest |= NP_W
        if self.desc is NULL or self.kind != NP_LEVEL:
            self.kind = NP_LEVEL
            self.loop.open_descriptor(self, self.fd, NP_LEVEL)
        return np_arm(self.loop.engine, self.desc, interest)

    cdef int update(self) except -1:
        """Somebody waits no more. The others neither, if it turns out that the number was closed."""
        if self.arm() < 0:
            self.give_up()
        return 0

    cdef int give_up(self) except -1:
        """Closed without being removed: what was wanted of it isn't wanted of the number's next file."""
        self.loop.close_descriptor(self)
        self.on_evicted(False)
        return 0

    cdef Handle swap(self, bint writes, Handle handle):
        """Sets the callback of one direction; returns the former one."""
        cdef Handle former
        if writes:
            former = self.writer
            self.writer = handle
        else:
            former = self.reader
            self.reader = handle
        return former

    cdef int push_handle(self, Handle handle) except -1:
        self.loop.ring_push(handle)
        return 0

    cdef int wake(self, list waiters) except -1:
        # Wakes the first that still waits; it passes the turn on when it is done.
        while waiters:
            waiter = waiters[0]
            if not waiter.done():
                waiter.set_result(None)
                return 0
            if not waiter.cancelled():
                # Woken already, and about to try.
                return 0
            del waiters[0]
        return 0

    cdef int pin(self, object sock) except -1:
        # Objects that only look like a socket have nothing to pin by.
        if self.pinned is None and isinstance(getattr(sock, "_io_refs", None), int):
            sock._io_refs += 1
            self.pinned = sock
        return 0

    cdef int unpin(self) except -1:
        cdef object sock = self.pinned
        if sock is None:
            return 0
        self.pinned = None
        if sock._closed and sock._io_refs == 1:
            # Closed by its owner meanwhile: its number is freed now.
            self.loop.close_descriptor(self)
        sock._decref_socketios()
        return 0

    cdef int on_ready(self, uint32_t bits) except -1:
        self.drained = False
        if bits & (NP_R | NP_HUP | NP_ERR):
            if self.reader is not None:
                if self.reader.is_cancelled:
                    self.reader = None
                    self.update()
                else:
                    self.push_handle(self.reader)
            if self.read_waiters:
                self.pending_bits |= NP_R
        if bits & (NP_W | NP_HUP | NP_ERR):
            if self.writer is not None:
                if self.writer.is_cancelled:
                    self.writer = None
                    self.update()
                else:
                    self.push_handle(self.writer)
            if self.write_waiters:
                self.pending_bits |= NP_W
        if self.pending_bits and not self.queued:
            # The waiters are woken when it runs, as asyncio's reader handle would.
            self.queued = True
            self.loop.ring_push(self)
        if self.kind == NP_LEVEL and self.desc is not NULL:
            if (bits & NP_R and self.reader is None and not self.read_waiters) or (
                bits & NP_W and self.writer is None and not self.write_waiters
            ):
                # Nobody waits for this direction any more.
                self.update()
            if self.desc is not NULL:
                self.loop.rearm.append(self)
        return 0

    cdef int run(self) except -1:
        cdef uint32_t bits = self.pending_bits
        self.queued = False
        self.pending_bits = 0
        try:
            if bits & NP_R:
                self.wake(self.read_waiters)
            if bits & NP_W:
                self.wake(self.write_waiters)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            self.failed(self.loop, exc)
        return 0

    cdef int on_evicted(self, bint loop_closing) except -1:
        if self.reader is not None:
            self.reader.cancel()
            self.reader = None
        if self.writer is not None:
            self.writer.cancel()
            self.writer = None
        if not loop_closing:
            # The socket was closed behind our back and its number reused.
            for waiters in (self.read_waiters, self.write_waiters):
                for waiter in waiters:
                    if not waiter.done():
                        waiter.set_exception(OSError(errno.EBADF, os.strerror(errno.EBADF)))
        self.read_waiters.clear()
        self.write_waiters.clear()
        self.unpin()
        return 0


cdef class WatchLoop(Scheduler):
    """The scheduler, with add_reader and its kin."""

    cdef FdWatch find_watch(self, int fd):
        found = self.find_descriptor(fd)
        return found if isinstance(found, FdWatch) else None

    cdef FdWatch watch_of(self, int fd, object owner):
        """The watch of this fd for this socket object (or bare fd), made if there is none."""
        cdef FdWatch watch = self.find_watch(fd)
        cdef object reference = reference_to(owner)
        if watch is not None and not isinstance(owner, int) and (watch.owner is None or watch.owner() is not owner):
            if not np_is_same(self.engine, watch.desc):
                # Closed without being removed, and its number reused: afresh.
                watch.give_up()
                watch = None
            elif reference is not None:
                # Another object for the same file.
                watch.owner = reference
        if watch is None:
            other = self.find_descriptor(fd)
            if other is not None:
                raise RuntimeError(f"File descriptor {fd!r} is used by transport {other!r}")
            watch = FdWatch.__new__(FdWatch)
            watch.loop = self
            watch.fd = fd
        if watch.owner is None:
            watch.owner = reference
        return watch

    cdef FdWatch watched(self, object fileobj):
        """The watch that is to be taken back; None if there is none."""
        cdef FdWatch watch
        try:
            fd = fileno_of(fileobj)
        except ValueError:
            # Closed meanwhile: selectors then looks for the object itself.
            for entry in self.descriptors.values():
                if isinstance(entry, FdWatch):
                    watch = entry
                    if watch.owner is not None and watch.owner() is fileobj:
                        return watch
            raise
        return None if fd > INT_MAX else self.find_watch(fd)

    cdef int add_callback(self, int fd, object owner, bint writes, Handle handle) except -1:
        """Calls the handle from here on. Who names a number means the file that it is now."""
        cdef FdWatch watch = self.watch_of(fd, owner)
        cdef Handle former = watch.swap(writes, handle)
        cdef int error
        try:
            error = watch.arm()
            if error == -ENOENT:
                # Closed without being removed, and its number reused: afresh.
                watch.swap(writes, former)
                watch.give_up()
                watch = self.watch_of(fd, owner)
                watch.swap(writes, handle)
                error = watch.arm()
            if error < 0:
                raise OSError(-error, os.strerror(-error))
        except BaseException:
            watch.swap(writes, None)
            watch.give_up()
            raise
        if former is not None:
            former.cancel()
        return 0

    cdef object remove_callback(self, object fd, bint writes):
        """Whether there was something to be removed."""
        cdef FdWatch watch = self.watched(fd)
        cdef Handle former = None if watch is None else watch.swap(writes, None)
        if former is None:
            return False
        watch.update()
        former.cancel()
        return True

    def _add_reader(self, fd, callback, *args):
        self._check_closed()
        cdef Handle handle = new_handle(self, <PyObject *>callback, tuple_items(args, 0), len(args), NULL)
        # It waits here, not in a queue of the loop.
        settle(handle)
        self.add_callback(c_int(fileno_of(fd)), fd, False, handle)
        return handle

    def _remove_reader(self, fd):
        if self._closed:
            return False
        return self.remove_callback(fd, False)

    def _add_writer(self, fd, callback, *args):
        self._check_closed()
        cdef Handle handle = new_handle(self, <PyObject *>callback, tuple_items(args, 0), len(args), NULL)
        settle(handle)
        cdef int number = c_int(fileno_of(fd))
        transport = self.find_descriptor(number)
        if isinstance(transport, StreamTransport):
            # loop.sock_sendfile sends past a transport that it has made quiet.
            (<StreamTransport>transport).watch_writable(handle)
            return handle
        self.add_callback(number, fd, True, handle)
        return handle

    def _remove_writer(self, fd):
        if self._closed:
            return False
        if isinstance(fd, int) and 0 <= fd <= INT_MAX:
            transport = self.find_descriptor(fd)
            if isinstance(transport, StreamTransport):
                return (<StreamTransport>transport).unwatch_writable()
        return self.remove_callback(fd, True)

    # What asyncio's own code looks up: loop._selector and loop._transports.

    def _stream_transport(self, fd):
        found = self.find_descriptor(fd)
        return found if type(found) is StreamTransport else None

    def _registered_fds(self):
        return list(self.descriptors)

    def _registered(self, fd):
        """(selectors event mask, (reader, writer)) of a registered fd, or None."""
        found = self.find_descriptor(fd)
        if not isinstance(found, FdWatch):
            return None
        cdef FdWatch watch = found
        mask = (1 if watch.reader is not None else 0) | (2 if watch.writer is not None else 0)
        return (mask, (watch.reader, watch.writer)) if mask else None
