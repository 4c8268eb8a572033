# cython: language_level=3
"""Admission: while several bodies of blocking() are open, who may enter another one waits its turn.

A body keeps its thread.  A burst of tasks that all enter one would go through
the ready queue from thread to thread, and what came behind them (a timer's
task, another protocol) would be late by all of these handoffs; at the bound of
the workers nobody would be left to run the loop at all.  So from LONG_BODIES
open bodies on, the steps of tasks that run a coroutine which has entered a body
before are taken out of the ready queue, and come back one in a turn, in their
order and behind all others, as long as there is a thread for the loop besides.  To the others that
looks as any await does.

Which tasks: a task is known by the code of its coroutine.  A step of one of
them that would not have blocked waits all the same, so there is a limit
(handoff.pyx): the loop would rather stand still than starve a task for which,
perhaps, an open body waits.

Touched by the thread that has P.
"""

from netpoll_loop._core.handles cimport Handle

cdef extern from "Python.h":
    int CO_COROUTINE

import asyncio
import collections
import sys
from asyncio import tasks as _tasks

cdef object _getframe = sys._getframe
cdef tuple TASKS = (asyncio.Task, _tasks._PyTask)

cdef enum:
    # Code objects that are remembered; a program that makes more of them is not served by remembering.
    BLOCKERS_MAX = 256


cdef class Admission:
    def __cinit__(self):
        self.blockers = set()
        self.waiting = collections.deque()

    cdef int note(self) except -1:
        """A body is entered: by the task that is current, and by those that have started it eagerly."""
        cdef object frame = _getframe(0)
        while frame is not None:
            if frame.f_code.co_flags & CO_COROUTINE and frame.f_code not in self.blockers:
                if len(self.blockers) == BLOCKERS_MAX:
                    self.blockers.clear()
                self.blockers.add(frame.f_code)
            frame = frame.f_back
        return 0

    cdef bint may_block(self, object runnable) except -1:
        """Whether it is a step of a task that may enter a body."""
        cdef object task
        if not isinstance(runnable, Handle) or (<Handle>runnable).callback is NULL:
            return False
        try:
            task = getattr(<object>(<Handle>runnable).callback, "__self__", None)
            return isinstance(task, TASKS) and getattr(task.get_coro(), "cr_code", None) in self.blockers
        except Exception:
            # A callable or a task with ideas of its own about attributes.
            return False

    cdef Py_ssize_t sift(self, Scheduler loop, bint room) except -1:
        """They leave the ready queue, but for the first one, if there is room: it runs last. How many wait."""
        cdef size_t todo
        cdef object runnable
        if not self.blockers:
            return 0
        for todo in range(loop.tail - loop.head):
            runnable = loop.ring_pop()
            if runnable is self.admitted:
                # The former turn has ended before it came to it.
                self.waiting.appendleft(runnable)
            elif self.may_block(runnable):
                self.waiting.append(runnable)
            else:
                loop.ring_push(runnable)
        self.admitted = None
        if room and self.waiting:
            self.admitted = self.waiting.popleft()
            loop.ring_push(self.admitted)
        return len(self.waiting)

    cdef int admit_all(self, Scheduler loop) except -1:
        self.admitted = None
        while self.waiting:
            loop.ring_push(self.waiting.popleft())
        return 0
