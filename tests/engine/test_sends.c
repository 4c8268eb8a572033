/* test_sends.c: several sends in one system call, where the kernel has them, and one by one where it doesn't. */
#include <dirent.h>

#include "harness.h"
#include "netpoll_internal.h"
#include "np_sends.h"

static struct np_sends *sends_or_note(void) {
    struct np_sends *s = np_sends_new();
    if (!s) printf("   (this kernel has no io_uring for us: errno %d)\n", errno);
    return s;
}

static int open_fds(void) {
    int count = 0;
    DIR *dir = opendir("/proc/self/fd");
    CHECK(dir);
    while (readdir(dir)) count++;
    closedir(dir);
    return count;
}

static void fill_up(int fd) {
    char some[4096] = {0};
    while (send(fd, some, sizeof some, MSG_DONTWAIT | MSG_NOSIGNAL) > 0) {
    }
    while (send(fd, some, 1, MSG_DONTWAIT | MSG_NOSIGNAL) > 0) {
    }
}

TEST(of_several_sends_each_has_its_own_result, 30) {
    int before = open_fds();
    struct np_sends *s = sends_or_note();
    if (!s) return;
    EQ(open_fds(), before);
    enum { ROUNDS = 100 };
    static uint8_t large[1 << 20], got[1 << 20];
    fill(large, sizeof large, 7, 0);
    for (int round = 0; round < ROUNDS; round++) {
        int count = round % NP_SENDS_MAX + 1, fds[NP_SENDS_MAX][2];
        ssize_t results[NP_SENDS_MAX];
        char text[NP_SENDS_MAX][16];
        for (int i = 0; i < count; i++) {
            pair(fds[i]);
            size_t size = (size_t)snprintf(text[i], sizeof text[i], "%d of %d", i, round);
            const void *buf = text[i];
            if (i % 4 == 1) fill_up(fds[i][0]);
            if (i % 4 == 2) close(fds[i][1]);
            if (i % 4 == 3) buf = large, size = sizeof large;
            if (i % 8 == 4) memcpy(np_sends_room(s), text[i], size), buf = np_sends_room(s);
            np_sends_add(s, i % 8 == 6 ? -1 : fds[i][0], buf, size);
        }
        EQ(np_sends_run(s, results), 1);
        for (int i = 0; i < count; i++) {
            if (i % 4 == 1) EQ(results[i], -EAGAIN);
            if (i % 4 == 2) EQ(results[i], i % 8 == 6 ? -EBADF : -EPIPE);
            if (i % 4 == 3) {
                CHECK(0 < results[i] && results[i] < (ssize_t)sizeof large); /* what the socket takes */
                for (ssize_t n = 0; n < results[i];) {
                    ssize_t more = recv(fds[i][1], got + n, sizeof got - (size_t)n, 0);
                    CHECK(more > 0);
                    n += more;
                }
                CHECK(memcmp(got, large, (size_t)results[i]) == 0);
            }
            if (i % 4 == 0) {
                EQ(results[i], strlen(text[i]));
                EQ(recv(fds[i][1], got, sizeof got, 0), results[i]);
                CHECK(memcmp(got, text[i], (size_t)results[i]) == 0);
            }
            close(fds[i][0]);
            if (i % 4 != 2) close(fds[i][1]);
        }
    }
    np_sends_free(s);
}

/* Pieces of any size to many streams: each gets its own, whole and in order, though its socket is full again and again. */
static void send_to_many(int one_by_one) {
    enum { STREAMS = 40, ROUNDS = 150, MOST = 100 * 1000 };
    np_engine *e = engine(&(struct config){"", NP_AUTO, 1, 0, one_by_one});
    static uint8_t data[STREAMS][MOST];
    struct reader readers[STREAMS];
    int fds[STREAMS][2], small = 2048;
    np_desc *d[STREAMS];
    uint64_t written[STREAMS] = {0};
    unsigned random = 1;
    for (int i = 0; i < STREAMS; i++) {
        if (i % 2) tcp_pair(fds[i]);
        else pair(fds[i]);
        if (i % 5 == 0) (void)setsockopt(fds[i][0], SOL_SOCKET, SO_SNDBUF, &small, sizeof small);
        blocking(fds[i][1]);
        CHECK(d[i] = np_open(e, fds[i][0], NP_STREAM, "d", NULL));
        readers[i] = (struct reader){.fd = fds[i][1], .seed = (uint32_t)i, .chunk = 65536, .pause_us = i % 7 == 0 ? 200 : 0};
        reader_start(&readers[i]);
    }
    for (int round = 0; round < ROUNDS; round++) {
        np_event ev[64];
        (void)np_offload(e, NP_BY_NETPOLLER);
        for (int i = 0; i < STREAMS; i++) {
            random = random * 1103515245u + 12345u;
            size_t size = (random >> 16) % ((random >> 8) % 16 ? 300 : MOST) + 1, first = size / 3;
            if (np_pending(d[i])) continue; /* its buffer is in use */
            fill(data[i], size, (uint32_t)i, written[i]);
            written[i] += size;
            if (first) EQ(np_queue(e, d[i], data[i], first, NULL), 0);
            EQ(np_queue(e, d[i], data[i] + first, size - first, NULL), 0);
        }
        (void)turn(e, ev, 64, 1);
        while (np_done(e)) {
        }
    }
    for (int i = 0; i < STREAMS; i++) {
        while (np_flush(e, d[i]) > 0) {
            np_event ev[64];
            (void)turn(e, ev, 64, 5);
        }
        EQ(np_send_error(d[i]), 0);
        np_close(e, d[i]);
        shutdown(fds[i][0], SHUT_WR);
        reader_join(&readers[i]);
        EQ(atomic_load(&readers[i].got), written[i]);
        close(fds[i][0]);
        close(fds[i][1]);
    }
    np_stats s;
    np_get_stats(e, &s);
    CHECK(s.netpoller_syscalls > 0);
    engine_end(e);
}

TEST(what_many_streams_are_to_send_leaves_together_each_whole_and_in_order, 120) { send_to_many(0); }
TEST(without_such_a_kernel_it_leaves_one_by_one, 120) { send_to_many(1); }

TEST(one_failure_among_several_sends_is_that_streams_alone, 30) {
    enum { STREAMS = 20, GONE = 7 };
    np_engine *e = engine_of(NP_AUTO);
    int fds[STREAMS][2];
    np_desc *d[STREAMS];
    char got[16];
    for (int i = 0; i < STREAMS; i++) {
        pair(fds[i]);
        CHECK(d[i] = np_open(e, fds[i][0], NP_STREAM, fds[i], NULL));
    }
    np_event ev[64];
    (void)turn(e, ev, 64, 0); /* the first events: all are writable */
    close(fds[GONE][1]);
    EQ(np_offload(e, NP_BY_NETPOLLER), NP_BY_NETPOLLER);
    for (int i = 0; i < STREAMS; i++) EQ(np_queue(e, d[i], "answer", 6, "cookie"), 0);
    CHECK(wait_bits(e, fds[GONE], NP_ERR, 5000) & NP_ERR);
    for (int i = 0; i < STREAMS; i++) {
        for (int64_t until = now_ns() + 5000 * MS; np_pending(d[i]) && now_ns() < until;) (void)turn(e, ev, 64, 1);
        EQ(np_send_error(d[i]), i == GONE ? -EPIPE : 0);
        EQ(recv(fds[i][1], got, sizeof got, MSG_DONTWAIT), i == GONE ? -1 : 6);
    }
    int cookies = 0;
    while (np_done(e)) cookies++;
    EQ(cookies, STREAMS);
    for (int i = 0; i < STREAMS; i++) {
        np_close(e, d[i]);
        close(fds[i][0]);
        if (i != GONE) close(fds[i][1]);
    }
    engine_end(e);
}
