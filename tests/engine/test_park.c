/* The worker's waiting, and the netpoller's takeover of a stalled worker. */
#include "harness.h"
#include "netpoll_internal.h"

/* ---- Waking ---- */

struct waker {
    np_engine *e;
    int ms;
};

static void *wake_later(void *arg) {
    struct waker *w = arg;
    sleep_ms(w->ms);
    np_wake(w->e);
    return NULL;
}

TEST(a_wake_is_never_missed_in_any_state, 30) {
    EACH_CONFIG(c) {
        np_engine *e = engine(c);
        np_event ev[4];
        struct waker w = {e, 50};
        pthread_t t;
        /* RUNNING: sticky, one park returns at once, the next one sleeps. */
        np_wake(e);
        np_park_prepare(e);
        EQ(np_park(e, ev, 4, -1), 0);
        int64_t start = now_ns();
        np_park_prepare(e);
        EQ(np_park(e, ev, 4, start + 30 * MS), 0);
        CHECK(now_ns() - start >= 30 * MS);
        /* PREPARED. */
        np_park_prepare(e);
        np_wake(e);
        EQ(np_park(e, ev, 4, -1), 0);
        /* Asleep, in the OS facility or on the futex. */
        for (int i = 0; i < 3; i++) {
            pthread_create(&t, NULL, wake_later, &w);
            start = now_ns();
            np_park_prepare(e);
            EQ(np_park(e, ev, 4, -1), 0);
            CHECK(now_ns() - start >= 40 * MS);
            pthread_join(t, NULL);
        }
        /* Cancelled: nothing is left behind but what was asked for. */
        np_park_prepare(e);
        np_park_cancel(e);
        np_stats s;
        np_get_stats(e, &s);
        CHECK(s.wakeups == 3);
        engine_end(e);
    }
}

static atomic_int hammering;

static void *hammer(void *arg) {
    while (atomic_load(&hammering)) {
        np_wake(arg);
        if (rand() % 4 == 0) sched_yield();
    }
    return NULL;
}

TEST(wakes_from_other_threads_while_parking_again_and_again, 30) {
    EACH_CONFIG(c) {
        np_engine *e = engine(c);
        np_event ev[4];
        pthread_t t;
        atomic_store(&hammering, 1);
        pthread_create(&t, NULL, hammer, e);
        for (int i = 0; i < 20000; i++) {
            np_park_prepare(e);
            EQ(np_park(e, ev, 4, -1), 0); /* a missed wake-up hangs here */
        }
        atomic_store(&hammering, 0);
        pthread_join(t, NULL);
        engine_end(e);
    }
}

/* One wake for each item, as call_soon_threadsafe does. */
static atomic_int inbox;
static void *post_items(void *arg) {
    for (int i = 0; i < 5000; i++) {
        atomic_fetch_add(&inbox, 1);
        np_wake(arg);
        while (atomic_load(&inbox)) sched_yield();
    }
    return NULL;
}

TEST(each_item_posted_before_a_wake_is_seen, 60) {
    EACH_CONFIG(c) {
        np_engine *e = engine(c);
        np_event ev[4];
        pthread_t t;
        atomic_store(&inbox, 0);
        pthread_create(&t, NULL, post_items, e);
        for (int seen = 0; seen < 5000;) {
            np_park_prepare(e);
            if (atomic_load(&inbox)) {
                np_park_cancel(e);
            } else {
                np_park(e, ev, 4, -1);
            }
            if (atomic_load(&inbox)) {
                seen++;
                atomic_fetch_sub(&inbox, 1);
            }
        }
        pthread_join(t, NULL);
        engine_end(e);
    }
}

struct answering {
    np_engine *e;
    atomic_uint asked, ended;
};

/* Calls the worker some microseconds after it asks. */
static void *answer(void *arg) {
    struct answering *a = arg;
    for (unsigned answered = 0; !atomic_load(&a->ended);) {
        if (atomic_load(&a->asked) == answered) {
            sched_yield();
            continue;
        }
        answered++;
        for (int64_t end = now_ns() + 10 * 1000; now_ns() < end;) {
        }
        np_wake(a->e);
    }
    return NULL;
}

static void ask(struct answering *a, int times) {
    np_event ev[4];
    for (int i = 0; i < times; i++) {
        np_park_prepare(a->e);
        atomic_fetch_add(&a->asked, 1);
        EQ(np_park(a->e, ev, 4, now_ns() + 5000 * MS), 0);
    }
}

TEST(calls_that_come_soon_need_no_wake_up, 180) {
    EACH_CONFIG(c) {
        if (np_os_cpus() == 1) continue;
        np_engine *e = engine(c);
        struct answering a = {.e = e};
        pthread_t t;
        np_stats before, after;
        pthread_create(&t, NULL, answer, &a);
        do { /* until the time limit: while others have the CPUs the answer takes longer */
            np_get_stats(e, &before);
            ask(&a, 50);
            np_get_stats(e, &after);
        } while (after.wakeups - before.wakeups >= 10);
        /* Events and the deadline are seen all the same. */
        int fds[2];
        np_event ev[4];
        pair(fds);
        np_desc *d = np_open(e, fds[0], NP_STREAM, "d", NULL);
        wait_bits(e, NULL, 0, 20); /* the first edge */
        for (int i = 0; i < 200; i++) {
            char byte;
            ask(&a, 8);
            int64_t start = now_ns();
            np_park_prepare(e);
            EQ(np_park(e, ev, 4, start + 50 * 1000), 0);
            CHECK(now_ns() - start >= 50 * 1000);
            ask(&a, 8);
            EQ(send(fds[1], "x", 1, 0), 1);
            CHECK(wait_bits(e, "d", NP_R, 5000) & NP_R);
            while (np_recv(e, d, &byte, 1) > 0) {
            }
        }
        atomic_store(&a.ended, 1);
        pthread_join(t, NULL);
        np_close(e, d);
        close(fds[0]);
        close(fds[1]);
        engine_end(e);
    }
}

/* One wait, with nothing, or with a byte that is there already; whether it looked around first. */
static int looks(np_engine *e, np_desc *d, int peer, int answered, int64_t deadline_ns) {
    np_event ev[4];
    if (e->found) {
        e->unlooked = 1; /* to be seen */
    }
    if (answered) {
        EQ(send(peer, "x", 1, 0), 1);
    }
    np_park_prepare(e);
    EQ(np_park(e, ev, 4, deadline_ns), answered);
    char byte;
    while (np_recv(e, d, &byte, 1) > 0) {
    }
    return e->unlooked == 0;
}

TEST(a_moment_is_looked_for_what_came_soon_the_last_times, 60) {
    np_engine *e = np_engine_new(NP_INLINE, NULL);
    int fds[2];
    pair(fds);
    np_desc *d = np_open(e, fds[0], NP_STREAM, "d", NULL);
    wait_bits(e, NULL, 0, 20); /* the first edge */
    e->cpus = 2;
    e->unlooked = 0;
    for (int round = 0; round < 3; round++) {
        for (int i = 1; i < NP_UNLOOKED; i++) {
            CHECK(!looks(e, d, fds[1], i % 2, now_ns() + 2 * MS));
        }
        CHECK(looks(e, d, fds[1], 0, now_ns() + 50 * MS)); /* once in a while, for nothing */
        EQ(e->found, 0u);
    }
    e->unlooked = NP_UNLOOKED - 1;
    memset(e->recent, 0, sizeof e->recent);
    CHECK(looks(e, d, fds[1], 1, -1)); /* one of many peers */
    EQ(e->found, 0u);
    e->unlooked = NP_UNLOOKED - 1;
    for (unsigned i = 1; i < 2 * NP_FOUND; i++) {
        CHECK(looks(e, d, fds[1], 1, -1));
        EQ(e->found, i < NP_FOUND ? i : NP_FOUND);
    }
    CHECK(!looks(e, d, fds[1], 0, now_ns() + NP_MOMENT / 2)); /* a timer comes first */
    EQ(e->found, (unsigned)NP_FOUND);
    for (unsigned left = NP_FOUND; left > 0; left = e->found) {
        CHECK(looks(e, d, fds[1], 0, now_ns() + 50 * MS));
        EQ(e->found, left < NP_MISSED ? 0 : left - NP_MISSED);
    }
    CHECK(!looks(e, d, fds[1], 1, -1));
    EQ(e->unlooked, 1u);
    e->found = NP_FOUND;
    e->cpus = 1; /* the peer needs it */
    CHECK(!looks(e, d, fds[1], 1, -1));
    np_close(e, d);
    close(fds[0]);
    close(fds[1]);
    np_engine_free(e);
}

TEST(a_deadline_is_kept_and_never_early, 30) {
    EACH_CONFIG(c) {
        np_engine *e = engine(c);
        np_event ev[4];
        int64_t worst = 0;
        for (int i = 0; i < 40; i++) {
            int64_t deadline = now_ns() + i * 137000;
            np_park_prepare(e);
            EQ(np_park(e, ev, 4, deadline), 0);
            int64_t late = now_ns() - deadline;
            CHECK(late >= 0);
            if (late > worst) worst = late;
        }
        CHECK(worst < 500 * MS);
        int64_t t = now_ns();
        np_park_prepare(e);
        EQ(np_park(e, ev, 4, t - 5 * MS), 0); /* in the past */
        np_park_prepare(e);
        EQ(np_park(e, ev, 4, 0), 0);
        engine_end(e);
    }
}

static void on_usr1(int sig) { (void)sig; }
static void *signal_later(void *arg) {
    sleep_ms(50);
    pthread_kill(*(pthread_t *)arg, SIGUSR1);
    return NULL;
}

TEST(a_signal_ends_a_park_in_epoll, 20) {
    struct sigaction sa = {.sa_handler = on_usr1};
    sigaction(SIGUSR1, &sa, NULL);
    EACH_CONFIG(c) {
        np_engine *e = engine(c);
        np_event ev[4];
        pthread_t self = pthread_self(), t;
        pthread_create(&t, NULL, signal_later, &self);
        np_park_prepare(e);
        EQ(np_park(e, ev, 4, -1), 0);
        pthread_join(t, NULL);
        engine_end(e);
    }
}

/* ---- Idle ---- */

struct idler {
    np_engine *e;
    int park;
};

static void *park_long(void *arg) {
    np_event ev[4];
    np_park_prepare(arg);
    np_park(arg, ev, 4, -1);
    return NULL;
}

TEST(an_idle_process_makes_no_wake_ups, 30) {
    np_mode modes[] = {NP_AUTO, NP_DEDICATED};
    for (int m = 0; m < 2; m++) {
        np_engine *e = engine_of(modes[m]);
        pthread_t t;
        np_stats before, after;
        pthread_create(&t, NULL, park_long, e);
        sleep_ms(150);
        int tid = tid_of("netpoller");
        CHECK(tid > 0);
        np_get_stats(e, &before);
        long n = voluntary_switches(tid);
        sleep_ms(2000);
        EQ(voluntary_switches(tid), n);
        np_get_stats(e, &after);
        EQ(after.polls, before.polls);
        np_wake(e);
        pthread_join(t, NULL);
        np_set_running(e, 0); /* idle outside run_forever */
        sleep_ms(100);
        n = voluntary_switches(tid);
        sleep_ms(500);
        EQ(voluntary_switches(tid), n);
        /* And it ticks again afterwards. */
        np_set_running(e, 1);
        sleep_ms(100);
        np_get_stats(e, &after);
        if (modes[m] == NP_AUTO) EQ(after.stalls, 1);
        engine_end(e);
    }
}

/* ---- Stall ---- */

/* Waits until a number of np_stats is so high, and it must be just that; leaves them in s. */
#define AWAIT(e, s, field, value)                                                    \
    do {                                                                             \
        int64_t end_ = now_ns() + 5000 * MS;                                         \
        do {                                                                         \
            sleep_ms(1);                                                             \
            np_get_stats(e, &(s));                                                   \
        } while ((s).field < (value) && now_ns() < end_);                            \
        EQ((s).field, value);                                                        \
    } while (0)

static void wait_for_stall(np_engine *e, uint64_t stalls) {
    np_stats s;
    AWAIT(e, s, stalls, stalls);
    EQ(s.poller, NP_POLLER_NETPOLLER);
}

static void await_received(np_engine *e, uint64_t bytes) {
    np_stats s;
    AWAIT(e, s, bytes_received, bytes);
}

/* All that a writer sends, with the end of file, by a worker that is back. */
static void take_all(np_engine *e, np_desc *d, struct writer *w) {
    static uint8_t buf[100000];
    size_t at = 0;
    for (;;) {
        ssize_t n = np_recv(e, d, buf, sizeof buf);
        if (n == 0) break;
        if (n == -EAGAIN) {
            CHECK(!np_more(d));
            CHECK(wait_bits(e, "d", NP_R, 5000) & NP_R); /* of what has been taken already, perhaps */
            continue;
        }
        CHECK(n > 0);
        verify(buf, (size_t)n, w->seed, at);
        at += (size_t)n;
    }
    EQ(at, w->n);
    CHECK(!np_more(d));
}

TEST(ticks_become_rarer_while_nothing_is_stuck_and_a_stall_is_noticed_all_the_same, 60) {
    np_engine *e = engine_of(NP_AUTO);
    np_event ev[4];
    long first = 0, last = 0;
    int tid = 0;
    /* 12, and then 5 ticks, in a phase of 200 ms. A worker that gets no CPU for a while is stuck, too: then it takes longer. */
    for (int phase = 0; phase < 200 && !(first && last < first); phase++) {
        long n = tid > 0 ? voluntary_switches(tid) : 0;
        for (int64_t end = now_ns() + 200 * 1000000LL; now_ns() < end;) {
            (void)np_poll(e, ev, 4);
            usleep(500);
        }
        if (tid <= 0) {
            tid = tid_of("netpoller"); /* it is as old as the engine: all of its switches were in this phase */
        }
        last = voluntary_switches(tid) - n;
        if (last > first) first = last;
    }
    CHECK(last < first);
    for (uint64_t stalls = 1; stalls <= 3; stalls++) {
        wait_for_stall(e, stalls);
        (void)np_poll(e, ev, 4);
    }
    engine_end(e);
}

TEST(a_stalled_workers_streams_are_read_up_to_the_bound, 60) {
    enum { BOUND = 256 * 1024 };
    static const size_t sizes[] = {1, 5000, BOUND - 1, BOUND, BOUND + 1, 8 << 20};
    np_engine *e = engine_of(NP_AUTO);
    uint64_t stalls = 0, before = 0;
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        int fds[2];
        tcp_pair(fds);
        np_desc *d = np_open(e, fds[0], NP_STREAM, "d", NULL);
        np_read_ahead(e, d, 1);
        struct writer w = {.fd = fds[1], .seed = 11, .n = sizes[i], .chunk = 30000};
        wait_for_stall(e, ++stalls);
        writer_start(&w);
        await_received(e, before + (sizes[i] < BOUND ? sizes[i] : BOUND));
        sleep_ms(20);
        np_stats s;
        np_get_stats(e, &s);
        EQ(s.bytes_received, before + (sizes[i] < BOUND ? sizes[i] : BOUND)); /* and not a byte more */
        before += sizes[i];
        CHECK(wait_bits(e, "d", NP_R, 5000) & NP_R);
        take_all(e, d, &w);
        writer_join(&w);
        np_close(e, d);
        close(fds[0]);
        close(fds[1]);
        np_get_stats(e, &s);
        stalls = s.stalls;
    }
    engine_end(e);
}

TEST(what_may_not_be_read_ahead_stays_in_the_socket, 30) {
    enum { SIZE = 100000 };
    np_engine *e = engine_of(NP_AUTO);
    int fds[2];
    char byte;
    tcp_pair(fds);
    np_desc *d = np_open(e, fds[0], NP_STREAM, "d", NULL);
    wait_for_stall(e, 1);
    struct writer w = {.fd = fds[1], .seed = 12, .n = SIZE, .chunk = SIZE};
    np_read_ahead(e, d, 1);
    np_read_ahead(e, d, 0);
    writer_start(&w);
    sleep_ms(50);
    np_stats s;
    np_get_stats(e, &s);
    EQ(s.bytes_received, 0);
    EQ(recv(fds[0], &byte, 1, MSG_PEEK | MSG_DONTWAIT), 1);
    CHECK(wait_bits(e, "d", NP_R, 5000) & NP_R);
    take_all(e, d, &w);
    writer_join(&w);
    np_close(e, d);
    close(fds[0]);
    close(fds[1]);
    engine_end(e);
}

TEST(an_error_in_a_stall_stands_behind_what_came_before_it, 30) {
    np_engine *e = engine_of(NP_AUTO);
    for (uint64_t i = 1; i <= 3; i++) {
        int fds[2];
        char buf[16];
        struct linger reset = {1, 0};
        tcp_pair(fds);
        np_desc *d = np_open(e, fds[0], NP_STREAM, "d", NULL);
        np_read_ahead(e, d, 1);
        wait_for_stall(e, i);
        EQ(send(fds[1], "abc", 3, 0), 3);
        await_received(e, 3 * i);
        setsockopt(fds[1], SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
        close(fds[1]);
        sleep_ms(5);
        CHECK(wait_bits(e, "d", NP_R, 5000) & NP_R);
        EQ(np_recv(e, d, buf, sizeof buf), 3);
        ssize_t n;
        for (int64_t end = now_ns() + 5000 * MS; (n = np_recv(e, d, buf, sizeof buf)) == -EAGAIN && now_ns() < end;) {
            np_event ev[4];
            turn(e, ev, 4, 10);
        }
        EQ(n, -ECONNRESET);
        np_close(e, d);
        close(fds[0]);
    }
    engine_end(e);
}

TEST(a_stalled_workers_write_queue_is_drained, 30) {
    np_engine *e = engine_of(NP_AUTO);
    int fds[2];
    tcp_pair(fds);
    np_desc *d = np_open(e, fds[0], NP_STREAM, "d", NULL);
    enum { SIZE = 24 << 20, PIECE = 96 * 1024 + 7 };
    uint8_t *buf = malloc(SIZE);
    fill(buf, SIZE, 5, 0);
    int pieces = 0;
    for (size_t at = 0; at < SIZE; at += PIECE) {
        EQ(queue_told(e, d, buf + at, SIZE - at < PIECE ? SIZE - at : PIECE, buf + at), 0);
        pieces++;
    }
    CHECK(np_pending(d) > 0);
    struct reader r = {.fd = fds[1], .seed = 5, .chunk = 65536};
    reader_start(&r);
    int64_t end = now_ns() + 15000 * MS; /* the worker is inside one callback */
    while (np_pending(d) && now_ns() < end) sleep_ms(5);
    EQ(np_pending(d), 0);
    np_stats s;
    np_get_stats(e, &s);
    CHECK(s.stalls >= 1);
    CHECK(s.netpoller_syscalls > 0);
    EQ(s.bytes_sent, SIZE);
    CHECK(wait_bits(e, "d", NP_W, 2000) & NP_W); /* told, once it is back */
    EQ(np_flush(e, d), 0);
    uint8_t *expect = buf;
    for (void *cookie; (cookie = np_done(e)) != NULL; pieces--) {
        CHECK(cookie == expect); /* in order */
        expect += PIECE;
    }
    EQ(pieces, 0);
    for (int i = 0; i < 20 && s.poller == NP_POLLER_NETPOLLER; i++) { /* and has the token back */
        np_event ev[4];
        turn(e, ev, 4, 1);
        np_get_stats(e, &s);
    }
    CHECK(s.poller != NP_POLLER_NETPOLLER);
    np_close(e, d);
    shutdown(fds[0], SHUT_WR);
    reader_join(&r);
    EQ(r.got, SIZE);
    close(fds[0]);
    close(fds[1]);
    free(buf);
    engine_end(e);
}

TEST(a_takeover_collects_readiness_and_reads_nothing, 30) {
    np_engine *e = engine_of(NP_AUTO);
    int s[2], l[2], w[2];
    struct sockaddr_in addr;
    char buf[16];
    tcp_pair(s);
    pair(l);
    pair(w);
    int lfd = listener(&addr);
    np_desc *ds = np_open(e, s[0], NP_STREAM, "stream", NULL);
    np_desc *dl = np_open(e, l[0], NP_LEVEL, "level", NULL);
    np_desc *dw = np_open(e, w[0], NP_WAIT, "wait", NULL);
    np_desc *da = np_open(e, lfd, NP_LISTEN, "listen", NULL);
    EQ(np_arm(e, dl, NP_R), 0);
    EQ(np_arm(e, da, NP_R), 0);
    wait_bits(e, NULL, 0, 20); /* the first edges */
    for (uint64_t round = 1; round <= 4; round++) {
        wait_for_stall(e, round);
        np_stats st, before;
        np_get_stats(e, &before);
        EQ(write(s[1], "s", 1), 1);
        EQ(write(l[1], "l", 1), 1);
        EQ(write(w[1], "w", 1), 1);
        int client = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        EQ(connect(client, (struct sockaddr *)&addr, sizeof addr), 0);
        sleep_ms(50);
        np_get_stats(e, &st);
        EQ(st.netpoller_syscalls, 0);
        CHECK(st.handoffs - before.handoffs >= 4);
        CHECK(st.polls - before.polls < 20); /* levels are muted, no spin */
        np_event ev[16];
        int n = np_poll(e, ev, 16), seen = 0;
        for (int i = 0; i < n; i++) {
            const char *u = ev[i].user;
            CHECK(ev[i].bits & NP_R);
            seen |= 1 << (strcmp(u, "stream") == 0 ? 0 : strcmp(u, "level") == 0 ? 1 : strcmp(u, "wait") == 0 ? 2 : 3);
        }
        EQ(seen, 15);
        EQ(np_more(ds), 1);
        EQ(np_recv(e, ds, buf, sizeof buf), 1);
        EQ(np_more(ds), 0);
        EQ(read(l[0], buf, sizeof buf), 1);
        EQ(read(w[0], buf, sizeof buf), 1);
        EQ(np_rearm(e, dl), 0);
        int conn = np_accept(e, da, NULL, NULL);
        CHECK(conn >= 0);
        EQ(np_accept(e, da, NULL, NULL), -EAGAIN);
        EQ(np_rearm(e, da), 0);
        close(conn);
        close(client);
        /* Armed again, now that the worker polls. */
        for (int i = 0; i < 20; i++) turn(e, ev, 16, 1);
        EQ(write(l[1], "l", 1), 1);
        CHECK(wait_bits(e, "level", NP_R, 2000) & NP_R);
        EQ(read(l[0], buf, sizeof buf), 1);
        EQ(np_rearm(e, dl), 0);
        if (round == 2) { /* the token is given back also to a worker that parks at once */
            wait_for_stall(e, 3);
            np_park_prepare(e);
            int64_t t = now_ns();
            EQ(np_park(e, ev, 16, t + 50 * MS), 0);
            CHECK(now_ns() - t >= 50 * MS);
            np_get_stats(e, &st);
            CHECK(st.poller == NP_POLLER_NONE);
            round++;
        }
    }
    np_close(e, ds);
    np_close(e, dl);
    np_close(e, dw);
    np_close(e, da);
    close(lfd);
    for (int i = 0; i < 2; i++) {
        close(s[i]);
        close(l[i]);
        close(w[i]);
    }
    engine_end(e);
}

TEST(a_wake_reaches_a_worker_that_waits_for_the_token, 30) {
    np_engine *e = engine_of(NP_AUTO);
    np_event ev[4];
    for (uint64_t i = 1; i <= 5; i++) {
        wait_for_stall(e, i);
        struct waker w = {e, 10};
        pthread_t t;
        pthread_create(&t, NULL, wake_later, &w);
        np_park_prepare(e);
        EQ(np_park(e, ev, 4, -1), 0);
        pthread_join(t, NULL);
    }
    engine_end(e);
}

static void *write_later(void *arg) {
    sleep_ms(30);
    EQ(write(*(int *)arg, "x", 1), 1);
    return NULL;
}

/* The worker is stuck in a callback; a[0] is armed, and other[0] is to get its number. */
static np_desc *begin_level_test(np_engine *e, int a[2], int other[2]) {
    pair(a);
    pair(other);
    np_desc *d = np_open(e, a[0], NP_LEVEL, "level", NULL);
    EQ(np_arm(e, d, NP_R), 0);
    wait_for_stall(e, 1);
    return d;
}

static void end_level_test(np_engine *e, int a[2], int other[2]) {
    for (int i = 0; i < 2; i++) {
        close(a[i]);
        close(other[i]);
    }
    engine_end(e);
}

/* What the netpoller mutes, the worker arms again. */
TEST(after_a_stall_a_number_that_was_closed_behind_our_back_is_not_registered_for_its_next_file, 30) {
    np_engine *e = engine_of(NP_AUTO);
    int a[2], other[2];
    char buf[4];
    np_event ev[8];
    np_desc *d = begin_level_test(e, a, other);
    np_stats s, before;
    np_get_stats(e, &before);
    EQ(write(a[1], "x", 1), 1);
    AWAIT(e, s, handoffs, before.handoffs + 1);
    EQ(np_poll(e, ev, 8), 1);
    EQ(dup2(other[0], a[0]), a[0]);
    EQ(write(other[1], "x", 1), 1);
    EQ(np_rearm(e, d), -ENOENT);
    for (int i = 0; i < 10; i++) EQ(turn(e, ev, 8, 2), 0);
    EQ(np_arm(e, d, NP_R), -ENOENT);
    EQ(read(a[0], buf, sizeof buf), 1);
    np_close(e, d);
    end_level_test(e, a, other);
}

/* A dup keeps the old file's registration alive, and no epoll_ctl mutes it. */
TEST(a_lost_level_registration_does_not_spin_in_a_stall, 30) {
    np_engine *e = engine_of(NP_AUTO);
    int a[2], other[2];
    np_event ev[8];
    np_desc *d = begin_level_test(e, a, other);
    int copy = dup(a[0]);
    EQ(dup2(other[0], a[0]), a[0]);
    np_stats s, before;
    np_get_stats(e, &before);
    EQ(write(a[1], "x", 1), 1);
    for (int64_t end = now_ns() + 50 * MS; now_ns() < end || s.polls == before.polls;) {
        CHECK(now_ns() < end + 5000 * MS);
        sleep_ms(1);
        np_get_stats(e, &s);
    }
    CHECK(s.polls - before.polls < 50);
    EQ(turn(e, ev, 8, 2), 0); /* and nothing is said of the number's new file */
    np_close(e, d);
    close(copy);
    end_level_test(e, a, other);
}

TEST(a_worker_that_parks_after_a_stall_gets_the_token_and_its_events, 30) {
    np_engine *e = engine_of(NP_AUTO);
    np_event ev[4];
    int fds[2];
    char buf[4];
    pair(fds);
    np_desc *d = np_open(e, fds[0], NP_STREAM, "d", NULL);
    for (uint64_t i = 1; i <= 5; i++) {
        wait_for_stall(e, i);
        pthread_t t;
        pthread_create(&t, NULL, write_later, &fds[1]);
        np_park_prepare(e);
        EQ(np_park(e, ev, 4, now_ns() + 3000 * MS), 1);
        EQ(np_recv(e, d, buf, 4), 1);
        pthread_join(t, NULL);
    }
    np_close(e, d);
    close(fds[0]);
    close(fds[1]);
    engine_end(e);
}

/* Both threads at the write side: the worker sends, the netpoller sees the
 * edges.  None may fall between an EAGAIN and the account of it. */
TEST(no_edge_is_lost_while_the_worker_sends_and_the_netpoller_polls, 60) {
    enum { SIZE = 3 << 20, ROUNDS = 40 };
    uint8_t *buf = malloc(SIZE);
    np_engine *e = engine_of(NP_AUTO);
    for (uint32_t round = 0; round < ROUNDS; round++) {
        int fds[2];
        pair(fds);
        np_desc *d = np_open(e, fds[0], NP_STREAM, "d", NULL);
        fill(buf, SIZE, round, 0);
        if (round == 0) wait_for_stall(e, 1); /* and the worker never asks for the token again */
        struct reader r = {.fd = fds[1], .seed = round, .chunk = 1000 + round * 3000};
        reader_start(&r);
        for (size_t at = 0, n; at < SIZE; at += n) {
            n = SIZE - at < 50000 ? SIZE - at : 50000;
            ssize_t sent = round % 2 ? np_send(e, d, buf + at, n) : 0;
            CHECK(sent >= 0);
            if ((size_t)sent < n) EQ(queue_told(e, d, buf + at + sent, n - (size_t)sent, buf), 0);
            for (int64_t end = now_ns() + 5000 * MS; np_pending(d) > 300000;) CHECK(now_ns() < end);
        }
        for (int64_t end = now_ns() + 5000 * MS; np_pending(d);) CHECK(now_ns() < end);
        np_close(e, d);
        shutdown(fds[0], SHUT_WR);
        reader_join(&r);
        EQ(r.got, SIZE);
        close(fds[0]);
        close(fds[1]);
    }
    engine_end(e);
    free(buf);
}

/* The same with a queue that is just larger than the socket's buffer: the edge
 * that may be lost is the only one to come. */
TEST(not_even_the_only_edge_is_lost, 60) {
    enum { SIZE = 12000, ROUNDS = 4000 };
    static uint8_t buf[SIZE];
    np_engine *e = engine_of(NP_AUTO);
    int fds[2], small = 4608;
    pair(fds);
    setsockopt(fds[0], SOL_SOCKET, SO_SNDBUF, &small, sizeof small);
    np_desc *d = np_open(e, fds[0], NP_STREAM, "d", NULL);
    struct reader r = {.fd = fds[1], .seed = 1, .chunk = SIZE};
    reader_start(&r);
    wait_for_stall(e, 1);
    for (int i = 0; i < ROUNDS; i++) {
        fill(buf, SIZE, 1, (uint64_t)i * SIZE);
        EQ(queue_told(e, d, buf, SIZE, buf), 0);
        for (int64_t end = now_ns() + 5000 * MS; np_pending(d);) {
            CHECK(now_ns() < end);
            sched_yield();
        }
        CHECK(np_done(e));
    }
    np_close(e, d);
    shutdown(fds[0], SHUT_WR);
    reader_join(&r);
    EQ(r.got, SIZE * ROUNDS);
    close(fds[0]);
    close(fds[1]);
    engine_end(e);
}

TEST(a_worker_that_is_back_in_the_middle_of_a_drain_is_told_to_go_on, 60) {
    enum { SIZE = 16 << 20 };
    uint8_t *buf = malloc(SIZE);
    for (uint32_t round = 0; round < 8; round++) {
        np_engine *e = engine_of(NP_AUTO);
        int fds[2];
        tcp_pair(fds);
        np_desc *d = np_open(e, fds[0], NP_STREAM, "d", NULL);
        fill(buf, SIZE, round, 0);
        EQ(queue_told(e, d, buf, SIZE, buf), 0);
        size_t left = np_pending(d);
        CHECK(left > 0);
        struct reader r = {.fd = fds[1], .seed = round, .chunk = 1 << 20};
        wait_for_stall(e, 1);
        reader_start(&r);
        while (np_pending(d) == left) {
        }
        np_event ev[4];
        for (int64_t end = now_ns() + 5000 * MS; np_pending(d);) {
            CHECK(now_ns() < end);
            int n = turn(e, ev, 4, 100);
            for (int i = 0; i < n; i++) {
                if (ev[i].bits & NP_W) CHECK(np_flush(e, d) >= 0);
            }
        }
        np_close(e, d);
        shutdown(fds[0], SHUT_WR);
        reader_join(&r);
        EQ(r.got, SIZE);
        close(fds[0]);
        close(fds[1]);
        engine_end(e);
    }
    free(buf);
}

/* ---- Thread ---- */

TEST(what_the_worker_left_unread_the_thread_finds_at_its_start, 30) {
    struct config off = {"", NP_DEDICATED, 0, 0, 0};
    for (int round = 0; round < 4; round++) {
        np_engine *e = engine(&off);
        int s[2], l[2], w[2];
        char buf[16];
        pair(s);
        pair(l);
        pair(w);
        np_desc *d = np_open(e, s[0], NP_STREAM, "stream", NULL);
        np_desc *dl = np_open(e, l[0], NP_LEVEL, "level", NULL);
        np_desc *dw = np_open(e, w[0], NP_WAIT, "wait", NULL);
        EQ(np_arm(e, dl, NP_R), 0);
        EQ(write(s[1], "12345678", 8), 8);
        EQ(write(l[1], "x", 1), 1);
        EQ(write(w[1], "x", 1), 1);
        CHECK(wait_bits(e, "stream", NP_R, 2000) & NP_R); /* the edge is spent */
        if (round % 2) EQ(np_recv(e, d, buf, 4), 4);
        EQ(np_thread_start(e), 0);
        if (round / 2) np_thread_stop(e); /* and back at once */
        CHECK(wait_bits(e, "stream", NP_R, 2000) & NP_R);
        EQ(np_recv(e, d, buf, 16), round % 2 ? 4 : 8);
        EQ(np_rearm(e, dl), 0);
        CHECK(wait_bits(e, "level", NP_R, 2000) & NP_R);
        np_close(e, d);
        np_close(e, dl);
        np_close(e, dw);
        for (int i = 0; i < 2; i++) {
            close(s[i]);
            close(l[i]);
            close(w[i]);
        }
        engine_end(e);
    }
}

TEST(what_the_thread_left_unread_the_worker_finds_after_its_stop, 30) {
    for (int started_again = 0; started_again < 2; started_again++) {
        np_engine *e = engine_of(NP_DEDICATED);
        int fds[2];
        tcp_pair(fds);
        np_desc *d = np_open(e, fds[0], NP_STREAM, "d", NULL);
        static uint8_t buf[100000];
        size_t put = 0, got = 0;
        for (int idle = 0; idle < 20;) { /* fill the bound, and the kernel behind it */
            fill(buf, 50000, 21, put);
            ssize_t n = send(fds[1], buf, 50000, MSG_DONTWAIT | MSG_NOSIGNAL);
            if (n > 0) {
                put += (size_t)n;
            } else {
                idle++;
                sleep_ms(2);
            }
        }
        CHECK(put > 600000);
        np_event ev[4];
        while (turn(e, ev, 4, 20)) { /* all events are spent */
        }
        np_thread_stop(e);
        if (started_again) EQ(np_thread_start(e), 0);
        for (int64_t end = now_ns() + 5000 * MS; got < put;) {
            ssize_t n = np_recv(e, d, buf, sizeof buf);
            if (n > 0) {
                verify(buf, (size_t)n, 21, got);
                got += (size_t)n;
            }
            /* No more than the interface says: receive while np_more, else wait. */
            while (got < put && !np_more(d)) {
                CHECK(now_ns() < end);
                turn(e, ev, 4, 100);
            }
        }
        np_close(e, d);
        close(fds[0]);
        close(fds[1]);
        engine_end(e);
    }
}

static void *stop_start(void *arg) {
    for (int i = 0; i < 30; i++) {
        sleep_ms(3);
        np_thread_stop(arg);
        sleep_ms(i % 3);
        EQ(np_thread_start(arg), 0);
    }
    return NULL;
}

TEST(the_thread_stops_and_starts_while_the_worker_waits, 60) {
    np_mode modes[] = {NP_AUTO, NP_DEDICATED};
    for (int m = 0; m < 2; m++) {
        np_engine *e = engine_of(modes[m]);
        int fds[2];
        char buf[8];
        pair(fds);
        np_desc *d = np_open(e, fds[0], NP_STREAM, "d", NULL);
        struct reader echo;
        (void)echo;
        pthread_t t;
        pthread_create(&t, NULL, stop_start, e);
        int64_t end = now_ns() + 300 * MS;
        while (now_ns() < end) {
            EQ(write(fds[1], "x", 1), 1);
            ssize_t n;
            int64_t limit = now_ns() + 5000 * MS;
            while ((n = np_recv(e, d, buf, 8)) == -EAGAIN) {
                CHECK(now_ns() < limit); /* readiness was lost */
                np_event ev[4];
                np_park_prepare(e);
                np_park(e, ev, 4, limit);
            }
            EQ(n, 1);
        }
        pthread_join(t, NULL);
        np_thread_stop(e);
        np_thread_stop(e);
        np_stats s;
        np_get_stats(e, &s);
        EQ(s.thread_running, 0);
        EQ(np_thread_start(e), 0);
        EQ(np_thread_start(e), 0);
        np_get_stats(e, &s);
        EQ(s.thread_running, 1);
        np_close(e, d);
        close(fds[0]);
        close(fds[1]);
        engine_end(e);
    }
    np_engine *e = engine_of(NP_INLINE);
    /* One that was joined may be in /proc a moment longer. */
    for (int64_t limit = now_ns() + 5000 * MS; tid_of("netpoller") >= 0 && now_ns() < limit;) sleep_ms(1);
    CHECK(tid_of("netpoller") < 0);
    engine_end(e);
}
