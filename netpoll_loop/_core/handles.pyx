# cython: language_level=3
"""What the ready queue holds: runnables, handles and timer handles.

Owns the callback, its arguments and its context until it has run or was
cancelled.  Everything here is touched with the GIL held; only the thread that
holds P runs a runnable.

Handles and the garbage collector: a handle that waits in a running loop is
alive, whatever refers to it, and so is all that it refers to.  The collector
has nothing to find there, and its visits to thousands of waiting handles are
what a burst of call_soon would mostly cost.  So a handle of a running loop is
not tracked while it waits, nor is the copy of the context that was made for it;
one that somebody has kept is tracked once it has run or was cancelled (settle),
and all that still wait when the loop stops are tracked then
(Scheduler.track_all).  The context is tracked as soon as anybody else can get
at it; CPython relies on that it is when it is freed.
"""

cimport cython
from cpython.contextvars cimport PyContext_CopyCurrent, PyContext_Enter, PyContext_Exit
from cpython.object cimport PyObject
from cpython.ref cimport Py_INCREF, Py_REFCNT

import inspect
import sys
import threading
from asyncio import events as _events
from asyncio import format_helpers as _format_helpers

cdef extern from "Python.h":
    PyObject *PyObject_Call(object callable, object args, PyObject *kwargs)
    PyObject *PyObject_Vectorcall(object callable, PyObject **args, size_t count, PyObject *names)
    size_t PY_VECTORCALL_ARGUMENTS_OFFSET
    void Py_DECREF(PyObject *o)
    void PyErr_Fetch(PyObject **, PyObject **, PyObject **)
    void PyErr_Restore(PyObject *, PyObject *, PyObject *)
    unsigned long PyThread_get_thread_ident()
    void PyObject_GC_Track(PyObject *o)
    void PyObject_GC_UnTrack(PyObject *o)
    int PyObject_GC_IsTracked(PyObject *o)
    object PyTuple_New(Py_ssize_t size)
    void PyTuple_SET_ITEM(object tuple, Py_ssize_t i, PyObject *item)
    object PyFloat_FromDouble(double value)

cdef object _stdlib_handle = _events.Handle
cdef object _stdlib_timer_handle = _events.TimerHandle
# Since 3.14 call_soon_threadsafe has a class of its own.
cdef object _stdlib_threadsafe_handle = getattr(_events, "_ThreadSafeHandle", _events.Handle)
cdef bint _threadsafe_handles_block = hasattr(_events, "_ThreadSafeHandle")
cdef object _Event = threading.Event
cdef object _extract_stack = _format_helpers.extract_stack
cdef object _getframe = sys._getframe
cdef object _format_source = _format_helpers._format_callback_source
cdef bint _format_takes_debug = "debug" in inspect.signature(_format_source).parameters


cdef int _leave(object context, PyObject *result) except -1:
    # Leaves the context, whether the call succeeded or raised.
    cdef PyObject *t = NULL
    cdef PyObject *v = NULL
    cdef PyObject *tb = NULL
    if result is not NULL:
        Py_DECREF(result)
        PyContext_Exit(context)
        return 0
    PyErr_Fetch(&t, &v, &tb)
    PyContext_Exit(context)
    PyErr_Restore(t, v, tb)
    return -1


def _format_callback(callback, args, bint debug):
    if _format_takes_debug:
        return _format_source(callback, args, debug=debug)
    return _format_source(callback, args)


cdef class Runnable:
    """Something that the loop can run once it is at the head of the ready queue."""

    cdef int run(self) except -1:
        """Runs it; what it raises goes to failed(), but for SystemExit and KeyboardInterrupt."""
        raise NotImplementedError

    cdef int failed(self, object loop, object exc) except -1:
        """Reports what run() has raised."""
        loop.call_exception_handler({"message": f"Exception in callback {self!r}", "exception": exc})
        return 0


cdef class Home:
    """What a handle needs of its loop."""

    cdef int forget_timer(self, TimerHandle handle) except -1:
        """A timer was cancelled."""
        raise NotImplementedError


cdef class DebugInfo:
    """What only debug mode knows of a handle."""


@cython.freelist(256)
cdef class Handle(Runnable):
    """asyncio.Handle, with the run in C.

    ``isinstance(handle, asyncio.Handle)`` is true: asyncio's class has slots,
    so that a C class can't inherit from it, and ``__class__`` answers instead.
    """

    @property
    def __class__(self):
        return _stdlib_handle

    @property
    def _args(self):
        return self.arguments()

    @property
    def _source_traceback(self):
        return None if self.debug is None else self.debug.source_traceback

    def _repr_info(self):
        return _stdlib_handle._repr_info(self)

    def __repr__(self):
        if self.debug is not None and self.debug.text is not None:
            return self.debug.text
        return "<{}>".format(" ".join(self._repr_info()))

    @property
    def _context(self):
        self.show_context()
        return self.context

    def get_context(self):
        """The contextvars.Context in which the callback runs."""
        return self._context

    def __dealloc__(self):
        self.show_context()

    cdef void show_context(self) noexcept:
        if self.context_hidden:
            self.context_hidden = False
            PyObject_GC_Track(<PyObject *>self.context)

    cdef object arguments(self):
        """The arguments as a tuple; None once they are dropped."""
        cdef object args
        if self.count > 2:
            return self.first
        if self.count < 0:
            return None
        args = PyTuple_New(self.count)
        if self.count > 0:
            Py_INCREF(self.first)
            PyTuple_SET_ITEM(args, 0, <PyObject *>self.first)
        if self.count > 1:
            Py_INCREF(self.second)
            PyTuple_SET_ITEM(args, 1, <PyObject *>self.second)
        return args

    cdef void drop(self) noexcept:
        self._callback = None
        self.first = None
        self.second = None
        self.count = -1

    cdef int cancel_now(self) except -1:
        if not self._cancelled:
            self._cancelled = True
            if self._loop._debug:
                # Kept for the slow-callback log, as in asyncio.
                if self.debug is None:
                    self.debug = DebugInfo()
                self.debug.text = repr(self)
            self.drop()
        return 0

    def cancel(self):
        """Cancels the callback; once it has run or was cancelled this does nothing."""
        self.cancel_now()

    def cancelled(self):
        """Whether cancel() was called."""
        return bool(self._cancelled)

    def _run(self):
        """asyncio's private name for the run; an error of the callback is reported, not raised."""
        try:
            self.run()
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            self.failed(self._loop, exc)
        # Breaks a cycle when there was an exception.
        self = None

    cdef int run(self) except -1:
        cdef PyObject *stack[3]
        cdef PyObject *result
        cdef object callback, context, first, second
        if self._cancelled:
            return 0
        # Held: the callback may cancel its own handle, which drops them.
        callback = self._callback
        context = self.context
        self.show_context()
        first = self.first
        PyContext_Enter(context)
        if self.count > 2:
            result = PyObject_Call(callback, first, NULL)
        elif self.count == 0:
            result = PyObject_Vectorcall(callback, stack + 1, PY_VECTORCALL_ARGUMENTS_OFFSET, NULL)
        else:
            second = self.second
            stack[1] = <PyObject *>first
            stack[2] = <PyObject *>second
            result = PyObject_Vectorcall(callback, stack + 1, self.count | PY_VECTORCALL_ARGUMENTS_OFFSET, NULL)
        return _leave(context, result)

    cdef int failed(self, object loop, object exc) except -1:
        text = _format_callback(self._callback, self.arguments(), loop.get_debug())
        context = {"message": f"Exception in callback {text}", "exception": exc, "handle": self}
        if self._source_traceback:
            context["source_traceback"] = self._source_traceback
        loop.call_exception_handler(context)
        return 0


@cython.freelist(64)
cdef class ThreadSafeHandle(Handle):
    """What call_soon_threadsafe returns; it may be cancelled from any thread.

    As in asyncio from 3.14 on, other threads wait in cancel() and cancelled() while the callback runs: afterwards they
    know whether it has run.
    """

    @property
    def __class__(self):
        return _stdlib_threadsafe_handle

    cdef int run(self) except -1:
        if self._cancelled:
            return 0
        self.runner = PyThread_get_thread_ident()
        try:
            Handle.run(self)
        finally:
            self.runner = 0
            if self.ended is not None:
                self.ended.set()
        return 0

    cdef int wait(self) except -1:
        if self.runner and self.runner != PyThread_get_thread_ident() and _threadsafe_handles_block:
            if self.ended is None:
                self.ended = _Event()
            if self.runner:
                self.ended.wait()
        return 0

    def cancel(self):
        """Cancels the callback; waits if it is running in another thread."""
        self.wait()
        Handle.cancel(self)

    def cancelled(self):
        """Whether cancel() was called; waits if the callback is running in another thread."""
        self.wait()
        return bool(self._cancelled)


@cython.freelist(256)
cdef class TimerHandle(Handle):
    """asyncio.TimerHandle; ``when()`` is in seconds of ``loop.time()``."""

    @property
    def __class__(self):
        return _stdlib_timer_handle

    @property
    def _when(self):
        if self.when_given is None:
            self.when_given = PyFloat_FromDouble(self.when_seconds)
        return self.when_given

    @property
    def _scheduled(self):
        return self.heap_index >= 0

    def _repr_info(self):
        info = _stdlib_handle._repr_info(self)
        info.insert(2 if self._cancelled else 1, f"when={self._when}")
        return info

    def __hash__(self):
        return hash(self._when)

    def __lt__(self, other):
        if isinstance(other, _stdlib_timer_handle):
            return self._when < other._when
        return NotImplemented

    def __le__(self, other):
        if isinstance(other, _stdlib_timer_handle):
            return self._when < other._when or self.__eq__(other)
        return NotImplemented

    def __gt__(self, other):
        if isinstance(other, _stdlib_timer_handle):
            return self._when > other._when
        return NotImplemented

    def __ge__(self, other):
        if isinstance(other, _stdlib_timer_handle):
            return self._when > other._when or self.__eq__(other)
        return NotImplemented

    def __eq__(self, other):
        if isinstance(other, _stdlib_timer_handle):
            return (
                self._when == other._when
                and self._callback == other._callback
                and self.arguments() == other._args
                and bool(self._cancelled) == other._cancelled
            )
        return NotImplemented

    def cancel(self):
        """Cancels the callback and takes the timer out of the heap at once."""
        if not self._cancelled:
            self._loop.forget_timer(self)
            self.cancel_now()

    def when(self):
        """The absolute time, in seconds, at which the callback is due."""
        return self._when


cdef inline int fill(Handle handle, Home loop, object callback, PyObject **args, Py_ssize_t count,
                     object context) except -1:
    cdef Py_ssize_t i
    handle._loop = loop
    handle._callback = callback
    if context is not None:
        handle.context = context
    else:
        handle.context = PyContext_CopyCurrent()
        if loop.running:
            PyObject_GC_UnTrack(<PyObject *>handle.context)
            handle.context_hidden = True
    handle.count = count
    if count > 2:
        handle.first = PyTuple_New(count)
        for i in range(count):
            Py_INCREF(<object>args[i])
            PyTuple_SET_ITEM(handle.first, i, args[i])
    elif count > 0:
        handle.first = <object>args[0]
        if count > 1:
            handle.second = <object>args[1]
    if loop._debug:
        handle.debug = DebugInfo()
        handle.debug.source_traceback = _extract_stack(_getframe(0))
    if loop.running:
        PyObject_GC_UnTrack(<PyObject *>handle)
    return 0


cdef void settle(Handle handle) noexcept:
    """It waits no more, or its loop has stopped: if anybody keeps it, the garbage collector has to know it."""
    handle.show_context()
    if not PyObject_GC_IsTracked(<PyObject *>handle):
        PyObject_GC_Track(<PyObject *>handle)


cdef Handle new_handle(Home loop, object callback, PyObject **args, Py_ssize_t count, object context):
    cdef Handle handle = Handle.__new__(Handle)
    fill(handle, loop, callback, args, count, context)
    return handle


cdef Handle new_threadsafe_handle(Home loop, object callback, PyObject **args, Py_ssize_t count, object context):
    cdef Handle handle = ThreadSafeHandle.__new__(ThreadSafeHandle)
    fill(handle, loop, callback, args, count, context)
    return handle


cdef TimerHandle new_timer(Home loop, object when, double seconds, object callback, PyObject **args,
                           Py_ssize_t count, object context):
    """when: as the user gave it, None for a float of seconds."""
    cdef TimerHandle handle = TimerHandle.__new__(TimerHandle)
    fill(handle, loop, callback, args, count, context)
    handle.when_given = when
    handle.when_seconds = seconds
    handle.heap_index = -1
    return handle
