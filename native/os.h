/* What differs between operating systems: sleep on a word of memory until another thread says it changed, and a clock.
 * The rest of native/ is C and POSIX (on Windows: what mingw-w64 has of it). */
#ifndef CPUINFER_OS_H
#define CPUINFER_OS_H
#include <stdatomic.h>
#include <stdint.h>
#include <time.h>
#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#elif defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#include <windows.h>
#endif

/* Sleep while the word is `value`, or only for a little while: wakes may be spurious. */
static inline void os_wait(_Atomic int32_t *word, int32_t value) {
#if defined(__linux__)
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, NULL, NULL, 0);
#elif defined(_WIN32)
    WaitOnAddress(word, &value, sizeof value, INFINITE);
#else
    (void)word, (void)value; /* macOS has had a public call for this since 14.4 only */
    nanosleep(&(struct timespec){.tv_nsec = 50000}, NULL);
#endif
}

/* Wake every thread that sleeps on the word. */
static inline void os_wake(_Atomic int32_t *word) {
#if defined(__linux__)
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT32_MAX, NULL, NULL, 0);
#elif defined(_WIN32)
    WakeByAddressAll((void *)word);
#else
    (void)word;
#endif
}

/* Seconds of a clock that never goes back. */
static inline double os_seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}
#endif
