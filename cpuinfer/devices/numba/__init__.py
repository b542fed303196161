"""The Numba device: the kernels of native/ in Python, compiled where there is no native library.

The functions are those of native/*.c under the same names, over the vectors of simd/scalar/vec.h: see docs/design.md.
"""
