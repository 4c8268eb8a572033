/* stream.c: the write side of a stream: send, the write queue, draining it.
 *
 * Who drains is whoever sees the descriptor writable.  The states and moves are
 * in netpoll_internal.h ("Its write queue").  Only -EAGAIN counts as "full":
 * after a partial send `writable` stays set and the next attempt asks the
 * kernel, since a partial send has other causes too.
 */
#include <stdlib.h>
#include <string.h>

#include "netpoll_internal.h"
#include "np_call.h"
#include "np_sends.h"

/* ---- Nodes and the done list --------------------------------------------------- */

static struct np_write *new_write(struct np_engine *e) {
    struct np_write *w = e->spare;
    if (w) {
        e->spare = w->next;
        e->spares--;
        return w;
    }
    return malloc(sizeof *w);
}

static void free_write(struct np_engine *e, struct np_write *w) {
    if (e->spares >= NP_SPARE_WRITES) {
        free(w);
        return;
    }
    w->next = e->spare;
    e->spare = w;
    e->spares++;
}

/* Appends the list first..last to the done list. */
static void finish(struct np_engine *e, struct np_write *first, struct np_write *last) {
    last->next = NULL;
    np_spin_lock(&e->done_lock);
    if (np_get(&e->done_head)) {
        e->done_tail->next = first;
    } else {
        np_set(&e->done_head, first);
    }
    e->done_tail = last;
    np_spin_unlock(&e->done_lock);
}

void np_finish_all(struct np_engine *e, struct np_desc *d) {
    if (d->out_head) {
        finish(e, d->out_head, d->out_tail);
    }
    d->out_head = d->out_tail = NULL;
    d->sent_of_head = 0;
    np_set_rel(&d->pending, (size_t)0); /* last: see the field */
}

void *np_done(np_engine *e) {
    if (!e || e->dead) {
        return NULL;
    }
    for (;;) {
        struct np_write *w = e->done_mine;
        if (!w) {
            if (!np_get(&e->done_head)) {
                return NULL;
            }
            np_spin_lock(&e->done_lock);
            e->done_mine = w = np_get(&e->done_head);
            np_set(&e->done_head, NULL);
            e->done_tail = NULL;
            np_spin_unlock(&e->done_lock);
        }
        e->done_mine = w->next;
        void *cookie = w->cookie;
        free_write(e, w);
        if (cookie) {
            return cookie;
        }
    }
}

/* ---- Sending at once ------------------------------------------------------------- */

/* The pieces in one: a copy of them is cheaper than the kernel's way to a vector.  0: they don't fit. */
static size_t join(char *to, size_t room, const struct msghdr *msg) {
    size_t size = 0;
    for (size_t i = 0; i < msg->msg_iovlen; i++) {
        const struct iovec *piece = &msg->msg_iov[i];
        if (piece->iov_len > room - size) {
            return 0;
        }
        memcpy(to + size, piece->iov_base, piece->iov_len);
        size += piece->iov_len;
    }
    return size;
}

static ssize_t send_all(int fd, const struct msghdr *msg) {
    char joined[NP_SEND_JOINED];
    ssize_t n;
    size_t size;
    if (msg->msg_iovlen == 1) {
        n = np_send_one(fd, msg->msg_iov->iov_base, msg->msg_iov->iov_len);
    } else if ((size = join(joined, sizeof joined, msg)) > 0) {
        n = np_send_one(fd, joined, size);
    } else {
        do {
            n = sendmsg(fd, msg, MSG_NOSIGNAL | MSG_DONTWAIT);
        } while (n < 0 && errno == EINTR);
    }
    np_chaos();
    return n;
}

/* Takes the right to send if nothing is queued.  1: taken, 0: not, -errno. */
static int begin_send(struct np_engine *e, struct np_desc *d) {
    int rc = 0;
    np_lock(e, d);
    if (np_get(&d->send_err)) {
        rc = -np_get(&d->send_err);
    } else if (!d->sending && !d->out_head) {
        d->sending = 1;
        np_set(&d->writable, 0);
        rc = 1;
    }
    np_unlock(e, d);
    return rc;
}

/* Gives it back.  Nothing can have been queued meanwhile (the worker was here),
 * so there is no queue to look at again. */
static ssize_t end_send(struct np_engine *e, struct np_desc *d, ssize_t n) {
    int err = errno;
    np_lock(e, d);
    d->sending = 0;
    if (n >= 0) {
        np_set(&d->writable, 1);
    }
    np_unlock(e, d);
    np_count(&e->by_worker.syscalls, 1);
    if (n >= 0) {
        np_count(&e->by_worker.sent, n);
        return n;
    }
    return err == EAGAIN || err == EWOULDBLOCK ? 0 : -err;
}

ssize_t np_send(np_engine *e, np_desc *d, const void *buf, size_t size) {
    int rc = np_check(e, d, NP_STREAM);
    if (rc < 0 || size == 0) {
        return rc;
    }
    rc = begin_send(e, d);
    if (rc <= 0) {
        return rc;
    }
    return end_send(e, d, np_send_one(d->fd, buf, size));
}

ssize_t np_sendv(np_engine *e, np_desc *d, const struct iovec *iov, int count) {
    int rc = np_check(e, d, NP_STREAM);
    if (rc < 0 || count == 0) {
        return rc;
    }
    if (count < 0) {
        return -EINVAL;
    }
    rc = begin_send(e, d);
    if (rc <= 0) {
        return rc;
    }
    struct msghdr msg;
    memset(&msg, 0, sizeof msg);
    msg.msg_iov = (struct iovec *)iov;
    msg.msg_iovlen = count < 1024 ? (size_t)count : 1024; /* IOV_MAX; the rest is the caller's to queue */
    return end_send(e, d, send_all(d->fd, &msg));
}

/* ---- The queue --------------------------------------------------------------------- */

/* What to send next: the head of the queue.  Under lock.  The buffers are the
 * caller's and the nodes leave the queue only by the holder of `sending`, so
 * both stay valid after the unlock. */
static int gather(struct np_desc *d, struct iovec *iov) {
    size_t skip = d->sent_of_head, bytes = 0;
    int n = 0;
    for (struct np_write *w = d->out_head; w && n < NP_SEND_IOV && bytes < NP_SEND_CALL; w = w->next) {
        size_t size = w->size - skip;
        if (size > NP_SEND_CALL - bytes) {
            size = NP_SEND_CALL - bytes;
        }
        iov[n].iov_base = (void *)(w->buf + skip);
        iov[n].iov_len = size;
        bytes += size;
        skip = 0;
        n++;
    }
    return n;
}

/* n bytes of the queue's head were sent.  Under lock, with `sending`.  1 if a
 * write was finished. */
static int account(struct np_engine *e, struct np_desc *d, size_t n) {
    struct np_write *first = d->out_head, *last = NULL, *w = first;
    size_t left = np_get(&d->pending) - n;
    int finished = 0;
    n += d->sent_of_head;
    while (w && n >= w->size) {
        n -= w->size;
        last = w;
        w = w->next;
    }
    d->sent_of_head = n;
    if (last) {
        d->out_head = w;
        if (!w) {
            d->out_tail = NULL;
        }
        finish(e, first, last);
        finished = 1;
    }
    np_set_rel(&d->pending, left); /* last: see the field */
    return finished;
}

/* What an attempt has brought: bytes, or -errno.  Under lock, with `sending`.  1: another one may bring more. */
static int after_attempt(struct np_engine *e, struct np_desc *d, struct np_counters *counters, ssize_t n, unsigned *report) {
    if (n >= 0) {
        np_count(&counters->sent, n);
        np_set(&d->writable, 1);
        if (account(e, d, (size_t)n) && d->tell_w) {
            *report |= NP_W;
        }
        return d->out_head != NULL;
    }
    if (n == -EAGAIN || n == -EWOULDBLOCK) {
        if (np_get(&d->writable)) { /* an edge has come since */
            return 1;
        }
        if (d->tell_full) {
            *report |= NP_W;
        }
        d->tell_full = 0;
        return 0;
    }
    if (n == -EPIPE && np_get(&d->in_end) < 0) {
        n = np_get(&d->in_end); /* why the connection is broken: the receive got that, and only one call does */
    }
    np_set(&d->send_err, (int)-n);
    np_finish_all(e, d);
    *report |= NP_W | NP_ERR;
    return 0;
}

/* Under lock, which it gives back, with `sending`.  go_on. */
static int end_drain(struct np_engine *e, struct np_desc *d, np_drainer by, int go_on, unsigned report) {
    d->sending = 0;
    if (!d->out_head) {
        d->tell_w = d->tell_full = 0;
    }
    int wake = 0;
    if (by == NP_OTHER) {
        d->hot_w = (uint8_t)(go_on && !d->halt);
        if (report && d->kind) {
            wake = np_ready(e, d, report);
        }
    } else if (go_on) {
        (void)np_mailbox_post(&e->ready, d, NP_W); /* to ourselves: our next poll goes on */
    } else if (by == NP_TURN ? report : report & NP_ERR) {
        (void)np_mailbox_post(&e->ready, d, report);
    }
    np_unlock(e, d);
    if (wake) {
        np_notify_worker(e);
    }
    return go_on;
}

int np_drain(struct np_engine *e, struct np_desc *d, np_drainer by, size_t turn) {
    struct np_counters *counters = by == NP_OTHER ? &e->by_netpoller : &e->by_worker;
    struct iovec iov[NP_SEND_IOV];
    struct msghdr msg;
    memset(&msg, 0, sizeof msg);
    msg.msg_iov = iov;
    size_t sent = 0;
    unsigned report = 0;
    int go_on = 0;
    np_lock(e, d);
    while (d->out_head && !d->halt) {
        if (sent >= turn) {
            go_on = 1;
            break;
        }
        msg.msg_iovlen = (size_t)gather(d, iov);
        np_set(&d->writable, 0); /* before the call, see "Its write queue" */
        np_unlock(e, d);
        ssize_t n = send_all(d->fd, &msg);
        if (n < 0) {
            n = -errno;
        }
        np_count(&counters->syscalls, 1);
        np_lock(e, d);
        sent += n > 0 ? (size_t)n : 0;
        if (!after_attempt(e, d, counters, n, &report)) {
            break;
        }
    }
    return end_drain(e, d, by, go_on, report);
}

/* Takes the right to drain.  Under lock. */
static int begin_drain(struct np_desc *d) {
    if (!d->out_head || d->sending || d->halt) {
        return 0;
    }
    d->sending = 1;
    return 1;
}

int np_net_send(struct np_engine *e, struct np_desc *d, uint32_t tag) {
    np_lock(e, d);
    int mine = 0;
    if (d->tag == tag && d->kind == NP_STREAM) {
        d->hot_w = 0;
        mine = np_get(&d->writable) && begin_drain(d);
    }
    np_unlock(e, d);
    return mine ? np_drain(e, d, NP_OTHER, NP_SEND_TURN) : 0;
}

int np_net_add(struct np_engine *e, struct np_desc *d, uint32_t tag, struct np_sends *sends) {
    struct iovec iov[NP_SEND_IOV];
    struct msghdr msg = {.msg_iov = iov};
    np_lock(e, d);
    int added = d->tag == tag && d->kind == NP_STREAM && !d->hot_w && np_get(&d->writable) && begin_drain(d);
    if (added) {
        msg.msg_iovlen = (size_t)gather(d, iov);
        if (msg.msg_iovlen > 1) {
            iov->iov_len = join(np_sends_room(sends), NP_SEND_JOINED, &msg);
            iov->iov_base = np_sends_room(sends);
        }
        added = 0 < iov->iov_len && iov->iov_len <= NP_SEND_TOGETHER;
        if (added) {
            np_set(&d->writable, 0); /* before the call, see "Its write queue" */
            np_sends_add(sends, d->fd, iov->iov_base, iov->iov_len);
        } else {
            d->sending = 0;
        }
    }
    np_unlock(e, d);
    return added;
}

int np_net_sent(struct np_engine *e, struct np_desc *d, ssize_t n) {
    unsigned report = 0;
    int more = 1;
    np_lock(e, d);
    if (n == NP_SENDS_NONE || n == -EINTR) {
        np_set(&d->writable, 1); /* as far as anybody knows */
    } else {
        more = after_attempt(e, d, &e->by_netpoller, n, &report);
    }
    return end_drain(e, d, NP_OTHER, more && !d->halt, report);
}

/* Worker: drains, if nobody else does and the socket isn't known to be full. */
static void drain_here(struct np_engine *e, struct np_desc *d, np_drainer by) {
    np_lock(e, d);
    int mine = d->kind == NP_STREAM && np_get(&d->writable) && begin_drain(d);
    np_unlock(e, d);
    if (mine) {
        (void)np_drain(e, d, by, NP_SEND_WORKER);
    }
}

void np_send_batch(struct np_engine *e) {
    struct np_desc *d;
    unsigned bits;
    while (np_get_sc(&e->submitted.any) && (d = np_mailbox_take(&e->submitted, &bits)) != NULL) {
        drain_here(e, d, NP_TURN);
    }
}

void np_send_left(np_engine *e) {
    if (e && !e->dead && e->mode == NP_AUTO) {
        np_send_batch(e);
    }
}

void np_end_batch(struct np_engine *e) {
    e->last_written = NULL;
    if (e->turn_writes) {
        unsigned usual = np_get(&e->usual_turn);
        usual -= (usual + 7) / 8; /* rounded up: else it would stay at 7 for good */
        np_set(&e->usual_turn, usual < e->turn_writes ? e->turn_writes : usual);
        e->turn_writes = 0;
    }
    if (!e->batched) {
        return;
    }
    e->batched = 0;
    if (np_get(&e->offload) != NP_BY_NETPOLLER) { /* for which each was due at once */
        np_send_batch(e);
    }
}

/* for_turn: not at once, even in NP_AT_ONCE. */
static int queue(struct np_engine *e, struct np_desc *d, const void *buf, size_t size, void *cookie, int for_turn) {
    int rc = np_check(e, d, NP_STREAM);
    if (rc < 0) {
        return rc;
    }
    struct np_write *w = new_write(e);
    if (!w) {
        return -ENOMEM;
    }
    w->next = NULL;
    w->buf = buf;
    w->size = size;
    w->cookie = cookie;
    if (size == 0) {
        finish(e, w, w);
        return 0;
    }
    int start = 0;
    np_lock(e, d);
    rc = -np_get(&d->send_err);
    if (rc == 0) {
        if (d->out_tail) {
            d->out_tail->next = w;
        } else {
            d->out_head = w;
        }
        d->out_tail = w;
        np_set(&d->pending, np_get(&d->pending) + size);
        if (!for_turn && np_get(&e->offload) == NP_AT_ONCE) {
            d->tell_w = 1;
        }
        start = np_get(&d->writable) && !d->sending && !d->hot_w;
    }
    np_unlock(e, d);
    if (rc < 0) {
        free_write(e, w);
        return rc;
    }
    int by_others = e->mode == NP_DEDICATED || np_get(&e->offload) != NP_AT_ONCE || for_turn;
    if (start && !(by_others && np_submit(e, d, NP_W))) {
        drain_here(e, d, NP_CALLER);
    }
    return 0;
}

int np_queue(np_engine *e, np_desc *d, const void *buf, size_t size, void *cookie) {
    return queue(e, d, buf, size, cookie, 0);
}

int np_queue_for_turn(np_engine *e, np_desc *d, const void *buf, size_t size, void *cookie) {
    return queue(e, d, buf, size, cookie, e && e->mode == NP_AUTO);
}

int np_tell(np_engine *e, np_desc *d) {
    if (np_check(e, d, NP_STREAM) < 0) {
        return 0;
    }
    np_lock(e, d);
    d->tell_w = 1;
    int queued = d->out_head != NULL;
    np_unlock(e, d);
    return queued;
}

/* Under lock. */
static int is_full(const struct np_desc *d) { return d->out_head && !d->sending && !np_get(&d->writable); }

int np_full(np_engine *e, np_desc *d) {
    int full = 0;
    if (np_check(e, d, NP_STREAM) == 0) {
        np_lock(e, d);
        full = is_full(d);
        np_unlock(e, d);
    }
    return full;
}

void np_tell_full(np_engine *e, np_desc *d) {
    if (np_check(e, d, NP_STREAM) == 0) {
        np_lock(e, d);
        int full = is_full(d);
        d->tell_full = d->out_head && !full;
        if (full) {
            (void)np_mailbox_post(&e->ready, d, NP_W); /* to ourselves: others have tried already */
        }
        np_unlock(e, d);
    }
}

np_sender np_offload(np_engine *e, np_sender by) {
    if (!e || e->dead || e->mode != NP_AUTO) {
        return NP_AT_ONCE;
    }
    np_end_batch(e);
    if (!np_get_sc(&e->thread_on)) {
        by = NP_AT_ONCE;
    }
    np_set_sc(&e->offload, (unsigned)by); /* np_settle: then looks at passes; look: a pass has begun, then looks at it */
    return by;
}

void np_settle(np_engine *e) {
    if (!e || e->dead || e->mode != NP_AUTO) {
        return;
    }
    np_trial_end(e, np_now());
    np_send_batch(e);
    unsigned pass = np_get_sc(&e->passes);
    for (unsigned round = 0; pass % 2 && np_get_sc(&e->passes) == pass;) {
        np_backoff(&round);
    }
}

ssize_t np_flush(np_engine *e, np_desc *d) {
    int rc = np_check(e, d, NP_STREAM);
    if (rc < 0) {
        return rc;
    }
    np_lock(e, d);
    /* Also when it is not known to be writable: the caller asks to try.  But if
     * the netpoller goes on by itself, a try would only cost a system call. */
    int others = np_offloads(e) && (d->hot_w || !np_get(&d->writable));
    int mine = !others && begin_drain(d);
    d->tell_w |= d->out_head != NULL; /* the caller waits for the rest */
    np_unlock(e, d);
    if (mine) {
        (void)np_drain(e, d, NP_CALLER, NP_SEND_WORKER);
    }
    int err = np_get(&d->send_err);
    return err ? -err : (ssize_t)np_get_acq(&d->pending);
}

int np_send_error(np_desc *d) { return d && d->kind ? -np_get(&d->send_err) : 0; }

size_t np_pending(np_desc *d) { return d && d->kind ? np_get_acq(&d->pending) : 0; }

void np_discard(np_engine *e, np_desc *d) {
    if (np_check(e, d, NP_STREAM) < 0) {
        return;
    }
    np_lock(e, d);
    d->halt = 1;
    for (unsigned round = 0; d->sending;) {
        np_unlock(e, d);
        np_backoff(&round);
        np_lock(e, d);
    }
    np_finish_all(e, d);
    d->halt = d->hot_w = d->tell_w = d->tell_full = 0;
    np_unlock(e, d);
}

void np_notify_writable(np_engine *e, np_desc *d, int notify) {
    if (np_check(e, d, NP_STREAM) < 0) {
        return;
    }
    np_lock(e, d);
    d->asked_w = (uint8_t)notify;
    np_set(&d->writable, !notify); /* 0: so that the worker's dispatch looks closer at the next edge */
    np_unlock(e, d);
}
