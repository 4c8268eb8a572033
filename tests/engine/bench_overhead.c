/* bench_overhead.c: what the engine adds to one small request (poll, receive,
 * send) over its three system calls.  Not a test.
 *
 * The system calls are replaced by functions that do nothing (--wrap), so that
 * the engine's own instructions are all that is measured: on a shared machine
 * the difference of two real runs is lost in the noise.
 *
 *   gcc -std=c11 -D_GNU_SOURCE -O2 -Inetpoll_loop/netpoll netpoll_loop/netpoll/[a-z]*.c \
 *       tests/engine/bench_overhead.c -pthread -Wl,--wrap=send,--wrap=recv,--wrap=epoll_wait \
 *       -o /tmp/bench && /tmp/bench
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>

#include "netpoll.h"

static char buf[1024], in[65536];
static struct epoll_event event;

ssize_t __wrap_send(int fd, const void *b, size_t n, int flags);
ssize_t __wrap_recv(int fd, void *b, size_t n, int flags);
int __wrap_epoll_wait(int fd, struct epoll_event *out, int max, int timeout);

__attribute__((noinline)) ssize_t __wrap_send(int fd, const void *b, size_t n, int flags) {
    (void)fd, (void)b, (void)flags;
    __asm__ __volatile__("");
    return (ssize_t)n;
}

__attribute__((noinline)) ssize_t __wrap_recv(int fd, void *b, size_t n, int flags) {
    (void)fd, (void)b, (void)n, (void)flags;
    __asm__ __volatile__("");
    return 1024;
}

__attribute__((noinline)) int __wrap_epoll_wait(int fd, struct epoll_event *out, int max, int timeout) {
    (void)fd, (void)max, (void)timeout;
    __asm__ __volatile__("");
    out[0] = event;
    return 1;
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

enum { N = 20000, SLICES = 200 };
static double best;
#define MEASURE(name, body)                          \
    do {                                             \
        best = 1e9;                                  \
        for (int k = 0; k < SLICES; k++) {           \
            double t = now();                        \
            for (int i = 0; i < N; i++) { body; }    \
            t = (now() - t) / N;                     \
            if (t < best) best = t;                  \
        }                                            \
        printf("  %-10s %6.1f ns\n", name, best);    \
    } while (0)

static void run(const char *name, np_mode mode) {
    int s[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, s)) exit(1);
    np_engine *e = np_engine_new(mode, NULL);
    np_set_running(e, 1);
    np_desc *d = np_open(e, s[0], NP_STREAM, NULL, NULL);
    event.events = EPOLLIN | EPOLLOUT;
    event.data.u64 = (uint64_t)1 << 32 | (uint32_t)s[0];
    np_event out[64];
    printf("%s\n", name);
    MEASURE("nothing", {
        struct epoll_event evs[256];
        __wrap_epoll_wait(0, evs, 256, 0);
        __wrap_recv(0, in, sizeof in, 0);
        __wrap_send(0, buf, 1024, 0);
    });
    double base = best;
    MEASURE("np_poll", if (np_poll(e, out, 64) != 1) exit(2));
    MEASURE("np_recv", if (np_recv(e, d, in, sizeof in) != 1024) exit(2));
    MEASURE("np_send", if (np_send(e, d, buf, 1024) != 1024) exit(2));
    MEASURE("all three", {
        np_poll(e, out, 64);
        np_recv(e, d, in, sizeof in);
        np_send(e, d, buf, 1024);
    });
    printf("  added      %6.1f ns\n", best - base);
    np_close(e, d);
    np_engine_free(e);
    close(s[0]);
    close(s[1]);
}

int main(void) {
    run("inline", NP_INLINE);
    run("auto", NP_AUTO);
    return 0;
}
