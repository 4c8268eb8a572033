/* thread.c: the netpoller thread.
 *
 * NP_AUTO: it sends what the worker hands over (np_offload), and while it does,
 * it looks for what has come, and receives it ahead.  It ticks while the worker
 * is active, and takes the poll token when the worker has been inside one
 * callback for a tick.  It then drains write queues, receives ahead, up to a
 * bound, and collects what else happens for the worker; it does not accept,
 * since a sibling process that shares the listener may have the time.
 *
 * NP_DEDICATED: it holds the token from its start to its stop, and does the
 * I/O: receives ahead, accepts, drains.
 */
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "netpoll_internal.h"
#include "np_sends.h"

/* ---- Its list of descriptors that can go on without a new event ------------------------ */

static void hot_add(struct np_engine *e, struct np_desc *d, uint32_t tag, unsigned bits) {
    if (d->hot_tag != tag) {
        d->hot = 0;
        d->hot_tag = tag;
    }
    d->hot |= (uint8_t)bits;
    if (d->hot_listed) {
        return;
    }
    d->hot_listed = 1;
    d->hot_next = NULL;
    if (e->hot_tail) {
        e->hot_tail->hot_next = d;
    } else {
        e->hot_head = d;
    }
    e->hot_tail = d;
}

static struct np_desc *hot_take(struct np_desc **list, unsigned *bits) {
    struct np_desc *d = *list;
    if (d) {
        *list = d->hot_next;
        *bits = d->hot;
        d->hot = d->hot_listed = 0;
    }
    return d;
}

/* One turn for one descriptor; to the list again if there is more. */
static void serve(struct np_engine *e, struct np_desc *d, uint32_t tag, unsigned bits) {
    unsigned again = 0;
    if ((bits & NP_R) && np_net_receive(e, d, tag, bits)) {
        again |= NP_R;
    }
    if ((bits & NP_W) && np_net_send(e, d, tag)) {
        again |= NP_W;
    }
    if (again) {
        hot_add(e, d, tag, again);
    }
}

static void serve_hot(struct np_engine *e) {
    struct np_desc *list = e->hot_head, *d;
    unsigned bits;
    e->hot_head = e->hot_tail = NULL; /* who goes on, goes to the new list: one turn each */
    while ((d = hot_take(&list, &bits)) != NULL) {
        serve(e, d, d->hot_tag, bits);
    }
}

/* The end of its polling: unfinished drains become the worker's, by event. */
static void hand_back_hot(struct np_engine *e) {
    struct np_desc *d;
    unsigned bits;
    while ((d = hot_take(&e->hot_head, &bits)) != NULL) {
        int wake = 0;
        np_lock(e, d);
        if (d->tag == d->hot_tag && d->kind == NP_STREAM) {
            d->hot_w = 0;
            wake = np_ready(e, d, bits & NP_R ? bits | NP_LEFT : bits);
        }
        np_unlock(e, d);
        if (wake) {
            np_notify_worker(e);
        }
    }
    e->hot_tail = NULL;
}

/* ---- Dispatch by the netpoller ------------------------------------------------------------ */

static void dispatch_stream(struct np_engine *e, struct np_desc *d, uint32_t tag, unsigned bits) {
    int wake = 0, unsent = 0;
    np_lock(e, d);
    if (d->tag != tag) {
        np_unlock(e, d);
        return;
    }
    if (bits & NP_W) {
        np_set(&d->writable, 1);
        if (d->asked_w) {
            d->asked_w = 0;
            wake = np_ready(e, d, NP_W);
        }
        unsent = d->out_head != NULL;
    }
    np_unlock(e, d);
    if (wake) {
        np_notify_worker(e);
    }
    if (np_is_looking(e)) {
        bits &= ~NP_W;
        if (unsent) {
            hot_add(e, d, tag, NP_W); /* for when the worker can have the token again */
        }
    }
    serve(e, d, tag, bits);
}

static void dispatch_readiness(struct np_engine *e, struct np_desc *d, uint32_t tag, unsigned bits) {
    int wake = 0;
    np_ctl_lock(e);
    if (d->tag == tag) {
        if (d->kind != NP_WAIT) {
            bits = np_disarm(e, d, tag, bits, 1);
        }
        if (bits) {
            wake = np_ready(e, d, bits);
        }
    }
    np_ctl_unlock(e);
    if (wake) {
        np_notify_worker(e);
    }
}

static void dispatch(struct np_engine *e, const struct np_os_event *ev) {
    uint32_t tag = (uint32_t)(ev->data >> 32);
    struct np_desc *d = np_lookup(e, (int)(uint32_t)ev->data);
    unsigned kind = 0;
    if (d) {
        np_lock(e, d);
        kind = d->tag == tag ? d->kind : 0;
        np_unlock(e, d);
    }
    switch (kind) {
    case 0:
        np_stale(e, ev->data);
        break;
    case NP_STREAM:
        dispatch_stream(e, d, tag, ev->bits);
        break;
    case NP_LISTEN:
        if (e->mode == NP_DEDICATED) {
            np_net_accept(e, d, tag);
            break;
        }
        /* fall through */
    case NP_LEVEL:
        if (np_is_looking(e)) { /* it will be reported to the worker, too */
            break;
        }
        /* fall through */
    default:
        dispatch_readiness(e, d, tag, ev->bits);
    }
}

/* One wait, and what it reports.  Holds the token.  0, or -errno: the facility fails. */
static int poll_once(struct np_engine *e, int64_t timeout_ns) {
    struct np_os_event events[NP_OS_EVENTS];
    int kicked;
    int got = np_wait(e, &e->by_netpoller, timeout_ns, events, NP_OS_EVENTS, &kicked);
    np_chaos();
    if (got > 0) {
        np_count(&e->by_netpoller.events, got);
        for (int i = 0; i < got; i++) {
            dispatch(e, &events[i]);
        }
    }
    np_after_wait(e);
    return got < 0 && got != -EINTR ? got : 0;
}

static void poll_and_serve(struct np_engine *e, int64_t timeout_ns) {
    if (poll_once(e, timeout_ns) < 0) { /* somebody closed all file descriptors of the process: don't spin */
        np_nap(NP_TICK);
    }
    serve_hot(e);
}

static int stopped(struct np_engine *e) { return np_get_sc(&e->tick) == NP_STOP; }

static void give_token(struct np_engine *e) {
    (void)np_swap_sc(&e->token, NP_FREE);
    np_notify_worker(e); /* on the futex it waits for the token */
}

/* ---- Submissions --------------------------------------------------------------------------------- */

void np_kick_netpoller(struct np_engine *e) {
    if (np_get_sc(&e->asleep) == NP_AWAKE) {
        return;
    }
    switch (np_swap_sc(&e->asleep, NP_AWAKE)) {
    case NP_ASLEEP_IN_OS:
        atomic_fetch_add_explicit(&e->wakeups, 1, memory_order_relaxed);
        np_os_kick(&e->os);
        break;
    case NP_ASLEEP_ON_TICK:
        atomic_fetch_add_explicit(&e->wakeups, 1, memory_order_relaxed);
        if (np_cas_sc(&e->tick, NP_TICKING, NP_CALLED) || np_cas_sc(&e->tick, NP_ASLEEP, NP_CALLED)) {
            np_futex_wake(&e->tick);
        }
        break;
    default:
        break;
    }
}

/* Worker, NP_AUTO: the netpoller is to send what was submitted. */
static void make_due(struct np_engine *e) {
    e->given = 1;
    np_set_sc(&e->due, 1u);
    np_kick_netpoller(e);
}

void np_end_nap(struct np_engine *e) {
    if (np_get_sc(&e->napping) && np_swap_sc(&e->napping, 0u)) {
        atomic_fetch_add_explicit(&e->wakeups, 1, memory_order_relaxed);
        np_futex_wake(&e->napping);
    }
}

int np_submit(struct np_engine *e, struct np_desc *d, unsigned bits) {
    if (!np_get_sc(&e->thread_on)) {
        return 0;
    }
    int first = np_mailbox_post(&e->submitted, d, bits);
    if (e->mode == NP_DEDICATED) {
        if (first) {
            np_kick_netpoller(e);
        }
    } else {
        e->batched++;
        if (np_get(&e->offload) == NP_BY_NETPOLLER ||
            np_get_sc(&e->token) == NP_NETPOLLER) { /* the latter in a stall: see take_over */
            make_due(e);
        }
    }
    return np_get_sc(&e->thread_on) != 0; /* see stop_serving */
}

/* See np_engine.passes. */
static void begin_pass(struct np_engine *e) { atomic_fetch_add(&e->passes, 1); }
static void end_pass(struct np_engine *e) { atomic_fetch_add(&e->passes, 1); }

/* Those that only wait to be sent leave together, up to one that needs more.  0: there are none. */
static int serve_some(struct np_engine *e) {
    struct np_desc *sending[NP_SENDS_MAX], *alone = NULL;
    uint32_t tags[NP_SENDS_MAX], tag = 0;
    ssize_t sent[NP_SENDS_MAX];
    unsigned bits = 0, count = 0;
    while (count < NP_SENDS_MAX && (alone = np_mailbox_take(&e->submitted, &bits)) != NULL) {
        np_lock(e, alone);
        tag = alone->tag;
        unsigned kind = alone->kind;
        np_unlock(e, alone);
        if (kind != NP_STREAM) {
            continue;
        }
        if (!e->sends || bits != NP_W || !np_net_add(e, alone, tag, e->sends)) {
            break;
        }
        sending[count] = alone;
        tags[count++] = tag;
    }
    if (count > 0) {
        np_count(&e->by_netpoller.syscalls, np_sends_run(e->sends, sent));
    }
    for (unsigned i = 0; i < count; i++) {
        if (np_net_sent(e, sending[i], sent[i])) {
            hot_add(e, sending[i], tags[i], NP_W);
        }
    }
    if (count < NP_SENDS_MAX && alone) {
        serve(e, alone, tag, bits);
    }
    return count > 0 || alone;
}

static void serve_submitted(struct np_engine *e) {
    if (!e->sends_known && np_get_sc(&e->submitted.any)) {
        e->sends = e->one_by_one ? NULL : np_sends_new();
        e->sends_known = 1;
    }
    while (serve_some(e)) {
    }
}

/* From here on the worker does by itself what it would submit; what it has
 * submitted before it could see that goes to the hot list.  (It posts, then looks
 * at thread_on; we clear thread_on, then look at its posts.) */
static void stop_serving(struct np_engine *e) {
    struct np_desc *d;
    unsigned bits;
    np_set_sc(&e->thread_on, 0u);
    begin_pass(e);
    while ((d = np_mailbox_take(&e->submitted, &bits)) != NULL) {
        np_lock(e, d);
        uint32_t tag = d->tag;
        unsigned kind = d->kind;
        np_unlock(e, d);
        if (kind) {
            hot_add(e, d, tag, bits);
        }
    }
    end_pass(e);
}

/* ---- NP_AUTO: tick and takeover --------------------------------------------------------------- */

static void take_over(struct np_engine *e) {
    if (!np_cas_sc(&e->token, NP_FREE, NP_NETPOLLER)) {
        return; /* the worker polls: no stall any more */
    }
    np_count(&e->by_netpoller.stalls, 1);
    while (np_get_sc(&e->token) == NP_NETPOLLER && !stopped(e)) {
        begin_pass(e);
        serve_submitted(e);
        end_pass(e);
        int64_t timeout = 0;
        if (!e->hot_head) {
            np_set_sc(&e->asleep, NP_ASLEEP_IN_OS);
            if (!np_get_sc(&e->submitted.any) && np_get_sc(&e->token) == NP_NETPOLLER && !stopped(e)) {
                timeout = -1;
            }
        }
        poll_and_serve(e, timeout);
        np_set_sc(&e->asleep, NP_AWAKE);
    }
    hand_back_hot(e);
    give_token(e);
}

/* The worker has something to do: receives for it what has come meanwhile.  In a pass, so that nothing is received any
 * more when np_settle is back. */
static void look(struct np_engine *e) {
    if (np_get_sc(&e->offload) != NP_BY_NETPOLLER || np_get_sc(&e->wstate) != NP_RUNNING ||
        !np_cas_sc(&e->token, NP_FREE, NP_LOOKING)) {
        return;
    }
    (void)poll_once(e, 0);
    give_token(e);
    np_set(&e->looks, np_get(&e->looks) + 1);
}

/* ns: half of a turn, so that what is written in it leaves in it, too; where each message is much work, so that two naps find
 * the next. */
static int64_t nap_length(struct np_engine *e) {
    int64_t message = np_get(&e->work) / 2, turn = message * np_get(&e->usual_turn);
    int64_t most = message < NP_NAP_LONG ? NP_NAP_LONG : message < NP_NAP_LONGEST ? message : NP_NAP_LONGEST;
    return turn < NP_NAP ? NP_NAP : turn < most ? turn : most;
}

/* A nap, which the worker ends (np_end_nap) once it has nothing to add to what is due. */
static void nap(struct np_engine *e, int64_t until_ns) {
    np_set_sc(&e->napping, 1u);
    if (!np_get_sc(&e->due)) {
        (void)np_futex_wait(&e->napping, 1u, until_ns);
    }
    np_set_sc(&e->napping, 0u);
}

/* Sends what the worker has handed over, and what it hands over until the deadline, the next tick.  While it does, we nap
 * and look again: to wake us would cost the worker an interrupt each time. */
static void serve_worker(struct np_engine *e, int64_t deadline_ns) {
    int64_t now = np_now(), naps_until = now;
    while (now < deadline_ns && !stopped(e)) {
        if (np_get_sc(&e->due) || e->hot_head) {
            np_set_sc(&e->due, 0u);
            np_set(&e->netpoller_cpu, np_os_where());
            begin_pass(e);
            serve_submitted(e);
            serve_hot(e);
            look(e);
            end_pass(e);
            naps_until = now + NP_QUIET;
        } else if (now < naps_until && np_get(&e->offload) == NP_BY_NETPOLLER) {
            nap(e, now + nap_length(e));
        } else {
            return;
        }
        now = np_now();
    }
}

/* Sleeps while tick is `state`, until the deadline, or until there is something to send. */
static void sleep_on_tick(struct np_engine *e, unsigned state, int64_t deadline_ns) {
    np_set_sc(&e->asleep, NP_ASLEEP_ON_TICK);
    if (!np_get_sc(&e->due)) {
        (void)np_futex_wait(&e->tick, state, deadline_ns);
    }
    np_set_sc(&e->asleep, NP_AWAKE);
    (void)np_cas_sc(&e->tick, NP_CALLED, NP_TICKING);
}

/* Each tick wakes a CPU that could sleep, or that polls for its next task: an idle CPU of a virtual machine stops that
 * for one timer every 10 ms, and each wake-up of a peer then costs the worker an interrupt, 7 % of an echo.  So the
 * ticks become rarer while the worker makes its turns, and are 10 ms again once a turn was stuck, the worker idle, or
 * writes wait for the end of a turn. */
static void run_ticks(struct np_engine *e) {
    uint64_t last = np_get(&e->turns);
    int64_t tick = NP_TICK, next = np_now() + tick;
    int calm = 0;
    e->scratch = malloc(NP_SCRATCH);
    while (!stopped(e)) {
        serve_worker(e, next);
        sleep_on_tick(e, NP_TICKING, next);
        if (np_now() < next) {
            continue;
        }
        uint64_t turns = np_get(&e->turns);
        if (turns == last || np_waits_for_turn(e)) {
            tick = NP_TICK;
            calm = 0;
        } else if (tick < NP_TICK_CALM && ++calm == NP_CALM) {
            tick *= 2;
            calm = 0;
        }
        if (turns == last && !stopped(e)) {
            if (np_get_sc(&e->wstate) == NP_RUNNING) {
                take_over(e);
            } else if (!e->hot_head && np_cas_sc(&e->tick, NP_TICKING, NP_ASLEEP)) {
                /* Parked or idle for a whole tick, and nothing to send: no wake-ups until it goes on. */
                if (np_get_sc(&e->wstate) == NP_RUNNING) {
                    (void)np_cas_sc(&e->tick, NP_ASLEEP, NP_TICKING);
                }
                while (np_get_sc(&e->tick) == NP_ASLEEP && !np_get_sc(&e->due)) {
                    sleep_on_tick(e, NP_ASLEEP, -1);
                }
                (void)np_cas_sc(&e->tick, NP_ASLEEP, NP_TICKING);
            }
            turns = np_get(&e->turns);
        }
        last = turns;
        next = np_now() + tick;
    }
    stop_serving(e);
    begin_pass(e);
    serve_hot(e); /* what np_settle would do, if the loop left now */
    end_pass(e);
    hand_back_hot(e);
    free(e->scratch);
    e->scratch = NULL;
}

/* ---- NP_DEDICATED: serving ----------------------------------------------------------------------- */

/* The engine's inbound bound had stopped some; rare, so it is a scan. */
static int may_feed(struct np_engine *e) {
    return np_get_sc(&e->starved) && np_get_sc(&e->in_total) < NP_INBOUND_ALL / 2;
}

static void feed_starved(struct np_engine *e) {
    np_set_sc(&e->starved, 0u);
    NP_EACH(e, d) {
        np_lock(e, d);
        uint32_t tag = d->tag;
        int resume = d->kind == NP_STREAM && d->in_stopped && np_get(&d->in_bytes) < NP_INBOUND / 2;
        if (resume) {
            d->in_stopped = 0;
        }
        np_unlock(e, d);
        if (resume) {
            hot_add(e, d, tag, NP_R);
        }
    }
}

static void run_dedicated(struct np_engine *e) {
    while (!np_cas_sc(&e->token, NP_FREE, NP_NETPOLLER)) {
        if (stopped(e)) {
            stop_serving(e);
            hand_back_hot(e);
            np_notify_worker(e); /* it may have gone to the futex already, for us to poll */
            return;
        }
        /* Rare: started while the worker waits in the OS facility.  It sees
         * thread_on and will not take the token again. */
        np_os_kick(&e->os);
        np_nap(200000);
    }
    np_refresh_all(e); /* edges that the worker has seen, and left, are reported anew */
    while (!stopped(e)) {
        serve_submitted(e);
        if (may_feed(e)) {
            feed_starved(e);
        }
        int64_t timeout = 0;
        if (!e->hot_head) {
            np_set_sc(&e->asleep, NP_ASLEEP_IN_OS);
            if (!np_get_sc(&e->submitted.any) && !may_feed(e) && !stopped(e)) {
                timeout = -1;
            }
        }
        poll_and_serve(e, timeout);
        np_set(&e->asleep, NP_AWAKE);
    }
    stop_serving(e);
    hand_back_hot(e);
    np_refresh_all(e); /* and edges that we have seen are reported to the worker */
    give_token(e);
}

/* ---- Its life ---------------------------------------------------------------------------------------- */

static void *thread_main(void *arg) {
    struct np_engine *e = arg;
    np_sleep_exactly();
    np_set(&e->netpoller_id, np_os_thread());
    if (e->mode == NP_DEDICATED) {
        run_dedicated(e);
    } else {
        np_os_be_patient(); /* else a peer that we wake loses its CPU to us at the end of our next nap */
        run_ticks(e);
    }
    np_sends_free(e->sends);
    e->sends = NULL;
    e->sends_known = 0;
    return NULL;
}

static int create_thread(struct np_engine *e) {
    pthread_attr_t attr;
    sigset_t all, before;
    np_os_make_room(&e->os);
    pthread_attr_init(&attr);
    pthread_attr_setstacksize(&attr, NP_STACK);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before); /* inherited: no signal is ever delivered to it */
    int rc = pthread_create(&e->thread, &attr, thread_main, e);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attr);
    if (rc == 0) {
        pthread_setname_np(e->thread, "netpoller");
    }
    return -rc;
}

int np_thread_start(np_engine *e) {
    if (!e || e->dead) {
        return -EBADF;
    }
    if (e->mode == NP_INLINE) {
        return 0;
    }
    int rc = 0;
    pthread_mutex_lock(&e->threads);
    if (!e->thread_exists) {
        np_set_sc(&e->tick, NP_TICKING);
        np_set_sc(&e->thread_on, 1u);
        rc = create_thread(e);
        if (rc == 0) {
            e->thread_exists = 1;
        } else {
            np_set_sc(&e->thread_on, 0u);
            np_notify_worker(e);
        }
    }
    pthread_mutex_unlock(&e->threads);
    return rc;
}

void np_thread_stop(np_engine *e) {
    if (!e || e->dead || e->mode == NP_INLINE) {
        return;
    }
    pthread_mutex_lock(&e->threads);
    if (e->thread_exists) {
        (void)np_swap_sc(&e->tick, NP_STOP);
        np_futex_wake(&e->tick);
        unsigned token = np_get_sc(&e->token);
        if (token == NP_NETPOLLER || token == NP_WANTED) {
            np_os_kick(&e->os); /* if it takes the token after this look, it sees STOP before it waits */
        }
        pthread_join(e->thread, NULL);
        e->thread_exists = 0;
        np_set_sc(&e->thread_on, 0u);
        np_set_sc(&e->tick, NP_TICKING);
    }
    pthread_mutex_unlock(&e->threads);
}
