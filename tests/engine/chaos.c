/* chaos.c: the random pauses of run.sh chaos (np_atomic.h). */
#ifdef NP_CHAOS
#include <errno.h>
#include <sched.h>
#include <stdint.h>
#include <time.h>

void np_chaos(void);
void np_chaos(void) {
    static _Thread_local uint32_t state;
    if (!state) {
        struct timespec t;
        clock_gettime(CLOCK_MONOTONIC, &t);
        state = (uint32_t)t.tv_nsec | 1; /* each run differs */
    }
    int saved = errno;
    state ^= state << 13;
    state ^= state >> 17;
    state ^= state << 5;
    if (state % 200 == 0) {
        struct timespec t = {0, (long)(state >> 8) % 300000};
        nanosleep(&t, NULL);
    } else if (state % 16 == 0) {
        sched_yield();
    }
    errno = saved;
}
#else
typedef int np_no_chaos; /* a file must not be empty */
#endif
