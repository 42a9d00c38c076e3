"""How a problem is told: one clear line, the next thing to type, an exit code; never a traceback."""

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


class ReaderGone(Exception):
    """Nobody reads any more what is printed. No OSError: click ends those of broken pipes itself, with 1."""


@contextmanager
def readers() -> Iterator[None]:
    """Raises ReaderGone in place of BrokenPipeError."""
    try:
        yield
    except BrokenPipeError as error:
        raise ReaderGone from error


def told(program: Callable[[], object]) -> int:
    """Run a program and turn how it ends into an exit code, saying on stderr what went wrong. Readers who go (`| head`)
    have enough: that is 0."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal of few characters shows ? for the others.
            stream.reconfigure(errors="replace")
    result: object = None
    try:
        result = program()
        if sys.stdout is not None:
            sys.stdout.flush()
    except HiveyardError as error:
        return say(error)
    except (click.exceptions.Abort, KeyboardInterrupt):
        _as_json(Cancelled("interrupted"))
        return INTERRUPTED
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return USAGE
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx else "hv"
        return say(BadInput(error.format_message(), hint=f"{path} --help"))
    except click.ClickException as error:
        return say(BadInput(error.format_message()))
    except (ReaderGone, BrokenPipeError):
        pass  # a program that came to its end keeps its exit code
    except OSError as error:
        return say(HiveyardError(one_line(f"{error.filename}: {error.strerror}" if error.filename else str(error))))
    except Exception as error:  # noqa: BLE001 (a person gets a line, whatever it is)
        what = one_line(f"{type(error).__name__}: {error}", 400)
        return say(HiveyardError(f"hv has failed by a mistake of its own: {what}"))
    finally:
        _drop_unread()
    return result if isinstance(result, int) else 0


def _drop_unread() -> None:
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


class Halfway(HiveyardError):
    """Something went wrong after a part of what was asked for was done, which is told too."""

    def __init__(self, error: HiveyardError, done: Sequence[object]) -> None:
        super().__init__(error.message, hint=error.hint)
        self.code = error.code  # type: ignore[misc]
        self.done = done


def as_problem(error: HiveyardError) -> dict[str, object]:
    """An error as the API would give it; `done` is what was done before."""
    said: dict[str, object] = {"code": error.code, "message": error.message, "hint": error.hint}
    return said | ({"done": error.done} if isinstance(error, Halfway) else {})


def say(error: HiveyardError) -> int:
    """Print an error: as JSON on stdout when the call asked for `--json`, and as a line and a hint for people. It stays
    the same error when nobody reads it."""
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
