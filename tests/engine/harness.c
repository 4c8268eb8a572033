#include "harness.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <stdarg.h>

static struct {
    const char *name;
    test_fn fn;
    int limit_s;
} tests[256];
static int test_count;
static const char *running = "?";
static const char *running_config = "";

void test_register(const char *name, test_fn fn, int limit_s) {
    tests[test_count].name = name;
    tests[test_count].fn = fn;
    tests[test_count++].limit_s = limit_s;
}

void test_fail(const char *file, int line, const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    fprintf(stderr, "FAIL %s [%s] %s:%d: ", running, running_config, file, line);
    vfprintf(stderr, fmt, ap);
    fprintf(stderr, "\n");
    va_end(ap);
    fflush(stderr);
    if (getenv("ABORT")) abort();
    _exit(1);
}

static void on_alarm(int sig) {
    (void)sig;
    char text[300];
    int n = snprintf(text, sizeof text, "FAIL %s [%s]: time limit\n", running, running_config);
    if (write(2, text, (size_t)n) < 0) {
    }
    if (getenv("ABORT")) abort();
    _exit(1);
}

const struct config configs[] = {
    {"inline", NP_INLINE, 0, 0, 0},
    {"auto, no thread", NP_AUTO, 0, 0, 0},
    {"auto", NP_AUTO, 1, 0, 0},
    {"auto, offloading", NP_AUTO, 1, 1, 0},
    {"auto, offloading one by one", NP_AUTO, 1, 1, 1},
    {"dedicated, no thread", NP_DEDICATED, 0, 0, 0},
    {"dedicated", NP_DEDICATED, 1, 0, 0},
    {"dedicated, one by one", NP_DEDICATED, 1, 0, 1},
    {NULL, NP_INLINE, 0, 0, 0},
};

int test_config(const struct config *c) {
    running_config = c->name ? c->name : "";
    return c->name != NULL;
}

np_engine *engine(const struct config *c) {
    int err = 1;
    np_engine *e = np_engine_new(c->mode, &err);
    CHECK(e);
    EQ(err, 0);
    np_set_running(e, 1);
    if (c->one_by_one) np_send_one_by_one(e);
    if (c->thread) EQ(np_thread_start(e), 0);
    if (c->offload) EQ(np_offload(e, NP_BY_NETPOLLER), NP_BY_NETPOLLER);
    return e;
}

np_engine *engine_of(np_mode mode) {
    struct config c = {"", mode, 1, 0, 0};
    return engine(&c);
}

void engine_end(np_engine *e) {
    np_set_running(e, 0);
    while (np_done(e)) {
    }
    np_engine_free(e);
}

int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

void sleep_ms(int ms) {
    struct timespec t = {ms / 1000, ms % 1000 * MS};
    while (nanosleep(&t, &t) < 0 && errno == EINTR) {
    }
}

void pair(int fds[2]) { EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds), 0); }

int listener(struct sockaddr_in *addr) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    CHECK(fd >= 0);
    memset(addr, 0, sizeof *addr);
    addr->sin_family = AF_INET;
    addr->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    EQ(bind(fd, (struct sockaddr *)addr, sizeof *addr), 0);
    EQ(listen(fd, 128), 0);
    socklen_t len = sizeof *addr;
    EQ(getsockname(fd, (struct sockaddr *)addr, &len), 0);
    return fd;
}

void tcp_pair(int fds[2]) {
    struct sockaddr_in addr;
    int l = listener(&addr);
    fds[1] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    EQ(connect(fds[1], (struct sockaddr *)&addr, sizeof addr), 0);
    struct pollfd p = {l, POLLIN, 0};
    EQ(poll(&p, 1, 5000), 1);
    fds[0] = accept4(l, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    CHECK(fds[0] >= 0);
    fcntl(fds[1], F_SETFL, O_NONBLOCK);
    close(l);
}

void blocking(int fd) { fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) & ~O_NONBLOCK); }

void fill(uint8_t *buf, size_t n, uint32_t seed, uint64_t at) {
    for (size_t i = 0; i < n; i++) buf[i] = pattern(seed, at + i);
}

void verify(const uint8_t *buf, size_t n, uint32_t seed, uint64_t at) {
    for (size_t i = 0; i < n; i++) {
        if (buf[i] != pattern(seed, at + i))
            test_fail(__FILE__, __LINE__, "stream %u: wrong byte at %llu", seed, (unsigned long long)(at + i));
    }
}

int queue_told(np_engine *e, np_desc *d, const void *buf, size_t size, void *cookie) {
    np_tell(e, d);
    return np_queue(e, d, buf, size, cookie);
}

int turn(np_engine *e, np_event *out, int max, int ms) {
    int n = np_poll(e, out, max);
    if (n || ms == 0) return n;
    np_park_prepare(e);
    return np_park(e, out, max, now_ns() + ms * MS);
}

unsigned wait_bits(np_engine *e, void *user, unsigned want, int ms) {
    int64_t end = now_ns() + ms * MS;
    unsigned bits = 0;
    np_event ev[64];
    do {
        int n = np_poll(e, ev, 64);
        if (!n) {
            np_park_prepare(e);
            n = np_park(e, ev, 64, end);
        }
        for (int i = 0; i < n; i++) {
            if (ev[i].user == user) bits |= ev[i].bits;
        }
    } while ((!want || (bits & want) != want) && now_ns() < end);
    return bits;
}

static void *read_all(void *arg) {
    struct reader *r = arg;
    uint8_t *buf = malloc(r->chunk);
    uint64_t at = 0;
    for (;;) {
        ssize_t n = recv(r->fd, buf, r->chunk, 0);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) break;
        verify(buf, (size_t)n, r->seed, at);
        at += (uint64_t)n;
        atomic_store(&r->got, at);
        if (r->pause_us) usleep((useconds_t)r->pause_us);
    }
    free(buf);
    return NULL;
}

void reader_start(struct reader *r) {
    blocking(r->fd);
    atomic_store(&r->got, 0);
    EQ(pthread_create(&r->thread, NULL, read_all, r), 0);
}

void reader_join(struct reader *r) { pthread_join(r->thread, NULL); }

static void *write_all(void *arg) {
    struct writer *w = arg;
    uint8_t *buf = malloc(w->chunk);
    size_t at = 0;
    while (at < w->n) {
        size_t n = w->n - at < w->chunk ? w->n - at : w->chunk;
        fill(buf, n, w->seed, at);
        for (size_t sent = 0; sent < n;) {
            ssize_t m = send(w->fd, buf + sent, n - sent, MSG_NOSIGNAL);
            if (m < 0 && errno == EINTR) continue;
            if (m < 0) goto out;
            sent += (size_t)m;
        }
        at += n;
        if (w->pause_us) usleep((useconds_t)w->pause_us);
    }
    shutdown(w->fd, SHUT_WR);
out:
    free(buf);
    return NULL;
}

void writer_start(struct writer *w) {
    blocking(w->fd);
    EQ(pthread_create(&w->thread, NULL, write_all, w), 0);
}

void writer_join(struct writer *w) { pthread_join(w->thread, NULL); }

int tid_of(const char *name) {
    int found = -1;
    DIR *dir = opendir("/proc/self/task");
    for (struct dirent *de; (de = readdir(dir)) != NULL;) {
        char path[300], text[64] = "";
        snprintf(path, sizeof path, "/proc/self/task/%s/comm", de->d_name);
        FILE *f = fopen(path, "r");
        if (!f) continue;
        if (fgets(text, sizeof text, f) && strncmp(text, name, strlen(name)) == 0) found = atoi(de->d_name);
        fclose(f);
    }
    closedir(dir);
    return found;
}

long voluntary_switches(int tid) {
    char path[100], line[200];
    long n = -1;
    snprintf(path, sizeof path, "/proc/self/task/%d/status", tid);
    FILE *f = fopen(path, "r");
    CHECK(f);
    while (fgets(line, sizeof line, f)) {
        if (sscanf(line, "voluntary_ctxt_switches: %ld", &n) == 1) break;
    }
    fclose(f);
    return n;
}

static int open_fds(void) {
    int n = 0;
    DIR *dir = opendir("/proc/self/fd");
    while (readdir(dir)) n++;
    closedir(dir);
    return n;
}

int main(int argc, char **argv) {
    int ran = 0;
    signal(SIGALRM, on_alarm);
    signal(SIGPIPE, SIG_DFL); /* the engine must not raise it */
    for (int i = 0; i < test_count; i++) {
        int wanted = argc < 2;
        for (int a = 1; a < argc; a++) wanted |= strstr(tests[i].name, argv[a]) != NULL;
        if (!wanted) continue;
        running = tests[i].name;
        running_config = "";
        int fds = open_fds();
        int64_t t = now_ns();
        alarm((unsigned)tests[i].limit_s);
        tests[i].fn();
        alarm(0);
        if (open_fds() != fds) test_fail(__FILE__, __LINE__, "file descriptors: %d before, %d after", fds, open_fds());
        printf("ok %-44s %5lld ms\n", running, (long long)((now_ns() - t) / MS));
        fflush(stdout);
        ran++;
    }
    printf("%d tests passed\n", ran);
    return ran ? 0 : 1;
}
