"""`hv`: the verbs, loaded one at a time so that each costs only what it uses."""

from __future__ import annotations

import importlib
import sys
from typing import Any, NamedTuple

import click

from hiveyard.cli.problems import readers, told, wanted_color


class Verb(NamedTuple):
    """Where a verb is, and its line in the help."""

    place: str
    help: str


VERBS: dict[str, Verb] = {
    "run": Verb("hiveyard.cli.run:run", "Let an agent work on a copy of a repository, in a machine of its own."),
    "spawn": Verb("hiveyard.cli.spawn:spawn", "Start a session that you can leave and come back to."),
    "list": Verb("hiveyard.cli.sessions:list_", "List sessions."),
    "attach": Verb("hiveyard.cli.terminal:attach", "Sit down at a session's agent."),
    "exec": Verb("hiveyard.cli.access:exec_", "Run a command in a session."),
    "cp": Verb("hiveyard.cli.access:cp", "Copy files into a session, or out of one."),
    "port": Verb("hiveyard.cli.access:port", "Open a port of a session on this host."),
    "ssh-config": Verb("hiveyard.cli.access:ssh_config", "Print how ssh reaches a session."),
    "send": Verb("hiveyard.cli.prompts:send", "Tell a session's agent what to do next."),
    "interrupt": Verb("hiveyard.cli.prompts:interrupt", "End a session's turn, and keep the session."),
    "stop": Verb("hiveyard.cli.sessions:stop", "Stop sessions, and keep their files."),
    "resume": Verb("hiveyard.cli.spawn:resume", "Go on with a session that was stopped."),
    "pause": Verb("hiveyard.cli.sessions:pause", "Freeze sessions where they stand."),
    "unpause": Verb("hiveyard.cli.sessions:unpause", "Let frozen sessions go on."),
    "snapshot": Verb("hiveyard.cli.snapshots:snapshot", "Keep a session as it is."),
    "snapshots": Verb("hiveyard.cli.snapshots:snapshots", "List or remove snapshots of a session."),
    "fork": Verb("hiveyard.cli.snapshots:fork", "Go on from a session several times."),
    "rewind": Verb("hiveyard.cli.snapshots:rewind", "Go back to a snapshot."),
    "compare": Verb("hiveyard.cli.snapshots:compare", "Show sessions side by side."),
    "ps": Verb("hiveyard.cli.tasks:ps", "List tasks."),
    "show": Verb("hiveyard.cli.tasks:show", "Show one task or session."),
    "logs": Verb("hiveyard.cli.tasks:logs", "Show what an agent did, as it was shown while it happened."),
    "events": Verb("hiveyard.cli.tasks:events", "Print events as JSON lines."),
    "diff": Verb("hiveyard.cli.results:diff", "Show what an agent changed."),
    "apply": Verb("hiveyard.cli.results:apply", "Bring an agent's branch into your repository."),
    "cancel": Verb("hiveyard.cli.tasks:cancel", "Ask an agent to stop, and keep what it has done."),
    "rm": Verb("hiveyard.cli.removal:rm", "Remove tasks and sessions, and all that belongs to them."),
    "export": Verb("hiveyard.cli.system:export", "Write a stopped session into a file."),
    "import": Verb("hiveyard.cli.system:import_", "Take in a session that was exported."),
    "system": Verb("hiveyard.cli.system:system", "Show what is on disk, and free what nothing needs."),
    "image": Verb("hiveyard.cli.image:image", "Build, list and remove images."),
    "doctor": Verb("hiveyard.cli.doctor:doctor", "Check what Hiveyard needs on this host."),
    "serve": Verb("hiveyard.cli.serve:serve", "Run the daemon in the foreground."),
    "stop-daemon": Verb("hiveyard.cli.serve:stop_daemon", "Stop the daemon; running agents go on."),
    "version": Verb("hiveyard.cli.serve:version", "Print the version of hv and of the daemon."),
    "completion": Verb("hiveyard.cli.completion:completion", "Print the completion script of a shell."),
}


class LazyGroup(click.Group):
    """A group that knows its verbs by name and loads the one that is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        module, _, name = VERBS[cmd_name].place.partition(":")
        command = getattr(importlib.import_module(module), name)
        assert isinstance(command, click.Command)
        return command

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        with readers():  # of the help, which is printed here
            return super().make_context(info_name, args, parent, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        with readers():
            return super().invoke(ctx)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl([(name, verb.help) for name, verb in VERBS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]}, invoke_without_command=False)
def cli() -> None:
    """Hiveyard runs coding agents in isolated machines.

    \b
      hv run ./my-repo -m "make the failing test pass"
      hv diff SLUG
      hv apply SLUG
    """


def main() -> None:
    """The program. Exit codes: 0 the agent succeeded, 1 it failed, 2 usage, 124 timeout, 125 Hiveyard could not do
    it, 130 interrupted."""
    sys.exit(told(lambda: cli.main(prog_name="hv", standalone_mode=False, color=wanted_color())))


if __name__ == "__main__":
    main()
