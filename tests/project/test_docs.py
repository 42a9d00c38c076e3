"""The docs name every error, event, setting, verb and option."""

from __future__ import annotations

import dataclasses
import re
import tomllib
import typing
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from hiveyard.cli.main import cli
from hiveyard.config import Settings
from hiveyard.core import errors, events
from hiveyard.engine.settings import AgentSettings
from hiveyard.machines.external.settings import ExternalProgram

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"


def sections(page: str) -> list[str]:
    """Return the sections of a page, each with its heading."""
    return re.split(r"^#+ ", (DOCS / page).read_text(), flags=re.MULTILINE)


def says(text: str, option: str) -> bool:
    """Return whether `option` is a separate word of a text."""
    return re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", text) is not None


def rows(page: str) -> list[str]:
    """Return the first cell of each table row."""
    return re.findall(r"^\| `([^`]+)` ", (DOCS / page).read_text(), re.MULTILINE)


def all_errors() -> list[type[errors.HiveyardError]]:
    found = [errors.HiveyardError]
    for kind in found:
        found += kind.__subclasses__()
    return [kind for kind in dict.fromkeys(found) if kind.__module__.startswith("hiveyard.")]


def defaults() -> dict[str, object]:
    """Return every setting with its default, as TOML has it."""
    found: dict[str, object] = {}
    parts = {section.name: getattr(Settings(), section.name) for section in dataclasses.fields(Settings)}
    many = {"agents": AgentSettings, "external": ExternalProgram}
    for name, part in {**parts, **many}.items():
        for field in dataclasses.fields(part):
            value = field.default if name in many else getattr(part, field.name)
            found[f"{name}.{field.name}"] = list(value) if isinstance(value, tuple) else value
    return found


def commands(group: click.Group, path: str = "hv") -> Iterator[tuple[str, click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from commands(command, f"{path} {name}")
        elif not command.hidden:
            yield f"{path} {name}", command


VERBS = list(commands(cli))


def test_every_error_code_is_in_the_docs_once_and_nothing_else() -> None:
    assert sorted(rows("errors.md")) == sorted({kind.code for kind in all_errors()})


def test_the_docs_say_which_errors_may_be_retried() -> None:
    told = dict(re.findall(r"^\| `([^`]+)` \| (yes|no) \|", (DOCS / "errors.md").read_text(), re.MULTILINE))
    assert told == {kind.code: "yes" if kind.retry else "no" for kind in all_errors()}


def test_error_codes_are_unique_to_their_class() -> None:
    kinds = [kind for kind in all_errors() if "code" in vars(kind)]
    codes = [kind.code for kind in kinds]
    assert sorted(codes) == sorted(set(codes))


def test_every_event_is_in_the_docs_once_and_nothing_else() -> None:
    tags = {str(kind.__struct_config__.tag) for kind in typing.get_args(events.AnyBody)}
    documented = [name for name in rows("events.md") if name not in ("seq", "at", "session", "turn", "body", "raw")]
    assert sorted(documented) == sorted(tags)


def test_every_setting_is_in_the_docs_with_its_default_and_nothing_else() -> None:
    told: dict[str, object] = {}
    for part in sections("settings.md"):
        if heading := re.match(r"`\[(\w+)(?:\.NAME)?\]`", part):
            for key, value in re.findall(r"^\| `(\w+)` \| `([^`]+)` \|", part, re.MULTILINE):
                told[f"{heading[1]}.{key}"] = tomllib.loads(f"x = {value}")["x"]
    assert told == defaults()


@pytest.mark.parametrize(("path", "command"), VERBS, ids=[path for path, _ in VERBS])
def test_every_verb_with_its_options_is_in_the_docs(path: str, command: click.Command) -> None:
    _, introduction, *parts = sections("cli.md")
    section = next((part for part in parts if says(part.partition("\n")[0], path)), None)
    assert section, f"docs/cli.md has no section with `{path}` in its heading"
    for parameter in command.params:
        if isinstance(parameter, click.Option) and not parameter.hidden:
            told = any(says(section, option) or says(introduction, option) for option in parameter.opts)
            assert told, f"docs/cli.md does not tell of `{path} {parameter.opts[-1]}`"


def test_links_between_pages_lead_somewhere() -> None:
    for page in [*DOCS.glob("*.md"), *ROOT.glob("*.md")]:
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name} links to {link}"
