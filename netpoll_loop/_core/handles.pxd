from cpython.object cimport PyObject
from libc.stdint cimport int64_t


cdef class Runnable:
    cdef int run(self) except -1
    cdef int failed(self, object loop, object exc) except -1


cdef class Home:
    cdef public bint _debug
    # In run_forever: what waits is kept alive by the loop.
    cdef bint running
    # The thread that has P, -1 while that is changing, 0 while the loop doesn't run.
    cdef int64_t thread_id

    cdef int forget_timer(self, TimerHandle handle) except -1
    cdef bint hold_back(self, Runnable runnable) except -1


cdef class DebugInfo:
    cdef object source_traceback
    # The repr at the time of cancel().
    cdef object text


# 96 bytes with the collector's: thousands may wait, and 16 more of each make a burst 6 % slower.
cdef class Handle(Runnable):
    # None once the collector has cleared it.
    cdef Home loop
    # References that it owns; see "memory" in handles.pyx.  NULL: none, or dropped.
    cdef PyObject *callback
    cdef PyObject *context
    # One or two arguments, or the tuple of more of them; which of these: 1, 2, MANY; 0: none, -1: dropped.
    cdef PyObject *first
    cdef PyObject *second
    cdef signed char count
    cdef signed char is_cancelled
    # A ContextState: see "contexts" in handles.pyx.
    cdef signed char context_state
    # The garbage collector knows the handle.
    cdef signed char tracked
    # There is a DebugInfo for it.
    cdef signed char debugged
    cdef object __weakref__

    cdef object shown_context(self)
    cdef int own_context(self) except -1
    cdef object arguments(self)
    cdef void drop(self) noexcept
    cdef int cancel_now(self) except -1
    cdef int enter_failed(self) except -1
    cdef int leave_failed(self) except -1


cdef class ThreadSafeHandle(Handle):
    # The thread that runs the callback; 0: none.
    cdef unsigned long runner
    # An event, once somebody waits for the end of the callback.
    cdef object ended

    cdef int wait(self) except -1


cdef class TimerHandle(Handle):
    # As the user gave it; None: a float that nobody has asked for yet.
    cdef object when_given
    cdef double when_seconds
    # Position in the timer heap, -1 when it isn't in it.
    cdef Py_ssize_t heap_index


cdef Handle new_handle(Home loop, PyObject *callback, PyObject **args, Py_ssize_t count, PyObject *context)
cdef Handle new_threadsafe_handle(Home loop, PyObject *callback, PyObject **args, Py_ssize_t count,
                                  PyObject *context)
cdef TimerHandle new_timer(Home loop, object when, double seconds, PyObject *callback, PyObject **args,
                           Py_ssize_t count, PyObject *context)
cdef void settle(Handle handle) noexcept
cdef void forget_contexts() noexcept
cdef int raise_what_is_set() except -1
cdef int report(Runnable runnable, object loop) except -1
