#!/bin/sh
# Verifies the models of the protocols with spin: each as it is, and with each seeded bug, which has to be found.
#   tests/model/run.sh [model ...]      e.g. park handoff; default: all
# BUILD: where (default build/model).  CC: the C compiler.  LIMIT: seconds for one verification.
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
build=${BUILD:-$root/build/model}
: "${CC:=cc}" "${LIMIT:=300}"
if ! command -v spin >/dev/null; then
    echo "spin isn't installed (Debian: apt install spin); the models can't be verified" >&2
    exit 3
fi
models=${*:-park writes reads handoff}
failed=0

# verify name safety|liveness flags...: leaves spin's words in $report, the numbers in $states and $seconds.
# safety: assertions, and no end state in which somebody still waits. liveness: the model's ltl, under weak fairness.
verify() {
    name=$1 kind=$2
    shift 2
    out=$build/$name
    rm -rf "$out"
    mkdir -p "$out"
    case $kind in
        safety) compile="-DSAFETY -DNOCLAIM" run="" ;;
        *) compile="-DNFAIR=3" run="-a -f" ;;
    esac
    (
        cd "$out"
        spin -P"$CC -E -x c" "$@" -a "$root/tests/model/$name.pml" >spin.log 2>&1 || { cat spin.log >&2; exit 1; }
        # shellcheck disable=SC2086
        $CC -O2 -w -DCOLLAPSE $compile -o pan pan.c
        # shellcheck disable=SC2086
        timeout "$LIMIT" ./pan -m1000000 $run >pan.log 2>&1 || true
    )
    report=$out/pan.log
    states=$(sed -n 's/^ *\([0-9.e+]*\) states, stored.*/\1/p' "$report" | head -1)
    seconds=$(sed -n 's/^pan: elapsed time \([0-9.]*\).*/\1/p' "$report")
}

# Everything that there is to see was looked at, and nothing was wrong.
holds() { grep -q 'errors: 0$' "$report" && ! grep -Eq 'out of memory|max search depth too small|truncated' "$report"; }

clean() {
    verify "$@"
    what=$*
    if holds; then
        printf 'ok    %-62s %10s states %5s s\n' "$what" "$states" "$seconds"
    else
        printf 'FAIL  %s\n' "$what"
        tail -20 "$report"
        failed=1
    fi
}

# bug NAME model flags...: the first error that spin finds.
bug() {
    seeded=$1
    shift
    verify "$1" safety "-DBUG_$seeded" $(shift; echo "$@")
    error=$(sed -n 's/^pan:1: \(.*\) (at depth.*/\1/p' "$report")
    if grep -Eq 'errors: [1-9]' "$report"; then
        printf 'found %-62s %s\n' "$* BUG_$seeded" "$(echo "$error" | cut -c1-50)"
    else
        printf 'FAIL  %s: BUG_%s is not found\n' "$*" "$seeded"
        failed=1
    fi
}

park() {
    calls="-DCALLS=1 -DEVENTS=1" writes="-DCALLS=0 -DEVENTS=0 -DWRITES=2" restarts="-DCALLS=0 -DEVENTS=1 -DRESTARTS"
    looks="-DCALLS=0 -DEVENTS=1 -DWRITES=1"
    # shellcheck disable=SC2086
    {
        clean park safety -DCALLS=2 -DEVENTS=0
        clean park safety -DCALLS=2 -DEVENTS=0 -DDEDICATED
        for mode in "" -DDEDICATED; do
            clean park liveness $calls $mode
            clean park liveness $writes $mode
        done
        clean park liveness $looks
        clean park safety $writes -DRESTARTS
        clean park safety $writes -DRESTARTS -DDEDICATED
        clean park liveness $restarts
        clean park liveness $restarts -DDEDICATED
        bug WAKE_BEFORE_PUSH park $calls
        bug NO_RECHECK park $calls -DDEDICATED
        bug STALE_READ_IN_EPOLL park $calls
        bug STALE_READ_ON_FUTEX park $calls -DDEDICATED
        bug CLEARED_LATE park $calls
        bug NOTIFY_WITHOUT_CAS park $calls
        bug TOKEN_WITHOUT_CAS park $calls
        bug TOKEN_GIVEN_SILENTLY park $calls
        bug TOKEN_GIVEN_SILENTLY park $restarts -DDEDICATED
        bug TICK_SLEEPS_ON park $calls
        bug TICK_NO_RECHECK park $calls
        bug TICK_FORGETS_HOT park $writes
        bug LOOK_ENDS_SILENTLY park $looks
        bug NETPOLLER_NO_RECHECK park $writes -DDEDICATED
        bug BATCH_FORGOTTEN park $writes
        bug STOP_LEAVES_SUBMITTED park $writes -DRESTARTS -DDEDICATED
        bug HAND_BACK_FORGETS park $writes -DRESTARTS
        bug STOPPED_EARLY_LEAVES park $writes -DRESTARTS -DDEDICATED
        bug STOPPED_EARLY_SILENTLY park $restarts -DDEDICATED
    }
}

writes() {
    clean writes safety -DWRITES=4
    clean writes safety -DWRITES=4 -DDEDICATED
    bug WRITABLE_CLEARED_LATE writes
    bug WRITABLE_CLEARED_LATE writes -DDEDICATED
    bug RELEASE_WITHOUT_LOOKING writes
    bug RELEASE_WITHOUT_LOOKING writes -DDEDICATED
    bug HAND_BACK_FORGETS writes
    bug HAND_BACK_FORGETS writes -DDEDICATED
    bug HAND_BACK_KEEPS_HOT writes
    bug SETTLE_WITHOUT_PASS writes
    bug BATCH_FORGOTTEN writes
    bug TURN_TELLS_NOBODY writes
    bug CLOSE_DOES_NOT_WAIT writes
}

reads() {
    clean reads safety
    clean reads safety -DAUTO
    clean reads safety -DAUTO -DENDLESS -DBYTES=4
    bug RECEIVES_BESIDE reads
    bug RECEIVES_BESIDE reads -DAUTO
    bug READING_UNREPORTED reads -DAUTO -DENDLESS
    bug FULL_UNREPORTED reads -DAUTO -DENDLESS
    bug LEFT_UNSEEN reads -DAUTO -DENDLESS
    bug CLOSE_DOES_NOT_WAIT reads -DAUTO
    bug START_UNNOTICED reads
    bug STAYS_STOPPED reads
    bug SHORT_READ_ENDS reads
    bug TAG_UNCHECKED reads
    bug CLOSE_DOES_NOT_WAIT reads
}

handoff() {
    clean handoff liveness
    clean handoff safety -DSPARES=2
    clean handoff liveness -DSPARES=2 -DTASKS=2
    clean handoff liveness -DRUN_ON_WORKER
    clean handoff safety -DRUN_ON_WORKER -DSPARES=2
    bug NO_RECHECK handoff
    bug STALE_READ handoff
    bug LOOK_BEFORE_OFFER handoff
    bug QUIT_UNSEEN handoff
    bug STANDS_IN_UNCHECKED handoff
    bug LEAVE_UNCHECKED handoff
    bug WAITS_WITHOUT_WAKE handoff
    bug OFFERS_PAST_WAITER handoff
    bug CLOSE_COLLECTS_FIRST handoff
}

for model in $models; do
    case $model in
        park | writes | reads | handoff) "$model" ;;
        *) echo "unknown model: $model" >&2; exit 2 ;;
    esac
done
exit $failed
