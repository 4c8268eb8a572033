from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint32_t, uint64_t

from netpoll_loop._core.descriptor cimport Descriptor
from netpoll_loop._core.engine cimport np_desc, np_engine, np_event, np_kind
from netpoll_loop._core.handles cimport Handle, Home, TimerHandle
from netpoll_loop._core.timers cimport TimerHeap


cdef enum:
    EVENTS_MAX = 256
    SCRATCH_SIZE = 256 * 1024
    # Nanoseconds: a wait for the GIL after which another thread is taken to compute;
    # how long the worker then goes on polling with the GIL held before it parks.
    GIL_SLOW = 1000 * 1000
    GIL_LINGER = 300 * 1000
    # Polls in a row that found nothing while callbacks were ready; nanoseconds between two
    # polls from then on.
    QUIET_TURNS = 64
    POLL_INTERVAL = 50 * 1000
    # So many of those between two calls of breathe(): 1 ms.
    BREATH = 20


cdef class Scheduler(Home):
    cdef np_engine *engine
    cdef np_event *events
    cdef readonly str _mode
    # Without a GIL: what other threads have posted, in the loop's critical section; whether there is something.
    cdef list inbox
    cdef bint posted
    # What asyncio's base classes assign and read. All of it has a place here, so that a loop
    # has no __dict__ until its user sets an attribute: the interpreter finds the methods of
    # such an object faster.
    cdef public bint _closed
    cdef public bint _stopping
    cdef public object _task_factory
    cdef public object _asyncgens
    cdef public object _asyncgens_shutdown_called
    cdef public object _clock_resolution
    cdef public object _coroutine_origin_tracking_enabled
    cdef public object _coroutine_origin_tracking_saved_depth
    cdef public object _csock
    cdef public object _current_handle
    cdef public object _default_executor
    cdef public object _exception_handler
    cdef public object _executor_shutdown_called
    cdef public object _internal_fds
    cdef public object _old_agen_hooks
    cdef public object _old_wakeup_fd
    cdef public object _ready
    cdef public object _scheduled
    cdef public object _selector
    cdef public object _signal_handlers
    cdef public object _ssock
    cdef public object _timer_cancelled_count
    cdef public object _transports
    cdef public object _unix_server_sockets
    cdef public object slow_callback_duration

    # The ready queue: a ring, a power of two large.  The list owns what is in it, so
    # that the garbage collector sees it; empty places are None.
    cdef list ring_list
    cdef PyObject **ring
    cdef size_t ring_mask
    cdef size_t head
    cdef size_t tail
    # What Future and Task are called with; None while the loop doesn't run, for it keeps the loop alive.
    cdef dict loop_only
    cdef TimerHeap timers
    cdef bint own_clock
    # The user has put a time() of his own into the loop.
    cdef bint time_replaced
    # A subclass has its own call_at: call_later goes through it, as asyncio's does.
    cdef bint overrides_call_at

    # P handoff, see handoff.pyx. `changes` moves when attend() has to be asked after the callback that runs: for this
    # thread may have lost P meanwhile, or another one waits for it; `wanted`: how many wait, or have something for M0.
    cdef uint64_t changes
    cdef int wanted
    # Bodies of blocking() that are open: who calls is looked at.
    cdef int inside
    # Steps of tasks that wait for a thread, see admission.pyx.
    cdef Py_ssize_t delayed
    cdef uint64_t turns
    # In the kernel, without the GIL, for an event.
    cdef bint waiting
    # It is being closed: no descriptor may be opened any more.
    cdef bint opens_no_more

    # How many polls in a row found nothing while callbacks were ready, at most QUIET_TURNS: from
    # then on, and while `still` isn't empty, the loop polls only every POLL_INTERVAL. Whoever
    # does I/O sets it to 0.
    cdef int quiet
    # Events came with the last poll: what they have made ready runs before the next one.
    cdef bint fresh
    # np_ticks of the last poll, and how many of them are POLL_INTERVAL; 0: not known yet.
    cdef uint64_t polled_ticks
    cdef uint64_t poll_ticks
    # ... and of the last breathe().
    cdef uint64_t breathed
    # When the engine was opened: nanoseconds, np_ticks.
    cdef int64_t opened_at
    cdef uint64_t opened_ticks

    # fd -> Descriptor: all that is open in the engine; a weak reference to it
    # while nothing but its owner needs it (a paused transport).
    cdef dict descriptors
    # Descriptors that may still be readable without a new event.
    cdef list still
    # Level-triggered descriptors to arm again at the end of the turn.
    cdef list rearm
    # Where streams receive into before the bytes object of the right size is made.
    cdef char *scratch
    # What came last, if it was large: see received() in transport.pyx.
    cdef object delivered
    # The last park ended with a long wait for the GIL. While it is set, see keep_gil(), nanoseconds: when the last turn
    # began, since when the worker has the GIL, when it last released it, and the interpreter's switch interval.
    cdef bint contended
    cdef int64_t turned_at
    cdef int64_t held_from
    cdef int64_t released_at
    cdef int64_t switch_interval
    cdef bint thread_wanted
    # Auto: writes may wait for the end of a turn.
    cdef bint coalesces
    # Forks between their hooks: no thread may be started.  More than one, where the
    # last hook of a fork comes as a callback (forking.py) and the next fork is faster.
    cdef int forks_pending
    # In a forked child: the engine is the parent's.
    cdef bint forked
    # What the engine had counted when it was closed.
    cdef dict last_stats

    cdef int ring_push(self, object runnable) except -1
    cdef int ring_grow(self) except -1
    cdef object ring_pop(self)
    cdef int post(self, Handle handle) except -1
    cdef bint post_if_open(self, Handle handle) except -1
    cdef int wake(self) except -1
    cdef bint has_p(self) noexcept
    cdef int take_posted(self) except -1
    cdef int free_engine(self) except -1
    cdef int turn(self) except -1
    cdef int breathe(self) except -1
    cdef bint poll_is_due(self) noexcept
    cdef void learn_ticks(self) noexcept
    cdef int serve_still(self) except -1
    cdef int poll(self) except -1
    cdef int attend(self) except -1
    cdef int between_turns(self) except -1
    cdef bint delayed_may_run(self) except -1
    cdef int sift(self) except -1
    cdef bint check_caller(self, object callback, object method) except -1
    cdef int park(self, int64_t deadline) except -1
    cdef bint linger(self, int64_t deadline) except -1
    cdef int find_contended(self, int64_t awake) except -1
    cdef void keep_gil(self) noexcept
    cdef int wait_without_engine(self, int64_t deadline) except -1
    cdef int dispatch(self, int count) except -1
    cdef int run_ready(self) except -1
    cdef int arm_again(self) except -1
    cdef int run_other(self, object runnable) except -1
    cdef int run_debug(self, object runnable) except -1
    cdef int64_t deadline(self) except? -2
    cdef double now(self) except? -1.0
    cdef bint clock_is_own(self)
    cdef void reap(self) noexcept
    cdef object soon(self, PyObject *callback, PyObject **args, Py_ssize_t count, PyObject *context)
    cdef object soon_threadsafe(self, PyObject *callback, PyObject **args, Py_ssize_t count, PyObject *context)
    cdef object later(self, object delay, PyObject *callback, PyObject **args, Py_ssize_t count, PyObject *context)
    cdef object add_timer(self, object when, double seconds, PyObject *callback, PyObject **args,
                          Py_ssize_t count, PyObject *context)
    cdef int track_all(self) except -1
    cdef object new_future(self)
    cdef dict keywords(self)
    cdef np_desc *open_descriptor(self, Descriptor descriptor, int fd, np_kind kind) except NULL
    cdef object find_descriptor(self, object fd)
    cdef int hold(self, Descriptor descriptor) except -1
    cdef int unhold(self, Descriptor descriptor) except -1
    cdef int close_descriptor(self, Descriptor descriptor) except -1
    cdef int need_netpoller(self) except -1
    cdef int start_netpoller(self) noexcept
