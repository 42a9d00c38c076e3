"""Options that several verbs share, and what they become in a request."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

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
    "--format", "form", type=click.Choice(["table", "json"]), help="How to print them; json is the same as --json."
)
QUIET = click.option("-q", "--quiet", is_flag=True, help="Print only the ids.")
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")

_WISHES = (
    click.option("--model", help="The model, as the agent calls it."),
    click.option("--provider", help="auto, qemu, docker, bubblewrap, or one of your own."),
    click.option("--image", help="An image's name or id, or a recipe file."),
    click.option("-b", "--branch", help="The branch to work on (default: hv/<name>, or the next that is free)."),
    click.option("--include-dirty", is_flag=True, help="Take uncommitted changes along."),
    click.option("--repository-config", is_flag=True, help="Let the repository's own agent configuration run code."),
    click.option("--network", type=click.Choice(["door", "open"]), default="door", help="What the machine reaches."),
    click.option("--budget", "budget_usd", type=float, metavar="DOLLARS", help="Stop the agent when this is spent."),
    click.option("--account", metavar="NAME", help="Whose keys are used, of those in keys.toml."),
    click.option("--memory", "memory_mib", type=Unit(units.mebibytes, "SIZE"), help="Memory: 512m, 2g, or MiB."),
    click.option("--cpus", type=float, metavar="N", help="Processors; a fraction limits the time of one."),
    click.option("--disk", "disk_gib", type=Unit(units.gibibytes, "SIZE"), help="Disk of a VM: 40g, or GiB."),
    click.option("--record", type=click.Path(), help="Keep the traffic with the model in a tape."),
    click.option("--tape", type=click.Path(), help="Answer the model's requests from a tape, with no network."),
)


def wishes(verb: F) -> F:
    """The options by which tasks and sessions are wished for."""
    for option in reversed(_WISHES):
        verb = option(verb)
    return verb


def wished(options: Mapping[str, Any]) -> dict[str, Any]:
    """The request that options make: without what was not said, and with paths as the daemon finds them."""
    request = {key: value for key, value in options.items() if value is not None and value is not False}
    for name in ("record", "tape"):
        if name in request:
            request[name] = str(Path(request[name]).absolute())
    if "image" in request:
        request["image"] = recipe(request["image"])
    return {**request, "repo": located(request["repo"])}


def recipe(name: str) -> str:
    """An image's name; a recipe's file resolved here where the person is."""
    if not name.endswith(".toml") and "/" not in name:
        return name
    return str(Path(os.path.expanduser(name)).absolute())  # noqa: PTH111 (see `located`)


def located(repo: str) -> str:
    """A path, resolved here where the person is; anything else (a URL, `user@host:path`, `owner/repo`) as it is."""
    path = Path(os.path.expanduser(repo))  # noqa: PTH111 (this one leaves an unknown user's ~ as it is)
    elsewhere = ":" in repo or (repo.count("/") == 1 and not repo.startswith((".", "/", "~")))
    there = os.path.exists(path)  # noqa: PTH110 (a name that is too long is none, and no error)
    return repo if not repo or (elsewhere and not there) else str(path.absolute())


def prompt_of(message: str | None, file: str | None, text: str | None = None) -> str | None:
    """Return the prompt: `-m`, `--prompt-file` or an argument, of which one may be given; `-` is stdin. None without
    any. Raises BadInput."""
    given = {"-m": message, "--prompt-file": file, "the argument": text}
    names = [name for name, value in given.items() if value is not None]
    if len(names) > 1:
        raise BadInput(f"{' and '.join(names)} both say what to do: give one of them")
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
