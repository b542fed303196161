/* The team of threads that runs a step. The only file that knows OpenMP. */
#ifndef CPUINFER_TEAM_H
#define CPUINFER_TEAM_H
#include <omp.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>

/* Shared by the team; lives on the stack of the thread that opens the region. Own cache lines: the arrivals and the
 * generation are written at different times by different threads. */
typedef struct ci_barrier {
    _Alignas(64) _Atomic int32_t arrived;
    _Alignas(64) _Atomic int32_t generation;
} ci_barrier;

typedef struct ci_team {
    int32_t id;
    int32_t n;
    ci_barrier *barrier;
} ci_team;

static inline void ci_relax(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* About 20-50 us of pauses on current cores; then the processor is offered to others, so that a team larger than the
 * machine loses a time slice and not the whole run. */
enum { CI_SPINS = 2000 };

static inline void ci_team_meet(const ci_team *team) {
    ci_barrier *barrier = team->barrier;
    if (team->n == 1)
        return;
    int32_t generation = atomic_load_explicit(&barrier->generation, memory_order_relaxed);
    if (atomic_fetch_add_explicit(&barrier->arrived, 1, memory_order_acq_rel) == team->n - 1) {
        atomic_store_explicit(&barrier->arrived, 0, memory_order_relaxed);
        atomic_store_explicit(&barrier->generation, generation + 1, memory_order_release);
        return;
    }
    for (int32_t spins = 0; atomic_load_explicit(&barrier->generation, memory_order_acquire) == generation; spins++) {
        if (spins < CI_SPINS)
            ci_relax();
        else
            sched_yield();
    }
}

/* The share [*begin, *end) of n items that thread id of the team owns: contiguous, sizes differ by at most one. */
static inline void ci_team_share(const ci_team *team, int32_t n, int32_t *begin, int32_t *end) {
    *begin = (int32_t)((int64_t)n * team->id / team->n);
    *end = (int32_t)((int64_t)n * (team->id + 1) / team->n);
}

typedef void ci_team_body(const ci_team *team, void *argument);

/* Run body on n threads at once and wait for all: one fork and join. */
static inline void ci_team_run(int32_t n, ci_team_body *body, void *argument) {
    ci_barrier barrier = {0};
#pragma omp parallel num_threads(n)
    {
        ci_team team = {omp_get_thread_num(), omp_get_num_threads(), &barrier};
        body(&team, argument);
    }
}
#endif
