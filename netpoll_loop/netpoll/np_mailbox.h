/* np_mailbox.h: descriptors with bits, from one thread to another.
 *
 * A FIFO linked through the descriptors themselves, so that posting never
 * allocates; a descriptor is in it at most once, later bits are OR-ed to it.
 */
#ifndef NP_MAILBOX_H
#define NP_MAILBOX_H

#include <stdatomic.h>

#include "np_atomic.h"

struct np_desc;

/* Which mailbox a descriptor's place is for. */
enum { NP_PLACE_READY, NP_PLACE_SUBMITTED, NP_PLACES };

/* Under the mailbox's lock. */
struct np_place {
    struct np_desc *next;
    unsigned bits; /* 0 in a listed place: the descriptor was closed meanwhile */
    unsigned listed;
};

struct np_mailbox {
    np_spin lock;
    /* Something is in it.  Written under the lock, read without it by the
     * reader before it sleeps (seq_cst, see np_engine.wstate and asleep). */
    atomic_uint any;
    struct np_desc *head, *tail;
    int which; /* constant */
};

/* 1 if it was empty: the reader may have to be woken.  (Who found it non-empty
 * need not care: whoever filled it does, or the reader has not slept since.) */
int np_mailbox_post(struct np_mailbox *m, struct np_desc *d, unsigned bits);

/* Forgets what was posted for d. */
void np_mailbox_clear(struct np_mailbox *m, struct np_desc *d);

/* The next descriptor, NULL if there is none. */
struct np_desc *np_mailbox_take(struct np_mailbox *m, unsigned *bits);

#endif
