/* listen.c: accepting.
 *
 * A listener is level-triggered.  While the worker polls, np_accept is
 * accept4(2).  In NP_DEDICATED the netpoller accepts into the listener's ring;
 * when that is full, or the process has no more file descriptors, it mutes the
 * listener and leaves the rest to the kernel's backlog.
 */
#include <string.h>
#include <unistd.h>

#include "netpoll_internal.h"

/* A connection that was aborted before we came is nobody's error. */
static int accept_retry(int fd, struct sockaddr_storage *addr, socklen_t *len) {
    socklen_t room = len ? *len : 0;
    int conn;
    do {
        if (len) {
            *len = room;
        }
        conn = accept4(fd, (struct sockaddr *)addr, addr ? len : NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    } while (conn < 0 && (errno == EINTR || errno == ECONNABORTED));
    if (conn >= 0) {
        return conn;
    }
    return errno == EWOULDBLOCK ? -EAGAIN : -errno;
}

/* ---- Worker ------------------------------------------------------------------------ */

int np_accepted(np_engine *e, np_desc *d, struct sockaddr_storage *addr, socklen_t *len) {
    int rc = np_check(e, d, NP_LISTEN);
    if (rc < 0) {
        return rc;
    }
    struct np_ring *ring = d->ring;
    if (!ring) {
        return -EAGAIN;
    }
    int conn = -EAGAIN, half = 0;
    np_lock(e, d);
    if (ring->count) {
        unsigned at = ring->head++ % NP_RING;
        ring->count--;
        half = ring->count <= NP_RING / 2 && !d->accept_err;
        conn = ring->at[at].fd;
        if (addr && len) {
            memcpy(addr, &ring->at[at].addr, *len < ring->at[at].len ? *len : ring->at[at].len);
            *len = ring->at[at].len;
        }
    }
    np_unlock(e, d);
    if (half) {
        (void)np_arm_again(e, d); /* nothing to do unless the full ring had muted it */
    }
    return conn;
}

int np_accept(np_engine *e, np_desc *d, struct sockaddr_storage *addr, socklen_t *len) {
    int conn = np_accepted(e, d, addr, len);
    if (conn != -EAGAIN) {
        return conn;
    }
    if (e->mode == NP_DEDICATED) {
        np_lock(e, d);
        int err = d->accept_err, mine = 0;
        d->accept_err = 0;
        if (!err && !np_get_sc(&e->thread_on) && !d->reading) {
            d->reading = mine = 1;
        }
        np_unlock(e, d);
        if (err || !mine) {
            return err ? -err : -EAGAIN;
        }
    }
    conn = accept_retry(d->fd, addr, len);
    np_count(&e->by_worker.syscalls, 1);
    if (e->mode == NP_DEDICATED) {
        np_lock(e, d);
        d->reading = 0;
        np_unlock(e, d);
    }
    if (conn == -EAGAIN) {
        /* If the netpoller had reported it in a takeover.  Not while there are more: it would report each of them. */
        (void)np_arm_again(e, d);
    }
    return conn;
}

/* ---- Netpoller --------------------------------------------------------------------- */

static int may_accept(const struct np_desc *d, uint32_t tag) {
    return d->tag == tag && d->kind == NP_LISTEN && (d->interest & NP_R) && !d->halt;
}

/* Mutes it; arms it again at once if the worker has made room meanwhile (it
 * looks at `disarmed` after it has taken one from the ring, under the lock). */
static void mute(struct np_engine *e, struct np_desc *d, uint32_t tag) {
    np_ctl_lock(e);
    unsigned bits = np_disarm(e, d, tag, NP_R, 1);
    if (bits) {
        np_lock(e, d);
        int again = d->ring && d->ring->count < NP_RING && !d->accept_err;
        np_unlock(e, d);
        if (again) {
            np_set(&d->disarmed, 0);
            (void)np_refresh(e, d);
        }
    }
    np_ctl_unlock(e);
}

void np_net_accept(struct np_engine *e, struct np_desc *d, uint32_t tag) {
    int took = 0, full = 0, wake = 0;
    np_lock(e, d);
    if (!may_accept(d, tag) || d->reading) {
        np_unlock(e, d);
        return;
    }
    d->reading = 1;
    while (may_accept(d, tag)) {
        if (d->ring->count == NP_RING || d->accept_err) {
            full = 1;
            break;
        }
        unsigned at = (d->ring->head + d->ring->count) % NP_RING;
        np_unlock(e, d);
        struct sockaddr_storage addr;
        socklen_t len = sizeof addr;
        int conn = accept_retry(d->fd, &addr, &len);
        np_count(&e->by_netpoller.syscalls, 1);
        np_lock(e, d);
        if (conn == -EAGAIN) {
            break;
        }
        if (conn < 0) {
            d->accept_err = -conn;
        } else {
            /* `at` is still the end: what the worker took moved the head only. */
            d->ring->at[at].fd = conn;
            d->ring->at[at].len = len;
            d->ring->at[at].addr = addr;
            d->ring->count++;
        }
        took = 1;
    }
    d->reading = 0;
    if (took && d->kind) {
        wake = np_ready(e, d, NP_R);
    }
    np_unlock(e, d);
    if (full) {
        mute(e, d, tag);
    }
    if (wake) {
        np_notify_worker(e);
    }
}
