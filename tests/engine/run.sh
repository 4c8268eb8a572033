#!/bin/sh
# Builds the engine and its tests alone, without Python, and runs them.
#   tests/engine/run.sh [plain|chaos|tsan|asan|ubsan|all] [name-part ...]
# chaos: random pauses after each step that another thread can see.
# BUILD: where (default build/engine).  CC: gcc or clang.
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
build=${BUILD:-$root/build/engine}
kind=${1:-plain}
[ $# -gt 0 ] && shift
if [ "$kind" = all ]; then
    for k in plain chaos tsan asan ubsan; do
        echo "== $k"
        "$0" "$k" "$@"
    done
    exit
fi
case $kind in
    plain) flags="-O2" ;;
    chaos) flags="-O2 -DNP_CHAOS" ;;
    tsan)  flags="-O1 -g -fsanitize=thread" ;;
    asan)  flags="-O1 -g -fsanitize=address,leak -fno-omit-frame-pointer" ;;
    ubsan) flags="-O1 -g -fsanitize=undefined -fno-sanitize-recover=all" ;;
    *) echo "unknown kind: $kind" >&2; exit 2 ;;
esac
warn="-Wall -Wextra -Wshadow -Wstrict-prototypes -Werror"
out=$build/$kind
mkdir -p "$out"
objects=
for src in "$root"/netpoll_loop/netpoll/*.c "$root"/tests/engine/*.c; do
    name=$(basename "$src" .c)
    case $src in
        */bench_*) continue ;;
        */netpoll/*) object=$out/engine_$name.o; pedantic=-Wpedantic ;;
        *) object=$out/$name.o; pedantic= ;;
    esac
    ${CC:-gcc} -std=c11 -D_GNU_SOURCE $flags $warn $pedantic -I"$root/netpoll_loop/netpoll" -c "$src" -o "$object"
    objects="$objects $object"
done
${CC:-gcc} $flags $objects -pthread -o "$out/engine_tests"
export TSAN_OPTIONS="halt_on_error=1 exitcode=66 ${TSAN_OPTIONS:-}"
export UBSAN_OPTIONS="print_stacktrace=1"
exec "$out/engine_tests" "$@"
