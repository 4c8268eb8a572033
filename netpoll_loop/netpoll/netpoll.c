/* netpoll.c: the engine itself: its life, its descriptor table, its numbers.
 *
 * The engine is platform independent but for one file for each OS facility
 * (netpoll_epoll.c), which must define struct np_os's functions (np_os.h):
 *
 *   int  np_os_create(os)                    make the facility and its kick
 *   void np_os_destroy(os)                   close them; also in a forked child
 *   int  np_os_reset(os)                     a fresh one without registrations
 *   int  np_os_add, np_os_change, np_os_remove(os, fd, ...)
 *                                            register fd once: edge or level, with 64 bits of data
 *   int  np_os_wait(os, timeout, out, ...)   wait; report events, timeout, or a kick
 *   void np_os_kick(os)                      end the present or next wait; any thread, async-signal-safe
 *
 * The other files, each one topic:
 *
 *   desc.c     descriptors: open, close, arm; registration and rebuild
 *   stream.c   the write side: send, the write queue, draining it
 *   inbound.c  the read side: receive, the netpoller's receiving ahead
 *   listen.c   accept, the netpoller's ring of accepted connections
 *   park.c     the worker's waiting: poll, park, wake
 *   thread.c   the netpoller thread: tick, takeover, serving
 *   mailbox.c  descriptors with bits, from one thread to the other
 *
 * All shared state, its owners and its orderings: netpoll_internal.h.
 */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "netpoll_internal.h"

np_engine *np_engine_new(np_mode mode, int *err) {
    int rc = -ENOMEM;
    struct np_engine *e = NULL;
    if (mode != NP_INLINE && mode != NP_AUTO && mode != NP_DEDICATED) {
        rc = -EINVAL;
        goto fail;
    }
    e = aligned_alloc(64, (sizeof *e + 63) / 64 * 64);
    if (!e) {
        goto fail;
    }
    memset(e, 0, sizeof *e);
    e->mode = mode;
    e->cpus = np_os_cpus();
    e->shared = mode != NP_INLINE;
    e->home = NP_IDLE;
    np_set(&e->wstate, NP_IDLE);
    e->ready.which = NP_PLACE_READY;
    e->submitted.which = NP_PLACE_SUBMITTED;
    e->table = calloc(NP_CHUNKS, sizeof *e->table); /* 512 KiB of address space, touched where used */
    if (!e->table) {
        goto fail;
    }
    if (mode == NP_DEDICATED && !(e->scratch = malloc(NP_SCRATCH))) {
        goto fail;
    }
    rc = np_os_create(&e->os);
    if (rc < 0) {
        goto fail;
    }
    pthread_mutex_init(&e->ctl, NULL);
    pthread_mutex_init(&e->threads, NULL);
    if (err) {
        *err = 0;
    }
    return e;
fail:
    if (e) {
        free(e->scratch);
        free(e->table);
        free(e);
    }
    if (err) {
        *err = rc;
    }
    return NULL;
}

static void free_writes(struct np_write *w) {
    while (w) {
        struct np_write *next = w->next;
        free(w);
        w = next;
    }
}

static void free_desc(struct np_engine *e, struct np_desc *d) {
    free_writes(d->out_head);
    np_drop_inbound(e, d);
    if (d->ring) {
        for (; !e->dead && d->ring->count; d->ring->count--) {
            close(d->ring->at[d->ring->head++ % NP_RING].fd);
        }
        free(d->ring);
    }
}

void np_set_spin(np_engine *e, int64_t ns) {
    if (e) {
        e->spin_ns = e->cpus > 1 ? ns : 0;
    }
}

int np_wait(struct np_engine *e, struct np_counters *by, int64_t timeout_ns, struct np_os_event *out, int max,
            int *kicked) {
    if (e->spin_ns > 0 && timeout_ns != 0) {
        int64_t from = np_now();
        int64_t spin = 0 < timeout_ns && timeout_ns < e->spin_ns ? timeout_ns : e->spin_ns;
        do {
            int got = np_os_wait(&e->os, 0, out, max, kicked);
            np_count(&by->polls, 1);
            if (got != 0 || *kicked) {
                return got;
            }
        } while (np_now() - from < spin);
        if (timeout_ns > 0) {
            timeout_ns -= np_now() - from;
            if (timeout_ns <= 0) {
                return 0;
            }
        }
    }
    np_count(&by->polls, 1);
    return np_os_wait(&e->os, timeout_ns, out, max, kicked);
}

void np_engine_free(np_engine *e) {
    if (!e) {
        return;
    }
    np_thread_stop(e);
    if (!(e->dead && e->thread_exists)) { /* else its lists may have been caught in mid-change: leaked */
        NP_EACH(e, d) {
            free_desc(e, d);
        }
    }
    for (unsigned i = 0; i < np_get(&e->chunks); i++) {
        free(np_get(&e->table[i]));
    }
    free_writes(np_get(&e->done_head));
    free_writes(e->done_mine);
    free_writes(e->spare);
    np_os_destroy(&e->os);
    if (!e->dead) { /* in a child they may be locked by a thread that does not exist */
        pthread_mutex_destroy(&e->ctl);
        pthread_mutex_destroy(&e->threads);
    }
    free(e->scratch);
    free(e->table);
    free(e);
}

void np_fork_child(np_engine *e) {
    if (!e || e->dead) {
        return;
    }
    e->dead = 1;
    e->shared = 0; /* no other thread here: a lock that one held in the parent is nobody's */
    np_os_destroy(&e->os); /* our copies only: no epoll call, the parent's set is the same object */
}

struct np_desc *np_slot(struct np_engine *e, int fd) {
    struct np_desc *d = np_lookup(e, fd);
    if (d) {
        return d;
    }
    size_t size = sizeof *d * NP_CHUNK;
    unsigned chunk = (unsigned)fd >> NP_CHUNK_BITS;
    struct np_desc *base = aligned_alloc(64, (size + 63) / 64 * 64);
    if (!base) {
        return NULL;
    }
    memset(base, 0, size);
    for (int i = 0; i < NP_CHUNK; i++) {
        base[i].fd = (int)(chunk << NP_CHUNK_BITS) + i;
    }
    np_set_rel(&e->table[chunk], base);
    if (chunk >= np_get(&e->chunks)) {
        np_set_rel(&e->chunks, chunk + 1);
    }
    return np_lookup(e, fd);
}

int np_backend_fd(const np_engine *e) { return e && !e->dead ? e->os.poll_fd : -EBADF; }

void np_get_stats(np_engine *e, np_stats *out) {
    memset(out, 0, sizeof *out);
    if (!e) {
        return;
    }
    struct np_counters *w = &e->by_worker, *n = &e->by_netpoller;
    out->polls = np_get(&w->polls) + np_get(&n->polls);
    out->events = np_get(&w->events) + np_get(&n->events);
    out->handoffs = np_get(&n->handoffs);
    out->inline_syscalls = np_get(&w->syscalls);
    out->netpoller_syscalls = np_get(&n->syscalls);
    out->bytes_received = np_get(&w->received) + np_get(&n->received);
    out->bytes_sent = np_get(&w->sent) + np_get(&n->sent);
    out->stalls = np_get(&n->stalls);
    out->wakeups = np_get(&e->wakeups);
    out->descriptors = np_get(&e->descriptors);
    out->bytes_ahead = np_get(&e->in_total);
    NP_EACH(e, d) {
        out->bytes_unsent += np_get(&d->pending);
    }
    unsigned token = np_get(&e->token);
    out->poller = e->dead || token == NP_FREE ? NP_POLLER_NONE
                  : token == NP_WORKER        ? NP_POLLER_WORKER
                                              : NP_POLLER_NETPOLLER;
    out->thread_running = !e->dead && np_get(&e->thread_on) != 0;
    out->offloading = !e->dead && np_get(&e->offload) == NP_BY_NETPOLLER;
    out->batching = !e->dead && np_get(&e->offload) == NP_BY_WORKER;
}
