from netpoll_loop._core.handles cimport TimerHandle


cdef struct timer_entry:
    double when
    unsigned long long order
    void *handle


cdef class TimerHeap:
    cdef timer_entry *entries
    cdef Py_ssize_t count
    cdef Py_ssize_t capacity
    cdef unsigned long long next_order

    cdef int push(self, TimerHandle handle) except -1
    cdef int remove(self, TimerHandle handle) except -1
    cdef double first(self) noexcept
    cdef TimerHandle pop(self)
    cdef void clear(self)
    cdef void place(self, Py_ssize_t i, timer_entry entry) noexcept
    cdef void sift_up(self, Py_ssize_t i, timer_entry entry) noexcept
    cdef void sift_down(self, Py_ssize_t i, timer_entry entry) noexcept
    cdef void take_out(self, Py_ssize_t i) noexcept
