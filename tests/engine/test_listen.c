/* Listeners. */
#include <sys/resource.h>

#include "harness.h"

static int connect_to(struct sockaddr_in *addr) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    CHECK(fd >= 0);
    EQ(connect(fd, (struct sockaddr *)addr, sizeof *addr), 0);
    return fd;
}

TEST(connections_are_accepted_with_their_address, 30) {
    EACH_CONFIG(c) {
        np_engine *e = engine(c);
        struct sockaddr_in addr, name;
        int l = listener(&addr);
        np_desc *d = np_open(e, l, NP_LISTEN, "l", NULL);
        EQ(np_accept(e, d, NULL, NULL), -EAGAIN);
        EQ(np_accepted(e, d, NULL, NULL), -EAGAIN);
        EQ(np_arm(e, d, NP_R), 0);
        for (int i = 0; i < 40; i++) {
            int fd = connect_to(&addr);
            socklen_t len = sizeof name;
            getsockname(fd, (struct sockaddr *)&name, &len);
            CHECK(wait_bits(e, "l", NP_R, 2000) & NP_R);
            struct sockaddr_storage peer;
            len = sizeof peer;
            int conn = np_accept(e, d, i % 3 ? &peer : NULL, i % 3 ? &len : NULL);
            CHECK(conn >= 0);
            EQ(np_rearm(e, d), 0);
            if (i % 3) {
                EQ(len, sizeof(struct sockaddr_in));
                EQ(((struct sockaddr_in *)&peer)->sin_port, name.sin_port);
            }
            CHECK(fcntl(conn, F_GETFL) & O_NONBLOCK);
            CHECK(fcntl(conn, F_GETFD) & FD_CLOEXEC);
            close(conn);
            close(fd);
        }
        np_close(e, d);
        close(l);
        engine_end(e);
    }
}

TEST(undelivered_connections_are_bounded_and_none_is_lost, 30) {
    EACH_CONFIG(c) {
        np_engine *e = engine(c);
        struct sockaddr_in addr;
        int l = listener(&addr), fds[60], got = 0;
        np_desc *d = np_open(e, l, NP_LISTEN, "l", NULL);
        EQ(np_arm(e, d, NP_R), 0);
        for (int i = 0; i < 60; i++) fds[i] = connect_to(&addr);
        sleep_ms(50);
        np_stats s;
        np_get_stats(e, &s);
        CHECK(s.netpoller_syscalls <= 33); /* 16 accepted at most, an EAGAIN after each */
        for (int64_t end = now_ns() + 5000 * MS; got < 60 && now_ns() < end;) {
            wait_bits(e, "l", NP_R, 200);
            int conn, batch = 0;
            while (batch < 5 && (conn = np_accept(e, d, NULL, NULL)) >= 0) {
                close(conn);
                got++;
                batch++;
            }
            EQ(np_rearm(e, d), 0); /* reports again what is left in the ring */
        }
        EQ(got, 60);
        np_close(e, d);
        close(l);
        for (int i = 0; i < 60; i++) close(fds[i]);
        engine_end(e);
    }
}

TEST(a_listener_that_is_not_armed_accepts_nothing, 30) {
    EACH_CONFIG(c) {
        np_engine *e = engine(c);
        struct sockaddr_in addr;
        int l = listener(&addr), fds[3];
        np_desc *d = np_open(e, l, NP_LISTEN, "l", NULL);
        EQ(np_arm(e, d, NP_R), 0);
        EQ(np_arm(e, d, 0), 0);
        for (int i = 0; i < 3; i++) fds[i] = connect_to(&addr);
        EQ(wait_bits(e, "l", NP_R, 50), 0);
        EQ(np_accepted(e, d, NULL, NULL), -EAGAIN);
        EQ(np_arm(e, d, NP_R), 0);
        int got = 0;
        for (int64_t end = now_ns() + 3000 * MS; got < 3 && now_ns() < end;) {
            wait_bits(e, "l", NP_R, 100);
            int conn;
            while ((conn = np_accept(e, d, NULL, NULL)) >= 0) {
                close(conn);
                got++;
            }
            np_rearm(e, d);
        }
        EQ(got, 3);
        /* What was accepted stays available after arm(0), and is closed with it. */
        for (int i = 0; i < 3; i++) close(fds[i]);
        for (int i = 0; i < 3; i++) fds[i] = connect_to(&addr);
        sleep_ms(30);
        EQ(np_arm(e, d, 0), 0);
        int conn = np_accepted(e, d, NULL, NULL);
        if (c->mode == NP_DEDICATED && c->thread) {
            CHECK(conn >= 0);
            close(conn);
        } else {
            EQ(conn, -EAGAIN);
        }
        np_close(e, d); /* closes the other two: the harness counts descriptors */
        close(l);
        for (int i = 0; i < 3; i++) close(fds[i]);
        engine_end(e);
    }
}

TEST(out_of_file_descriptors_is_told_once_and_passes, 30) {
    EACH_CONFIG(c) {
        np_engine *e = engine(c);
        struct sockaddr_in addr;
        struct rlimit before, low;
        int l = listener(&addr);
        np_desc *d = np_open(e, l, NP_LISTEN, "l", NULL);
        int client = connect_to(&addr);
        int top = dup(0);
        close(top);
        getrlimit(RLIMIT_NOFILE, &before);
        low = before;
        low.rlim_cur = (rlim_t)top;
        setrlimit(RLIMIT_NOFILE, &low);
        EQ(np_arm(e, d, NP_R), 0);
        CHECK(wait_bits(e, "l", NP_R, 2000) & NP_R);
        EQ(np_accept(e, d, NULL, NULL), -EMFILE);
        EQ(np_arm(e, d, 0), 0);
        np_stats a, b;
        np_get_stats(e, &a);
        EQ(wait_bits(e, "l", NP_R, 60), 0);
        np_get_stats(e, &b);
        CHECK(b.polls - a.polls < 10);
        setrlimit(RLIMIT_NOFILE, &before);
        EQ(np_arm(e, d, NP_R), 0);
        CHECK(wait_bits(e, "l", NP_R, 2000) & NP_R);
        int conn = np_accept(e, d, NULL, NULL);
        CHECK(conn >= 0);
        close(conn);
        np_close(e, d);
        close(l);
        close(client);
        engine_end(e);
    }
}

TEST(a_ring_full_and_emptied_without_rearm_goes_on, 30) {
    np_engine *e = engine_of(NP_DEDICATED);
    struct sockaddr_in addr;
    int l = listener(&addr), fds[100], got = 0;
    np_desc *d = np_open(e, l, NP_LISTEN, "l", NULL);
    EQ(np_arm(e, d, NP_R), 0);
    for (int i = 0; i < 100; i++) fds[i] = connect_to(&addr);
    for (int64_t end = now_ns() + 5000 * MS; got < 100 && now_ns() < end;) {
        int conn;
        while ((conn = np_accept(e, d, NULL, NULL)) >= 0) {
            close(conn);
            got++;
        }
        if (got < 100) wait_bits(e, "l", NP_R, 200);
    }
    EQ(got, 100);
    np_close(e, d);
    close(l);
    for (int i = 0; i < 100; i++) close(fds[i]);
    engine_end(e);
}
