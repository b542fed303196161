"""`cpuinfer bench`: speed, with llama-bench's flags and field names."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cpuinfer.cli.boundary import usage
from cpuinfer.cli.options import KV, Device, DeviceName, Json, KVName

if TYPE_CHECKING:
    from cpuinfer.cli.bench_run import Runner
    from cpuinfer.cli.bench_spec import Case, Result
    from cpuinfer.machine.roofline import Stats

    Option = list[str] | None


class Output(StrEnum):
    """Formats of the report."""

    md = "md"
    json = "json"
    jsonl = "jsonl"
    csv = "csv"


def _list(*names: str, what: str) -> Any:
    return typer.Option(*names, metavar="N,...", help=what)


Peers = Annotated[
    list[str] | None,
    typer.Option(
        "--peer",
        metavar="NAME[=PATH],...",
        help="Measure other engines too, in -r interleaved rounds: llama.cpp (PATH: the folder of llama-bench), "
        "transformers, openvino-genai, onnxruntime-genai and ctranslate2 (PATH: a converted model).",
    ),
]


def bench(
    model: Annotated[list[str] | None, typer.Argument(metavar="[MODEL]...")] = None,
    m: Annotated[list[str] | None, typer.Option("-m", "--model", help="The same as MODEL.")] = None,
    p: Annotated[
        list[str] | None, _list("-p", "--n-prompt", what="Prompt tokens. [default: 512]")
    ] = None,
    n: Annotated[
        list[str] | None, _list("-n", "--n-gen", what="Generated tokens. [default: 128]")
    ] = None,
    pg: Annotated[
        list[str] | None,
        typer.Option("-pg", metavar="PP,TG", help="A prompt, then generated tokens."),
    ] = None,
    d: Annotated[
        list[str] | None, _list("-d", "--n-depth", what="Tokens before. [default: 0]")
    ] = None,
    b: Annotated[
        list[str] | None, _list("-b", "--n-seqs", what="Sequences run together. [default: 1]")
    ] = None,
    ubatch: Annotated[
        int, typer.Option("-ub", "--ubatch-size", min=1, help="Prompt tokens of a step.")
    ] = 512,
    t: Annotated[
        list[str] | None,
        _list("-t", "--threads", what="Threads. [default: what this process may use]"),
    ] = None,
    r: Annotated[int, typer.Option("-r", "--repetitions", min=1, help="Timed repetitions.")] = 5,
    o: Annotated[Output, typer.Option("-o", "--output", help="Format of the report.")] = Output.md,
    isa: Annotated[
        str | None,
        typer.Option(
            "--isa",
            help="ISA level, or `all` that run here, in turn. [default: CPUINFER_ISA, or the best]",
        ),
    ] = None,
    device: Device = DeviceName.auto,
    kv_type: KV = KVName.f16,
    peer: Peers = None,
    stats: Annotated[
        bool | None,
        typer.Option(
            "--stats/--no-stats",
            help="One more repetition, with each kind of op timed. [default: for JSON and plots]",
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            metavar="OUT.PNG",
            help="Draw the roofline with the ops on it; of `compare`: all speeds of the reports.",
        ),
    ] = None,
    fingerprint: Annotated[
        bool,
        typer.Option("--fingerprint", help="Also the fingerprint that `verify` prints, per level."),
    ] = False,
    json: Json = False,
) -> None:
    """Measure tokens per second of prompts and of generation. Flags and fields are llama-bench's.

    Lists take commas, repetition and ranges (1-8*2, 128-512+128). As there: random tokens, no sampling, one warm-up.
    `bench compare A.json B.json` says which differences between two reports exceed the noise, and puts reports of any
    number of machines into one table.
    """
    if model and model[0] == "compare":
        from cpuinfer.cli.bench_compare import compare

        return compare(model[1:], json, plot)
    from dataclasses import asdict, replace

    from cpuinfer.cli.bench_spec import Report, cases, numbers, pairs
    from cpuinfer.cli.load import settle
    from cpuinfer.cli.output import print_json
    from cpuinfer.cli.stats_table import markdown
    from cpuinfer.machine.cpu import default_threads

    models = [*(model or []), *(m or [])]
    if not models:
        raise typer.BadParameter("give at least one", param_hint="MODEL")
    with usage("bench"):
        both = pairs("-pg", pg or [])
        every = list(
            cases(
                numbers("-p", p or ["512"]),
                numbers("-n", n or ["128"]),
                both,
                numbers("-d", d or ["0"]),
                numbers("-b", b or ["1"], least=1),
            )
        )
        threads = numbers("-t", t, least=1) if t else [default_threads().count]
    levels = _levels(isa, device)
    settle(max(threads) if t else None)
    if peer:
        from cpuinfer.cli.bench_peer import beside

        if len(levels) > 1 or fingerprint:
            raise typer.BadParameter(
                "other engines stand beside one level, and their report has its fingerprint",
                param_hint="--peer",
            )
        if (
            stats
            or plot
            or device not in (DeviceName.auto, DeviceName.native)
            or o in (Output.jsonl, Output.csv)
        ):
            raise typer.BadParameter(
                "with other engines there is -o md or json, the native device, and no --stats or --plot",
                param_hint="--peer",
            )
        text = "json" if json or o is Output.json else "md"
        return beside(peer, models, threads, every, r, kv_type.value, isa, ubatch, text)
    if plot is not None:
        _check_plot(plot, threads, levels)
    if stats is None:
        stats = json or o in (Output.json, Output.jsonl) or plot is not None
    report = Report("none" if json else o.value)
    results: list[Result] = []
    profiles: list[tuple[str, Stats]] = []
    _write(report.begin(), json)
    for name in models:
        for count in threads:
            runners = [
                _runner(name, every, count, level, device, kv_type, ubatch) for level in levels
            ]
            prints = [runner.fingerprint() if fingerprint else None for runner in runners]
            for case in every:
                measured = measure(runners, case, r)
                for runner, result, value in zip(runners, measured, prints, strict=True):
                    result = replace(result, fingerprint=value)
                    if stats and (profile := runner.profile(case)) is not None:
                        profiles.append((case.label, profile))
                        result = replace(result, stats=profile.as_json())
                    results.append(result)
                    _write(report.line(result, case.label), json)
    _write(report.end(), json)
    if o is Output.md:
        for label, profile in profiles:
            _write(markdown(profile, label), json)
    if plot is not None:
        _draw(plot, profiles)
    if json:
        print_json({"results": [asdict(result) for result in results]})


def _levels(isa: str | None, device: DeviceName) -> list[str | None]:
    """The levels to run, least first. Raises a usage error for all levels of a device that has none."""
    if isa != "all":
        return [isa]
    from cpuinfer.machine.isa import levels, problem

    if device not in (DeviceName.auto, DeviceName.native):
        raise typer.BadParameter(f"the device {device} has no levels", param_hint="--isa")
    return [level.name for level in levels() if level.runnable and not problem(level)]


def _check_plot(path: Path, threads: list[int], levels: list[str | None]) -> None:
    from cpuinfer.machine.plot import check_plotting

    if len(threads) > 1 or len(levels) > 1:
        raise typer.BadParameter(
            "a plot is of one number of threads and one level; `bench compare` draws several",
            param_hint="--plot",
        )
    check_plotting(path)


def _draw(path: Path, profiles: list[tuple[str, Stats]]) -> None:
    from cpuinfer.cli.output import note
    from cpuinfer.machine.plot import draw

    if not profiles:
        raise ValueError("--plot: this device does not time its ops; use the device 'native'")
    draw(path, profiles)
    note(f"roofline drawn to {path}")


def _write(text: str, json: bool) -> None:
    if not json:
        sys.stdout.write(text)
        sys.stdout.flush()


def _runner(
    name: str,
    every: list[Case],
    threads: int,
    isa: str | None,
    device: DeviceName,
    kv_type: KVName,
    ubatch: int,
) -> Runner:
    from cpuinfer import hub
    from cpuinfer.cli.bench_run import Runner
    from cpuinfer.cli.output import chosen_device, working
    from cpuinfer.graph.dtypes import KVType

    path = hub.resolve(name, progress=True)
    chosen = chosen_device(device.value, isa)
    with working(f"loading {path.name}"):
        return Runner(path, every, threads, isa, chosen, KVType(kv_type.value), ubatch)


def measure(runners: Sequence[Runner], case: Case, repetitions: int) -> list[Result]:
    """One test on each: the depth once, a warm-up, then the timed repetitions, of all runners in turn."""
    from cpuinfer.cli.output import working

    started = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    samples_ns: list[list[int]] = [[] for _ in runners]
    with working(f"{case.label}, {runners[0].threads} threads"):
        for runner in runners:
            runner.prefill(0, case.n_depth, case.n_seqs)
            runner.warm_up(case)
        for _ in range(repetitions):
            for runner, samples in zip(runners, samples_ns, strict=True):
                begin = time.perf_counter_ns()
                runner.run(case)
                samples.append(time.perf_counter_ns() - begin)
    return [_result(*both, case, started) for both in zip(runners, samples_ns, strict=True)]


def _result(runner: Runner, samples_ns: list[int], case: Case, started: str) -> Result:
    from cpuinfer.cli.bench_spec import Result, spread

    samples_ts = [1e9 * case.n_tokens / ns for ns in samples_ns]
    avg_ns, stddev_ns = spread(samples_ns)
    avg_ts, stddev_ts = spread(samples_ts)
    return Result(
        **runner.describe(),
        n_prompt=case.n_prompt,
        n_gen=case.n_gen,
        n_depth=case.n_depth,
        n_seqs=case.n_seqs,
        test_time=started,
        avg_ns=round(avg_ns),
        stddev_ns=round(stddev_ns),
        avg_ts=avg_ts,
        stddev_ts=stddev_ts,
        **runner.limit(case, avg_ts),
        samples_ns=samples_ns,
        samples_ts=samples_ts,
    )
