"""Accuracy against the f32 model: KL divergence and top-1 agreement, ours beside llama.cpp's, on the same files.

The f32 model is transformers' own, on the weights which transformers dequantises from the same GGUF. Each engine runs in a
process of its own and leaves its logits in a file.

    python benchmarks/accuracy.py MODEL.gguf... [--tokens 2048] [--window 512] [--json out.json]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

TEXT = Path(__file__).parent / "data" / "english.txt"


def windows(model: Path, tokens: int, window: int) -> NDArray[np.int32]:
    """Token ids [n, window] of the text, tokenised by llama.cpp so that every engine sees the same."""
    from llama_cpp import Llama

    llm = Llama(str(model), vocab_only=True, verbose=False)
    ids = llm.tokenize(TEXT.read_bytes(), add_bos=False)
    n = tokens // window
    if len(ids) < n * window:
        raise ValueError(f"the text has {len(ids)} tokens, {n * window} wanted: lower --tokens")
    return np.array(ids[: n * window], np.int32).reshape(n, window)


def run_reference(model: Path, ids: NDArray[np.int32], out: NDArray[np.float32]) -> None:
    """transformers in f32 on dequantised weights."""
    import torch
    from transformers import AutoModelForCausalLM

    net = AutoModelForCausalLM.from_pretrained(
        str(model.parent),
        gguf_file=model.name,
        dtype=torch.float32,
        attn_implementation="eager",
    )
    with torch.no_grad():
        for i, row in enumerate(ids):
            out[i] = net(torch.tensor(row[None].astype(np.int64))).logits[0].float().numpy()


def run_llama_cpp(model: Path, ids: NDArray[np.int32], out: NDArray[np.float32]) -> None:
    """llama.cpp through llama-cpp-python, all logits."""
    from llama_cpp import Llama

    llm = Llama(
        str(model),
        n_ctx=ids.shape[1],
        n_batch=ids.shape[1],
        logits_all=True,
        verbose=False,
    )
    for i, row in enumerate(ids):
        llm.reset()
        llm.eval(row.tolist())
        out[i] = llm.scores[: ids.shape[1]]


def run_cpuinfer(model: Path, ids: NDArray[np.int32], out: NDArray[np.float32]) -> None:
    """This engine, native device."""
    from cpuinfer import LLM

    with LLM(str(model), max_context=ids.shape[1]) as llm:
        for i, row in enumerate(ids):
            out[i] = llm.logits(row.tolist())


ENGINES = {
    "reference": run_reference,
    "llama.cpp": run_llama_cpp,
    "cpuinfer": run_cpuinfer,
}


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Log-probabilities [T, V] in float64."""
    x = logits.astype(np.float64)
    x -= x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def divergence(ref: NDArray[np.float32], got: NDArray[np.float32]) -> NDArray[np.float64]:
    """KL(ref || got) in nats of every position [n, T]."""
    kl = []
    for r, g in zip(ref, got, strict=True):
        lr, lg = log_softmax(r), log_softmax(g)
        kl.append((np.exp(lr) * (lr - lg)).sum(axis=-1))
    return np.stack(kl)


def mean(values: NDArray[np.float64]) -> dict[str, float]:
    """Of the values, and its standard error as if they were independent."""
    error = values.std() / np.sqrt(values.size)
    return {"mean": float(values.mean()), "standard_error": float(error)}


def compare(folder: Path) -> dict[str, Any]:
    """Of each engine's logits in the folder, against the reference's: mean KL with its standard error, how often the
    most likely token agrees in percent, the largest and the root mean square error of a logit. Beside them ours less
    llama.cpp's, position by position, with standard errors of their own."""
    ref = np.load(folder / "reference.npy", mmap_mode="r")
    found: dict[str, Any] = {}
    kl, same = {}, {}
    for engine in ("llama.cpp", "cpuinfer"):
        got = np.load(folder / f"{engine}.npy", mmap_mode="r")
        kl[engine] = divergence(ref, got)
        same[engine] = (ref.argmax(-1) == got.argmax(-1)).astype(np.float64)
        errors = [(np.abs(e).max(), np.square(e, dtype=np.float64).mean()) for e in got - ref]
        found[engine] = {
            "kl": mean(kl[engine]),
            "top1_percent": 100.0 * float(same[engine].mean()),
            "max_logit_error": float(max(most for most, _ in errors)),
            "rms_logit_error": float(np.sqrt(np.mean([square for _, square in errors]))),
        }
    found["kl_difference"] = mean(kl["cpuinfer"] - kl["llama.cpp"])
    found["top1_percent_difference"] = mean(100.0 * same["cpuinfer"] - 100.0 * same["llama.cpp"])
    return found


def measure(model: Path, tokens: int, window: int) -> dict[str, Any]:
    """Every engine in a process of its own on one file, compared; and how many matrices of the file have which type."""
    import gguf

    reader = gguf.GGUFReader(model)
    types = Counter(t.tensor_type.name for t in reader.tensors if len(t.shape) > 1)
    vocab = len(reader.fields["tokenizer.ggml.tokens"].data)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ids = windows(model, tokens, window)
        np.save(folder / "ids.npy", ids)
        for engine in ENGINES:
            shape = (*ids.shape, vocab)
            np.lib.format.open_memmap(folder / f"{engine}.npy", "w+", np.float32, shape)
            command = [sys.executable, __file__, str(model), "--engine", engine]
            subprocess.run([*command, "--folder", name], check=True, env=dict(os.environ))
        what = {"model": model.name, "matrices": dict(types.most_common()), "tokens": ids.size}
        return {**what, **compare(folder)}


def about(window: int) -> dict[str, Any]:
    """What a reader needs to repeat it."""
    from cpuinfer.cli.bench_machine import command, git_commit, machine

    packages = ("torch", "transformers", "gguf", "llama-cpp-python", "numpy")
    return {
        "command": command(),
        "git_commit": git_commit(),
        "machine": machine(),
        "versions": {name: version(name) for name in packages},
        "window": window,
        "reference": "transformers, f32, on the weights dequantised from the same file",
        "kv_type": "f16 of both engines",
    }


def main() -> None:
    """Measure every file; the report is written after each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--engine", choices=ENGINES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.engine:
        ids = np.load(args.folder / "ids.npy")
        out = np.lib.format.open_memmap(args.folder / f"{args.engine}.npy")
        ENGINES[args.engine](args.models[0], ids, out)
        return
    report: dict[str, Any] = {**about(args.window), "results": []}
    for model in args.models:
        report["results"].append(measure(model, args.tokens, args.window))
        print(json.dumps(report["results"][-1], indent=2), flush=True)
        if args.json:
            args.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
