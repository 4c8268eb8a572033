/* reads.pml: who receives on a descriptor, and what is made of events.
 *
 * NP_DEDICATED: the netpoller receives ahead, up to a bound, and the worker takes
 * what it has received; before the thread starts and after it has stopped the
 * worker receives by itself. It stops and starts at any moment. Then the fd is
 * closed and its number opened again: a second life with bytes of its own. A
 * step is what happens under np_desc.lock, or one system call. Sleeping is
 * park.pml's matter: here everybody sees at once what he waits for.
 *
 * -DAUTO: the netpoller receives ahead in stalls, and when it looks for a busy
 * worker. Both begin and end at any moment (`thread_on`: it has the token), and the
 * worker, which isn't stalled for ever, receives at any moment.
 *
 * Shown: one thread at a time is in recv(2); the worker gets each byte once, in
 * order, and then the end of file (else it waits for ever: an invalid end
 * state); no event, byte or call of the first life reaches the second.
 *
 *   -DENDLESS     no end of file, whose event would make up for one that was lost before
 *   -DBUG_x       a seeded bug; run.sh lists them
 */
#ifndef BYTES
#define BYTES 3 /* in each life; then the end of file */
#endif
#define BOUND 2 /* NP_INBOUND; at half of it receiving goes on */

/* struct np_desc. Bytes are numbered: taken .. received-1 are in in_head. */
bool reading, halt, open, in_end, in_stopped, in_hup, more;
byte tag, taken, received;

/* struct np_engine */
bool ready, ready_hup, ready_left, submitted, thread_on, hot; /* ready_hup, ready_left: NP_HUP, NP_LEFT among the bits */
byte hot_tag;

/* The kernel and the peer, for the present life. */
byte arrived, left_kernel; /* left_kernel .. arrived-1 are in the socket's buffer */
bool shut, edge, in_recv, fd_open;
byte edge_life, life;      /* the tag in the event; the life that really is behind the fd */

bool over, stops;

/* recv(2) of all that is there, at most `size`; -EAGAIN: n = 0 and not `eof`. */
inline recv_call(size, its_life) {
    atomic { assert(!in_recv); assert(fd_open && life == its_life); in_recv = true };
    atomic {
        assert(fd_open && life == its_life);
        n = (arrived - left_kernel > size -> size : arrived - left_kernel);
        eof = n == 0 && shut;
        from = left_kernel;
        left_kernel = left_kernel + n;
        in_recv = false
    }
}

active proctype peer() {
    byte to_send;
    do
    :: atomic { fd_open && !shut && arrived < BYTES -> arrived++; edge = true; edge_life = life }
#ifndef ENDLESS
    :: atomic { fd_open && !shut && arrived == BYTES -> shut = true; edge = true; edge_life = life }
#endif
    :: over -> break
    od
}

/* ---- The worker ---------------------------------------------------------------------------------------------- */

inline np_recv() { /* receive_ahead, into a buffer of one byte; leaves the next byte counted, or `ended` */
    atomic {
        n = 0; eof = false; mine = false; resume = false;
        if
        :: taken < received -> /* take, consumed */
            taken++; n = 1;
            if
            :: in_stopped && (received - taken) < BOUND / 2 + 1 -> /* never in AUTO */
#ifndef BUG_STAYS_STOPPED
                in_stopped = false; resume = true
#else
                skip
#endif
            :: else
            fi
        :: else ->
            ended = in_end;
            if
#ifdef BUG_RECEIVES_BESIDE
            :: !in_end -> reading = true; mine = true
#elif defined(AUTO)
            :: !in_end && !reading -> reading = true; mine = true
#else
            :: !in_end && !thread_on && !reading -> reading = true; mine = true
#endif
            :: else -> more = false
            fi
        fi
    };
    if
    :: resume ->
        if
        :: thread_on -> submitted = true;
            if
            :: !thread_on -> more = true
            :: else
            fi
        :: else -> more = true
        fi
    :: mine ->
        recv_call(1, life);
        atomic {
            assert(n == 0 || from == taken);
            taken = taken + n; received = received + n; ended = eof; reading = false;
            more = n > 0
        };
#if !defined(BUG_START_UNNOTICED) && !defined(AUTO)
        if
        :: thread_on -> submitted = true
        :: else
        fi
#endif
    :: else
    fi;
    mine = false; resume = false; n = 0; eof = false; from = 0
}

inline open_fd() { /* np_open */
    atomic {
        fd_open = true; arrived = 0; left_kernel = 0; shut = false; life++;
        taken = 0; received = 0; in_end = false; in_stopped = false; in_hup = false; more = false;
        tag++; open = true
    }
}

inline close_fd() { /* np_close, then close(2) */
    atomic { halt = true; tag++; open = false; edge = false };
#ifndef BUG_CLOSE_DOES_NOT_WAIT
    atomic { !reading -> halt = false };
#else
    halt = false;
#endif
    atomic { ready = false; ready_hup = false; ready_left = false };
    submitted = false;
    fd_open = false;
    life++
}

active proctype worker() {
    byte n, from, mine_life;
    bool eof, mine, resume, ended;
    do
    :: life >= 3 -> break
    :: else ->
        open_fd();
        ended = false;
        do
        :: ended -> assert(taken == BYTES && shut); break
#ifdef ENDLESS
        :: taken == BYTES -> break
#endif
        :: !ended && life == 1 && taken > 0 -> break /* closed in the middle */
        :: !ended && (more || taken < received || in_end) -> np_recv()
        :: atomic { ready -> assert(!ready_hup || shut); ready = false; ready_hup = false; /* take_ready */
#ifndef BUG_LEFT_UNSEEN
                more = more || ready_left;
#endif
                ready_left = false }
        :: atomic { edge && !thread_on -> edge = false; more = edge_life == tag } /* np_poll */
        od;
        close_fd()
    od;
    over = true
}

/* ---- The netpoller ---------------------------------------------------------------------------------------------- */

#ifdef BUG_TAG_UNCHECKED
#define CURRENT (open)
#else
#define CURRENT (open && tag == its_tag)
#endif

inline receive(its_tag) { /* np_net_receive; `hup`: of the event */
    atomic {
        want = 0;
        hup = hup && CURRENT;
        in_hup = in_hup || hup;
        if
        :: CURRENT && !in_end && !halt && !reading ->
            its_life = life;
            if
#ifdef AUTO
#ifdef BUG_FULL_UNREPORTED
            :: its_life = 0
#else
            :: ready = true; ready_left = true; its_life = 0 /* at any moment: the engine is full, it may not read ahead */
#endif
#else
            :: received - taken >= BOUND -> in_stopped = true
#endif
            :: received - taken < BOUND -> want = BOUND - (received - taken); reading = true
            fi
#if defined(AUTO) && !defined(BUG_READING_UNREPORTED)
        :: CURRENT && reading -> ready = true; ready_left = true
#endif
        :: else
        fi;
        if
        :: want == 0 && hup -> hup = false; ready = true; ready_hup = true
        :: else
        fi
    };
    if
    :: want > 0 ->
        recv_call(want, its_life);
        atomic {
            assert(n == 0 || from == received);
            received = received + n;
            in_end = in_end || eof;
            reading = false;
            if
            :: (n > 0 || eof || hup) && open -> ready = true; ready_hup = ready_hup || hup
            :: else
            fi;
            if
#ifdef BUG_SHORT_READ_ENDS
            :: n == want -> hot = true; hot_tag = its_tag
#else
            :: n == want || (in_hup && n > 0) -> hot = true; hot_tag = its_tag
#endif
#ifdef AUTO
            :: n == want && open -> ready_left = true /* when it looks */
#endif
            :: else
            fi;
            want = 0; n = 0; eof = false; from = 0; its_life = 0; hup = false
        }
    :: else
    fi
}

active proctype netpoller() {
    byte its_tag, n, want, from, its_life, lives = 2;
    bool eof, hup;
    do
    :: over -> break
    :: !over && lives > 0 ->
        lives--;
        thread_on = true; /* np_thread_start; take_over */
#ifndef AUTO
        atomic { edge = edge || (fd_open && (arrived > left_kernel || shut)); edge_life = tag; in_stopped = false }; /* np_register_all */
#endif
        if
        :: stops = true
        :: stops = false
        fi;
        do
        :: atomic { submitted -> submitted = false; its_tag = tag }; receive(its_tag)
        :: atomic { hot -> hot = false; its_tag = hot_tag }; receive(its_tag)
        :: atomic { edge -> edge = false; its_tag = edge_life; hup = shut }; receive(its_tag)
        :: stops -> break
        :: over -> break
        od;
        thread_on = false; /* stop_serving */
        if
        :: atomic { submitted -> submitted = false; hot = true; hot_tag = tag }
        :: else
        fi;
        atomic { /* hand_back_hot */
            if
            :: hot && tag == hot_tag -> ready = true; ready_left = true
            :: else
            fi;
            hot = false
        };
#ifndef AUTO
        atomic { edge = edge || (fd_open && (arrived > left_kernel || shut)); edge_life = tag; in_stopped = false } /* np_register_all */
#else
        skip
#endif
    od
}
