/* park.pml: who sleeps, and who wakes whom.
 *
 * The worker (np_poll, np_park), the netpoller thread (run_ticks and take_over,
 * or run_dedicated), threads that call call_soon_threadsafe (np_wake), another
 * thread that stops and starts the netpoller (as a fork does), and the OS.
 * Each access to a word that two threads see is a step of its own, in the order
 * of the code; what happens under a lock, or between two releases of the GIL, is
 * one step.
 *
 * Shown: every park without a deadline ends (else: an invalid end state); no
 * call, event or write is lost (the worker counts them before it ends); one
 * thread polls at a time; a stalled worker is taken over.
 *
 *   -DDEDICATED   NP_DEDICATED; else NP_AUTO
 *   -DBUG_x       a seeded bug; run.sh lists them
 */
#ifndef CALLS
#define CALLS 1 /* of call_soon_threadsafe, by as many threads */
#endif
#ifndef EVENTS
#define EVENTS 1 /* reported by the OS */
#endif
#ifndef WRITES
#define WRITES 0 /* of the worker, handed over */
#endif

mtype = { IDLE, RUNNING, PREPARED, IN_EPOLL, ON_FUTEX, NOTIFIED };
mtype = { FREE, WORKER, LOOKING, NETPOLLER, WANTED };
mtype = { TICKING, ASLEEP, CALLED, STOP };
mtype = { AWAKE, IN_OS, ON_TICK };

/* struct np_engine */
mtype wstate = IDLE, token = FREE, tick = TICKING, asleep = AWAKE;
bool wake_pending, thread_on, ready, submitted, due;
bool batched;          /* np_engine.batched is not 0; worker only */

/* The kernel: who sleeps on which futex, the kick (edge-triggered eventfd), unreported events. */
bool worker_sleeps, tick_sleeps, kick;
byte os_events;

byte inbox;            /* the ready queue, as call_soon_threadsafe fills it; under the GIL */
byte work;             /* the descriptor's write queue */
bool hot;              /* the netpoller goes on with it: np_desc.hot_w, and its hot list */
byte sent, collected;  /* by the netpoller, not yet taken by the worker: done list; events behind `ready` */
byte polling;          /* threads in np_os_wait */
bool turned;           /* np_engine.turns has moved since the last tick */
bool done;             /* the worker has seen everything */

mtype = { NO_THREAD, ALIVE, ENDED };
mtype life = NO_THREAD; /* of the netpoller thread */

#ifdef DEDICATED
#define OFFLOADS thread_on /* np_offloads */
#else
#define OFFLOADS false
#endif

/* ---- park.c, any thread ------------------------------------------------------------------------- */

inline notify_worker() { /* np_notify_worker: a look, then a compare-and-swap */
    if
    :: wstate == ON_FUTEX ->
#ifdef BUG_NOTIFY_WITHOUT_CAS
        wstate = NOTIFIED; worker_sleeps = false
#else
        if
        :: atomic { wstate == ON_FUTEX -> wstate = NOTIFIED }; worker_sleeps = false
        :: else
        fi
#endif
    :: wstate == IN_EPOLL ->
        if
        :: atomic { wstate == IN_EPOLL -> wstate = NOTIFIED }; kick = true
        :: else
        fi
    :: else
    fi
}

#if CALLS > 0
active [CALLS] proctype caller() { /* call_soon_threadsafe: ring_push, then np_wake */
    bool before;
#ifndef BUG_WAKE_BEFORE_PUSH
    inbox++;
#endif
    atomic { before = wake_pending; wake_pending = true };
    if
    :: before
    :: else -> notify_worker()
    fi
#ifdef BUG_WAKE_BEFORE_PUSH
    ; inbox++
#endif
}
#endif

/* ---- The worker --------------------------------------------------------------------------------- */

byte calls_seen, events_seen, writes_seen;
#define SEEN_ALL (calls_seen == CALLS && events_seen == EVENTS && writes_seen == WRITES)

inline unpark(home) {
    wstate = home;
#ifndef BUG_TICK_SLEEPS_ON
    if
    :: home == RUNNING && tick == ASLEEP ->
        if
        :: atomic { tick == ASLEEP -> tick = TICKING }; tick_sleeps = false
        :: else
        fi
    :: else
    fi
#endif
}

inline take_ready() { /* ready.any; then the mailbox, under its lock; np_flush sends what was handed back */
    if
    :: ready -> atomic {
            ready = false;
            got = got + sent + collected + work;
            writes_seen = writes_seen + sent + work;
            events_seen = events_seen + collected;
            sent = 0; collected = 0;
            if
            :: !hot -> work = 0
            :: else -> got = got - work; writes_seen = writes_seen - work
            fi
        }
    :: else
    fi
}

inline take_token() { /* leaves `mine` */
    if
#ifdef BUG_TOKEN_WITHOUT_CAS
    :: token == FREE -> token = WORKER; mine = true
#else
    :: atomic { token == FREE -> token = WORKER }; mine = true
#endif
    :: else -> mine = false;
        if
        :: atomic { token == NETPOLLER -> token = WANTED }; kick = true /* want_token */
        :: else
        fi
    fi
}

inline os_wait(blocks, ends) { /* np_os_wait; `ends`: a timer may end it */
    atomic { polling++; assert(polling == 1) };
    if
    :: blocks ->
        if
        :: kick || os_events > 0
        :: ends -> over = true
        fi
    :: else
    fi;
    atomic { kick = false; events = os_events; os_events = 0; polling-- }
}

inline dispatch_here() { atomic { got = got + events; events_seen = events_seen + events; events = 0 } }

inline kick_netpoller() { /* np_kick_netpoller */
    if
    :: asleep == AWAKE
    :: else ->
        atomic { how = asleep; asleep = AWAKE };
        if
        :: how == IN_OS -> atomic { how = 0; kick = true }
        :: how == ON_TICK -> how = 0;
            if
            :: atomic { tick == TICKING -> tick = CALLED }; tick_sleeps = false
            :: else ->
                if
                :: atomic { tick == ASLEEP -> tick = CALLED }; tick_sleeps = false
                :: else
                fi
            fi
        :: else
        fi
    fi
}

inline make_due() { due = true; kick_netpoller() }

inline send_batch() { /* np_send_batch, with what it tells */
    atomic {
        if
        :: submitted && !hot -> submitted = false; sent = sent + work; work = 0; ready = true
        :: else -> submitted = false
        fi
    }
}

inline end_batch() { /* np_end_batch */
    if
    :: batched -> batched = false;
        if
        :: by_netpoller /* each was due at once */
        :: !by_netpoller -> send_batch()
        fi
    :: else
    fi
}

inline poll_here() { /* np_poll */
    turned = true;
#ifndef BUG_BATCH_FORGOTTEN
    end_batch();
#endif
    take_ready();
    if
    :: OFFLOADS
    :: !OFFLOADS && got > 0 /* the netpoller has looked, perhaps */
    :: !OFFLOADS -> take_token();
        if
        :: mine -> os_wait(false, false); dispatch_here(); atomic { token = FREE; mine = false }
        :: else
        fi
    fi;
    got = 0
}

inline has_news() { /* leaves `news` */
    if
    :: ready -> news = true
    :: else -> news = wake_pending
    fi
}

inline park_in_epoll() {
#ifdef BUG_STALE_READ_IN_EPOLL
    has_news(); wstate = IN_EPOLL; /* the store passes the load behind it */
#else
    wstate = IN_EPOLL;
    has_news();
#endif
    if
    :: !news -> news = OFFLOADS
    :: else
    fi;
    os_wait(!news, timed);
    dispatch_here();
    atomic { wstate = PREPARED; news = false; mine = false };
    token = FREE
}

inline park_on_futex() {
#ifdef BUG_STALE_READ_ON_FUTEX
    has_news(); wstate = ON_FUTEX;
#else
    wstate = ON_FUTEX;
#ifdef BUG_NO_RECHECK
    news = false;
#else
    has_news();
#endif
#endif
    if
    :: !news ->
        if
        :: OFFLOADS -> mine = true
        :: else -> mine = (token != FREE)
        fi;
        if
        :: mine ->
            atomic { /* np_futex_wait: the kernel compares, then sleeps */
                if
                :: wstate == ON_FUTEX -> worker_sleeps = true
                :: else
                fi
            };
            if
            :: !worker_sleeps
            :: timed -> worker_sleeps = false; over = true
            fi
        :: else
        fi
    :: else
    fi;
    atomic { wstate = PREPARED; news = false; mine = false }
}

inline park() { /* np_park */
    turned = true;
#ifndef BUG_BATCH_FORGOTTEN
    end_batch();
#ifndef DEDICATED
    send_batch();
#endif
#endif
    do
    :: take_ready();
        if
        :: got > 0 || wake_pending -> break
        :: else
        fi;
        if
        :: OFFLOADS -> mine = false
        :: else -> take_token()
        fi;
        if
        :: mine && !looked -> looked = true; /* look_around: polls once without waiting, or not */
            os_wait(false, false); dispatch_here(); atomic { token = FREE; mine = false }
        :: mine -> park_in_epoll()
        :: else -> park_on_futex()
        fi;
        if
        :: over -> take_ready(); break
        :: got > 0 -> break
        :: else
        fi
    od;
#ifndef BUG_CLEARED_LATE
    if
    :: wake_pending -> wake_pending = false
    :: else
    fi;
#endif
    atomic { got = 0; over = false; timed = false; looked = false };
    unpark(RUNNING)
}

inline write_one() { /* np_queue, handing over; np_submit; else drain_here */
    atomic { work++; mine = !hot };
    if
    :: mine ->
        if
        :: thread_on ->
            atomic { news = !submitted; submitted = true };
#ifdef DEDICATED
            if
            :: news -> kick_netpoller()
            :: else
            fi;
#else
            batched = true;
            if
            :: token == NETPOLLER -> make_due()
            :: token != NETPOLLER && by_netpoller -> make_due()
            :: else
            fi;
#endif
            mine = !thread_on
        :: else
        fi;
        if
        :: mine -> atomic {
            if
            :: !hot -> writes_seen = writes_seen + work; work = 0
            :: else
            fi }
        :: else
        fi
    :: else
    fi;
    atomic { mine = false; news = false }
}

active proctype worker() {
    byte got, events, to_write = WRITES, timers = 1; /* parks that a timer may end */
    bool mine, news, over, timed, looked, stalls = true, by_netpoller;
    mtype how;
    unpark(RUNNING); /* np_set_running(1) */
    if
    :: by_netpoller = true /* np_offload */
    :: by_netpoller = false
    fi;
    do
    :: SEEN_ALL -> break
    :: else ->
        poll_here();
        atomic { calls_seen = calls_seen + inbox; inbox = 0 };
        if
        :: to_write > 0 -> to_write--; write_one()
        :: to_write == 0
        fi;
#ifndef DEDICATED
        if
        :: send_batch() /* np_send_left, by a worker that polls a little longer before it parks */
        :: true
        fi;
        /* Once, perhaps, a callback that lasts until the netpoller polls, if there is one. */
        if
        :: stalls -> stalls = false; token == NETPOLLER || life != ALIVE || tick == STOP
        :: true
        fi;
#endif
        if
        :: timers > 0 -> timers--; timed = true
        :: timed = false
        fi;
        wstate = PREPARED; /* np_park_prepare */
        if /* Scheduler.park, with the GIL */
        :: inbox > 0 || to_write > 0 || SEEN_ALL -> unpark(RUNNING)
        :: else ->
#ifdef BUG_CLEARED_LATE
            wake_pending = false;
#endif
            park()
        fi;
        timed = false
    od;
    unpark(IDLE); /* np_set_running(0) */
    if
    :: atomic { token == NETPOLLER -> token = WANTED }; kick = true
    :: else
    fi;
    done = true
}

/* ---- The netpoller thread: thread.c --------------------------------------------------------------- */

inline serve() { /* np_net_send: all of it, or a turn of it */
    atomic {
        hot = false;
        if
        :: work > 0 -> sent = sent + work; work = 0; first = !ready; ready = true
        :: work > 0 && postponed < 2 -> postponed++; hot = true; first = false
        :: work == 0 -> first = false
        fi
    };
    if
    :: atomic { first -> first = false }; notify_worker()
    :: else
    fi
}

inline serve_submitted() {
    if
    :: atomic { submitted -> submitted = false }; serve()
    :: else
    fi
}

inline serve_hot() {
    if
    :: hot -> serve()
    :: else
    fi
}

inline hand_back_hot() {
    if
    :: hot ->
#ifdef BUG_HAND_BACK_FORGETS
        hot = false
#else
        atomic { hot = false; first = !ready; ready = true };
        if
        :: atomic { first -> first = false }; notify_worker()
        :: else
        fi
#endif
    :: else
    fi
}

inline collect() { /* poll_once, after its wait */
    if
    :: events > 0 ->
        atomic { collected = collected + events; events = 0; first = !ready; ready = true };
        if
        :: atomic { first -> first = false }; notify_worker()
        :: else
        fi
    :: else
    fi
}

inline give_token() {
    token = FREE;
#ifndef BUG_TOKEN_GIVEN_SILENTLY
    notify_worker()
#endif
}

inline stop_serving() {
    thread_on = false;
#ifndef BUG_STOP_LEAVES_SUBMITTED
    if
    :: atomic { submitted -> submitted = false; hot = true }
    :: else
    fi
#endif
}

inline sleep_on_tick(state, ends) {
    asleep = ON_TICK;
#ifdef BUG_NETPOLLER_NO_RECHECK
    if
    :: true ->
#else
    if
    :: due
    :: else ->
#endif
        atomic {
            if
            :: tick == state -> tick_sleeps = true
            :: else
            fi
        };
        if
        :: !tick_sleeps
        :: ends -> tick_sleeps = false; over = true
        fi
    fi;
    asleep = AWAKE;
    if
    :: atomic { tick == CALLED -> tick = TICKING }
    :: else
    fi
}

inline take_over() {
    if
    :: atomic { token == FREE -> token = NETPOLLER };
        do
        :: token != NETPOLLER -> break
        :: tick == STOP -> break
        :: else ->
            serve_submitted();
            if
            :: !hot ->
                asleep = IN_OS;
                if
                :: !submitted -> if
                    :: token == NETPOLLER -> over = (tick != STOP)
                    :: else
                    fi
                :: else
                fi
            :: else
            fi;
            os_wait(over, false);
            over = false;
            collect(); serve_hot();
            asleep = AWAKE
        od;
        hand_back_hot();
        give_token()
    :: else
    fi
}

inline look() {
    if
    :: true /* not offloading any more, or the worker isn't RUNNING */
    :: true ->
        if
        :: atomic { token == FREE -> token = LOOKING }; os_wait(false, false); collect();
#ifdef BUG_LOOK_ENDS_SILENTLY
            token = FREE
#else
            give_token()
#endif
        :: else
        fi
    fi
}

inline run_ticks() {
    do
    :: tick == STOP -> break
    :: else ->
        do /* serve_worker */
        :: due || hot -> due = false; serve_submitted(); serve_hot(); look();
            if
            :: hot -> over = true; break /* the tick is over */
            :: true
            fi
        :: else -> break
        od;
        if
        :: !over -> sleep_on_tick(TICKING, true)
        :: over
        fi;
        if
        :: atomic { over && turned -> over = false; turned = false }
        :: atomic { over && !turned -> over = false }; /* a tick has gone by without a turn of the worker */
            if
            :: wstate == RUNNING -> take_over()
            :: else ->
                if
#ifndef BUG_TICK_FORGETS_HOT
                :: hot
#endif
                :: atomic {
#ifndef BUG_TICK_FORGETS_HOT
                    !hot &&
#endif
                    tick == TICKING -> tick = ASLEEP };
#ifndef BUG_TICK_NO_RECHECK
                    if
                    :: wstate == RUNNING ->
                        if
                        :: atomic { tick == ASLEEP -> tick = TICKING }
                        :: else
                        fi
                    :: else
                    fi;
#endif
                    do
                    :: tick != ASLEEP -> break
                    :: due -> break
                    :: else -> sleep_on_tick(ASLEEP, false)
                    od;
                    if
                    :: atomic { tick == ASLEEP -> tick = TICKING }
                    :: else
                    fi
                :: else
                fi
            fi
        :: !over
        fi;
        over = false
    od;
    stop_serving();
    serve_hot();
    hand_back_hot()
}

inline run_dedicated() {
    do
    :: atomic { token == FREE -> token = NETPOLLER }; mine = true; break
    :: else ->
        if
        :: tick == STOP ->
#ifdef BUG_STOPPED_EARLY_LEAVES
            thread_on = false;
#else
            stop_serving();
            hand_back_hot();
#endif
#ifndef BUG_STOPPED_EARLY_SILENTLY
            notify_worker();
#endif
            mine = false; break
        :: else -> kick = true
        fi
    od;
    if
    :: mine ->
        do
        :: tick == STOP -> break
        :: else ->
            serve_submitted();
            if
            :: !hot ->
                asleep = IN_OS;
#ifdef BUG_NETPOLLER_NO_RECHECK
                over = true
#else
                if
                :: !submitted -> over = (tick != STOP)
                :: else
                fi
#endif
            :: else
            fi;
            os_wait(over, false);
            over = false;
            collect(); serve_hot();
            asleep = AWAKE
        od;
        mine = false;
        stop_serving();
        hand_back_hot();
        give_token()
    :: else
    fi
}

active proctype netpoller() {
    byte events;
    bool first, over, mine;
    byte postponed; /* twice: at a submission, and when it is gone on with */
end:
    do
    :: life == ALIVE ->
#ifdef DEDICATED
        run_dedicated();
#else
        run_ticks();
#endif
        life = ENDED
    od
}

/* ---- Everybody else ------------------------------------------------------------------------------- */

inline thread_start() { tick = TICKING; thread_on = true; life = ALIVE }

inline thread_stop() {
    tick = STOP; tick_sleeps = false;
    if
    :: token == NETPOLLER || token == WANTED -> kick = true
    :: else
    fi;
    life == ENDED; /* join */
    thread_on = false; tick = TICKING; life = NO_THREAD
}

active proctype forker() {
    thread_start();
#ifdef RESTARTS /* and what comes must be seen without it, or with the next one */
    thread_stop();
    if
    :: true -> done; goto over
    :: thread_start()
    fi;
#endif
    done;
    thread_stop();
over:
    skip
}

#if EVENTS > 0
active [EVENTS] proctype os() { os_events++ }
#endif

ltl every_park_ends { <> done }
