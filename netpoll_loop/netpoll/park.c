/* park.c: the worker's waiting: poll, park, wake.
 *
 * The two rules, from which everything here follows:
 *   a sleeper publishes that it sleeps, then looks at its queues, then sleeps;
 *   a producer pushes, then looks whether somebody sleeps.
 */
#include "netpoll_internal.h"

/* ---- Waking (any thread) ----------------------------------------------------------- */

void np_notify_worker(struct np_engine *e) {
    switch (np_get_sc(&e->wstate)) {
    case NP_ON_FUTEX:
        if (np_cas_sc(&e->wstate, NP_ON_FUTEX, NP_NOTIFIED)) {
            atomic_fetch_add_explicit(&e->wakeups, 1, memory_order_relaxed);
            np_futex_wake(&e->wstate);
        }
        break;
    case NP_IN_EPOLL:
        if (np_cas_sc(&e->wstate, NP_IN_EPOLL, NP_NOTIFIED)) {
            atomic_fetch_add_explicit(&e->wakeups, 1, memory_order_relaxed);
            np_os_kick(&e->os);
        }
        break;
    default: /* awake: it looks before it sleeps */
        break;
    }
}

void np_wake(np_engine *e) {
    if (!e || e->dead) {
        return;
    }
    if (np_swap_sc(&e->wake_pending, 1u)) {
        return; /* the one who set it wakes, and the worker has not looked yet */
    }
    int saved = errno; /* a signal handler may call this */
    np_notify_worker(e);
    errno = saved;
}

int np_ready(struct np_engine *e, struct np_desc *d, unsigned bits) {
    np_count(&e->by_netpoller.handoffs, 1);
    return np_mailbox_post(&e->ready, d, bits);
}

/* ---- The token, for the worker -------------------------------------------------------- */

static void want_token(struct np_engine *e) {
    if (np_cas_sc(&e->token, NP_NETPOLLER, NP_WANTED)) {
        np_os_kick(&e->os);
    }
}

/* If the netpoller has it, asks for it. */
static int take_token(struct np_engine *e) {
    if (!e->shared) {
        np_set(&e->token, NP_WORKER); /* for np_get_stats */
        return 1;
    }
    if (np_cas_sc(&e->token, NP_FREE, NP_WORKER)) {
        return 1;
    }
    want_token(e);
    return 0;
}

static void release_token(struct np_engine *e) { np_set_rel(&e->token, NP_FREE); }

/* ---- The worker's states ------------------------------------------------------------ */

static void count_turn(struct np_engine *e) { np_count(&e->turns, 1); }

/* Awake again: publishes it, and wakes the tick if it sleeps. */
static void unpark(struct np_engine *e) {
    np_set_sc(&e->wstate, e->home);
    if (e->home == NP_RUNNING && np_get_sc(&e->tick) == NP_ASLEEP && np_cas_sc(&e->tick, NP_ASLEEP, NP_TICKING)) {
        np_futex_wake(&e->tick);
    }
}

void np_set_running(np_engine *e, int running) {
    if (!e || e->dead) {
        return;
    }
    count_turn(e);
    e->home = running ? NP_RUNNING : NP_IDLE;
    unpark(e);
    if (!running && e->mode == NP_AUTO) {
        want_token(e); /* what happens while nobody runs the loop can wait */
    }
}

void np_park_prepare(np_engine *e) {
    if (e && !e->dead) {
        np_set_sc(&e->wstate, NP_PREPARED);
    }
}

void np_park_cancel(np_engine *e) {
    if (e && !e->dead) {
        unpark(e);
    }
}

/* ---- Dispatch by the worker ----------------------------------------------------------- */

/* What an event of the OS means for the caller; 0: nothing. */
static unsigned dispatch(struct np_engine *e, const struct np_os_event *ev, np_event *out) {
    uint32_t tag = (uint32_t)(ev->data >> 32);
    unsigned bits = ev->bits;
    struct np_desc *d = np_lookup(e, (int)(uint32_t)ev->data);
    if (!d || d->tag != tag || !d->kind) {
        np_stale(e, ev->data);
        return 0;
    }
    out->user = d->user;
    out->tag = tag;
    out->desc = d;
    if (bits & NP_UNSURE) {
        d->unsure = 1;
    }
    switch (d->kind) {
    case NP_STREAM:
        if (bits & NP_W) {
            /* Without the lock in the common case: with nothing queued nobody
             * but this thread can be about to send or clear `writable`. */
            int asked = 0, others = 0;
            if (!np_get(&d->writable) || np_get(&d->pending)) {
                np_lock(e, d);
                /* The netpoller is sending, and looks at it when it is full, or is to send, since it was writable before. */
                others = d->sending || (np_get(&d->writable) && np_get(&e->offload) == NP_BY_NETPOLLER);
                np_set(&d->writable, 1);
                asked = d->asked_w;
                d->asked_w = 0;
                np_unlock(e, d);
            }
            if (!asked && (others || !np_get(&d->pending)) && !np_get(&d->send_err) && !(bits & NP_ERR)) {
                bits &= ~NP_W;
            }
        }
        if (bits & NP_R) {
            d->more = 1;
        }
        break;
    case NP_LISTEN:
    case NP_LEVEL:
        if (d->kind == NP_LEVEL && e->mode == NP_DEDICATED) {
            np_ctl_lock(e);
            bits = np_disarm(e, d, tag, bits, 0);
            np_ctl_unlock(e);
        } else {
            bits = bits & d->interest ? bits & (d->interest | NP_HUP | NP_ERR) : 0;
        }
        break;
    default:
        break;
    }
    out->bits = bits;
    return bits;
}

/* What the netpoller (or the worker itself) made ready. */
static int take_ready(struct np_engine *e, np_event *out, int max) {
    int n = 0;
    while (n < max && np_get_sc(&e->ready.any)) {
        unsigned bits;
        struct np_desc *d = np_mailbox_take(&e->ready, &bits);
        if (!d) {
            break;
        }
        if (bits & NP_UNSURE) {
            d->unsure = 1;
        }
        if (d->kind == NP_STREAM) {
            if (bits & NP_LEFT) {
                d->more = 1;
            }
        } else if (d->kind != NP_WAIT && !(bits & d->interest)) {
            (void)np_rearm(e, d); /* interest has changed since */
            continue;
        }
        out[n].user = d->user;
        out[n].tag = d->tag;
        out[n].desc = d;
        out[n].bits = bits & ~NP_LEFT;
        n++;
    }
    return n;
}

int np_current(const np_event *ev) { return ev->desc->kind && ev->desc->tag == ev->tag; }

/* ---- Poll and park ------------------------------------------------------------------------ */

/* One wait with the token.  Number of events for the caller, -1: none, but
 * something came (filtered, kick); -2: nothing, time is over or a signal;
 * FAILED - errno: the facility itself failed (closed behind our back). */
enum { NOTHING_FOR_US = -1, OVER = -2, FAILED = -100 };

static int wait_here(struct np_engine *e, np_event *out, int max, int64_t timeout_ns) {
    struct np_os_event events[NP_OS_EVENTS];
    int kicked;
    int got = np_wait(e, &e->by_worker, timeout_ns, events, max, &kicked);
    int n = 0;
    if (got > 0) {
        np_count(&e->by_worker.events, got);
        for (int i = 0; i < got; i++) {
            if (dispatch(e, &events[i], &out[n])) {
                n++;
            }
        }
    }
    np_after_wait(e);
    if (got < 0 && got != -EINTR) {
        return FAILED + got;
    }
    return n > 0 ? n : got > 0 || kicked ? NOTHING_FOR_US : OVER;
}

/* The caller gets n events: what note_look compares with is the last of them.  n. */
static int note_events(struct np_engine *e, const np_event *out, int n) {
    for (int i = n > NP_RECENT ? n - NP_RECENT : 0; i < n; i++) {
        e->recent[e->recent_at++ % NP_RECENT] = out[i].desc;
    }
    return n;
}

static int was_recent(const struct np_engine *e, const np_event *out, int n) {
    for (int i = 0; i < n; i++) {
        for (int k = 0; k < NP_RECENT; k++) {
            if (e->recent[k] == out[i].desc) {
                return 1;
            }
        }
    }
    return 0;
}

/* A turn in which the netpoller has looked for us needs no poll of our own, if there is something to do.  But it doesn't look
 * for what is level-triggered: for that we poll all the same after a while, and leave room for it, since what it makes ready
 * may be more than a turn takes for as long as the load lasts. */
int np_poll(np_engine *e, np_event *out, int max) {
    if (!e || e->dead || !out || max <= 0) {
        return 0;
    }
    count_turn(e);
    if (e->switching) {
        (void)np_offload(e, (np_get(&e->offload) + 1) % 3);
    }
    np_end_batch(e);
    unsigned looks = np_get(&e->looks);
    int looked = looks != e->looks_seen;
    int64_t now = looked ? np_now() : 0;
    int due = looked && now - e->polled >= NP_OWN_LOOK;
    int n = take_ready(e, out, due ? max - (max + 7) / 8 : max);
    e->looks_seen = looks;
    if (n == max || np_offloads(e) || (n > 0 && looked && !due) || !take_token(e)) {
        return note_events(e, out, n);
    }
    if (due) {
        e->polled = now;
    }
    int got = wait_here(e, out + n, max - n, 0);
    release_token(e);
    if (got > 0) {
        n += got;
    } else if (n == 0 && got < FAILED) {
        return got - FAILED;
    }
    return note_events(e, out, n);
}

int np_skip_poll(np_engine *e) {
    if (!e || e->dead || e->mode != NP_AUTO || !(e->trial.on || e->switching)) {
        return 0;
    }
    count_turn(e);
    np_end_batch(e);
    return 1;
}

/* Must not sleep: something came since the last look. */
static int has_news(struct np_engine *e) { return np_get_sc(&e->ready.any) || np_get_sc(&e->wake_pending); }

/* Sleeps in the OS facility, with the token. */
static int park_in_epoll(struct np_engine *e, np_event *out, int max, int64_t deadline_ns) {
    int64_t timeout = -1;
    if (deadline_ns >= 0) {
        timeout = deadline_ns - np_now();
        if (timeout < 0) {
            timeout = 0;
        }
    }
    np_set_sc(&e->wstate, NP_IN_EPOLL);
    int stay = has_news(e) || np_offloads(e);
    int n = wait_here(e, out, max, stay ? 0 : timeout);
    if (n == OVER && stay) {
        n = NOTHING_FOR_US;
    }
    np_set_sc(&e->wstate, NP_PREPARED);
    release_token(e);
    return n;
}

/* Sleeps on the futex, because the netpoller polls. */
static int park_on_futex(struct np_engine *e, int64_t deadline_ns) {
    np_set_sc(&e->wstate, NP_ON_FUTEX);
    int rc = 0;
    if (!has_news(e) && (np_offloads(e) || np_get_sc(&e->token) != NP_FREE)) {
        if (e->spin_ns > 0) {
            int64_t until = np_now() + e->spin_ns;
            if (0 <= deadline_ns && deadline_ns < until) {
                until = deadline_ns;
            }
            while (np_get_sc(&e->wstate) == NP_ON_FUTEX && np_now() < until) {
                np_relax();
            }
        }
        rc = np_futex_wait(&e->wstate, NP_ON_FUTEX, deadline_ns);
    }
    np_set_sc(&e->wstate, NP_PREPARED);
    return rc == 0 ? NOTHING_FOR_US : OVER;
}

/* Looks for news and events for a while, before the worker sleeps: a wake-up costs who makes it an interrupt, and us the way
 * back from an idle CPU.  Events, 0, or FAILED - errno. */
static int look_around(struct np_engine *e, np_event *out, int max, int64_t until) {
    while (!has_news(e)) {
        if (!np_offloads(e) && take_token(e)) {
            int n = wait_here(e, out, max, 0);
            release_token(e);
            if (n > 0 || n < FAILED) {
                return n;
            }
        }
        if (np_now() >= until) {
            return 0;
        }
        np_relax();
    }
    if (np_get_sc(&e->wake_pending)) {
        for (int64_t end = np_now() + NP_GRACE; np_now() < end;) {
            np_relax();
        }
    }
    return 0;
}

/* Until when a wait that begins now looks around: for as long as calls of late have taken, or for a moment if that has found
 * something the last times, and once in a while to find out. */
static int64_t look_until(struct np_engine *e, int64_t now, int64_t deadline_ns) {
    if (e->calls >= NP_CALLS) {
        return 0 <= deadline_ns && deadline_ns < now + NP_SOON ? deadline_ns : now + NP_SOON;
    }
    int timer_first = 0 <= deadline_ns && deadline_ns < now + NP_MOMENT;
    if (e->cpus == 1 || e->spin_ns > 0 || timer_first) {
        return now;
    }
    return e->found > 0 || ++e->unlooked >= NP_UNLOOKED ? now + NP_MOMENT : now;
}

/* Where one in nine or more finds nothing they cost more than they save. */
static void note_look(struct np_engine *e, int found) {
    e->unlooked = 0;
    if (found) {
        e->found += e->found < NP_FOUND;
    } else {
        e->found -= e->found < NP_MISSED ? e->found : NP_MISSED;
    }
}

/* What the netpoller has not sent yet it sends now, though we have the time: the kernel moves a peer that we wake to our CPU,
 * where it stays, while the netpoller's is free.  0: it does not come, or need not. */
static int leave_to_netpoller(struct np_engine *e) {
    if (np_get(&e->offload) != NP_BY_NETPOLLER || !np_get_sc(&e->submitted.any)) {
        return 0;
    }
    int64_t now = np_now();
    uint64_t calls = np_get(&e->by_netpoller.syscalls);
    if (!e->left_since || e->left_at != calls) {
        e->left_since = now;
        e->left_at = calls;
    } else if (now - e->left_since >= NP_LEAVE) {
        e->left_since = 0;
        return 0;
    }
    np_end_nap(e);
    return 1;
}

int np_park(np_engine *e, np_event *out, int max, int64_t deadline_ns) {
    if (!e || e->dead || !out || max <= 0) {
        return 0;
    }
    int n;
    count_turn(e);
    np_end_batch(e);
    int left = leave_to_netpoller(e);
    if (!left) {
        np_send_left(e);
    }
    int64_t from = np_now();
    int64_t look_back = left ? from + NP_LEAVE : e->given ? from + NP_LOOK_BACK : -1;
    if (look_back >= 0 && (deadline_ns < 0 || look_back < deadline_ns)) {
        deadline_ns = look_back;
    }
    int64_t look = look_until(e, from, deadline_ns);
    int waits = 0;
    for (;;) {
        n = take_ready(e, out, max);
        if (n > 0 || np_get_sc(&e->wake_pending)) {
            break;
        }
        waits = 1;
        if (look > from) {
            n = look_around(e, out, max, look);
            note_look(e, n > 0 ? was_recent(e, out, n) : has_news(e));
            if (n != 0) {
                break;
            }
            look = from;
            continue;
        }
        if (!np_offloads(e) && take_token(e)) {
            n = park_in_epoll(e, out, max, deadline_ns);
        } else {
            n = park_on_futex(e, deadline_ns);
        }
        if (n == OVER) {
            n = take_ready(e, out, max); /* it may have come in the same moment */
            break;
        }
        if (n > 0 || n < FAILED) {
            break;
        }
    }
    int64_t now = np_now();
    int called = np_get(&e->wake_pending) != 0;
    if (called) {
        (void)np_swap_sc(&e->wake_pending, 0u); /* the caller looks at its queues before it parks again */
    }
    if (waits) {
        e->calls = called && now - from < NP_SOON && e->cpus > 1 ? e->calls + 1 : 0;
    }
    count_turn(e);
    if (e->mode == NP_AUTO) {
        np_waited(e, from, now);
        if (look_back >= 0 && now >= look_back && !np_get_sc(&e->submitted.any) && np_get_sc(&e->passes) % 2 == 0) {
            e->given = 0; /* what is queued now waits for its socket, which comes as an event */
        }
    }
    unpark(e);
    if (n < FAILED) {
        return n - FAILED;
    }
    return n > 0 ? note_events(e, out, n) : 0;
}
