/* handoff.c: the waits around a change of worker threads; see handoff.h. */
#include "handoff.h"

#include "np_atomic.h"
#include "np_futex.h"

#include <pthread.h>
#include <stdlib.h>

/* Ticks without a new offer after which the watcher sleeps until the next one. */
enum { QUIET_TICKS = 40 };

enum { AWAKE = 0, DOZING = 1, ASLEEP = 2 };

struct np_offers {
    _Atomic uint64_t offer; /* sc: against `asleep` */
    atomic_uint asleep;     /* sc: against `offer` and `quit`; the futex of the watcher */
    atomic_uint urgent;     /* the offer that stands is to be reported at once */
    atomic_uint quit;
    pthread_mutex_t role; /* whoever holds it is the watcher */
    int64_t tick_ns;
};

struct np_seat {
    atomic_uint called; /* 1: np_seat_call came and nobody has used it up; the futex */
};

np_offers *np_offers_new(int64_t tick_ns, uint64_t last) {
    np_offers *o = calloc(1, sizeof *o);
    if (o) {
        o->tick_ns = tick_ns;
        np_set(&o->offer, last & ~1ull);
        pthread_mutex_init(&o->role, NULL);
    }
    return o;
}

void np_offers_free(np_offers *o) {
    if (o) {
        pthread_mutex_destroy(&o->role);
        free(o);
    }
}

static void wake_watcher(np_offers *o, int urgent) {
    unsigned state = np_get_sc(&o->asleep);
    if ((state == ASLEEP || (state == DOZING && urgent)) && np_cas_sc(&o->asleep, state, AWAKE)) {
        np_futex_wake(&o->asleep);
    }
}

uint64_t np_offer(np_offers *o, int urgent) {
    uint64_t number = (np_get(&o->offer) | 1) + 2;
    np_set(&o->urgent, (unsigned)urgent);
    np_set_sc(&o->offer, number);
    wake_watcher(o, urgent);
    return number;
}

void np_retract(np_offers *o) { np_set_sc(&o->offer, np_get(&o->offer) & ~1ull); }

void np_offers_quit(np_offers *o) {
    np_set_sc(&o->quit, 1u);
    wake_watcher(o, 1);
}

uint64_t np_offers_watch(np_offers *o) {
    uint64_t last = 0, now = 0;
    int quiet = 0;
    pthread_mutex_lock(&o->role);
    for (;;) {
        if (np_get_sc(&o->quit)) {
            now = 0;
            break;
        }
        now = np_get_sc(&o->offer);
        if ((now & 1) && (now == last || np_get(&o->urgent))) {
            break;
        }
        quiet = now == last ? quiet + 1 : 0;
        last = now;
        /* Published, then looked again, then slept: np_offer stores, then looks. */
        unsigned state = quiet < QUIET_TICKS ? DOZING : ASLEEP;
        np_set_sc(&o->asleep, state);
        if (np_get_sc(&o->offer) == last && !np_get_sc(&o->quit)) {
            (void)np_futex_wait(&o->asleep, state, state == DOZING ? np_now() + o->tick_ns : -1);
        }
        np_set_sc(&o->asleep, AWAKE);
        if (state == ASLEEP) {
            quiet = 0;
        }
    }
    pthread_mutex_unlock(&o->role);
    return now;
}

np_seat *np_seat_new(void) { return calloc(1, sizeof(np_seat)); }

void np_seat_free(np_seat *s) { free(s); }

int np_seat_wait(np_seat *s, int64_t deadline_ns) {
    for (;;) {
        if (np_swap_sc(&s->called, 0u)) {
            return 0;
        }
        int rc = np_futex_wait(&s->called, 0u, deadline_ns);
        if (rc < 0) {
            return np_swap_sc(&s->called, 0u) ? 0 : rc;
        }
    }
}

void np_seat_call(np_seat *s) {
    np_set_sc(&s->called, 1u);
    np_futex_wake(&s->called);
}
