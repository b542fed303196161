/* The floating-point mode of a step: round to nearest even, exceptions masked, denormals flushed on both sides. Per
 * thread; the caller's mode is put back afterwards. */
#ifndef CPUINFER_FPMODE_H
#define CPUINFER_FPMODE_H
#include <stdint.h>

#if defined(__x86_64__)
#include <xmmintrin.h>

/* Sets the step's mode; returns the mode it found. */
static inline uint64_t fp_enter(void) {
    uint64_t before = _mm_getcsr();
    _mm_setcsr(0x1f80u | 0x8000u | 0x0040u); /* all masked; FTZ; DAZ */
    return before;
}
static inline void fp_leave(uint64_t before) {
    _mm_setcsr((uint32_t)before);
}
#elif defined(__aarch64__)
static inline void fp_leave(uint64_t before) {
    __asm__ volatile("msr fpcr, %0" : : "r"(before));
}
static inline uint64_t fp_enter(void) {
    uint64_t before;
    __asm__ volatile("mrs %0, fpcr" : "=r"(before));
    fp_leave(UINT64_C(1) << 24); /* FZ; FZ16 stays off, so that half-precision subnormals convert exactly */
    return before;
}
#else
#error "fpmode.h: no way is known here to flush denormals"
#endif
#endif
