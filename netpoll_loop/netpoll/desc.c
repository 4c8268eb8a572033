/* desc.c: descriptors: open, close, arm; their registration in the OS facility.
 *
 * All for the worker, but for the functions that say otherwise in
 * netpoll_internal.h.
 *
 * Why tags and rebuilds.  epoll knows a registration by (open file, number),
 * not by number.  When a number is closed behind our back while a dup keeps
 * the open file alive, its registration lives on, reports the old data, and
 * no epoll_ctl reaches it any more: the number means another file now, or
 * none.  The tag in the data makes such an event harmless.  It cannot make it
 * stop: if it is level-triggered, each wait returns at once.  A stale event is
 * normal (the netpoller has it in hand while the worker closes); the same one
 * in NP_STALE_WAITS waits in a row is that trap, and the only way out is a new
 * epoll instance.
 *
 * Why enter and np_refresh.  The number that was closed behind our back may be
 * the file of somebody who has never heard of us.  So only a caller who names a
 * number enters it, by np_open, or by the first np_arm after it.  Whatever we do
 * by ourselves later on is a change of what is there, and ENOENT ends it.
 */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "netpoll_internal.h"

/* ---- Registration (under ctl) ----------------------------------------------- */

/* By np_arm, which registers it: nothing is to be reported before.  The others are edge-triggered. */
static int is_armed(unsigned kind) { return kind == NP_LISTEN || kind == NP_LEVEL; }

static unsigned mask_of(const struct np_engine *e, struct np_desc *d) {
    if (!is_armed(d->kind)) {
        return NP_R | NP_W | NP_OS_EDGE;
    }
    if (!d->interest || np_get(&d->disarmed)) {
        return NP_OS_ONCE; /* mute: at most one hang-up, which is dropped */
    }
    if (d->kind == NP_LEVEL && e->mode == NP_DEDICATED) {
        return d->interest | NP_OS_ONCE; /* disarmed for us by the report */
    }
    return d->interest;
}

/* The caller has just named the number: whatever file it is. */
static int enter(struct np_engine *e, struct np_desc *d) {
    int rc = np_os_add(&e->os, d->fd, mask_of(e, d), np_data(d));
    if (rc == -EEXIST) { /* closed behind our back, kept alive by a dup, and the number's file again */
        rc = np_os_change(&e->os, d->fd, mask_of(e, d), np_data(d));
    }
    d->registered = rc == 0;
    return rc;
}

int np_refresh(struct np_engine *e, struct np_desc *d) {
    int rc = d->registered ? np_os_change(&e->os, d->fd, mask_of(e, d), np_data(d)) : -ENOENT;
    d->registered = rc == 0;
    return rc;
}

void np_unregister(struct np_engine *e, struct np_desc *d) {
    if (d->registered) {
        (void)np_os_remove(&e->os, d->fd); /* fails if the fd was closed before: nothing to remove then */
        d->registered = 0;
    }
}

void np_refresh_all(struct np_engine *e) {
    np_ctl_lock(e);
    NP_EACH(e, d) {
        if (d->registered) {
            np_lock(e, d);
            d->in_stopped = 0;
            np_unlock(e, d);
            (void)np_refresh(e, d);
        }
    }
    np_ctl_unlock(e);
}

void np_rebuild(struct np_engine *e) {
    np_ctl_lock(e);
    NP_EACH(e, d) {
        (void)np_refresh(e, d); /* a new instance would take any file, and only the old one knows which are ours */
    }
    if (np_os_reset(&e->os) == 0) {
        NP_EACH(e, d) {
            if (d->registered) {
                (void)enter(e, d);
            }
        }
    }
    np_ctl_unlock(e);
}

void np_stale(struct np_engine *e, uint64_t data) {
    if (data == e->stale_data) {
        e->stale_again = 1;
    } else {
        e->stale_other = data;
    }
}

void np_after_wait(struct np_engine *e) {
    if (e->stale_again) {
        if (++e->stale_waits >= NP_STALE_WAITS) {
            e->stale_waits = 0;
            np_rebuild(e);
        }
    } else {
        e->stale_data = e->stale_other;
        e->stale_waits = 0;
    }
    e->stale_again = 0;
    e->stale_other = 0;
}

unsigned np_disarm(struct np_engine *e, struct np_desc *d, uint32_t tag, unsigned bits, int mute) {
    if (d->tag != tag || !(bits & d->interest)) {
        return 0;
    }
    if (d->kind == NP_LEVEL && e->mode == NP_DEDICATED) {
        np_set(&d->disarmed, 1);
    } else if (mute && !np_get(&d->disarmed)) {
        np_set(&d->disarmed, 1);
        (void)np_refresh(e, d);
    }
    if (!d->registered) { /* of a file that was closed behind our back, and lives on by a dup */
        np_stale(e, np_data(d));
        return 0;
    }
    return bits & (d->interest | NP_HUP | NP_ERR);
}

/* ---- Open and close ----------------------------------------------------------- */

static void reset(struct np_desc *d) {
    np_set(&d->disarmed, 0);
    d->sending = d->reading = d->halt = 0;
    d->hot_w = d->tell_w = d->tell_full = d->asked_w = 0;
    np_set(&d->writable, 1); /* until a send says otherwise */
    np_set(&d->send_err, 0);
    np_set(&d->pending, (size_t)0);
    d->sent_of_head = 0;
    d->out_head = d->out_tail = NULL;
    d->in_head = d->in_tail = NULL;
    d->in_chunks = 0;
    np_set(&d->in_bytes, (size_t)0);
    np_set(&d->in_end, 0);
    d->in_stopped = d->in_unsure = d->in_large = d->ahead = 0;
    d->accept_err = 0;
    d->more = d->unsure = d->end_seen = 0;
    d->mine = NULL;
    d->mine_at = 0;
}

static int open_at(struct np_engine *e, int fd, np_kind kind, void *user, struct np_desc **out) {
    if (!e || e->dead || fd < 0) {
        return -EBADF;
    }
    if (kind < NP_STREAM || kind > NP_LEVEL) {
        return -EINVAL;
    }
    if ((unsigned)fd >> NP_CHUNK_BITS >= NP_CHUNKS) {
        return -EMFILE;
    }
    struct np_desc *d = np_slot(e, fd);
    struct np_ring *ring = NULL;
    if (!d) {
        return -ENOMEM;
    }
    if (d->kind) {
        np_close(e, d);
    }
    if (kind == NP_LISTEN && e->mode == NP_DEDICATED && !(ring = calloc(1, sizeof *ring))) {
        return -ENOMEM;
    }
    int unsure = !is_armed(kind) && !np_os_is_tcp(fd);
    int cuts = unsure && kind == NP_STREAM && np_os_is_unix_stream(fd);
    np_ctl_lock(e);
    np_lock(e, d);
    reset(d);
    d->cuts = (uint8_t)cuts;
    d->in_unsure = d->unsure = (uint8_t)(unsure && !cuts);
    d->tag++;
    d->kind = (uint8_t)kind;
    d->interest = 0;
    d->user = user;
    d->ring = ring;
    np_unlock(e, d);
    int rc = is_armed(kind) ? 0 : enter(e, d);
    if (rc < 0) {
        np_lock(e, d);
        d->tag++;
        d->kind = 0;
        d->ring = NULL;
        np_unlock(e, d);
    }
    np_ctl_unlock(e);
    if (rc < 0) {
        free(ring);
        return rc;
    }
    np_count(&e->descriptors, 1);
    *out = d;
    return 0;
}

int np_short_is_all(const np_desc *d) { return d && d->kind && !d->unsure; }

int np_is_same(np_engine *e, np_desc *d) {
    if (!e || e->dead || !d || !d->kind) {
        return 0;
    }
    np_ctl_lock(e);
    int same = np_refresh(e, d) == 0;
    np_ctl_unlock(e);
    return same;
}

np_desc *np_open(np_engine *e, int fd, np_kind kind, void *user, int *err) {
    struct np_desc *d = NULL;
    int rc = open_at(e, fd, kind, user, &d);
    if (err) {
        *err = rc;
    }
    return d;
}

void np_close(np_engine *e, np_desc *d) {
    if (!e || e->dead || !d || !d->kind) {
        return;
    }
    np_ctl_lock(e);
    np_lock(e, d);
    d->halt = 1;
    d->tag++; /* from here on no event, hot list entry or submission leads to a system call */
    d->kind = 0;
    d->interest = 0;
    np_unlock(e, d);
    np_unregister(e, d);
    np_ctl_unlock(e);

    np_lock(e, d);
    for (unsigned round = 0; d->sending || d->reading;) {
        np_unlock(e, d);
        np_backoff(&round);
        np_lock(e, d);
    }
    np_finish_all(e, d);
    struct np_ring *ring = d->ring;
    d->ring = NULL;
    d->halt = d->hot_w = 0;
    np_unlock(e, d);

    np_count(&e->descriptors, -1);
    np_drop_inbound(e, d);
    np_mailbox_clear(&e->ready, d);
    np_mailbox_clear(&e->submitted, d);
    if (ring) {
        for (; ring->count; ring->count--) {
            close(ring->at[ring->head++ % NP_RING].fd);
        }
        free(ring);
    }
}

/* ---- Arm ------------------------------------------------------------------------ */

static int is_armable(const struct np_engine *e, const struct np_desc *d) {
    return d && is_armed(d->kind) && np_check(e, d, d->kind) == 0;
}

/* What waits in the ring is reported like a level: as long as it is there. */
static void report_ring(struct np_engine *e, struct np_desc *d) {
    if (!d->ring) {
        return;
    }
    np_lock(e, d);
    if ((d->interest & NP_R) && (d->ring->count || d->accept_err)) {
        (void)np_mailbox_post(&e->ready, d, NP_R); /* to ourselves: nobody to wake */
    }
    np_unlock(e, d);
}

int np_arm(np_engine *e, np_desc *d, unsigned interest) {
    if (!is_armable(e, d)) {
        return !e || e->dead || !d || !d->kind ? -EBADF : -EINVAL;
    }
    if (interest & ~(NP_R | NP_W)) {
        return -EINVAL;
    }
    int rc = 0, armed = d->interest != 0;
    np_ctl_lock(e);
    np_lock(e, d);
    d->interest = (uint8_t)interest;
    d->tag++; /* an event that the netpoller has in hand belongs to the old interest */
    np_unlock(e, d);
    np_set(&d->disarmed, 0);
    if (interest) {
        rc = armed ? np_refresh(e, d) : enter(e, d);
    } else {
        np_unregister(e, d); /* at once: a mask of 0 would still report hang-ups */
    }
    if (rc < 0) {
        np_lock(e, d);
        d->interest = 0;
        np_unlock(e, d);
    }
    np_mailbox_clear(&e->ready, d); /* the facility reports anew what still holds */
    np_ctl_unlock(e);
    if (!interest) {
        np_lock(e, d);
        for (unsigned round = 0; d->reading;) { /* the netpoller looks at interest before each accept */
            np_unlock(e, d);
            np_backoff(&round);
            np_lock(e, d);
        }
        np_unlock(e, d);
        np_mailbox_clear(&e->ready, d);
    }
    report_ring(e, d);
    return rc;
}

int np_arm_again(struct np_engine *e, struct np_desc *d) {
    if (!np_get(&d->disarmed)) {
        return 0;
    }
    np_ctl_lock(e);
    np_set(&d->disarmed, 0);
    int rc = d->kind && d->interest ? np_refresh(e, d) : 0;
    np_ctl_unlock(e);
    return rc;
}

int np_rearm(np_engine *e, np_desc *d) {
    if (!e || e->dead || !d || !d->kind) {
        return -EBADF;
    }
    if (!is_armable(e, d)) {
        return 0;
    }
    int rc = np_arm_again(e, d);
    report_ring(e, d);
    return rc;
}
