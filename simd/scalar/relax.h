/* What a waiting processor does between two looks: about as long as an x86 pause. */
#ifndef CPUINFER_RELAX_H
#define CPUINFER_RELAX_H

static inline void cpu_relax(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb"); /* yield is a no-op on most cores */
#endif
}
#endif
