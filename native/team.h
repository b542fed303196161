/* The team of threads that runs a step. The only file that knows OpenMP, or POSIX threads, which ThreadSanitizer sees
 * through: it knows nothing of the fork and join inside an OpenMP runtime. */
#ifndef CPUINFER_TEAM_H
#define CPUINFER_TEAM_H
#if defined(CI_TEAM_PTHREADS)
#include <pthread.h>
#else
#include <omp.h>
#endif
#include <relax.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>

#include "os.h"

/* Shared by the team; lives on the stack of the thread that opens the region. Own cache lines: the first three are
 * written at different times by different threads. */
typedef struct ci_barrier {
    _Alignas(64) _Atomic int32_t arrived;
    _Alignas(64) _Atomic int32_t generation;
    _Alignas(64) _Atomic int32_t sleepers;
    _Atomic int32_t spins; /* that a wait makes before it offers the processor to others */
} ci_barrier;

typedef struct ci_team {
    int32_t id;
    int32_t n;
    ci_barrier *barrier;
} ci_team;

/* Pauses (CI_SPINS are about 20-50 us on current cores), then offers of the processor to others, then sleep. Waits that
 * pauses alone did not end halve the pauses of the next, others double them: where threads outnumber processors, the
 * one that is waited for cannot run until somebody makes room. */
enum { CI_SPINS = 2048, CI_LEAST_SPINS = 8, CI_YIELDS = 1000 };

/* A wait of so many pauses (2 to 6 us) is one that the team's own work explains: nobody looks at a clock. */
enum { CI_SHORT_WAIT = 256 };

/* Sleep until the generation is no longer `generation`, or a little while; wakes may be spurious. */
static inline void ci_barrier_sleep(ci_barrier *barrier, int32_t generation) {
    atomic_fetch_add(&barrier->sleepers, 1);
    os_wait(&barrier->generation, generation);
    atomic_fetch_sub(&barrier->sleepers, 1);
}

static inline void ci_barrier_wake(ci_barrier *barrier) {
    /* Sequentially consistent with the add in ci_barrier_sleep: either the sleeper is seen here, or the system sees
     * the new generation and does not let it sleep. */
    if (atomic_load(&barrier->sleepers) > 0)
        os_wake(&barrier->generation);
}

/* Returns in every thread once all have called it; what they wrote before is then visible to all. The seconds that this
 * thread waited for others, where the wait was not a short one. */
static inline double ci_team_meet(const ci_team *team) {
    ci_barrier *barrier = team->barrier;
    if (team->n == 1)
        return 0.0;
    int32_t generation = atomic_load_explicit(&barrier->generation, memory_order_relaxed);
    if (atomic_fetch_add_explicit(&barrier->arrived, 1, memory_order_acq_rel) == team->n - 1) {
        atomic_store_explicit(&barrier->arrived, 0, memory_order_relaxed);
        atomic_store(&barrier->generation, generation + 1);
        ci_barrier_wake(barrier);
        return 0.0;
    }
    const int32_t spins = atomic_load_explicit(&barrier->spins, memory_order_relaxed);
    const int32_t patience = spins < CI_SHORT_WAIT ? spins : CI_SHORT_WAIT;
    double begin = 0.0;
    int32_t tries = 0;
    for (; atomic_load_explicit(&barrier->generation, memory_order_acquire) == generation; tries++) {
        if (tries == patience)
            begin = os_seconds();
        if (tries < spins)
            cpu_relax();
        else if (tries < spins + CI_YIELDS)
            sched_yield();
        else
            ci_barrier_sleep(barrier, generation);
    }
    const int32_t next = tries > spins ? spins / 2 : spins * 2;
    if (next >= CI_LEAST_SPINS && next <= CI_SPINS)
        atomic_store_explicit(&barrier->spins, next, memory_order_relaxed);
    return tries > patience ? os_seconds() - begin : 0.0;
}

/* The share [*begin, *end) of n items that thread id of the team owns: contiguous, sizes differ by at most one. */
static inline void ci_team_share(const ci_team *team, int32_t n, int32_t *begin, int32_t *end) {
    *begin = (int32_t)((int64_t)n * team->id / team->n);
    *end = (int32_t)((int64_t)n * (team->id + 1) / team->n);
}

/* The next of the items that the team shares through a counter, from 0 on; relaxed, since items are independent. */
static inline int32_t ci_team_take(_Atomic int32_t *counter) {
    return atomic_fetch_add_explicit(counter, 1, memory_order_relaxed);
}

typedef void ci_team_body(const ci_team *team, void *argument);

#if defined(CI_TEAM_PTHREADS)
typedef struct ci_member {
    ci_team team;
    ci_team_body *body;
    void *argument;
    pthread_t thread;
} ci_member;

static inline void *ci_team_member(void *argument) {
    ci_member *member = argument;
    member->body(&member->team, member->argument);
    return NULL;
}

enum { CI_MOST_MEMBERS = 64 };

static inline void ci_team_fork(int32_t n, ci_barrier *barrier, ci_team_body *body, void *argument) {
    ci_member members[CI_MOST_MEMBERS];
    n = n < CI_MOST_MEMBERS ? n : CI_MOST_MEMBERS;
    for (int32_t i = 0; i < n; i++)
        members[i] = (ci_member){{i, n, barrier}, body, argument, 0};
    for (int32_t i = 1; i < n; i++)
        if (pthread_create(&members[i].thread, NULL, ci_team_member, &members[i]))
            __builtin_trap(); /* a build for tests alone */
    body(&members[0].team, argument);
    for (int32_t i = 1; i < n; i++)
        pthread_join(members[i].thread, NULL);
}
#else
static inline void ci_team_fork(int32_t n, ci_barrier *barrier, ci_team_body *body, void *argument) {
#pragma omp parallel num_threads(n)
    {
        ci_team team = {omp_get_thread_num(), omp_get_num_threads(), barrier};
        body(&team, argument);
    }
}
#endif

/* Run body on n threads at once (fewer where the OpenMP runtime gives fewer) and wait for all: one fork and join. One
 * thread is the caller's, and the runtime's own stay as they are. */
static inline void ci_team_run(int32_t n, ci_team_body *body, void *argument) {
    ci_barrier barrier = {.spins = CI_SPINS};
    if (n == 1) {
        body(&(ci_team){0, 1, &barrier}, argument);
        return;
    }
    ci_team_fork(n, &barrier, body, argument);
}
#endif
