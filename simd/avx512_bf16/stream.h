/* As scalar/stream.h. Of the processors measured so far only Zen 4 takes this level; its streams need no help: one
 * thread reads, at 0, 128, 256, 512, 1024, 2048 bytes, Q4_0 at 28, 27, 27, 22, 23, 21 GB/s, Q6_K at 27, 28, 27, 21, 19,
 * 16 (plain reads: 30); two threads Q4_0 at 32, 34, 32, 28, 26, 27 (34). */
#ifndef CPUINFER_STREAM_H
#define CPUINFER_STREAM_H

enum { STREAM_AHEAD = 0 };
#endif
