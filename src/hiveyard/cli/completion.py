"""`hv completion`: the script that a shell needs to complete verbs and options."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class


@click.command(short_help="Print the completion script of a shell.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.option("--json", "as_json", is_flag=True, hidden=True, help="A script has no JSON form.")
def completion(shell: str, as_json: bool) -> None:
    """Print the completion script of a shell: `hv completion bash > ~/.local/share/bash-completion/completions/hv`."""
    from hiveyard.cli.main import cli

    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(cli, {}, "hv", "_HV_COMPLETE").source())
