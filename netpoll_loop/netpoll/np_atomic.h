/* np_atomic.h: a spinlock and the two-line helpers around C11 atomics.
 *
 * No fences are used anywhere in the engine, only sequentially consistent
 * operations on named variables: ThreadSanitizer does not understand fences,
 * and a named variable tells the reader which two things are being ordered.
 */
#ifndef NP_ATOMIC_H
#define NP_ATOMIC_H

#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>

/* tests/engine/run.sh chaos: pauses at random after each step that another
 * thread can see, so that windows of a few nanoseconds are hit within seconds.
 * Nothing in a normal build. */
#ifdef NP_CHAOS
void np_chaos(void);
#else
#define np_chaos() ((void)0)
#endif

/* Shorthands: the order is part of the name, so that each use states it. */
#define np_get(p) atomic_load_explicit((p), memory_order_relaxed)
#define np_set(p, v) atomic_store_explicit((p), (v), memory_order_relaxed)
#define np_get_acq(p) atomic_load_explicit((p), memory_order_acquire)
#define np_set_rel(p, v) atomic_store_explicit((p), (v), memory_order_release)
#define np_get_sc(p) atomic_load_explicit((p), memory_order_seq_cst)
#define np_set_sc(p, v) (atomic_store_explicit((p), (v), memory_order_seq_cst), np_chaos())
#define np_swap_sc(p, v) atomic_exchange_explicit((p), (v), memory_order_seq_cst)

/* A statistics counter: one thread writes it, any thread reads it.  A plain
 * load and store, because no other thread writes: an RMW would cost 5 ns. */
#define np_count(p, n) np_set((p), np_get(p) + (uint64_t)(n))

static inline int np_cas_sc(atomic_uint *p, unsigned from, unsigned to) {
    return atomic_compare_exchange_strong_explicit(p, &from, to, memory_order_seq_cst, memory_order_seq_cst);
}

static inline void np_relax(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

/* One step of waiting for another thread that is inside a few instructions or
 * one non-blocking system call: spin a little, then let it run. */
static inline void np_backoff(unsigned *round) {
    if (++*round < 64) {
        np_relax();
    } else {
        sched_yield();
    }
}

/* Held for a few nanoseconds, never across a system call or malloc. */
typedef atomic_uint np_spin;

static inline void np_spin_lock(np_spin *l) {
    unsigned round = 0;
    while (atomic_exchange_explicit(l, 1u, memory_order_acquire) != 0) {
        while (np_get(l) != 0) {
            np_backoff(&round);
        }
    }
}

static inline void np_spin_unlock(np_spin *l) {
    np_set_rel(l, 0u);
    np_chaos();
}

#endif
