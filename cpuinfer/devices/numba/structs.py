"""What kernels are told: the structs of native/api.h and native/kernels.h as NumPy records, addresses as integers."""

from __future__ import annotations

from typing import Any

import numpy as np

_I, _F = np.int64, np.float32

OP = np.dtype(
    [
        ("kind", _I),
        ("barrier", _I),  # 1: the team meets before this op starts
        ("rows_are_logits", _I),  # 0: the op runs over the T tokens; 1: over the R rows that need logits
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

F32, F16, BF16, I8, Q8 = 0, 1, 30, 24, 1000
"""Element types, numbered as ci_type: of weights (GGUF's numbers), activations and KV pages."""
Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K = 2, 3, 6, 7, 8, 10, 11, 12
Q5_K, Q6_K, IQ4_NL, IQ4_XS, MXFP4 = 13, 14, 20, 23, 39

ACTIVATIONS = {"f32": F32, "bf16": BF16, "q8": Q8}
KV_TYPES = {"f32": F32, "f16": F16, "bf16": BF16, "int8": I8}
ROWS, BLOCK, PAGE = 16, 32, 16
"""Rows of a panel, values that share a scale, tokens of a KV page."""

Record = Any
"""One OP or STEP."""
