/* How far ahead of a product of one token, or of so few that memory is behind, its weights are fetched, in bytes: where
 * a processor's own prefetching keeps up with a stream, asking for lines early only displaces it. With more tokens it
 * is CI_AHEAD. Measured on Zen 3, weights in memory, as four streams a thread (GB/s of two threads at 0, 512, 1024,
 * 2048, 4096 bytes): Q4_0 32, 34, 36, 35, 35; Q8_0 32, 36, 34, 30, 30. */
#ifndef CPUINFER_STREAM_H
#define CPUINFER_STREAM_H

enum { STREAM_AHEAD = 1024 };
#endif
