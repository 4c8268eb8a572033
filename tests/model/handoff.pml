/* handoff.pml: P, the right to run a loop's callbacks, changes its thread.
 *
 * M0 (run_forever, then close) and its spares, in _core/handoff.pyx under the
 * GIL; the two waits of netpoll/handoff.c (np_offers_watch, np_seat_wait)
 * without it, step by step. Each callback has a blocking() in it, which may last
 * until its offer has been taken and nobody waits for P any more. stop() may come from any callback.
 *
 * Shown: no two callbacks run at once; a thread that runs one has P; whoever
 * comes back from a body gets P, even if the other bodies never end, or is told
 * that the loop was closed; no offer is missed; every thread ends (else: an
 * invalid end state).
 *
 *   -DRUN_ON_WORKER   M0 only serves signals (run_on_worker)
 *   -DBUG_x           a seeded bug; run.sh lists them
 */
#ifndef TASKS
#define TASKS 3 /* callbacks, each with one body */
#endif
#ifndef SPARES
#define SPARES 1
#endif
#define QUIET_TICKS 1
#define NOBODY 255

mtype = { NONE, HELD, OFFERED, HOME, GONE };
mtype = { AWAKE, DOZING, ASLEEP };

bool gil;
#define TAKE_GIL atomic { !gil -> gil = true }
#define RELEASE_GIL gil = false

/* HandoffLoop, under the GIL. */
mtype state = NONE;
byte owner = NOBODY, number, idle = SPARES;
chan seats = [SPARES + 1] of { byte };
bool home_seat;                       /* M0's seat, if it waits as they do */
bool granted[SPARES + 1], closed[SPARES + 1];
bool turned;                          /* turns > turns_at_grant */
bool stopping, m0_serves;
byte ready = TASKS, finished;
#define SOMEBODY_WAITS (home_seat || len(seats) > 0)

bool wake_pending;                    /* np_wake; park.pml shows that it is not lost */
bool running;                         /* a callback runs: what all this is about */
bool over;

/* np_seat: M0's also serves run_on_worker. */
bool called[SPARES + 1], seat_sleeps[SPARES + 1];

/* np_offers */
byte offer;
mtype asleep = AWAKE;
bool urgent, quit, role, watcher_sleeps;

/* ---- netpoll/handoff.c ------------------------------------------------------------------------------------ */

inline wake_watcher(urgently) {
    seen = asleep;
    if
    :: seen == ASLEEP || (seen == DOZING && urgently) ->
        if
        :: atomic { asleep == seen -> asleep = AWAKE }; watcher_sleeps = false
        :: else
        fi
    :: else
    fi;
    seen = 0
}

inline np_offer(urgently) { /* under the GIL, against np_offers_watch */
#ifdef BUG_LOOK_BEFORE_OFFER
    wake_watcher(urgently);
#endif
    urgent = urgently;
    offer = (offer | 1) + 2;
    number = offer;
#ifndef BUG_LOOK_BEFORE_OFFER
    wake_watcher(urgently)
#endif
}

inline np_retract() { offer = offer - (offer & 1) }

inline np_offers_quit() { quit = true; wake_watcher(true) }

inline np_offers_watch() { /* leaves `now` */
    atomic { !role -> role = true };
    last = 0; quiet = 0;
    do
    :: quit -> now = 0; break
    :: else ->
        now = offer;
        if
        :: (now & 1) && (now == last || urgent) -> break
        :: else
        fi;
        atomic {
            quiet = (now == last -> quiet + 1 : 0);
            last = now;
            how = (quiet < QUIET_TICKS -> DOZING : ASLEEP)
        };
#ifdef BUG_STALE_READ
        look = (offer == last); /* the store passes the load behind it */
        asleep = how;
#else
        asleep = how;
#ifdef BUG_NO_RECHECK
        look = true;
#else
        look = (offer == last);
#endif
#endif
        if
#ifdef BUG_QUIT_UNSEEN
        :: look ->
#else
        :: look && !quit ->
#endif
            atomic {
                if
                :: asleep == how -> watcher_sleeps = true
                :: else
                fi
            };
            if
            :: !watcher_sleeps
            :: how == DOZING -> watcher_sleeps = false /* a tick */
            fi
        :: else
        fi;
        asleep = AWAKE;
        quiet = (how == ASLEEP -> 0 : quiet)
    od;
    atomic { role = false; last = 0; quiet = 0; how = 0; look = false }
}

inline np_seat_wait(who) {
    do
    :: atomic { called[who] -> called[who] = false }; break
    :: else ->
        atomic {
            if
            :: !called[who] -> seat_sleeps[who] = true
            :: else
            fi
        };
        !seat_sleeps[who]
    od
}

inline np_seat_call(who) { called[who] = true; seat_sleeps[who] = false }

/* ---- _core/handoff.pyx: P ------------------------------------------------------------------------------------ */

inline grant(who) {
    atomic {
        if
        :: who == 0 -> home_seat = false
        :: else
        fi;
        state = HELD; owner = who; turned = false; granted[who] = true
    };
    np_seat_call(who)
}

inline give_to_first_seat() { seats?other; grant(other); other = 0 }

inline give_home() {
    if
    :: home_seat -> grant(0)
    :: else ->
        atomic { state = HOME; owner = NOBODY };
        if
        :: m0_serves -> np_seat_call(0)
        :: else
        fi
    fi
}

inline wait_in() {
    do
    :: granted[me] || closed[me] -> break
    :: else -> RELEASE_GIL; np_seat_wait(me); TAKE_GIL
    od;
    granted[me] = false
}

inline take_back() { /* leaves `gone` */
    if
    :: state == GONE -> gone = true
#ifdef BUG_LEAVE_UNCHECKED /* no look at who has P */
    :: state != GONE -> np_retract(); state = HELD; owner = me
#else
    :: state == OFFERED -> np_retract(); atomic { state = HELD; owner = me }
    :: state == HOME && me == 0 -> atomic { state = HELD; owner = me }
    :: else ->
        atomic {
            called[me] = false; granted[me] = false;
            if
            :: me == 0 -> home_seat = true
            :: else -> seats!me
            fi
        };
#ifndef BUG_WAITS_WITHOUT_WAKE
        wake_pending = true; /* np_wake */
#endif
        wait_in();
        if
        :: closed[me] -> gone = true
        :: else -> atomic { state = HELD; owner = me }
        fi
#endif
    fi
}

inline enter_body() {
    atomic { owner = NOBODY; state = OFFERED };
    if
#ifndef BUG_OFFERS_PAST_WAITER
    :: idle == 0 && home_seat -> grant(0)
    :: idle == 0 && !home_seat && len(seats) > 0 -> give_to_first_seat()
    :: idle > 0 || !SOMEBODY_WAITS ->
#else
    :: true ->
#endif
        if /* long_bodies */
        :: np_offer(false)
        :: np_offer(true)
        fi
    fi
}

inline callback() {
    ready--;
    assert(owner == me && state == HELD && !running);
    running = true;
    if
    :: RELEASE_GIL; TAKE_GIL
    :: true
    fi;
    assert(owner == me && state == HELD && running);
    running = false;
    enter_body();
    RELEASE_GIL;
    if
    :: true /* short */
    :: true -> stopping || (!SOMEBODY_WAITS && !(state == OFFERED && idle > 0)) /* until the others had what they want */
    fi;
    TAKE_GIL;
    take_back();
    if
    :: gone
    :: else ->
        assert(owner == me && state == HELD && !running);
        running = true;
        RELEASE_GIL; TAKE_GIL;
        assert(owner == me && state == HELD && running);
        atomic {
            running = false;
            finished++;
            if
            :: stopping = true
            :: finished < TASKS
            fi
        }
    fi
}

inline turn() { /* Scheduler.turn: parks if there is nothing to run */
    turned = true;
    if
    :: ready == 0 && !stopping && !SOMEBODY_WAITS ->
        RELEASE_GIL; wake_pending -> wake_pending = false; TAKE_GIL
    :: ready > 0 -> callback()
    :: ready == 0 && (stopping || SOMEBODY_WAITS)
    fi
}

active proctype m0() {
    byte me = 0, other, i;
    bool gone;
    mtype seen;
    TAKE_GIL;
#ifdef RUN_ON_WORKER
    atomic { m0_serves = true; owner = NOBODY; state = OFFERED };
    np_offer(true);
    do
    :: state == HOME -> break
    :: else -> RELEASE_GIL; np_seat_wait(0); TAKE_GIL
    od;
    m0_serves = false;
#else
    atomic { state = HELD; owner = 0 }; /* _enter_run */
    do
    :: turn();
        if /* between_turns */
        :: len(seats) > 0 && turned ->
            home_seat = true;
            give_to_first_seat();
            wait_in();
            atomic { state = HELD; owner = 0 }
        :: else
        fi;
        if
        :: stopping -> break
        :: else
        fi
    od;
#endif
    atomic { state = NONE; owner = NOBODY }; /* _leave_run */
    if /* others may do something before close() and within it */
    :: RELEASE_GIL; TAKE_GIL
    :: true
    fi;
#ifdef BUG_CLOSE_COLLECTS_FIRST /* _close_core: who comes in the middle of it is forgotten */
    i = len(seats);
    RELEASE_GIL; TAKE_GIL;
    state = GONE;
#else
    RELEASE_GIL; TAKE_GIL;
    state = GONE;
    i = len(seats);
#endif
    do
    :: i > 0 -> i--; seats?other; closed[other] = true; np_seat_call(other)
    :: i == 0 -> break
    od;
    np_offers_quit();
    RELEASE_GIL;
    over = true
}

active [SPARES] proctype spare() {
    byte me = _pid, other, now, last, quiet;
    bool gone, look;
    mtype seen, how;
    do
    :: np_offers_watch();
        if
        :: now == 0 -> break
        :: else
        fi;
        TAKE_GIL;
        if /* stand_in */
#ifdef BUG_STANDS_IN_UNCHECKED
        :: true ->
#else
        :: state == OFFERED && number == now ->
#endif
            now = 0;
            np_retract();
            atomic { idle--; state = HELD; owner = me };
            do /* drive */
            :: turn();
                if
                :: state == GONE -> break
                :: state != GONE && stopping -> give_home(); break
                :: state != GONE && !stopping && home_seat -> grant(0); break
                :: state != GONE && !stopping && !home_seat && len(seats) > 0 && turned -> give_to_first_seat(); break
                :: state != GONE && !stopping && !home_seat && !(len(seats) > 0 && turned)
                fi
            od;
            idle++
        :: else -> now = 0
        fi;
        RELEASE_GIL
    od
}

ltl every_run_ends { <> over }
