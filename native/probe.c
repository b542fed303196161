/* What this processor and its operating system can run. Built with baseline flags; nothing here may fault. */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#pragma GCC visibility push(default)
#include "probe.h"
#pragma GCC visibility pop

static int32_t append(char *names, int32_t size, int32_t used, const char *name) {
    int32_t length = (int32_t)strlen(name);
    if (used < 0 || used + length + 2 > size)
        return -1;
    memcpy(names + used, name, (size_t)length);
    names[used + length] = ' ';
    names[used + length + 1] = 0;
    return used + length + 1;
}

#if defined(__x86_64__)
#include <cpuid.h>

enum { EAX, EBX, ECX, EDX };

/* Register state that the operating system must save: bits of XCR0. */
enum { XCR0_NONE = 0, XCR0_AVX = 0x6, XCR0_AVX512 = 0xe6, XCR0_AMX = 0x60000 };

/* Bits: Intel 64 and IA-32 Software Developer's Manual, volume 2, CPUID; XCR0: volume 1, chapter 13. */
static const struct {
    const char *name;
    uint32_t leaf, subleaf, reg, bit, xcr0;
} features[] = {
    {"sse3", 1, 0, ECX, 0, XCR0_NONE},
    {"ssse3", 1, 0, ECX, 9, XCR0_NONE},
    {"sse4.1", 1, 0, ECX, 19, XCR0_NONE},
    {"sse4.2", 1, 0, ECX, 20, XCR0_NONE},
    {"popcnt", 1, 0, ECX, 23, XCR0_NONE},
    {"fma", 1, 0, ECX, 12, XCR0_AVX},
    {"avx", 1, 0, ECX, 28, XCR0_AVX},
    {"f16c", 1, 0, ECX, 29, XCR0_AVX},
    {"bmi1", 7, 0, EBX, 3, XCR0_NONE},
    {"avx2", 7, 0, EBX, 5, XCR0_AVX},
    {"bmi2", 7, 0, EBX, 8, XCR0_NONE},
    {"avx512f", 7, 0, EBX, 16, XCR0_AVX512},
    {"avx512dq", 7, 0, EBX, 17, XCR0_AVX512},
    {"avx512cd", 7, 0, EBX, 28, XCR0_AVX512},
    {"avx512bw", 7, 0, EBX, 30, XCR0_AVX512},
    {"avx512vl", 7, 0, EBX, 31, XCR0_AVX512},
    {"avx512_vbmi", 7, 0, ECX, 1, XCR0_AVX512},
    {"avx512_vbmi2", 7, 0, ECX, 6, XCR0_AVX512},
    {"avx512_vnni", 7, 0, ECX, 11, XCR0_AVX512},
    {"avx512_vp2intersect", 7, 0, EDX, 8, XCR0_AVX512},
    {"amx_bf16", 7, 0, EDX, 22, XCR0_AMX},
    {"amx_tile", 7, 0, EDX, 24, XCR0_AMX},
    {"amx_int8", 7, 0, EDX, 25, XCR0_AMX},
    {"avxvnni", 7, 1, EAX, 4, XCR0_AVX},
    {"avx512_bf16", 7, 1, EAX, 5, XCR0_AVX512},
};

/* XCR0, or 0 where XGETBV itself is not switched on (CPUID.1:ECX.OSXSAVE). */
static uint32_t saved_state(void) {
    uint32_t r[4];
    if (!__get_cpuid(1, &r[EAX], &r[EBX], &r[ECX], &r[EDX]) || !(r[ECX] >> 27 & 1u))
        return 0;
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

/* CPUID of a leaf and subleaf; zeros where the processor does not have them. */
static void query(uint32_t leaf, uint32_t subleaf, uint32_t r[4]) {
    memset(r, 0, 4 * sizeof *r);
    if (leaf > (uint32_t)__get_cpuid_max(0, NULL)) /* clang's is signed */
        return;
    if (subleaf > 0) {
        __cpuid_count(leaf, 0, r[EAX], r[EBX], r[ECX], r[EDX]);
        uint32_t last = r[EAX];
        memset(r, 0, 4 * sizeof *r);
        if (subleaf > last)
            return;
    }
    __cpuid_count(leaf, subleaf, r[EAX], r[EBX], r[ECX], r[EDX]);
}

/* Those that the processor has and whose registers the system saves, or (blocked) does not. */
static int32_t append_features(char *names, int32_t size, int32_t used, int blocked) {
    uint32_t xcr0 = saved_state();
    for (size_t i = 0; i < sizeof features / sizeof *features; i++) {
        uint32_t r[4];
        query(features[i].leaf, features[i].subleaf, r);
        int saved = (xcr0 & features[i].xcr0) == features[i].xcr0;
        if ((r[features[i].reg] >> features[i].bit & 1u) && saved != blocked)
            used = append(names, size, used, features[i].name);
    }
    return used;
}

int32_t ci_probe_blocked(char *names, int32_t size) {
    return append_features(names, size, append(names, size, 0, ""), 1);
}

int32_t ci_probe_features(char *names, int32_t size) {
    return append_features(names, size, append(names, size, 0, "x86_64"), 0);
}

#if defined(__linux__)
#include <errno.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PERMIT
/* Linux, Documentation/arch/x86/xstate.rst: what is as large as the tiles' data must be asked for, once a process. */
int32_t ci_probe_permit(const char *name) {
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };
    if (strcmp(name, "amx_tile"))
        return 0;
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) ? errno : 0;
}
#endif

#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>

#ifndef AT_HWCAP2
#define AT_HWCAP2 26
#endif

/* Bits: Linux, arch/arm64/include/uapi/asm/hwcap.h. The kernel sets them only for what it has switched on. */
static const struct {
    const char *name;
    uint64_t word, bit;
} features[] = {
    {"asimd", AT_HWCAP, 1}, {"fphp", AT_HWCAP, 9},  {"asimdhp", AT_HWCAP, 10}, {"asimddp", AT_HWCAP, 20},
    {"sve", AT_HWCAP, 22},  {"sve2", AT_HWCAP2, 1}, {"i8mm", AT_HWCAP2, 13},   {"bf16", AT_HWCAP2, 14},
};

int32_t ci_probe_features(char *names, int32_t size) {
    int32_t used = append(names, size, 0, "aarch64");
    for (size_t i = 0; i < sizeof features / sizeof *features; i++)
        if (getauxval(features[i].word) >> features[i].bit & 1u)
            used = append(names, size, used, features[i].name);
    return used;
}

#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>

/* Apple, "Determining instruction set characteristics". Under Linux's names; every Apple processor has asimd. */
static const struct {
    const char *name, *key;
} features[] = {
    {"fphp", "hw.optional.arm.FEAT_FP16"},       {"asimdhp", "hw.optional.arm.FEAT_FP16"},
    {"asimddp", "hw.optional.arm.FEAT_DotProd"}, {"i8mm", "hw.optional.arm.FEAT_I8MM"},
    {"bf16", "hw.optional.arm.FEAT_BF16"},
};

int32_t ci_probe_features(char *names, int32_t size) {
    int32_t used = append(names, size, append(names, size, 0, "aarch64"), "asimd");
    for (size_t i = 0; i < sizeof features / sizeof *features; i++) {
        int value = 0;
        size_t length = sizeof value;
        if (sysctlbyname(features[i].key, &value, &length, NULL, 0) == 0 && value)
            used = append(names, size, used, features[i].name);
    }
    return used;
}

#else
int32_t ci_probe_features(char *names, int32_t size) {
    return append(names, size, 0, "unknown");
}
#endif

#if !defined(__x86_64__)
int32_t ci_probe_blocked(char *names, int32_t size) {
    return append(names, size, 0, "");
}
#endif

#if !defined(PERMIT)
int32_t ci_probe_permit(const char *name) {
    (void)name;
    return 0;
}
#endif
