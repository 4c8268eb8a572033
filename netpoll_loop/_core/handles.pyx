# cython: language_level=3
"""What the ready queue holds: runnables, handles and timer handles.

Owns the callback, its arguments and its context until it has run or was
cancelled.  Everything here is touched with the GIL held; only the thread that
holds P runs a runnable.
"""

from cpython.contextvars cimport PyContext_CopyCurrent, PyContext_Enter, PyContext_Exit
from cpython.object cimport PyObject

import inspect
import sys
import threading
from asyncio import events as _events
from asyncio import format_helpers as _format_helpers

cdef extern from "Python.h":
    PyObject *PyObject_Call(object callable, object args, PyObject *kwargs)
    PyObject *PyObject_CallOneArg(object callable, object arg)
    void Py_DECREF(PyObject *o)
    void PyErr_Fetch(PyObject **, PyObject **, PyObject **)
    void PyErr_Restore(PyObject *, PyObject *, PyObject *)
    unsigned long PyThread_get_thread_ident()

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


cdef int enter_call(object context, object callback, object args) except -1:
    """context.run(callback, *args), the result dropped."""
    PyContext_Enter(context)
    return _leave(context, PyObject_Call(callback, args, NULL))


cdef int enter_call_one(object context, object callback, object arg) except -1:
    """context.run(callback, arg), the result dropped."""
    PyContext_Enter(context)
    return _leave(context, PyObject_CallOneArg(callback, arg))


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


cdef class Handle(Runnable):
    """asyncio.Handle, with the run in C.

    ``isinstance(handle, asyncio.Handle)`` is true: asyncio's class has slots,
    so that a C class can't inherit from it, and ``__class__`` answers instead.
    """

    @property
    def __class__(self):
        return _stdlib_handle

    def _repr_info(self):
        return _stdlib_handle._repr_info(self)

    def __repr__(self):
        if self._repr is not None:
            return self._repr
        return "<{}>".format(" ".join(self._repr_info()))

    def get_context(self):
        """The contextvars.Context in which the callback runs."""
        return self._context

    cdef void drop(self) noexcept:
        self._callback = None
        self._args = None

    def cancel(self):
        """Cancels the callback; once it has run or was cancelled this does nothing."""
        if not self._cancelled:
            self._cancelled = True
            if self._loop is not None and self._loop.get_debug():
                # Kept for the slow-callback log, as in asyncio.
                self._repr = repr(self)
            self.drop()

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
        if not self._cancelled:
            enter_call(self._context, self._callback, self._args)
        return 0

    cdef int failed(self, object loop, object exc) except -1:
        text = _format_callback(self._callback, self._args, loop.get_debug())
        context = {"message": f"Exception in callback {text}", "exception": exc, "handle": self}
        if self._source_traceback:
            context["source_traceback"] = self._source_traceback
        loop.call_exception_handler(context)
        return 0


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
            return Handle.run(self)
        finally:
            self.runner = 0
            if self.ended is not None:
                self.ended.set()

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


cdef class TimerHandle(Handle):
    """asyncio.TimerHandle; ``when()`` is in seconds of ``loop.time()``."""

    @property
    def __class__(self):
        return _stdlib_timer_handle

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
                and self._args == other._args
                and bool(self._cancelled) == other._cancelled
            )
        return NotImplemented

    def cancel(self):
        """Cancels the callback and takes the timer out of the heap at once."""
        if not self._cancelled and self._loop is not None:
            self._loop._timer_handle_cancelled(self)
        Handle.cancel(self)

    def when(self):
        """The absolute time, in seconds, at which the callback is due."""
        return self._when


cdef inline int fill(Handle handle, object loop, object callback, object args, object context,
                     bint debug) except -1:
    handle._loop = loop
    handle._callback = callback
    handle._args = args
    handle._context = PyContext_CopyCurrent() if context is None else context
    if debug:
        handle._source_traceback = _extract_stack(_getframe(0))
    return 0


cdef Handle new_handle(object loop, object callback, object args, object context, bint debug):
    cdef Handle handle = Handle.__new__(Handle)
    fill(handle, loop, callback, args, context, debug)
    return handle


cdef Handle new_threadsafe_handle(object loop, object callback, object args, object context, bint debug):
    cdef Handle handle = ThreadSafeHandle.__new__(ThreadSafeHandle)
    fill(handle, loop, callback, args, context, debug)
    return handle


cdef TimerHandle new_timer(object loop, object when, double seconds, object callback, object args,
                           object context, bint debug):
    cdef TimerHandle handle = TimerHandle.__new__(TimerHandle)
    fill(handle, loop, callback, args, context, debug)
    handle._when = when
    handle.when_seconds = seconds
    handle.heap_index = -1
    return handle
