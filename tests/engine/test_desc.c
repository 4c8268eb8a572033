/* Descriptors: open, close, tags, arm, the mistakes a caller can make. */
#include <sys/wait.h>

#include "harness.h"

TEST(a_closed_descriptor_reports_nothing_of_its_past, 20) {
    EACH_CONFIG(c) {
        np_engine *e = engine(c);
        int a[2], b[2];
        pair(a);
        int number = a[0];
        np_desc *d = np_open(e, number, NP_STREAM, "old", NULL);
        CHECK(d);
        EQ(write(a[1], "x", 1), 1);
        sleep_ms(20); /* dedicated: let the netpoller receive it */
        np_close(e, d);
        close(a[0]);
        pair(b);
        EQ(dup2(b[0], number), number); /* the same number, another file */
        if (b[0] != number) close(b[0]);
        fcntl(number, F_SETFL, O_NONBLOCK);
        np_desc *f = np_open(e, number, NP_STREAM, "new", NULL);
        CHECK(f);
        np_event ev[8];
        for (int i = 0; i < 5; i++) EQ(turn(e, ev, 8, 5), 0);
        EQ(write(b[1], "new", 3), 3);
        CHECK(wait_bits(e, "new", NP_R, 2000) & NP_R);
        char buf[16];
        EQ(np_recv(e, f, buf, sizeof buf), 3);
        CHECK(memcmp(buf, "new", 3) == 0);
        EQ(np_recv(e, f, buf, sizeof buf), -EAGAIN);
        np_close(e, f);
        close(number);
        close(a[1]);
        close(b[1]);
        engine_end(e);
    }
}

TEST(opening_an_open_number_replaces_the_old_descriptor, 20) {
    EACH_CONFIG(c) {
        np_engine *e = engine(c);
        int a[2];
        pair(a);
        np_desc *d = np_open(e, a[0], NP_STREAM, "first", NULL);
        static char big[1 << 20];
        EQ(queue_told(e, d, big, sizeof big, "cookie"), 0);
        d = np_open(e, a[0], NP_WAIT, "second", NULL);
        CHECK(d);
        const char *cookie = np_done(e);
        CHECK(cookie && strcmp(cookie, "cookie") == 0);
        EQ(write(a[1], "x", 1), 1);
        np_event ev[8];
        unsigned bits = 0;
        for (int i = 0; i < 50 && !(bits & NP_R); i++) {
            int n = turn(e, ev, 8, 20);
            for (int k = 0; k < n; k++) {
                CHECK(strcmp(ev[k].user, "second") == 0);
                bits |= ev[k].bits;
            }
        }
        CHECK(bits & NP_R);
        np_close(e, d);
        close(a[0]);
        close(a[1]);
        engine_end(e);
    }
}

/* The error of whichever of the two registers it. */
static int open_and_arm(np_engine *e, int fd, np_kind kind) {
    int err = 0;
    np_desc *d = np_open(e, fd, kind, NULL, &err);
    if (d && (kind == NP_LISTEN || kind == NP_LEVEL)) {
        err = np_arm(e, d, NP_R);
        np_close(e, d);
    }
    return err;
}

TEST(impossible_calls_get_an_error, 20) {
    int err = 0;
    CHECK(!np_engine_new((np_mode)7, &err));
    EQ(err, -EINVAL);
    np_engine_free(NULL);
    EACH_CONFIG(c) {
        np_engine *e = engine(c);
        int a[2];
        char buf[8];
        pair(a);
        for (int kind = NP_STREAM; kind <= NP_LEVEL; kind++) {
            CHECK(!np_open(e, -1, (np_kind)kind, NULL, &err));
            EQ(err, -EBADF);
            CHECK(!np_open(e, 1 << 30, (np_kind)kind, NULL, &err));
            EQ(err, -EMFILE);
            int file = open("/proc/self/exe", O_RDONLY);
            EQ(open_and_arm(e, 900, (np_kind)kind), -EBADF);
            EQ(open_and_arm(e, file, (np_kind)kind), -EPERM);
            close(file);
        }
        CHECK(!np_open(e, a[0], (np_kind)9, NULL, &err));
        EQ(err, -EINVAL);
        np_desc *d = np_open(e, a[0], NP_STREAM, NULL, &err);
        EQ(err, 0);
        EQ(np_arm(e, d, NP_R), -EINVAL);
        EQ(np_rearm(e, d), 0);
        EQ(np_accept(e, d, NULL, NULL), -EINVAL);
        EQ(np_accepted(e, d, NULL, NULL), -EINVAL);
        EQ(np_recv(e, d, buf, 0), -EINVAL);
        EQ(np_send(e, d, buf, 0), 0);
        EQ(np_sendv(e, d, NULL, -1), -EINVAL);
        EQ(np_sendv(e, d, NULL, 0), 0);
        np_close(e, d);
        np_close(e, d);
        EQ(np_recv(e, d, buf, 1), -EBADF);
        EQ(np_send(e, d, buf, 1), -EBADF);
        EQ(queue_told(e, d, buf, 1, NULL), -EBADF);
        EQ(np_flush(e, d), -EBADF);
        EQ(np_arm(e, d, NP_R), -EBADF);
        EQ(np_rearm(e, d), -EBADF);
        EQ(np_accept(e, d, NULL, NULL), -EBADF);
        EQ(np_pending(d), 0);
        EQ(np_more(d), 0);
        np_discard(e, d);
        EQ(np_recv(e, NULL, buf, 1), -EBADF);
        EQ(np_recv(NULL, d, buf, 1), -EBADF);
        CHECK(!np_done(e));
        np_event ev;
        EQ(np_poll(e, &ev, 0), 0);
        EQ(np_poll(e, NULL, 5), 0);
        d = np_open(e, a[0], NP_LEVEL, NULL, &err);
        EQ(np_arm(e, d, NP_R | NP_HUP), -EINVAL);
        EQ(np_send(e, d, buf, 1), -EINVAL);
        np_close(e, d);
        close(a[0]);
        close(a[1]);
        engine_end(e);
    }
}

TEST(an_empty_queue_call_returns_its_cookie, 10) {
    np_engine *e = engine_of(NP_AUTO);
    int a[2];
    pair(a);
    np_desc *d = np_open(e, a[0], NP_STREAM, NULL, NULL);
    EQ(queue_told(e, d, "", 0, "c"), 0);
    CHECK(np_done(e));
    CHECK(!np_done(e));
    np_close(e, d);
    close(a[0]);
    close(a[1]);
    engine_end(e);
}

TEST(level_descriptors_report_until_drained_and_only_what_is_armed, 20) {
    EACH_CONFIG(c) {
        np_engine *e = engine(c);
        int a[2];
        char buf[16];
        np_event ev[8];
        pair(a);
        np_desc *d = np_open(e, a[0], NP_LEVEL, "L", NULL);
        EQ(write(a[1], "xy", 2), 2);
        EQ(turn(e, ev, 8, 20), 0); /* not armed yet */
        EQ(np_arm(e, d, NP_R), 0);
        for (int i = 0; i < 3; i++) { /* level: again and again, after each rearm */
            unsigned bits = wait_bits(e, "L", NP_R, 2000);
            EQ(bits, NP_R);
            EQ(np_rearm(e, d), 0);
        }
        EQ(read(a[0], buf, sizeof buf), 2);
        EQ(np_arm(e, d, NP_R), 0); /* forgets what was reported before */
        EQ(turn(e, ev, 8, 20), 0);
        EQ(np_arm(e, d, NP_W), 0);
        EQ(wait_bits(e, "L", NP_W, 2000), NP_W);
        EQ(np_rearm(e, d), 0);
        EQ(np_arm(e, d, 0), 0);
        EQ(write(a[1], "z", 1), 1);
        EQ(turn(e, ev, 8, 20), 0);
        EQ(np_arm(e, d, NP_R | NP_W), 0);
        EQ(wait_bits(e, "L", NP_R | NP_W, 2000), NP_R | NP_W);
        np_close(e, d);
        close(a[0]);
        close(a[1]);
        engine_end(e);
    }
}

/* The netpoller may have the event in hand while the worker removes its reader
 * and adds another one: that one would read from an empty socket. */
TEST(nothing_from_before_an_arm_is_reported_after_it, 60) {
    EACH_CONFIG(c) {
        np_engine *e = engine(c);
        int a[2];
        char byte;
        np_event ev[8];
        pair(a);
        np_desc *d = np_open(e, a[0], NP_LEVEL, "L", NULL);
        for (int i = 0; i < 1500; i++) {
            EQ(np_arm(e, d, NP_R), 0);
            EQ(write(a[1], "x", 1), 1);
            for (volatile int spin = i % 50 * 40; spin > 0; spin--) {
            }
            if (i % 3 == 0) EQ(np_arm(e, d, 0), 0);
            EQ(read(a[0], &byte, 1), 1);
            EQ(np_arm(e, d, NP_R), 0);
            for (int k = 0; k < 3; k++) {
                EQ(np_poll(e, ev, 8), 0);
                if (c->thread && i % 4 == 0) usleep(50);
            }
        }
        np_close(e, d);
        close(a[0]);
        close(a[1]);
        engine_end(e);
    }
}

/* uvloop issue 61: epoll reports hang-ups for a mask of 0 too. */
TEST(a_hung_up_peer_without_interest_does_not_spin, 20) {
    EACH_CONFIG(c) {
        np_engine *e = engine(c);
        int a[2];
        np_event ev[8];
        pair(a);
        np_desc *d = np_open(e, a[0], NP_LEVEL, "L", NULL);
        np_desc *never = np_open(e, a[0], NP_LEVEL, "L", NULL);
        CHECK(d == never);
        EQ(np_arm(e, d, NP_R), 0);
        EQ(np_arm(e, d, 0), 0);
        close(a[1]);
        np_stats before, after;
        np_get_stats(e, &before);
        for (int i = 0; i < 4; i++) EQ(turn(e, ev, 8, 50), 0);
        np_get_stats(e, &after);
        CHECK(after.polls - before.polls < 20);
        EQ(np_arm(e, d, NP_W), 0); /* a hang-up wakes both sides */
        CHECK(wait_bits(e, "L", NP_W | NP_HUP, 2000) == (NP_W | NP_HUP));
        np_close(e, d);
        close(a[0]);
        engine_end(e);
    }
}

/* A number closed behind our back, its file alive by a dup: epoll_ctl cannot
 * reach the registration any more. */
TEST(a_stale_level_registration_does_not_spin_for_ever, 30) {
    EACH_CONFIG(c) {
        np_engine *e = engine(c);
        int a[2], live[2], idle[2];
        np_event ev[8];
        pair(a);
        pair(live);
        pair(idle);
        int copy;
        np_desc *l = np_open(e, live[0], NP_STREAM, "live", NULL);
        np_desc *w = np_open(e, idle[0], NP_LEVEL, "level", NULL);
        EQ(np_arm(e, w, NP_R), 0);
        for (int round = 0; round < 3; round++) {
            np_desc *d = np_open(e, a[0], NP_LEVEL, "stale", NULL);
            EQ(np_arm(e, d, NP_R), 0);
            copy = dup(a[0]);
            close(a[0]);
            np_close(e, d);
            if (round == 0) EQ(write(a[1], "x", 1), 1);
            for (int i = 0; i < 60; i++) {
                EQ(np_poll(e, ev, 8), 0);
                if (c->thread && c->mode == NP_DEDICATED) sleep_ms(1);
            }
            np_stats before, after;
            np_get_stats(e, &before);
            int64_t t = now_ns();
            np_park_prepare(e);
            EQ(np_park(e, ev, 8, t + 100 * MS), 0);
            CHECK(now_ns() - t >= 100 * MS);
            np_get_stats(e, &after);
            CHECK(after.polls - before.polls < 10);
            /* The others were brought along. */
            EQ(write(live[1], "y", 1), 1);
            CHECK(wait_bits(e, "live", NP_R, 2000) & NP_R);
            char buf[4];
            EQ(np_recv(e, l, buf, 4), 1);
            EQ(write(idle[1], "y", 1), 1);
            CHECK(wait_bits(e, "level", NP_R, 2000) & NP_R);
            EQ(read(idle[0], buf, 4), 1);
            EQ(np_rearm(e, w), 0);
            a[0] = copy;
        }
        np_close(e, l);
        np_close(e, w);
        close(copy);
        close(a[1]);
        for (int i = 0; i < 2; i++) {
            close(live[i]);
            close(idle[i]);
        }
        engine_end(e);
    }
}

TEST(several_stale_registrations_do_not_hide_each_other, 30) {
    EACH_CONFIG(c) {
        np_engine *e = engine(c);
        enum { N = 5 };
        int a[N][2], copy[N];
        np_event ev[8];
        for (int i = 0; i < N; i++) {
            pair(a[i]);
            np_desc *d = np_open(e, a[i][0], NP_LEVEL, "stale", NULL);
            EQ(np_arm(e, d, NP_R), 0);
            copy[i] = dup(a[i][0]);
            close(a[i][0]);
            np_close(e, d);
        }
        for (int i = 0; i < N; i++) EQ(write(a[i][1], "x", 1), 1);
        np_park_prepare(e);
        EQ(np_park(e, ev, 8, now_ns() + 100 * MS), 0);
        np_stats before, after;
        np_get_stats(e, &before);
        CHECK(before.polls < 200);
        np_park_prepare(e);
        EQ(np_park(e, ev, 8, now_ns() + 100 * MS), 0);
        np_get_stats(e, &after);
        CHECK(after.polls - before.polls < 5);
        for (int i = 0; i < N; i++) {
            close(a[i][1]);
            close(copy[i]);
        }
        engine_end(e);
    }
}

/* The same trap, and the number in use again: the old file's readiness must not
 * be reported for the new descriptor. */
TEST(a_stale_registration_reports_nothing_for_the_numbers_next_owner, 30) {
    for (int kind = NP_STREAM; kind <= NP_LEVEL; kind++) {
        if (kind == NP_LISTEN) continue;
        EACH_CONFIG(c) {
            np_engine *e = engine(c);
            int a[2], b[2];
            np_event ev[8];
            pair(a);
            pair(b);
            np_desc *d = np_open(e, a[0], (np_kind)kind, "old", NULL);
            if (kind == NP_LEVEL) EQ(np_arm(e, d, NP_R), 0);
            while (turn(e, ev, 8, 5)) { /* the first edge */
            }
            int copy = dup(a[0]);
            EQ(dup2(b[0], a[0]), a[0]);
            close(b[0]);
            np_close(e, d);
            np_desc *n = np_open(e, a[0], (np_kind)kind, "new", NULL);
            CHECK(n);
            if (kind == NP_LEVEL) EQ(np_arm(e, n, NP_R), 0);
            while (turn(e, ev, 8, 5)) {
            }
            for (int i = 0; i < 5; i++) {
                EQ(write(a[1], "x", 1), 1); /* to the old file */
                int k = turn(e, ev, 8, 2);
                for (int j = 0; j < k; j++) CHECK(!(ev[j].bits & NP_R));
            }
            EQ(write(b[1], "y", 1), 1);
            CHECK(wait_bits(e, "new", NP_R, 2000) & NP_R);
            np_close(e, n);
            close(copy);
            close(a[0]);
            close(a[1]);
            close(b[1]);
            engine_end(e);
        }
    }
}

/* The number is closed behind our back, and is the file of somebody who has not
 * given it to us: readable, and the peer's end is returned. */
static int take_away(int number) {
    int other[2];
    pair(other);
    EQ(dup2(other[0], number), number);
    close(other[0]);
    EQ(write(other[1], "x", 1), 1);
    return other[1];
}

static void expect_untouched(np_engine *e, int number) {
    np_event ev[8];
    char buf[4];
    for (int i = 0; i < 10; i++) EQ(turn(e, ev, 8, 2), 0);
    EQ(read(number, buf, sizeof buf), 1);
}

TEST(arming_a_number_that_was_reused_takes_the_new_file_only_once_it_is_opened, 20) {
    for (int noticed = 0; noticed < 2; noticed++) { /* before */
        EACH_CONFIG(c) {
            np_engine *e = engine(c);
            int a[2];
            pair(a);
            np_desc *d = np_open(e, a[0], NP_LEVEL, "L", NULL);
            EQ(np_arm(e, d, NP_R), 0);
            CHECK(np_is_same(e, d));
            int other = take_away(a[0]);
            if (noticed) CHECK(!np_is_same(e, d));
            EQ(np_arm(e, d, NP_R | NP_W), -ENOENT);
            CHECK(!np_is_same(e, d));
            expect_untouched(e, a[0]);
            d = np_open(e, a[0], NP_LEVEL, "new", NULL);
            EQ(np_arm(e, d, NP_R), 0);
            EQ(write(other, "x", 1), 1);
            CHECK(wait_bits(e, "new", NP_R, 2000) & NP_R);
            np_close(e, d);
            close(a[0]);
            close(a[1]);
            close(other);
            engine_end(e);
        }
    }
}

static void rebuild(np_engine *e) {
    int s[2];
    np_event ev[8];
    pair(s);
    np_desc *d = np_open(e, s[0], NP_LEVEL, "stale", NULL);
    EQ(np_arm(e, d, NP_R), 0);
    int copy = dup(s[0]);
    close(s[0]);
    np_close(e, d);
    EQ(write(s[1], "x", 1), 1);
    for (int i = 0; i < 60; i++) {
        EQ(np_poll(e, ev, 8), 0);
        usleep(500); /* dedicated: the netpoller waits that often meanwhile */
    }
    np_stats before, after;
    np_get_stats(e, &before);
    EQ(turn(e, ev, 8, 20), 0);
    np_get_stats(e, &after);
    CHECK(after.polls - before.polls < 10); /* it is rebuilt */
    close(copy);
    close(s[1]);
}

TEST(a_number_that_was_closed_behind_our_back_is_not_registered_for_its_next_file, 60) {
    enum { REARM, RESTART, REBUILD, HOWS };
    for (int how = 0; how < HOWS; how++) {
        for (int kind = NP_STREAM; kind <= NP_LEVEL; kind++) {
            if (kind == NP_LISTEN || (how == REARM && kind != NP_LEVEL)) continue;
            EACH_CONFIG(c) {
                if (how == RESTART && !c->thread) continue;
                np_engine *e = engine(c);
                np_event ev[8];
                char buf[4];
                int a[2];
                pair(a);
                np_desc *d = np_open(e, a[0], (np_kind)kind, "old", NULL);
                if (kind == NP_LEVEL) EQ(np_arm(e, d, NP_R), 0);
                while (turn(e, ev, 8, 5)) { /* the first edge */
                }
                if (how == REARM) {
                    EQ(write(a[1], "x", 1), 1);
                    CHECK(wait_bits(e, "old", NP_R, 2000) & NP_R);
                    EQ(read(a[0], buf, sizeof buf), 1);
                }
                int other = take_away(a[0]);
                if (how == REARM) {
                    (void)np_rearm(e, d); /* what it answers depends on whether the report had disarmed it */
                } else if (how == RESTART) {
                    np_thread_stop(e);
                    EQ(np_thread_start(e), 0);
                } else {
                    rebuild(e);
                }
                expect_untouched(e, a[0]);
                np_close(e, d);
                close(a[0]);
                close(a[1]);
                close(other);
                engine_end(e);
            }
        }
    }
}

TEST(many_descriptors_in_chunks_that_never_move, 30) {
    EACH_CONFIG(c) {
        np_engine *e = engine(c);
        enum { N = 400 };
        static int fds[N][2];
        static np_desc *d[N];
        for (int i = 0; i < N; i++) {
            pair(fds[i]);
            d[i] = np_open(e, fds[i][0], NP_STREAM, fds[i], NULL);
            CHECK(d[i]);
        }
        for (int i = 0; i < N; i++) EQ(write(fds[i][1], &i, sizeof i), sizeof i);
        int seen = 0;
        np_event ev[64];
        while (seen < N) {
            int n = turn(e, ev, 64, 1000);
            for (int k = 0; k < n; k++) {
                if (!(ev[k].bits & NP_R)) continue;
                int i = (int)((int(*)[2])ev[k].user - fds), value = -1;
                EQ(np_recv(e, d[i], &value, sizeof value), sizeof value);
                EQ(value, i);
                seen++;
            }
        }
        for (int i = 0; i < N; i++) {
            np_close(e, d[i]);
            close(fds[i][0]);
            close(fds[i][1]);
        }
        engine_end(e);
    }
}

TEST(in_a_forked_child_the_engine_is_dead, 20) {
    EACH_CONFIG(c) {
        np_engine *e = engine(c);
        int a[2];
        char buf[8];
        np_event ev[8];
        pair(a);
        np_desc *d = np_open(e, a[0], NP_STREAM, "d", NULL);
        static char big[4 << 20];
        EQ(queue_told(e, d, big, sizeof big, "cookie"), 0);
        np_thread_stop(e); /* as the fork hook does */
        pid_t pid = fork();
        if (pid == 0) {
            np_fork_child(e);
            int ok = np_poll(e, ev, 8) == 0 && np_recv(e, d, buf, 8) == -EBADF && np_thread_start(e) == -EBADF &&
                     np_send(e, d, buf, 8) == -EBADF && !np_open(e, a[0], NP_STREAM, NULL, NULL) && !np_done(e);
            np_park_prepare(e);
            ok = ok && np_park(e, ev, 8, -1) == 0;
            np_wake(e);
            np_close(e, d);
            np_discard(e, d);
            np_set_running(e, 0);
            np_thread_stop(e);
            np_stats s;
            np_get_stats(e, &s);
            np_engine_free(e);
            _exit(ok ? 0 : 1);
        }
        int status;
        EQ(waitpid(pid, &status, 0), pid);
        EQ(status, 0);
        if (c->thread) EQ(np_thread_start(e), 0);
        EQ(write(a[1], "x", 1), 1); /* the parent's goes on */
        CHECK(wait_bits(e, "d", NP_R, 2000) & NP_R);
        EQ(np_recv(e, d, buf, 8), 1);
        np_close(e, d);
        close(a[0]);
        close(a[1]);
        engine_end(e);
    }
}
