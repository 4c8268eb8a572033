# cython: language_level=3
"""The timer heap: a 4-ary heap of timer handles, first due first.

Each handle knows its place, so that cancelling takes it out at once instead of
leaving it behind until it is due.  Timers that are due at the same time run in
the order in which they were made.  Touched with the GIL held.
"""

from cpython.mem cimport PyMem_Free, PyMem_Realloc
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF

cdef extern from "Python.h":
    ctypedef struct PyListObject:
        PyObject **ob_item
    PyObject *Py_None


cdef inline bint _before(timer_key *a, timer_key *b) noexcept:
    return a.when < b.when or (a.when == b.when and a.order < b.order)


cdef class TimerHeap:
    def __cinit__(self):
        self.handle_list = []

    def __dealloc__(self):
        PyMem_Free(self.keys)

    def __len__(self):
        return self.count

    cdef int grow(self) except -1:
        cdef Py_ssize_t more = 64 if self.capacity == 0 else self.capacity
        cdef timer_key *grown
        self.handle_list.extend([None] * more)
        self.handles = (<PyListObject *>self.handle_list).ob_item
        grown = <timer_key *>PyMem_Realloc(self.keys, (self.capacity + more) * sizeof(timer_key))
        if grown is NULL:
            raise MemoryError
        self.keys = grown
        self.capacity += more
        return 0

    cdef void place(self, Py_ssize_t i, timer_key key, PyObject *handle) noexcept:
        self.keys[i] = key
        self.handles[i] = handle
        (<TimerHandle>handle).heap_index = i

    cdef void sift_up(self, Py_ssize_t i, timer_key key, PyObject *handle) noexcept:
        cdef Py_ssize_t parent
        while i > 0:
            parent = (i - 1) >> 2
            if not _before(&key, &self.keys[parent]):
                break
            self.place(i, self.keys[parent], self.handles[parent])
            i = parent
        self.place(i, key, handle)

    cdef void sift_down(self, Py_ssize_t i, timer_key key, PyObject *handle) noexcept:
        cdef Py_ssize_t child, best, last
        while True:
            child = 4 * i + 1
            if child >= self.count:
                break
            best = child
            last = min(child + 4, self.count)
            child += 1
            while child < last:
                if _before(&self.keys[child], &self.keys[best]):
                    best = child
                child += 1
            if not _before(&self.keys[best], &key):
                break
            self.place(i, self.keys[best], self.handles[best])
            i = best
        self.place(i, key, handle)

    cdef TimerHandle take_out(self, Py_ssize_t i):
        """Takes the handle at place i out; the last one fills its place."""
        cdef TimerHandle handle = <TimerHandle>self.handles[i]
        cdef timer_key key
        cdef PyObject *last
        self.count -= 1
        last = self.handles[self.count]
        key = self.keys[self.count]
        Py_INCREF(None)
        self.handles[self.count] = Py_None
        handle.heap_index = -1
        if i != self.count:
            if i > 0 and _before(&key, &self.keys[(i - 1) >> 2]):
                self.sift_up(i, key, last)
            else:
                self.sift_down(i, key, last)
        # The list's reference.
        Py_DECREF(handle)
        return handle

    cdef int push(self, TimerHandle handle) except -1:
        cdef timer_key key
        if self.count == self.capacity:
            self.grow()
        key.when = handle.when_seconds
        key.order = self.next_order
        self.next_order += 1
        # Its place at the end was None; the list now owns the handle instead.
        Py_DECREF(None)
        Py_INCREF(handle)
        self.count += 1
        self.sift_up(self.count - 1, key, <PyObject *>handle)
        return 0

    cdef int remove(self, TimerHandle handle) except -1:
        """Takes a handle out; 0 when it isn't in the heap."""
        cdef Py_ssize_t i = handle.heap_index
        if i < 0 or i >= self.count or self.handles[i] != <PyObject *>handle:
            return 0
        self.take_out(i)
        return 1

    cdef double first(self) noexcept:
        return self.keys[0].when

    cdef TimerHandle pop(self):
        return self.take_out(0)

    cdef int clear(self) except -1:
        while self.count:
            self.take_out(self.count - 1)
        return 0
