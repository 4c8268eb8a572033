/* trial.c: which way to send serves the most, by trying.
 *
 * What the wake-up of a peer costs, how fast Python is, and which threads share
 * a CPU differ from machine to machine by more than a constant can allow for.
 * So while the worker is saturated, another way than the usual one is tried now
 * and then: in spans of some windows, the usual and the other by turns.  Each
 * span of the other is compared with the two around it, by the time for each
 * message, and, with less weight, by the CPU that both threads spend on it.
 * What that gains is summed up until it is clear.  A way that wins is the usual
 * one from then on, until the work changes (adapt.c).  The others are tried
 * again after a pause that doubles while nothing changes.
 */
#include "netpoll_internal.h"

static int64_t cpu_now(struct np_engine *e, long *thread) {
    long netpoller = np_get(&e->netpoller_id);
    *thread = np_os_thread();
    return np_os_cpu(*thread) + (netpoller ? np_os_cpu(netpoller) : 0);
}

static void begin_span(struct np_engine *e, np_sender by) {
    (void)np_offload(e, by);
    e->trial.by = by;
    e->trial.from = 0; /* its first window still has what was written before, and isn't measured */
    e->trial.held_from = 0;
}

static void measure_from(struct np_engine *e, int64_t now) {
    e->trial.from = now;
    e->trial.cpu = cpu_now(e, &e->trial.thread);
    e->trial.writes = 0;
    e->trial.messages = 0;
}

static int64_t percent_less(int64_t than, int64_t it) {
    int64_t percent = than > 0 ? (than - it) * 100 / than : 0;
    return percent > NP_TRIAL_MOST ? NP_TRIAL_MOST : percent < -NP_TRIAL_MOST ? -NP_TRIAL_MOST : percent;
}

static void add_gain(struct np_engine *e, struct np_cost now) {
    struct np_cost before = e->trial.before, tried = e->trial.tried;
    e->trial.gain += percent_less((before.wall + now.wall) / 2, tried.wall) +
                     percent_less((before.cpu + now.cpu) / 2, tried.cpu) / NP_TRIAL_CPU - NP_TRIAL_LEAST;
    e->trial.pairs++;
}

/* Bits, by np_sender: the others that may be tried, and have not lost since the last pause. */
static unsigned untried(struct np_engine *e) {
    unsigned all = 1u << NP_AT_ONCE | 1u << NP_BY_NETPOLLER | 1u << NP_BY_WORKER, netpoller = 1u << NP_BY_NETPOLLER;
    return all & ~(1u << e->trial.usual) & ~e->trial.lost & ~(e->trial.netpoller_may ? 0 : netpoller);
}

/* One of them, or of all others if none is left. */
static np_sender next_other(struct np_engine *e) {
    if (!untried(e)) {
        e->trial.lost = 0;
    }
    unsigned first = (e->trial.usual + 1u + ++e->trial.count % 2) % 3;
    unsigned second = 3u - e->trial.usual - first;
    return (np_sender)(untried(e) & 1u << first ? first : second);
}

/* The one whose trial the end of saturation has broken off, with what was found so far: near the limit that comes every few
 * ms.  Else the next. */
static void choose_other(struct np_engine *e) {
    int goes_on = e->trial.unfinished != e->trial.usual && (untried(e) & 1u << e->trial.unfinished);
    if (goes_on) {
        e->trial.other = e->trial.unfinished;
    } else {
        e->trial.other = next_other(e);
        e->trial.gain = e->trial.pairs = 0;
    }
    e->trial.unfinished = e->trial.usual;
    e->trial.before.wall = 0;
}

/* What the better one of those that aren't the usual way took, the last time. */
static void note_rival(struct np_engine *e, np_sender by, int64_t wall, int anew) {
    if (anew || !e->trial.rival_wall || wall < e->trial.rival_wall) {
        e->trial.rival = by;
        e->trial.rival_wall = wall;
    }
}

/* Between trials: whether the netpoller still serves more than its rival did.  Where it has to share the worker's CPU with
 * the peers, that shows only in the long run. */
static int is_worse_than_found(struct np_engine *e, int64_t now) {
    if (e->trial.usual != NP_BY_NETPOLLER || !e->trial.rival_wall) {
        return 0;
    }
    if (e->trial.held_from) {
        e->trial.held += e->window.messages;
        if (now - e->trial.held_from < NP_TRIAL_HOLDS) {
            return 0;
        }
        if ((now - e->trial.held_from) / e->trial.held > e->trial.rival_wall) {
            return 1;
        }
    }
    e->trial.held_from = now;
    e->trial.held = 0;
    return 0;
}

static void make_usual(struct np_engine *e, np_sender by) {
    e->trial.usual = e->trial.other = e->trial.unfinished = by;
    e->trial.lost = 0;
    e->trial.work = 0;
}

static void give_up(struct np_engine *e, int64_t now) {
    make_usual(e, e->trial.rival);
    e->trial.rival_wall = 0;
    e->trial.at = now + NP_TRIAL_PAUSE;
    begin_span(e, e->trial.usual);
}

static void conclude(struct np_engine *e, int64_t now, int wins) {
    e->trial.at = now;
    e->trial.known = 1;
    e->trial.wall = wins ? e->trial.tried.wall : e->trial.before.wall;
    if (wins) {
        note_rival(e, e->trial.usual, e->trial.before.wall, 1);
        make_usual(e, e->trial.other);
        e->trial.pause = NP_TRIAL_PAUSE;
    } else {
        note_rival(e, e->trial.other, e->trial.tried.wall, !e->trial.lost);
        e->trial.lost |= 1u << e->trial.other;
        e->trial.other = e->trial.usual;
        if (!untried(e)) {
            e->trial.lost = 0;
            e->trial.at = now + e->trial.pause;
            e->trial.pause *= e->trial.pause < NP_TRIAL_RARE ? 2 : 1;
        }
    }
    begin_span(e, e->trial.usual);
}

/* 1: the trial is over. */
static int judge(struct np_engine *e, int64_t now) {
    int wins = e->trial.gain >= NP_TRIAL_CLEAR;
    if (!wins && e->trial.gain > -NP_TRIAL_CLEAR && e->trial.pairs < NP_TRIAL_PAIRS) {
        return 0;
    }
    conclude(e, now, wins);
    return 1;
}

static void end_span(struct np_engine *e, int64_t now) {
    long thread;
    int64_t cpu = cpu_now(e, &thread) - e->trial.cpu;
    struct np_cost cost = {(now - e->trial.from) / e->trial.messages, cpu / e->trial.messages};
    if (thread != e->trial.thread) {
        np_trial_stop(e);
    } else if (e->trial.by != e->trial.usual) {
        e->trial.tried = cost;
        begin_span(e, e->trial.usual);
    } else {
        if (e->trial.before.wall) {
            add_gain(e, cost);
        }
        e->trial.before = cost;
        if (!judge(e, now)) {
            begin_span(e, e->trial.other);
        }
    }
}

void np_trial_begin(struct np_engine *e, int64_t now, np_sender usual, int netpoller_may) {
    make_usual(e, usual);
    e->trial.on = 1;
    e->trial.known = 0;
    e->trial.wall = e->trial.rival_wall = 0;
    e->trial.pause = NP_TRIAL_PAUSE;
    e->trial.netpoller_may = netpoller_may;
    if (e->trial.at != INT64_MAX) {
        e->trial.at = now + (now - e->trial.ended >= NP_TRIAL_SAME ? NP_TRIAL_LATER : 0);
    }
    begin_span(e, usual);
}

void np_trial_resume(struct np_engine *e) {
    e->trial.on = 1;
    begin_span(e, e->trial.usual);
}

void np_trial_stop(struct np_engine *e) {
    if (e->trial.other != e->trial.usual) {
        e->trial.other = e->trial.usual;
        begin_span(e, e->trial.usual);
    }
}

void np_trial_end(struct np_engine *e, int64_t now) {
    e->trial.on = 0;
    if (e->trial.other != e->trial.usual) {
        if (e->trial.by == e->trial.usual && e->trial.before.wall) { /* its span is over, the one after it isn't */
            add_gain(e, e->trial.before);
        }
        if (!judge(e, now)) {
            e->trial.unfinished = e->trial.other;
        }
    }
    e->trial.other = e->trial.usual;
    (void)np_offload(e, NP_AT_ONCE);
}

int np_trial_window(struct np_engine *e, int64_t now, np_sender guessed, int netpoller_may) {
    int tries = e->trial.other != e->trial.usual;
    if (netpoller_may && !e->trial.netpoller_may && e->trial.at > now && e->trial.at != INT64_MAX) {
        e->trial.at = now;
    }
    e->trial.netpoller_may = netpoller_may;
    if (!netpoller_may && (e->trial.usual == NP_BY_NETPOLLER || e->trial.other == NP_BY_NETPOLLER)) {
        e->trial.other = e->trial.usual;
        if (e->trial.by == NP_BY_NETPOLLER) {
            begin_span(e, guessed);
        }
        return 0;
    }
    if (!tries && e->trial.by != e->trial.usual) { /* the netpoller may again */
        begin_span(e, e->trial.usual);
    } else if (!tries && is_worse_than_found(e, now)) {
        give_up(e, now);
    } else if (!tries) {
        if (now < e->trial.at || !np_get_sc(&e->thread_on)) {
            return 1;
        }
        choose_other(e);
        measure_from(e, now); /* the usual way goes on */
    } else if (!e->trial.from) {
        measure_from(e, now);
    } else {
        e->trial.writes += (unsigned)e->window.writes;
        e->trial.messages += e->window.messages;
        if (now - e->trial.from >= NP_TRIAL_SPAN && e->trial.writes >= NP_TRIAL_TURNS * np_get(&e->usual_turn)) {
            end_span(e, now);
        }
    }
    return 0;
}
