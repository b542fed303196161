/* The whole C interface of libcpuinfer_probe.so; read by the compiler and by cffi's cdef. */

/* Writes the names (as in simd/isa.toml) of the features that the processor has and the operating system has
 * switched on, each followed by a space, and a final NUL. Returns the bytes written without the NUL, or -1 where
 * they do not fit in size bytes. */
int32_t ci_probe_features(char *names, int32_t size);

/* The same of what the processor has and the operating system has not switched on. */
int32_t ci_probe_blocked(char *names, int32_t size);

/* Asks the operating system to let this process use a feature that the processor has. Returns 0 where it does, or where
 * nobody need be asked; else the number of its error. */
int32_t ci_probe_permit(const char *name);
