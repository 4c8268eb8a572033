"""The engine's interface (netpoll.h) as Cython sees it."""

from libc.stdint cimport int64_t, uint32_t, uint64_t

cdef extern from "<sys/socket.h>" nogil:
    cdef struct sockaddr_storage:
        unsigned short ss_family
    ctypedef unsigned int socklen_t

cdef extern from "<sys/uio.h>" nogil:
    cdef struct iovec:
        void *iov_base
        size_t iov_len

cdef extern from "netpoll.h" nogil:
    ctypedef struct np_engine:
        pass
    ctypedef struct np_desc:
        pass

    ctypedef enum np_mode:
        NP_INLINE
        NP_AUTO
        NP_DEDICATED

    ctypedef enum np_kind:
        NP_STREAM
        NP_LISTEN
        NP_WAIT
        NP_LEVEL

    cdef enum:
        NP_R
        NP_W
        NP_HUP
        NP_ERR

    ctypedef struct np_event:
        void *user
        uint32_t bits
        uint32_t tag
        np_desc *desc

    ctypedef enum np_sender:
        NP_AT_ONCE
        NP_BY_NETPOLLER
        NP_BY_WORKER

    ctypedef enum np_poller:
        NP_POLLER_NONE
        NP_POLLER_WORKER
        NP_POLLER_NETPOLLER

    ctypedef struct np_stats:
        uint64_t polls
        uint64_t events
        uint64_t handoffs
        uint64_t inline_syscalls
        uint64_t netpoller_syscalls
        uint64_t bytes_received
        uint64_t bytes_sent
        uint64_t stalls
        uint64_t wakeups
        uint64_t descriptors
        uint64_t bytes_ahead
        uint64_t bytes_unsent
        np_poller poller
        int thread_running
        int offloading
        int batching

    np_engine *np_engine_new(np_mode mode, int *err)
    void np_engine_free(np_engine *e)
    void np_set_spin(np_engine *e, int64_t ns)
    int np_thread_start(np_engine *e)
    void np_thread_stop(np_engine *e)
    void np_fork_child(np_engine *e)
    void np_get_stats(np_engine *e, np_stats *out)
    int np_backend_fd(const np_engine *e)

    int np_poll(np_engine *e, np_event *out, int max)
    int np_skip_poll(np_engine *e)
    int np_current(const np_event *ev)
    void np_park_prepare(np_engine *e)
    void np_park_cancel(np_engine *e)
    int np_park(np_engine *e, np_event *out, int max, int64_t deadline_ns)
    void np_set_running(np_engine *e, int running)
    void np_wake(np_engine *e)

    np_desc *np_open(np_engine *e, int fd, np_kind kind, void *user, int *err)
    int np_arm(np_engine *e, np_desc *d, unsigned interest)
    int np_rearm(np_engine *e, np_desc *d)
    void np_close(np_engine *e, np_desc *d)

    ssize_t np_recv(np_engine *e, np_desc *d, void *buf, size_t size)
    void np_read_ahead(np_engine *e, np_desc *d, int may)
    int np_short_is_all(const np_desc *d)
    int np_is_same(np_engine *e, np_desc *d)
    int np_more(np_desc *d)
    ssize_t np_send(np_engine *e, np_desc *d, const void *buf, size_t size)
    ssize_t np_sendv(np_engine *e, np_desc *d, const iovec *iov, int count)
    int np_queue(np_engine *e, np_desc *d, const void *buf, size_t size, void *cookie)
    int np_tell(np_engine *e, np_desc *d)
    int np_queue_for_turn(np_engine *e, np_desc *d, const void *buf, size_t size, void *cookie)
    int np_send_error(np_desc *d)
    void np_tell_full(np_engine *e, np_desc *d)
    np_sender np_hand_over(np_engine *e, np_desc *d, size_t size)
    void np_contended(np_engine *e, int contended)
    void np_send_one_by_one(np_engine *e)
    void np_send_left(np_engine *e)
    void np_switch_always(np_engine *e)
    void np_settle(np_engine *e)
    ssize_t np_flush(np_engine *e, np_desc *d)
    size_t np_pending(np_desc *d)
    int np_full(np_engine *e, np_desc *d)
    void np_discard(np_engine *e, np_desc *d)
    void *np_done(np_engine *e)
    void np_notify_writable(np_engine *e, np_desc *d, int notify)

    int np_accept(np_engine *e, np_desc *d, sockaddr_storage *addr, socklen_t *len)
    int np_accepted(np_engine *e, np_desc *d, sockaddr_storage *addr, socklen_t *len)

cdef extern from "np_ticks.h" nogil:
    uint64_t np_ticks()
