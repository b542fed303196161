/* Reads f32 values from standard input, a multiple of 16; writes vf_exp, vf_silu and vf_tanh of each 16 of them. */
#include <fpmode.h>
#include <stdio.h>
#include <vmath.h>

int main(void) {
    static float in[4096][VF_LANES], out[4096][3][VF_LANES];
    uint64_t mode = fp_enter();
    for (;;) {
        size_t n = fread(in, sizeof in[0], 4096, stdin);
        for (size_t i = 0; i < n; i++) {
            vf_store(out[i][0], vf_exp(vf_load(in[i])));
            vf_store(out[i][1], vf_silu(vf_load(in[i])));
            vf_store(out[i][2], vf_tanh(vf_load(in[i])));
        }
        fwrite(out, sizeof out[0], n, stdout);
        if (n < 4096)
            break;
    }
    fp_leave(mode);
    return 0;
}
