"""What kernels are told: the structs of native/api.h and native/kernels.h as NumPy records, addresses as integers."""

from __future__ import annotations

from typing import Any

import numpy as np

_I, _F = np.int64, np.float32

OP = np.dtype(
    [
        ("kind", _I),
        ("barrier", _I),  # 1: the team meets before this op starts
        (
            "rows_are_logits",
            _I,
        ),  # 0: the op runs over the T tokens; 1: over the R rows that need logits
        ("n", _I),  # output width
        ("k", _I),  # input width
        ("in_type", _I),
        ("out_type", _I),
        ("heads", _I),
        ("kv_heads", _I),
        ("head_dim", _I),
        ("layer", _I),
        ("window", _I),  # keys that a query sees; 0: all up to its own
        ("in0", _I),
        ("in1", _I),  # 0: none
        ("out", _I),
        ("rope", _I),
        ("w", _I, (3,)),  # addresses of weights; 0: none
        ("w_type", _I, (3,)),
        ("w_n", _I, (3,)),
        ("eps", _F),
        ("scale", _F),
        ("softcap", _F),
    ],
    align=True,
)
"""An op: as ci_op, which says what each field is."""

STEP = np.dtype(
    [
        ("me", _I),  # number of this thread in its team
        ("n_threads", _I),
        ("barrier", _I),
        ("counters", _I),  # [ops] int64, zero when a step starts: work handed out so far
        ("n_ops", _I),  # that this step needs
        ("n_tokens", _I),
        ("n_seqs", _I),
        ("n_rows", _I),
        ("block_stride", _I),
        ("tokens", _I),
        ("positions", _I),
        ("q_indptr", _I),
        ("block_tables", _I),
        ("logit_rows", _I),
        ("token_pages", _I),  # [T] int32: the KV page of each token's own position
        ("kv", _I),
        ("kv_type", _I),
        ("layer_bytes", _I),
        ("page_bytes", _I),
        ("k_bytes", _I),
        ("own", _I),  # this thread's workspace
        ("shared", _I),  # the team's
    ],
    align=True,
)
"""A step as one thread of its team sees it: as ci_step, with ci_batch and ci_kv."""

KINDS = (
    "embed",
    "rmsnorm",
    "quantize",
    "matmul",
    "matmul_swiglu",
    "matmul_qkv_rope",
    "rope",
    "kv_write",
    "attention",
    "add",
    "swiglu",
    "take_rows",
)
"""Kinds of ops: an op's `kind` is an index."""
EMBED, RMSNORM, QUANTIZE, MATMUL, MATMUL_SWIGLU, MATMUL_QKV_ROPE = range(6)
ROPE, KV_WRITE, ATTENTION, ADD, SWIGLU, TAKE_ROWS = range(6, 12)

F32, F16, BF16, I8, Q8 = 0, 1, 30, 24, 1000
"""Element types, numbered as ci_type: of weights (GGUF's numbers), activations and KV pages."""
Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K = 2, 3, 6, 7, 8, 10, 11, 12
Q5_K, Q6_K, IQ4_NL, IQ4_XS, MXFP4 = 13, 14, 20, 23, 39

ACTIVATIONS = {"f32": F32, "bf16": BF16, "q8": Q8}
KV_TYPES = {"f32": F32, "f16": F16, "bf16": BF16, "int8": I8}
ROWS, BLOCK, PAGE = 16, 32, 16
"""Rows of a panel, values that share a scale, tokens of a KV page."""

FORM = np.dtype(
    [
        ("columns", _I),  # of a unit: what a panel is a row of
        ("bytes", _I),  # of a unit, for 16 rows
        ("header", _I),  # of these in front of the codes
        ("codes", _I),  # bytes of the codes of a block of 32
        ("offset", _I),  # taken from each code
        ("mins", _I),  # 0: none; 1: a block has a min; 2: either half has one
        ("halves", _I),  # 1: either half of a block has an integer scale
        ("activation", _I),  # F32, BF16 or Q8
    ],
    align=True,
)
"""A weight type as docs/design.md has it in sections 2 and 3."""


def _forms() -> np.ndarray[Any, Any]:
    forms = np.zeros(MXFP4 + 1, FORM)
    floats = {F32: (1, 64, F32), F16: (1, 32, F32), BF16: (2, 64, BF16)}
    for type_, (columns, size, activation) in floats.items():
        forms[type_] = (columns, size, 0, 0, 0, 0, 0, activation)
    # columns of a unit, bytes of its header, of a block's codes; offset, mins, halves
    quantised = {
        Q4_0: (64, 64, 256, 8, 0, 0),
        Q4_1: (64, 128, 256, 0, 1, 0),
        Q5_0: (64, 64, 320, 16, 0, 0),
        Q5_1: (64, 128, 320, 0, 1, 0),
        Q8_0: (64, 64, 512, 128, 0, 0),
        IQ4_NL: (64, 64, 256, 128, 0, 0),
        MXFP4: (64, 32, 256, 12, 0, 0),
        Q2_K: (256, 320, 128, 0, 2, 1),
        Q3_K: (256, 224, 192, 4, 0, 1),
        Q4_K: (256, 256, 256, 0, 1, 0),
        Q5_K: (256, 256, 320, 0, 1, 0),
        Q6_K: (256, 288, 384, 32, 0, 1),
        IQ4_XS: (256, 128, 256, 128, 0, 0),
    }
    for type_, (columns, header, codes, offset, mins, halves) in quantised.items():
        size = header + columns // BLOCK * codes
        forms[type_] = (columns, size, header, codes, offset, mins, halves, Q8)
    return forms


FORMS = _forms()
"""By number of the type; no columns: no such type."""

Record = Any
"""One OP, STEP or FORM."""
