"""Report errors: one clear line, the next command to type and an exit code, never a traceback."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import pairwise

import click

from hiveyard.core.errors import BadInput, Cancelled, HiveyardError
from hiveyard.kit.text import one_line, printable

USAGE, ERROR, INTERRUPTED = 2, 125, 130
_USAGE = ("bad_input", "not_found", "repository", "agent.unknown", "image.unknown", "door.bad_tape")


class PipeClosed(Exception):
    """An error of a pipe that its reader has closed. It is no OSError: click handles those itself, and exits with 1."""


@contextmanager
def closed_pipes() -> Iterator[None]:
    """Raise PipeClosed in place of BrokenPipeError."""
    try:
        yield
    except BrokenPipeError as error:
        raise PipeClosed from error


def report_errors(program: Callable[[], object]) -> int:
    """Run a program, print the error that ends it on stderr, and return the exit code. A reader that closes the pipe
    (`| head`) is not an error: then the exit code is 0."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal with another encoding shows ? for characters that it does not have.
            stream.reconfigure(errors="replace")
    result: object = None
    try:
        result = program()
        if sys.stdout is not None:
            sys.stdout.flush()
    except HiveyardError as error:
        return print_error(error)
    except (click.exceptions.Abort, KeyboardInterrupt):
        _as_json(Cancelled("interrupted"))
        return INTERRUPTED
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return USAGE
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx else "hv"
        return print_error(BadInput(error.format_message(), hint=f"{path} --help"))
    except click.ClickException as error:
        return print_error(BadInput(error.format_message()))
    except (PipeClosed, BrokenPipeError):
        pass  # a program that has ended keeps its exit code
    except OSError as error:
        return print_error(
            HiveyardError(one_line(f"{error.filename}: {error.strerror}" if error.filename else str(error)))
        )
    except Exception as error:  # noqa: BLE001 (the user gets one line, whatever the error is)
        reason = one_line(f"{type(error).__name__}: {error}", 400)
        return print_error(HiveyardError(f"hv failed because of a bug: {reason}"))
    finally:
        _discard_unwritten()
    return result if isinstance(result, int) else 0


def _discard_unwritten() -> None:
    """Discard output that cannot be written, or Python complains about it once more at exit."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def wanted_color() -> bool | None:
    """Return False when the user wants neither color nor bold text (https://no-color.org); else None: click decides by
    the terminal."""
    return False if os.environ.get("NO_COLOR") else None


class PartlyDone(HiveyardError):
    """An error after a part of the request was done. `done` is that part."""

    def __init__(self, error: HiveyardError, done: Sequence[object]) -> None:
        super().__init__(error.message, hint=error.hint)
        self.code = error.code  # type: ignore[misc]
        self.done = done


def as_problem(error: HiveyardError) -> dict[str, object]:
    """Return an error as the API does, with `done` for one that ended a request after a part of it."""
    body: dict[str, object] = {"code": error.code, "message": error.message, "hint": error.hint}
    return body | ({"done": error.done} if isinstance(error, PartlyDone) else {})


def print_error(error: HiveyardError) -> int:
    """Print an error as a line and a hint on stderr, and as JSON on stdout if the command line asks for JSON. Return
    its exit code, even if nobody reads the output."""
    _as_json(error)
    with suppress(OSError):
        color = wanted_color()
        click.echo(click.style("error: ", fg="red", bold=True) + printable(error.message), err=True, color=color)
        if error.hint:
            click.echo(click.style("  try: ", bold=True) + printable(error.hint), err=True, color=color)
    return USAGE if error.code.startswith(_USAGE) else ERROR


def _as_json(error: HiveyardError) -> None:
    """Print an error as JSON on stdout if the command line asks for JSON, so that there is always one object."""
    if _asks_for_json(sys.argv[1:]):
        with suppress(OSError):
            click.echo(json.dumps({"error": as_problem(error)}))


def _asks_for_json(words: Sequence[str]) -> bool:
    # A command of `hv exec` may have a --json of its own.
    if words[:1] == ["exec"]:
        return False
    return "--json" in words or "--format=json" in words or ("--format", "json") in pairwise(words)
