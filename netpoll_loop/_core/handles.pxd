cdef class Runnable:
    cdef int run(self) except -1
    cdef int failed(self, object loop, object exc) except -1


cdef class Handle(Runnable):
    cdef public object _callback
    cdef public object _args
    cdef public object _context
    cdef public object _loop
    cdef public object _source_traceback
    cdef public object _repr
    cdef public bint _cancelled
    cdef object __weakref__

    cdef void drop(self) noexcept


cdef class ThreadSafeHandle(Handle):
    # The thread that runs the callback; 0: none.
    cdef unsigned long runner
    # An event, once somebody waits for the end of the callback.
    cdef object ended

    cdef int wait(self) except -1


cdef class TimerHandle(Handle):
    cdef public object _when
    cdef double when_seconds
    # Position in the timer heap, -1 when it isn't in it.
    cdef Py_ssize_t heap_index


cdef Handle new_handle(object loop, object callback, object args, object context, bint debug)
cdef Handle new_threadsafe_handle(object loop, object callback, object args, object context, bint debug)
cdef TimerHandle new_timer(object loop, object when, double seconds, object callback, object args,
                           object context, bint debug)
cdef int enter_call(object context, object callback, object args) except -1
cdef int enter_call_one(object context, object callback, object arg) except -1
