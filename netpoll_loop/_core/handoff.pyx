# cython: language_level=3
"""P handoff: a loop goes on, on another worker thread, while one of its callbacks blocks.

P is the right to run the loop's callbacks, and exactly one thread has it.  The
thread that calls run_forever is M0; spares are threads that wait for an offer.
Everything here is touched with the GIL held, but for the two waits in
netpoll/handoff.c, which are made without it.  Where there is no GIL, the loop's
critical section stands for it (freethreading.pxd).

The states of P, and who moves it where:

    NONE      nobody runs the loop          M0: to HELD, at the start of a run
    HELD      `owner` runs callbacks        owner: to OFFERED (enter), HELD by another thread (grant), HOME, NONE
    OFFERED   the last owner is in a body   a spare whose watch reported the offer: to HELD
                                            any thread whose body has ended: to HELD
    HOME      the run is to end             M0: to HELD
    GONE      the loop was closed

A thread whose body has ended while another one has P takes a seat and waits;
the owner grants it P between two callbacks, after at least one whole turn of
its own, so that I/O and timers go on between two returners.  M0 comes first,
and gets P back as soon as it waits for it.

The way of a body: the current task, the running loop and loop._thread_id are
taken from the thread at its start, and restored at its end (in this order,
which CPython 3.14 wants).  The thread's Context stays entered meanwhile: what
needs the same one is held back until the callback has ended.

After each callback the scheduler compares `changes`, which whatever happens
here has moved, and calls attend().
"""

from cpython.exc cimport PyErr_CheckSignals
from cpython.object cimport PyObject
from libc.errno cimport EINTR
from libc.stdint cimport int64_t, uint64_t

from netpoll_loop._core.admission cimport Admission
from netpoll_loop._core.engine cimport np_wake
from netpoll_loop._core.handles cimport Runnable
from netpoll_loop._core.scheduler cimport Scheduler
from netpoll_loop._core.sock cimport SockLoop

cimport cython

import asyncio
import collections
import functools
import inspect
import sys
import threading
import weakref
from asyncio import events as _events
from asyncio import runners as _runners
from asyncio import tasks as _tasks
from asyncio.constants import DEBUG_STACK_DEPTH as _DEBUG_STACK_DEPTH
from asyncio.log import logger

cdef extern from "handoff.h" nogil:
    ctypedef struct np_offers:
        pass
    ctypedef struct np_seat:
        pass
    np_offers *np_offers_new(int64_t tick_ns, uint64_t last)
    void np_offers_free(np_offers *o)
    uint64_t np_offer(np_offers *o, int urgent)
    void np_retract(np_offers *o)
    uint64_t np_offers_watch(np_offers *o)
    void np_offers_quit(np_offers *o)
    np_seat *np_seat_new()
    void np_seat_free(np_seat *s)
    int np_seat_wait(np_seat *s, int64_t deadline_ns)
    void np_seat_call(np_seat *s)

cdef extern from "Python.h":
    unsigned long PyThread_get_thread_ident()
    int PyThreadState_SetAsyncExc(unsigned long ident, PyObject *exc)

cdef extern from "<time.h>" nogil:
    cdef struct timespec:
        long tv_sec
        long tv_nsec
    int CLOCK_MONOTONIC
    int clock_gettime(int clock, timespec *ts)

cdef enum:
    # Nanoseconds. An offer that has stood for a whole tick is taken: after 0.3 to 0.6 ms.
    TICK = 300 * 1000
    # How long Ctrl-C waits for the callback that runs to end by itself.
    INTERRUPT_AFTER = 100 * 1000 * 1000
    # Bodies in a row that have lasted longer than a tick, or are open, after which P is given away at once: the next
    # one is taken to last, too. Who may enter one waits for admission while more are open.
    LONG_BODIES = 2

cdef enum State:
    NONE
    HELD
    OFFERED
    HOME
    GONE

cdef enum BodyState:
    NEW
    OPEN
    # No handoff: outside a loop of ours, inside another body, no thread to be had.
    INERT
    # Left by an await: P is back already.
    VOID
    CLOSED

cdef object current_task = _tasks.current_task
cdef object enter_task = _tasks._enter_task
cdef object leave_task = _tasks._leave_task
cdef object _sigint_code = _runners.Runner._on_sigint.__code__
# 3.14 keeps the tasks of each thread apart.
cdef bint tasks_by_thread = sys.version_info >= (3, 14)
cdef object listed_tasks = _tasks.all_tasks

MAX_WORKERS = 64

cdef str STANDS = "until the first of them returns nothing else runs"

#: Seconds without the end of a body after which delayed steps run, although no other thread is left for the loop.
DELAY_LIMIT = 1.0


cdef inline int64_t after(int64_t ns) noexcept nogil:
    cdef timespec ts
    clock_gettime(CLOCK_MONOTONIC, &ts)
    return <int64_t>ts.tv_sec * 1000000000 + ts.tv_nsec + ns


cdef class Offers:
    """Owns the C part for a loop and for its spares, whichever is there longer.

    last: the number of the loop's last offer; bodies that are open know theirs.
    """

    cdef np_offers *offers

    def __cinit__(self, uint64_t last):
        self.offers = np_offers_new(TICK, last)
        if self.offers is NULL:
            raise MemoryError

    def __dealloc__(self):
        np_offers_free(self.offers)


cdef class Seat:
    """Where a thread waits for P."""

    cdef np_seat *seat
    cdef unsigned long ident
    # P is its thread's.
    cdef bint granted
    # The loop was closed meanwhile.
    cdef bint closed

    def __cinit__(self):
        self.seat = np_seat_new()
        if self.seat is NULL:
            raise MemoryError
        self.ident = PyThread_get_thread_ident()

    def __dealloc__(self):
        np_seat_free(self.seat)


def _spare(Offers offers, loop_ref):
    """The life of a spare thread: waits for an offer, stands in for who made it."""
    cdef uint64_t number
    cdef HandoffLoop loop
    while True:
        with nogil:
            number = np_offers_watch(offers.offers)
        if number == 0:
            return
        loop = loop_ref()
        if loop is None:
            return
        loop.stand_in(offers, number)
        loop = None


def _all_tasks(loop=None):
    """asyncio.all_tasks; of a loop that has changed its thread, the tasks of all threads."""
    running = _events._get_running_loop()
    if loop is None:
        loop = _events.get_running_loop()
    if running is not loop or not isinstance(loop, HandoffLoop):
        return listed_tasks(loop)
    # 3.14 looks at the other threads only if the loop doesn't run in this one.
    _events._set_running_loop(None)
    try:
        return listed_tasks(loop)
    finally:
        _events._set_running_loop(running)


cdef class HandoffLoop(SockLoop):
    """The loop with sock_*, whose P may change its thread."""

    cdef int state
    # Thread that has P; 0: none.
    cdef unsigned long owner
    cdef unsigned long m0
    cdef Offers offers
    # The number of the offer that stands.
    cdef uint64_t number
    # Threads that wait for P, in order; M0's seat, if it waits as they do.
    cdef object seats
    cdef Seat home_seat
    # run_on="worker": where M0 spends the run, and what it is asked to do meanwhile.
    cdef Seat m0_seat
    cdef object errands
    cdef bint worker_run
    # By thread: the body that it is in.
    cdef dict bodies
    # What can't run before the callback of a body has ended.
    cdef list held
    # When P was last granted, in turns.
    cdef uint64_t turns_at_grant
    # A thread has P back, and what it has on its stack of a turn is out of date.
    cdef bint moved
    # KeyboardInterrupt, SystemExit, or a failed poll, on its way to M0.
    cdef object carried
    # Spares: how many there are, how many watch, the threads.
    cdef int workers
    cdef int idle
    cdef object threads
    cdef int max_workers_
    cdef bint full_reported
    # How many bodies in a row have lasted, at most LONG_BODIES.
    cdef int long_bodies
    # Which steps are delayed; how many bodies have ended; waits for the limit. It is over: steps run, until one of
    # them enters a body.
    cdef Admission admission
    cdef uint64_t ended
    cdef object delay_timer
    cdef bint overdue
    # Another thread than M0 has had P.
    cdef bint spread
    # See stalls.py: seconds, or None; made when it is first needed.
    cdef public object _stall_report
    cdef public object _stall_monitor

    def __cinit__(self, *args, **kwargs):
        self.offers = Offers(0)
        self.seats = collections.deque()
        self.errands = collections.deque()
        self.bodies = {}
        self.held = []
        self.threads = []
        self.max_workers_ = MAX_WORKERS
        self.admission = Admission()

    def __dealloc__(self):
        if self.offers is not None:
            np_offers_quit(self.offers.offers)

    # ---- spares ---------------------------------------------------------------

    cdef bint ensure_spare(self) except -1:
        """Whether P can be given away: a spare watches, or at least there are some."""
        if self.idle:
            return True
        if self.workers < self.max_workers_:
            thread = threading.Thread(
                target=_spare, args=(self.offers, weakref.ref(self)),
                name=f"netpoll_loop worker {self.workers + 1}", daemon=True,
            )
            self.idle += 1
            self.workers += 1
            try:
                thread.start()
            except BaseException as exc:
                if thread.ident is not None or thread in getattr(threading, "_limbo", ()):
                    # Ctrl-C, while this thread waited for the other one to begin.
                    self.threads.append(thread)
                    raise
                self.idle -= 1
                self.workers -= 1
                if not isinstance(exc, (RuntimeError, MemoryError)):
                    raise
                self.report_full(f"can't start a worker thread ({exc})", STANDS)
            else:
                self.threads.append(thread)
        elif self.workers:
            self.report_all_inside(STANDS)
        return self.workers > 0

    cdef int report_all_inside(self, str what) except -1:
        return self.report_full(f"all {self.workers} worker threads are inside blocking()", what)

    cdef int report_full(self, str why, str what) except -1:
        if not self.full_reported:
            self.full_reported = True
            logger.warning("netpoll_loop: %s; %s (%r)", why, what, self)
        return 0

    cdef int stand_in(self, Offers offers, uint64_t number) except -1:
        """On a spare: takes P, if the offer still stands, and runs the loop until somebody else is to."""
        if not self.accept(offers, number):
            return 0
        self.note_spread()
        self.drive(offers)
        return 0

    @cython.critical_section
    cdef bint accept(self, Offers offers, uint64_t number) except -1:
        """Whether this spare now has P."""
        if self.state != OFFERED or self.number != number or self.offers is not offers:
            return False
        np_retract(self.offers.offers)
        self.idle -= 1
        self.state = HELD
        self.owner = PyThread_get_thread_ident()
        return True

    cdef int note_spread(self) except -1:
        if not self.spread:
            self.spread = True
            if tasks_by_thread and _tasks.all_tasks is listed_tasks:
                asyncio.all_tasks = _tasks.all_tasks = _all_tasks
        return 0

    cdef int drive(self, Offers offers) except -1:
        cdef bint own = type(self)._run_once is not Scheduler._run_once
        hooks = sys.get_asyncgen_hooks()
        depth = sys.get_coroutine_origin_tracking_depth()
        sys.set_asyncgen_hooks(self._asyncgen_firstiter_hook, self._asyncgen_finalizer_hook)
        if self._debug:
            sys.set_coroutine_origin_tracking_depth(_DEBUG_STACK_DEPTH)
        self.settle_in()
        try:
            while True:
                try:
                    if own:
                        self._run_once()
                    else:
                        self.turn()
                except BaseException as exc:
                    self.attend()
                    if self.carried is None:
                        self.carry(exc)
                if self.state == GONE:
                    break
                # This thread has P, and none of its callbacks is running.
                if (self.wanted or self._stopping) and self.give_away(offers):
                    break
        finally:
            if _events._get_running_loop() is self:
                _events._set_running_loop(None)
            sys.set_asyncgen_hooks(*hooks)
            sys.set_coroutine_origin_tracking_depth(depth)
        return 0

    @cython.critical_section
    cdef bint give_away(self, Offers offers) except -1:
        """Whether a spare that has P has given it to who is to have it now."""
        if self.carried is not None or self._stopping:
            self.give_home()
        elif self.home_seat is not None:
            self.give(self.home_seat)
        elif self.seats and self.turns > self.turns_at_grant:
            self.give(self.first_seat())
        else:
            return False
        # It counts as idle in the same section: who has P now may be in need of a spare before this one watches again.
        if self.offers is offers:
            self.idle += 1
            if self.delayed:
                # The loop may be waiting for a thread, and not for an event.
                np_wake(self.engine)
        return True

    # ---- admission ---------------------------------------------------------------

    cdef int left(self) noexcept:
        """How many threads could still be had to run the loop."""
        return self.idle + max(0, self.max_workers_ - self.workers)

    cdef bint has_room(self):
        """Whether a thread would be there to run the loop, if this one went into a body."""
        return self.left() > 0 or self.home_seat is not None or bool(self.seats)

    # Whoever becomes idle looks at `delayed` in the same section, and wakes the loop.
    @cython.critical_section
    cdef bint delayed_may_run(self) except -1:
        return self.overdue or not self.bodies or self.has_room()

    cdef int sift(self) except -1:
        cdef Py_ssize_t count = len(self.bodies)
        if count == 0 or (count <= LONG_BODIES and self.left() > LONG_BODIES):
            if self.delayed:
                self.admit_all()
            return 0
        self.delayed = self.admission.sift(self, self.delayed_may_run())
        if self.delayed and self.delay_timer is None and not self.has_room():
            self.report_all_inside("who may enter it waits for the first of them to return")
            self.limit_delay()
        return 0

    cdef int admit_all(self) except -1:
        self.delayed = 0
        return self.admission.admit_all(self)

    cdef int limit_delay(self) except -1:
        self.delay_timer = self.call_later(DELAY_LIMIT, self._delay_is_over, self.ended)
        return 0

    def _delay_is_over(self, uint64_t ended):
        self.delay_timer = None
        if self.delayed:
            if ended == self.ended:
                self.overdue = True
            self.limit_delay()

    # ---- P -----------------------------------------------------------------------

    cdef int settle_in(self) except -1:
        """This thread has P: it is the one on which the loop runs."""
        _events._set_running_loop(self)
        self.thread_id = <int64_t>PyThread_get_thread_ident()
        return 0

    cdef void recount(self) noexcept:
        self.wanted = <int>len(self.seats) + (self.home_seat is not None) + (self.carried is not None)

    @cython.critical_section
    cdef int carry(self, exc) except -1:
        self.carried = exc
        self.recount()
        self.changes += 1
        return 0

    cdef Seat first_seat(self):
        return self.seats.popleft()

    cdef int give(self, Seat seat) except -1:
        """To the thread in the seat."""
        _events._set_running_loop(None)
        self.grant(seat)
        return 0

    cdef int grant(self, Seat seat) except -1:
        if seat is self.home_seat:
            self.home_seat = None
        self.state = HELD
        self.owner = seat.ident
        self.thread_id = <int64_t>seat.ident
        self.turns_at_grant = self.turns
        self.recount()
        seat.granted = True
        np_seat_call(seat.seat)
        return 0

    cdef uint64_t offer(self, bint urgent) except? 0:
        """P is to go to another thread. The number of the offer; 0: it was granted."""
        self.owner = 0
        if not self.idle and (self.home_seat is not None or self.seats):
            # No spare watches: an offer would stand, although somebody is there who waits for P.
            self.grant(self.home_seat if self.home_seat is not None else self.first_seat())
            return 0
        self.state = OFFERED
        self.number = np_offer(self.offers.offers, urgent)
        return self.number

    cdef int give_home(self) except -1:
        """The run is over, as soon as M0 is there."""
        _events._set_running_loop(None)
        if self.home_seat is not None:
            return self.grant(self.home_seat)
        self.state = HOME
        self.owner = 0
        self.thread_id = -1
        if self.m0_seat is not None:
            np_seat_call(self.m0_seat.seat)
        return 0

    @cython.critical_section
    cdef object take_back(self, uint64_t number):
        """This thread needs P. What a signal handler has raised meanwhile, to be raised as soon as possible.

        number: of the offer that this thread has made, 0 if it has granted P away.
        """
        cdef Seat seat
        cdef object pending = None
        cdef unsigned long me = PyThread_get_thread_ident()
        cdef bint home = me == self.m0
        if self.state == GONE:
            raise RuntimeError("Event loop is closed")
        if self.state == OFFERED:
            np_retract(self.offers.offers)
            if self.number != number:
                self.moved = True
        elif self.state == HOME and home:
            self.moved = True
        else:
            seat = Seat()
            if home:
                self.home_seat = seat
            else:
                self.seats.append(seat)
            self.recount()
            self.changes += 1
            np_wake(self.engine)
            pending = self.wait_in(seat, home)
            if seat.closed:
                raise RuntimeError("Event loop is closed")
            self.moved = True
        self.state = HELD
        self.owner = me
        return pending

    cdef object wait_in(self, Seat seat, bint home):
        """Until P is granted or the loop closed; on M0 signal handlers run meanwhile."""
        cdef int rc
        cdef int64_t deadline = -1
        cdef object pending = None
        while not seat.granted and not seat.closed:
            with nogil:
                rc = np_seat_wait(seat.seat, deadline)
            if seat.granted or seat.closed or not home or rc == 0:
                continue
            if rc == -EINTR:
                try:
                    PyErr_CheckSignals()
                except BaseException as exc:
                    pending = exc
                    deadline = after(INTERRUPT_AFTER)
            elif pending is not None:
                # The callback that has P goes on and on: it is the one to be interrupted.
                self.interrupt(pending)
                pending = None
                deadline = -1
        return pending

    @cython.critical_section
    cdef int interrupt(self, exc) except -1:
        """Raises exc's type in the callback that runs, so that it gets to M0 through the loop."""
        cdef object cls = type(exc)
        if self.state == HELD and self.owner != PyThread_get_thread_ident():
            PyThreadState_SetAsyncExc(self.owner, <PyObject *>cls)
        return 0

    # ---- bodies ---------------------------------------------------------------------

    @cython.critical_section
    cdef int enter_body(self, Body body) except -1:
        cdef unsigned long me = PyThread_get_thread_ident()
        cdef bint urgent
        if self.state != HELD or self.owner != me or self.forked or not self.ensure_spare():
            body.state = INERT
            return 0
        if self.inside >= LONG_BODIES or self.left() <= 1:
            self.admission.note()
        body.task = current_task(self)
        if body.task is not None:
            leave_task(self, body.task)
        _events._set_running_loop(None)
        self.thread_id = -1
        body.current_handle = self._current_handle
        self._current_handle = None
        body.loop = self
        body.ident = me
        body.state = OPEN
        self.bodies[me] = body
        self.inside += 1
        self.overdue = False
        self.changes += 1
        urgent = self.long_bodies >= LONG_BODIES or self.inside > LONG_BODIES
        body.number = self.offer(urgent)
        if urgent and body.number:
            body.since = after(0)
        return 0

    @cython.critical_section
    cdef int leave_body(self, Body body) except -1:
        cdef object pending
        body.state = CLOSED
        if (self.state == OFFERED and self.number == body.number) or (body.since and after(-TICK) < body.since):
            self.long_bodies = 0
        elif self.long_bodies < LONG_BODIES:
            self.long_bodies += 1
        try:
            pending = self.take_back(body.number)
        except BaseException:
            self.forget(body)
            raise
        self.restore(body, True)
        if pending is not None:
            raise pending
        return 0

    cdef int forget(self, Body body) except -1:
        if self.bodies.pop(body.ident, None) is not None:
            self.inside -= 1
            self.ended += 1
            self.overdue = False
        return 0

    cdef int restore(self, Body body, bint in_task) except -1:
        self.forget(body)
        self.settle_in()
        self._current_handle = body.current_handle
        if in_task and body.task is not None:
            enter_task(self, body.task)
        return 0

    @cython.critical_section
    cdef int abandon(self, Body body, bint in_task) except -1:
        """The coroutine has awaited in its body: P comes back now, and the body's end raises."""
        cdef object pending
        body.state = VOID
        try:
            pending = self.take_back(body.number)
        except BaseException:
            self.forget(body)
            raise
        self.restore(body, in_task)
        if pending is not None:
            raise pending
        return 0

    @cython.critical_section
    cdef int attend(self) except -1:
        """Between two callbacks, after something has happened; whether the turn is to end here."""
        cdef Body body
        cdef unsigned long me
        if self.state == GONE:
            return 1
        me = PyThread_get_thread_ident()
        body = self.bodies.get(me)
        if body is not None:
            self.abandon(body, False)
        if self.moved:
            self.moved = False
            self.release_held()
            return 1
        return self.wanted and (self.carried is not None or self.turns > self.turns_at_grant + 1)

    cdef int release_held(self) except -1:
        cdef list held = self.held
        if held:
            self.held = []
            for runnable in held:
                self.ring_push(runnable)
        return 0

    cdef bint hold_back(self, Runnable runnable) except -1:
        """A Context could not be entered: whether it is that of a body, and the runnable waits for its end."""
        if not self.inside or not self.bodies:
            return False
        self.held.append(runnable)
        return True

    # ---- who may call --------------------------------------------------------------------

    cdef bint check_caller(self, object callback, object method) except -1:
        cdef unsigned long me
        cdef Body body
        if self.inside and self.state != NONE and self.state != GONE:
            me = PyThread_get_thread_ident()
            if self.owner != me or self.state != HELD:
                body = self.bodies.get(me)
                if body is not None and body.task is not None and (
                    getattr(callback, "__self__", None) is body.task or body.task.done()
                ):
                    # A bare yield: the task asks for its next step. Or it is over, inside the body, and says so.
                    self.abandon(body, True)
                elif (me == self.m0 and body is None) or is_sigint():
                    # As call_soon_threadsafe: a signal handler on M0.
                    if method is not None:
                        return True
                elif body is not None:
                    raise RuntimeError(
                        "inside blocking() the loop can't be used, but for call_soon_threadsafe() and "
                        "run_coroutine_threadsafe()"
                    )
        if self._debug and method is not None:
            self._check_thread()
            self._check_callback(callback, method)
        return False

    # ---- the run ----------------------------------------------------------------------------

    @cython.critical_section
    cdef int between_turns(self) except -1:
        """M0 has P, and somebody else needs it, or something is to be raised."""
        cdef object exc, pending = None
        cdef Seat seat
        if self.carried is None and self.seats and self.turns > self.turns_at_grant:
            seat = Seat()
            self.home_seat = seat
            self.give(self.first_seat())
            pending = self.wait_in(seat, True)
            self.state = HELD
            self.owner = self.m0
            self.settle_in()
        exc = self.carried
        if exc is not None:
            self.carried = None
            self.recount()
            raise exc
        if pending is not None:
            raise pending
        return 0

    def _run_prepared(self):
        """The run, with what comes before and after it.

        Compiled: Ctrl-C comes inside one of the steps, never between two, and a loop that is over doesn't say it runs.
        """
        try:
            self._run_forever_setup()
            self._run()
        finally:
            self._stopping = False
            self.thread_id = 0
            try:
                self._leave_run()
            finally:
                self.thread_id = 0
                _events._set_running_loop(None)
                try:
                    self._run_forever_cleanup()
                except KeyboardInterrupt:
                    # What it has left.
                    self._run_forever_cleanup()
                    raise

    def _run(self):
        """Turns until stop()."""
        if self.worker_run:
            self.run_on_worker()
        else:
            Scheduler._run(self)

    def _enter_run(self):
        Scheduler._enter_run(self)
        with cython.critical_section(self):
            self.m0 = self.owner = PyThread_get_thread_ident()
            self.state = HELD
        self.turns_at_grant = self.turns

    def _leave_run(self):
        cdef Body body = self.bodies.get(PyThread_get_thread_ident())
        if body is not None:
            # KeyboardInterrupt has gone through, past its end.
            self.abandon(body, False)
        self.release_held()
        self.admit_all()
        with cython.critical_section(self):
            self.carried = None
            self.state = NONE
            self.owner = 0
            self.recount()
        Scheduler._leave_run(self)

    @cython.critical_section
    cdef int run_on_worker(self) except -1:
        """M0 parks and serves signals; a worker thread runs the loop."""
        cdef int rc
        cdef int64_t deadline = -1
        cdef object exc, raised = None
        if not self.ensure_spare():
            raise RuntimeError("can't start a worker thread")
        _events._set_running_loop(None)
        self.thread_id = -1
        self.m0_seat = Seat()
        self.inside += 1
        self.offer(True)
        try:
            while self.state != HOME:
                with nogil:
                    rc = np_seat_wait(self.m0_seat.seat, deadline)
                if rc != 0 and rc != -EINTR and raised is not None:
                    # The callback that runs is the one to be interrupted; it may also catch it and go on.
                    if self.carried is raised and self.state == HELD:
                        self.carried = None
                        self.recount()
                        self.interrupt(raised)
                    raised = None
                    deadline = -1
                try:
                    PyErr_CheckSignals()
                    self.run_errands()
                except BaseException as exc:
                    raised = exc
                    if self.carried is None:
                        self.carry(exc)
                        np_wake(self.engine)
                    deadline = after(INTERRUPT_AFTER)
        finally:
            self.inside -= 1
            self.m0_seat = None
            self.state = HELD
            self.owner = self.m0
            self.settle_in()
        self.run_errands()
        exc = self.carried
        if exc is not None:
            self.carried = None
            self.recount()
            raise exc
        return 0

    cdef int run_errands(self) except -1:
        while self.errands:
            self.errands.popleft()()
        return 0

    def _on_m0(self, function):
        """Calls function() on M0 while it serves signals, and returns its result. None of this is needed on M0 itself."""
        cdef Seat seat = self.m0_seat
        done = threading.Event()
        result = []

        def errand():
            try:
                result.append((function(), None))
            except BaseException as exc:
                result.append((None, exc))
            finally:
                done.set()

        self.errands.append(errand)
        np_seat_call(seat.seat)
        done.wait()
        value, exc = result[0]
        if exc is not None:
            raise exc
        return value

    def _process_self_data(self, data):
        """Signals have come. M0, which is to see to them, sleeps on if they reached another thread, or came as it lay down."""
        super()._process_self_data(data)
        cdef Seat seat = self.m0_seat
        if seat is not None:
            np_seat_call(seat.seat)

    def _progress(self):
        """(thread, number): who runs callbacks, and what each of them moves; None while the loop waits or doesn't run."""
        if self.state != HELD or self.waiting:
            return None
        return self.owner, self.turns + self.head + self.changes

    @property
    def _m0_serves(self):
        """Whether another thread may ask M0 for something."""
        return self.m0_seat is not None and PyThread_get_thread_ident() != self.m0

    def _set_workers(self, run_on_worker, max_workers):
        self.worker_run = run_on_worker
        self.max_workers_ = max_workers

    def _close_core(self):
        cdef Seat seat
        cdef set inside
        Scheduler._close_core(self)
        with cython.critical_section(self):
            self.state = GONE
            inside = {(<Body>item).ident for item in self.bodies.values()}
            # Only now: whoever came while callbacks were dropped has taken a seat, too.
            while self.seats:
                seat = self.first_seat()
                seat.closed = True
                np_seat_call(seat.seat)
        self.held.clear()
        self.dismiss(inside)

    cdef int dismiss(self, set inside) except -1:
        """Ends the spares that watch; those in a body end when it does."""
        np_offers_quit(self.offers.offers)
        for thread in self.threads:
            # While the interpreter is finalized they can't end any more.
            if thread.ident not in inside and thread.ident != PyThread_get_thread_ident() and not sys.is_finalizing():
                thread.join()
        self.threads = []
        return 0

    def _before_fork(self):
        cdef unsigned long me = PyThread_get_thread_ident()
        # Spares that only watch would be threads in the parent of a fork. While an offer stands one of them is to take it,
        # and where another thread has P it may need one at any moment.
        if self.idle and ((self.state == HELD and self.owner == me) or (self.state == NONE and self.m0 == me)):
            self.dismiss_idle()
        if self._stall_monitor is not None:
            self._stall_monitor.stop()
        Scheduler._before_fork(self)

    def _after_fork_parent(self):
        Scheduler._after_fork_parent(self)
        if self.state != NONE and self.state != GONE:
            self._watch_for_stalls()

    def _at_exit(self):
        Scheduler._at_exit(self)
        if self.idle and self.state == NONE:
            self.dismiss_idle()

    cdef int dismiss_idle(self) except -1:
        cdef Offers former = self.offers
        cdef list busy = [(<Body>item).ident for item in self.bodies.values()]
        if self.state == HELD:
            busy.append(self.owner)
        for item in self.seats:
            busy.append((<Seat>item).ident)
        np_offers_quit(former.offers)
        self.offers = Offers(self.number)
        for thread in self.threads:
            if thread.ident not in busy:
                thread.join()
        # The others leave when their bodies have ended.
        self.threads = [thread for thread in self.threads if thread.is_alive()]
        self.workers = self.idle = 0
        return 0

    def _after_fork_child(self):
        cdef unsigned long me = PyThread_get_thread_ident()
        cdef Body body = self.bodies.get(me)
        Scheduler._after_fork_child(self)
        if self._stall_monitor is not None:
            self._stall_monitor.forget()
        # No other thread is left. A body that forked gets P back at once.
        self.offers = Offers(self.number)
        self.seats.clear()
        self.home_seat = None
        self.m0_seat = None
        self.threads = []
        self.workers = self.idle = 0
        self.bodies = {}
        self.inside = 0
        self.admit_all()
        self.recount()
        if body is not None:
            self.bodies[me] = body
            self.inside = 1
            self.number = body.number
            self.state = OFFERED
            self.owner = 0
        elif self.state != NONE and self.state != GONE:
            self.state = HELD
            self.owner = me
        self.m0 = me


cdef bint is_sigint() except -1:
    """Whether Runner's handler for Ctrl-C is what calls."""
    frame = sys._getframe(0)
    while frame is not None:
        if frame.f_code is _sigint_code:
            return True
        frame = frame.f_back
    return False


cdef class Body:
    """What blocking() returns: one use of it."""

    cdef HandoffLoop loop
    cdef object task
    cdef object current_handle
    cdef unsigned long ident
    cdef uint64_t number
    # When it began, in nanoseconds; 0: P was not given away at once.
    cdef int64_t since
    cdef int state

    def __enter__(self):
        loop = _events._get_running_loop()
        if self.state == OPEN or self.state == VOID:
            raise RuntimeError("this blocking() is entered already")
        self.state = INERT
        if isinstance(loop, HandoffLoop):
            (<HandoffLoop>loop).enter_body(self)

    def __exit__(self, *details):
        if self.state == OPEN:
            if self.ident != PyThread_get_thread_ident():
                raise RuntimeError("blocking() has to end on the thread on which it began")
            self.loop.leave_body(self)
        elif self.state == VOID:
            self.state = CLOSED
            raise RuntimeError("await inside blocking(): the body has to be plain blocking code")

    async def __aenter__(self):
        self.__enter__()

    async def __aexit__(self, *details):
        self.__exit__(*details)
        if self.task is not None and self.task._must_cancel:
            # A cancellation that came meanwhile takes effect here, and not at the next await, wherever that is.
            await asyncio.sleep(0)

    def __call__(self, function):
        """As a decorator of a plain function: each call of it is a body."""
        return decorated(function)


def decorated(function):
    """function, with blocking() around each call."""
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        raise TypeError("blocking() decorates plain functions; in a coroutine use 'with blocking():'")
    if not callable(function):
        raise TypeError(f"a callable is expected, got {function!r}")

    @functools.wraps(function)
    def in_body(*args, **kwargs):
        cdef Body body = Body.__new__(Body)
        with body:
            return function(*args, **kwargs)

    return in_body
