"""`hv run`: run an agent on a prompt, and show it until it ends."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import click

from hiveyard.api.client import quoted
from hiveyard.cli import show, transcript
from hiveyard.cli.live import ask, live
from hiveyard.cli.options import DURATION, read_prompt, spec_options, spec_request
from hiveyard.cli.problems import INTERRUPTED, as_problem
from hiveyard.core.errors import BadInput, Cancelled
from hiveyard.kit.names import new_id


@click.command(short_help="Run an agent on a copy of a repository.")
@click.argument("repo", default=".")
@click.argument("text", required=False, metavar="[PROMPT]")
@click.option("-m", "--message", "--prompt", "prompt", help="The same as PROMPT; - is stdin.")
@click.option("--prompt-file", type=click.Path(allow_dash=True), help="Read the prompt from a file; - is stdin.")
@click.option("--agent", help="claude, opencode, codex, goose or command.")
@click.option(
    "--command", "command", help="A command line with {{prompt}} or {{prompt_file}}; implies --agent command."
)
@spec_options
@click.option("--base", "--ref", "base", metavar="REV", help="The commit to start from (default: HEAD).")
@click.option("--timeout", type=DURATION, help="Stop the agent after this time: 90s, 10m, 1h30m, or seconds.")
@click.option("--keep", is_flag=True, help="Keep the machine after the agent has ended.")
@click.option("-d", "--detach", is_flag=True, help="Print the id and return.")
@click.option("--json", "as_json", is_flag=True, help="End with one JSON object on stdout.")
def run(detach: bool, as_json: bool, **options: Any) -> int:
    """Run an agent on a copy of REPO (a path, a URL, or owner/repo on GitHub), in a machine of its own.

    Your checkout does not change. The result is a branch and a patch: see `hv diff` and `hv apply`. Ctrl-C asks the
    agent to stop and collects its work. A second one leaves at once, while the agent continues to stop.
    """
    known: dict[str, Any] = {}
    try:
        return _run(_request(options), known, detach=detach, as_json=as_json)
    except KeyboardInterrupt:
        if not as_json:
            raise
        # --json promises one object: the task as far as it is known, or an error if there is no task.
        with suppress(BrokenPipeError):  # Ctrl-C ends every program of a pipeline
            click.echo(json.dumps(known or {"error": as_problem(Cancelled("interrupted before there was a task"))}))
        return INTERRUPTED


def _run(request: dict[str, Any], task: dict[str, Any], *, detach: bool, as_json: bool) -> int:
    """Create a task and follow it. `task` is updated with each new fact about it."""
    # With the id from here, the request can be repeated if the daemon ends before it answers.
    task.update(ask("POST", "/v1/tasks", {**request, "id": new_id()}))
    if detach:
        _show(task, json.dumps(task) if as_json else task["id"])
        return 0
    if not as_json:
        _show(task, f"{click.style(task['slug'], bold=True)}  ({task['id']})")
    watch(task, quiet=as_json)
    if as_json:
        click.echo(json.dumps(task))
    else:
        show.summary(task)
    return int(task["exit_code"])


def _request(options: dict[str, Any]) -> dict[str, Any]:
    prompt = read_prompt(options.pop("prompt"), options.pop("prompt_file"), options.pop("text"))
    if prompt is None and (command := options["command"]) and "{{prompt" not in command:
        prompt = command
    if prompt is None:
        raise BadInput("the prompt is missing", hint='hv run REPO "make the failing test pass"')
    request = spec_request(options)
    if request.get("command"):
        request.setdefault("agent", "command")
    return {**request, "prompt": prompt}


_STATUS = {"task.assigned": "assigned", "task.started": "running"}


def watch(task: dict[str, Any], *, quiet: bool, cancels: bool = True, after: int = 0) -> None:
    """Show a task's events after `after` until it is over. If the daemon ends, it is started again.

    `task` is updated with each new fact about it. With `quiet` the transcript is printed on stderr. With `cancels` the
    first Ctrl-C cancels the task; without it, and with the second one, Ctrl-C leaves, as a closed pipe does. Raises
    DaemonUnreachable when no daemon stays."""
    path = f"/v1/tasks/{quoted(task['id'])}"
    complete = transcript.shows_all(task)
    seen, interrupted = after, False
    while True:
        try:
            if interrupted:
                click.echo("asking the agent to stop (Ctrl-C again leaves at once)", err=True)
                ask("POST", f"{path}/cancel")
            for event in live(task["id"], after=seen, raw=complete):
                seen = event["seq"]
                task["status"] = _STATUS.get(event["body"]["type"], task["status"])
                for line in transcript.lines(event, complete=complete):
                    _show(task, line, err=quiet)
            task.update(ask("GET", path))
            return
        except KeyboardInterrupt:
            if interrupted or not cancels:
                _say_left(task)
                raise
            interrupted = True


def _show(task: dict[str, Any], line: str, *, err: bool = False) -> None:
    """Print a line. If the pipe is closed, say on stderr that the task continues, and raise BrokenPipeError."""
    try:
        click.echo(line, err=err)
    except BrokenPipeError:
        _say_left(task)
        raise


def _say_left(task: dict[str, Any]) -> None:
    with suppress(BrokenPipeError):
        click.echo(f"left; the task continues: hv logs -f {task['id']}", err=True)
