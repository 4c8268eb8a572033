/* netpoll_uring.c: several sends in one system call on Linux, by io_uring.
 *
 * Each is a send that must not wait (MSG_DONTWAIT): the kernel tries it inside
 * the call, and its completion is there when the call returns.  So no request
 * outlives the call, but for a loop that copes with one that would.  The
 * kernel's end of the two rings is memory that it reads and writes within
 * io_uring_enter, made by this same thread; the atomics are what its manual asks
 * for.
 *
 * The ring is registered with the thread, and its file descriptor closed at once
 * (Linux 6.1: IORING_SETUP_DEFER_TASKRUN, the newest of what is used here).  It
 * ends with the thread.
 */
#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "netpoll_internal.h"
#include "np_call.h"
#include "np_sends.h"

#if defined(__has_include)
#if __has_include(<linux/io_uring.h>)
#include <linux/io_uring.h>
#endif
#endif

#if defined(IORING_SETUP_DEFER_TASKRUN) && defined(SYS_io_uring_setup)

struct np_sends {
    unsigned ring; /* its index among those that are registered with the thread */
    int broken;    /* no more of it */
    unsigned count;
    unsigned tail; /* ours, of the submission queue */
    char *rings;   /* both of them */
    size_t rings_size;
    struct io_uring_sqe *requests;
    size_t requests_size;
    unsigned *sq_head, *sq_tail, *cq_head, *cq_tail;
    unsigned *order; /* which request is in which place of the submission queue */
    unsigned sq_mask, cq_mask;
    const struct io_uring_cqe *completions;
    char joined[NP_SENDS_MAX][NP_SEND_JOINED];
};

static unsigned get(const unsigned *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
static void set(unsigned *p, unsigned value) { __atomic_store_n(p, value, __ATOMIC_RELEASE); }

/* NULL: no. A forked child has no use for it, and would keep the ring alive. */
static void *map(int fd, size_t size, off_t what) {
    void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, what);
    if (memory == MAP_FAILED) {
        return NULL;
    }
    (void)madvise(memory, size, MADV_DONTFORK);
    return memory;
}

static int map_rings(struct np_sends *s, int fd, const struct io_uring_params *p) {
    size_t sq = p->sq_off.array + p->sq_entries * sizeof(unsigned);
    size_t cq = p->cq_off.cqes + p->cq_entries * sizeof(struct io_uring_cqe);
    s->rings_size = sq > cq ? sq : cq;
    s->requests_size = p->sq_entries * sizeof *s->requests;
    s->rings = map(fd, s->rings_size, IORING_OFF_SQ_RING);
    s->requests = map(fd, s->requests_size, IORING_OFF_SQES);
    if (!s->rings || !s->requests) {
        return 0;
    }
    s->sq_head = (unsigned *)(void *)(s->rings + p->sq_off.head);
    s->sq_tail = (unsigned *)(void *)(s->rings + p->sq_off.tail);
    s->order = (unsigned *)(void *)(s->rings + p->sq_off.array);
    s->cq_head = (unsigned *)(void *)(s->rings + p->cq_off.head);
    s->cq_tail = (unsigned *)(void *)(s->rings + p->cq_off.tail);
    s->sq_mask = *(unsigned *)(void *)(s->rings + p->sq_off.ring_mask);
    s->cq_mask = *(unsigned *)(void *)(s->rings + p->cq_off.ring_mask);
    s->completions = (const struct io_uring_cqe *)(void *)(s->rings + p->cq_off.cqes);
    return 1;
}

/* 1: from here on it needs no file descriptor. */
static int register_ring(struct np_sends *s, int fd) {
    struct io_uring_rsrc_update update;
    memset(&update, 0, sizeof update);
    update.offset = UINT32_MAX; /* any place */
    update.data = (uint64_t)(unsigned)fd;
    if (syscall(SYS_io_uring_register, fd, IORING_REGISTER_RING_FDS, &update, 1) != 1) {
        return 0;
    }
    s->ring = update.offset;
    return 1;
}

struct np_sends *np_sends_new(void) {
    struct np_sends *s = calloc(1, sizeof *s);
    if (!s) {
        return NULL;
    }
    struct io_uring_params p;
    memset(&p, 0, sizeof p);
    p.flags = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN;
    int fd = (int)syscall(SYS_io_uring_setup, NP_SENDS_MAX, &p);
    int ready = fd >= 0 && p.features & IORING_FEAT_SINGLE_MMAP && map_rings(s, fd, &p) && register_ring(s, fd);
    if (fd >= 0) {
        close(fd);
    }
    if (!ready) {
        np_sends_free(s);
        return NULL;
    }
    s->tail = get(s->sq_tail);
    return s;
}

void np_sends_free(struct np_sends *s) {
    if (!s) {
        return;
    }
    if (s->requests) {
        munmap(s->requests, s->requests_size);
    }
    if (s->rings) {
        munmap(s->rings, s->rings_size);
    }
    free(s);
}

char *np_sends_room(struct np_sends *s) { return s->joined[s->count]; }

void np_sends_add(struct np_sends *s, int fd, const void *buf, size_t size) {
    unsigned place = s->tail++ & s->sq_mask;
    struct io_uring_sqe *request = &s->requests[place];
    memset(request, 0, sizeof *request);
    request->opcode = IORING_OP_SEND;
    request->fd = fd;
    request->addr = (uint64_t)(uintptr_t)buf;
    request->len = (uint32_t)size;
    request->msg_flags = MSG_NOSIGNAL | MSG_DONTWAIT;
    request->user_data = s->count++;
    s->order[place] = place;
}

/* Withdraws what the kernel has not taken: it looks only within a call. */
static void withdraw(struct np_sends *s) {
    s->tail = get(s->sq_head);
    set(s->sq_tail, s->tail);
}

static unsigned reap(struct np_sends *s, ssize_t *results) {
    unsigned head = *s->cq_head, first = head;
    for (unsigned tail = get(s->cq_tail); head != tail; head++) {
        const struct io_uring_cqe *done = &s->completions[head & s->cq_mask];
        results[done->user_data] = done->res;
    }
    set(s->cq_head, head);
    return head - first;
}

static void run_one(struct np_sends *s, ssize_t *results) {
    const struct io_uring_sqe *request = &s->requests[(s->tail - 1) & s->sq_mask];
    ssize_t n = np_send_one(request->fd, (const void *)(uintptr_t)request->addr, request->len);
    results[0] = n < 0 ? -errno : n;
    withdraw(s);
}

unsigned np_sends_run(struct np_sends *s, ssize_t *results) {
    unsigned count = s->count, taken = 0, done = 0, calls = 0;
    s->count = 0;
    if (count == 1) {
        run_one(s, results);
        return 1;
    }
    for (unsigned i = 0; i < count; i++) {
        results[i] = NP_SENDS_NONE;
    }
    set(s->sq_tail, s->tail);
    while (done < count && !s->broken) {
        long rc = syscall(SYS_io_uring_enter, s->ring, count - taken, count - done,
                          IORING_ENTER_GETEVENTS | IORING_ENTER_REGISTERED_RING, NULL, (size_t)0);
        calls++;
        if (rc > 0) {
            taken += (unsigned)rc;
        } else if (rc == 0 || errno != EINTR) {
            s->broken = taken == done; /* else some are under way */
        }
        done += reap(s, results);
    }
    withdraw(s);
    np_chaos();
    return calls;
}

#else

struct np_sends *np_sends_new(void) { return NULL; }
void np_sends_free(struct np_sends *s) { (void)s; }
char *np_sends_room(struct np_sends *s) { return (char *)s; }
void np_sends_add(struct np_sends *s, int fd, const void *buf, size_t size) { (void)s, (void)fd, (void)buf, (void)size; }
unsigned np_sends_run(struct np_sends *s, ssize_t *results) { return (void)s, (void)results, 0; }

#endif
