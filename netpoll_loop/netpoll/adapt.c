/* adapt.c: what NP_AUTO does with its writes.
 *
 * While the worker has time, each is sent at once.  When Python is the
 * bottleneck, when the worker hardly ever waits, several are sent in a batch:
 * the peers are woken once for many of them, and what was written to one
 * descriptor in pieces leaves in one.  Who sends it is guessed here, until
 * trial.c has found out.  The guess depends on how much the
 * worker does for each message, which is what it writes to one descriptor before
 * it writes to another.  With enough for each, and turns that last and have more
 * than one write, it is the netpoller, which naps and looks, beside Python.  With little the worker sends by
 * itself, at the end of its turn, or of NP_BATCH writes; and at once in small
 * turns, so that the peers have something to do meanwhile.  Busyness and work are
 * looked at in windows of NP_WINDOW writes, one clock call each; NP_AGREE windows
 * must agree to change the guess, or one to begin, where the worker had no rest
 * for a while.  That the worker is no longer busy ends all of it at once, unless
 * that is the netpoller's doing; so does a single wait of NP_QUIET.
 *
 * Where others want the CPUs, too, what the netpoller runs for is taken from
 * them, from the peers, or from the worker itself.  The kernel knows whether
 * the worker waits for a CPU (schedstat): if it does, it sends by itself, for as
 * long as that lasts.  But it may be the netpoller's doing: where it wakes a peer
 * again and again, the kernel likes to move that to the worker's CPU, and never
 * takes it back, for the netpoller's own naps are too short to count as idle.  So
 * worker and netpoller change places first, and if that doesn't help, a look
 * without the netpoller decides.
 *
 * Beside a thread that computes the worker has the GIL for part of the time,
 * and what it does with it is all that counts.  Where it sends by itself, and
 * there is work between the writes, that is at the end of a turn of any size, so
 * that its peers cost it one wake-up; with little work at once.
 *
 * The constants are in netpoll_internal.h.
 */
#include "netpoll_internal.h"

static void new_window(struct np_engine *e, int64_t now) {
    e->window.since = now;
    e->window.waited = 0;
    e->window.writes = 0;
    e->window.messages = 0;
    e->window.bytes = 0;
    e->last_written = NULL; /* so that the next write is a message: each window has one */
}

static void end(struct np_engine *e, int64_t now) {
    if (e->trial.on) {
        np_trial_end(e, now);
        e->trial.ended = now;
    }
    e->window.agreed = 0;
    new_window(e, now);
}

/* The worker waits for a peer that the kernel has put on its CPU, while the netpoller's is half idle: its naps are too short
 * for the kernel to take that for idle.  1: the two have changed places, so that the peer is beside the netpoller. */
static int change_places(struct np_engine *e, int64_t now) {
    if (now - e->crowd.moved >= NP_CROWD_FOR) {
        e->crowd.moves = 0;
    }
    if (np_get(&e->offload) != NP_BY_NETPOLLER || e->crowd.moves >= NP_CROWD_MOVES) {
        return 0;
    }
    e->crowd.moves++;
    e->crowd.moved = now;
    return np_os_change_places(np_get(&e->netpoller_id), np_get(&e->netpoller_cpu)) == 0;
}

static void look_for_crowd(struct np_engine *e, int64_t now) {
    long thread = np_os_thread();
    int64_t ran = 0, waited = 0;
    int known = np_os_run_delay(&ran, &waited) == 0;
    if (known && thread == e->crowd.thread) {
        int64_t has_waited = waited - e->crowd.waited, wanted = ran - e->crowd.ran + has_waited;
        int crowded = has_waited * 100 > wanted * NP_CROWD_WAITED;
        if (!crowded) {
            e->crowd.trusted = e->crowd.agreed && !e->crowd.with_netpoller ? now + NP_CROWD_TRUST : e->crowd.trusted;
            e->crowd.agreed = e->crowd.moves = 0;
        } else if (change_places(e, now)) {
            known = np_os_run_delay(&ran, &waited) == 0; /* it has waited for that */
        } else if (!e->crowd.with_netpoller || now >= e->crowd.trusted) { /* else it is what the netpoller takes */
            e->crowd.agreed++;
            e->crowd.until = now + (e->crowd.agreed >= NP_CROWD_AGREE ? NP_CROWD_FOR : NP_CROWD_LOOK);
        }
    }
    e->crowd.with_netpoller = 0;
    e->crowd.at = now;
    e->crowd.thread = known ? thread : 0;
    e->crowd.ran = ran;
    e->crowd.waited = waited;
}

int np_crowded(struct np_engine *e, int64_t now) {
    int sends = np_get(&e->offload) == NP_BY_NETPOLLER;
    e->crowd.with_netpoller |= sends;
    if (now - e->crowd.at >= (sends ? NP_CROWD_SOON : NP_CROWD_LOOK)) {
        look_for_crowd(e, now);
    }
    return now < e->crowd.until;
}

/* Which way is the best, by what the worker does. */
static np_sender guess(struct np_engine *e, int64_t each, int64_t turn, int netpoller_may) {
    int goes_on = e->trial.on && e->trial.usual == NP_BY_NETPOLLER, contended = np_get(&e->contended);
    unsigned writes = np_get(&e->usual_turn);
    if (each >= (goes_on ? NP_WORK_ENOUGH : NP_WORK)) {
        if (netpoller_may && (goes_on || (turn >= NP_LONG_TURN && writes > 1))) {
            return NP_BY_NETPOLLER;
        }
        if (contended) {
            return NP_BY_WORKER;
        }
    }
    return contended || writes <= NP_SMALL_TURN ? NP_AT_ONCE : NP_BY_WORKER;
}

static int64_t at_least(int64_t work) { return work > NP_WORK_LEAST ? work : NP_WORK_LEAST; }

static int differs(int64_t work, int64_t before) {
    int64_t a = at_least(work), b = at_least(before);
    return a > 2 * b || b > 2 * a;
}

/* Saturated, or the work has changed: with what was found for such work, or by a guess. */
static void begin(struct np_engine *e, int64_t now, int64_t each, np_sender guessed, int netpoller_may) {
    int contended = np_get(&e->contended), first = !e->trial.on;
    e->window.agreed = 0;
    int soon = now - e->trial.ended < NP_TRIAL_SAME;
    int known = e->trial.known ? soon || !differs(each, e->trial.began_with) : soon && guessed == e->trial.usual;
    if (first && known && e->trial.contended == contended && (netpoller_may || e->trial.usual != NP_BY_NETPOLLER)) {
        np_trial_resume(e);
        return;
    }
    if (first) {
        e->trial.began_with = each;
    }
    e->trial.contended = contended;
    np_trial_begin(e, now, guessed, netpoller_may);
}

/* Whether the way to send is to be chosen anew. */
static int is_outdated(struct np_engine *e, int64_t now, int64_t each, np_sender guessed, int netpoller_may) {
    int contended = np_get(&e->contended);
    if (!e->trial.on) {
        return 1;
    }
    int crowded = e->crowd.agreed >= NP_CROWD_AGREE;
    if (contended || e->trial.contended || crowded) { /* the clock tells nothing there: by the guess */
        np_trial_stop(e);
        return guessed != e->trial.usual || contended != e->trial.contended;
    }
    if (!np_trial_window(e, now, guessed, netpoller_may)) {
        return 0;
    }
    if (!e->trial.work) {
        e->trial.work = at_least(each);
    }
    return differs(each, e->trial.work);
}

/* The worker isn't busy.  Is that only because the netpoller sends for it, and the load as it was? */
static int spares_time(struct np_engine *e, int64_t elapsed) {
    if (!e->trial.on || e->trial.by != NP_BY_NETPOLLER || np_get(&e->contended)) {
        return 0;
    }
    if (e->trial.other != e->trial.usual) {
        return 1; /* which is being found out */
    }
    int slow = !e->trial.wall || elapsed * 100 > e->trial.wall * NP_SLOW * e->window.messages;
    e->window.slow = slow ? e->window.slow + 1 : 0;
    return e->window.slow < NP_SLOW_AGREE;
}

/* A burst, such as what has come in a stall: it could be over before NP_AGREE windows are.  A window that was open during the
 * stall itself tells nothing. */
static int is_restless(const struct np_engine *e, int64_t now, int64_t elapsed) {
    return !e->trial.on && now - e->window.rested >= NP_RESTLESS && elapsed < NP_RESTLESS;
}

static void decide(struct np_engine *e) {
    int64_t now = np_now(), elapsed = now - e->window.since, busy = elapsed - e->window.waited;
    int64_t each = (busy - (int64_t)e->window.bytes / NP_COPIES) / e->window.messages; /* apart from the sending */
    int64_t turn = busy / e->window.writes * np_get(&e->usual_turn);
    int netpoller_may = e->cpus > 1 && !np_crowded(e, now);
    np_sender guessed = guess(e, each, turn, netpoller_may);
    np_set(&e->work, each);
    if (busy * 100 < elapsed * (e->trial.on ? NP_BUSY_ENOUGH : NP_BUSY)) {
        if (!spares_time(e, elapsed)) {
            end(e, now);
            return;
        }
    } else {
        e->window.slow = 0;
    }
    if (!is_outdated(e, now, each, guessed, netpoller_may)) {
        e->window.agreed = 0;
    } else if (++e->window.agreed >= NP_AGREE || is_restless(e, now, elapsed)) {
        begin(e, now, each, guessed, netpoller_may);
    }
    new_window(e, now);
}

np_sender np_hand_over(np_engine *e, np_desc *d, size_t size) {
    if (!e || !d || e->mode != NP_AUTO || e->dead) {
        return NP_AT_ONCE;
    }
    e->turn_writes++;
    e->window.bytes += size;
    e->window.messages += d != e->last_written;
    e->last_written = d;
    if (!e->switching && ++e->window.writes >= NP_WINDOW) {
        decide(e);
    }
    np_sender by = (np_sender)np_get(&e->offload);
    if (by == NP_AT_ONCE) {
        return NP_AT_ONCE;
    }
    if (by == NP_BY_WORKER && e->turn_writes % NP_BATCH == 0) {
        np_send_batch(e);
    }
    /* In this order: the netpoller, when all is sent, makes it writable again, then clears pending. */
    return np_get_acq(&d->pending) || np_get(&d->writable) ? by : NP_AT_ONCE;
}

void np_waited(struct np_engine *e, int64_t from, int64_t to) {
    e->window.waited += to - from;
    if (to - from >= NP_REST) {
        e->window.rested = to;
    }
    if (e->trial.on && to - from >= NP_QUIET) {
        end(e, to);
    }
}

void np_contended(np_engine *e, int contended) {
    if (e) {
        np_set(&e->contended, contended);
    }
}

void np_send_one_by_one(np_engine *e) {
    if (e) {
        e->one_by_one = 1;
    }
}

void np_switch_always(np_engine *e) {
    if (e) {
        e->switching = 1;
    }
}
