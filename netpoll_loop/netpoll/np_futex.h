/* np_futex.h: sleeping, for a time or on a 32-bit word (Linux). */
#ifndef NP_FUTEX_H
#define NP_FUTEX_H

#include <errno.h>
#include <linux/futex.h>
#include <stdatomic.h>
#include <stdint.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define NP_SECOND 1000000000LL

/* Nanoseconds of CLOCK_MONOTONIC. */
static inline int64_t np_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * NP_SECOND + t.tv_nsec;
}

static inline struct timespec np_timespec(int64_t ns) {
    struct timespec t = {.tv_sec = (time_t)(ns / NP_SECOND), .tv_nsec = (long)(ns % NP_SECOND)};
    return t;
}

/* Sleeps while *word == value, until the absolute time deadline_ns (-1: none).
 * 0 when woken or when the value differs, -ETIMEDOUT, -EINTR. */
static inline int np_futex_wait(atomic_uint *word, unsigned value, int64_t deadline_ns) {
    struct timespec t = np_timespec(deadline_ns < 0 ? 0 : deadline_ns);
    long r = syscall(SYS_futex, word, FUTEX_WAIT_BITSET_PRIVATE, value, deadline_ns < 0 ? NULL : &t, NULL,
                     FUTEX_BITSET_MATCH_ANY);
    if (r == 0 || errno == EAGAIN) {
        return 0;
    }
    return -errno;
}

static inline void np_futex_wake(atomic_uint *word) {
    (void)syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}

/* The calling thread's sleeps end when they are over; the kernel may add 50 us otherwise, to spare a timer. */
static inline void np_sleep_exactly(void) { (void)prctl(PR_SET_TIMERSLACK, 1UL, 0UL, 0UL, 0UL); }

static inline void np_nap(int64_t ns) {
    struct timespec t = np_timespec(ns);
    (void)nanosleep(&t, NULL);
}

#endif
