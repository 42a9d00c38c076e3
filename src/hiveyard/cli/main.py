"""The program `hv`. It imports only the module of the verb that runs, so that it starts quickly."""

from __future__ import annotations

import difflib
import importlib
import sys
from typing import Any

import click

from hiveyard import __version__
from hiveyard.cli.problems import closed_pipes, report_errors, wanted_color
from hiveyard.cli.verbs import ALIASES, AMBIGUOUS, GROUPS, INNER, VERBS
from hiveyard.core.errors import BadInput
from hiveyard.kit.text import one_line


class LazyGroup(click.Group):
    """A group that imports a verb's module only when the verb is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context | None, cmd_name: str) -> click.Command | None:
        name = ALIASES.get(cmd_name, cmd_name)
        if name not in VERBS:
            return None
        module, _, attribute = VERBS[name].place.partition(":")
        command = getattr(importlib.import_module(f"hiveyard.cli.{module}"), attribute)
        assert isinstance(command, click.Command)
        command.epilog = _epilog(VERBS[name].examples)
        for inner in getattr(command, "commands", {}).values():
            inner.epilog = _epilog(INNER[f"{name} {inner.name}"])
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name in AMBIGUOUS:
            raise BadInput(f"hv has no verb {name!r}", hint=AMBIGUOUS[name])
        if self.get_command(ctx, name) is None and not name.startswith("-"):
            close = difflib.get_close_matches(name, VERBS, n=2, cutoff=0.75)
            meant = " or ".join(f"hv {one}" for one in close)
            hint = f"did you mean {meant}?" if close else "hv --help"
            raise BadInput(f"hv has no verb {one_line(name, 80)!r}", hint=hint)
        return super().resolve_command(ctx, args)

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        with closed_pipes():  # the help is printed here
            return super().make_context(info_name, args, parent, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        with closed_pipes():
            return super().invoke(ctx)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, verbs in GROUPS.items():
            with formatter.section(title):
                formatter.write_dl([(f"{name:<12}", verb.help) for name, verb in verbs.items()])


def _epilog(examples: tuple[str, str]) -> str:
    # \\b stops click from joining the lines.
    return "\b\nExamples:\n" + "\n".join(f"  hv {example}" for example in examples)


@click.group(
    cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]}, subcommand_metavar="VERB [ARGUMENTS]..."
)
@click.version_option(__version__, "-V", "--version", prog_name="hv", message="%(prog)s %(version)s")
def cli() -> None:
    """Hiveyard runs coding agents in isolated machines.

    \b
      hv run ./my-repo "make the failing test pass"
      hv diff
      hv apply
    """


def main() -> None:
    """Run the program. Exit codes: 0 the agent succeeded, 1 it failed, 2 usage, 124 timeout, 125 Hiveyard failed, 130
    interrupted."""
    sys.exit(report_errors(lambda: cli.main(prog_name="hv", standalone_mode=False, color=wanted_color())))


if __name__ == "__main__":
    main()
