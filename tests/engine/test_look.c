/* test_look.c: the netpoller, while it sends for a busy worker, also looks for
 * what has come and receives it: what it takes, and what it leaves.
 */
#include "harness.h"
#include "netpoll_internal.h"

/* A stream that is read, one that is written to so that the netpoller has something to do, and the peers. */
struct busy {
    np_engine *e;
    np_desc *in, *out;
    int fds[2], sink[2];
    char taken[4096];
};

static void begin(struct busy *b) {
    np_event ev[4];
    b->e = engine_of(NP_AUTO);
    tcp_pair(b->fds);
    pair(b->sink);
    b->in = np_open(b->e, b->fds[0], NP_STREAM, "in", NULL);
    b->out = np_open(b->e, b->sink[0], NP_STREAM, "out", NULL);
    np_read_ahead(b->e, b->in, 1);
    (void)turn(b->e, ev, 4, 1); /* the first edges */
    EQ(np_offload(b->e, NP_BY_NETPOLLER), NP_BY_NETPOLLER);
}

static void end(struct busy *b) {
    np_close(b->e, b->in);
    np_close(b->e, b->out);
    close(b->fds[0]);
    close(b->fds[1]);
    close(b->sink[0]);
    close(b->sink[1]);
    engine_end(b->e);
}

static void write_one(struct busy *b) {
    while (recv(b->sink[1], b->taken, sizeof b->taken, 0) > 0) {
    }
    EQ(np_queue(b->e, b->out, "x", 1, NULL), 0);
    while (np_done(b->e)) {
    }
}

/* The worker writes, and makes no turn, until the netpoller has looked twice: the second look began after this did.  0: it
 * got no CPU for so long that the worker counts as stalled. */
static int looked(struct busy *b) {
    unsigned from = np_get(&b->e->looks);
    np_stats s;
    np_get_stats(b->e, &s);
    uint64_t stalls = s.stalls;
    for (int64_t until = now_ns() + 5000 * MS; np_get(&b->e->looks) - from < 2;) {
        write_one(b);
        usleep(50);
        np_get_stats(b->e, &s);
        if (s.stalls != stalls) {
            np_event ev[4];
            (void)np_poll(b->e, ev, 4);
            return 0;
        }
        CHECK(now_ns() < until);
    }
    return 1;
}

static unsigned bits_of(struct busy *b, const void *user) {
    np_event ev[4];
    unsigned bits = 0;
    for (int i = 0, n = np_poll(b->e, ev, 4); i < n; i++) {
        if (ev[i].user == user) bits |= ev[i].bits;
    }
    return bits;
}

static void take(struct busy *b, size_t n, uint32_t seed) {
    static uint8_t buf[4096];
    size_t at = 0;
    for (int64_t until = now_ns() + 5000 * MS; at < n;) {
        ssize_t got = np_recv(b->e, b->in, buf, sizeof buf);
        if (got == -EAGAIN) {
            (void)bits_of(b, "in");
            CHECK(now_ns() < until);
            continue;
        }
        CHECK(got > 0);
        verify(buf, (size_t)got, seed, at);
        at += (size_t)got;
    }
    EQ(at, n);
}

/* Sends n bytes; whether the netpoller has looked at them, rather than taken over. */
static int send_and_look(struct busy *b, size_t n, uint32_t seed) {
    static uint8_t bytes[100000];
    fill(bytes, n, seed, 0);
    EQ(send(b->fds[1], bytes, n, 0), n);
    if (looked(b)) return 1;
    take(b, n, seed);
    (void)bits_of(b, "in");
    return 0;
}

/* Rounds until one was not disturbed. */
#define ROUNDS(b, n, seed)                  \
    int rounds = 0;                         \
    while (!send_and_look(b, n, seed)) {    \
        CHECK(++rounds < 200);              \
    }

TEST(what_comes_while_the_netpoller_sends_is_received_by_it, 60) {
    struct busy b;
    np_stats before, s;
    begin(&b);
    ROUNDS(&b, 1000, 1);
    np_get_stats(b.e, &before);
    EQ(before.bytes_ahead, 1000);
    CHECK(np_more(b.in));
    CHECK(bits_of(&b, "in") & NP_R);
    take(&b, 1000, 1);
    np_get_stats(b.e, &s);
    EQ(s.inline_syscalls, before.inline_syscalls);
    EQ(s.bytes_ahead, 0);
    CHECK(!np_more(b.in)); /* it has emptied the socket, and what comes later is an event */
    EQ(send(b.fds[1], "y", 1, 0), 1);
    CHECK(wait_bits(b.e, "in", NP_R, 5000) & NP_R);
    end(&b);
}

TEST(large_pieces_are_left_to_the_worker, 60) {
    struct busy b;
    np_stats s;
    begin(&b);
    ROUNDS(&b, 100000, 2);
    np_get_stats(b.e, &s);
    EQ(s.bytes_ahead, NP_LOOK);
    CHECK(bits_of(&b, "in") & NP_R);
    take(&b, NP_LOOK, 2);
    CHECK(np_more(b.in));
    EQ(np_get(&b.e->in_total), 0);
    /* The next ones it doesn't touch. */
    EQ(send(b.fds[1], "y", 1, 0), 1);
    if (looked(&b)) {
        np_get_stats(b.e, &s);
        EQ(s.bytes_ahead, 0);
    }
    end(&b);
}

TEST(what_may_not_be_read_ahead_is_left_to_the_worker, 60) {
    struct busy b;
    np_stats s;
    char c;
    begin(&b);
    np_read_ahead(b.e, b.in, 0);
    ROUNDS(&b, 10, 3);
    np_get_stats(b.e, &s);
    EQ(s.bytes_ahead, 0);
    EQ(recv(b.fds[0], &c, 1, MSG_PEEK), 1);
    CHECK(bits_of(&b, "in") & NP_R);
    CHECK(np_more(b.in));
    take(&b, 10, 3);
    end(&b);
}

TEST(the_end_is_left_to_the_worker, 60) {
    struct busy b;
    begin(&b);
    EQ(shutdown(b.fds[1], SHUT_WR), 0);
    (void)looked(&b);
    unsigned bits = bits_of(&b, "in");
    CHECK(bits & NP_R);
    CHECK(bits & NP_HUP);
    CHECK(np_more(b.in));
    char c;
    EQ(np_recv(b.e, b.in, &c, 1), 0);
    CHECK(!np_more(b.in));
    end(&b);
}

/* A listener, or what add_reader looks at, is told to the worker by the worker's own poll, which it may not put off for ever. */
TEST(a_look_leaves_what_is_level_triggered_and_the_worker_finds_it, 60) {
    struct busy b;
    int pipe_fds[2];
    np_event ev[4];
    begin(&b);
    EQ(pipe(pipe_fds), 0);
    np_desc *level = np_open(b.e, pipe_fds[0], NP_LEVEL, "level", NULL);
    EQ(np_arm(b.e, level, NP_R), 0);
    EQ(write(pipe_fds[1], "x", 1), 1);
    (void)looked(&b);
    CHECK(bits_of(&b, "level") & NP_R); /* nothing else was there, so the worker has looked */
    int found = 0;
    for (int64_t until = now_ns() + 5000 * MS; !found;) {
        CHECK(now_ns() < until);
        EQ(send(b.fds[1], "y", 1, 0), 1);
        (void)looked(&b);
        int n = np_poll(b.e, ev, 4);
        for (int i = 0; i < n; i++) found |= !strcmp(ev[i].user, "level");
        char c[8];
        while (np_recv(b.e, b.in, c, sizeof c) > 0) {
        }
    }
    np_close(b.e, level);
    close(pipe_fds[0]);
    close(pipe_fds[1]);
    end(&b);
}

/* More streams than the worker takes events in a turn, and each has something again before the next one. */
TEST(what_is_level_triggered_is_found_beside_more_than_a_turn_can_take, 60) {
    enum { STREAMS = 12, EVENTS = 4 };
    struct busy b;
    int pairs[STREAMS][2], pipe_fds[2];
    np_desc *streams[STREAMS];
    np_event ev[EVENTS];
    begin(&b);
    for (int i = 0; i < STREAMS; i++) {
        tcp_pair(pairs[i]);
        streams[i] = np_open(b.e, pairs[i][0], NP_STREAM, "stream", NULL);
        np_read_ahead(b.e, streams[i], 1);
    }
    EQ(pipe(pipe_fds), 0);
    np_desc *level = np_open(b.e, pipe_fds[0], NP_LEVEL, "level", NULL);
    EQ(np_arm(b.e, level, NP_R), 0);
    EQ(write(pipe_fds[1], "x", 1), 1);
    int found = 0;
    for (int64_t until = now_ns() + 5000 * MS; !found;) {
        CHECK(now_ns() < until);
        for (int i = 0; i < STREAMS; i++) EQ(send(pairs[i][1], "y", 1, 0), 1);
        (void)looked(&b);
        for (int i = 0, n = np_poll(b.e, ev, EVENTS); i < n; i++) {
            char c[8];
            found |= !strcmp(ev[i].user, "level");
            if (!strcmp(ev[i].user, "stream")) (void)np_recv(b.e, ev[i].desc, c, sizeof c);
        }
    }
    for (int i = 0; i < STREAMS; i++) {
        np_close(b.e, streams[i]);
        close(pairs[i][0]);
        close(pairs[i][1]);
    }
    np_close(b.e, level);
    close(pipe_fds[0]);
    close(pipe_fds[1]);
    end(&b);
}

TEST(after_settling_nothing_more_is_received, 60) {
    struct busy b;
    begin(&b);
    for (int i = 0; i < 300; i++) {
        np_stats s;
        char c[8];
        EQ(np_offload(b.e, NP_BY_NETPOLLER), NP_BY_NETPOLLER);
        write_one(&b);
        np_settle(b.e);
        np_get_stats(b.e, &s);
        uint64_t ahead = s.bytes_ahead, stalls = s.stalls;
        EQ(send(b.fds[1], "y", 1, 0), 1);
        usleep(100);
        np_get_stats(b.e, &s);
        CHECK(s.bytes_ahead == ahead || s.stalls > stalls || s.poller == NP_POLLER_NETPOLLER);
        CHECK(wait_bits(b.e, "in", NP_R, 5000) & NP_R);
        while (np_recv(b.e, b.in, c, sizeof c) > 0) {
        }
    }
    end(&b);
}

static void *answer_each(void *arg) {
    int fd = *(int *)arg;
    char c;
    while (recv(fd, &c, 1, 0) == 1 && send(fd, &c, 1, MSG_NOSIGNAL) == 1) {
    }
    return NULL;
}

TEST(a_worker_that_parks_while_the_netpoller_looks_gets_its_events, 60) {
    struct busy b;
    pthread_t peer;
    np_event ev[4];
    begin(&b);
    blocking(b.fds[1]);
    EQ(pthread_create(&peer, NULL, answer_each, &b.fds[1]), 0);
    for (int i = 0; i < 5000; i++) {
        char c = 0;
        EQ(np_queue(b.e, b.in, "q", 1, NULL), 0);
        write_one(&b);
        for (volatile int spin = 0; spin < i % 64 * 200; spin++) {
        }
        for (int64_t until = now_ns() + 5000 * MS; np_recv(b.e, b.in, &c, 1) != 1;) {
            CHECK(now_ns() < until);
            (void)turn(b.e, ev, 4, 5000);
        }
        EQ(c, 'q');
    }
    EQ(shutdown(b.fds[0], SHUT_RDWR), 0);
    pthread_join(peer, NULL);
    end(&b);
}
