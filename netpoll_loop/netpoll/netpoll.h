/* netpoll.h: the interface of the poller engine.
 *
 * What Go calls the netpoller: descriptors are opened once, edge-triggered in
 * both directions; whoever has time waits in the OS facility and dispatches
 * readiness.  The engine is C11 without Python.h: it never touches a Python
 * object and never needs the GIL.
 *
 * Two kinds of thread meet here:
 *   worker     the one thread that holds P, the right to run the loop's
 *              Python callbacks.  Every function below is for the worker
 *              unless it says "any thread".
 *   netpoller  the engine's own thread: always polling in NP_DEDICATED,
 *              helping a busy worker and taking over from a stalled one in
 *              NP_AUTO, absent in NP_INLINE.
 *
 * Two rights, kept apart:
 *   the poll token         one per engine; its holder may wait in the OS
 *                          facility and dispatch.  The worker holds it only
 *                          inside np_poll()/np_park(), never across Python.
 *   the right to do I/O    one per descriptor and direction (struct np_desc
 *                          in netpoll_internal.h); held for one batch of
 *                          non-blocking system calls at most.
 *
 * Errors are returned as negative errno values; an impossible call gets an
 * error code (-EBADF, -EINVAL), never undefined behaviour.  Times are
 * nanoseconds of CLOCK_MONOTONIC, sizes are bytes.
 */
#ifndef NETPOLL_H
#define NETPOLL_H

#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <sys/uio.h>

typedef struct np_engine np_engine;
typedef struct np_desc np_desc;

typedef enum { NP_INLINE = 0, NP_AUTO = 1, NP_DEDICATED = 2 } np_mode;

/* What a descriptor is for; it decides how it is registered and what the
 * netpoller thread may do with it. */
typedef enum {
    NP_STREAM = 1, /* connected stream socket: np_recv, np_send, np_queue; edge-triggered */
    NP_LISTEN = 2, /* listening socket: np_accept; level-triggered */
    NP_WAIT = 3,   /* readiness only (sock_*, datagrams); edge-triggered */
    NP_LEVEL = 4,  /* readiness only (add_reader/add_writer); level-triggered, np_arm says what for */
} np_kind;

/* Bits of an event, and of np_arm's interest (NP_R, NP_W only). */
#define NP_R 1u   /* readable: data, end of file, or a connection to accept */
#define NP_W 2u   /* writable; for NP_STREAM: call np_flush */
#define NP_HUP 4u /* the peer has hung up (RDHUP or HUP); comes with NP_R */
#define NP_ERR 8u /* an error is pending; comes with NP_R and NP_W */
#define NP_PRI 16u /* urgent data has come, at which reads stop; comes with NP_R */

typedef struct {
    void *user;    /* as given to np_open; valid only while np_current says so */
    uint32_t bits; /* NP_R | NP_W | NP_HUP | NP_ERR | NP_PRI */
    uint32_t tag;  /* of the descriptor at the time of the event */
    np_desc *desc;
} np_event;

/* Who waits in the OS facility at the moment. */
typedef enum { NP_POLLER_NONE = 0, NP_POLLER_WORKER = 1, NP_POLLER_NETPOLLER = 2 } np_poller;

typedef struct {
    uint64_t polls;              /* system calls that waited for or asked for events, both threads */
    uint64_t events;             /* events that the OS reported, both threads */
    uint64_t handoffs;           /* descriptors that the netpoller made ready for the worker */
    uint64_t inline_syscalls;    /* recv, send, accept, made by the worker */
    uint64_t netpoller_syscalls; /* recv, send, accept, made by the netpoller */
    uint64_t bytes_received;
    uint64_t bytes_sent;
    uint64_t stalls;             /* times that the netpoller took over from a stalled worker */
    uint64_t wakeups;            /* system calls made to wake a sleeping thread, worker or netpoller */
    uint64_t descriptors;        /* open now */
    uint64_t bytes_ahead;        /* received by the netpoller, not yet taken by np_recv */
    uint64_t bytes_unsent;       /* queued, not yet accepted by the kernel */
    np_poller poller;            /* who polls now */
    int thread_running;          /* the netpoller thread exists */
    int offloading;              /* NP_AUTO: the netpoller sends what np_queue gets now */
    int batching;                /* NP_AUTO: the worker does, at the end of its turn */
} np_stats;

/* ---- The engine ---------------------------------------------------------- */

/* A new engine, without its thread yet.  NULL and *err = -errno on failure. */
np_engine *np_engine_new(np_mode mode, int *err);

/* Stops the thread, frees the engine.  Cookies that are still queued must have
 * been taken with np_close and np_done before; those that were not are leaked,
 * never freed.  Accepts NULL. */
void np_engine_free(np_engine *e);

/* Before the first wait and before np_thread_start: whoever waits, polls for
 * so many nanoseconds first, which takes a CPU and saves the way into sleep and
 * back.  Without effect where the process may use one CPU only. */
void np_set_spin(np_engine *e, int64_t ns);

/* Starts the netpoller thread (all signals blocked in it); 0 if it runs
 * already or the mode is NP_INLINE.  -errno when it can't be created. */
int np_thread_start(np_engine *e);

/* Stops and joins it; the engine can be used on and the thread started again.
 * No completion is lost.  Any thread. */
void np_thread_stop(np_engine *e);

/* In a forked child: the engine is dead.  Its inherited epoll is never
 * touched, each later call returns -EBADF or does nothing, np_engine_free
 * only frees memory. */
void np_fork_child(np_engine *e);

void np_get_stats(np_engine *e, np_stats *out);

/* The fd of the OS facility, to look at from outside (/proc/self/fdinfo); -EBADF. */
int np_backend_fd(const np_engine *e);

/* ---- Waiting (worker) ---------------------------------------------------- */

/* Reports at most max events without blocking, 0 if there are none, or while the
 * netpoller looks for them; -errno if the OS facility fails (closed behind our
 * back).  With what the netpoller has found it may leave out its own poll for
 * some turns.  Counts as one turn of the worker (the tick looks at it). */
int np_poll(np_engine *e, np_event *out, int max);

/* NP_AUTO, before a turn in which only that runs which the last events have made
 * ready: 1 if it may do without np_poll, for the worker is saturated.  The turn
 * is counted, and what is due at the end of the last one is sent.  0: poll. */
int np_skip_poll(np_engine *e);

/* Whether the descriptor of an event is still the one that it was reported
 * for: the caller may have closed it since, and freed its user. */
int np_current(const np_event *ev);

/* To block: np_park_prepare publishes "asleep"; the caller then looks at its
 * own queues once more; then np_park blocks (or np_park_cancel, if there was
 * something).  A np_wake after np_park_prepare is never missed.
 * np_park: until an event, np_wake, a signal, or the deadline (absolute ns of
 * CLOCK_MONOTONIC; -1: no deadline); and once, a moment after the netpoller was
 * given something to send that nobody tells of, for np_done.  Returns the number
 * of events, 0 for any other reason, -errno if the OS facility fails. */
void np_park_prepare(np_engine *e);
void np_park_cancel(np_engine *e);
int np_park(np_engine *e, np_event *out, int max, int64_t deadline_ns);

/* The worker leaves run_forever (0) or enters it (1): outside, no tick. */
void np_set_running(np_engine *e, int running);

/* Wakes the worker if it sleeps (any thread; async-signal-safe). */
void np_wake(np_engine *e);

/* ---- Descriptors (worker) ------------------------------------------------ */

/* Registers fd, which must be non-blocking for NP_STREAM and NP_LISTEN.
 * NP_LISTEN and NP_LEVEL start with no interest: np_arm comes next, and registers
 * them.  An old registration of the same number is replaced: its events are
 * dropped by tag.  NULL and *err = -errno (-EPERM: a regular file; -EBADF) on
 * failure. */
np_desc *np_open(np_engine *e, int fd, np_kind kind, void *user, int *err);

/* Whether a read that gets less than it asks for has emptied the socket, for
 * NP_STREAM and NP_WAIT: only of TCP, and NP_STREAM of a Unix stream, until
 * urgent data or a passed descriptor comes.  Datagrams are read one by one. */
int np_short_is_all(const np_desc *d);

/* Whether the number is still the file that it was registered with: it may have been closed behind our back, and reused. */
int np_is_same(np_engine *e, np_desc *d);

/* NP_LISTEN, NP_LEVEL: report these directions (0: none).  -ENOENT: while it was
 * armed, its number was closed, and is another file's now; that one is not
 * registered, unless np_open names it.  While the netpoller polls for the worker, a
 * reported event disarms the descriptor; np_rearm after the callback has run arms
 * it again (and does nothing while the worker polls).
 * After np_arm(.., 0) returns, the netpoller accepts no more. */
int np_arm(np_engine *e, np_desc *d, unsigned interest);
int np_rearm(np_engine *e, np_desc *d);

/* Takes both rights, changes the tag, takes the descriptor out of the OS
 * facility, puts queued cookies on the done list, frees received data.  When
 * it returns, the netpoller never touches the fd again and no old event will
 * be reported: the caller may close the fd.  It does not close it.  d is
 * invalid afterwards.  Undelivered accepted connections (np_accepted) are
 * closed, so take them before. */
void np_close(np_engine *e, np_desc *d);

/* ---- Streams (worker) ---------------------------------------------------- */

/* Receives into buf.  First what the netpoller has received: in NP_DEDICATED it
 * does all of it, in NP_AUTO what it has found while the worker was stalled or
 * busy; otherwise it calls recv(2).  > 0 bytes, 0 end of file, -EAGAIN, or -errno. */
ssize_t np_recv(np_engine *e, np_desc *d, void *buf, size_t size);

/* NP_AUTO: whether the netpoller may receive from d while the worker is stalled
 * or busy; at first it may not.  After (.., 0) returns it receives no more. */
void np_read_ahead(np_engine *e, np_desc *d, int may);

/* Whether another np_recv may find something without a new event. */
int np_more(np_desc *d);

/* Sends at once, if nothing is queued and no send is going on.  The number of
 * bytes sent (0: none, queue it), or -errno.  Never -EAGAIN. */
ssize_t np_send(np_engine *e, np_desc *d, const void *buf, size_t size);
ssize_t np_sendv(np_engine *e, np_desc *d, const struct iovec *iov, int count);

/* Appends to the write queue.  buf stays the caller's and must not change
 * until np_done returns the cookie.  Whoever sees the descriptor writable
 * sends it, vectored: in NP_DEDICATED the netpoller, in NP_AUTO whom
 * np_offload has set, otherwise this call tries at once.  0, or -ENOMEM / -errno of
 * an earlier failed send: then the cookie was not taken.  A failed send comes
 * as NP_W | NP_ERR, whoever made it; progress by the netpoller comes as NP_W,
 * for what was queued to be sent in a batch only after np_tell. */
int np_queue(np_engine *e, np_desc *d, const void *buf, size_t size, void *cookie);

/* The same, but in NP_AUTO it is sent with the other writes of the turn in any
 * case: by the next np_poll or np_park, or by the netpoller if that stalls. */
int np_queue_for_turn(np_engine *e, np_desc *d, const void *buf, size_t size, void *cookie);

/* Reports the progress of others with the write queue as NP_W, until the
 * queue is empty.  1: something is queued; 0: nothing is, so that nothing need
 * come (unless something is queued later). */
int np_tell(np_engine *e, np_desc *d);

/* Reports it, once, as NP_W if the socket doesn't take all that is queued. */
void np_tell_full(np_engine *e, np_desc *d);

/* Who sends what np_queue gets. */
typedef enum {
    NP_AT_ONCE = 0,       /* the call itself */
    NP_BY_NETPOLLER = 1,  /* the netpoller, in batches */
    NP_BY_WORKER = 2,     /* np_poll, at the end of a turn; the netpoller if the turn stalls */
} np_sender;

/* The worker is about to write so many bytes to d.  NP_AT_ONCE: np_send it,
 * which also finds out whether d is writable; else np_queue_for_turn it: who
 * will send it.  NP_AUTO changes its mind by how busy the worker is (adapt.c);
 * the other modes never hand over by this. */
np_sender np_hand_over(np_engine *e, np_desc *d, size_t size);

/* Another thread computes, and the worker has to wait for the GIL again and
 * again (1), or no longer (0): what it does while it has the GIL counts. */
void np_contended(np_engine *e, int contended);

/* Sends what was handed over and not begun: for a worker that has nothing else
 * to do, and doesn't park (np_park does so by itself). */
void np_send_left(np_engine *e);

/* Before np_thread_start: the netpoller makes a system call for each send, even
 * where the kernel offers one for several (io_uring). */
void np_send_one_by_one(np_engine *e);

/* For tests: changes its mind with each np_poll. */
void np_switch_always(np_engine *e);

/* NP_AUTO: from here on; NP_AT_ONCE is the beginning.  Who it is now: never
 * another without the thread. */
np_sender np_offload(np_engine *e, np_sender by);

/* Ends it, with the receiving ahead that goes with it, and sends what the
 * netpoller has not begun; what it has begun is tried before this returns.
 * After it the sockets have got what np_queue's own try would have given them. */
void np_settle(np_engine *e);

/* Sends from the queue as far as it goes; call on NP_W.  Bytes still queued
 * (np_tell is implied), or -errno of the failed send (the netpoller's included). */
ssize_t np_flush(np_engine *e, np_desc *d);

/* -errno of the failed send, 0 if none has failed. */
int np_send_error(np_desc *d);

/* Bytes queued and not yet accepted by the kernel. */
size_t np_pending(np_desc *d);

/* Whether something is queued that the socket didn't take, and nobody is sending it. */
int np_full(np_engine *e, np_desc *d);

/* Forgets the write queue (abort); the cookies go to the done list. */
void np_discard(np_engine *e, np_desc *d);

/* Asks for one NP_W at the next moment that the socket becomes writable,
 * although nothing is queued (sendfile).  Call it before each attempt to send
 * past the engine: an edge that comes between the attempt and the wait is then
 * not lost.  notify 0: it is writable, as poll(2) has said, and no edge is to
 * come; the request is taken back. */
void np_notify_writable(np_engine *e, np_desc *d, int notify);

/* The cookie of one finished (or discarded) np_queue; NULL when there is none. */
void *np_done(np_engine *e);

/* ---- Listeners (worker) -------------------------------------------------- */

/* Accepts one connection: a non-blocking, close-on-exec fd, or -EAGAIN, or
 * -errno.  addr/len as accept4(2); may be NULL.  In NP_DEDICATED it takes one
 * that the netpoller accepted (16 undelivered at most), otherwise it calls
 * accept4(2). */
int np_accept(np_engine *e, np_desc *d, struct sockaddr_storage *addr, socklen_t *len);

/* Only what the netpoller has accepted already; -EAGAIN if nothing. */
int np_accepted(np_engine *e, np_desc *d, struct sockaddr_storage *addr, socklen_t *len);

#endif
