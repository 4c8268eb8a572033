/* handoff.h: when P may change its worker thread.
 *
 * P, the right to run a loop's callbacks, is given away lazily, as by Go's
 * entersyscall: a worker that is about to block only offers it, and takes it
 * back when it has not blocked for long.  Spare threads watch the offers,
 * without the GIL: one that has stood for a whole tick is reported to whoever
 * watches, who then takes P.  Who holds P is decided above, under the GIL;
 * what stands here are the two waits.
 *
 *   np_offers   the offers of one loop, and the spares that watch them
 *   np_seat     where one thread waits until P is given to it
 *
 * The word `offer` of np_offers: the number of the offer, times two, plus one
 * while it stands.
 *   worker    np_offer: odd; np_retract, or P was taken: even
 *   watcher   only reads it
 * `asleep`, of the watcher:
 *   AWAKE     looks                            watcher: to DOZING; to ASLEEP after a pause without offers
 *   DOZING    in futex, for a tick             an urgent np_offer, np_offers_quit: to AWAKE, and wake
 *   ASLEEP    in futex                         np_offer, np_offers_quit: to AWAKE, and wake
 */
#ifndef NP_HANDOFF_H
#define NP_HANDOFF_H

#include <stdint.h>

typedef struct np_offers np_offers;
typedef struct np_seat np_seat;

/* last: the number after which its offers are counted.  NULL: out of memory. */
np_offers *np_offers_new(int64_t tick_ns, uint64_t last);
/* After np_offers_quit, when no thread is in np_offers_watch any more. */
void np_offers_free(np_offers *o);

/* The worker that holds P. The number of the offer; urgent: it is reported at once. */
uint64_t np_offer(np_offers *o, int urgent);
/* Whoever has P now: no offer stands any more. */
void np_retract(np_offers *o);
/* A spare, without the GIL: blocks until an offer has stood for a tick; its
 * number, 0 when told to quit. Spares beyond the first one wait their turn. */
uint64_t np_offers_watch(np_offers *o);
/* Any thread: np_offers_watch returns 0 from now on. */
void np_offers_quit(np_offers *o);

/* NULL: out of memory. */
np_seat *np_seat_new(void);
void np_seat_free(np_seat *s);
/* Without the GIL: blocks until np_seat_call, which it uses up (0), a signal
 * (-EINTR), or the absolute time deadline_ns (-ETIMEDOUT; -1: none). */
int np_seat_wait(np_seat *s, int64_t deadline_ns);
/* Any thread. */
void np_seat_call(np_seat *s);

#endif
