# cython: language_level=3
"""The timer heap: a 4-ary heap of timer handles, first due first.

Each handle knows its place, so that cancelling takes it out at once instead of
leaving it behind until it is due.  Timers that are due at the same time run in
the order in which they were made.  Touched with the GIL held.
"""

from cpython.mem cimport PyMem_Free, PyMem_Realloc
from cpython.ref cimport Py_DECREF, Py_INCREF


cdef inline bint _before(timer_entry *a, timer_entry *b) noexcept:
    return a.when < b.when or (a.when == b.when and a.order < b.order)


cdef class TimerHeap:
    def __dealloc__(self):
        self.clear()
        PyMem_Free(self.entries)

    def __len__(self):
        return self.count

    cdef void place(self, Py_ssize_t i, timer_entry entry) noexcept:
        self.entries[i] = entry
        (<TimerHandle>entry.handle).heap_index = i

    cdef void sift_up(self, Py_ssize_t i, timer_entry entry) noexcept:
        cdef Py_ssize_t parent
        while i > 0:
            parent = (i - 1) >> 2
            if not _before(&entry, &self.entries[parent]):
                break
            self.place(i, self.entries[parent])
            i = parent
        self.place(i, entry)

    cdef void sift_down(self, Py_ssize_t i, timer_entry entry) noexcept:
        cdef Py_ssize_t child, best, last
        while True:
            child = 4 * i + 1
            if child >= self.count:
                break
            best = child
            last = min(child + 4, self.count)
            child += 1
            while child < last:
                if _before(&self.entries[child], &self.entries[best]):
                    best = child
                child += 1
            if not _before(&self.entries[best], &entry):
                break
            self.place(i, self.entries[best])
            i = best
        self.place(i, entry)

    cdef void take_out(self, Py_ssize_t i) noexcept:
        cdef timer_entry moved
        self.count -= 1
        if i == self.count:
            return
        moved = self.entries[self.count]
        if i > 0 and _before(&moved, &self.entries[(i - 1) >> 2]):
            self.sift_up(i, moved)
        else:
            self.sift_down(i, moved)

    cdef int push(self, TimerHandle handle) except -1:
        cdef timer_entry *grown
        cdef Py_ssize_t capacity
        cdef timer_entry entry
        if self.count == self.capacity:
            capacity = 64 if self.capacity == 0 else self.capacity * 2
            grown = <timer_entry *>PyMem_Realloc(self.entries, capacity * sizeof(timer_entry))
            if grown is NULL:
                raise MemoryError
            self.entries = grown
            self.capacity = capacity
        entry.when = handle.when_seconds
        entry.order = self.next_order
        entry.handle = <void *>handle
        self.next_order += 1
        Py_INCREF(handle)
        self.count += 1
        self.sift_up(self.count - 1, entry)
        return 0

    cdef int remove(self, TimerHandle handle) except -1:
        """Takes a handle out; 0 when it isn't in the heap."""
        cdef Py_ssize_t i = handle.heap_index
        if i < 0 or i >= self.count or self.entries[i].handle != <void *>handle:
            return 0
        handle.heap_index = -1
        self.take_out(i)
        Py_DECREF(handle)
        return 1

    cdef double first(self) noexcept:
        return self.entries[0].when

    cdef TimerHandle pop(self):
        cdef TimerHandle handle = <TimerHandle>self.entries[0].handle
        handle.heap_index = -1
        self.take_out(0)
        Py_DECREF(handle)
        return handle

    cdef void clear(self):
        cdef TimerHandle handle
        while self.count:
            self.count -= 1
            handle = <TimerHandle>self.entries[self.count].handle
            handle.heap_index = -1
            Py_DECREF(handle)
            handle = None
