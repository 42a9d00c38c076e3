"""`hv help`, `hv man` and `hv completion`: texts that are generated from the verbs themselves."""

from __future__ import annotations

from collections.abc import Iterator

import click
from click.shell_completion import get_completion_class

from hiveyard import __version__
from hiveyard.cli.verbs import GROUPS
from hiveyard.core.errors import BadInput

_EXIT_CODES = (
    ("0", "The agent succeeded."),
    ("1", "The agent failed."),
    ("2", "The request is not possible."),
    ("124", "The time limit was reached."),
    ("125", "Hiveyard failed."),
    ("130", "Interrupted or cancelled."),
)


@click.command("help", short_help="Print the help of hv or of a verb.")
@click.argument("verb", nargs=-1)
@click.option("--json", "as_json", is_flag=True, hidden=True, help="Help has no JSON form.")
@click.pass_context
def help_(ctx: click.Context, verb: tuple[str, ...], as_json: bool) -> None:
    """Print the help of hv, or of a verb: `hv help image build`."""
    context = ctx.find_root()
    for word in verb:
        group = context.command
        found = group.resolve_command(context, [word])[1] if isinstance(group, click.Group) else None
        if found is None:
            raise BadInput(f"{context.command_path} has no verb {word!r}", hint=f"{context.command_path} --help")
        context = click.Context(found, parent=context, info_name=word)
    click.echo(context.get_help())


@click.command(short_help="Print the completion script of a shell.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.option("--json", "as_json", is_flag=True, hidden=True, help="A script has no JSON form.")
@click.pass_context
def completion(ctx: click.Context, shell: str, as_json: bool) -> None:
    """Print the completion script of a shell: `hv completion bash > ~/.local/share/bash-completion/completions/hv`."""
    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(ctx.find_root().command, {}, "hv", "_HV_COMPLETE").source())


@click.command("man", short_help="Print the manual page.")
@click.option("--json", "as_json", is_flag=True, hidden=True, help="A manual page has no JSON form.")
@click.pass_context
def man(ctx: click.Context, as_json: bool) -> None:
    """Print the manual page of hv: `hv man > ~/.local/share/man/man1/hv.1`."""
    click.echo("\n".join(page(ctx.find_root())))


def page(root: click.Context) -> Iterator[str]:
    """Yield the lines of the manual page, in the man macros of roff (man-pages(7))."""
    assert isinstance(root.command, click.Group)
    yield f'.TH HV 1 "" "Hiveyard {__version__}" "User Commands"'
    yield from (".SH NAME", r"hv \- run coding agents in isolated machines")
    yield from (".SH SYNOPSIS", r".B hv", r"\fIVERB\fR [\fIOPTION\fR]... [\fIARGUMENT\fR]...")
    for title, verbs in GROUPS.items():
        yield f".SH {title.upper()}"
        for name in verbs:
            command = root.command.get_command(root, name)
            assert command is not None
            yield from _verb(click.Context(command, parent=root, info_name=name))
    yield ".SH EXIT STATUS"
    for code, meaning in _EXIT_CODES:
        yield from (".TP", f".B {code}", _text(meaning))


def _verb(context: click.Context) -> Iterator[str]:
    command = context.command
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    yield from (f'.SS "{_text(usage)}"', _text(_plain(command.help or "")))
    for parameter in command.params:
        if isinstance(parameter, click.Option) and (record := parameter.get_help_record(context)):
            yield from (".TP", rf"\fB{_text(record[0])}\fR", _text(record[1]))
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None
            yield from _verb(click.Context(inner, parent=context, info_name=name))
    elif command.epilog:
        yield from (".PP", ".nf", _text(command.epilog.replace("\b\n", "")), ".fi")


def _plain(help: str) -> str:
    return "\n".join(line.strip() for line in help.replace("\b", "").splitlines())


def _text(text: str) -> str:
    """Escape backslashes, hyphens, and leading dots and quotes, which have a meaning in roff."""
    escaped = text.replace("\\", r"\e").replace("-", r"\-")
    return "\n".join(rf"\&{line}" if line.startswith((".", "'")) else line for line in escaped.splitlines())
