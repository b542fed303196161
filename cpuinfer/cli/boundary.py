"""What an error looks like from outside: one line, an exit code, and no traceback for what was to be expected."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

EXPECTED = (ValueError, OSError, MemoryError)
"""Errors that say what the caller can mend. Others are faults of ours and show their traceback."""


@contextlib.contextmanager
def usage(option: str) -> Iterator[None]:
    """Turn a ValueError about the values of options into a usage error (exit code 2)."""
    try:
        yield
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=option) from error


class Verbs(TyperGroup):
    """The group of verbs. Exit codes: 0 done, 1 expected error, 2 usage, 130 Ctrl-C. A reader that went away
    is code 1 without a word, as typer has it."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """As the base class, and every way out goes through here."""
        words = list(sys.argv[1:] if args is None else args)
        try:
            check_environment()
            code = super().main(words, prog_name, complete_var, False, windows_expand_args, **extra)
            sys.stdout.flush()
        except (KeyboardInterrupt, typer.Abort):
            sys.exit(130)
        except BrokenPipeError:
            _silence_stdout()
            sys.exit(1)
        except EXPECTED as error:
            _fail(str(error) or type(error).__name__, 1, words)
        except Exception as error:
            if not hasattr(error, "format_message"):  # not a usage error
                raise
            context = getattr(error, "ctx", None)
            hint = f" (see `{context.command_path} --help`)" if context is not None else ""
            if not str(error.format_message()):  # the help was shown instead
                sys.exit(2)
            _fail(error.format_message() + hint, getattr(error, "exit_code", 2), words)
        if standalone_mode:
            sys.exit(code if isinstance(code, int) else 0)
        return code


def check_environment() -> None:
    """Raise a usage error for a variable that says nothing sensible, whatever the verb: better than to ignore it."""
    if threads := os.environ.get("CPUINFER_THREADS"):
        from cpuinfer.machine.cpu import check_threads

        with usage("CPUINFER_THREADS"):
            check_threads(threads, "CPUINFER_THREADS")
    if level := os.environ.get("CPUINFER_ISA"):
        from cpuinfer.machine.isa import levels

        known = [known.name for known in levels()]
        if level not in known:
            raise typer.BadParameter(
                f"unknown level {level!r}; known here: {', '.join(known)}",
                param_hint="CPUINFER_ISA",
            )


def _fail(message: str, code: int, words: Sequence[str]) -> NoReturn:
    """Say it on stderr in one line, and on stdout too where the caller reads JSON."""
    line = " ".join(message.split())
    print(f"cpuinfer: error: {line}", file=sys.stderr)
    if "--json" in words:
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps({"error": line}), flush=True)
    sys.exit(code)


def _silence_stdout() -> None:
    """Let what is still buffered go nowhere, so that the interpreter's own flush at exit is quiet."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
