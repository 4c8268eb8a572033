/* test_trial.c: how NP_AUTO finds out which way to send serves the most. */
#include "harness.h"
#include "netpoll_internal.h"

/* An engine whose netpoller does nothing, and the clock that its trials are told. */
struct simulation {
    np_engine *e;
    int64_t now;
    int64_t each[3]; /* ns for each message, by np_sender */
    int by[3];       /* windows so far */
};

static void simulation_begin(struct simulation *s, np_sender usual, int64_t at_once, int64_t by_netpoller, int64_t by_worker) {
    *s = (struct simulation){np_engine_new(NP_AUTO, NULL), now_ns(), {at_once, by_netpoller, by_worker}, {0}};
    np_set_sc(&s->e->thread_on, 1u);
    np_trial_begin(s->e, s->now, usual, 0);
}

static void simulation_end(struct simulation *s) {
    np_set_sc(&s->e->thread_on, 0u);
    np_engine_free(s->e);
}

/* Windows for so long; how many of them were sent by each is counted. */
static void simulate(struct simulation *s, int64_t ns, np_sender guessed, int netpoller_may) {
    memset(s->by, 0, sizeof s->by);
    for (int64_t until = s->now + ns; s->now < until;) {
        unsigned by = np_get(&s->e->offload);
        s->by[by]++;
        s->now += s->each[by] * NP_WINDOW;
        s->e->window.writes = s->e->window.messages = NP_WINDOW;
        (void)np_trial_window(s->e, s->now, guessed, netpoller_may);
    }
}

TEST(whatever_is_guessed_the_way_that_serves_the_most_is_found_and_found_again, 30) {
    for (np_sender guessed = NP_AT_ONCE; guessed <= NP_BY_WORKER; guessed++) {
        for (np_sender best = NP_AT_ONCE; best <= NP_BY_WORKER; best++) {
            struct simulation s;
            simulation_begin(&s, guessed, 20000, 20000, 20000);
            for (int changes = 0; changes < 3; changes++) {
                np_sender now_best = (np_sender)((best + (unsigned)changes) % 3);
                for (int i = 0; i < 3; i++) s.each[i] = i == (int)now_best ? 12000 : 20000;
                simulate(&s, NP_TRIAL_RARE + 1000 * MS, NP_AT_ONCE, 1);
                EQ(s.e->trial.usual, now_best);
                EQ(s.e->trial.known, 1);
                EQ(s.e->trial.wall, 12000);
                simulate(&s, 20 * NP_TRIAL_RARE, NP_AT_ONCE, 1); /* the others, now and then */
                CHECK(s.by[(now_best + 1) % 3] > 0 && s.by[(now_best + 2) % 3] > 0);
                CHECK(s.by[now_best] > 50 * (s.by[(now_best + 1) % 3] + s.by[(now_best + 2) % 3]));
            }
            simulation_end(&s);
        }
    }
}

static void the_netpoller_wins(struct simulation *s) {
    simulation_begin(s, NP_AT_ONCE, 20000, 10000, 15000);
    simulate(s, 1000 * MS, NP_AT_ONCE, 1);
    EQ(s->e->trial.usual, NP_BY_NETPOLLER);
}

TEST(what_the_netpoller_may_not_do_it_is_not_tried_with, 30) {
    struct simulation s;
    simulation_begin(&s, NP_AT_ONCE, 20000, 10000, 15000);
    simulate(&s, 1000 * MS, NP_AT_ONCE, 0);
    EQ(s.by[NP_BY_NETPOLLER], 0);
    EQ(s.e->trial.usual, NP_BY_WORKER);
    simulate(&s, 200 * MS, NP_AT_ONCE, 1); /* at once when it may */
    EQ(s.e->trial.usual, NP_BY_NETPOLLER);
    for (np_sender guessed = NP_AT_ONCE; guessed <= NP_BY_WORKER; guessed += 2) {
        simulate(&s, 100 * MS, guessed, 0);
        CHECK(s.by[NP_BY_NETPOLLER] <= 1);
        CHECK(s.by[guessed] > 0);
        EQ(s.by[guessed] + s.by[NP_BY_NETPOLLER], s.by[0] + s.by[1] + s.by[2]);
        simulate(&s, 100 * MS, guessed, 1);
        CHECK(s.by[NP_BY_NETPOLLER] > s.by[guessed]);
        EQ(s.e->trial.usual, NP_BY_NETPOLLER);
    }
    simulation_end(&s);
}

TEST(a_saturated_worker_may_do_without_a_poll_and_what_was_due_at_the_end_of_its_turn_leaves, 30) {
    struct simulation s;
    simulation_begin(&s, NP_BY_WORKER, 20000, 20000, 20000);
    int fds[2];
    pair(fds);
    np_desc *d = np_open(s.e, fds[0], NP_STREAM, "d", NULL);
    char got[8];
    np_trial_end(s.e, s.now);
    EQ(np_skip_poll(s.e), 0);
    np_trial_resume(s.e);
    EQ(np_hand_over(s.e, d, 5), NP_BY_WORKER);
    EQ(np_queue_for_turn(s.e, d, "hello", 5, NULL), 0);
    EQ(recv(fds[1], got, sizeof got, MSG_DONTWAIT), -1);
    unsigned turns = np_get(&s.e->turns);
    EQ(np_skip_poll(s.e), 1);
    EQ(np_get(&s.e->turns), turns + 1);
    EQ(recv(fds[1], got, sizeof got, MSG_DONTWAIT), 5);
    np_close(s.e, d);
    close(fds[0]);
    close(fds[1]);
    simulation_end(&s);
}

TEST(a_trial_is_broken_off_and_what_was_found_is_kept, 30) {
    struct simulation s;
    the_netpoller_wins(&s);
    s.e->trial.at = s.now;
    while (np_get(&s.e->offload) == NP_BY_NETPOLLER) simulate(&s, 1, NP_AT_ONCE, 1);
    np_trial_stop(s.e);
    EQ(np_get(&s.e->offload), NP_BY_NETPOLLER);
    while (np_get(&s.e->offload) == NP_BY_NETPOLLER) simulate(&s, 1, NP_AT_ONCE, 1);
    np_trial_end(s.e, s.now);
    EQ(np_get(&s.e->offload), NP_AT_ONCE);
    np_trial_resume(s.e);
    EQ(np_get(&s.e->offload), NP_BY_NETPOLLER);
    np_set_sc(&s.e->thread_on, 0u); /* a fork is coming, say */
    s.e->trial.at = s.now;
    simulate(&s, 1000 * MS, NP_AT_ONCE, 1);
    EQ(s.by[NP_BY_NETPOLLER], s.by[0] + s.by[1] + s.by[2]);
    s.e->trial.at = s.now; /* another worker thread: its CPU time is another clock */
    np_set_sc(&s.e->thread_on, 1u);
    for (int i = 0; i < 1000; i++) {
        simulate(&s, 1, NP_AT_ONCE, 1);
        s.e->trial.thread++;
    }
    EQ(s.e->trial.pairs, 0);
    simulation_end(&s);
}

TEST(a_trial_that_was_broken_off_comes_before_what_has_lost, 30) {
    struct simulation s;
    simulation_begin(&s, NP_BY_NETPOLLER, 25000, 20000, 12000);
    while (!s.e->trial.lost) simulate(&s, 1, NP_AT_ONCE, 1);
    EQ(s.e->trial.lost, 1u << NP_AT_ONCE);
    for (int i = 0; i < 5; i++) {
        while (s.e->trial.other == s.e->trial.usual) simulate(&s, 1, NP_AT_ONCE, 1);
        EQ(s.e->trial.other, NP_BY_WORKER);
        np_trial_end(s.e, s.now);
        np_trial_resume(s.e);
    }
    simulate(&s, 1000 * MS, NP_AT_ONCE, 1);
    EQ(s.e->trial.usual, NP_BY_WORKER);
    s.e->trial.lost = 1u << NP_AT_ONCE; /* and now the netpoller may not */
    s.e->trial.at = s.now;
    simulate(&s, 100 * MS, NP_AT_ONCE, 0);
    EQ(s.by[NP_BY_NETPOLLER], 0);
    EQ(s.e->trial.usual, NP_BY_WORKER);
    simulation_end(&s);
}

TEST(what_a_trial_has_found_is_kept_while_saturation_comes_and_goes, 30) {
    struct simulation s;
    simulation_begin(&s, NP_AT_ONCE, 20000, 10000, 30000);
    for (int i = 0; i < 40 && s.e->trial.usual == NP_AT_ONCE; i++) {
        simulate(&s, 25 * MS, NP_AT_ONCE, 1); /* time for one pair */
        np_trial_end(s.e, s.now);
        np_trial_resume(s.e);
    }
    EQ(s.e->trial.usual, NP_BY_NETPOLLER);
    simulation_end(&s);
}

TEST(what_has_won_and_gets_worse_is_given_up_soon, 30) {
    struct simulation s;
    the_netpoller_wins(&s);
    EQ(s.e->trial.rival, NP_BY_WORKER);
    s.each[NP_BY_NETPOLLER] = 14000; /* still better */
    s.e->trial.at = s.now + 1000 * MS;
    simulate(&s, 500 * MS, NP_AT_ONCE, 1);
    EQ(s.by[NP_BY_NETPOLLER], s.by[0] + s.by[1] + s.by[2]);
    s.each[NP_BY_NETPOLLER] = 18000;
    simulate(&s, 3 * NP_TRIAL_HOLDS, NP_AT_ONCE, 1);
    EQ(s.e->trial.usual, NP_BY_WORKER);
    EQ(np_get(&s.e->offload), NP_BY_WORKER);
    s.each[NP_BY_NETPOLLER] = 10000;
    simulate(&s, NP_TRIAL_PAUSE + 300 * MS, NP_AT_ONCE, 1);
    EQ(s.e->trial.usual, NP_BY_NETPOLLER);
    simulation_end(&s);
}

/* An engine that believes in its netpoller, with one stream. */
static np_engine *engine_with_stream(int fd, np_desc **d) {
    np_engine *e = np_engine_new(NP_AUTO, NULL);
    *d = np_open(e, fd, NP_STREAM, "d", NULL);
    e->cpus = 2;
    e->crowd.at = INT64_MAX; /* whatever else runs on this machine now */
    np_set_sc(&e->thread_on, 1u);
    return e;
}

static void end_with_stream(np_engine *e, np_desc *d) {
    np_set_sc(&e->thread_on, 0u);
    np_close(e, d);
    np_engine_free(e);
}

/* The worker has waited for so long until now. */
static void waited(np_engine *e, int64_t ns) {
    int64_t now = now_ns();
    np_waited(e, now - ns, now);
}

/* One window of np_hand_over that took so long for each message, so much of it waiting. */
static void window(np_engine *e, np_desc *d, int64_t each, int64_t waited) {
    e->window.since = now_ns() - each * NP_WINDOW;
    e->window.waited = waited * NP_WINDOW;
    e->window.writes = e->window.messages = NP_WINDOW - 1;
    e->window.bytes = 0;
    e->last_written = NULL;
    (void)np_hand_over(e, d, 1);
}

TEST(a_worker_with_time_keeps_the_netpoller_while_the_load_is_as_it_was, 30) {
    int fds[2];
    pair(fds);
    for (int known = 0; known <= 1; known++) {
        np_desc *d;
        np_engine *e = engine_with_stream(fds[0], &d);
        for (int i = 0; i <= NP_AGREE; i++) window(e, d, 1000000, 0);
        EQ(np_get(&e->offload), NP_AT_ONCE); /* turns of one write */
        np_trial_begin(e, now_ns(), NP_BY_NETPOLLER, 1);
        e->trial.at = INT64_MAX;
        e->trial.known = known;
        e->trial.wall = known ? 1000000 : 0;
        for (int i = 0; i < 10; i++) window(e, d, 1100000, 600000);
        EQ(np_get(&e->offload), known ? NP_BY_NETPOLLER : NP_AT_ONCE);
        if (known) {
            for (int i = 1; i <= NP_SLOW_AGREE; i++) {
                EQ(np_get(&e->offload), NP_BY_NETPOLLER);
                window(e, d, 1400000, 600000);
            }
            EQ(np_get(&e->offload), NP_AT_ONCE);
            for (int i = 0; i < NP_AGREE; i++) window(e, d, 1000000, 0); /* what was found for such work */
            EQ(np_get(&e->offload), NP_BY_NETPOLLER);
            e->trial.work = 0;
            window(e, d, 900000, 0);
            for (int i = 1; i < NP_AGREE; i++) window(e, d, 3000000, 0);
            EQ(e->trial.known, 1);
            window(e, d, 3000000, 0); /* other work */
            EQ(e->trial.known, 0);
            e->trial.known = 1; /* a pause, and a peer on the worker's CPU after it: no other work yet */
            e->trial.usual = NP_BY_WORKER;
            (void)np_offload(e, NP_AT_ONCE);
            e->trial.on = 0;
            e->trial.ended = now_ns();
            for (int i = 0; i < NP_AGREE; i++) window(e, d, 100000, 0);
            EQ(np_get(&e->offload), NP_BY_WORKER);
        }
        end_with_stream(e, d);
    }
    close(fds[0]);
    close(fds[1]);
}

TEST(after_long_without_a_rest_one_window_is_enough_but_not_that_of_the_stall, 30) {
    int fds[2];
    pair(fds);
    for (int rests = 0; rests <= 1; rests++) {
        np_desc *d;
        np_engine *e = engine_with_stream(fds[0], &d);
        int64_t now = now_ns();
        np_waited(e, now - 10 * NP_RESTLESS, now - 9 * NP_RESTLESS);
        np_waited(e, now - NP_REST, rests ? now : now - 1); /* for the GIL, or the token */
        window(e, d, 8000000, 0);
        for (int i = 1; i < NP_AGREE; i++) {
            EQ(np_get(&e->offload), !rests && i > 1 ? NP_BY_NETPOLLER : NP_AT_ONCE);
            np_set(&e->usual_turn, 16);
            if (rests) waited(e, NP_REST);
            window(e, d, 15000, 0);
        }
        EQ(np_get(&e->offload), NP_BY_NETPOLLER);
        CHECK(e->trial.at > now + NP_TRIAL_LATER); /* nothing is tried in a burst */
        EQ(np_trial_window(e, now + NP_TRIAL_LATER, NP_BY_NETPOLLER, 1), 1);
        end_with_stream(e, d);
    }
    close(fds[0]);
    close(fds[1]);
}

TEST(a_guess_is_not_made_anew_when_saturation_comes_back_soon, 30) {
    int fds[2];
    pair(fds);
    np_desc *d;
    np_engine *e = engine_with_stream(fds[0], &d);
    for (int i = 0; i <= NP_AGREE; i++) window(e, d, 3000, 0);
    EQ(e->trial.on, 1);
    int64_t at = e->trial.at;
    for (int i = 0; i < 3; i++) {
        waited(e, 2 * NP_QUIET);
        EQ(e->trial.on, 0);
        e->trial.lost = 1u << NP_BY_NETPOLLER;
        for (int k = 0; k <= NP_AGREE; k++) window(e, d, 3000, 0);
        EQ(e->trial.on, 1);
        EQ(e->trial.at, at);
        EQ(e->trial.lost, 1u << NP_BY_NETPOLLER);
    }
    waited(e, 2 * NP_QUIET);
    e->trial.ended -= NP_TRIAL_SAME; /* a pause, after which it may be other work */
    for (int k = 0; k <= NP_AGREE; k++) window(e, d, 3000, 0);
    EQ(e->trial.lost, 0);
    end_with_stream(e, d);
    close(fds[0]);
    close(fds[1]);
}

TEST(while_others_want_the_cpus_nothing_is_tried, 30) {
    int fds[2];
    pair(fds);
    np_desc *d;
    np_engine *e = engine_with_stream(fds[0], &d);
    np_trial_begin(e, now_ns(), NP_BY_NETPOLLER, 1);
    e->trial.other = NP_BY_WORKER; /* is being tried */
    e->crowd.agreed = NP_CROWD_AGREE;
    e->crowd.until = now_ns() + 60 * 1000 * MS;
    for (int i = 0; i < 100; i++) {
        window(e, d, 100000, 0);
        EQ(e->trial.other, e->trial.usual);
    }
    EQ(e->trial.usual, NP_AT_ONCE); /* the guess, for turns of one write */
    EQ(np_get(&e->offload), NP_AT_ONCE);
    e->crowd.agreed = 0;
    e->crowd.until = 0;
    for (int i = 0; i < 100 && e->trial.other == e->trial.usual; i++) window(e, d, 100000, 0);
    CHECK(e->trial.other != e->trial.usual);
    end_with_stream(e, d);
    close(fds[0]);
    close(fds[1]);
}
