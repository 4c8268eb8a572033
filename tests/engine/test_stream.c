/* Streams: bytes in order, none lost, none twice; bounds; ends. */
#include <sched.h>

#include <limits.h>
#include <sys/stat.h>

#include "harness.h"
#include "netpoll_internal.h"

TEST(more_says_whether_a_receive_may_find_something, 20) {
    EACH_CONFIG(c) {
        np_engine *e = engine(c);
        int a[2];
        char buf[64];
        tcp_pair(a);
        np_desc *d = np_open(e, a[0], NP_STREAM, "d", NULL);
        EQ(np_more(d), 0);
        EQ(write(a[1], "12345678", 8), 8);
        CHECK(wait_bits(e, "d", NP_R, 2000) & NP_R);
        EQ(np_more(d), 1);
        EQ(np_recv(e, d, buf, 4), 4); /* filled: there may be more */
        EQ(np_more(d), 1);
        EQ(np_recv(e, d, buf + 4, 60), 4); /* short: drained */
        CHECK(memcmp(buf, "12345678", 8) == 0);
        EQ(np_more(d), 0);
        EQ(np_recv(e, d, buf, 64), -EAGAIN);
        EQ(np_more(d), 0);
        /* With a hang-up a short read is not the end of it. */
        EQ(write(a[1], "bye", 3), 3);
        close(a[1]);
        unsigned bits = 0;
        while (!(bits & NP_HUP)) bits |= wait_bits(e, "d", NP_HUP, 2000);
        CHECK(bits & NP_R);
        EQ(np_recv(e, d, buf, 64), 3);
        int64_t end = now_ns() + 2000 * MS;
        while (!np_more(d) && now_ns() < end) wait_bits(e, "d", NP_R, 10);
        EQ(np_more(d), 1);
        EQ(np_recv(e, d, buf, 64), 0);
        EQ(np_more(d), 0);
        EQ(np_recv(e, d, buf, 64), 0);
        np_close(e, d);
        close(a[0]);
        engine_end(e);
    }
}

/* The bytes, with a descriptor beside them. */
static void send_with_fd(int sock, const char *bytes, int fd) {
    union {
        char room[CMSG_SPACE(sizeof(int))];
        struct cmsghdr align;
    } control;
    struct iovec iov = {(void *)(uintptr_t)bytes, strlen(bytes)};
    struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    memset(&control, 0, sizeof control);
    struct cmsghdr *h = CMSG_FIRSTHDR(&m);
    h->cmsg_level = SOL_SOCKET;
    h->cmsg_type = SCM_RIGHTS;
    h->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(h), &fd, sizeof fd);
    EQ(sendmsg(sock, &m, 0), (ssize_t)strlen(bytes));
}

/* Urgent data, descriptors in a Unix socket: a read stops there, and no event comes for the rest. */
TEST(a_short_read_is_all_only_without_urgent_data_or_descriptors, 20) {
    static const char *const pieces[] = {"ab", "!", "cd"};
    static const struct {
        int tcp, urgent;
        const char *all;
    } ways[] = {{1, 1, "abcd"}, {0, 1, "abcd"}, {0, 0, "ab!cd"}};
    EACH_CONFIG(c) {
        for (int way = 0; way < 3; way++) {
            np_engine *e = engine(c);
            int a[2];
            char buf[64];
            size_t got = 0;
            ways[way].tcp ? tcp_pair(a) : pair(a);
            np_desc *d = np_open(e, a[0], NP_STREAM, "d", NULL);
            EQ(np_short_is_all(d), 1);
            for (int i = 0; i < 3; i++) {
                if (ways[way].urgent) {
                    EQ(send(a[1], pieces[i], strlen(pieces[i]), i == 1 ? MSG_OOB : 0), strlen(pieces[i]));
                } else {
                    send_with_fd(a[1], pieces[i], a[1]);
                }
            }
            size_t all = strlen(ways[way].all);
            int64_t end = now_ns() + 5000 * MS;
            while (got < all && now_ns() < end) {
                (void)wait_bits(e, "d", NP_R, 20);
                while (np_more(d)) {
                    ssize_t n = np_recv(e, d, buf + got, sizeof buf - got);
                    if (n < 0) {
                        EQ(n, -EAGAIN);
                        break;
                    }
                    got += (size_t)n;
                }
            }
            EQ(got, all);
            CHECK(memcmp(buf, ways[way].all, all) == 0);
            np_close(e, d);
            close(a[0]);
            close(a[1]);
            engine_end(e);
        }
    }
    EQ(np_short_is_all(NULL), 0);
}

/* What a short read means is known of a Unix stream, too, without a second receive; not of other Unix sockets. */
TEST(a_unix_stream_is_read_once_for_a_message, 20) {
    np_engine *e = engine_of(NP_INLINE);
    int a[2];
    char buf[64];
    np_stats before, after;
    pair(a);
    np_desc *d = np_open(e, a[0], NP_STREAM, "d", NULL);
    np_get_stats(e, &before);
    for (int i = 0; i < 3; i++) {
        EQ(send(a[1], "abc", 3, 0), 3);
        CHECK(wait_bits(e, "d", NP_R, 1000) & NP_R);
        EQ(np_recv(e, d, buf, sizeof buf), 3);
        EQ(np_more(d), 0);
    }
    np_get_stats(e, &after);
    EQ(after.inline_syscalls - before.inline_syscalls, 3);
    np_close(e, d);
    close(a[0]);
    close(a[1]);
    EQ(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK, 0, a), 0);
    d = np_open(e, a[0], NP_STREAM, "d", NULL);
    EQ(np_short_is_all(d), 0);
    np_close(e, d);
    close(a[0]);
    close(a[1]);
    engine_end(e);
}

TEST(nothing_is_reported_for_a_fresh_idle_stream, 20) {
    EACH_CONFIG(c) {
        np_engine *e = engine(c);
        int a[2];
        np_event ev[4];
        pair(a);
        np_desc *d = np_open(e, a[0], NP_STREAM, "d", NULL);
        int64_t t = now_ns();
        np_park_prepare(e);
        EQ(np_park(e, ev, 4, t + 60 * MS), 0); /* the first EPOLLOUT edge does not end the park */
        CHECK(now_ns() - t >= 60 * MS);
        np_close(e, d);
        close(a[0]);
        close(a[1]);
        engine_end(e);
    }
}

/* Writes of all sizes, at once and queued, to a slow reader. */
static void send_pattern(const struct config *c, int tcp, int slow, size_t total) {
    np_engine *e = engine(c);
    int fds[2];
    (tcp ? tcp_pair : pair)(fds);
    np_desc *d = np_open(e, fds[0], NP_STREAM, "d", NULL);
    struct reader r = {.fd = fds[1], .seed = 77, .chunk = slow ? 30000 : 100000, .pause_us = slow ? 300 : 0};
    reader_start(&r);
    uint8_t *data = malloc(total);
    fill(data, total, 77, 0);
    size_t at = 0, back = 0;
    unsigned rnd = 12345;
    np_event ev[8];
    while (at < total || np_pending(d)) {
        while (at < total && np_pending(d) < (1 << 20)) {
            rnd = rnd * 1103515245u + 12345u;
            size_t n = (rnd >> 16) % 5 == 0 ? 1 + (rnd >> 8) % 300000 : 1 + (rnd >> 8) % 3000;
            if (n > total - at) n = total - at;
            ssize_t sent = 0;
            switch ((rnd >> 24) % 3) {
            case 0:
                sent = np_send(e, d, data + at, n);
                break;
            case 1: {
                struct iovec iov[3] = {{data + at, n / 3}, {data + at + n / 3, n / 3}, {data + at + n / 3 * 2, n - n / 3 * 2}};
                sent = np_sendv(e, d, iov, 3);
                break;
            }
            default:
                break; /* queue without a try */
            }
            CHECK(sent >= 0);
            if ((size_t)sent < n) EQ(queue_told(e, d, data + at + sent, n - (size_t)sent, data + at), 0);
            if ((size_t)sent == n) back++;
            at += n;
        }
        int n = turn(e, ev, 8, 5);
        for (int i = 0; i < n; i++) {
            if (ev[i].bits & NP_W) CHECK(np_flush(e, d) >= 0);
        }
        while (np_done(e)) {
        }
    }
    np_stats s;
    np_get_stats(e, &s);
    EQ(s.bytes_sent, total);
    np_close(e, d);
    shutdown(fds[0], SHUT_WR);
    reader_join(&r);
    EQ(r.got, total);
    close(fds[0]);
    close(fds[1]);
    free(data);
    engine_end(e);
}

TEST(writes_of_all_sizes_arrive_in_order_at_a_slow_reader, 120) {
    EACH_CONFIG(c) send_pattern(c, 1, 1, 6 << 20);
}

TEST(writes_of_all_sizes_arrive_in_order_at_a_fast_reader, 120) {
    EACH_CONFIG(c) {
        send_pattern(c, 1, 0, 12 << 20);
        send_pattern(c, 0, 0, 6 << 20);
    }
}

static void receive_pattern(const struct config *c, size_t bufsize, int pause, size_t total) {
    np_engine *e = engine(c);
    int fds[2];
    tcp_pair(fds);
    np_desc *d = np_open(e, fds[0], NP_STREAM, "d", NULL);
    struct writer w = {.fd = fds[1], .seed = 9, .n = total, .chunk = 50000};
    writer_start(&w);
    uint8_t *buf = malloc(bufsize);
    size_t at = 0;
    for (int ended = 0; !ended;) {
        ssize_t n = np_recv(e, d, buf, bufsize);
        if (n == -EAGAIN) {
            CHECK(wait_bits(e, "d", NP_R, 5000) & NP_R);
            continue;
        }
        CHECK(n >= 0);
        verify(buf, (size_t)n, 9, at);
        at += (size_t)n;
        ended = n == 0;
        if (pause && at / 200000 != (at - (size_t)n) / 200000) sleep_ms(1);
        if (!ended && !np_more(d)) CHECK(wait_bits(e, "d", NP_R, 5000) & NP_R);
    }
    EQ(at, total);
    np_stats s;
    np_get_stats(e, &s);
    EQ(s.bytes_received, total);
    writer_join(&w);
    np_close(e, d);
    close(fds[0]);
    close(fds[1]);
    free(buf);
    engine_end(e);
}

TEST(reads_of_all_sizes_bring_every_byte_and_the_end, 120) {
    EACH_CONFIG(c) {
        receive_pattern(c, 65536, 0, 8 << 20);
        receive_pattern(c, 1 << 20, 1, 8 << 20);
        receive_pattern(c, 777, 0, 1 << 20);
    }
}

TEST(received_data_is_bounded_and_reading_goes_on_later, 60) {
    np_engine *e = engine_of(NP_DEDICATED);
    int fds[2];
    tcp_pair(fds);
    np_desc *d = np_open(e, fds[0], NP_STREAM, "d", NULL);
    enum { TOTAL = 16 << 20 };
    struct writer w = {.fd = fds[1], .seed = 3, .n = TOTAL, .chunk = 100000};
    writer_start(&w);
    sleep_ms(300);
    np_stats s;
    np_get_stats(e, &s);
    EQ(s.bytes_received, 256 * 1024); /* full, and not a byte more */
    EQ(s.bytes_ahead, 256 * 1024);
    uint64_t polls = s.polls;
    sleep_ms(200);
    np_get_stats(e, &s);
    CHECK(s.polls - polls < 10); /* and it does not spin */
    static uint8_t buf[100000];
    size_t at = 0;
    for (;;) {
        ssize_t n = np_recv(e, d, buf, sizeof buf);
        if (n == 0) break;
        if (n == -EAGAIN) {
            CHECK(wait_bits(e, "d", NP_R, 5000) & NP_R);
            continue;
        }
        CHECK(n > 0);
        verify(buf, (size_t)n, 3, at);
        at += (size_t)n;
    }
    EQ(at, TOTAL);
    np_get_stats(e, &s);
    EQ(s.bytes_ahead, 0);
    writer_join(&w);
    np_close(e, d);
    close(fds[0]);
    close(fds[1]);
    engine_end(e);
}

TEST(bytes_sent_one_by_one_are_bounded_too, 60) {
    np_engine *e = engine_of(NP_DEDICATED);
    int fds[2];
    tcp_pair(fds);
    int on = 1;
    setsockopt(fds[1], IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    np_desc *d = np_open(e, fds[0], NP_STREAM, "d", NULL);
    enum { TOTAL = 3000, CHUNKS = 1024 };
    np_stats s;
    for (int i = 0; i < TOTAL; i++) {
        uint8_t byte = pattern(8, (uint64_t)i);
        EQ(send(fds[1], &byte, 1, 0), 1);
        do {
            np_get_stats(e, &s);
        } while (i < CHUNKS && s.bytes_received <= (uint64_t)i); /* a chunk each */
    }
    sleep_ms(20);
    np_get_stats(e, &s);
    EQ(s.bytes_received, CHUNKS);
    static uint8_t buf[TOTAL];
    size_t at = 0;
    while (at < TOTAL) {
        ssize_t n = np_recv(e, d, buf, 100);
        if (n == -EAGAIN) {
            CHECK(wait_bits(e, "d", NP_R, 5000) & NP_R);
            continue;
        }
        CHECK(n > 0);
        verify(buf, (size_t)n, 8, at);
        at += (size_t)n;
    }
    np_close(e, d);
    close(fds[0]);
    close(fds[1]);
    engine_end(e);
}

/* Paused transports hold all that the engine may: another descriptor, for which they may be waiting, is read all the same. */
TEST(what_nobody_reads_does_not_stop_the_others, 60) {
    enum { N = 300, EACH = 300 * 1024 };
    static int fds[N][2];
    static np_desc *d[N];
    static uint8_t buf[EACH];
    np_engine *e = engine_of(NP_DEDICATED);
    for (int i = 0; i < N; i++) {
        pair(fds[i]);
        d[i] = np_open(e, fds[i][0], NP_STREAM, "paused", NULL);
        CHECK(d[i]);
    }
    for (int64_t last = now_ns(); now_ns() - last < 100 * MS;) {
        for (int i = 0; i < N; i++) {
            if (send(fds[i][1], buf, sizeof buf, MSG_NOSIGNAL | MSG_DONTWAIT) > 0) {
                last = now_ns();
            }
        }
        sleep_ms(5);
    }
    np_stats s;
    np_get_stats(e, &s);
    CHECK(s.bytes_ahead >= 64 << 20);
    int other[2];
    pair(other);
    np_desc *o = np_open(e, other[0], NP_STREAM, "other", NULL);
    for (int i = 0; i < 3; i++) {
        EQ(send(other[1], "hello", 5, 0), 5);
        CHECK(wait_bits(e, "other", NP_R, 5000) & NP_R);
        EQ(np_recv(e, o, buf, sizeof buf), 5);
    }
    close(other[1]);
    CHECK(wait_bits(e, "other", NP_R, 5000) & NP_R);
    EQ(np_recv(e, o, buf, sizeof buf), 0);
    np_close(e, o);
    close(other[0]);
    for (int i = 0; i < N; i++) {
        np_close(e, d[i]);
        close(fds[i][0]);
        close(fds[i][1]);
    }
    engine_end(e);
}

TEST(received_data_is_bounded_for_the_engine, 120) {
    enum { N = 300, EACH = 300000 };
    static int fds[N][2];
    static np_desc *d[N];
    static size_t at[N];
    static uint8_t buf[65536];
    np_engine *e = engine_of(NP_DEDICATED);
    int size = 400000;
    for (int i = 0; i < N; i++) {
        pair(fds[i]);
        setsockopt(fds[i][1], SOL_SOCKET, SO_SNDBUF, &size, sizeof size);
        d[i] = np_open(e, fds[i][0], NP_STREAM, &at[i], NULL);
        CHECK(d[i]);
    }
    /* Fill until nobody takes anything any more. */
    static size_t put[N];
    np_stats s;
    uint64_t received = 0;
    for (int64_t last = now_ns(); now_ns() - last < 200 * MS;) {
        for (int i = 0; i < N; i++) {
            while (put[i] < EACH) {
                size_t n = EACH - put[i] < 20000 ? EACH - put[i] : 20000;
                fill(buf, n, (uint32_t)i, put[i]);
                ssize_t m = send(fds[i][1], buf, n, MSG_NOSIGNAL | MSG_DONTWAIT);
                if (m <= 0) break;
                put[i] += (size_t)m;
                last = now_ns();
            }
        }
        sleep_ms(5);
        np_get_stats(e, &s);
        if (s.bytes_received != received) last = now_ns();
        received = s.bytes_received;
    }
    CHECK(s.bytes_received >= 64 << 20);
    CHECK(s.bytes_received <= (64 << 20) + 256 * 1024 + (uint64_t)N * NP_LOOK);
    EQ(s.bytes_ahead, s.bytes_received);
    size_t missing = (size_t)N * EACH;
    np_event ev[64];
    while (missing) {
        for (int i = 0; i < N; i++) {
            if (put[i] < EACH) {
                size_t n = EACH - put[i] < 20000 ? EACH - put[i] : 20000;
                fill(buf, n, (uint32_t)i, put[i]);
                ssize_t m = send(fds[i][1], buf, n, MSG_NOSIGNAL | MSG_DONTWAIT);
                if (m > 0) put[i] += (size_t)m;
            }
        }
        int n = turn(e, ev, 64, 50);
        for (int k = 0; k < n; k++) {
            int i = (int)((size_t *)ev[k].user - at);
            ssize_t got;
            while ((got = np_recv(e, d[i], buf, sizeof buf)) > 0) {
                verify(buf, (size_t)got, (uint32_t)i, at[i]);
                at[i] += (size_t)got;
                missing -= (size_t)got;
            }
            EQ(got, -EAGAIN);
        }
    }
    for (int i = 0; i < N; i++) {
        np_close(e, d[i]);
        close(fds[i][0]);
        close(fds[i][1]);
    }
    engine_end(e);
}

/* None is at its own bound: only the engine's says when they may go on. */
static void starve(int stop_thread) {
    enum { N = 360, EACH = 200 * 1024 };
    static int fds[N][2];
    static np_desc *d[N];
    static size_t at[N];
    static uint8_t buf[EACH];
    np_engine *e = engine_of(NP_DEDICATED);
    for (int i = 0; i < N; i++) {
        pair(fds[i]); /* not TCP: its window would bring new events later, and hide a missing wake-up */
        int size = 1 << 20;
        setsockopt(fds[i][1], SOL_SOCKET, SO_SNDBUF, &size, sizeof size);
        d[i] = np_open(e, fds[i][0], NP_STREAM, &at[i], NULL);
        CHECK(d[i]);
        at[i] = 0;
        fill(buf, EACH, (uint32_t)i, 0);
        size_t put = 0;
        while (put < EACH) {
            ssize_t n = send(fds[i][1], buf + put, EACH - put, MSG_NOSIGNAL | MSG_DONTWAIT);
            if (n > 0) put += (size_t)n;
            else sleep_ms(1);
        }
    }
    np_stats s;
    uint64_t before;
    do { /* until it stands still */
        np_get_stats(e, &s);
        before = s.bytes_received;
        sleep_ms(100);
        np_get_stats(e, &s);
    } while (s.bytes_received != before);
    CHECK(s.bytes_received >= 64 << 20);
    CHECK(s.bytes_received < (size_t)N * EACH);
    if (stop_thread) np_thread_stop(e);
    size_t missing = (size_t)N * EACH;
    np_event ev[64];
    for (int64_t end = now_ns() + 10000 * MS; missing;) {
        CHECK(now_ns() < end);
        int n = turn(e, ev, 64, 1000);
        for (int k = 0; k < n; k++) {
            int i = (int)((size_t *)ev[k].user - at);
            ssize_t got;
            while ((got = np_recv(e, d[i], buf, sizeof buf)) > 0) {
                verify(buf, (size_t)got, (uint32_t)i, at[i]);
                at[i] += (size_t)got;
                missing -= (size_t)got;
            }
        }
    }
    for (int i = 0; i < N; i++) {
        np_close(e, d[i]);
        close(fds[i][0]);
        close(fds[i][1]);
    }
    engine_end(e);
}

TEST(descriptors_stopped_by_the_engines_bound_go_on_when_others_are_read, 60) { starve(0); }
TEST(descriptors_stopped_by_the_engines_bound_go_on_when_the_thread_stops, 60) { starve(1); }

/* Many descriptors stopped at their own bound while the engine is over half of
 * its bound: each must go on by its own room. */
TEST(a_descriptor_at_its_bound_goes_on_though_the_engine_is_rather_full, 60) {
    enum { N = 180, EACH = 600000 };
    static int fds[N][2];
    static np_desc *d[N];
    static uint8_t buf[65536];
    np_engine *e = engine_of(NP_DEDICATED);
    for (int i = 0; i < N; i++) {
        tcp_pair(fds[i]);
        d[i] = np_open(e, fds[i][0], NP_STREAM, NULL, NULL);
    }
    struct writer w[N];
    memset(buf, 1, sizeof buf);
    for (int i = 0; i < N; i++) {
        size_t put = 0;
        for (int idle = 0; put < EACH && idle < 50;) {
            ssize_t m = send(fds[i][1], buf, EACH - put < sizeof buf ? EACH - put : sizeof buf, MSG_NOSIGNAL | MSG_DONTWAIT);
            if (m > 0) {
                put += (size_t)m;
                idle = 0;
            } else {
                sleep_ms(1);
                idle++;
            }
        }
        w[i].n = put;
    }
    np_stats s;
    int64_t end = now_ns() + 10000 * MS;
    do {
        sleep_ms(10);
        np_get_stats(e, &s);
        CHECK(now_ns() < end);
    } while (s.bytes_received <= 40 << 20);
    size_t got = 0;
    while (got < w[0].n) {
        ssize_t n = np_recv(e, d[0], buf, sizeof buf);
        if (n > 0) got += (size_t)n;
        np_event ev[8];
        if (n == -EAGAIN) turn(e, ev, 8, 20);
        CHECK(now_ns() < end);
    }
    for (int i = 0; i < N; i++) {
        np_close(e, d[i]);
        close(fds[i][0]);
        close(fds[i][1]);
    }
    engine_end(e);
}

TEST(what_was_received_ahead_and_queued_is_forgotten_with_the_descriptor, 30) {
    EACH_CONFIG(c) {
        np_engine *e = engine(c);
        int fds[2];
        np_stats s;
        static uint8_t big[8 << 20];
        pair(fds);
        np_desc *d = np_open(e, fds[0], NP_STREAM, "d", NULL);
        CHECK(d);
        np_get_stats(e, &s);
        EQ(s.descriptors, 1);
        EQ(send(fds[1], big, 1000, MSG_NOSIGNAL), 1000);
        EQ(np_queue(e, d, big, sizeof big, big), 0);
        int64_t end = now_ns() + 5000 * MS;
        do {
            CHECK(now_ns() < end);
            np_get_stats(e, &s);
        } while (c->mode == NP_DEDICATED && c->thread && s.bytes_ahead < 1000);
        CHECK(s.bytes_unsent > 0 && s.bytes_unsent <= sizeof big);
        np_close(e, d);
        CHECK(np_done(e) && !np_done(e));
        np_get_stats(e, &s);
        EQ(s.descriptors, 0);
        EQ(s.bytes_ahead, 0);
        EQ(s.bytes_unsent, 0);
        close(fds[0]);
        close(fds[1]);
        engine_end(e);
    }
}

TEST(discard_forgets_the_queue_and_returns_the_cookies, 30) {
    EACH_CONFIG(c) {
        np_engine *e = engine(c);
        int fds[2];
        tcp_pair(fds);
        np_desc *d = np_open(e, fds[0], NP_STREAM, "d", NULL);
        static uint8_t big[8 << 20];
        fill(big, sizeof big, 4, 0);
        for (int round = 0; round < 3; round++) {
            size_t n = sizeof big / 8;
            for (int i = 0; i < 8; i++) EQ(queue_told(e, d, big + (size_t)i * n, n, big + i), 0);
            np_discard(e, d);
            EQ(np_pending(d), 0);
            int cookies = 0;
            while (np_done(e)) cookies++;
            EQ(cookies, 8);
            EQ(np_flush(e, d), 0);
        }
        np_close(e, d);
        CHECK(!np_done(e));
        close(fds[0]);
        close(fds[1]);
        engine_end(e);
    }
}

TEST(after_a_discard_the_stream_can_send_again, 30) {
    EACH_CONFIG(c) {
        np_engine *e = engine(c);
        int fds[2];
        pair(fds);
        np_desc *d = np_open(e, fds[0], NP_STREAM, "d", NULL);
        static uint8_t big[2 << 20];
        memset(big, 'a', sizeof big);
        EQ(queue_told(e, d, big, sizeof big, big), 0);
        sleep_ms(5);
        np_discard(e, d);
        CHECK(np_done(e));
        EQ(queue_told(e, d, "end", 3, "c"), 0);
        char buf[65536], last[3] = "";
        for (int64_t end = now_ns() + 3000 * MS; memcmp(last, "end", 3) && now_ns() < end;) {
            np_event ev[4];
            int n = turn(e, ev, 4, 2);
            for (int i = 0; i < n; i++)
                if (ev[i].bits & NP_W) np_flush(e, d);
            ssize_t got;
            while ((got = recv(fds[1], buf, sizeof buf, 0)) > 0) {
                if (got >= 3) memcpy(last, buf + got - 3, 3);
            }
        }
        CHECK(memcmp(last, "end", 3) == 0);
        np_close(e, d);
        close(fds[0]);
        close(fds[1]);
        engine_end(e);
    }
}

TEST(a_peer_reset_is_an_error_on_both_sides, 30) {
    EACH_CONFIG(c) {
        np_engine *e = engine(c);
        int fds[2];
        char buf[16];
        tcp_pair(fds);
        np_desc *d = np_open(e, fds[0], NP_STREAM, "d", NULL);
        struct linger linger = {1, 0};
        setsockopt(fds[1], SOL_SOCKET, SO_LINGER, &linger, sizeof linger);
        close(fds[1]);
        unsigned bits = 0;
        for (int64_t end = now_ns() + 3000 * MS; !(bits & NP_ERR) && now_ns() < end;) bits |= wait_bits(e, "d", NP_R, 100);
        CHECK(bits & NP_R);
        CHECK(bits & NP_HUP);
        CHECK(bits & NP_ERR);
        CHECK(bits & NP_W);
        EQ(np_recv(e, d, buf, sizeof buf), -ECONNRESET);
        EQ(np_send(e, d, "x", 1), -EPIPE);
        np_close(e, d);
        close(fds[0]);
        engine_end(e);
    }
}

/* The bytes are read first; whether there is more must not take the error away. */
TEST(a_reset_that_comes_with_data_is_no_end_of_file, 30) {
    EACH_CONFIG(c) {
        for (int tcp = 0; tcp < 2; tcp++) {
            np_engine *e = engine(c);
            int fds[2];
            char buf[64];
            (tcp ? tcp_pair : pair)(fds);
            np_desc *d = np_open(e, fds[0], NP_STREAM, "d", NULL);
            EQ(np_send(e, d, "unread", 6), 6);
            EQ(send(fds[1], "bytes", 5, 0), 5);
            close(fds[1]); /* with bytes that it hasn't read: a reset */
            ssize_t n = -EAGAIN;
            for (int64_t end = now_ns() + 3000 * MS; (n == -EAGAIN || n > 0) && now_ns() < end;) {
                (void)wait_bits(e, "d", NP_R, 100);
                do {
                    n = np_recv(e, d, buf, sizeof buf);
                } while (n > 0 && np_more(d));
            }
            EQ(n, -ECONNRESET);
            np_close(e, d);
            close(fds[0]);
            engine_end(e);
        }
    }
}

TEST(a_failed_drain_returns_the_cookies_and_the_error, 30) {
    EACH_CONFIG(c) {
        np_engine *e = engine(c);
        int fds[2];
        pair(fds);
        np_desc *d = np_open(e, fds[0], NP_STREAM, "d", NULL);
        static uint8_t big[4 << 20];
        EQ(queue_told(e, d, big, sizeof big / 2, big), 0);
        EQ(queue_told(e, d, big, sizeof big / 2, big), 0);
        for (int i = 0; i < 5; i++) {
            np_event ev[4];
            turn(e, ev, 4, 2);
        }
        CHECK(np_pending(d) > 0);
        close(fds[1]);
        ssize_t rc = 0;
        for (int64_t end = now_ns() + 3000 * MS; rc >= 0 && now_ns() < end;) {
            if (wait_bits(e, "d", NP_W, 100) & NP_W) rc = np_flush(e, d);
        }
        CHECK(rc == -EPIPE || rc == -ECONNRESET);
        EQ(np_pending(d), 0);
        EQ(np_flush(e, d), rc);
        EQ(queue_told(e, d, big, 1, "not taken"), rc);
        EQ(np_send(e, d, big, 1), rc);
        CHECK(np_done(e) && np_done(e));
        CHECK(!np_done(e));
        np_close(e, d);
        close(fds[0]);
        engine_end(e);
    }
}

TEST(a_half_closed_peer_can_still_be_written_to, 30) {
    EACH_CONFIG(c) {
        np_engine *e = engine(c);
        int fds[2];
        char buf[16];
        tcp_pair(fds);
        np_desc *d = np_open(e, fds[0], NP_STREAM, "d", NULL);
        shutdown(fds[1], SHUT_WR);
        CHECK(wait_bits(e, "d", NP_R | NP_HUP, 2000) & NP_R);
        EQ(np_recv(e, d, buf, sizeof buf), 0);
        EQ(np_send(e, d, "late", 4), 4);
        EQ(queue_told(e, d, "r", 1, "c"), 0);
        blocking(fds[1]);
        EQ(recv(fds[1], buf, 5, MSG_WAITALL), 5);
        CHECK(memcmp(buf, "later", 5) == 0);
        np_close(e, d);
        CHECK(np_done(e));
        close(fds[0]);
        close(fds[1]);
        engine_end(e);
    }
}

TEST(leaving_the_loop_can_flush_without_polling, 30) {
    EACH_CONFIG(c) {
        np_engine *e = engine(c);
        int fds[2];
        pair(fds);
        np_desc *d = np_open(e, fds[0], NP_STREAM, "d", NULL);
        static uint8_t big[1 << 20];
        fill(big, sizeof big, 6, 0);
        EQ(queue_told(e, d, big, sizeof big, big), 0);
        struct reader r = {.fd = fds[1], .seed = 6, .chunk = 65536};
        reader_start(&r);
        ssize_t left;
        while ((left = np_flush(e, d)) > 0) usleep(100);
        EQ(left, 0);
        np_close(e, d);
        shutdown(fds[0], SHUT_WR);
        reader_join(&r);
        EQ(r.got, sizeof big);
        close(fds[0]);
        close(fds[1]);
        engine_end(e);
    }
}

/* ---- np_offload ---- */

TEST(what_is_handed_over_is_sent_without_an_event_unless_told, 30) {
    struct config c = {"", NP_AUTO, 1, 1, 0};
    np_engine *e = engine(&c);
    int fds[2];
    char buf[16];
    np_stats s;
    pair(fds);
    np_desc *d = np_open(e, fds[0], NP_STREAM, "d", NULL);
    wait_bits(e, NULL, 0, 20); /* the first edge */
    EQ(np_queue(e, d, "hello", 5, "cookie"), 0);
    blocking(fds[1]);
    EQ(read(fds[1], buf, sizeof buf), 5);
    for (int64_t end = now_ns() + 2000 * MS; np_pending(d) && now_ns() < end;) sched_yield();
    EQ(np_pending(d), 0);
    EQ(np_tell(e, d), 0);
    EQ(wait_bits(e, NULL, 0, 30), 0);
    CHECK(np_done(e));
    np_get_stats(e, &s);
    EQ(s.inline_syscalls, 0);
    EQ(s.netpoller_syscalls, 1);
    EQ(s.offloading, 1);
    EQ(np_queue(e, d, "hello", 5, "cookie"), 0); /* told above, while nothing was queued */
    EQ(wait_bits(e, "d", NP_W, 2000) & NP_W, NP_W);
    EQ(np_flush(e, d), 0);
    np_close(e, d);
    close(fds[0]);
    close(fds[1]);
    engine_end(e);
}

TEST(a_worker_that_waits_looks_once_for_what_was_sent_for_it, 30) {
    struct config c = {"", NP_AUTO, 1, 1, 0};
    np_engine *e = engine(&c);
    int fds[2];
    np_event ev[4];
    pair(fds);
    np_desc *d = np_open(e, fds[0], NP_STREAM, "d", NULL);
    wait_bits(e, NULL, 0, 20); /* the first edge */
    EQ(np_queue(e, d, "hello", 5, "cookie"), 0);
    int64_t start = now_ns();
    while (!np_done(e)) { /* no event comes, and it doesn't wait for one until the deadline */
        EQ(turn(e, ev, 4, 10000), 0);
        CHECK(now_ns() - start < 5000 * MS);
    }
    EQ(turn(e, ev, 4, 200), 0);
    start = now_ns();
    EQ(turn(e, ev, 4, 200), 0); /* but it has looked now */
    CHECK(now_ns() - start >= 200 * MS);
    np_close(e, d);
    close(fds[0]);
    close(fds[1]);
    engine_end(e);
}

TEST(a_batch_leaves_at_the_end_of_the_turn_in_one_piece_for_each_stream, 30) {
    np_engine *e = engine_of(NP_AUTO);
    int fds[2];
    char buf[16];
    np_stats s;
    np_event ev[4];
    pair(fds);
    np_desc *d = np_open(e, fds[0], NP_STREAM, "d", NULL);
    wait_bits(e, NULL, 0, 20);
    for (int told = 0; told <= 1; told++) {
        EQ(np_offload(e, NP_BY_WORKER), NP_BY_WORKER);
        EQ(np_queue(e, d, "hello", 5, "cookie"), 0);
        EQ(np_queue(e, d, "you", 3, "cookie"), 0);
        EQ(np_pending(d), 8);
        EQ(recv(fds[1], buf, sizeof buf, MSG_DONTWAIT), -1);
        if (told) EQ(np_tell(e, d), 1);
        int got = np_poll(e, ev, 4);
        EQ(np_pending(d), 0);
        EQ(recv(fds[1], buf, sizeof buf, MSG_DONTWAIT), 8);
        EQ(got, told); /* close() and write_eof() wait for this event */
        CHECK(np_done(e) && np_done(e) && !np_done(e));
    }
    np_get_stats(e, &s);
    EQ(s.batching, 1);
    EQ(s.offloading, 0);
    EQ(s.inline_syscalls, 2);
    EQ(s.netpoller_syscalls, 0);
    np_close(e, d);
    close(fds[0]);
    close(fds[1]);
    engine_end(e);
}

TEST(a_large_batch_leaves_in_parts_before_the_turn_ends, 30) {
    enum { WRITES = 4 * NP_BATCH };
    np_engine *e = engine_of(NP_AUTO);
    int fds[2];
    char buf[WRITES];
    np_event ev[4];
    pair(fds);
    np_desc *d = np_open(e, fds[0], NP_STREAM, "d", NULL);
    wait_bits(e, NULL, 0, 20);
    np_switch_always(e); /* no look at the clock decides otherwise in the turn */
    EQ(np_offload(e, NP_BY_WORKER), NP_BY_WORKER);
    for (int i = 0; i < WRITES; i++) {
        CHECK(np_hand_over(e, d, 1) != NP_AT_ONCE);
        EQ(np_queue(e, d, "x", 1, NULL), 0);
    }
    EQ(recv(fds[1], buf, sizeof buf, MSG_DONTWAIT), WRITES - 1); /* all that came before the last one */
    (void)np_poll(e, ev, 4);
    wait_bits(e, NULL, 0, 20);
    EQ(recv(fds[1], buf, sizeof buf, MSG_DONTWAIT), 1);
    np_close(e, d);
    close(fds[0]);
    close(fds[1]);
    engine_end(e);
}

TEST(a_socket_that_is_full_is_reported_once_if_asked, 30) {
    for (np_sender by = NP_BY_NETPOLLER; by <= NP_BY_WORKER; by++) {
        np_engine *e = engine_of(NP_AUTO);
        int fds[2];
        static char big[8 << 20];
        pair(fds);
        np_desc *d = np_open(e, fds[0], NP_STREAM, "d", NULL);
        wait_bits(e, NULL, 0, 20);
        for (int asked = 0; asked <= 1; asked++) {
            EQ(np_offload(e, by), by);
            EQ(np_queue(e, d, big, sizeof big, "cookie"), 0);
            if (asked) np_tell_full(e, d);
            EQ(wait_bits(e, asked ? "d" : NULL, asked ? NP_W : 0, asked ? 2000 : 50) & NP_W, asked ? NP_W : 0);
            CHECK(np_pending(d) > 0);
            EQ(wait_bits(e, NULL, 0, 50), 0);
            np_discard(e, d);
            CHECK(np_done(e));
            char buf[4096];
            while (recv(fds[1], buf, sizeof buf, MSG_DONTWAIT) > 0) {
            }
            wait_bits(e, NULL, 0, 20);
        }
        np_tell_full(NULL, NULL);
        np_close(e, d);
        close(fds[0]);
        close(fds[1]);
        engine_end(e);
    }
}

TEST(a_socket_that_is_full_already_is_reported_if_asked, 30) {
    np_engine *e = engine_of(NP_AUTO);
    int fds[2];
    static char big[8 << 20];
    pair(fds);
    np_desc *d = np_open(e, fds[0], NP_STREAM, "d", NULL);
    wait_bits(e, NULL, 0, 20);
    EQ(np_offload(e, NP_BY_NETPOLLER), NP_BY_NETPOLLER);
    EQ(np_queue(e, d, big, sizeof big, "cookie"), 0);
    wait_bits(e, NULL, 0, 50); /* the netpoller has tried */
    CHECK(np_pending(d) < sizeof big);
    np_tell_full(e, d);
    CHECK(wait_bits(e, "d", NP_W, 2000) & NP_W);
    EQ(wait_bits(e, NULL, 0, 50), 0);
    np_discard(e, d);
    CHECK(np_done(e));
    np_close(e, d);
    close(fds[0]);
    close(fds[1]);
    engine_end(e);
}

TEST(a_turn_that_does_not_end_keeps_no_batch_back, 30) {
    for (np_sender by = NP_BY_NETPOLLER; by <= NP_BY_WORKER; by++) {
        np_engine *e = engine_of(NP_AUTO);
        enum { PAIRS = 40 }; /* more than a small turn */
        int fds[PAIRS][2];
        np_desc *d[PAIRS];
        np_event ev[PAIRS];
        char buf[16];
        for (int i = 0; i < PAIRS; i++) {
            pair(fds[i]);
            CHECK(d[i] = np_open(e, fds[i][0], NP_STREAM, "d", NULL));
        }
        EQ(np_offload(e, by), by);
        for (int turns = 0; turns < 3; turns++) {
            for (int i = 0; i < PAIRS; i++) EQ(np_queue(e, d[i], "a", 1, "cookie"), 0);
            if (turns < 2) {
                np_poll(e, ev, PAIRS);
            }
        }
        for (int i = 0; i < PAIRS; i++) { /* the third turn is the netpoller's: this thread does nothing for it */
            blocking(fds[i][1]);
            for (int n = 0; n < 3;) {
                ssize_t got = recv(fds[i][1], buf, sizeof buf, 0);
                CHECK(got > 0);
                n += (int)got;
            }
        }
        for (int i = 0; i < PAIRS; i++) {
            np_close(e, d[i]);
            close(fds[i][0]);
            close(fds[i][1]);
        }
        engine_end(e);
    }
}

TEST(after_settling_all_that_was_handed_over_is_sent, 60) {
    struct config c = {"", NP_AUTO, 1, 1, 0};
    np_engine *e = engine(&c);
    enum { PAIRS = 50, ROUNDS = 200 };
    int fds[PAIRS][2];
    np_desc *d[PAIRS];
    char buf[16];
    np_stats s;
    for (int i = 0; i < PAIRS; i++) {
        pair(fds[i]);
        CHECK(d[i] = np_open(e, fds[i][0], NP_STREAM, "d", NULL));
    }
    for (int round = 0; round < ROUNDS; round++) {
        np_sender by = round % 2 ? NP_BY_NETPOLLER : NP_BY_WORKER;
        EQ(np_offload(e, by), by);
        for (int i = 0; i < PAIRS; i++) {
            EQ(np_queue(e, d[i], "a", 1, "cookie"), 0);
            EQ(np_queue(e, d[i], "bc", 2, "cookie"), 0);
        }
        if (round % 4 == 3) np_thread_stop(e);
        np_settle(e);
        np_get_stats(e, &s);
        EQ(s.offloading, 0);
        for (int i = 0; i < PAIRS; i++) {
            EQ(np_pending(d[i]), 0);
            EQ(recv(fds[i][1], buf, sizeof buf, MSG_DONTWAIT), 3);
        }
        if (round % 4 == 3) {
            EQ(np_offload(e, NP_BY_NETPOLLER), NP_AT_ONCE); /* not without the thread */
            EQ(np_thread_start(e), 0);
        }
        int cookies = 0;
        while (np_done(e)) cookies++;
        EQ(cookies, 2 * PAIRS);
    }
    for (int i = 0; i < PAIRS; i++) {
        np_close(e, d[i]);
        close(fds[i][0]);
        close(fds[i][1]);
    }
    engine_end(e);
}

TEST(only_auto_hands_over, 10) {
    for (np_mode mode = NP_INLINE; mode <= NP_DEDICATED; mode++) {
        np_engine *e = engine_of(mode);
        for (np_sender by = NP_AT_ONCE; by <= NP_BY_WORKER; by++) {
            EQ(np_offload(e, by), mode == NP_AUTO ? by : NP_AT_ONCE);
        }
        np_settle(e);
        engine_end(e);
    }
    EQ(np_offload(NULL, NP_BY_NETPOLLER), NP_AT_ONCE);
    EQ(np_tell(NULL, NULL), 0);
    np_settle(NULL);
}

/* ---- np_hand_over ---- */

static void work(int64_t ns) {
    for (int64_t end = now_ns() + ns; now_ns() < end;) {
    }
}

/* Writes to two descriptors: to each of them in so many pieces, so many in a turn, with so much work for each, and so much
 * waiting at the end of each turn. */
struct load {
    np_desc *to[2];
    int pieces, per_turn;
};

static int handed_over(np_engine *e, struct load *l, int rounds, int64_t work_ns, int wait_ms) {
    int yes = 0;
    for (int i = 0; i < rounds; i++) {
        np_event ev[4];
        work(work_ns);
        yes += np_hand_over(e, l->to[i / l->pieces % 2], 100) != NP_AT_ONCE;
        if (i % l->per_turn == l->per_turn - 1) turn(e, ev, 4, wait_ms);
        while (np_done(e)) {
        }
    }
    return yes;
}

static struct load load_of(np_engine *e, int fds[2]) {
    pair(fds);
    struct load l = {.pieces = 1, .per_turn = 8};
    for (int i = 0; i < 2; i++) l.to[i] = np_open(e, fds[i], NP_STREAM, "d", NULL);
    e->crowd.at = INT64_MAX; /* whatever else runs on this machine now */
    e->trial.at = INT64_MAX; /* by the guess alone */
    return l;
}

static void unload(np_engine *e, struct load *l, const int fds[2]) {
    for (int i = 0; i < 2; i++) {
        np_close(e, l->to[i]);
        close(fds[i]);
    }
}

TEST(auto_hands_over_while_the_worker_is_busy_and_does_much_between_two_writes, 60) {
    for (np_mode mode = NP_INLINE; mode <= NP_DEDICATED; mode++) {
        np_engine *e = engine_of(mode);
        int fds[2];
        struct load l = load_of(e, fds);
        np_desc *d = l.to[0];
        int yes = handed_over(e, &l, 1000, 30 * 1000, 0);
        np_stats after;
        np_get_stats(e, &after);
        int can = mode == NP_AUTO && np_os_cpus() > 1;
        CHECK(can ? yes > 0 : yes == 0);
        if (can) { /* one long wait ends it */
            np_event ev[4];
            EQ(after.offloading, 1);
            turn(e, ev, 4, 20);
            np_get_stats(e, &after);
            EQ(after.offloading, 0);
            EQ(np_hand_over(e, d, 100), 0);
        }
        if (mode == NP_AUTO) { /* busy, with little work for each */
            EQ(handed_over(e, &l, 2000, 1000, 0), 0); /* in small turns */
            np_event ev[4];
            turn(e, ev, 4, 20);
            for (int turns = 0; turns < 20; turns++) {
                int in_turn = 0;
                for (int i = 0; i < 200; i++) {
                    in_turn += np_hand_over(e, l.to[i % 2], 100) == NP_BY_WORKER;
                }
                if (turns > 2) EQ(in_turn, 200);
                turn(e, ev, 4, 0);
            }
            turn(e, ev, 4, 20);
        }
        EQ(handed_over(e, &l, 200, 50 * 1000, 1), 0); /* mostly waiting */
        np_contended(e, 1); /* even in small turns, by the worker if need be */
        CHECK((handed_over(e, &l, 1000, 30 * 1000, 0) > 0) == (mode == NP_AUTO));
        np_get_stats(e, &after);
        EQ(after.offloading, can);
        EQ(after.batching, mode == NP_AUTO && !can);
        (void)handed_over(e, &l, 1000, 1000, 0);
        EQ(handed_over(e, &l, 300, 1000, 0), 0);
        e->crowd.until = now_ns() + 60 * 1000 * MS;
        CHECK((handed_over(e, &l, 1000, 30 * 1000, 0) > 0) == (mode == NP_AUTO));
        np_get_stats(e, &after);
        EQ(after.batching, mode == NP_AUTO);
        e->crowd.until = 0;
        np_contended(e, 0); /* in small turns, at once */
        (void)handed_over(e, &l, (NP_AGREE + 1) * NP_WINDOW, 1000, 0);
        EQ(handed_over(e, &l, 300, 1000, 0), 0);
        CHECK((handed_over(e, &l, 1000, 30 * 1000, 0) > 0) == can);
        unload(e, &l, fds);
        EQ(np_hand_over(e, NULL, 100), 0);
        engine_end(e);
    }
    EQ(np_hand_over(NULL, NULL, 0), 0);
    np_contended(NULL, 1);
    np_send_left(NULL);
}

TEST(a_message_in_pieces_counts_as_one_and_a_turn_has_to_last, 60) {
    np_engine *e = engine_of(NP_AUTO);
    int fds[2], can = np_os_cpus() > 1;
    np_event ev[4];
    struct load l = load_of(e, fds);
    l.pieces = 4;
    l.per_turn = 64;
    CHECK((handed_over(e, &l, 4000, 4000, 0) > 0) == can); /* 16 us for each message */
    turn(e, ev, 4, 20);
    l.pieces = 1000; /* one message in a turn, or in a window */
    l.per_turn = 1000;
    CHECK((handed_over(e, &l, 4000, 4000, 0) > 0) == can);
    turn(e, ev, 4, 20);
    for (int i = 0; i < 100; i++) turn(e, ev, 4, 0);
    l.pieces = 1;
    l.per_turn = 2;
    do { /* turns of 24 us; until the time limit: while others have the CPUs they take longer */
        (void)handed_over(e, &l, 200, 12 * 1000, 0); /* the last turns that were larger */
        EQ(np_get(&e->usual_turn), 2u);
        turn(e, ev, 4, 20);
    } while (handed_over(e, &l, 2000, 12 * 1000, 0) != 0);
    l.per_turn = 1; /* after the only write of a turn there is nothing to do beside it, however long it was */
    (void)handed_over(e, &l, 50, 12 * 1000, 0);
    EQ(np_get(&e->usual_turn), 1u);
    EQ(handed_over(e, &l, 1000, 200 * 1000, 0), 0);
    unload(e, &l, fds);
    engine_end(e);
}

TEST(a_netpoller_that_sends_naps_and_is_not_woken, 60) {
    enum { WRITES = 4000 };
    np_engine *e = engine_of(NP_AUTO);
    int fds[2];
    np_stats s;
    pair(fds);
    np_desc *d = np_open(e, fds[0], NP_STREAM, "d", NULL);
    EQ(np_offload(e, NP_BY_NETPOLLER), NP_BY_NETPOLLER);
    char buf[WRITES];
    for (int i = 0; i < WRITES; i++) {
        np_event ev[4];
        work(20 * 1000);
        EQ(np_queue(e, d, "x", 1, NULL), 0);
        if (i % 8 == 7) (void)np_poll(e, ev, 4);
        while (np_done(e)) {
        }
    }
    blocking(fds[1]);
    EQ(recv(fds[1], buf, WRITES, MSG_WAITALL), WRITES);
    np_get_stats(e, &s);
    CHECK(s.wakeups < WRITES / 4); /* one to begin with, and when it got no CPU for a millisecond */
    CHECK(s.netpoller_syscalls > 0);
    np_close(e, d);
    close(fds[0]);
    close(fds[1]);
    engine_end(e);
}

/* The netpoller is to send, but has no thread: as if it napped for ever. */
static np_desc *netpoller_naps(np_engine *e, int fds[2]) {
    np_event ev[4];
    pair(fds);
    np_desc *d = np_open(e, fds[0], NP_STREAM, "d", NULL);
    (void)turn(e, ev, 4, 1); /* the first edge */
    np_set_sc(&e->thread_on, 1u);
    EQ(np_offload(e, NP_BY_NETPOLLER), NP_BY_NETPOLLER);
    return d;
}

static void without_netpoller(np_engine *e, np_desc *d, const int fds[2]) {
    np_set_sc(&e->thread_on, 0u);
    np_close(e, d);
    close(fds[0]);
    close(fds[1]);
    np_engine_free(e);
}

TEST(a_worker_that_has_nothing_to_do_sends_what_the_netpoller_has_not_seen, 10) {
    np_engine *e = np_engine_new(NP_AUTO, NULL);
    int fds[2];
    np_event ev[4];
    np_stats s;
    char c;
    np_desc *d = netpoller_naps(e, fds);
    for (int parks = 0; parks <= 1; parks++) {
        EQ(np_queue(e, d, "x", 1, NULL), 0);
        (void)np_poll(e, ev, 4);
        EQ(np_pending(d), 1u);
        if (parks) { /* first it calls the netpoller */
            np_set_sc(&e->napping, 1u);
            int64_t from = now_ns();
            turn(e, ev, 4, 5000);
            CHECK(now_ns() - from < 4000 * MS);
            EQ(np_get_sc(&e->napping), 0u);
            np_get_stats(e, &s);
            EQ(s.wakeups, 1);
            EQ(np_pending(d), 1u);
            turn(e, ev, 4, 1);
            np_get_stats(e, &s);
            EQ(s.wakeups, 1);
        } else {
            np_send_left(e);
        }
        EQ(np_pending(d), 0u);
        EQ(recv(fds[1], &c, 1, MSG_DONTWAIT), 1);
    }
    EQ(np_queue(e, d, "x", 1, NULL), 0); /* it has come meanwhile: it is left to it again */
    np_count(&e->by_netpoller.syscalls, 1);
    turn(e, ev, 4, 5000);
    EQ(np_pending(d), 1u);
    turn(e, ev, 4, 1);
    EQ(np_pending(d), 0u);
    EQ(recv(fds[1], &c, 1, MSG_DONTWAIT), 1);
    without_netpoller(e, d, fds);
}

TEST(what_the_netpoller_is_to_send_is_no_event_of_the_worker, 10) {
    np_engine *e = np_engine_new(NP_AUTO, NULL);
    int fds[2];
    np_event ev[4];
    char c;
    np_desc *d = netpoller_naps(e, fds);
    EQ(np_queue(e, d, "x", 1, NULL), 0);
    static const struct {
        unsigned char writable, sending;
        unsigned told; /* with the edge that comes with what a peer sends */
    } states[] = {{1, 0, NP_R}, {1, 1, NP_R}, {0, 1, NP_R}, {0, 0, NP_R | NP_W}};
    for (size_t i = 0; i < sizeof states / sizeof *states; i++) {
        np_set(&d->writable, states[i].writable);
        d->sending = states[i].sending;
        EQ(send(fds[1], "y", 1, 0), 1);
        EQ(np_poll(e, ev, 4), 1);
        EQ(ev[0].bits, states[i].told);
        EQ(np_get(&d->writable), 1);
        d->sending = 0;
        EQ(np_recv(e, d, &c, 1), 1);
    }
    EQ(np_offload(e, NP_AT_ONCE), NP_AT_ONCE); /* it is the worker's again */
    EQ(send(fds[1], "y", 1, 0), 1);
    EQ(np_poll(e, ev, 4), 1);
    EQ(ev[0].bits, NP_R | NP_W);
    without_netpoller(e, d, fds);
}

TEST(while_the_worker_waits_for_a_cpu_it_sends_by_itself, 60) {
    int64_t ran, waited;
    EQ(np_os_run_delay(&ran, &waited), 0);
    CHECK(ran > 0 && waited >= 0);
    int64_t before = ran;
    work(20 * MS);
    EQ(np_os_run_delay(&ran, &waited), 0);
    CHECK(ran - before >= MS);

    np_engine *e = np_engine_new(NP_AUTO, NULL);
    int64_t now = now_ns();
    EQ(np_crowded(e, now), 0);
    static const struct {
        int64_t ran, waited;         /* ms since the last look */
        int other_thread, netpoller; /* another worker than then; it has sent meanwhile */
        int64_t lasts, then;         /* ns without it from now on; until the next look */
    } looks[] = {{400, 100, 0, 0, NP_CROWD_LOOK, NP_CROWD_LOOK}, {400, 100, 0, 0, NP_CROWD_LOOK, NP_CROWD_LOOK},
                 {400, 100, 0, 0, NP_CROWD_FOR, NP_CROWD_LOOK},  {85, 15, 0, 0, NP_CROWD_FOR, NP_CROWD_LOOK},
                 {950, 50, 0, 0, 0, NP_CROWD_LOOK},              {400, 100, 0, 1, 0, NP_CROWD_LOOK}, /* its own doing */
                 {400, 100, 0, 0, NP_CROWD_LOOK, NP_CROWD_LOOK}, {500, 0, 0, 0, 0, NP_CROWD_TRUST},
                 {400, 100, 0, 1, NP_CROWD_LOOK, NP_CROWD_LOOK}, {400, 100, 1, 0, 0, NP_CROWD_LOOK},
                 {400, 100, 0, 0, NP_CROWD_LOOK, NP_CROWD_LOOK}, {400, 100, 0, 0, NP_CROWD_FOR, NP_CROWD_LOOK}};
    now += NP_CROWD_LOOK;
    for (size_t i = 0; i < sizeof looks / sizeof *looks; i++) {
        (void)np_crowded(e, e->crowd.at + NP_CROWD_LOOK - 1);
        EQ(now - e->crowd.at, i ? looks[i - 1].then : NP_CROWD_LOOK); /* too early */
        EQ(np_os_run_delay(&ran, &waited), 0);
        e->crowd.ran = ran - looks[i].ran * MS;
        e->crowd.waited = waited - looks[i].waited * MS;
        e->crowd.thread += looks[i].other_thread;
        e->crowd.with_netpoller = looks[i].netpoller;
        e->crowd.until = 0;
        EQ(np_crowded(e, now), looks[i].lasts > 0);
        EQ(e->crowd.thread, np_os_thread());
        EQ(e->crowd.until, looks[i].lasts ? now + looks[i].lasts : 0);
        EQ(e->crowd.with_netpoller, 0);
        now += looks[i].then;
    }
    np_engine_free(e);

    e = engine_of(NP_AUTO);
    int fds[2];
    np_stats s;
    struct load l = load_of(e, fds);
    l.per_turn = 2 * NP_SMALL_TURN;
    e->crowd.until = now_ns() + 60 * 1000 * MS;
    (void)handed_over(e, &l, 1000, 30 * 1000, 0);
    np_get_stats(e, &s);
    EQ(s.offloading, 0);
    EQ(s.batching, 1);
    unload(e, &l, fds);
    engine_end(e);
}

struct peer {
    pthread_t thread;
    atomic_long id;
    atomic_int where, stop;
};

static void *go_about(void *arg) {
    struct peer *p = arg;
    while (!np_get_sc(&p->stop)) {
        np_set_sc(&p->where, np_os_where());
        np_set_sc(&p->id, np_os_thread());
        sched_yield();
    }
    return NULL;
}

static void peer_begin(struct peer *p) {
    *p = (struct peer){0};
    EQ(pthread_create(&p->thread, NULL, go_about, p), 0);
    while (!np_get_sc(&p->id)) sched_yield();
}

static void peer_end(struct peer *p) {
    np_set_sc(&p->stop, 1);
    EQ(pthread_join(p->thread, NULL), 0);
}

static cpu_set_t cpus_of(long thread) {
    cpu_set_t set;
    EQ(sched_getaffinity((pid_t)thread, sizeof set, &set), 0);
    return set;
}

TEST(two_threads_change_places_and_may_use_the_cpus_that_they_might, 60) {
    struct peer p;
    peer_begin(&p);
    long id = np_get_sc(&p.id);
    cpu_set_t mine = cpus_of(0), its = cpus_of(id), after, here;
    int can = CPU_COUNT(&mine) > 1;
    for (int i = 0; i < 200; i++) {
        int where = i % 2 ? np_get_sc(&p.where) : np_os_where(); /* another CPU, likely; and ours */
        EQ(np_os_change_places(id, where) == 0, can);
        after = cpus_of(0);
        CHECK(CPU_EQUAL(&after, &mine));
        after = cpus_of(id);
        CHECK(CPU_EQUAL(&after, &its));
    }
    EQ(np_os_change_places(1L << 30, -1), -ESRCH);
    int cpu = np_os_where();
    CHECK(cpu >= 0 && CPU_ISSET(cpu, &mine));
    CPU_ZERO(&here);
    CPU_SET(cpu, &here);
    EQ(sched_setaffinity(0, sizeof here, &here), 0);
    EQ(np_os_change_places(id, cpu + 1), -EINVAL); /* we may not be there */
    EQ(np_os_change_places(id, -1), -EINVAL);
    after = cpus_of(0);
    CHECK(CPU_EQUAL(&after, &here));
    EQ(sched_setaffinity(0, sizeof mine, &mine), 0);
    EQ(sched_setaffinity((pid_t)id, sizeof here, &here), 0);
    CHECK(np_os_change_places(id, cpu) < 0 || !can); /* nor can it be anywhere else */
    after = cpus_of(id);
    CHECK(CPU_EQUAL(&after, &here));
    peer_end(&p);
}

TEST(a_worker_that_waits_beside_the_netpoller_changes_places_with_it_first, 60) {
    struct peer p;
    peer_begin(&p);
    np_engine *e = np_engine_new(NP_AUTO, NULL);
    int64_t now = now_ns(), ran, waited;
    static const struct {
        int64_t waited;  /* ms, and ran the rest of 100 */
        np_sender by;
        int moves, agreed;
        int64_t then;    /* until the next look */
    } looks[] = {{50, NP_BY_NETPOLLER, 1, 0, NP_CROWD_SOON}, {50, NP_BY_NETPOLLER, 2, 0, NP_CROWD_SOON},
                 {50, NP_BY_NETPOLLER, 3, 0, NP_CROWD_SOON}, {50, NP_BY_NETPOLLER, 3, 1, NP_CROWD_LOOK},
                 {0, NP_AT_ONCE, 0, 0, NP_CROWD_LOOK},       {50, NP_AT_ONCE, 0, 1, NP_CROWD_LOOK},
                 {50, NP_BY_NETPOLLER, 1, 1, NP_CROWD_SOON}, {0, NP_BY_NETPOLLER, 0, 0, NP_CROWD_SOON},
                 {50, NP_BY_NETPOLLER, 1, 0, NP_CROWD_SOON}, {50, NP_BY_NETPOLLER, 2, 0, NP_CROWD_FOR},
                 {50, NP_BY_NETPOLLER, 1, 0, NP_CROWD_SOON}};
    np_set(&e->netpoller_id, np_get_sc(&p.id));
    EQ(np_crowded(e, now), 0);
    now += NP_CROWD_LOOK;
    int can = np_os_cpus() > 1;
    for (size_t i = 0; i < sizeof looks / sizeof *looks && can; i++) {
        np_set(&e->offload, (unsigned)looks[i].by);
        np_set(&e->netpoller_cpu, np_get_sc(&p.where));
        EQ(np_os_run_delay(&ran, &waited), 0);
        e->crowd.ran = ran - (100 - looks[i].waited) * MS;
        e->crowd.waited = waited - looks[i].waited * MS;
        e->crowd.with_netpoller = 0;
        e->crowd.until = 0;
        int64_t before = e->crowd.at, sooner = looks[i].by == NP_BY_NETPOLLER ? NP_CROWD_SOON : NP_CROWD_LOOK;
        (void)np_crowded(e, before + sooner - 1);
        EQ(e->crowd.at, before); /* too early */
        EQ(np_crowded(e, now), looks[i].agreed > 0 && looks[i].moves % NP_CROWD_MOVES == 0);
        EQ(e->crowd.moves, looks[i].moves);
        EQ(e->crowd.agreed, looks[i].agreed);
        EQ(e->crowd.at, now);
        now += looks[i].then;
    }
    np_engine_free(e);
    peer_end(&p);
}

TEST(the_netpoller_of_auto_does_not_preempt, 30) {
    for (np_mode mode = NP_AUTO; mode <= NP_DEDICATED; mode++) {
        np_engine *e = engine_of(mode);
        while (!np_get(&e->netpoller_id)) sleep_ms(1);
        for (int i = 0; i < 5000 && mode == NP_AUTO && sched_getscheduler((pid_t)np_get(&e->netpoller_id)) != SCHED_BATCH; i++) {
            sleep_ms(1);
        }
        EQ(sched_getscheduler((pid_t)np_get(&e->netpoller_id)), mode == NP_AUTO ? SCHED_BATCH : SCHED_OTHER);
        engine_end(e);
    }
}

static void put(const char *root, const char *name, const char *text) {
    char path[200];
    snprintf(path, sizeof path, "%s/%s", root, name);
    FILE *f = fopen(path, "w");
    CHECK(f);
    CHECK(fputs(text, f) >= 0);
    fclose(f);
}

TEST(the_quota_of_a_control_group_limits_the_cpus, 10) {
    char root[] = "/tmp/engine-test-XXXXXX", below[sizeof root + 8];
    CHECK(mkdtemp(root));
    EQ(np_os_quota(root), INT_MAX);
    put(root, "cpu.max", "max 100000\n");
    EQ(np_os_quota(root), INT_MAX);
    put(root, "cpu.max", "50000 100000\n");
    EQ(np_os_quota(root), 1);
    put(root, "cpu.max", "150000 100000\n");
    EQ(np_os_quota(root), 1);
    put(root, "cpu.max", "400000 100000\n");
    EQ(np_os_quota(root), 4);
    put(root, "cpu.max", "nonsense");
    EQ(np_os_quota(root), INT_MAX);
    snprintf(below, sizeof below, "%s/cpu", root);
    CHECK(mkdir(below, 0700) == 0);
    put(below, "cpu.cfs_quota_us", "-1\n");
    put(below, "cpu.cfs_period_us", "100000\n");
    EQ(np_os_quota(root), INT_MAX);
    put(below, "cpu.cfs_quota_us", "200000\n");
    EQ(np_os_quota(root), 2);
    CHECK(np_os_cpus() >= 1);
    char command[300];
    snprintf(command, sizeof command, "rm -r %s", root);
    EQ(system(command), 0);
}

/* After sendfile, which the engine doesn't see. */
TEST(what_is_queued_leaves_after_a_request_for_an_edge_was_taken_back, 20) {
    EACH_CONFIG(c) {
        np_engine *e = engine(c);
        int fds[2];
        char buf[16];
        np_event ev[8];
        tcp_pair(fds);
        np_desc *d = np_open(e, fds[0], NP_STREAM, "d", NULL);
        for (int i = 0; i < 5; i++) {
            (void)turn(e, ev, 8, 2);
        }
        np_notify_writable(e, d, 1);
        np_notify_writable(e, d, 0);
        EQ(np_queue_for_turn(e, d, "hello", 5, NULL), 0);
        ssize_t n = -1;
        for (int64_t end = now_ns() + 5000 * MS; n < 0 && now_ns() < end;) {
            (void)turn(e, ev, 8, 20);
            n = recv(fds[1], buf, sizeof buf, MSG_DONTWAIT);
        }
        EQ(n, 5);
        np_close(e, d);
        close(fds[0]);
        close(fds[1]);
        engine_end(e);
    }
}
