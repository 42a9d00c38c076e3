"""Options that several verbs share, and the request that they make."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

from hiveyard.cli.tools import tool_options, tool_request
from hiveyard.core import units
from hiveyard.core.errors import BadInput


class Unit(click.ParamType[float]):
    """A duration or a size with its unit."""

    def __init__(self, parse: Callable[[str], float], name: str) -> None:
        self.name = name
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            return self._parse(str(value))
        except BadInput as error:
            self.fail(error.message, param, ctx)


DURATION = Unit(units.seconds, "DURATION")

F = TypeVar("F", bound=Callable[..., Any])

FORMAT = click.option(
    "--format", "form", type=click.Choice(["table", "json"]), help="Print a table, or JSON as --json does."
)
QUIET = click.option("-q", "--quiet", is_flag=True, help="Print only the ids.")
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")

_SPEC_OPTIONS = (
    click.option("--model", help="The model, as the agent names it."),
    click.option("--provider", help="auto, qemu, docker, bubblewrap, or one that you added."),
    click.option("--image", help="An image's name or id, or a recipe file."),
    click.option("-b", "--branch", help="The branch to work on (default: hv/<name>, or the next free name)."),
    click.option("--include-dirty", is_flag=True, help="Include uncommitted changes."),
    click.option("--repository-config", is_flag=True, help="Let the repository's own agent configuration run code."),
    click.option(
        "--network",
        type=click.Choice(["door", "open"]),
        default="door",
        help="The machine reaches only its door, or the internet too.",
    ),
    click.option(
        "--budget", "budget_usd", type=float, metavar="DOLLARS", help="Stop the agent when this amount is spent."
    ),
    click.option("--account", metavar="NAME", help="The account of keys.toml whose keys are used."),
    click.option(
        "--memory",
        "memory_mib",
        type=Unit(units.mebibytes, "SIZE"),
        help="Memory of the machine: 512m, 2g, or a number of MiB.",
    ),
    click.option("--cpus", type=float, metavar="N", help="Processors; 1.5 limits processor time. A VM rounds it up."),
    click.option(
        "--disk", "disk_gib", type=Unit(units.gibibytes, "SIZE"), help="Disk of a VM: 40g, or a number of GiB."
    ),
    click.option("--record", type=click.Path(), help="Record the traffic with the model in a tape."),
    click.option("--tape", type=click.Path(), help="Answer the model's requests from a tape, without a network."),
)


def spec_options(verb: F) -> F:
    """Add the options that tasks and sessions share, which are the fields of a RunSpec."""
    verb = tool_options(verb)
    for option in reversed(_SPEC_OPTIONS):
        verb = option(verb)
    return verb


def spec_request(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the request for the options that were given. Paths are absolute: the daemon has another directory."""
    options = dict(options)
    request = tool_request(options)
    request |= {key: value for key, value in options.items() if value is not None and value is not False}
    for name in ("record", "tape"):
        if name in request:
            request[name] = str(Path(request[name]).absolute())
    if "image" in request:
        request["image"] = image_reference(request["image"])
    return {**request, "repo": repository_reference(request["repo"])}


def image_reference(name: str) -> str:
    """Return an image's name as it is, or the absolute path of a recipe's file."""
    if not name.endswith(".toml") and "/" not in name:
        return name
    return str(Path(os.path.expanduser(name)).absolute())  # noqa: PTH111 (as below)


def repository_reference(repo: str) -> str:
    """Return the absolute path of a path, or anything else (a URL, `user@host:path`, `owner/repo`) as it is."""
    path = Path(os.path.expanduser(repo))  # noqa: PTH111 (this function keeps an unknown user's ~)
    elsewhere = ":" in repo or (repo.count("/") == 1 and not repo.startswith((".", "/", "~")))
    exists = os.path.exists(path)  # noqa: PTH110 (this function raises no error for a name that is too long)
    return repo if not repo or (elsewhere and not exists) else str(path.absolute())


def read_prompt(message: str | None, file: str | None, text: str | None = None) -> str | None:
    """Return the prompt of `-m`, `--prompt-file` or the argument, or None if none is given; `-` is stdin. Raises
    BadInput if several are given."""
    given = {"-m": message, "--prompt-file": file, "the argument": text}
    names = [name for name, value in given.items() if value is not None]
    if len(names) > 1:
        raise BadInput(f"{' and '.join(names)} both give the prompt: give one of them")
    if message == "-" or text == "-":
        file = "-"
    if file is None:
        return message if message is not None else text
    try:
        data = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
        return data.decode()
    except OSError as error:
        raise BadInput(f"the prompt file {file} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise BadInput(f"the prompt file {file} is not UTF-8: byte {error.start}") from error
