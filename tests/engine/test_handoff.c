/* test_handoff.c: offers of P and the seats where threads wait for it; see handoff.h. */
#include "harness.h"

#include "handoff.h"

enum { TICK = 300 * 1000 };

/* A spare that notes what its watch returns, and takes nothing: an offer that stands is reported to it again. */
struct spare {
    np_offers *offers;
    pthread_t thread;
    _Atomic uint64_t reported; /* the last one */
    atomic_int reports, ended;
};

static void *watch(void *arg) {
    struct spare *s = arg;
    for (uint64_t number; (number = np_offers_watch(s->offers)) != 0;) {
        atomic_store(&s->reported, number);
        atomic_fetch_add(&s->reports, 1);
    }
    atomic_store(&s->ended, 1);
    return NULL;
}

static void spare_start(struct spare *s, np_offers *o) {
    memset(s, 0, sizeof *s);
    s->offers = o;
    EQ(pthread_create(&s->thread, NULL, watch, s), 0);
}

static void until(struct spare *s, uint64_t number) {
    for (int64_t end = now_ns() + 5000 * MS; atomic_load(&s->reported) != number;) {
        CHECK(now_ns() < end); /* the offer stands, and nobody has taken it */
        sched_yield();
    }
}

TEST(an_offer_that_stands_is_reported_however_long_there_was_none, 30) {
    int pauses[] = {0, 1, 5, 50, 0, 50}; /* ms: the watcher looks, dozes, sleeps */
    for (int urgent = 0; urgent <= 1; urgent++) {
        np_offers *o = np_offers_new(TICK, 0);
        struct spare s;
        spare_start(&s, o);
        for (unsigned i = 0; i < sizeof pauses / sizeof *pauses; i++) {
            sleep_ms(pauses[i]);
            uint64_t number = np_offer(o, urgent);
            CHECK(number & 1);
            until(&s, number);
            np_retract(o);
        }
        np_offers_quit(o);
        pthread_join(s.thread, NULL);
        np_offers_free(o);
    }
}

TEST(an_offer_that_was_taken_back_is_not_reported_later, 30) {
    np_offers *o = np_offers_new(50 * MS, 0);
    struct spare s;
    spare_start(&s, o);
    uint64_t last = 0;
    for (int i = 0; i < 2000; i++) {
        uint64_t number = np_offer(o, 0);
        CHECK(number != last); /* each offer has a number of its own */
        last = number;
        np_retract(o);
    }
    sleep_ms(200);
    EQ(atomic_load(&s.reports), 0);
    until(&s, np_offer(o, 0));
    np_retract(o);
    np_offers_quit(o);
    pthread_join(s.thread, NULL);
    np_offers_free(o);
}

TEST(offers_are_counted_on_after_those_that_were_made_elsewhere, 20) {
    np_offers *o = np_offers_new(TICK, 0);
    uint64_t first = np_offer(o, 0), second = np_offer(o, 0);
    np_offers *next = np_offers_new(TICK, second);
    CHECK(first < second && second < np_offer(next, 0));
    np_offers_free(o);
    np_offers_free(next);
}

TEST(each_standing_offer_finds_one_of_several_spares, 60) {
    enum { SPARES = 4, ROUNDS = 300 };
    np_offers *o = np_offers_new(TICK, 0);
    struct spare s[SPARES];
    for (int i = 0; i < SPARES; i++) spare_start(&s[i], o);
    for (int round = 0; round < ROUNDS; round++) {
        uint64_t number = np_offer(o, round % 3 == 0);
        int found = 0;
        for (int64_t end = now_ns() + 5000 * MS; !found;) {
            for (int i = 0; i < SPARES; i++) found |= atomic_load(&s[i].reported) == number;
            CHECK(now_ns() < end);
            sched_yield();
        }
        np_retract(o);
    }
    np_offers_quit(o);
    for (int i = 0; i < SPARES; i++) pthread_join(s[i].thread, NULL);
    np_offers_free(o);
}

TEST(quitting_ends_every_watch_in_whatever_state, 60) {
    int pauses[] = {0, 1, 50};
    for (int round = 0; round < 60; round++) {
        np_offers *o = np_offers_new(TICK, 0);
        struct spare s[3];
        for (int i = 0; i < 3; i++) spare_start(&s[i], o);
        sleep_ms(pauses[round % 3]);
        if (round % 2) {
            np_offer(o, 0);
            np_retract(o);
        }
        np_offers_quit(o);
        for (int i = 0; i < 3; i++) pthread_join(s[i].thread, NULL); /* or the time limit */
        EQ(np_offers_watch(o), 0);
        np_offers_free(o);
    }
}

/* ---- Seats ---- */

struct sitter {
    np_seat *seat;
    atomic_int calls; /* used up */
    int wanted;
};

static void *sit(void *arg) {
    struct sitter *s = arg;
    while (atomic_load(&s->calls) < s->wanted) {
        int rc = np_seat_wait(s->seat, now_ns() + 5000 * MS);
        EQ(rc, 0);
        atomic_fetch_add(&s->calls, 1);
    }
    return NULL;
}

TEST(no_call_of_a_seat_is_lost, 60) {
    struct sitter s = {.seat = np_seat_new(), .wanted = 5000};
    pthread_t t;
    EQ(pthread_create(&t, NULL, sit, &s), 0);
    for (int i = 1; i <= s.wanted; i++) {
        np_seat_call(s.seat);
        while (atomic_load(&s.calls) < i) sched_yield(); /* two calls before a wait would be one */
    }
    pthread_join(t, NULL);
    np_seat_free(s.seat);
}

static void nothing(int number) { (void)number; }

static void *interrupt(void *arg) {
    sleep_ms(50);
    pthread_kill(*(pthread_t *)arg, SIGUSR1);
    return NULL;
}

TEST(a_wait_in_a_seat_ends_by_call_deadline_or_signal, 20) {
    np_seat *s = np_seat_new();
    np_seat_call(s);
    np_seat_call(s);
    EQ(np_seat_wait(s, -1), 0); /* called before */
    int64_t deadline = now_ns() + 30 * MS;
    EQ(np_seat_wait(s, deadline), -ETIMEDOUT);
    CHECK(now_ns() >= deadline);
    struct sigaction action = {.sa_handler = nothing}, before;
    sigaction(SIGUSR1, &action, &before);
    pthread_t me = pthread_self(), t;
    EQ(pthread_create(&t, NULL, interrupt, &me), 0);
    EQ(np_seat_wait(s, -1), -EINTR);
    pthread_join(t, NULL);
    sigaction(SIGUSR1, &before, NULL);
    np_seat_free(s);
}
