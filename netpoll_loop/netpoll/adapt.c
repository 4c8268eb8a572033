/* adapt.c: when NP_AUTO hands its writes to the netpoller.
 *
 * A handoff costs both threads something, so it only pays when Python is the
 * bottleneck: when the worker hardly ever waits, and does enough between two
 * writes.  Both are looked at in windows of NP_WINDOW writes, one clock call
 * each; two windows must agree to begin, one that disagrees ends it, and so
 * does a single wait of NP_QUIET.  The constants are in netpoll_internal.h.
 */
#include "netpoll_internal.h"

static void new_window(struct np_engine *e, int64_t now) {
    e->window.since = now;
    e->window.waited = 0;
    e->window.writes = 0;
}

static void end(struct np_engine *e, int64_t now) {
    if (e->window.begun) {
        e->window.begun = np_offload(e, 0);
    }
    e->window.agreed = 0;
    new_window(e, now);
}

static void decide(struct np_engine *e) {
    int64_t now = np_now(), elapsed = now - e->window.since, busy = elapsed - e->window.waited;
    int64_t each = busy / e->window.writes;
    if (e->window.contended) {
        end(e, now);
    } else if (e->window.begun) {
        if (busy * 100 < elapsed * NP_BUSY_ENOUGH || each < NP_WORK_ENOUGH) {
            end(e, now);
        }
    } else if (e->cpus > 1 && busy * 100 >= elapsed * NP_BUSY && each >= NP_WORK) {
        if (++e->window.agreed >= NP_AGREE) {
            e->window.begun = np_offload(e, 1);
        }
    } else {
        e->window.agreed = 0;
    }
    new_window(e, now);
}

int np_hand_over(np_engine *e, np_desc *d) {
    if (!e || !d || e->mode != NP_AUTO || e->dead) {
        return 0;
    }
    if (!e->switching && ++e->window.writes >= NP_WINDOW) {
        decide(e);
    }
    return np_get(&e->offload) && (np_get(&d->writable) || np_get(&d->pending));
}

void np_waited(struct np_engine *e, int64_t from, int64_t to) {
    e->window.waited += to - from;
    if (e->window.begun && to - from >= NP_QUIET) {
        end(e, to);
    }
}

void np_contended(np_engine *e, int contended) {
    if (e && e->mode == NP_AUTO && e->window.contended != contended) {
        e->window.contended = contended;
        if (e->window.begun || !contended) {
            end(e, np_now());
        }
    }
}

void np_switch_always(np_engine *e) {
    if (e) {
        e->switching = 1;
    }
}
