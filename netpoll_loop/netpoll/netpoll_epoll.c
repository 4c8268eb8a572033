/* netpoll_epoll.c: the OS facility on Linux.  See np_os.h for the contract.
 *
 * The kick is an eventfd, registered edge-triggered: each write is a new edge,
 * so nobody ever has to read it.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <netinet/in.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "netpoll.h"
#include "np_call.h"
#include "np_futex.h"
#include "np_os.h"

#ifndef SYS_epoll_pwait2
#define SYS_epoll_pwait2 441 /* older headers; the same number on x86-64 and arm64 */
#endif

#define KICK UINT64_MAX /* no descriptor has this data: its fd would be -1 */

static uint32_t to_epoll(unsigned mask) {
    uint32_t events = 0;
    if (mask & NP_R) {
        events |= EPOLLIN;
    }
    if (mask & NP_W) {
        events |= EPOLLOUT;
    }
    if (mask & NP_OS_EDGE) {
        events |= EPOLLET | EPOLLRDHUP | EPOLLPRI;
    }
    if (mask & NP_OS_ONCE) {
        events |= EPOLLONESHOT;
    }
    return events;
}

/* As selectors.EpollSelector: a hang-up or an error wakes both directions. */
static uint32_t from_epoll(uint32_t events) {
    uint32_t bits = 0;
    if (events & EPOLLIN) {
        bits |= NP_R;
    }
    if (events & EPOLLPRI) {
        bits |= NP_R | NP_PRI;
    }
    if (events & EPOLLOUT) {
        bits |= NP_W;
    }
    if (events & EPOLLRDHUP) {
        bits |= NP_R | NP_HUP;
    }
    if (events & EPOLLHUP) {
        bits |= NP_R | NP_W | NP_HUP;
    }
    if (events & EPOLLERR) {
        bits |= NP_R | NP_W | NP_ERR;
    }
    return bits;
}

static int control(struct np_os *os, int op, int fd, uint32_t events, uint64_t data) {
    struct epoll_event ev;
    memset(&ev, 0, sizeof ev);
    ev.events = events;
    ev.data.u64 = data;
    return epoll_ctl(os->poll_fd, op, fd, &ev) == 0 ? 0 : -errno;
}

static int open_epoll(int kick_fd) {
    struct np_os fresh = {.poll_fd = epoll_create1(EPOLL_CLOEXEC)};
    if (fresh.poll_fd < 0) {
        return -errno;
    }
    int rc = control(&fresh, EPOLL_CTL_ADD, kick_fd, EPOLLIN | EPOLLET, KICK);
    if (rc < 0) {
        close(fresh.poll_fd);
        return rc;
    }
    return fresh.poll_fd;
}

int np_os_create(struct np_os *os) {
    os->coarse = 0;
    os->poll_fd = -1;
    os->kick_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (os->kick_fd < 0) {
        return -errno;
    }
    int fd = open_epoll(os->kick_fd);
    if (fd < 0) {
        close(os->kick_fd);
        os->kick_fd = -1;
        return fd;
    }
    os->poll_fd = fd;
    return 0;
}

void np_os_destroy(struct np_os *os) {
    if (os->poll_fd >= 0) {
        close(os->poll_fd);
    }
    if (os->kick_fd >= 0) {
        close(os->kick_fd);
    }
    os->poll_fd = os->kick_fd = -1;
}

int np_os_reset(struct np_os *os) {
    int fd = open_epoll(os->kick_fd);
    if (fd < 0) {
        return fd;
    }
    close(os->poll_fd);
    os->poll_fd = fd;
    return 0;
}

int np_os_add(struct np_os *os, int fd, unsigned mask, uint64_t data) {
    return control(os, EPOLL_CTL_ADD, fd, to_epoll(mask), data);
}

int np_os_change(struct np_os *os, int fd, unsigned mask, uint64_t data) {
    return control(os, EPOLL_CTL_MOD, fd, to_epoll(mask), data);
}

int np_os_remove(struct np_os *os, int fd) { return control(os, EPOLL_CTL_DEL, fd, 0, 0); }

/* Milliseconds, rounded up: a timer must never be early. */
static int milliseconds(int64_t ns) {
    int64_t ms = ns / 1000000 + (ns % 1000000 != 0);
    return ms > INT_MAX ? INT_MAX : (int)ms;
}

static int wait_events(struct np_os *os, int64_t timeout_ns, struct epoll_event *events, int max) {
    if (timeout_ns == 0) {
        return np_call_epoll(os->poll_fd, events, max);
    }
    if (timeout_ns < 0) {
        return epoll_wait(os->poll_fd, events, max, -1);
    }
    if (!os->coarse) {
        struct timespec t = np_timespec(timeout_ns);
        int n = (int)syscall(SYS_epoll_pwait2, os->poll_fd, events, max, &t, NULL, 0);
        if (n >= 0 || (errno != ENOSYS && errno != EPERM)) {
            return n;
        }
        os->coarse = 1; /* before Linux 5.11, or a sandbox that does not know it */
    }
    return epoll_wait(os->poll_fd, events, max, milliseconds(timeout_ns));
}

int np_os_wait(struct np_os *os, int64_t timeout_ns, struct np_os_event *out, int max, int *kicked) {
    struct epoll_event events[NP_OS_EVENTS];
    *kicked = 0;
    int got = wait_events(os, timeout_ns, events, max < NP_OS_EVENTS ? max : NP_OS_EVENTS);
    if (got < 0) {
        return -errno;
    }
    int n = 0;
    for (int i = 0; i < got; i++) {
        if (events[i].data.u64 == KICK) {
            *kicked = 1;
            continue;
        }
        out[n].data = events[i].data.u64;
        out[n].bits = from_epoll(events[i].events);
        n++;
    }
    return n;
}

/* The kernel doubles a full table, and if threads share it waits for a grace
 * period of RCU each time. */
void np_os_make_room(struct np_os *os) {
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
        int fd = fcntl(os->kick_fd, F_DUPFD_CLOEXEC, limit.rlim_cur < 4096 ? (int)limit.rlim_cur - 1 : 4095);
        if (fd >= 0) {
            close(fd);
        }
    }
}

int np_os_is_tcp(int fd) {
    int protocol = 0;
    socklen_t size = sizeof protocol;
    return getsockopt(fd, SOL_SOCKET, SO_PROTOCOL, &protocol, &size) == 0 && protocol == IPPROTO_TCP;
}

int np_os_is_unix_stream(int fd) {
    int domain = 0, type = 0;
    socklen_t size = sizeof domain;
    return getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &size) == 0 && domain == AF_UNIX &&
           getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &size) == 0 && type == SOCK_STREAM;
}

void np_os_kick(struct np_os *os) {
    static const uint64_t one = 1;
    ssize_t n;
    do {
        n = write(os->kick_fd, &one, sizeof one);
    } while (n < 0 && errno == EINTR);
}

/* The first numbers of a file below root; how many there were. */
static int read_numbers(const char *root, const char *name, long long *first, long long *second) {
    char path[4096];
    if (snprintf(path, sizeof path, "%s/%s", root, name) >= (int)sizeof path) {
        return 0;
    }
    FILE *f = fopen(path, "re");
    if (!f) {
        return 0;
    }
    int got = fscanf(f, "%lld %lld", first, second); /* "max 100000": none */
    fclose(f);
    return got;
}

int np_os_quota(const char *root) {
    long long quota = 0, period = 0, unused;
    int known = read_numbers(root, "cpu.max", &quota, &period) == 2; /* version 2 */
    if (!known) {
        known = read_numbers(root, "cpu/cpu.cfs_quota_us", &quota, &unused) >= 1 &&
                read_numbers(root, "cpu/cpu.cfs_period_us", &period, &unused) >= 1;
    }
    if (!known || quota <= 0 || period <= 0) {
        return INT_MAX;
    }
    long long cpus = quota / period;
    return cpus < 1 ? 1 : cpus > INT_MAX ? INT_MAX : (int)cpus;
}

long np_os_thread(void) { return syscall(SYS_gettid); }

int64_t np_os_cpu(long thread) {
    struct timespec t;
    /* The kernel's clock of a thread's CPU time (see clock_getcpuclockid(3)), which the C library makes of a pthread_t only. */
    clockid_t clock = (clockid_t)(~(unsigned)thread << 3 | 6);
    return clock_gettime(clock, &t) == 0 ? (int64_t)t.tv_sec * 1000000000 + t.tv_nsec : 0;
}

int np_os_run_delay(int64_t *ran, int64_t *waited) {
    long long a, b;
    if (read_numbers("/proc", "thread-self/schedstat", &a, &b) != 2) {
        return -ENOTSUP;
    }
    *ran = a;
    *waited = b;
    return 0;
}

void np_os_be_patient(void) {
    struct sched_param param;
    int policy;
    if (pthread_getschedparam(pthread_self(), &policy, &param) == 0 && policy == SCHED_OTHER) {
        (void)pthread_setschedparam(pthread_self(), SCHED_BATCH, &param);
    }
}

int np_os_where(void) { return sched_getcpu(); }

static int move(pid_t thread, const cpu_set_t *to, const cpu_set_t *may) {
    int rc = sched_setaffinity(thread, sizeof *to, to) < 0 ? -errno : 0;
    if (rc == 0) {
        (void)sched_setaffinity(thread, sizeof *may, may);
    }
    return rc;
}

static cpu_set_t only(int cpu) {
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    return set;
}

int np_os_change_places(long thread, int where) {
    int here = np_os_where();
    cpu_set_t may, other_may, to, other_to;
    if (sched_getaffinity(0, sizeof may, &may) < 0 || sched_getaffinity((pid_t)thread, sizeof other_may, &other_may) < 0) {
        return -errno;
    }
    if (here == where) {
        other_to = other_may;
        CPU_CLR(here, &other_to);
        return move((pid_t)thread, &other_to, &other_may);
    }
    if (here < 0 || where < 0 || !CPU_ISSET(where, &may) || !CPU_ISSET(here, &other_may)) {
        return -EINVAL;
    }
    to = only(where);
    other_to = only(here);
    int rc = move(0, &to, &may);
    return rc < 0 ? rc : move((pid_t)thread, &other_to, &other_may);
}

int np_os_cpus(void) {
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) < 0) {
        return 1; /* more CPUs than the set has places for would be possible, and is not worth the code */
    }
    int quota = np_os_quota("/sys/fs/cgroup"), affine = CPU_COUNT(&set);
    return affine < quota ? affine : quota;
}
