/* netpoll_internal.h: the engine's data, and who may touch what.
 *
 * Every comment of a field that two threads see names the threads, the
 * protection, and the reason for an order stronger than relaxed.
 *
 * Locks, outermost first; nobody takes one to the left while holding one to
 * the right:
 *
 *     threads > ctl > np_desc.lock > { ready.lock, submitted.lock, done_lock }
 *
 * ctl is a mutex because it is held across epoll_ctl; the others are spinlocks
 * held for a few instructions.  In NP_INLINE (`shared` == 0) there is no second
 * thread, and ctl and np_desc.lock are not taken at all.
 */
#ifndef NETPOLL_INTERNAL_H
#define NETPOLL_INTERNAL_H

#include <errno.h>
#include <pthread.h>

#include "netpoll.h"
#include "np_atomic.h"
#include "np_futex.h"
#include "np_mailbox.h"
#include "np_os.h"

/* ---- Bounds: all of them here --------------------------------------------- */

enum {
    NP_CHUNK_BITS = 8, /* descriptors in one chunk of the table: 256 */
    NP_CHUNK = 1 << NP_CHUNK_BITS,
    NP_CHUNKS = 65536,       /* chunks at most: 16 Mi file descriptors */
    NP_SEND_IOV = 64,        /* queued buffers in one sendmsg */
    NP_SEND_JOINED = 4096,   /* bytes of several buffers that are copied together for one send */
    NP_RING = 16,            /* accepted, undelivered connections of a listener */
    NP_STALE_WAITS = 32,     /* waits in a row with the same stale event before the facility is rebuilt */
    NP_SPARE_WRITES = 256,   /* queue nodes kept for reuse */
    NP_STACK = 256 * 1024,   /* of the netpoller thread */
    NP_SCRATCH = 256 * 1024, /* one receive of the netpoller, and its turn for one descriptor */
};
#define NP_LOOK ((size_t)16 * 1024)               /* bytes of one receive beside the worker: more is its own to receive */
#define NP_SEND_CALL ((size_t)512 * 1024)          /* bytes in one sendmsg */
#define NP_SEND_TOGETHER ((size_t)64 * 1024)       /* bytes of one of several sends in one call */
#define NP_SEND_TURN ((size_t)1024 * 1024)         /* the netpoller's turn for one descriptor */
#define NP_SEND_WORKER ((size_t)4 * 1024 * 1024)   /* the worker's, in one np_queue or np_flush */
#define NP_INBOUND ((size_t)256 * 1024)            /* received, undelivered bytes of one descriptor */
#define NP_INBOUND_CHUNKS 1024                     /* chunks, so that bytes sent one by one can't grow it */
#define NP_INBOUND_ALL ((size_t)64 * 1024 * 1024)  /* ... of the engine */
#define NP_TICK (10 * 1000000LL)                   /* ns; as Go's sysmon */
#define NP_TICK_CALM (4 * NP_TICK)                 /* ns; reached in steps while nothing is stuck */
#define NP_CALM 5                                  /* ticks in a row with nothing stuck, before each step */

/* When NP_AUTO offloads (adapt.c); measured, see docs/performance.md. */
enum {
    NP_WINDOW = 64,      /* writes between two looks */
    NP_AGREE = 6,        /* windows in a row that must ask for it */
    NP_BUSY = 90,        /* per cent of the time that the worker doesn't wait, to begin */
    NP_BUSY_ENOUGH = 70, /* ... to go on */
    NP_SLOW = 130,       /* per cent of the time for each message, as it was tried: above that the load is less */
    NP_SLOW_AGREE = 3,   /* windows in a row that must find that */
    NP_SMALL_TURN = 16,  /* writes in a turn, up to which the worker sends its own at once: at the end of the turn there
                            would be nothing left to do beside the sending */
    NP_BATCH = 64,       /* writes that the worker sends together at most: the peers wait for them */
};
/* When the kernel keeps the worker waiting for a CPU. */
enum {
    NP_CROWD_WAITED = 10, /* per cent of the time that it wanted one */
    NP_CROWD_AGREE = 3,   /* looks in a row that must find that: once may be the start of a peer */
    NP_CROWD_MOVES = 3,   /* times in a row that it changes places with the netpoller first */
};
#define NP_CROWD_LOOK (50 * 1000000LL)   /* ns between two looks */
#define NP_CROWD_SOON (10 * 1000000LL)   /* ... while the netpoller sends */
#define NP_CROWD_FOR (4 * NP_CROWD_LOOK) /* ns without the netpoller after that */
#define NP_CROWD_TRUST (60 * NP_CROWD_LOOK) /* ns with it after a look without it has found nothing */
/* How another way to send is tried (trial.c). */
enum {
    NP_TRIAL_TURNS = 4,  /* turns in a span at least */
    NP_TRIAL_PAIRS = 16, /* pairs of spans after which it is no better */
    NP_TRIAL_CLEAR = 30, /* per cent, summed over the pairs, that decide it */
    NP_TRIAL_MOST = 15,  /* per cent that one pair counts for at most, for the clock, and for the CPU */
    NP_TRIAL_LEAST = 1,  /* per cent that it has to gain, on the average */
    NP_TRIAL_CPU = 3,    /* so many per cent of CPU count as one of the clock */
};
#define NP_TRIAL_SPAN (4 * 1000000LL)    /* ns of a span at least */
#define NP_TRIAL_LATER (10 * 1000000LL)  /* ns before the first, after a pause: a burst has no time for it */
#define NP_TRIAL_HOLDS (50 * 1000000LL)  /* ns over which what has won must still be better */
#define NP_TRIAL_PAUSE (1000 * 1000000LL) /* ns until the next trial, if nothing has changed; it doubles ... */
#define NP_TRIAL_RARE (8 * 1000000000LL) /* ... up to this */
#define NP_TRIAL_SAME (100 * 1000000LL) /* ns without saturation after which it may be other work */
#define NP_RESTLESS (10 * 1000000LL) /* ns without a rest after which one window is enough: there is more than it has seen */
#define NP_REST (100 * 1000LL)       /* ns of a wait that counts as one */
#define NP_COPIES 4                  /* bytes that a send copies in a ns */
#define NP_WORK (10 * 1000LL)        /* ns between two messages, to begin with the netpoller */
#define NP_WORK_ENOUGH (5 * 1000LL)  /* ... to go on: less by the sends that others do now */
#define NP_WORK_LEAST (2 * 1000LL)   /* ns: less than this is no other load */
#define NP_LONG_TURN (60 * 1000LL)   /* ns of a turn, to begin with it: what ends before it looks is a delay only */
#define NP_QUIET (1000 * 1000LL)     /* ns of one wait that ends it, or without a write: the netpoller must be woken */
#define NP_NAP (20 * 1000LL)         /* ns between two looks of the netpoller at what the worker has written, at least */
#define NP_NAP_LONG (60 * 1000LL)    /* ... at most */
#define NP_NAP_LONGEST (120 * 1000LL) /* ... with much work for each message */
#define NP_OWN_LOOK (1000 * 1000LL)   /* ns after which np_poll polls although the netpoller looks */
#define NP_LEAVE (200 * 1000LL)        /* ns that the worker waits for the netpoller to send, before it does it by itself */
#define NP_LOOK_BACK (20 * 1000000LL) /* ns of waiting after which the worker looks for what it has sent */

/* When the worker looks around before it sleeps (park.c); measured, see docs/performance.md. */
enum {
    NP_CALLS = 4,     /* waits in a row that a call of another thread has ended soon */
    NP_UNLOOKED = 64, /* waits without a look, until one finds out whether there would be anything */
    NP_FOUND = 32,    /* looks that have found something, counted at most */
    NP_MISSED = 8,    /* ... and what one that has not takes from them: eight of nine have to find something */
    NP_RECENT = 8,    /* events before it, of which one has to be of the same descriptor: with more peers than that a look
                         only shortens the wait, with few it also keeps them from falling asleep */
};
#define NP_SOON (100 * 1000LL)  /* ns: how soon a call comes, and how long it looks then */
#define NP_MOMENT (35 * 1000LL) /* ns: how long it looks else: a peer that has to be woken answers in so long */
#define NP_GRACE (4 * 1000LL)   /* ns until a caller has let go of what it calls with: of the GIL, which we want next */

/* ---- States ----------------------------------------------------------------
 *
 * Where the worker waits: np_engine.wstate, also the futex word.
 * The worker moves it; any thread that wakes moves the two sleeping states to
 * NOTIFIED by compare-and-swap, so that each sleep is woken by one system call
 * at most.
 *
 *   IDLE      outside run_forever             -> RUNNING        worker, np_set_running(1)
 *   RUNNING   in Python callbacks             -> PREPARED       worker, np_park_prepare
 *                                             -> IDLE           worker, np_set_running(0)
 *   PREPARED  about to sleep, re-checking     -> IN_EPOLL       worker, np_park with the token
 *                                             -> ON_FUTEX       worker, np_park without it
 *                                             -> RUNNING, IDLE  worker, np_park_cancel / return
 *   IN_EPOLL  waits in the OS facility        -> NOTIFIED       any thread, then kicks
 *                                             -> PREPARED       worker, awake again
 *   ON_FUTEX  waits on wstate                 -> NOTIFIED       any thread, then FUTEX_WAKE
 *                                             -> PREPARED       worker, awake again
 *   NOTIFIED  somebody's wake-up is on its way-> PREPARED       worker, awake again
 */
enum { NP_IDLE, NP_RUNNING, NP_PREPARED, NP_IN_EPOLL, NP_ON_FUTEX, NP_NOTIFIED };

/* The poll token: np_engine.token.  Its holder may call np_os_wait and
 * dispatch.  Never held across Python.
 *
 *   FREE       -> WORKER      worker, in np_poll and np_park
 *              -> LOOKING     netpoller, while it sends for the worker (NP_AUTO)
 *              -> NETPOLLER   netpoller: a stall (NP_AUTO), or its start (NP_DEDICATED)
 *   WORKER     -> FREE        worker, before it returns
 *   LOOKING    -> FREE        netpoller, soon: np_poll goes on without it, np_park waits on the futex
 *   NETPOLLER  -> WANTED      worker that is back from its stall; it then kicks
 *              -> FREE        netpoller, when its thread stops
 *   WANTED     -> FREE        netpoller, which then wakes a worker on the futex
 *
 * That the wish to have it back is a value of the same word is why no wish can
 * outlive the holding that it was meant for.
 */
enum { NP_FREE, NP_WORKER, NP_LOOKING, NP_NETPOLLER, NP_WANTED };

/* What the netpoller thread does between takeovers: np_engine.tick, its futex
 * word.
 *
 *   TICKING  sleeps 10 ms at a time           -> ASLEEP   netpoller: worker parked or idle for a tick
 *                                             -> CALLED   np_kick_netpoller: there is something to send
 *   ASLEEP   sleeps until woken               -> TICKING  the worker that goes on (NP_AUTO only)
 *                                             -> CALLED   np_kick_netpoller
 *   CALLED   on its way                       -> TICKING  netpoller, awake
 *   any                                       -> STOP     np_thread_stop
 */
enum { NP_TICKING, NP_ASLEEP, NP_CALLED, NP_STOP };

/* How the netpoller sleeps: np_engine.asleep. */
enum { NP_AWAKE, NP_ASLEEP_IN_OS, NP_ASLEEP_ON_TICK };

/* Events after which a short read does not mean that the socket is empty. */
#define NP_UNSURE (NP_HUP | NP_ERR | NP_PRI)

/* A bit of np_ready only: the netpoller has not emptied the socket, and does not go on; the worker has to. */
#define NP_LEFT 256u

/* A descriptor is closed (kind 0) or open (kind = np_kind).
 *
 *   closed -> open     worker, np_open: tag + 1
 *   open   -> closed   worker, np_close: tag + 1, `halt` until both rights are back
 *
 * Its registration, under ctl:
 *
 *   out (registered 0)        not in the OS facility: closed, or np_arm(0); or lost: closed behind our back,
 *                             which np_refresh has found out.  Then nothing but np_open registers it
 *   armed                     reports its mask.  np_arm: tag + 1, so that nothing of before is reported
 *   disarmed                  LISTEN, LEVEL: in the facility, mute.  By whoever reported an event
 *                             for the netpoller's account -> armed by np_rearm, np_arm (worker)
 *
 * Its write queue, under np_desc.lock:
 *
 *   quiet      queue empty, !sending          -> direct     worker, np_send
 *                                             -> draining   worker, np_queue (it drains itself)
 *                                             -> ready      worker, np_queue (it submits it to the
 *                                                           netpoller)
 *   direct     queue empty, sending           -> quiet      worker, np_send returns
 *   blocked    queue, !sending, !writable     -> draining   whoever sees the EPOLLOUT edge:
 *                                                           the netpoller; the worker by np_flush
 *   draining   queue, sending                 -> blocked    EAGAIN, and no edge meanwhile
 *                                             -> quiet      all sent, or the send failed (send_err)
 *                                             -> ready      the turn is over
 *   ready      queue, !sending, writable      -> draining   its turn: the netpoller's hot list
 *                                                           (`hot_w`), its submissions, np_flush, or
 *                                                           np_settle
 *
 * `writable` is cleared before each send, and set by every EPOLLOUT edge: an
 * edge between the EAGAIN and the account of it is therefore never lost.
 */

/* ---- Parts of a descriptor -------------------------------------------------- */

/* One np_queue. Belongs to whoever has the list that it is in. */
struct np_write {
    struct np_write *next;
    const char *buf;
    size_t size;
    void *cookie;
};

/* One receive of the netpoller; moves from the netpoller to the worker. */
struct np_read {
    struct np_read *next;
    size_t size;
    char bytes[];
};

/* ns for each message, on the clock and of CPU. */
struct np_cost {
    int64_t wall, cpu;
};

/* Connections accepted by the netpoller; under the listener's np_desc.lock. */
struct np_ring {
    unsigned head, count;
    struct {
        int fd;
        socklen_t len;
        struct sockaddr_storage addr;
    } at[NP_RING];
};

#define NP_END_OF_FILE 1 /* in_end */

struct np_desc {
    /* Worker and netpoller, tens of nanoseconds at a time. */
    np_spin lock;

    /* Constant from the chunk's allocation on. */
    int fd;

    /* Written by the worker with ctl and lock both held, so either is enough
     * to read them; the worker reads them without. */
    uint32_t tag;     /* changes with each np_open, np_arm and np_close; an event with another tag is dropped */
    uint8_t kind;     /* np_kind, 0: closed */
    uint8_t interest; /* NP_LISTEN, NP_LEVEL: NP_R | NP_W */
    uint8_t cuts;     /* a read may be cut: np_os_is_unix_stream */

    uint8_t registered;   /* in the OS facility.  Under ctl. */
    atomic_uchar disarmed; /* registered, but mute until np_rearm.  Written under ctl; read by the worker
                              without (relaxed: a late read of 1 is followed by a second event). */

    void *user; /* worker only */

    /* The rights to do I/O: who sets one owns that direction until he clears
     * it.  Under lock. */
    uint8_t sending;
    uint8_t reading; /* also accepting */
    uint8_t halt;    /* worker: give both rights back after the present system call, take none */

    /* The write side.  Under lock. */
    uint8_t hot_w;          /* the netpoller goes on by itself: nobody else need start a drain */
    uint8_t tell_w;         /* report the netpoller's progress until the queue is empty: np_tell */
    uint8_t tell_full;      /* report the next EAGAIN: np_tell_full */
    uint8_t asked_w;        /* report the next edge although nothing is queued: np_notify_writable */
    atomic_uchar writable;  /* no EAGAIN since the last edge.  Atomic: the worker's dispatch looks at it
                               without the lock (relaxed; see np_dispatch) */
    atomic_int send_err;    /* errno of a failed drain; sticky.  Atomic as above. */
    atomic_size_t pending;  /* bytes queued, unsent.  Atomic: np_pending reads it without the lock; stored
                               (release) after the cookies, so that who reads (acquire) 0 finds them done */
    size_t sent_of_head;    /* bytes of the head that were sent */
    struct np_write *out_head, *out_tail;

    /* The read side where the netpoller receives ahead: in NP_DEDICATED, and in
     * NP_AUTO in a stall, and while it sends for the worker.  Under lock. */
    uint8_t ahead;      /* NP_AUTO: it may: np_read_ahead */
    uint8_t in_large;   /* NP_AUTO: comes in large pieces, which the worker receives without a copy */
    struct np_read *in_head, *in_tail; /* netpoller appends, worker takes the whole list */
    atomic_size_t in_bytes; /* received by the netpoller, not yet given to the caller: in_head's and mine's.
                               Atomic: np_more reads it without the lock. */
    atomic_int in_end;      /* NP_END_OF_FILE or -errno, after the last byte.  Atomic as above. */
    unsigned in_chunks;     /* in in_head */
    uint8_t in_stopped;     /* NP_DEDICATED: readable, but at a bound: the worker submits it when there is room */
    uint8_t in_unsure;      /* a short read does not mean drained: neither TCP nor Unix, NP_UNSURE was seen, or
                               a read was cut */
    struct np_ring *ring;   /* NP_LISTEN; allocated by np_open */
    int accept_err;         /* errno of a failed accept, for one np_accept */

    /* Worker only. */
    uint8_t more;          /* a receive may find something without a new event */
    uint8_t unsure;        /* as in_unsure, for the worker's own receives; NP_WAIT, too */
    uint8_t end_seen;      /* in_end has been delivered */
    struct np_read *mine;  /* taken from in_head, partly consumed */
    size_t mine_at;        /* bytes of mine that were consumed */

    /* Netpoller thread only: its list of descriptors that can go on without a
     * new event.  hot_tag guards it as the tag guards an event. */
    uint8_t hot, hot_listed;
    uint32_t hot_tag;
    struct np_desc *hot_next;

    /* Its places in the engine's mailboxes, under the mailbox's lock. */
    struct np_place place[NP_PLACES];
};

/* Statistics, one set for each thread: np_count.  Its own cache line. */
struct np_counters {
    atomic_uint_fast64_t polls, events, syscalls, received, sent, handoffs, stalls;
};

struct np_engine {
    /* Constant. */
    np_mode mode;
    int cpus; /* that this process may use */
    int64_t spin_ns; /* np_set_spin */
    int one_by_one; /* np_send_one_by_one */
    int shared; /* mode != NP_INLINE: a second thread may exist; 0 in a forked child */

    /* np_fork_child, in a process with one thread; afterwards constant. */
    int dead;

    struct np_os os; /* see np_os.h */

    /* Guards the registrations (np_os_add, change, remove, reset), and tag, kind
     * and interest of every descriptor.  Held across a system call. */
    pthread_mutex_t ctl;

    /* The descriptor table.  A chunk is stored once (release) by the worker and
     * never moved or freed before np_engine_free; the netpoller loads it
     * (acquire) to see it initialised. */
    _Atomic(struct np_desc *) *table;
    atomic_uint chunks; /* highest chunk in use + 1; worker writes, netpoller's scans read (release, acquire) */

    /* -- Shared by the threads, each word on a line of its own. -- */

    /* See the state tables above.  All seq_cst: each is one side of a
     * "publish, then look" pair with another one:
     *   sleeper: wstate = asleep, then looks at ready.any, wake_pending, token, thread_on
     *   waker:   pushes (ready.any, wake_pending, token, thread_on), then looks at wstate */
    _Alignas(64) atomic_uint wstate;
    atomic_uint wake_pending; /* np_wake since the last np_park.  Any thread sets, np_park clears. */
    _Alignas(64) atomic_uint token;
    /* ... worker: wstate = RUNNING, then looks at tick; netpoller: tick = ASLEEP, then looks at wstate */
    _Alignas(64) atomic_uint tick;
    atomic_uint thread_on; /* the netpoller thread serves.  np_thread_start, the thread. */
    atomic_long netpoller_id; /* np_os_thread of the last one.  It writes; the worker reads (relaxed) */
    atomic_int netpoller_cpu; /* np_os_where of late.  The same */
    /* The netpoller is going to sleep, and how: netpoller: asleep = how, then
     * looks at submitted.any, token, tick, in_total; worker: pushes there, then
     * looks at asleep.  Who swaps it to AWAKE makes the one system call that wakes. */
    atomic_uint asleep;
    /* Odd while the netpoller (NP_AUTO) may have something in hand that was
     * submitted, or looks.  It adds 1, then takes; np_settle finds the mailbox
     * empty, then looks: what it did not find there was taken in a pass that it
     * waits for. */
    atomic_uint passes;
    /* NP_AUTO: what was submitted is to be sent now: worker: due = 1, then looks
     * at asleep; netpoller: asleep = how, then looks at due. */
    atomic_uint due;
    atomic_uint napping; /* 1: the netpoller (NP_AUTO) waits a moment for the worker to hand over more; a futex.  It: napping = 1,
                            then looks at due; worker: due = 1, then, with nothing else to do, looks at napping */

    /* Netpoller to worker: descriptors with events (also worker to itself). */
    _Alignas(64) struct np_mailbox ready;
    /* Worker to netpoller: start to send; go on reading (NP_DEDICATED). */
    _Alignas(64) struct np_mailbox submitted;

    /* Finished writes, from whoever drained to np_done. */
    _Alignas(64) np_spin done_lock;
    _Atomic(struct np_write *) done_head; /* under done_lock; np_done looks without it (relaxed: a
                                             completion seen late is seen with the next event) */
    struct np_write *done_tail;           /* under done_lock */

    atomic_size_t in_total; /* sum of in_bytes; both threads, RMW.  seq_cst: see asleep */
    atomic_uint starved;    /* some descriptor is stopped for NP_INBOUND_ALL.  Netpoller writes */
    atomic_uint_fast64_t wakeups; /* any thread, RMW */
    atomic_uint_fast64_t descriptors; /* open.  Worker writes; np_get_stats reads (relaxed) */

    /* -- Worker -- */

    _Alignas(64) atomic_uint_fast64_t turns; /* worker writes, the tick reads; relaxed: a sample */
    unsigned home;              /* worker only: RUNNING or IDLE, what a park returns to */
    atomic_uint offload;        /* np_sender: np_offload.  Worker writes; others read (relaxed, but in look) */
    unsigned looks_seen; /* worker only: of looks, below */
    int64_t polled;      /* worker only: ns, when np_poll last polled although the netpoller had looked */
    unsigned batched;           /* worker only: submitted in this turn */
    int given;                  /* worker only: make_due since the last look at what came of it: np_park */
    int64_t left_since;         /* worker only: ns; since it parks, and leaves what was submitted to the netpoller; 0: it doesn't */
    uint64_t left_at;           /* ... after so many system calls of the netpoller */
    unsigned turn_writes;       /* worker only: np_hand_over in this turn */
    atomic_uint usual_turn;     /* ... in the larger ones of late: between them come small ones, of what could be
                                   answered before the batch was sent.  Worker writes; the tick reads (relaxed) */
    atomic_int_fast64_t work; /* ns for each message in the last window.  Worker writes; netpoller reads (relaxed) */
    unsigned calls; /* worker only: waits in a row that np_wake has ended soon */
    unsigned found, unlooked; /* worker only: what looks around have found of late; waits since the last */
    const struct np_desc *recent[NP_RECENT]; /* worker only: of the last events; only compared */
    unsigned recent_at;
    const struct np_desc *last_written; /* worker only: in this turn; only compared */
    struct {
        int64_t since, waited; /* ns: its beginning; how much of it the worker has waited */
        int64_t rested;        /* ns: the end of the last wait of NP_REST or more, also before it */
        int writes;
        int messages; /* of them: what is written to one descriptor, in pieces, before the next is written to */
        size_t bytes;
        int agreed; /* windows in a row */
        int slow;   /* windows in a row in which there was less to do than the last trial has found */
    } window;      /* worker only: adapt.c */
    struct {
        int on;          /* the worker is saturated: offload is `by` */
        np_sender usual; /* what is best, as far as known */
        np_sender other; /* what is tried now; usual: nothing is */
        np_sender by;    /* one of the two */
        np_sender unfinished; /* what was tried when the worker was no longer saturated; usual: nothing was */
        int known;       /* usual has won or stood a trial; else it is a guess */
        int64_t ended;   /* ns: when the worker was no longer saturated, the last time */
        int contended;   /* ... made beside a thread that computes */
        int64_t wall;    /* ns for each message, as the last trial has found it; 0: none has */
        np_sender rival;          /* the better one of the others, the last time */
        int64_t rival_wall;       /* ... ns for each message; 0: not known */
        int64_t held_from;        /* ns: since when the usual way is compared with that; 0: not yet */
        int held;                 /* messages since then */
        int64_t began_with, work; /* ns for each message: before it began; in the first window of the usual way; 0: none yet */
        int netpoller_may;        /* it could send at the last look */
        int64_t at, pause;        /* ns: when the next trial begins; how long after it the one after it, if it changes nothing */
        unsigned count;           /* of trials */
        unsigned lost;            /* bits, by np_sender: trials since the last pause */
        /* The present span: ns; 0: in its first window. */
        int64_t from, cpu;
        long thread; /* the worker's */
        unsigned writes;
        int messages;
        struct np_cost before, tried; /* of the spans before it; before.wall 0: none yet */
        int64_t gain;                 /* per cent, summed over the pairs */
        int pairs;
    } trial; /* worker only: trial.c; read and written in adapt.c, too */
    struct {
        int64_t at, ran, waited; /* np_os_run_delay of the worker, and when */
        long thread;             /* which one that was: it may be another the next time; 0: not known */
        int with_netpoller;      /* it has sent since: that may be what the worker waits for */
        int moves;               /* in a row that have not helped */
        int64_t moved;           /* ns: the last one */
        int64_t until;           /* the netpoller is left alone */
        int64_t trusted;         /* until then only what is found without it counts */
        int agreed;              /* looks in a row that found the worker waiting, the second without the netpoller */
    } crowd;       /* worker only: adapt.c */
    atomic_int contended; /* np_contended.  Worker writes; the tick reads (relaxed) */
    int switching; /* worker only: np_switch_always */
    struct np_write *done_mine; /* worker only: taken from done_head */
    struct np_write *spare;     /* worker only: nodes for reuse */
    unsigned spares;
    struct np_counters by_worker;

    /* -- Netpoller -- */

    _Alignas(64) struct np_counters by_netpoller;
    /* NP_AUTO: how often it has looked for what to receive.  It writes; the worker reads (relaxed: it polls once more). */
    atomic_uint looks;
    struct np_desc *hot_head, *hot_tail; /* netpoller thread only */
    char *scratch;                       /* netpoller thread only; NULL: it doesn't receive */
    struct np_sends *sends;              /* netpoller thread only; NULL: it sends one by one */
    int sends_known;                     /* netpoller thread only: `sends` is what this kernel offers us */

    /* Token holder only (handed over by the token's release and acquire). */
    unsigned stale_waits;             /* in a row with stale_data */
    int stale_again;                  /* this wait has reported stale_data */
    uint64_t stale_data, stale_other; /* the suspect; another stale event of this wait; 0: none */

    /* Serialises np_thread_start and np_thread_stop; guards the two below. */
    pthread_mutex_t threads;
    int thread_exists;
    pthread_t thread;
};

/* ---- The table -------------------------------------------------------------- */

static inline uint64_t np_data(const struct np_desc *d) { return (uint64_t)d->tag << 32 | (uint32_t)d->fd; }

/* NULL if no chunk was ever allocated for fd. */
static inline struct np_desc *np_lookup(struct np_engine *e, int fd) {
    unsigned chunk = (unsigned)fd >> NP_CHUNK_BITS;
    if (chunk >= NP_CHUNKS) {
        return NULL;
    }
    struct np_desc *base = np_get_acq(&e->table[chunk]);
    return base ? base + ((unsigned)fd & (NP_CHUNK - 1)) : NULL;
}

/* For scans of all descriptors. */
#define NP_EACH(e, d)                                                                     \
    for (unsigned chunk_ = 0, end_ = np_get_acq(&(e)->chunks); chunk_ < end_; chunk_++)   \
        for (struct np_desc *d = np_get_acq(&(e)->table[chunk_]), *stop_ = d ? d + NP_CHUNK : NULL; d != stop_; d++)

static inline void np_lock(struct np_engine *e, struct np_desc *d) {
    if (e->shared) {
        np_spin_lock(&d->lock);
    }
}

static inline void np_unlock(struct np_engine *e, struct np_desc *d) {
    if (e->shared) {
        np_spin_unlock(&d->lock);
    }
}

static inline void np_ctl_lock(struct np_engine *e) {
    if (e->shared) {
        pthread_mutex_lock(&e->ctl);
    }
}

static inline void np_ctl_unlock(struct np_engine *e) {
    if (e->shared) {
        pthread_mutex_unlock(&e->ctl);
    }
}

/* 0, or the error that a call on this descriptor deserves.  Worker. */
static inline int np_check(const struct np_engine *e, const struct np_desc *d, unsigned kind) {
    if (!e || e->dead || !d || !d->kind) {
        return -EBADF;
    }
    return d->kind == kind ? 0 : -EINVAL;
}

/* Netpoller: whether it has the token for a look only. */
static inline int np_is_looking(struct np_engine *e) { return np_get(&e->token) == NP_LOOKING; }

/* What is written waits for the end of the turn. */
static inline int np_waits_for_turn(const struct np_engine *e) { return np_get(&e->offload) == NP_BY_WORKER; }

/* The netpoller thread does all I/O now. */
static inline int np_offloads(struct np_engine *e) { return e->mode == NP_DEDICATED && np_get_sc(&e->thread_on); }

/* ---- netpoll.c --------------------------------------------------------------- */

/* The descriptor of fd, allocating its chunk if need be; NULL: out of memory.
 * Worker. */
struct np_desc *np_slot(struct np_engine *e, int fd);

/* ---- desc.c: registrations --------------------------------------------------- */

/* Tells the OS facility the descriptor's present mask, if it is there.  -ENOENT,
 * -EBADF: it is not, or its number is another file's by now, or closed.  Under ctl. */
int np_refresh(struct np_engine *e, struct np_desc *d);
void np_unregister(struct np_engine *e, struct np_desc *d);
/* Refreshes all, so that the facility reports their present state: when the one
 * who reads changes, what the other one knew of edges is void. */
void np_refresh_all(struct np_engine *e);
/* Replaces the facility.  Holder of the token. */
void np_rebuild(struct np_engine *e);
/* An event with an old tag; and after each wait: rebuilds when it does not end.
 * Holder of the token. */
void np_stale(struct np_engine *e, uint64_t data);
void np_after_wait(struct np_engine *e);
/* netpoll.c.  np_os_wait with the token, for one of the threads; polls for
 * spin_ns before it blocks. */
int np_wait(struct np_engine *e, struct np_counters *by, int64_t timeout_ns, struct np_os_event *out, int max,
            int *kicked);
/* A LISTEN or LEVEL descriptor was reported: mutes it if `mute`, or takes note
 * that the OS facility did (ONCE).  The bits that are of interest; 0 if none
 * is, the tag is old, or the file is lost.  Under ctl, with the token. */
unsigned np_disarm(struct np_engine *e, struct np_desc *d, uint32_t tag, unsigned bits, int mute);
/* np_rearm without its look at the ring. */
int np_arm_again(struct np_engine *e, struct np_desc *d);

/* ---- stream.c: sending; inbound.c: receiving ---------------------------------- */

/* Drains the write queue: the caller has set d->sending and does not hold
 * d->lock.  1 if the turn ended with more to send. */
typedef enum {
    NP_CALLER, /* the worker, which looks by itself how far it went */
    NP_TURN,   /* the worker, at the end of its turn */
    NP_OTHER,  /* the netpoller */
} np_drainer;
int np_drain(struct np_engine *e, struct np_desc *d, np_drainer by, size_t turn);
/* Worker, NP_AUTO: the end of a turn, for what was batched in it. */
void np_end_batch(struct np_engine *e);
/* Worker, NP_BY_WORKER: sends what was queued so far. */
void np_send_batch(struct np_engine *e);
/* Moves all queued writes to the done list.  Under lock, with the right to send. */
void np_finish_all(struct np_engine *e, struct np_desc *d);
/* Netpoller: starts to drain if it may.  1 if it should go on. */
int np_net_send(struct np_engine *e, struct np_desc *d, uint32_t tag);
/* Netpoller, for several in one call: if it may drain, and what waits fits, it is
 * added to the sends, and the caller has the right to drain until np_net_sent.
 * 0: np_net_send. */
int np_net_add(struct np_engine *e, struct np_desc *d, uint32_t tag, struct np_sends *sends);
/* ... what came of it (np_sends_run).  1 if it should go on. */
int np_net_sent(struct np_engine *e, struct np_desc *d, ssize_t n);
/* Netpoller, with the token: one receive.  1 if it should go on. */
int np_net_receive(struct np_engine *e, struct np_desc *d, uint32_t tag, unsigned bits);
void np_drop_inbound(struct np_engine *e, struct np_desc *d);

/* ---- adapt.c ---------------------------------------------------------------------- */

/* The worker was parked: ns of CLOCK_MONOTONIC. */
void np_waited(struct np_engine *e, int64_t from, int64_t to);
/* Worker: whether it had to wait for a CPU of late: others want them, too.  Looks at most every NP_CROWD_SOON. */
int np_crowded(struct np_engine *e, int64_t now);

/* ---- trial.c ---------------------------------------------------------------------- */

/* Worker: saturated from here on, and this is the usual way until another one has won. */
void np_trial_begin(struct np_engine *e, int64_t now, np_sender usual, int netpoller_may);
/* The same, with what was found the last time. */
void np_trial_resume(struct np_engine *e);
/* After each window.  1: the usual way is in use, and nothing is tried.  guessed: what to do if the netpoller is the usual
 * one, and may not send. */
int np_trial_window(struct np_engine *e, int64_t now, np_sender guessed, int netpoller_may);
/* Breaks off a trial that goes on. */
void np_trial_stop(struct np_engine *e);
/* No longer saturated. */
void np_trial_end(struct np_engine *e, int64_t now);

/* ---- listen.c ------------------------------------------------------------------ */

/* Netpoller, NP_DEDICATED: accepts into the ring. */
void np_net_accept(struct np_engine *e, struct np_desc *d, uint32_t tag);

/* ---- park.c: the worker's waiting ----------------------------------------------- */

/* Wakes the worker if it sleeps.  Any thread, no lock held. */
void np_notify_worker(struct np_engine *e);
/* Netpoller: makes a descriptor ready for the worker.  Under d->lock or ctl,
 * with the tag verified.  1: the caller must np_notify_worker when it holds no
 * lock. */
int np_ready(struct np_engine *e, struct np_desc *d, unsigned bits);

/* ---- thread.c --------------------------------------------------------------------- */

/* Worker: asks the netpoller to go on with a descriptor (NP_R: receive, NP_W:
 * send).  0 if its thread does not serve: the caller does it. */
int np_submit(struct np_engine *e, struct np_desc *d, unsigned bits);
/* Wakes the netpoller if it sleeps. */
void np_kick_netpoller(struct np_engine *e);
/* Worker: ... if it naps. */
void np_end_nap(struct np_engine *e);

#endif
