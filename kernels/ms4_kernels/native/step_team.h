/* Where the threads of a step wait for one another. They spin for as long as a stage's parts may differ, then sleep: a thread that the system
   has taken off its core comes back sooner on a core that nobody spins on. OpenMP's own barrier spins for milliseconds, which costs a machine
   with other work twenty times the step. Outside Linux it serves all the same. */
#ifndef MS4_STEP_TEAM_H
#define MS4_STEP_TEAM_H

#include <stdint.h>

#ifdef _OPENMP
#include <omp.h>
#else
#define omp_get_thread_num() 0
#endif

typedef struct {
    int32_t arrived, round, sleeping;
} Gate;

#if defined(__linux__) && defined(_OPENMP)
#include <limits.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#define SPINS 1000 /* some 50 microseconds */

static inline void relax(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static void meet(Gate *gate) {
    int threads = omp_get_num_threads();
    if (threads == 1) return;
    int32_t round = __atomic_load_n(&gate->round, __ATOMIC_SEQ_CST);
    if (__atomic_add_fetch(&gate->arrived, 1, __ATOMIC_SEQ_CST) == threads) {
        __atomic_store_n(&gate->arrived, 0, __ATOMIC_SEQ_CST);
        __atomic_store_n(&gate->round, round + 1, __ATOMIC_SEQ_CST);
        if (__atomic_load_n(&gate->sleeping, __ATOMIC_SEQ_CST)) syscall(SYS_futex, &gate->round, FUTEX_WAKE_PRIVATE, INT_MAX, 0, 0, 0);
        return;
    }
    for (int spin = 0; spin < SPINS; spin++) {
        if (__atomic_load_n(&gate->round, __ATOMIC_SEQ_CST) != round) return;
        relax();
    }
    __atomic_add_fetch(&gate->sleeping, 1, __ATOMIC_SEQ_CST);
    while (__atomic_load_n(&gate->round, __ATOMIC_SEQ_CST) == round) syscall(SYS_futex, &gate->round, FUTEX_WAIT_PRIVATE, round, 0, 0, 0);
    __atomic_sub_fetch(&gate->sleeping, 1, __ATOMIC_SEQ_CST);
}
#else
static void meet(Gate *gate) {
    (void)gate;
#pragma omp barrier
}
#endif

#endif
