"""`cpuinfer generate`: complete a prompt."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cpuinfer.cli import sampling
from cpuinfer.cli.options import (
    KV,
    Device,
    DeviceName,
    Isa,
    Json,
    KVName,
    MaxContext,
    Model,
    Threads,
)

if TYPE_CHECKING:
    from cpuinfer.config import SamplingParams
    from cpuinfer.engine.outputs import CompletionOutput
    from cpuinfer.llm import LLM

DEFAULT_MAX_TOKENS = 128


def generate(
    model: Model,
    prompt: Annotated[
        str | None, typer.Option("--prompt", "-p", help="The prompt; - or none reads stdin.")
    ] = None,
    chat: Annotated[
        bool, typer.Option("--chat/--raw", help="Put the prompt into the model's chat template.")
    ] = False,
    max_tokens: sampling.MaxTokens = DEFAULT_MAX_TOKENS,
    temperature: sampling.Temperature = 0.0,
    top_k: sampling.TopK = 0,
    top_p: sampling.TopP = 1.0,
    min_p: sampling.MinP = 0.0,
    typical_p: sampling.TypicalP = 1.0,
    repetition_penalty: sampling.RepetitionPenalty = 1.0,
    presence_penalty: sampling.PresencePenalty = 0.0,
    frequency_penalty: sampling.FrequencyPenalty = 0.0,
    seed: sampling.Seed = None,
    stop: sampling.Stop = None,
    json_schema: sampling.JsonSchema = None,
    regex: sampling.Regex = None,
    grammar: sampling.Grammar = None,
    ignore_eos: Annotated[
        bool, typer.Option("--ignore-eos", help="Go on after the model's end of text.")
    ] = False,
    logprobs: Annotated[
        int | None,
        typer.Option("--logprobs", help="With --json: this many likely tokens at each position."),
    ] = None,
    threads: Threads = None,
    isa: Isa = None,
    device: Device = DeviceName.auto,
    kv_type: KV = KVName.f16,
    max_context: MaxContext = None,
    stats: Annotated[
        bool,
        typer.Option("--stats", help="Also time each kind of op, beside this machine's ceilings."),
    ] = False,
    json: Json = False,
) -> None:
    """Complete a prompt. The text goes to stdout as it comes, one line of timing to stderr."""
    params = sampling.sampling_params(
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        typical_p=typical_p,
        repetition_penalty=repetition_penalty,
        presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty,
        seed=seed,
        stop=stop or None,
        ignore_eos=ignore_eos,
        structured_outputs=sampling.structured_outputs(json_schema, regex, grammar),
        logprobs=logprobs,
    )
    if logprobs is not None and not json:
        raise typer.BadParameter("needs --json", param_hint="--logprobs")
    text = _prompt(prompt)
    llm = open_llm(model, threads, isa, device, kv_type, max_context, stats)
    if json:
        _print_json(llm, model, text, chat, params)
    else:
        _stream(llm, text, chat, params)
        if stats:
            _print_stats(llm)


def _print_stats(llm: LLM) -> None:
    from cpuinfer.cli.stats_table import print_stats

    print_stats(sampling.stats_of(llm))


def open_llm(
    model: str,
    threads: int | None,
    isa: str | None,
    device: DeviceName,
    kv_type: KVName,
    max_context: int | None,
    stats: bool = False,
) -> LLM:
    """The model, fetched and packed where that was not done yet, with a sign of life on a terminal."""
    from cpuinfer import hub
    from cpuinfer.cli.load import settle
    from cpuinfer.cli.output import chosen_device, expansion, note, working

    settle(threads)
    path = hub.resolve(model, progress=True)
    chosen = chosen_device(device.value, isa)
    with working(f"loading {path.name}"):
        from cpuinfer.llm import LLM

        llm = LLM(
            path,
            threads=threads,
            device=chosen,
            isa=isa,
            kv_type=kv_type.value,
            max_context=max_context,
            stats=stats,
        )
    if llm.packed.expanded:
        note(f"cpuinfer: {expansion(llm.packed.expanded)}: more bytes a token")
    return llm


def _prompt(given: str | None) -> str:
    if given is not None and given != "-":
        return given
    if given is None and sys.stdin.isatty():
        raise typer.BadParameter("give a prompt, or pipe one in", param_hint="--prompt")
    return sys.stdin.read()


def _stream(llm: LLM, text: str, chat: bool, params: SamplingParams) -> None:
    from cpuinfer.cli.output import note

    prompt = sampling.chat_ids(llm, _message(text)) if chat else llm.tokenizer.encode(text)
    stopwatch = sampling.Stopwatch(len(prompt))
    for chunk in stopwatch.watch(llm.stream(prompt, params)):
        sys.stdout.write(chunk.text)
        sys.stdout.flush()
    print(flush=True)
    note(sampling.timing_line(llm, stopwatch))


def _message(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def _print_json(llm: LLM, model: str, text: str, chat: bool, params: SamplingParams) -> None:
    from cpuinfer.cli.limit import as_json
    from cpuinfer.cli.output import print_json

    request = llm.chat(_message(text), params) if chat else llm.generate(text, params)[0]
    output = request.outputs[0]
    n_prompt, n = len(request.prompt_token_ids), len(output.token_ids)
    reached = sampling.roofline_of(llm, n_prompt, n, request.timings.decode_tok_s)
    found = {
        "model": model,
        "text": output.text,
        "token_ids": output.token_ids,
        "prompt_tokens": n_prompt,
        "completion_tokens": n,
        "finish_reason": output.finish_reason,
        "stop_reason": output.stop_reason,
        "seed": request.seed,
        "timings": asdict(request.timings),
        "roofline": as_json(reached),
        **sampling.where(llm),
    }
    if llm.config.stats:
        found["stats"] = sampling.stats_of(llm).as_json()
    if output.logprobs is not None:
        found["logprobs"] = _logprobs(output)
    print_json(found)


def _logprobs(output: CompletionOutput) -> list[dict[str, Any]]:
    """For each token: itself and the likeliest ones, most likely first."""
    found = []
    for token, listed in zip(output.token_ids, output.logprobs or [], strict=True):
        ranked = sorted(listed.items(), key=lambda item: item[1].rank)
        own = listed[token]
        found.append(
            {
                "token_id": token,
                "token": own.decoded_token,
                "logprob": own.logprob,
                "rank": own.rank,
                "top": [
                    {"token_id": i, "token": e.decoded_token, "logprob": e.logprob, "rank": e.rank}
                    for i, e in ranked
                ],
            }
        )
    return found
