/* Rows at equal distances: token t's data at first + t * stride. */
#ifndef CPUINFER_DOT_ROWS_H
#define CPUINFER_DOT_ROWS_H
#include <stdint.h>

#define DOT_INLINE static inline __attribute__((always_inline))

/* `fourth` is row 3, `seventh` row 6. Bases and one index register reach three rows each in x86's addressing modes
 * (base, base + stride, base + 2 * stride); left alone, the compiler keeps an offset per row, and spills them. */
typedef struct dot_rows {
    const char *first, *fourth, *seventh;
    int64_t stride;
} dot_rows;

DOT_INLINE dot_rows dot_rows_at(const char *first, int64_t stride) {
    const char *fourth = first + 3 * stride, *seventh = first + 6 * stride;
    __asm__("" : "+r"(fourth));
    __asm__("" : "+r"(seventh));
    return (dot_rows){first, fourth, seventh, stride};
}
DOT_INLINE const char *dot_row(dot_rows rows, int t) {
    return t < 3   ? rows.first + t * rows.stride
           : t < 6 ? rows.fourth + (t - 3) * rows.stride
                   : rows.seventh + (t - 6) * rows.stride;
}
DOT_INLINE dot_rows dot_rows_next(dot_rows rows, int64_t bytes) {
    return (dot_rows){rows.first + bytes, rows.fourth + bytes, rows.seventh + bytes, rows.stride};
}
#endif
