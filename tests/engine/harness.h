/* harness.h: the engine's tests: registration, time limits, and the few helpers
 * that all of them need.  A test that fails or hangs ends the run and says its
 * name. */
#ifndef HARNESS_H
#define HARNESS_H

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "netpoll.h"

#define MS 1000000LL

/* ---- Registration ---- */

typedef void (*test_fn)(void);
void test_register(const char *name, test_fn fn, int limit_s);

/* TEST(name, limit): a statement about behaviour. */
#define TEST(name, limit_s)                                                                              \
    static void name(void);                                                                              \
    __attribute__((constructor)) static void register_##name(void) { test_register(#name, name, limit_s); } \
    static void name(void)

void test_fail(const char *file, int line, const char *fmt, ...) __attribute__((noreturn, format(printf, 3, 4)));

#define CHECK(cond) ((cond) ? (void)0 : test_fail(__FILE__, __LINE__, "%s", #cond))
#define EQ(a, b)                                                                                   \
    do {                                                                                           \
        long long a_ = (long long)(a), b_ = (long long)(b);                                        \
        if (a_ != b_) test_fail(__FILE__, __LINE__, "%s == %s: %lld, %lld", #a, #b, a_, b_);       \
    } while (0)

/* ---- Configurations: mode x thread ---- */

struct config {
    const char *name;
    np_mode mode;
    int thread;
    int offload;
    int one_by_one; /* the netpoller's sends, as with a kernel that has no io_uring */
};
extern const struct config configs[];
#define EACH_CONFIG(c) for (const struct config *c = configs; test_config(c); c++)
int test_config(const struct config *c); /* notes it for the failure message; 0 at the end */

np_engine *engine(const struct config *c); /* new, thread started if asked, set running */
np_engine *engine_of(np_mode mode);        /* with thread */
void engine_end(np_engine *e);

/* ---- Helpers ---- */

/* np_queue whose progress comes as NP_W in each configuration. */
int queue_told(np_engine *e, np_desc *d, const void *buf, size_t size, void *cookie);

int64_t now_ns(void);
void sleep_ms(int ms);
void pair(int fds[2]);     /* AF_UNIX, both non-blocking */
void tcp_pair(int fds[2]); /* loopback, both non-blocking */
int listener(struct sockaddr_in *addr);
void blocking(int fd);

/* The byte of a stream at an offset: no two streams agree anywhere for long. */
static inline uint8_t pattern(uint32_t seed, uint64_t at) {
    uint64_t x = (at + 1) * 0x9E3779B97F4A7C15ull ^ (uint64_t)seed * 0xC2B2AE3D27D4EB4Full;
    return (uint8_t)(x >> 32);
}
void fill(uint8_t *buf, size_t n, uint32_t seed, uint64_t at);
void verify(const uint8_t *buf, size_t n, uint32_t seed, uint64_t at);

/* One wait of the worker: the bits reported for `user` within the time, OR-ed;
 * returns as soon as all of `want` are there. */
unsigned wait_bits(np_engine *e, void *user, unsigned want, int ms);
/* One turn of a worker that has nothing else to do: parks up to ms. */
int turn(np_engine *e, np_event *out, int max, int ms);

/* A peer thread that reads fd to its end, slowly if pause_us, and verifies. */
struct reader {
    pthread_t thread;
    int fd;
    uint32_t seed;
    size_t chunk;
    int pause_us;
    atomic_size_t got;
};
void reader_start(struct reader *r);
void reader_join(struct reader *r);

/* A peer thread that writes n bytes of the pattern, then shuts down. */
struct writer {
    pthread_t thread;
    int fd;
    uint32_t seed;
    size_t n, chunk;
    int pause_us;
};
void writer_start(struct writer *w);
void writer_join(struct writer *w);

int tid_of(const char *name);                   /* of a thread of this process; -1 */
long voluntary_switches(int tid);

#endif
