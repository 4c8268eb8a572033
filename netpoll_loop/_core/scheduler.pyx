# cython: language_level=3, binding=False, always_allow_keywords=False, embedsignature=True, embedsignature.format=clinic
"""The scheduler: ready queue, timers, and the turn that polls and runs.

A turn is asyncio's: poll, queue what the events make ready, queue the timers
that are due, then run what was queued when the running began.  The worker
holds the poll token only inside np_poll and np_park, never while Python runs.
Everything here is touched with the GIL held, by the thread that has P;
call_soon_threadsafe pushes on the ready queue from any thread and wakes the
worker if it sleeps.  Without a GIL it pushes on the inbox: see freethreading.pxd.
"""

from cpython.exc cimport PyErr_CheckSignals
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.object cimport PyObject
from cpython.ref cimport Py_INCREF, Py_REFCNT
from libc.math cimport ceil

from netpoll_loop._core.engine cimport (
    NP_AUTO, NP_DEDICATED, NP_INLINE, NP_POLLER_NETPOLLER, NP_POLLER_WORKER, NP_R,
    np_backend_fd, np_close, np_contended, np_current, np_done,
    np_engine_free, np_engine_new, np_fork_child, np_get_stats, np_open, np_park,
    np_park_cancel, np_park_prepare, np_poll, np_rearm, np_send_left, np_send_one_by_one, np_set_running,
    np_set_spin, np_settle, np_skip_poll, np_stats, np_switch_always, np_thread_start, np_thread_stop, np_ticks, np_wake,
)
from netpoll_loop._core.freethreading cimport FREE_THREADED
from netpoll_loop._core.handles cimport (
    Handle, Home, Runnable, ThreadSafeHandle, TimerHandle, new_handle, new_threadsafe_handle, new_timer, settle,
    forget_contexts,
)

cimport cython

import os
import sys
import time
import warnings
import weakref
from asyncio import base_events as _base_events
from asyncio import futures as _futures

from netpoll_loop._interpreter import breathe
from netpoll_loop.options import may_use_io_uring, switches_always

cdef extern from "Python.h":
    ctypedef struct PyTypeObject:
        pass
    ctypedef struct PyListObject:
        PyObject **ob_item
    PyObject *Py_None
    void Py_DECREF(PyObject *o)
    PyObject *_PyType_Lookup(PyTypeObject *type, object name)
    PyTypeObject *Py_TYPE(object o)
    int PyObject_GenericSetAttr(object o, object name, PyObject *value) except -1
    object PyObject_Call(object callable, object args, object keywords)
    PyObject **tuple_items "&PyTuple_GET_ITEM"(object tuple, Py_ssize_t i)
    ctypedef struct PyThreadState:
        pass
    PyThreadState *PyEval_SaveThread()
    void PyEval_RestoreThread(PyThreadState *state)
    unsigned long PyThread_get_thread_ident()

cdef extern from "<time.h>" nogil:
    cdef struct timespec:
        long tv_sec
        long tv_nsec
    int CLOCK_MONOTONIC
    int clock_gettime(int clock, timespec *ts)

# One nanosecond: what time.get_clock_info("monotonic") gives on Linux.
cdef double CLOCK_RESOLUTION = 1e-9
cdef object _time_name = "time"
cdef object weak_reference = weakref.ref
cdef object _format_handle = _base_events._format_handle
cdef dict MODES = {"inline": NP_INLINE, "auto": NP_AUTO, "dedicated": NP_DEDICATED}


cdef inline double monotonic() noexcept nogil:
    cdef timespec ts
    clock_gettime(CLOCK_MONOTONIC, &ts)
    return <double>ts.tv_sec + <double>ts.tv_nsec * 1e-9


cdef inline int64_t nanoseconds() noexcept nogil:
    cdef timespec ts
    clock_gettime(CLOCK_MONOTONIC, &ts)
    return <int64_t>ts.tv_sec * 1000000000 + ts.tv_nsec


cdef PyTypeObject *handle_type = <PyTypeObject *>Handle
cdef PyTypeObject *timer_type = <PyTypeObject *>TimerHandle
cdef PyTypeObject *threadsafe_type = <PyTypeObject *>ThreadSafeHandle


cdef inline bint is_handle(PyObject *item) noexcept:
    cdef PyTypeObject *cls = Py_TYPE(<object>item)
    return cls == handle_type or cls == timer_type or cls == threadsafe_type


cdef class Scheduler(Home):
    """The C base of the loop; Loop adds asyncio's unix event loop to it."""

    def __cinit__(self, *args, **kwargs):
        self.timers = TimerHeap()
        self.inbox = []
        self.descriptors = {}
        self.still = []
        self.rearm = []
        self.ring_list = [None] * 256
        self.ring = (<PyListObject *>self.ring_list).ob_item
        self.events = <np_event *>PyMem_Malloc(EVENTS_MAX * sizeof(np_event))
        self.scratch = <char *>PyMem_Malloc(SCRATCH_SIZE)
        if self.events is NULL or self.scratch is NULL:
            raise MemoryError
        self.ring_mask = 255

    def _open_engine(self, str mode, int64_t spin_ns=0):
        """Opens the engine; once, before the base class is initialised."""
        cdef int error = 0
        self._mode = mode
        self.engine = np_engine_new(MODES[mode], &error)
        if self.engine is NULL:
            raise OSError(-error, os.strerror(-error))
        np_set_spin(self.engine, spin_ns)
        self.thread_wanted = mode != "inline"
        self.coalesces = mode == "auto"
        if not may_use_io_uring():
            np_send_one_by_one(self.engine)
        if switches_always():
            np_switch_always(self.engine)
        self.opened_at = nanoseconds()
        self.opened_ticks = np_ticks()
        self.overrides_call_at = type(self).call_at is not Scheduler.call_at

    def __dealloc__(self):
        PyMem_Free(self.events)
        PyMem_Free(self.scratch)
        np_engine_free(self.engine)

    def __setattr__(self, name, value):
        if name == _time_name:
            self.time_replaced = True
        PyObject_GenericSetAttr(self, name, <PyObject *>value)

    def __delattr__(self, name):
        PyObject_GenericSetAttr(self, name, NULL)
        if name == _time_name:
            self.time_replaced = False

    # The thread that has P, -1 while that is changing, None while the loop doesn't run. Any thread may ask.
    @property
    def _thread_id(self):
        cdef int64_t thread_id = self.thread_id
        return None if thread_id == 0 else thread_id

    @_thread_id.setter
    def _thread_id(self, value):
        self.thread_id = 0 if value is None else <int64_t>value

    # ---- the ready queue ----------------------------------------------------

    cdef int ring_grow(self) except -1:
        cdef size_t size, i, wrapped
        cdef PyObject *empty
        cdef list more
        while True:
            # Making a list may run the garbage collector, and so call_soon: look again.
            size = self.ring_mask + 1
            more = [None] * size
            if self.tail - self.head <= self.ring_mask:
                return 0
            if size == self.ring_mask + 1:
                break
        self.ring_list.extend(more)
        self.ring = (<PyListObject *>self.ring_list).ob_item
        # What had wrapped around goes behind the old end.
        wrapped = self.tail & self.ring_mask
        for i in range(wrapped):
            empty = self.ring[size + i]
            self.ring[size + i] = self.ring[i]
            self.ring[i] = empty
        self.head &= self.ring_mask
        self.tail = self.head + size
        self.ring_mask = 2 * size - 1
        return 0

    cdef int ring_push(self, object runnable) except -1:
        if self.tail - self.head > self.ring_mask:
            self.ring_grow()
        Py_INCREF(runnable)
        self.ring[self.tail & self.ring_mask] = <PyObject *>runnable
        self.tail += 1
        Py_DECREF(Py_None)
        return 0

    cdef object ring_pop(self):
        cdef PyObject *item = self.ring[self.head & self.ring_mask]
        cdef object runnable = <object>item
        Py_INCREF(None)
        self.ring[self.head & self.ring_mask] = Py_None
        self.head += 1
        Py_DECREF(item)
        return runnable

    # ---- scheduling ---------------------------------------------------------

    # The methods that asyncio's own code and every library call all the time have a second
    # entry, for the usual form of their arguments: see "fast entries" below.

    def call_soon(self, callback, *args, context=None):
        """asyncio.loop.call_soon."""
        return self.soon(<PyObject *>callback, tuple_items(args, 0), len(args), <PyObject *>context)

    cdef object soon(self, PyObject *callback, PyObject **args, Py_ssize_t count, PyObject *context):
        cdef bint foreign = False
        if self._closed:
            self._check_closed()
        if self._debug or self.inside:
            foreign = self.check_caller(<object>callback, "call_soon")
        cdef Handle handle = new_handle(self, callback, args, count, context)
        if FREE_THREADED and not self.has_p():
            self.post(handle)
            return handle
        if FREE_THREADED and self.posted:
            # They came before.
            self.take_posted()
        self.ring_push(handle)
        if foreign:
            np_wake(self.engine)
        return handle

    def _call_soon(self, callback, args, context):
        cdef tuple arguments = tuple(args)
        cdef Handle handle = new_handle(
            self, <PyObject *>callback, tuple_items(arguments, 0), len(arguments), <PyObject *>context)
        self.ring_push(handle)
        return handle

    def call_soon_threadsafe(self, callback, *args, context=None):
        """asyncio.loop.call_soon_threadsafe: from any thread, wakes the loop."""
        return self.soon_threadsafe(<PyObject *>callback, tuple_items(args, 0), len(args), <PyObject *>context)

    cdef object soon_threadsafe(self, PyObject *callback, PyObject **args, Py_ssize_t count, PyObject *context):
        if self._closed:
            self._check_closed()
        if self._debug:
            self._check_callback(<object>callback, "call_soon_threadsafe")
        cdef Handle handle = new_threadsafe_handle(self, callback, args, count, context)
        if FREE_THREADED:
            self.post(handle)
        else:
            self.ring_push(handle)
            np_wake(self.engine)
        return handle

    cdef int post(self, Handle handle) except -1:
        """Without a GIL: hands it to the thread that has P."""
        if not self.post_if_open(handle):
            raise RuntimeError("Event loop is closed")
        return 0

    @cython.critical_section
    cdef bint post_if_open(self, Handle handle) except -1:
        if self._closed or self.engine is NULL:
            return False
        if not self.running:
            settle(handle)
        self.inbox.append(handle)
        self.posted = True
        np_wake(self.engine)
        return True

    cdef bint has_p(self) noexcept:
        return self.thread_id == <int64_t>PyThread_get_thread_ident()

    @cython.critical_section
    cdef int take_posted(self) except -1:
        """What other threads have posted is ready; a timer is posted to be set, and again to be cancelled."""
        cdef list inbox = self.inbox
        self.inbox = []
        self.posted = False
        for handle in inbox:
            if type(handle) is not TimerHandle:
                self.ring_push(handle)
            elif (<TimerHandle>handle).heap_index >= 0:
                self.timers.remove(<TimerHandle>handle)
            elif not (<TimerHandle>handle).is_cancelled:
                self.own_clock = self.clock_is_own()
                self.timers.push(<TimerHandle>handle)
        return 0

    def call_later(self, delay, callback, *args, context=None):
        """asyncio.loop.call_later; delay in seconds."""
        if self.overrides_call_at:
            if delay is None:
                raise TypeError("delay must not be None")
            return self.call_at(self.time() + delay, callback, *args, context=context)
        return self.later(delay, <PyObject *>callback, tuple_items(args, 0), len(args), <PyObject *>context)

    cdef object later(self, object delay, PyObject *callback, PyObject **args, Py_ssize_t count, PyObject *context):
        cdef object when
        if type(delay) is float or type(delay) is int:
            if self.clock_is_own():
                # loop.time() + delay, as a float that is made when somebody asks for it.
                return self.add_timer(None, monotonic() + <double>delay, callback, args, count, context)
        elif delay is None:
            raise TypeError("delay must not be None")
        when = self.time() + delay
        return self.add_timer(when, when, callback, args, count, context)

    def call_at(self, when, callback, *args, context=None):
        """asyncio.loop.call_at; when in seconds of loop.time()."""
        if when is None:
            raise TypeError("when cannot be None")
        return self.add_timer(when, when, <PyObject *>callback, tuple_items(args, 0), len(args), <PyObject *>context)

    cdef object add_timer(self, object when, double seconds, PyObject *callback, PyObject **args,
                          Py_ssize_t count, PyObject *context):
        cdef TimerHandle handle
        cdef bint foreign = False
        if self._closed:
            self._check_closed()
        if self._debug or self.inside:
            # asyncio names call_at, whichever of the two was called.
            foreign = self.check_caller(<object>callback, "call_at")
        if seconds != seconds:
            # NaN has no place in an order; asyncio finds it due at once.
            seconds = float("-inf")
        handle = new_timer(self, when, seconds, callback, args, count, context)
        if FREE_THREADED and not self.has_p():
            self.post(handle)
            return handle
        self.timers.push(handle)
        if foreign:
            np_wake(self.engine)
        return handle

    def create_future(self):
        """asyncio.loop.create_future."""
        return self.new_future()

    cdef object new_future(self):
        return PyObject_Call(_futures.Future, (), self.keywords())

    cdef dict keywords(self):
        """{"loop": self}, not to be changed: while the loop runs, it is made once."""
        cdef dict made = self.loop_only
        return {"loop": self} if made is None else made

    def create_task(self, coro, **kwargs):
        """asyncio.loop.create_task."""
        return super(Scheduler, self).create_task(coro, **kwargs)

    def get_debug(self):
        """asyncio.loop.get_debug."""
        return self._debug

    def is_closed(self):
        """asyncio.loop.is_closed."""
        return self._closed

    def is_running(self):
        """asyncio.loop.is_running."""
        return self.thread_id != 0

    def time(self):
        """asyncio.loop.time: seconds of CLOCK_MONOTONIC."""
        return monotonic()

    def _timer_handle_cancelled(self, handle):
        if isinstance(handle, TimerHandle):
            self.forget_timer(<TimerHandle>handle)

    cdef int forget_timer(self, TimerHandle handle) except -1:
        if FREE_THREADED and not self._closed and not self.has_p():
            # A loop that is just being closed has forgotten it.
            self.post_if_open(handle)
        elif self.timers.remove(handle):
            settle(handle)
        return 0

    def _add_callback(self, handle):
        if not handle._cancelled:
            self.ring_push(handle)

    def _add_callback_signalsafe(self, handle):
        self._add_callback(handle)
        np_wake(self.engine)

    def _write_to_self(self):
        self.wake()

    def stop(self):
        """asyncio.loop.stop: run_forever returns after this turn."""
        self._stopping = True
        # From another thread it isn't allowed, but must not hang either.
        self.wake()

    @cython.critical_section
    cdef int wake(self) except -1:
        """From any thread, beside close() too."""
        if self.engine is not NULL:
            np_wake(self.engine)
        return 0

    # ---- what P handoff adds ------------------------------------------------

    cdef int attend(self) except -1:
        """Between two callbacks, when `changes` has moved; whether the turn is to end here."""
        return 0

    cdef int between_turns(self) except -1:
        """On M0, while something is wanted of it."""
        return 0

    cdef bint delayed_may_run(self) except -1:
        """Whether a step that is delayed could run now."""
        return False

    cdef int sift(self) except -1:
        """Before the ready queue is run, while bodies are open or steps are delayed."""
        return 0

    cdef bint check_caller(self, object callback, object method) except -1:
        """In debug mode, or while P moves: who calls, and what. Whether the loop has to be woken."""
        self._check_thread()
        self._check_callback(callback, method)
        return False

    # ---- the turn -----------------------------------------------------------

    cdef bint clock_is_own(self):
        # Patched or overridden loop.time() moves the timers, as in asyncio.
        return not self.time_replaced and _PyType_Lookup(Py_TYPE(self), _time_name) == _own_time

    cdef double now(self) except? -1.0:
        if self.own_clock:
            return monotonic()
        return self.time()

    cdef int64_t deadline(self) except? -2:
        """When to wake for the first timer: absolute ns, -1 for never, 0 for at once."""
        cdef double left, when
        if self.delayed and self.delayed_may_run():
            return 0
        if self.timers.count == 0:
            return -1
        when = self.timers.first()
        left = when - self.now()
        if left <= 0:
            return 0
        if left > 86400.0:
            left = 86400.0
            when = monotonic() + left
        elif not self.own_clock:
            when = monotonic() + left
        return <int64_t>ceil(when * 1e9)

    cdef int dispatch(self, int count) except -1:
        cdef int i = 0
        cdef Descriptor descriptor = None
        self.fresh = True
        if count < 0:
            # The poller itself failed: closed behind our back.
            raise OSError(-count, os.strerror(-count))
        while i < count:
            try:
                while i < count:
                    i += 1
                    # Closed since the wait, by another thread or the garbage collector?
                    if np_current(&self.events[i - 1]):
                        descriptor = <Descriptor>self.events[i - 1].user
                        descriptor.on_ready(self.events[i - 1].bits)
            except BaseException as exc:
                descriptor.failed(self, exc)
        return 0

    cdef int poll(self) except -1:
        """Asks for events, with the GIL held; parks when there is nothing to run."""
        cdef int64_t deadline
        cdef int count = np_poll(self.engine, self.events, EVENTS_MAX)
        self.fresh = False
        self.polled_ticks = np_ticks()
        if self.poll_ticks == 0:
            self.learn_ticks()
        if count:
            self.quiet = 0
            self.dispatch(count)
        if self.still:
            self.serve_still()
        if FREE_THREADED and self.posted:
            self.take_posted()
        if self.head != self.tail:
            if self.quiet < QUIET_TURNS:
                self.quiet += 1
        elif not self._stopping:
            self.quiet = 0
            deadline = self.deadline()
            if deadline != 0 and not (self.contended and self.linger(deadline)):
                self.park(deadline)
        return 0

    cdef bint linger(self, int64_t deadline) except -1:
        """Polls for a while without releasing the GIL; whether something came, a timer for example.

        Another thread computes: to give it the GIL at every pause in the traffic would cost the switch interval (5 ms)
        each time. It gets its share all the same, for it may ask for the GIL while callbacks run.
        """
        cdef int count
        cdef int64_t end = nanoseconds() + GIL_LINGER
        cdef bint timer = 0 < deadline < end
        if timer:
            end = deadline
        while True:
            count = np_poll(self.engine, self.events, EVENTS_MAX)
            if count:
                self.dispatch(count)
            if self.head != self.tail or self._stopping or self.wanted or self.posted:
                return True
            # The netpoller may be behind this thread on its CPU.
            np_send_left(self.engine)
            if nanoseconds() >= end:
                return timer

    cdef int park(self, int64_t deadline) except -1:
        cdef int count
        cdef int64_t awake
        if self.forked:
            return self.wait_without_engine(deadline)
        forget_contexts()
        # What the poll has sent is not to be kept for as long as nothing happens.
        self.reap()
        np_park_prepare(self.engine)
        if self.head != self.tail or self._stopping or self.wanted or self.posted:
            np_park_cancel(self.engine)
            return 0
        self.waiting = True
        with nogil:
            count = np_park(self.engine, self.events, EVENTS_MAX, deadline)
            awake = nanoseconds()
        self.waiting = False
        self.find_contended(awake)
        # What was received is queued before a signal handler may raise.
        if count:
            self.dispatch(count)
        return 0

    cdef int find_contended(self, int64_t awake) except -1:
        """After a park that ended at `awake`: whether taking the GIL back was slow."""
        cdef int64_t now = nanoseconds()
        if self.contended != (now - awake >= GIL_SLOW):
            self.contended = not self.contended
            np_contended(self.engine, self.contended)
            self.switch_interval = <int64_t>(sys.getswitchinterval() * 1e9)
        self.turned_at = self.held_from = self.released_at = now
        return 0

    cdef void keep_gil(self) noexcept:
        """Beside a thread that computes: the GIL for up to two switch intervals, where the other one has it for one.

        Whoever waits for the GIL asks for it when a switch interval has gone by in which nobody released it. So it is
        released, and taken back before the other thread is awake.
        """
        cdef int64_t now = nanoseconds()
        cdef int64_t took = now - self.turned_at
        self.turned_at = now
        if took >= self.switch_interval:
            # Only a turn in which the other thread had the GIL takes this long.
            self.held_from = now - (took - self.switch_interval)
            self.released_at = now
        elif now - self.held_from < self.switch_interval and now - self.released_at >= self.switch_interval // 4:
            self.released_at = now
            PyEval_RestoreThread(PyEval_SaveThread())

    cdef int wait_without_engine(self, int64_t deadline) except -1:
        # What is ready and timers still work in a forked child, so that its exceptions and
        # its exit get through the loop; nothing else can come.
        if deadline < 0:
            raise RuntimeError(
                "This event loop was inherited from the parent process by fork: create a new one"
            )
        time.sleep(max(0.0, deadline * 1e-9 - monotonic()))
        return 0

    cdef int turn(self) except -1:
        cdef double end
        cdef bint skips
        self.turns += 1
        if self.contended and not FREE_THREADED:
            self.keep_gil()
        if self.rearm:
            # An exception that went through has kept the last turn from it.
            self.arm_again()
        if FREE_THREADED and self.posted:
            self.take_posted()
        if self.timers.count:
            self.own_clock = self.clock_is_own()
        # A few events that have come meanwhile would make a turn of their own out of what the many have woken.
        skips = self.fresh and self.head != self.tail and np_skip_poll(self.engine)
        if skips:
            self.fresh = False
        if not skips and ((self.quiet < QUIET_TURNS and not self.still) or self.poll_is_due()):
            self.poll()
            self.reap()
            PyErr_CheckSignals()
            if self.poll_ticks != 0 and self.polled_ticks - self.breathed >= BREATH * self.poll_ticks:
                self.breathe()
        elif self.still:
            self.serve_still()
        if FREE_THREADED and self.posted:
            self.take_posted()
        if self.timers.count:
            end = self.now() + CLOCK_RESOLUTION
            while self.timers.count and self.timers.first() < end:
                self.ring_push(self.timers.pop())
        if self.inside or self.delayed:
            self.sift()
        return self.run_ready()

    cdef int breathe(self) except -1:
        """What the interpreter does between bytecodes, as callbacks in C run none: others get the GIL if they ask."""
        self.breathed = self.polled_ticks
        breathe()
        return 0

    cdef bint poll_is_due(self) noexcept:
        """For a loop that has enough to do: whether POLL_INTERVAL has gone by since the last poll."""
        if self._stopping or (self.head == self.tail and not self.still):
            return True
        return np_ticks() - self.polled_ticks >= self.poll_ticks

    cdef void learn_ticks(self) noexcept:
        """How long a tick is shows in the time since the loop was made."""
        cdef int64_t elapsed = nanoseconds() - self.opened_at
        if elapsed >= 1000 * 1000:
            self.poll_ticks = <uint64_t>(
                <double>POLL_INTERVAL / <double>elapsed * <double>(self.polled_ticks - self.opened_ticks)
            )

    cdef int serve_still(self) except -1:
        """What may be readable without a new event."""
        cdef list still = self.still
        cdef Descriptor descriptor
        self.still = []
        self.quiet = 0
        for item in still:
            descriptor = <Descriptor>item
            if descriptor.desc is not NULL:
                descriptor.on_ready(NP_R)
        return 0

    cdef int run_ready(self) except -1:
        cdef size_t todo = self.tail - self.head
        cdef uint64_t seen = self.changes
        cdef PyObject *item
        cdef Handle handle
        while todo and self.head != self.tail:
            todo -= 1
            item = self.ring[self.head & self.ring_mask]
            if self._debug:
                self.run_debug(self.ring_pop())
            elif is_handle(item):
                # As ring_pop; the most frequent case.
                Py_INCREF(None)
                self.ring[self.head & self.ring_mask] = Py_None
                self.head += 1
                handle = <Handle>item
                Py_DECREF(item)
                handle.run()
                if Py_REFCNT(handle) > 1:
                    settle(handle)
            else:
                self.run_other(self.ring_pop())
            if self.changes != seen:
                if self.attend():
                    break
                seen = self.changes
        if self.rearm:
            self.arm_again()
        return 0

    cdef int run_other(self, object runnable) except -1:
        if isinstance(runnable, Runnable):
            return (<Runnable>runnable).run()
        if not runnable._cancelled:
            runnable._run()
        return 0

    cdef int run_debug(self, object runnable) except -1:
        if getattr(runnable, "_cancelled", False):
            return 0
        try:
            self._current_handle = runnable if hasattr(runnable, "_source_traceback") else None
            start = self.time()
            self.run_other(runnable)
            if isinstance(runnable, Handle):
                settle(<Handle>runnable)
            duration = self.time() - start
            if duration >= self.slow_callback_duration:
                name = _format_handle(runnable) if hasattr(runnable, "_callback") else str(runnable)
                # Looked up now: it is what asyncio's own loop would log through.
                _base_events.logger.warning("Executing %s took %.3f seconds", name, duration)
        finally:
            self._current_handle = None
        return 0

    cdef int arm_again(self) except -1:
        cdef list again = self.rearm
        cdef Descriptor descriptor
        self.rearm = []
        for item in again:
            descriptor = <Descriptor>item
            if descriptor.desc is not NULL:
                np_rearm(self.engine, descriptor.desc)
        return 0

    cdef void reap(self) noexcept:
        # Drops the references that the engine's write queue no longer needs.
        cdef void *cookie = np_done(self.engine)
        while cookie is not NULL:
            Py_DECREF(<PyObject *>cookie)
            cookie = np_done(self.engine)

    def _run_once(self):
        """One turn; asyncio's private name, for those who drive a loop by hand."""
        self.turn()

    def _run(self):
        """Turns until stop()."""
        if type(self)._run_once is not Scheduler._run_once:
            while True:
                self._run_once()
                if self.wanted:
                    self.between_turns()
                if self._stopping:
                    return
        while True:
            self.turn()
            if self.wanted:
                self.between_turns()
            if self._stopping:
                return

    def _enter_run(self):
        if self._mode == "dedicated":
            self.need_netpoller()
        np_set_running(self.engine, 1)
        self.quiet = 0
        if not FREE_THREADED:
            self.loop_only = {"loop": self}
        self.running = True

    def _leave_run(self):
        self.running = False
        self.loop_only = None
        if FREE_THREADED:
            self.take_posted()
        self.track_all()
        forget_contexts()
        # What asyncio would have sent by now is sent.
        np_settle(self.engine)
        self.reap()
        np_set_running(self.engine, 0)

    cdef int track_all(self) except -1:
        """The loop no longer runs: the garbage collector has to know what waits in it."""
        cdef size_t i
        cdef Py_ssize_t j
        cdef object runnable
        for i in range(self.head, self.tail):
            runnable = <object>self.ring[i & self.ring_mask]
            if isinstance(runnable, Handle):
                settle(<Handle>runnable)
        for j in range(self.timers.count):
            settle(<Handle>self.timers.handles[j])
        return 0

    # ---- descriptors --------------------------------------------------------

    cdef np_desc *open_descriptor(self, Descriptor descriptor, int fd, np_kind kind) except NULL:
        """Opens fd in the engine; one that was open under its number has to leave."""
        cdef int error = 0
        cdef np_desc *desc
        cdef object former
        if self.opens_no_more:
            raise RuntimeError("Event loop is closed")
        former = self.find_descriptor(fd)
        if former is not None and former is not descriptor:
            # np_open replaces its registration: no event of it comes any more.
            (<Descriptor>former).desc = NULL
            del self.descriptors[fd]
            (<Descriptor>former).on_evicted(False)
        self.quiet = 0
        desc = np_open(self.engine, fd, kind, <void *>descriptor, &error)
        if desc is NULL:
            if former is descriptor:
                descriptor.desc = NULL
                del self.descriptors[fd]
            raise OSError(-error, os.strerror(-error))
        descriptor.desc = desc
        descriptor.fd = fd
        self.descriptors[fd] = descriptor
        return desc

    cdef object find_descriptor(self, object fd):
        cdef object entry = self.descriptors.get(fd)
        return entry() if isinstance(entry, weak_reference) else entry

    cdef int hold(self, Descriptor descriptor) except -1:
        """From here on the loop keeps the descriptor alive, as its selector does in asyncio."""
        if descriptor.desc is not NULL:
            self.descriptors[descriptor.fd] = descriptor
        return 0

    cdef int unhold(self, Descriptor descriptor) except -1:
        """Nothing is to come of it: if nobody else keeps it, it is collected, with a warning."""
        if descriptor.desc is not NULL:
            self.descriptors[descriptor.fd] = weak_reference(descriptor)
        return 0

    cdef int close_descriptor(self, Descriptor descriptor) except -1:
        """Takes it out of the engine; the caller may close the fd afterwards."""
        cdef np_desc *desc = descriptor.desc
        if desc is NULL:
            return 0
        descriptor.desc = NULL
        np_close(self.engine, desc)
        entry = self.descriptors.get(descriptor.fd)
        if entry is descriptor or isinstance(entry, weak_reference):
            del self.descriptors[descriptor.fd]
        self.reap()
        return 0

    def _close_core(self):
        """Drops all callbacks, takes every descriptor out and closes the engine.

        The base class still has its self-pipe to close: nothing of it is open here any more.
        """
        cdef Descriptor descriptor
        # What is dropped here may run finalizers.
        self.opens_no_more = True
        for fd in list(self.descriptors):
            descriptor = self.find_descriptor(fd)
            if descriptor is None:
                continue
            self.close_descriptor(descriptor)
            descriptor.on_evicted(True)
        self.thread_wanted = False
        if self.engine is not NULL:
            np_thread_stop(self.engine)
            self.reap()
        self.still.clear()
        self.rearm.clear()
        self.delivered = None
        if self.posted:
            self.take_posted()
        while self.head != self.tail:
            self.ring_pop()
        self.timers.clear()
        self.last_stats = self._core_stats()
        self.free_engine()

    @cython.critical_section
    cdef int free_engine(self) except -1:
        np_engine_free(self.engine)
        self.engine = NULL
        return 0

    # ---- the netpoller thread -----------------------------------------------

    cdef int need_netpoller(self) except -1:
        cdef int error
        if not self.thread_wanted:
            return 0
        error = self.start_netpoller()
        if error == 0:
            return 0
        if self._mode == "dedicated":
            self.thread_wanted = True
            raise OSError(-error, f"can't start the netpoller thread: {os.strerror(-error)}")
        warnings.warn(
            f"can't start the netpoller thread ({os.strerror(-error)}); the loop polls inline",
            RuntimeWarning,
            stacklevel=2,
        )
        return 0

    @cython.critical_section
    cdef int start_netpoller(self) noexcept:
        """0, or a negative errno. Beside a fork in another thread, or a close, it does nothing."""
        if not self.thread_wanted or self.forks_pending or self.engine is NULL:
            return 0
        self.thread_wanted = False
        return np_thread_start(self.engine)

    # These may come on another thread than the loop's.

    @cython.critical_section
    def _before_fork(self):
        """Joins the netpoller thread, so that none exists while the process forks."""
        cdef np_stats snapshot
        if self.engine is NULL or self._closed:
            return
        # None is started either until the fork is over.
        self.forks_pending += 1
        np_get_stats(self.engine, &snapshot)
        if snapshot.thread_running:
            np_thread_stop(self.engine)
            self.thread_wanted = True

    def _after_fork_parent(self):
        with cython.critical_section(self):
            if self.forks_pending > 0:
                self.forks_pending -= 1
        if self.thread_wanted and not self._closed:
            self.need_netpoller()

    def _after_fork_child(self):
        self.thread_wanted = False
        self.forked = True
        self.forks_pending = 0
        if self.engine is not NULL:
            np_fork_child(self.engine)

    @cython.critical_section
    def _at_exit(self):
        """Before the interpreter is finalized: no thread of ours may be left."""
        self.thread_wanted = False
        if self.engine is not NULL:
            np_thread_stop(self.engine)

    def _get_backend_id(self):
        """The number of the epoll descriptor; uvloop's private name, that tests of libraries use."""
        return np_backend_fd(self.engine)

    @cython.critical_section
    def _core_stats(self):
        """The engine's numbers, those at the time of close() if the loop is closed."""
        cdef np_stats s
        if self.engine is NULL:
            return dict(self.last_stats)
        np_get_stats(self.engine, &s)
        if s.poller == NP_POLLER_NETPOLLER:
            poller = "netpoller"
        elif s.poller == NP_POLLER_WORKER:
            poller = "worker"
        else:
            poller = "none"
        return {
            "polls": s.polls,
            "events": s.events,
            "handoffs": s.handoffs,
            "inline_syscalls": s.inline_syscalls,
            "netpoller_syscalls": s.netpoller_syscalls,
            "bytes_received": s.bytes_received,
            "bytes_sent": s.bytes_sent,
            "stalls": s.stalls,
            "descriptors": s.descriptors,
            "bytes_ahead": s.bytes_ahead,
            "bytes_unsent": s.bytes_unsent,
            "offloading": bool(s.offloading),
            "batching": bool(s.batching),
            "wakeups": s.wakeups,
            "poller": poller,
            "netpoller_thread": bool(s.thread_running),
            "mode": self._mode,
        }


# What loop.time() is unless it was overridden or patched; borrowed from the class, which is immortal.
cdef PyObject *_own_time = _PyType_Lookup(<PyTypeObject *>Scheduler, _time_name)
