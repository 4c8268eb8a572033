/* writes.pml: who sends from a descriptor's write queue.
 *
 * One descriptor of kind NP_STREAM: the worker writes (np_hand_over, np_send,
 * np_queue), flushes, settles, discards or closes at any moment; the netpoller
 * serves submissions, its hot list and the edges that it is the one to see, and
 * stops at any moment; the peer reads. A step is what happens under np_desc.lock,
 * one read without it, or one system call. Sleeping is park.pml's matter: here
 * everybody sees at once what he waits for.
 *
 * Shown: one thread at a time is in send(2) (no two owners); every byte arrives
 * in order, or its write was discarded; every queued write comes back once
 * (np_done); what the netpoller stops with, goes on, and what was told of is
 * reported (else the worker waits for ever: an invalid end state); nobody
 * touches the fd after np_close; np_settle leaves nothing that was not tried.
 *
 *   -DDEDICATED   NP_DEDICATED; else NP_AUTO
 *   -DBUG_x       a seeded bug; run.sh lists them
 */
#ifndef WRITES
#define WRITES 3 /* of one unit each */
#endif
#define SPACE 1 /* units that the socket's buffer takes */

mtype = { NOBODY, WORKER, NETPOLLER };

/* struct np_desc. The queue holds the units head .. tail-1; `pending` is their number. */
mtype sending = NOBODY;
bool writable = true, hot_w, tell_w, halt;
byte head, tail, tag;
#define PENDING (head != tail)

/* struct np_engine */
bool ready, submitted, due, batched, thread_on = true, hot;
mtype = { AT_ONCE, BY_NETPOLLER, BY_WORKER };
mtype offload = AT_ONCE;
bool in_pass; /* passes is odd */
byte hot_tag;

/* The kernel and the peer. */
byte in_kernel, arrived;
bool nospace, edge, in_send, fd_closed;

byte queued, finished; /* cookies given to np_queue, and those on the done list */
bool dispatching;      /* the netpoller has an edge in hand */
bool turn_ends;        /* the worker drains what was batched: NP_TURN */
byte stalls = 1;       /* takeovers: they may come, nobody may rely on them */
bool over;             /* the worker has ended: the thread is stopped */

/* send(2) of one unit by whoever has the right; leaves `got`. The arrival is checked to be in order. */
inline send_call(unit) {
    atomic { assert(!in_send); assert(!fd_closed); in_send = true };
    atomic {
        assert(!fd_closed);
        if
        :: in_kernel < SPACE -> assert(unit == arrived); in_kernel++; arrived++; got = true
        :: else -> nospace = true; got = false
        fi;
        in_send = false
    }
}

active proctype peer() {
end:
    do
    :: atomic { in_kernel > 0 -> in_kernel--; edge = edge || nospace; nospace = false }
    od
}

/* ---- stream.c, both threads --------------------------------------------------------------------------- */

#ifdef BUG_WRITABLE_CLEARED_LATE
#define BEFORE_SEND
#define AFTER_EAGAIN writable = false;
#else
#define BEFORE_SEND writable = false;
#define AFTER_EAGAIN
#endif

/* The end of np_drain, under the lock that saw that there is no more to do. */
inline end_drain(me) {
    sending = NOBODY;
    tell_w = tell_w && PENDING;
    if
    :: me == NETPOLLER -> hot_w = go_on && !halt; ready = ready || (report && tag == 0)
#ifdef BUG_TURN_TELLS_NOBODY
    :: else -> ready = ready || go_on
#else
    :: else -> ready = ready || go_on || (turn_ends && report)
#endif
    fi;
    report = false
}

/* np_drain; a turn is one unit. Leaves `go_on`. */
inline drain(me) {
    atomic {
        go_on = false;
        if
        :: PENDING && !halt -> BEFORE_SEND going = true
        :: else -> going = false; end_drain(me)
        fi
    };
    do
    :: !going -> break
    :: going ->
        send_call(head);
        atomic { /* account; then the loop's condition; then the end: one hold of the lock */
            if
            :: got -> head++; finished++; writable = true; report = report || tell_w; go_on = PENDING && !halt; going = false
            :: else -> AFTER_EAGAIN
                going = writable && PENDING && !halt;
                if
                :: going -> BEFORE_SEND
                :: else
                fi
            fi;
#ifndef BUG_RELEASE_WITHOUT_LOOKING
            if
            :: !going -> end_drain(me)
            :: else
            fi
#endif
        };
#ifdef BUG_RELEASE_WITHOUT_LOOKING
        if
        :: !going -> atomic { end_drain(me) }
        :: else
        fi
#endif
    od;
    got = false
}

/* ---- The worker ------------------------------------------------------------------------------------------ */

inline drain_here() {
    atomic {
        mine = writable && PENDING && sending == NOBODY && !halt;
        if
        :: mine -> sending = WORKER
        :: else
        fi
    };
    if
    :: mine -> mine = false; drain(WORKER); go_on = false
    :: else
    fi
}

inline flush() { /* np_flush */
    atomic {
#ifdef DEDICATED
        mine = !(thread_on && (hot_w || !writable)) && PENDING && sending == NOBODY && !halt;
#else
        mine = PENDING && sending == NOBODY && !halt;
#endif
        if
        :: mine -> sending = WORKER
        :: else
        fi;
        tell_w = tell_w || PENDING
    };
    if
    :: mine -> mine = false; drain(WORKER); go_on = false
    :: else
    fi
}

inline queue() { /* np_queue, np_submit */
    atomic {
        tail++; queued++; written++;
#ifdef DEDICATED
        tell_w = true;
#else
        tell_w = tell_w || offload == AT_ONCE;
#endif
        mine = writable && sending == NOBODY && !hot_w
    };
    if
    :: mine -> mine = false;
#ifdef DEDICATED
        if
        :: thread_on ->
#else
        if
        :: offload != AT_ONCE && thread_on ->
#endif
            submitted = true;
            if /* np_submit */
#ifdef DEDICATED
            :: due = true
#else
            :: offload == BY_NETPOLLER -> due = true
            :: else -> batched = true
#endif
            fi;
            if
            :: !thread_on -> drain_here()
            :: else
            fi
        :: else -> drain_here()
        fi
    :: else
    fi
}

inline write() {
    mine = false;
#ifndef DEDICATED
    if /* np_hand_over */
    :: offload != AT_ONCE -> if
        :: writable -> mine = true
        :: else -> mine = PENDING
        fi
    :: else
    fi;
#endif
    if
    :: mine -> queue()
    :: else -> /* np_send */
        atomic { /* begin_send */
            if
            :: sending == NOBODY && !PENDING -> sending = WORKER; mine = true; BEFORE_SEND skip
            :: else
            fi
        };
        if
        :: mine -> mine = false;
            send_call(written);
            atomic { /* end_send */
                sending = NOBODY;
                if
                :: got -> writable = true; head++; tail++; written++
                :: else -> AFTER_EAGAIN skip
                fi
            };
            if
            :: !got -> queue()
            :: else -> got = false
            fi
        :: else -> queue()
        fi
    fi
}

inline drain_submitted() {
    if
    :: atomic { submitted -> submitted = false; turn_ends = true }; drain_here(); turn_ends = false
    :: else
    fi
}

inline end_batch() { /* np_end_batch */
    if
    :: batched -> batched = false;
        drain_submitted()
    :: else
    fi
}

inline settle() { /* np_settle */
    end_batch();
    offload = AT_ONCE;
    drain_submitted();
#ifndef BUG_SETTLE_WITHOUT_PASS
    !in_pass;
#endif
    assert(!PENDING || !writable || hot_w || hot || sending != NOBODY || dispatching || ready)
}

inline stop_both(closes) { /* np_close, np_discard */
    atomic {
        halt = true;
        if
        :: closes -> tag++
        :: else
        fi
    };
#ifdef BUG_CLOSE_DOES_NOT_WAIT
    atomic {
#else
    atomic { sending == NOBODY ->
#endif
        finished = finished + (tail - head);
        arrived = arrived + (tail - head); /* nobody expects them any more */
        head = tail; halt = false; hot_w = false; tell_w = false
    }
}

inline take_edge() { /* dispatch of park.c: two looks without the lock */
    if
    :: !writable -> mine = true
    :: else -> mine = PENDING
    fi;
    if
    :: mine -> mine = false; writable = true
    :: else
    fi;
    if
    :: PENDING -> flush(); waits = PENDING
    :: else
    fi
}

#ifdef DEDICATED
#define EDGE_IS_OURS (edge && !thread_on)
#else
#define EDGE_IS_OURS edge
#endif

active proctype worker() {
    byte written;
    bool mine, got, going, go_on, report, discarded, waits;
    do
    :: written < WRITES -> write()
    :: written == WRITES -> break
    :: atomic { ready -> ready = false }; flush()
    :: atomic { EDGE_IS_OURS -> edge = false }; take_edge()
#ifndef DEDICATED
    :: offload != AT_ONCE -> settle()
    :: batched -> end_batch()
    :: offload == BY_NETPOLLER -> drain_submitted() /* np_park */
    :: thread_on -> /* np_offload */
        end_batch();
        if
        :: offload = BY_NETPOLLER
        :: offload = BY_WORKER
        fi
#endif
    :: !discarded && written > 1 -> discarded = true; stop_both(false)
    :: written > 1 -> break
    od;
    if
    :: true -> /* wait until everything is sent */
        atomic { /* np_tell */
            waits = PENDING;
            tell_w = true
        };
        do
        :: !waits -> break
#ifndef BUG_BATCH_FORGOTTEN
        :: batched -> end_batch()
#endif
        :: atomic { ready -> ready = false }; flush(); waits = PENDING
        :: atomic { EDGE_IS_OURS -> edge = false }; take_edge()
        od
    :: true
    fi;
    stop_both(true);
    ready = false; submitted = false; batched = false;
    fd_closed = true;
    assert(finished == queued);
    over = true
}

/* ---- The netpoller ------------------------------------------------------------------------------------------ */

inline serve(its_tag) { /* np_net_send, then hot_add */
    atomic {
        mine = tag == its_tag;
        if
        :: mine -> hot_w = false;
            mine = writable && PENDING && sending == NOBODY && !halt
        :: else
        fi;
        if
        :: mine -> sending = NETPOLLER
        :: else
        fi
    };
    if
    :: mine -> mine = false;
        drain(NETPOLLER);
        if
        :: go_on -> go_on = false; hot = true; hot_tag = its_tag
        :: else
        fi
    :: else
    fi
}

inline hand_back_hot() {
    if
    :: hot ->
        atomic {
            hot = false;
            if
            :: tag == hot_tag ->
#ifndef BUG_HAND_BACK_KEEPS_HOT
                hot_w = false;
#endif
#ifndef BUG_HAND_BACK_FORGETS
                ready = true;
#endif
                skip
            :: else
            fi
        }
    :: else
    fi
}

active proctype netpoller() {
    byte its_tag;
    bool mine, got, going, go_on, report, stops;
    if
    :: stops = true
    :: stops = false
    fi;
    do
    :: submitted && (due || stalls > 0) ->
        if
        :: atomic { due -> due = false }
        :: !due -> stalls-- /* take_over */
        fi;
        in_pass = true; /* begin_pass, serve_submitted */
        if
        :: atomic { submitted -> submitted = false }; its_tag = tag; serve(its_tag)
        :: else
        fi;
        in_pass = false
    :: hot -> hot = false; its_tag = hot_tag; serve(its_tag) /* serve_hot */
    :: atomic { edge -> edge = false; dispatching = true; its_tag = 0 }; /* its tag is in the event */
        atomic { if /* dispatch_stream */
        :: tag == its_tag -> writable = true
        :: else
        fi };
        serve(its_tag);
        dispatching = false
    :: stops -> break /* np_thread_stop */
    :: over -> break
    od;
    thread_on = false; /* stop_serving */
    in_pass = true;
    if
    :: atomic { submitted -> submitted = false; hot = true; hot_tag = tag }
    :: else
    fi;
#ifndef DEDICATED
    if
    :: hot -> hot = false; its_tag = hot_tag; serve(its_tag)
    :: else
    fi;
#endif
    in_pass = false;
    hand_back_hot();
#ifdef DEDICATED
    edge = edge || in_kernel < SPACE /* np_register_all */
#endif
}
