/* np_call.h: the system calls of every packet, without the C library's
 * cancellation points.
 *
 * recv(3), send(3) and epoll_wait(3) are points at which a thread may be
 * cancelled; in a process with more than one thread the C library prepares for
 * that around each call.  Nobody cancels our threads, and the calls below never
 * block.  Under a sanitizer they are the C library's, which it watches.
 */
#ifndef NP_CALL_H
#define NP_CALL_H

#include <errno.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#if defined(__has_feature)
#if __has_feature(thread_sanitizer) || __has_feature(address_sanitizer)
#define NP_CALLS_WATCHED 1
#endif
#endif
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
#define NP_CALLS_WATCHED 1
#endif

static inline ssize_t np_call_recv(int fd, void *buf, size_t size) {
#if defined(NP_CALLS_WATCHED) || !defined(SYS_recvfrom)
    return recv(fd, buf, size, MSG_DONTWAIT);
#else
    return syscall(SYS_recvfrom, fd, buf, size, MSG_DONTWAIT, NULL, NULL);
#endif
}

/* The same, and whether it has left out control data, such as passed descriptors: it ends there, whatever stands behind. */
static inline ssize_t np_call_recvmsg(int fd, void *buf, size_t size, int *cut) {
    struct iovec piece = {buf, size};
    struct msghdr msg = {.msg_iov = &piece, .msg_iovlen = 1};
#if defined(NP_CALLS_WATCHED) || !defined(SYS_recvmsg)
    ssize_t n = recvmsg(fd, &msg, MSG_DONTWAIT);
#else
    ssize_t n = syscall(SYS_recvmsg, fd, &msg, MSG_DONTWAIT);
#endif
    *cut = n >= 0 && (msg.msg_flags & MSG_CTRUNC) != 0;
    return n;
}

static inline ssize_t np_call_send(int fd, const void *buf, size_t size) {
#if defined(NP_CALLS_WATCHED) || !defined(SYS_sendto)
    return send(fd, buf, size, MSG_NOSIGNAL | MSG_DONTWAIT);
#else
    return syscall(SYS_sendto, fd, buf, size, MSG_NOSIGNAL | MSG_DONTWAIT, NULL, 0);
#endif
}

/* The same, whatever signals come. */
static inline ssize_t np_send_one(int fd, const void *buf, size_t size) {
    ssize_t n;
    do {
        n = np_call_send(fd, buf, size);
    } while (n < 0 && errno == EINTR);
    return n;
}

/* Without waiting. */
static inline int np_call_epoll(int fd, struct epoll_event *events, int max) {
#if defined(NP_CALLS_WATCHED) || !defined(SYS_epoll_pwait)
    return epoll_wait(fd, events, max, 0);
#else
    return (int)syscall(SYS_epoll_pwait, fd, events, max, 0, NULL, 8);
#endif
}

#endif
