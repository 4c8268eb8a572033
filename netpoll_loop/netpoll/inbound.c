/* inbound.c: the read side of a stream.
 *
 * While the worker polls, np_recv is recv(2).  In NP_DEDICATED, and while the
 * worker of NP_AUTO is stalled, the netpoller receives ahead, into exact-size
 * chunks, bounded for each descriptor and for the engine; at a bound it stops
 * and leaves the rest to the kernel's buffer, so that the peer is slowed down.
 * The engine's bound never stops a descriptor of which nothing was received, so
 * that each that is stopped goes on when its own bytes are delivered.
 * In NP_DEDICATED it goes on when there is room; what a stall has left is the
 * worker's.  The end (end of file, or the error) stands behind the last byte.
 *
 * In NP_AUTO it also looks for a busy worker (NP_LOOKING), for small pieces of TCP
 * and of Unix streams only: whatever needs a second receive to be sure, is large,
 * or was reported with a hang-up or an error, it leaves to the worker.
 *
 * Order of bytes: whoever receives holds `reading`, and the worker receives by
 * itself only when nothing that the netpoller received is left.
 */
#include <poll.h>
#include <stdlib.h>
#include <string.h>

#include "netpoll_internal.h"
#include "np_call.h"

static ssize_t receive(const struct np_desc *d, void *buf, size_t size, uint8_t *unsure) {
    ssize_t n;
    int cut = 0;
    do {
        n = d->cuts ? np_call_recvmsg(d->fd, buf, size, &cut) : np_call_recv(d->fd, buf, size);
    } while (n < 0 && errno == EINTR);
    if (cut) {
        *unsure = 1;
    }
    return n;
}

/* ---- Worker ---------------------------------------------------------------------- */

/* Asked now, not by a receive in the next turn: that would also find what a
 * callback of this turn has written to the peer, a turn too early.  And not by a
 * receive that only peeks: it would take the pending error (a reset) away, and the
 * next one would find a clean end. */
static int has_more(struct np_engine *e, const struct np_desc *d) {
    struct pollfd p = {.fd = d->fd, .events = POLLIN};
    np_count(&e->by_worker.syscalls, 1);
    return poll(&p, 1, 0) != 0;
}

static ssize_t receive_here(struct np_engine *e, struct np_desc *d, void *buf, size_t size) {
    ssize_t n = receive(d, buf, size, &d->unsure);
    int err = errno;
    np_count(&e->by_worker.syscalls, 1);
    if (n > 0) {
        np_count(&e->by_worker.received, n);
        d->more = (size_t)n == size || (d->unsure && has_more(e, d));
        return n;
    }
    d->more = 0;
    if (n == 0) {
        return 0;
    }
    return err == EWOULDBLOCK ? -EAGAIN : -err;
}

/* The engine's bound had stopped some descriptors, and there is room again. */
static int has_room_again(struct np_engine *e) {
    return np_get_sc(&e->starved) && np_get_sc(&e->in_total) < NP_INBOUND_ALL / 2;
}

/* Gives back n bytes of the bounds; lets the netpoller go on if it waits for that. */
static void consumed(struct np_engine *e, struct np_desc *d, size_t n) {
    int resume = 0;
    np_lock(e, d);
    size_t left = np_get(&d->in_bytes) - n;
    np_set(&d->in_bytes, left);
    atomic_fetch_sub(&e->in_total, n);
    if (d->in_stopped && left < NP_INBOUND / 2) { /* if the engine is full, the netpoller notes it as starved */
        d->in_stopped = 0;
        resume = 1;
    }
    np_unlock(e, d);
    if (resume && !np_submit(e, d, NP_R)) {
        d->more = 1; /* no thread: np_recv itself goes on */
    }
    if (has_room_again(e)) {
        np_kick_netpoller(e);
    }
}

/* What the netpoller has received: copies as much of it as fits. */
static size_t take(struct np_engine *e, struct np_desc *d, char *buf, size_t size) {
    size_t total = 0;
    while (total < size) {
        struct np_read *r = d->mine;
        if (!r) {
            np_lock(e, d);
            d->mine = r = d->in_head;
            d->in_head = d->in_tail = NULL;
            d->in_chunks = 0;
            np_unlock(e, d);
            d->mine_at = 0;
            if (!r) {
                break;
            }
        }
        size_t n = r->size - d->mine_at;
        if (n > size - total) {
            n = size - total;
        }
        memcpy(buf + total, r->bytes + d->mine_at, n);
        total += n;
        d->mine_at += n;
        if (d->mine_at == r->size) {
            d->mine = r->next;
            d->mine_at = 0;
            free(r);
        }
    }
    return total;
}

/* NP_DEDICATED, NP_AUTO. */
static ssize_t receive_ahead(struct np_engine *e, struct np_desc *d, void *buf, size_t size) {
    size_t n = np_get(&d->in_bytes) ? take(e, d, buf, size) : 0;
    if (n > 0) {
        if (e->mode == NP_DEDICATED) {
            d->more = 0;
        }
        consumed(e, d, n);
        return (ssize_t)n;
    }
    np_lock(e, d);
    int end = np_get(&d->in_end);
    int mine = 0;
    if (d->in_head) {
        np_unlock(e, d); /* came in this moment */
        return receive_ahead(e, d, buf, size);
    }
    if (!end && !np_offloads(e) && !d->reading) {
        d->reading = mine = 1;
    }
    np_unlock(e, d);
    if (end) {
        d->end_seen = 1;
        d->more = 0;
        return end == NP_END_OF_FILE ? 0 : end;
    }
    if (!mine) {
        d->more = 0;
        return -EAGAIN;
    }
    ssize_t got = receive_here(e, d, buf, size);
    np_lock(e, d);
    d->reading = 0;
    if (got < (ssize_t)NP_LOOK && got != (ssize_t)size) {
        d->in_large = 0;
    }
    np_unlock(e, d);
    if (np_offloads(e)) { /* started meanwhile, and may have found us reading */
        (void)np_submit(e, d, NP_R);
    }
    return got;
}

ssize_t np_recv(np_engine *e, np_desc *d, void *buf, size_t size) {
    int rc = np_check(e, d, NP_STREAM);
    if (rc < 0) {
        return rc;
    }
    if (size == 0) {
        return -EINVAL; /* its 0 could not be told from end of file */
    }
    return e->shared ? receive_ahead(e, d, buf, size) : receive_here(e, d, buf, size);
}

void np_read_ahead(np_engine *e, np_desc *d, int may) {
    if (np_check(e, d, NP_STREAM) < 0) {
        return;
    }
    np_lock(e, d);
    d->ahead = (uint8_t)may;
    for (unsigned round = 0; !may && e->mode == NP_AUTO && d->reading;) {
        np_unlock(e, d);
        np_backoff(&round);
        np_lock(e, d);
    }
    np_unlock(e, d);
}

int np_more(np_desc *d) {
    return d && d->kind == NP_STREAM && (d->more || np_get(&d->in_bytes) || (np_get(&d->in_end) && !d->end_seen));
}

static void free_reads(struct np_read *r) {
    while (r) {
        struct np_read *next = r->next;
        free(r);
        r = next;
    }
}

void np_drop_inbound(struct np_engine *e, struct np_desc *d) {
    np_lock(e, d);
    struct np_read *list = d->in_head;
    d->in_head = d->in_tail = NULL;
    d->in_chunks = 0;
    size_t n = np_get(&d->in_bytes);
    np_set(&d->in_bytes, (size_t)0);
    np_set(&d->in_end, 0);
    atomic_fetch_sub(&e->in_total, n);
    np_unlock(e, d);
    free_reads(list);
    free_reads(d->mine);
    d->mine = NULL;
    if (n && has_room_again(e)) {
        np_kick_netpoller(e);
    }
}

/* ---- Netpoller ------------------------------------------------------------------- */

/* How much it may receive now; 0: stop.  Under lock. */
static size_t room(struct np_engine *e, struct np_desc *d, int looking) {
    size_t have = np_get(&d->in_bytes);
    if (e->mode == NP_AUTO) { /* the worker is told, and goes on by itself */
        int full = have >= NP_INBOUND || d->in_chunks >= NP_INBOUND_CHUNKS || np_get_sc(&e->in_total) >= NP_INBOUND_ALL;
        if (full || !d->ahead || !e->scratch || (looking && (d->in_unsure || d->in_large))) {
            return 0;
        }
        return looking && NP_LOOK < NP_INBOUND - have ? NP_LOOK : NP_INBOUND - have;
    }
    if (have >= NP_INBOUND || d->in_chunks >= NP_INBOUND_CHUNKS) {
        d->in_stopped = 1;
        return 0;
    }
    if (np_get_sc(&e->in_total) >= NP_INBOUND_ALL) {
        if (have == 0) { /* who holds what fills the engine may be waiting for this one */
            return NP_LOOK;
        }
        d->in_stopped = 1;
        np_set_sc(&e->starved, 1u);
        return 0;
    }
    return NP_INBOUND - have < NP_SCRATCH ? NP_INBOUND - have : NP_SCRATCH;
}

int np_net_receive(struct np_engine *e, struct np_desc *d, uint32_t tag, unsigned bits) {
    unsigned flags = (bits & NP_UNSURE) | (bits & NP_ERR ? NP_W : 0);
    size_t want = 0;
    int wake = 0, go_on = 0;
    int looking = np_is_looking(e);

    np_lock(e, d);
    if (d->tag != tag || d->kind != NP_STREAM) {
        np_unlock(e, d);
        return 0;
    }
    if (flags) {
        d->in_unsure = 1;
    }
    /* If the worker is reading, it submits the descriptor when it is done (NP_DEDICATED: only
     * while the thread starts), or is told (NP_AUTO). */
    if (!np_get(&d->in_end) && !d->reading && !d->halt && (want = room(e, d, looking)) > 0) {
        d->reading = 1;
    } else {
        want = 0;
        if (flags || e->mode == NP_AUTO) {
            wake = np_ready(e, d, NP_R | NP_LEFT | flags);
        }
    }
    np_unlock(e, d);

    if (want > 0) {
        uint8_t unsure = 0;
        ssize_t n = receive(d, e->scratch, want, &unsure);
        int err = n < 0 ? errno : 0;
        struct np_read *r = NULL;
        np_count(&e->by_netpoller.syscalls, 1);
        if (n > 0) {
            np_count(&e->by_netpoller.received, n);
            r = malloc(sizeof *r + (size_t)n);
            if (r) {
                r->next = NULL;
                r->size = (size_t)n;
                memcpy(r->bytes, e->scratch, (size_t)n);
            } else {
                err = ENOMEM; /* bytes are lost: the stream ends here, with an error */
            }
        }
        np_lock(e, d);
        unsigned report = flags;
        d->in_unsure |= unsure;
        if (r) {
            if (d->in_tail) {
                d->in_tail->next = r;
            } else {
                d->in_head = r;
            }
            d->in_tail = r;
            d->in_chunks++;
            np_set(&d->in_bytes, np_get(&d->in_bytes) + (size_t)n);
            atomic_fetch_add(&e->in_total, (size_t)n);
            report |= NP_R;
            go_on = (size_t)n == want || d->in_unsure;
            if (looking && go_on) {
                d->in_large = 1;
                report |= NP_LEFT;
                go_on = 0;
            }
        } else if (n == 0) {
            np_set(&d->in_end, NP_END_OF_FILE);
            report |= NP_R;
        } else if (err != EAGAIN && err != EWOULDBLOCK) {
            np_set(&d->in_end, -err);
            report |= NP_R;
        }
        d->reading = 0;
        if (report && d->kind) {
            wake = np_ready(e, d, report | NP_R);
        }
        np_unlock(e, d);
    }
    if (wake) {
        np_notify_worker(e);
    }
    return go_on;
}
