/* Close and reuse under traffic; everything at once, at random. */
#include "harness.h"

#ifdef __SANITIZE_THREAD__
#define MANY_LIVES 25 /* 20 times slower there */
#else
#define MANY_LIVES 150
#endif

static unsigned next(unsigned *s) {
    *s = *s * 1664525u + 1013904223u;
    return *s >> 8;
}

/* Each life of a number is a stream of its own pattern in both directions; a
 * byte of an old life on the new one fails the check on either side. */
TEST(no_byte_of_an_old_connection_reaches_the_new_one, 120) {
    EACH_CONFIG(c) {
        np_engine *e = engine(c);
        enum { LIVES = MANY_LIVES, SIZE = 1 << 20 };
        uint8_t *out = malloc(SIZE), *in = malloc(100000);
        unsigned rnd = 7;
        for (uint32_t life = 1; life <= LIVES; life++) {
            int fds[2];
            (life % 2 ? tcp_pair : pair)(fds); /* the numbers come back each time */
            np_desc *d = np_open(e, fds[0], NP_STREAM, "d", NULL);
            CHECK(d);
            struct reader r = {.fd = fds[1], .seed = life, .chunk = 40000};
            struct writer w = {.fd = dup(fds[1]), .seed = life + 1000, .n = SIZE, .chunk = 30000};
            reader_start(&r);
            writer_start(&w);
            fill(out, SIZE, life, 0);
            size_t queued = 0, received = 0;
            unsigned turns = 1 + next(&rnd) % 12;
            while (turns--) {
                size_t n = 1 + next(&rnd) % 150000;
                if (n > SIZE - queued) n = SIZE - queued;
                if (n) EQ(np_queue(e, d, out + queued, n, out), 0);
                queued += n;
                if (!turns && next(&rnd) % 2) break; /* close while the netpoller is just starting to send */
                np_event ev[8];
                int k = turn(e, ev, 8, 1);
                while (k-- > 0) {
                    if (ev[k].bits & NP_W) np_flush(e, d);
                }
                ssize_t got;
                while ((got = np_recv(e, d, in, 1 + next(&rnd) % 100000)) > 0) {
                    verify(in, (size_t)got, life + 1000, received);
                    received += (size_t)got;
                    if (next(&rnd) % 4 == 0) break;
                }
            }
            if (next(&rnd) % 3 == 0) {
                np_discard(e, d);
                memset(out, 0xDD, SIZE);
            }
            np_close(e, d);
            shutdown(fds[0], SHUT_RDWR);
            close(fds[0]);
            memset(out, 0xEE, SIZE); /* ours again from here on */
            while (np_done(e)) {
            }
            reader_join(&r);
            writer_join(&w);
            close(fds[1]);
            close(w.fd);
        }
        free(out);
        free(in);
        engine_end(e);
    }
}

/* ---- The randomized run ---- */

enum { CONNS = 6, WINDOW = 400000 };

struct conn {
    int fd, peer;
    np_desc *d;
    uint32_t seed;
    uint64_t put, got;      /* bytes we queued, bytes we received */
    uint64_t peer_put;      /* by the peer thread */
    uint64_t peer_got;
    int paused;
};

struct world {
    np_engine *e;
    pthread_mutex_t lock; /* the peers' fds: the main thread replaces connections */
    struct conn conn[CONNS];
    atomic_int stop;
};

static void *peers(void *arg) {
    struct world *w = arg;
    unsigned rnd = 99;
    static uint8_t buf[70000];
    while (!atomic_load(&w->stop)) {
        for (int i = 0; i < CONNS; i++) {
            pthread_mutex_lock(&w->lock);
            struct conn *c = &w->conn[i];
            size_t n = 1 + next(&rnd) % sizeof buf;
            if (next(&rnd) % 4) {
                ssize_t m = recv(c->peer, buf, n, MSG_DONTWAIT);
                if (m > 0) {
                    verify(buf, (size_t)m, c->seed, c->peer_got);
                    c->peer_got += (uint64_t)m;
                }
            }
            if (next(&rnd) % 2) {
                n = 1 + next(&rnd) % 20000;
                fill(buf, n, c->seed + 1, c->peer_put);
                ssize_t m = send(c->peer, buf, n, MSG_DONTWAIT | MSG_NOSIGNAL);
                if (m > 0) c->peer_put += (uint64_t)m;
            }
            pthread_mutex_unlock(&w->lock);
        }
        if (next(&rnd) % 8 == 0) usleep(200);
        if (next(&rnd) % 16 == 0) np_wake(w->e);
    }
    return NULL;
}

static void replace(struct world *w, struct conn *c, unsigned *rnd) {
    static uint32_t seeds;
    pthread_mutex_lock(&w->lock);
    if (c->d) {
        np_close(w->e, c->d);
        close(c->fd);
        close(c->peer);
        for (void *b; (b = np_done(w->e)) != NULL;) free(b);
    }
    int fds[2];
    (next(rnd) % 2 ? tcp_pair : pair)(fds);
    memset(c, 0, sizeof *c);
    c->fd = fds[0];
    c->peer = fds[1];
    c->seed = seeds += 2;
    c->d = np_open(w->e, c->fd, NP_STREAM, c, NULL);
    CHECK(c->d);
    np_read_ahead(w->e, c->d, 1);
    pthread_mutex_unlock(&w->lock);
}

static void *restart(void *arg) {
    struct world *w = arg;
    unsigned rnd = 3;
    while (!atomic_load(&w->stop)) {
        sleep_ms((int)(5 + next(&rnd) % 60));
        np_thread_stop(w->e);
        if (next(&rnd) % 2) sleep_ms(2);
        np_thread_start(w->e);
    }
    return NULL;
}

static void put_some(struct world *w, struct conn *c, unsigned *rnd) {
    /* Cookies are the malloc'ed buffers: returned exactly once or ASan tells. */
    size_t n = next(rnd) % 6 == 0 ? 1 + next(rnd) % 200000 : 1 + next(rnd) % 3000;
    uint8_t *b = malloc(n);
    fill(b, n, c->seed, c->put);
    ssize_t sent = next(rnd) % 2 ? np_send(w->e, c->d, b, n) : 0;
    CHECK(sent >= 0);
    if ((size_t)sent < n) {
        EQ(np_queue(w->e, c->d, b + sent, n - (size_t)sent, b), 0);
    } else {
        free(b);
    }
    c->put += n;
}

static void random_run(const struct config *cfg, int ms, int restarts) {
    struct world *w = calloc(1, sizeof *w);
    unsigned rnd = 42;
    pthread_t t, r;
    w->e = engine(cfg);
    pthread_mutex_init(&w->lock, NULL);
    for (int i = 0; i < CONNS; i++) replace(w, &w->conn[i], &rnd);
    pthread_create(&t, NULL, peers, w);
    if (restarts) pthread_create(&r, NULL, restart, w);
    static uint8_t buf[90000];
    uint64_t total = 0;
    for (int64_t end = now_ns() + ms * MS; now_ns() < end;) {
        np_event ev[8];
        int n = turn(w->e, ev, 8, (int)(next(&rnd) % 3));
        for (int i = 0; i < n; i++) {
            struct conn *c = ev[i].user;
            if (ev[i].bits & NP_W) CHECK(np_flush(w->e, c->d) >= 0);
        }
        for (int i = 0; i < CONNS; i++) {
            struct conn *c = &w->conn[i];
            if (!c->paused && np_more(c->d)) {
                ssize_t got = np_recv(w->e, c->d, buf, 1 + next(&rnd) % sizeof buf);
                if (got > 0) {
                    verify(buf, (size_t)got, c->seed + 1, c->got);
                    c->got += (uint64_t)got;
                    total += (uint64_t)got;
                } else {
                    EQ(got, -EAGAIN);
                }
            }
            if (np_pending(c->d) < WINDOW && next(&rnd) % 3 == 0) put_some(w, c, &rnd);
            unsigned what = next(&rnd) % 2000;
            if (what < 4) replace(w, c, &rnd);
            if (what >= 4 && what < 30) {
                c->paused = !c->paused;
                np_read_ahead(w->e, c->d, !c->paused);
            }
            if (what == 31 && cfg->mode == NP_AUTO) sleep_ms(25); /* a stall */
            if (cfg->offload && what >= 32 && what < 500) np_offload(w->e, (np_sender)(what % 3));
            if (cfg->offload && what == 500) np_settle(w->e);
        }
        for (void *b; (b = np_done(w->e)) != NULL;) free(b);
    }
    /* Everything that was put arrives, with no further put. */
    for (int i = 0; i < CONNS; i++) {
        struct conn *c = &w->conn[i];
        int64_t end = now_ns() + 10000 * MS;
        for (;;) {
            pthread_mutex_lock(&w->lock);
            uint64_t arrived = c->peer_got;
            pthread_mutex_unlock(&w->lock);
            if (arrived == c->put && np_pending(c->d) == 0) break; /* the netpoller accounts for it after the call */
            CHECK(now_ns() < end);
            np_event ev[8];
            int n = turn(w->e, ev, 8, 5);
            for (int k = 0; k < n; k++) {
                struct conn *o = ev[k].user;
                if (ev[k].bits & NP_W) CHECK(np_flush(w->e, o->d) >= 0);
            }
            for (void *b; (b = np_done(w->e)) != NULL;) free(b);
        }
    }
    atomic_store(&w->stop, 1);
    pthread_join(t, NULL);
    if (restarts) pthread_join(r, NULL);
    for (int i = 0; i < CONNS; i++) { /* and what the peers put */
        struct conn *c = &w->conn[i];
        int64_t end = now_ns() + 10000 * MS;
        while (c->got < c->peer_put) {
            ssize_t got = np_recv(w->e, c->d, buf, sizeof buf);
            if (got > 0) {
                verify(buf, (size_t)got, c->seed + 1, c->got);
                c->got += (uint64_t)got;
            } else {
                EQ(got, -EAGAIN);
                CHECK(now_ns() < end);
                np_event ev[8];
                turn(w->e, ev, 8, 5);
            }
        }
        EQ(c->got, c->peer_put);
        np_close(w->e, c->d);
        close(c->fd);
        close(c->peer);
    }
    for (void *b; (b = np_done(w->e)) != NULL;) free(b);
    CHECK(total > 0);
    engine_end(w->e);
    pthread_mutex_destroy(&w->lock);
    free(w);
}

TEST(everything_at_once_at_random, 120) {
    EACH_CONFIG(c) random_run(c, c->thread ? 4000 : 1500, 0);
}

TEST(everything_at_once_while_the_thread_stops_and_starts, 120) {
    static const struct config with[] = {{"auto, restarts", NP_AUTO, 1, 0, 0},
                                         {"dedicated, restarts", NP_DEDICATED, 1, 0, 0},
                                         {"auto, offloading, restarts", NP_AUTO, 1, 1, 0},
                                         {"auto, offloading one by one, restarts", NP_AUTO, 1, 1, 1}};
    for (int i = 0; i < 4; i++) {
        test_config(&with[i]);
        random_run(&with[i], 4000, 1);
    }
}
