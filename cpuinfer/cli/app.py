"""The verbs. Their modules import what they need when they run, so that `--help` is fast."""

from __future__ import annotations

import typer

from cpuinfer.cli import (
    bench,
    chat,
    doctor,
    generate,
    inspect,
    pack,
    pull,
    tokenize,
    verify,
)
from cpuinfer.cli.boundary import Verbs

app = typer.Typer(
    cls=Verbs,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Large language models on the CPUs people have.",
)
app.command()(generate.generate)
app.command()(chat.chat)
app.command()(tokenize.tokenize)
app.command()(pull.pull)
app.command()(pack.pack)
app.command()(inspect.inspect)
app.command()(verify.verify)
app.command()(bench.bench)
app.command()(doctor.doctor)


def _print_version(asked: bool) -> None:
    if asked:
        from cpuinfer.cli.output import version

        typer.echo(f"cpuinfer {version()}")
        raise typer.Exit


@app.callback()
def root(
    version: bool = typer.Option(
        False,
        "--version",
        callback=_print_version,
        is_eager=True,
        help="Print the version and exit.",
    ),
) -> None:
    """Large language models on the CPUs people have."""
