/* np_os.h: what the engine needs of an OS facility (epoll; later kqueue).
 *
 * struct np_os belongs to the platform file.  Its waiting half is used by the
 * holder of the poll token only, its registering half under the engine's
 * registration lock (np_engine.ctl); np_os_reset is called with both.
 * np_os_kick is for any thread, and async-signal-safe.
 */
#ifndef NP_OS_H
#define NP_OS_H

#include <stdint.h>

struct np_os {
    int poll_fd; /* the epoll instance; replaced by np_os_reset */
    int kick_fd; /* an eventfd, constant for the engine's life */
    int coarse;  /* the kernel has no nanosecond wait; token holder only */
};

/* The mask of a registration: NP_R and NP_W of netpoll.h, and: */
#define NP_OS_EDGE 0x100u /* edge-triggered; else level-triggered */
#define NP_OS_ONCE 0x200u /* one event disarms it */

/* What np_os_wait reports.  A kick is not an event: it only ends the wait. */
struct np_os_event {
    uint64_t data; /* as given when registered */
    uint32_t bits; /* NP_R | NP_W | NP_HUP | NP_ERR | NP_PRI */
};

#define NP_OS_EVENTS 256 /* at most so many for each wait */

/* CPUs that this process may use, by affinity and quota; at least 1. */
int np_os_cpus(void);

/* CPUs that the quota of the control group mounted at `root` amounts to, rounded
 * down, at least 1; INT_MAX without one. */
int np_os_quota(const char *root);

/* The calling thread's number. */
long np_os_thread(void);

/* ns of CPU that this thread of the process has used; 0 if there is none of that number. */
int64_t np_os_cpu(long thread);

/* What the kernel's scheduler knows of the calling thread: ns on a CPU, and ns that it
 * was ready to run and waited for one.  0, or -errno where nobody knows. */
int np_os_run_delay(int64_t *ran, int64_t *waited);

/* The calling thread never takes a CPU from a thread that runs, only because it has been woken.  Best effort. */
void np_os_be_patient(void);

/* The CPU that the calling thread is on; -1 where nobody knows. */
int np_os_where(void);

/* The calling thread and that one, which is on CPU `where`, change places; if they share a CPU, that one goes to another.
 * Which CPUs the two may use stays as it was.  0 or -errno: -EINVAL where they may not. */
int np_os_change_places(long thread, int where);

/* 0 or -errno. */
int np_os_create(struct np_os *os);

/* Closes our file descriptors only: also right in a forked child. */
void np_os_destroy(struct np_os *os);

/* A fresh facility without registrations in place of the old one. */
int np_os_reset(struct np_os *os);

/* 0 or -errno; add: -EEXIST, change: -ENOENT when fd is (not) registered. */
int np_os_add(struct np_os *os, int fd, unsigned mask, uint64_t data);
int np_os_change(struct np_os *os, int fd, unsigned mask, uint64_t data);
int np_os_remove(struct np_os *os, int fd);

/* Waits timeout_ns (0: don't; -1: for ever).  The number of events (0: the
 * time is over, or only a kick, then *kicked = 1), or -EINTR. */
int np_os_wait(struct np_os *os, int64_t timeout_ns, struct np_os_event *out, int max, int *kicked);

/* Whether fd is a TCP socket. */
int np_os_is_tcp(int fd);

/* Whether it is a Unix stream socket, from which a read ends short where descriptors or credentials were passed. */
int np_os_is_unix_stream(int fd);

/* Before a second thread exists: makes room in the process's descriptor table,
 * for as many as 4096.  To grow it later, step by step, can take milliseconds
 * for each step then. */
void np_os_make_room(struct np_os *os);

/* Ends the present wait, or the next one if nobody waits. */
void np_os_kick(struct np_os *os);

#endif
