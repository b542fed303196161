#!/usr/bin/env python3
"""Stands in for llama-bench and llama-batched-bench: fixed seconds, in their formats."""

import json
import sys

words = sys.argv[1:]
given = {word: words[i + 1] for i, word in enumerate(words[:-1]) if word.startswith("-")}
if sys.argv[0].endswith("llama-batched-bench"):
    print("main: n_kv_max = 512")
    seconds = 0.5 if given["-fa"] == "on" else 0.25
    row = {"pp": int(given["-npp"]), "tg": int(given["-ntg"]), "pl": int(given["-npl"])}
    print(json.dumps({**row, "t_pp": seconds, "t_tg": 2 * seconds, "t": 3 * seconds}))
    sys.exit()
if given["-m"].endswith("broken.gguf"):
    sys.exit("error: failed to load model")
rows = []
for flash in given["-fa"].split(","):
    seconds = 1.0 + int(flash)
    rows.append(
        {
            "build_commit": "abc",
            "flash_attn": flash == "1",
            "n_threads": int(given["-t"]),
            "samples_ns": [seconds * 1e9],
        }
    )
print(json.dumps(rows))
