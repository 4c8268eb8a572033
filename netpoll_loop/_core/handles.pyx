# cython: language_level=3, binding=False, always_allow_keywords=False, embedsignature=True, embedsignature.format=clinic
"""What the ready queue holds: runnables, handles and timer handles.

Owns the callback, its arguments and its context until it has run or was
cancelled.  Everything here is touched with the GIL held, or by the thread that
has P (freethreading.pxd); only that one runs a runnable.

Handles and the garbage collector: a handle that waits in a running loop is
alive, whatever refers to it, and so is all that it refers to.  The collector
has nothing to find there, and its visits to thousands of waiting handles are
what a burst of call_soon would mostly cost.  So a handle of a running loop is
not tracked while it waits; one that somebody has kept is tracked once it has
run or was cancelled (settle), and all that still wait when the loop stops are
tracked then (Scheduler.track_all).
"""

from cpython.object cimport PyObject
from cpython.ref cimport Py_INCREF
from libc.string cimport memcpy

from netpoll_loop._core.freethreading cimport FREE_THREADED

cimport cython

import contextvars
import inspect
import sys
import threading
from asyncio import events as _events
from asyncio import format_helpers as _format_helpers

cdef extern from "Python.h":
    ctypedef int (*visitproc)(PyObject *, void *) noexcept
    ctypedef struct PyTypeObject:
        unsigned long tp_flags
        Py_ssize_t tp_weaklistoffset
        Py_ssize_t tp_basicsize
        void (*tp_dealloc)(PyObject *) noexcept
        int (*tp_traverse)(PyObject *, visitproc, void *) noexcept
        int (*tp_clear)(PyObject *) noexcept
    unsigned long Py_TPFLAGS_HEAPTYPE
    PyObject *Py_None
    PyTypeObject *TYPE "Py_TYPE"(PyObject *o)
    int PyType_IsSubtype(PyTypeObject *a, PyTypeObject *b)
    PyObject *PyObject_Init(PyObject *o, PyTypeObject *type)
    void PyObject_ClearWeakRefs(PyObject *o)
    void Py_XINCREF(PyObject *o)
    void Py_XDECREF(PyObject *o)
    # Without Cython's own handling of references and errors.
    int Enter "PyContext_Enter"(PyObject *context)
    int Exit "PyContext_Exit"(PyObject *context)
    PyObject *CopyCurrent "PyContext_CopyCurrent"()
    PyObject *Copy "PyContext_Copy"(PyObject *context)
    ctypedef struct PyThreadState:
        PyObject *context
    PyThreadState *PyThreadState_Get()
    Py_ssize_t REFCNT "Py_REFCNT"(PyObject *o)
    PyObject *PyObject_Call(PyObject *callable, PyObject *args, PyObject *kwargs)
    PyObject *PyObject_Vectorcall(PyObject *callable, PyObject **args, size_t count, PyObject *names)
    size_t PY_VECTORCALL_ARGUMENTS_OFFSET
    void PyErr_Fetch(PyObject **, PyObject **, PyObject **)
    void PyErr_Restore(PyObject *, PyObject *, PyObject *)
    unsigned long PyThread_get_thread_ident()
    void PyObject_GC_Track(PyObject *o)
    void PyObject_GC_UnTrack(PyObject *o)
    PyObject *_PyObject_GC_New(PyTypeObject *type)
    void PyObject_GC_Del(void *o)
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


def _format_callback(callback, args, bint debug):
    if _format_takes_debug:
        return _format_source(callback, args, debug=debug)
    return _format_source(callback, args)


cdef class Runnable:
    """Something that the loop can run once it is at the head of the ready queue."""

    cdef int run(self) except -1:
        """Runs it. Its error goes to the exception handler, but for SystemExit and KeyboardInterrupt, which it raises."""
        raise NotImplementedError

    cdef int failed(self, object loop, object exc) except -1:
        """Tells the exception handler what run() or on_ready() has raised."""
        loop.call_exception_handler({"message": f"Exception in callback {self!r}", "exception": exc})
        return 0


cdef class Home:
    """What a handle needs of its loop."""

    cdef int forget_timer(self, TimerHandle handle) except -1:
        """A timer was cancelled."""
        raise NotImplementedError

    cdef bint hold_back(self, Runnable runnable) except -1:
        """The runnable's Context is entered elsewhere: whether it is kept until it may run."""
        return False


cdef bint is_foreign(Home loop) noexcept:
    """Whether another thread runs the loop than this one."""
    return loop.thread_id != 0 and loop.thread_id != <int64_t>PyThread_get_thread_ident()


cdef class DebugInfo:
    """What only debug mode knows of a handle."""


# By the handle's address.
cdef dict debug_infos = {}


cdef DebugInfo debug_info(Handle handle):
    """The handle's; made if it has none."""
    cdef DebugInfo info
    cdef object key = <size_t><PyObject *>handle
    if handle.debugged:
        return debug_infos[key]
    info = DebugInfo()
    debug_infos[key] = info
    handle.debugged = True
    return info


cdef enum:
    MANY = 3


cdef inline object or_none(PyObject *o):
    return <object>o if o is not NULL else None


cdef class Handle(Runnable):
    """asyncio.Handle, with the run in C.

    ``isinstance(handle, asyncio.Handle)`` is true: asyncio's class has slots,
    so that a C class can't inherit from it, and ``__class__`` answers instead.
    """

    @property
    def __class__(self):
        return _stdlib_handle

    @property
    def _callback(self):
        return or_none(self.callback)

    @property
    def _args(self):
        return self.arguments()

    @property
    def _loop(self):
        return self.loop

    @property
    def _cancelled(self):
        return bool(self.is_cancelled)

    @_cancelled.setter
    def _cancelled(self, value):
        self.is_cancelled = bool(value)

    @property
    def _source_traceback(self):
        return debug_info(self).source_traceback if self.debugged else None

    def _repr_info(self):
        return _stdlib_handle._repr_info(self)

    def __repr__(self):
        cdef object text = debug_info(self).text if self.debugged else None
        if text is not None:
            return text
        return "<{}>".format(" ".join(self._repr_info()))

    @property
    def _context(self):
        return self.shown_context()

    def get_context(self):
        """The contextvars.Context in which the callback runs."""
        return self.shown_context()

    def __dealloc__(self):
        drop_all(<PyObject *>self)

    cdef object shown_context(self):
        if self.context_state == SHARED:
            self.own_context()
        self.context_state = OTHERS
        return or_none(self.context)

    cdef int own_context(self) except -1:
        """From SHARED to OWN."""
        global spare
        cdef PyObject *shared = self.context
        cdef PyObject *own
        if spare is not NULL and variables(spare) == variables(shared):
            own = spare
            spare = NULL
        else:
            own = Copy(shared)
            if own is NULL:
                raise_what_is_set()
        self.context = own
        self.context_state = OWN
        Py_XDECREF(shared)
        return 0

    cdef object arguments(self):
        """The arguments as a tuple; None once they are dropped."""
        cdef object args
        if self.count == MANY:
            return <object>self.first
        if self.count < 0:
            return None
        args = PyTuple_New(self.count)
        if self.count > 0:
            Py_INCREF(<object>self.first)
            PyTuple_SET_ITEM(args, 0, self.first)
        if self.count > 1:
            Py_INCREF(<object>self.second)
            PyTuple_SET_ITEM(args, 1, self.second)
        return args

    cdef void drop(self) noexcept:
        cdef PyObject *callback = self.callback
        cdef PyObject *first = self.first
        cdef PyObject *second = self.second
        self.callback = NULL
        self.first = NULL
        self.second = NULL
        self.count = -1
        Py_XDECREF(callback)
        Py_XDECREF(first)
        Py_XDECREF(second)

    cdef int cancel_now(self) except -1:
        if FREE_THREADED and self.loop is not None and is_foreign(self.loop):
            # It may be about to run.
            self.is_cancelled = True
        elif not self.is_cancelled:
            self.is_cancelled = True
            if self.loop is not None and self.loop._debug:
                # Kept for the slow-callback log, as in asyncio.
                debug_info(self).text = repr(self)
            self.drop()
        return 0

    def cancel(self):
        """Cancels the callback; once it has run or was cancelled this does nothing."""
        self.cancel_now()

    def cancelled(self):
        """Whether cancel() was called."""
        return bool(self.is_cancelled)

    def _run(self):
        """asyncio's private name for the run; an error of the callback is reported, not raised."""
        self.run()

    cdef int run(self) except -1:
        cdef PyObject *stack[3]
        cdef PyObject *result
        cdef PyObject *callback = self.callback
        cdef PyObject *first = self.first
        cdef PyObject *second = self.second
        cdef int count = self.count
        if self.is_cancelled or callback is NULL:
            return 0
        if self.context_state == SHARED:
            self.own_context()
        if Enter(self.context) < 0:
            return self.enter_failed()
        # Held: the callback may cancel its own handle, which drops them.
        Py_INCREF(<object>callback)
        if count == 0:
            result = PyObject_Vectorcall(callback, stack + 1, PY_VECTORCALL_ARGUMENTS_OFFSET, NULL)
        else:
            Py_INCREF(<object>first)
            if count == MANY:
                result = PyObject_Call(callback, first, NULL)
            else:
                stack[1] = first
                stack[2] = second
                Py_XINCREF(second)
                result = PyObject_Vectorcall(callback, stack + 1, <size_t>count | PY_VECTORCALL_ARGUMENTS_OFFSET, NULL)
                Py_XDECREF(second)
            Py_XDECREF(first)
        Py_XDECREF(callback)
        if result is not NULL:
            Py_XDECREF(result)
            Exit(self.context)
            if (
                not FREE_THREADED
                and self.context_state == OWN and REFCNT(<PyObject *>self) == 1 and REFCNT(self.context) == 1
            ):
                keep_context(self)
            return 0
        return self.leave_failed()

    cdef int enter_failed(self) except -1:
        try:
            raise_what_is_set()
        except Exception as exc:
            # It has been entered already, perhaps in a body of blocking(), or is no Context.
            if type(exc) is not RuntimeError or not self.loop.hold_back(self):
                self.failed(self.loop, exc)
        return 0

    cdef int leave_failed(self) except -1:
        cdef PyObject *t = NULL
        cdef PyObject *v = NULL
        cdef PyObject *tb = NULL
        PyErr_Fetch(&t, &v, &tb)
        Exit(self.context)
        PyErr_Restore(t, v, tb)
        return report(self, self.loop)

    cdef int failed(self, object loop, object exc) except -1:
        text = _format_callback(self._callback, self.arguments(), loop.get_debug())
        context = {"message": f"Exception in callback {text}", "exception": exc, "handle": self}
        if self._source_traceback:
            context["source_traceback"] = self._source_traceback
        loop.call_exception_handler(context)
        return 0


cdef int raise_what_is_set() except -1:
    return -1


cdef int report(Runnable runnable, object loop) except -1:
    """The error indicator is set: reports it as asyncio does."""
    try:
        raise_what_is_set()
    except (SystemExit, KeyboardInterrupt):
        raise
    except BaseException as exc:
        runnable.failed(loop, exc)
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
        with cython.critical_section(self):
            if self.is_cancelled:
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

    cdef int cancel_now(self) except -1:
        with cython.critical_section(self):
            if FREE_THREADED and self.runner:
                # On 3.13, where nobody waits for the end.
                self.is_cancelled = True
            else:
                Handle.cancel_now(self)
        return 0

    def cancel(self):
        """Cancels the callback; waits if it is running in another thread."""
        self.wait()
        self.cancel_now()

    def cancelled(self):
        """Whether cancel() was called; waits if the callback is running in another thread."""
        self.wait()
        return bool(self.is_cancelled)


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
        info.insert(2 if self.is_cancelled else 1, f"when={self._when}")
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
                and bool(self.is_cancelled) == other._cancelled
            )
        return NotImplemented

    def cancel(self):
        """Cancels the callback and takes the timer out of the heap at once."""
        if not self.is_cancelled and self.loop is not None:
            self.loop.forget_timer(self)
            self.cancel_now()

    def when(self):
        """The absolute time, in seconds, at which the callback is due."""
        return self._when


# ---- contexts ----------------------------------------------------------------------
#
# Each callback has a copy of the Context that was current at its call_soon. But a Context is two
# pointers around a mapping that never changes, and as long as no ContextVar is set all copies have
# the same mapping. So a handle holds a copy that others hold, too, and that is never entered: the
# snapshot of that mapping. It gets one of its own when it runs, or when somebody asks for it; one that
# has been run with, that nobody has seen, and in which nothing was set, is as good as new, and is
# used again.

cdef enum ContextState:
    # Given to call_soon, or known to others.
    OTHERS
    # A snapshot.
    SHARED
    # Of this handle alone.
    OWN


# Two that are kept for the next handle. NULL: none.
cdef PyObject *snapshot = NULL
cdef PyObject *spare = NULL


cdef inline void *variables(PyObject *context) noexcept:
    """The mapping (ctx_vars, behind the object's head and ctx_prev)."""
    return (<void **>(<char *>context + sizeof(PyObject)))[1]


def _mapping_is_there():
    """Whether the mapping is where we look for it in this Python."""
    variable = contextvars.ContextVar("variable")
    context = contextvars.Context()
    copy = context.copy()
    if contextvars.Context.__basicsize__ < <Py_ssize_t>(sizeof(PyObject) + 2 * sizeof(void *)):
        return False
    before = <size_t>variables(<PyObject *>context)
    if not before or <size_t>variables(<PyObject *>copy) != before:
        return False
    context.run(variable.set, 1)
    after = <size_t>variables(<PyObject *>context)
    if after == before or <size_t>variables(<PyObject *>copy) != before:
        return False
    copy = context.copy()
    copy.run(variable.set, 2)
    return <size_t>variables(<PyObject *>copy) != after == <size_t>variables(<PyObject *>context)


cdef bint contexts_are_shared = not FREE_THREADED and _mapping_is_there()


cdef inline int take_context(Handle handle) except -1:
    global snapshot
    cdef PyObject *old = NULL
    cdef PyObject *current = PyThreadState_Get().context
    if not contexts_are_shared or current is NULL:
        handle.context = CopyCurrent()
        if handle.context is NULL:
            raise_what_is_set()
        handle.context_state = OWN
        return 0
    if snapshot is NULL or variables(snapshot) != variables(current):
        current = CopyCurrent()
        if current is NULL:
            raise_what_is_set()
        old = snapshot
        snapshot = current
    handle.context = snapshot
    handle.context_state = SHARED
    Py_XINCREF(snapshot)
    # What it frees may call us.
    Py_XDECREF(old)
    return 0


cdef void keep_context(Handle handle) noexcept:
    """The handle has run, and nobody has it or its Context."""
    global spare
    cdef PyObject *old
    if snapshot is not NULL and variables(handle.context) == variables(snapshot):
        old = spare
        spare = handle.context
        handle.context = NULL
        Py_XDECREF(old)


cdef void forget_contexts() noexcept:
    """What ContextVars hold is to live no longer than the callbacks that may ask for it."""
    global snapshot, spare
    cdef PyObject *one = snapshot
    cdef PyObject *other = spare
    snapshot = spare = NULL
    Py_XDECREF(one)
    Py_XDECREF(other)


# ---- memory ------------------------------------------------------------------------
#
# A handle is made and freed for every callback. So its references are C pointers, which
# Cython neither fills with None nor clears one by one, and freed handles wait for reuse.
# The slots of the types that know of those pointers are replaced by the functions here.

cdef enum:
    FREE_MAX = 1024


cdef struct pool:
    PyTypeObject *type
    # What Cython has written; for the fields that it knows.
    int (*traverse)(PyObject *, visitproc, void *) noexcept
    int (*clear)(PyObject *) noexcept
    # A new one as Cython makes it, of which the others are copied, and how many of its fields are None.
    PyObject *template
    int nones
    int count
    PyObject *items[FREE_MAX]


cdef pool handles, threadsafe_handles, timers


cdef inline pool *pool_of(PyObject *o) noexcept:
    if PyType_IsSubtype(TYPE(o), timers.type):
        return &timers
    return &threadsafe_handles if PyType_IsSubtype(TYPE(o), threadsafe_handles.type) else &handles


cdef void drop_all(PyObject *o) noexcept:
    cdef PyObject *context = (<Handle>o).context
    (<Handle>o).drop()
    (<Handle>o).context = NULL
    Py_XDECREF(context)
    (<Handle>o).loop = None


cdef void forget_debug_info(PyObject *o) noexcept:
    # It may go while an exception is on its way.
    cdef PyObject *t = NULL
    cdef PyObject *v = NULL
    cdef PyObject *tb = NULL
    PyErr_Fetch(&t, &v, &tb)
    del debug_infos[<size_t>o]
    PyErr_Restore(t, v, tb)


cdef inline bint keep(PyObject *o, pool *free) noexcept:
    """The end of a handle: whether its memory stays here."""
    cdef int i
    if (<Handle>o).tracked:
        (<Handle>o).tracked = False
        PyObject_GC_UnTrack(o)
    if (<PyObject **>(<char *>o + free.type.tp_weaklistoffset))[0] is not NULL:
        PyObject_ClearWeakRefs(o)
    drop_all(o)
    if (<Handle>o).debugged:
        (<Handle>o).debugged = False
        forget_debug_info(o)
    if FREE_THREADED or free.count == FREE_MAX:
        for i in range(free.nones):
            Py_XDECREF(Py_None)
        PyObject_GC_Del(o)
        return False
    free.items[free.count] = o
    free.count += 1
    return True


cdef void dealloc_handle(PyObject *o) noexcept:
    keep(o, &handles)


cdef void dealloc_threadsafe_handle(PyObject *o) noexcept:
    (<ThreadSafeHandle>o).ended = None
    keep(o, &threadsafe_handles)


cdef void dealloc_timer(PyObject *o) noexcept:
    (<TimerHandle>o).when_given = None
    keep(o, &timers)


cdef int traverse(PyObject *o, visitproc visit, void *arg) noexcept:
    cdef int i, stop
    cdef PyObject *references[4]
    references[0] = (<Handle>o).callback
    references[1] = (<Handle>o).context
    references[2] = (<Handle>o).first
    references[3] = (<Handle>o).second
    for i in range(4):
        if references[i] is not NULL:
            stop = visit(references[i], arg)
            if stop:
                return stop
    return pool_of(o).traverse(o, visit, arg)


cdef int clear(PyObject *o) noexcept:
    drop_all(o)
    return pool_of(o).clear(o)


cdef int install(pool *free, type cls, void (*dealloc)(PyObject *) noexcept, int nones) except -1:
    """Puts the functions above into the type; nones: how many fields of its objects are None at first."""
    cdef Handle template = cls.__new__(cls)
    free.template = <PyObject *>template
    Py_INCREF(template)
    free.nones = nones
    free.type = <PyTypeObject *>cls
    free.traverse = free.type.tp_traverse
    free.clear = free.type.tp_clear
    free.type.tp_traverse = traverse
    free.type.tp_clear = clear
    if free.type.tp_flags & Py_TPFLAGS_HEAPTYPE:
        raise SystemError("handles are made as objects of a static type")
    free.type.tp_dealloc = dealloc
    return 0


install(&threadsafe_handles, ThreadSafeHandle, dealloc_threadsafe_handle, 2)
install(&timers, TimerHandle, dealloc_timer, 2)
# The last one: Cython's functions for the derived types may look for the slots of this one.
install(&handles, Handle, dealloc_handle, 1)


cdef void settle(Handle handle) noexcept:
    """It waits no more, or its loop has stopped: if anybody keeps it, the garbage collector has to know it."""
    if not handle.tracked:
        handle.tracked = True
        PyObject_GC_Track(<PyObject *>handle)


cdef inline Handle make(pool *free, Home loop, PyObject *callback, PyObject **args, Py_ssize_t count,
                        PyObject *context):
    cdef Handle handle
    cdef PyObject *o
    cdef Py_ssize_t i
    cdef object more
    if free.count:
        free.count -= 1
        o = free.items[free.count]
        PyObject_Init(o, free.type)
        (<Handle>o).is_cancelled = False
    else:
        o = _PyObject_GC_New(free.type)
        if o is NULL:
            raise MemoryError
        memcpy(<char *>o + sizeof(PyObject), <char *>free.template + sizeof(PyObject),
               free.type.tp_basicsize - sizeof(PyObject))
        for i in range(free.nones):
            Py_INCREF(None)
    # Its first reference becomes handle's.
    handle = <Handle>o
    Py_XDECREF(o)
    handle.loop = loop
    if context is NULL or context == Py_None:
        take_context(handle)
    else:
        Py_XINCREF(context)
        handle.context = context
        handle.context_state = OTHERS
    Py_XINCREF(callback)
    handle.callback = callback
    handle.count = <signed char>count if count < MANY else MANY
    if count == 1:
        handle.first = args[0]
        Py_XINCREF(args[0])
    elif count == 2:
        handle.first = args[0]
        Py_XINCREF(args[0])
        handle.second = args[1]
        Py_XINCREF(args[1])
    elif count > 2:
        more = PyTuple_New(count)
        for i in range(count):
            Py_XINCREF(args[i])
            PyTuple_SET_ITEM(more, i, args[i])
        Py_INCREF(more)
        handle.first = <PyObject *>more
    if loop._debug:
        debug_info(handle).source_traceback = _extract_stack(_getframe(0))
    if not loop.running:
        settle(handle)
    return handle


cdef Handle new_handle(Home loop, PyObject *callback, PyObject **args, Py_ssize_t count, PyObject *context):
    return make(&handles, loop, callback, args, count, context)


cdef Handle new_threadsafe_handle(Home loop, PyObject *callback, PyObject **args, Py_ssize_t count,
                                  PyObject *context):
    return make(&threadsafe_handles, loop, callback, args, count, context)


cdef TimerHandle new_timer(Home loop, object when, double seconds, PyObject *callback, PyObject **args,
                           Py_ssize_t count, PyObject *context):
    """when: as the user gave it, None for a float of seconds."""
    cdef TimerHandle handle = <TimerHandle>make(&timers, loop, callback, args, count, context)
    handle.when_given = when
    handle.when_seconds = seconds
    handle.heap_index = -1
    return handle
