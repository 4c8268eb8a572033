from cpython.object cimport PyObject

from netpoll_loop._core.handles cimport TimerHandle


cdef struct timer_key:
    double when
    unsigned long long order


cdef class TimerHeap:
    # keys[i] is what the handle at place i is sorted by.
    cdef timer_key *keys
    # The list owns the handles, so that the garbage collector sees them; places
    # from count on are None.
    cdef list handle_list
    cdef PyObject **handles
    cdef Py_ssize_t count
    cdef Py_ssize_t capacity
    cdef unsigned long long next_order

    cdef int grow(self) except -1
    cdef int push(self, TimerHandle handle) except -1
    cdef int remove(self, TimerHandle handle) except -1
    cdef double first(self) noexcept
    cdef TimerHandle pop(self)
    cdef int clear(self) except -1
    cdef void place(self, Py_ssize_t i, timer_key key, PyObject *handle) noexcept
    cdef void sift_up(self, Py_ssize_t i, timer_key key, PyObject *handle) noexcept
    cdef void sift_down(self, Py_ssize_t i, timer_key key, PyObject *handle) noexcept
    cdef TimerHandle take_out(self, Py_ssize_t i)
