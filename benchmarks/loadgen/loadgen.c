/* loadgen: the load generator of netpoll_loop's benchmarks. One thread, epoll, C11, no dependencies.
 *
 *     loadgen echo  each connection sends a message and waits until the same bytes are back, again and again
 *     loadgen http  each connection sends GET requests over keep-alive, one at a time
 *     loadgen idle  each connection exchanges one message, then all of them stay open and silent
 *     loadgen burst all connections are opened at once, each exchanges one message; begins at a line on standard input
 *
 * A run goes through these phases:
 *   opening   connections are opened, at most OPENING_WINDOW at a time; each counts as open after its first exchange, so
 *             that no accept queue overflows and every connection is known to be served
 *   warm-up   load, not measured
 *   measured  `requests` counts the responses that end here; nothing else goes into requests/s
 *   drain     no new requests; every response still due has to come. Their latencies are recorded: a response that
 *             was held up for long is the one that must not be left out
 *
 * With --rate the load is open-loop: request number k is due k/rate seconds after the load begins, whatever became of those
 * before it. It goes out on the connection that has been free for longest; when none is free it waits for one. Its latency
 * counts from when it was due, so that a server that stalls pays for every request that the stall held up, not only for those
 * that were under way (without that, a client that waits for answers leaves the worst moments out: coordinated omission). What
 * is due in the measured time is what counts, and all of it is sent.
 *
 * Nothing is taken on trust: echo compares every byte (each message is another piece of one random text, which piece
 * depends on the connection and on the message's number), http checks framing, status and, with --expect, the body. A wrong
 * byte ends the run at once. A connection that the server ends is an error and isn't opened again.
 *
 * Exit status: 0 all well; 1 errors (connections lost, status other than 200); 2 a response with wrong bytes; 3 the time
 * limit: some connections got no response; 64 usage. The run ends after --timeout seconds whatever happens.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "histogram.h"
#include "http_response.h"
#include "options.h"

#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define OPENING_WINDOW 64
#define CONNECT_RETRY_S 10
#define RETRY_NS 10000000 /* between two attempts to connect to a server that isn't there yet */
#define PATTERN_WINDOW 65521u /* prime: a connection's messages start at every place of it before one repeats */
#define SCRATCH_BYTES (256u << 10)
#define SECOND 1000000000.0
#define NO_FD -1

enum connection_state {
    UNOPENED,   /* has to be opened, or opened again after a refusal */
    CONNECTING, /* connect() is under way */
    WAITING,    /* a request is out, or partly out, and its response isn't complete */
    PARKED,     /* nothing is out */
    LOST,       /* the server ended it, or it failed */
};

struct connection {
    int fd;
    uint32_t id;
    enum connection_state state;
    bool open, wants_write;
    uint64_t message; /* the number of the current one */
    int64_t started;  /* when it was sent */
    const char *out;
    size_t sent, received;
    struct http_response response;
};

static struct {
    struct connection *connections;
    unsigned *unopened, n_unopened; /* a stack of connection numbers */
    unsigned opening, settled, waiting, lost;
    unsigned *parked, first_parked, n_parked; /* with a schedule: a ring of free connections, the longest free one first */
    uint64_t scheduled;                       /* with a schedule: how many requests were taken off it */
    int64_t schedule_begin;
    int64_t last_sent, last_reply; /* on CLOCK_MONOTONIC, which the server can read too; sent: in a burst only */
    int64_t retry_at; /* no connect() before that */
    union {
        struct sockaddr any;
        struct sockaddr_storage space;
    } address;
    socklen_t address_bytes;
    int epoll;
    char *text; /* what all messages are pieces of (echo), or the request (http) */
    size_t text_bytes;
    int64_t born, limit, begin, end; /* of the run; of what is measured, once all connections are open */
    uint64_t requests, total, errors;
    char first_error[200];
    struct histogram latency;
} run;

static char scratch[SCRATCH_BYTES];

static int64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

__attribute__((format(printf, 2, 3), noreturn)) static void die(int status, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    fputs("loadgen: ", stderr);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    exit(status);
}

__attribute__((format(printf, 1, 2))) static void count_error(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    if (run.errors++ == 0)
        vsnprintf(run.first_error, sizeof run.first_error, format, args);
    va_end(args);
}

/* ---- messages ---- */

static size_t message_bytes(void)
{
    return option.mode == HTTP ? run.text_bytes : option.size;
}

static void make_text(void)
{
    if (option.mode == HTTP) {
        int n = asprintf(&run.text, "GET %s HTTP/1.1\r\nHost: %s\r\nAccept: */*\r\n\r\n", option.path, option.host);
        if (n < 0)
            die(EXIT_ERRORS, "out of memory");
        run.text_bytes = (size_t)n;
        return;
    }
    run.text_bytes = option.size + PATTERN_WINDOW;
    run.text = malloc(run.text_bytes);
    if (!run.text)
        die(EXIT_ERRORS, "out of memory");
    uint64_t x = 0x9e3779b97f4a7c15u;
    for (size_t i = 0; i < run.text_bytes; i++) { /* xorshift64 */
        x ^= x << 13, x ^= x >> 7, x ^= x << 17;
        run.text[i] = (char)(x >> 32);
    }
}

static const char *message_text(const struct connection *c)
{
    if (option.mode == HTTP)
        return run.text;
    return run.text + (c->id * 40503ull + c->message * 7919ull) % PATTERN_WINDOW;
}

__attribute__((noreturn)) static void wrong_bytes(const struct connection *c, const char *got, size_t n)
{
    size_t at = 0;
    while (at < n && c->received + at < c->sent && c->out[c->received + at] == got[at])
        at++;
    if (c->state != WAITING || c->received + at >= c->sent)
        die(EXIT_WRONG_BYTES, "connection %u: %zu bytes that were never sent came after message %llu", c->id, n - at,
            (unsigned long long)c->message);
    die(EXIT_WRONG_BYTES, "connection %u, message %llu: byte %zu of %zu is 0x%02x instead of 0x%02x", c->id,
        (unsigned long long)c->message, c->received + at, option.size, (unsigned char)got[at],
        (unsigned char)c->out[c->received + at]);
}

/* ---- one connection ---- */

static void watch(struct connection *c, int operation, uint32_t events)
{
    struct epoll_event event = {.events = events, .data.u32 = c->id};
    if (epoll_ctl(run.epoll, operation, c->fd, &event) < 0)
        die(EXIT_ERRORS, "epoll_ctl: %s", strerror(errno));
}

static void want_write(struct connection *c, bool wanted)
{
    if (c->wants_write != wanted)
        watch(c, EPOLL_CTL_MOD, wanted ? EPOLLIN | EPOLLOUT : EPOLLIN);
    c->wants_write = wanted;
}

static void leave_opening(struct connection *c)
{
    if (!c->open) {
        c->open = true;
        run.opening--;
        run.settled++;
    }
}

static void lose(struct connection *c, const char *why)
{
    count_error("connection %u, message %llu: %s", c->id, (unsigned long long)c->message, why);
    if (c->state == WAITING)
        run.waiting--;
    close(c->fd);
    c->fd = NO_FD;
    c->state = LOST;
    run.lost++;
    leave_opening(c);
}

static void send_more(struct connection *c)
{
    size_t all = message_bytes();
    while (c->sent < all) {
        ssize_t n = send(c->fd, c->out + c->sent, all - c->sent, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno != EAGAIN) {
            lose(c, strerror(errno));
            return;
        }
        if (n < 0)
            break;
        c->sent += (size_t)n;
    }
    want_write(c, c->sent < all);
}

static void begin_message(struct connection *c, int64_t now)
{
    c->message++;
    c->out = message_text(c);
    c->sent = c->received = 0;
    http_reset(&c->response);
    c->started = now;
    c->state = WAITING;
    run.waiting++;
    send_more(c);
    if (option.burst)
        run.last_sent = now_ns();
}

/* ---- the schedule of --rate ---- */

static void park(struct connection *c)
{
    run.parked[(run.first_parked + run.n_parked++) % option.connections] = c->id;
}

/* When the next request is due; INT64_MAX when all were sent. */
static int64_t next_due(void)
{
    int64_t due = run.schedule_begin + (int64_t)((double)run.scheduled * SECOND / option.rate);
    return due < run.end ? due : INT64_MAX;
}

/* Sends what is due, as far as connections are free. */
static void send_due(void)
{
    int64_t due;
    while (run.n_parked && (due = next_due()) <= now_ns()) {
        struct connection *c = &run.connections[run.parked[run.first_parked]];
        run.first_parked = (run.first_parked + 1) % option.connections;
        run.n_parked--;
        if (c->state != PARKED) /* lost while it was free */
            continue;
        run.scheduled++;
        begin_message(c, due);
    }
}

static void end_message(struct connection *c)
{
    int64_t now = now_ns();
    c->state = PARKED;
    run.waiting--;
    run.total++;
    run.last_reply = now;
    leave_opening(c);
    if (!run.begin || option.mode == IDLE) {
        if (option.mode == IDLE || option.burst)
            histogram_add(&run.latency, (uint64_t)(now - (option.burst ? run.born : c->started)));
        return;
    }
    if (option.rate > 0) {
        if (c->started >= run.begin)
            histogram_add(&run.latency, (uint64_t)(now - c->started));
        run.requests += now >= run.begin && now < run.end;
        park(c);
        return;
    }
    if (now >= run.begin) {
        histogram_add(&run.latency, (uint64_t)(now - c->started));
        run.requests += now < run.end;
    }
    if (now < run.end)
        begin_message(c, now);
}

static void take_echo(struct connection *c, const char *data, size_t n)
{
    if (c->state != WAITING || n > c->sent - c->received || memcmp(c->out + c->received, data, n) != 0)
        wrong_bytes(c, data, n);
    c->received += n;
    if (c->received == option.size)
        end_message(c);
}

static void take_http(struct connection *c, const char *data, size_t n)
{
    if (c->state != WAITING)
        die(EXIT_WRONG_BYTES, "connection %u: %zu bytes came without a request", c->id, n);
    size_t used = 0;
    const char *error = http_feed(&c->response, data, n, option.expect, &used);
    if (!error && used < n)
        error = "bytes behind the response";
    if (error)
        die(EXIT_WRONG_BYTES, "connection %u, request %llu: %s", c->id, (unsigned long long)c->message, error);
    if (c->response.state != HTTP_DONE)
        return;
    if (c->response.status != 200)
        count_error("connection %u, request %llu: status %d", c->id, (unsigned long long)c->message, c->response.status);
    if (c->response.close)
        lose(c, "the server doesn't keep the connection alive");
    else
        end_message(c);
}

static void receive(struct connection *c)
{
    ssize_t n = recv(c->fd, scratch, sizeof scratch, 0);
    if (n > 0 && option.mode == HTTP)
        take_http(c, scratch, (size_t)n);
    else if (n > 0)
        take_echo(c, scratch, (size_t)n);
    else if (n == 0)
        lose(c, "closed by the server");
    else if (errno != EAGAIN && errno != EINTR)
        lose(c, strerror(errno));
}

/* ---- opening ---- */

/* Not an error in the first seconds: the server may not be there yet, or its queue may be full (EAGAIN, Unix sockets). */
static bool worth_retrying(int error)
{
    return error == ECONNREFUSED || error == ENOENT || error == EAGAIN || error == EADDRNOTAVAIL;
}

static void connected(struct connection *c, int64_t now)
{
    watch(c, EPOLL_CTL_MOD, EPOLLIN);
    begin_message(c, now);
}

static void refused(struct connection *c, int error, int64_t now)
{
    if (!worth_retrying(error) || (double)(now - run.born) > CONNECT_RETRY_S * SECOND)
        die(EXIT_TIME_LIMIT, "cannot connect: %s (%u of %u connections are open)", strerror(error), run.settled,
            option.connections);
    close(c->fd);
    c->fd = NO_FD;
    c->state = UNOPENED;
    run.opening--;
    run.unopened[run.n_unopened++] = c->id;
    run.retry_at = now + RETRY_NS;
}

static void open_connection(struct connection *c, int64_t now)
{
    int family = run.address.any.sa_family, one = 1;
    c->fd = socket(family, (option.datagrams ? SOCK_DGRAM : SOCK_STREAM) | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (c->fd < 0)
        die(EXIT_ERRORS, "socket: %s", strerror(errno));
    if (family != AF_UNIX && !option.datagrams)
        setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    run.opening++;
    c->state = CONNECTING;
    bool done = connect(c->fd, &run.address.any, run.address_bytes) == 0;
    if (!done && errno != EINPROGRESS) {
        refused(c, errno, now);
        return;
    }
    watch(c, EPOLL_CTL_ADD, EPOLLOUT);
    if (done)
        connected(c, now);
}

static unsigned opening_window(void)
{
    return option.burst ? option.connections : OPENING_WINDOW;
}

static void open_more(int64_t now)
{
    while (run.n_unopened && run.opening < opening_window() && now >= run.retry_at)
        open_connection(&run.connections[run.unopened[--run.n_unopened]], now);
}

static void on_event(struct connection *c, uint32_t events)
{
    if (c->state == CONNECTING) {
        int error = 0;
        socklen_t bytes = sizeof error;
        getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &bytes);
        if (error)
            refused(c, error, now_ns());
        else
            connected(c, now_ns());
        return;
    }
    if (c->state != LOST && events & EPOLLOUT)
        send_more(c);
    if (c->state != LOST && events & (EPOLLIN | EPOLLHUP | EPOLLERR))
        receive(c);
}

/* ---- the run ---- */

/* epoll_wait waits for whole milliseconds, which is coarser than a schedule's steps. */
static int wait_for_events(struct epoll_event *events, int room, int64_t ns)
{
#ifdef SYS_epoll_pwait2
    if (option.rate > 0) {
        struct timespec wait = {.tv_sec = ns / 1000000000, .tv_nsec = ns % 1000000000};
        int n = (int)syscall(SYS_epoll_pwait2, run.epoll, events, room, &wait, NULL, (size_t)0);
        if (n >= 0 || errno != ENOSYS)
            return n;
    }
#endif
    /* Rounded down with a schedule: rather too early, and asked again, than too late. */
    return epoll_wait(run.epoll, events, room, (int)((ns + (option.rate > 0 ? 0 : 999999)) / 1000000));
}

static void turn(int64_t until, int64_t now)
{
    struct epoll_event events[256];
    if (until > run.limit)
        until = run.limit;
    int n = wait_for_events(events, 256, until <= now ? 0 : until - now);
    if (n < 0 && errno != EINTR)
        die(EXIT_ERRORS, "epoll_wait: %s", strerror(errno));
    for (int i = 0; i < n; i++)
        if (events[i].data.u32 < option.connections)
            on_event(&run.connections[events[i].data.u32], events[i].events);
        else /* standard input, in idle mode: whatever comes is dropped, its end ends the run */
            run.end = read(STDIN_FILENO, scratch, sizeof scratch) > 0 ? run.end : 0;
}

/* Each phase is true as long as it isn't over. A phase that reaches the limit is left too: main() looks at what is open. */
static bool opening_goes_on(int64_t now)
{
    if (now >= run.limit || run.settled == option.connections)
        return false;
    open_more(now);
    turn(run.n_unopened && run.opening < opening_window() ? run.retry_at : run.limit, now);
    return true;
}

static void load(void)
{
    int64_t now = now_ns();
    run.begin = now + (int64_t)(option.warmup * SECOND);
    run.end = run.begin + (int64_t)(option.seconds * SECOND);
    for (unsigned i = 0; i < option.connections; i++)
        if (run.connections[i].state == PARKED)
            begin_message(&run.connections[i], now_ns());
    while ((now = now_ns()) < run.limit && (now < run.end || run.waiting) && run.lost < option.connections)
        turn(now < run.end ? run.end : run.limit, now);
}

static void load_by_schedule(void)
{
    prctl(PR_SET_TIMERSLACK, 1ul); /* else each wait may be 50 us longer */
    for (unsigned i = 0; i < option.connections; i++)
        if (run.connections[i].state == PARKED)
            park(&run.connections[i]);
    int64_t now = run.schedule_begin = now_ns();
    run.begin = now + (int64_t)(option.warmup * SECOND);
    run.end = run.begin + (int64_t)(option.seconds * SECOND);
    while ((now = now_ns()) < run.limit && run.lost < option.connections) {
        send_due();
        int64_t due = next_due();
        if (due == INT64_MAX && !run.waiting)
            break;
        turn(run.n_parked ? due : run.limit, now_ns());
    }
}

/* Everything that takes time is done before: what follows the line is only the burst. */
static void wait_for_line(void)
{
    printf("READY\n");
    fflush(stdout);
    if (read(STDIN_FILENO, scratch, sizeof scratch) <= 0)
        die(EXIT_ERRORS, "standard input has ended before the burst");
    run.born = now_ns();
    run.limit = run.born + (int64_t)(option.timeout * SECOND);
}

static void hold(void)
{
    struct epoll_event event = {.events = EPOLLIN, .data.u32 = UINT32_MAX};
    /* EPERM: standard input is a file or /dev/null, there is nothing to wait for. */
    if (epoll_ctl(run.epoll, EPOLL_CTL_ADD, STDIN_FILENO, &event) < 0 && errno != EPERM)
        die(EXIT_ERRORS, "epoll_ctl: %s", strerror(errno));
    printf("READY\n");
    fflush(stdout);
    int64_t now = now_ns();
    run.end = now + (int64_t)(option.hold * SECOND);
    while (now < run.end && now < run.limit && run.lost < option.connections) {
        turn(run.end, now);
        now = now_ns();
    }
}

static unsigned report_stuck(void)
{
    const struct connection *first = NULL;
    unsigned stuck = 0;
    for (unsigned i = 0; i < option.connections; i++) {
        const struct connection *c = &run.connections[i];
        if (c->state == PARKED || c->state == LOST)
            continue;
        if (!stuck++)
            first = c;
    }
    if (first && first->state == WAITING)
        fprintf(stderr,
                "loadgen: time limit of %.1f s: %u of %u connections are stuck; connection %u sent %zu of %zu bytes of "
                "message %llu %.3f s ago and received %zu\n",
                option.timeout, stuck, option.connections, first->id, first->sent, message_bytes(),
                (unsigned long long)first->message, (double)(now_ns() - first->started) / SECOND,
                option.mode == HTTP ? (size_t)first->response.body : first->received);
    else if (first)
        fprintf(stderr, "loadgen: time limit of %.1f s: %u of %u connections could not be opened\n", option.timeout, stuck,
                option.connections);
    return stuck;
}

static void report(unsigned stuck)
{
    static const char *const names[] = {"echo", "http", "idle"};
    const char *name = option.burst ? "burst" : names[option.mode];
    const struct histogram *h = &run.latency;
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    double us = 1e-3, elapsed = option.mode == IDLE || option.burst ? 0 : option.seconds;
    double rps = elapsed > 0 ? (double)run.requests / elapsed : 0;
    double cpu = (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
                 (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) * 1e-6;
    const char *format =
        option.json ? "{\"mode\": \"%s\", \"connections\": %u, \"size\": %zu, \"seconds\": %.3f, \"requests\": %llu, "
                      "\"rps\": %.1f, \"mean_us\": %.1f, \"p50_us\": %.1f, \"p99_us\": %.1f, \"p999_us\": %.1f, "
                      "\"max_us\": %.1f, \"errors\": %llu, \"stuck\": %u, \"total_requests\": %llu, "
                      "\"client_cpu_seconds\": %.3f, \"rate\": %.1f, \"last_sent_ns\": %lld, \"last_reply_ns\": %lld}\n"
                    : "%s: %u connections, %zu bytes, %.3f s\n"
                      "requests %llu, %.0f/s\n"
                      "latency us: mean %.1f, p50 %.1f, p99 %.1f, p99.9 %.1f, max %.1f\n"
                      "errors %llu, stuck %u; %llu requests with warm-up, %.3f s CPU in the client\n"
                      "rate asked for %.1f/s; last sent at %lld ns, last reply at %lld ns\n";
    printf(format, name, option.connections, option.mode == HTTP ? 0 : option.size, elapsed,
           (unsigned long long)run.requests, rps, histogram_mean(h) * us, histogram_quantile(h, 0.5) * us,
           histogram_quantile(h, 0.99) * us, histogram_quantile(h, 0.999) * us, (double)h->max * us,
           (unsigned long long)run.errors, stuck, (unsigned long long)run.total, cpu, option.rate,
           (long long)run.last_sent, (long long)run.last_reply);
    fflush(stdout);
    if (run.errors)
        fprintf(stderr, "loadgen: %llu errors, the first: %s\n", (unsigned long long)run.errors, run.first_error);
}

/* ---- set-up ---- */

static void resolve(void)
{
    if (option.unix_path) {
        struct sockaddr_un address = {.sun_family = AF_UNIX};
        if (strlen(option.unix_path) >= sizeof address.sun_path)
            usage("--unix: the path is too long");
        strcpy(address.sun_path, option.unix_path);
        memcpy(&run.address, &address, sizeof address);
        run.address_bytes = sizeof address;
        return;
    }
    struct addrinfo *found, hints = {.ai_socktype = option.datagrams ? SOCK_DGRAM : SOCK_STREAM};
    int error = getaddrinfo(option.host, option.port, &hints, &found);
    if (error)
        die(EXIT_USAGE, "%s port %s: %s", option.host, option.port, gai_strerror(error));
    memcpy(&run.address, found->ai_addr, found->ai_addrlen);
    run.address_bytes = found->ai_addrlen;
    freeaddrinfo(found);
}

static void raise_fd_limit(void)
{
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    if (limit.rlim_max < option.connections + 16)
        die(EXIT_USAGE, "%u connections need a higher limit of open files than %llu", option.connections,
            (unsigned long long)limit.rlim_max);
}

/* The last resort behind the deadlines in the loop. */
static void on_alarm(int signal_number)
{
    (void)signal_number;
    static const char text[] = "loadgen: time limit: the load generator itself is stuck\n";
    ssize_t n = write(STDERR_FILENO, text, sizeof text - 1);
    (void)n;
    _exit(EXIT_TIME_LIMIT);
}

int main(int argc, char **argv)
{
    parse_options(argc, argv);
    resolve();
    raise_fd_limit();
    make_text();
    signal(SIGALRM, on_alarm);
    alarm((unsigned)option.timeout + 5);

    run.born = now_ns();
    run.limit = run.born + (int64_t)(option.timeout * SECOND);
    run.epoll = epoll_create1(EPOLL_CLOEXEC);
    run.connections = calloc(option.connections, sizeof *run.connections);
    run.unopened = calloc(option.connections, sizeof *run.unopened);
    run.parked = calloc(option.connections, sizeof *run.parked);
    if (run.epoll < 0 || !run.connections || !run.unopened || !run.parked)
        die(EXIT_ERRORS, "set-up: %s", strerror(errno));
    for (unsigned id = option.connections; id-- > 0;) {
        run.connections[id] = (struct connection){.fd = NO_FD, .id = id};
        run.unopened[run.n_unopened++] = id;
    }

    if (option.burst)
        wait_for_line();
    while (opening_goes_on(now_ns())) {}
    if (run.settled == option.connections && !option.burst) {
        if (option.mode == IDLE)
            hold();
        else if (option.rate > 0)
            load_by_schedule();
        else
            load();
    }
    unsigned stuck = report_stuck();
    report(stuck);
    return stuck ? EXIT_TIME_LIMIT : run.errors ? EXIT_ERRORS : 0;
}
