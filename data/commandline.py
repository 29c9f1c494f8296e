"""How every command of the project ends: exit codes, one-line errors, JSON output.

It stands in the lowest layer only because every package's `__main__` needs it.
"""

import json
import sys
import traceback
from typing import Annotated, Any

import typer

BAD_INPUT = 2

# `--debug` is accepted anywhere on the line; `run` takes it out before typer sees it.
DEBUG_FLAG = "--debug"

JsonOption = Annotated[bool, typer.Option("--json", help="machine-readable output on stdout")]


def make_app(description: str) -> typer.Typer:
    """A typer application with the house's habits: help when bare, no rich tracebacks, no completion
    clutter."""
    return typer.Typer(
        help=f"{description}\n\nWith --debug, an error shows its traceback.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )


def run(app: typer.Typer, program: str) -> None:
    """Run an application as a process: exit 0 only on success, 2 for bad input, 1 for anything unforeseen.

    An error becomes one line on stderr; its traceback is shown under --debug only. Ctrl-C exits with 130.
    """
    debug = DEBUG_FLAG in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != DEBUG_FLAG]
    try:
        app(args=arguments, prog_name=program)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except Exception as error:  # noqa: BLE001  the edge of the process: whatever it is, a person reads it
        if debug:
            traceback.print_exc()
        known = isinstance(error, (ValueError, OSError, RuntimeError))
        text = str(error) or type(error).__name__
        if not known:
            text = f"{type(error).__name__}: {text} (unforeseen; {DEBUG_FLAG} shows where)"
        print(f"error: {text}", file=sys.stderr)
        sys.exit(BAD_INPUT if known else 1)


def print_json(value: Any) -> None:
    """One JSON document on stdout. NaN and infinity are not JSON: they raise ValueError."""
    print(json.dumps(value, indent=2, allow_nan=False, default=str))
