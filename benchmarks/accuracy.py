"""Accuracy against the f32 model: KL divergence and top-1 agreement, ours beside llama.cpp's, on the same file.

The f32 model is transformers' own, on the weights which transformers dequantises from the same GGUF. Each engine runs in a
process of its own and leaves its logits in a file.

    python benchmarks/accuracy.py MODEL.gguf [--tokens 2048] [--window 512] [--json out.json]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

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


def compare(ref: NDArray[np.float32], got: NDArray[np.float32]) -> dict[str, float]:
    """Mean KL(ref || got) in nats, its standard error, and how often the most likely token agrees, in percent."""
    kl, same = [], []
    for r, g in zip(ref, got, strict=True):
        lr, lg = log_softmax(r), log_softmax(g)
        kl.append((np.exp(lr) * (lr - lg)).sum(axis=-1))
        same.append(r.argmax(-1) == g.argmax(-1))
    all_kl = np.concatenate(kl)
    return {
        "mean_kl": float(all_kl.mean()),
        "kl_standard_error": float(all_kl.std() / np.sqrt(all_kl.size)),
        "top1_percent": float(np.concatenate(same).mean() * 100),
    }


def main() -> None:
    """Run every engine in its own process, then compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--engine", choices=ENGINES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.engine:
        ids = np.load(args.folder / "ids.npy")
        out = np.lib.format.open_memmap(args.folder / f"{args.engine}.npy")
        ENGINES[args.engine](args.model, ids, out)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ids = windows(args.model, args.tokens, args.window)
        np.save(folder / "ids.npy", ids)
        import gguf

        vocab = len(gguf.GGUFReader(args.model).fields["tokenizer.ggml.tokens"].data)
        for engine in ENGINES:
            shape = (*ids.shape, vocab)
            np.lib.format.open_memmap(folder / f"{engine}.npy", "w+", np.float32, shape)
            command = [sys.executable, __file__, str(args.model), "--engine", engine]
            subprocess.run([*command, "--folder", name], check=True, env=dict(os.environ))
        ref = np.load(folder / "reference.npy", mmap_mode="r")
        report: dict[str, object] = {"model": args.model.name, "tokens": int(ids.size)}
        for engine in ("llama.cpp", "cpuinfer"):
            report[engine] = compare(ref, np.load(folder / f"{engine}.npy", mmap_mode="r"))
    text = json.dumps(report, indent=2)
    print(text)
    if args.json:
        args.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
