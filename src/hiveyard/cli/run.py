"""`hv run`: the main job, from a prompt to a branch."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import click

from hiveyard.api.client import Client, quoted
from hiveyard.cli import show, transcript
from hiveyard.cli.connect import connect
from hiveyard.cli.problems import INTERRUPTED, as_problem
from hiveyard.core.errors import BadInput, Cancelled, DaemonUnreachable


@click.command(short_help="Let an agent work on a copy of a repository.")
@click.argument("repo", default=".")
@click.option("-m", "--message", "prompt", help="What to do.")
@click.option("--prompt-file", type=click.Path(allow_dash=True), help="Read what to do from a file; - is stdin.")
@click.option("--agent", help="claude, opencode or command.")
@click.option(
    "--command", "command", help="A command line with {{prompt}} or {{prompt_file}}; implies --agent command."
)
@click.option("--model", help="The model, as the agent calls it.")
@click.option("--provider", help="auto, qemu, docker or bubblewrap.")
@click.option("--image", help="An image's name or id, or a recipe file.")
@click.option("-b", "--branch", help="The branch to work on (default: hv/<slug>).")
@click.option("--base", help="The commit to start from (default: HEAD).")
@click.option("--include-dirty", is_flag=True, help="Take uncommitted changes along.")
@click.option("--repository-config", is_flag=True, help="Let the repository's own agent configuration run code.")
@click.option("--network", type=click.Choice(["door", "open"]), default="door", help="What the machine reaches.")
@click.option("--timeout", type=float, metavar="SECONDS", help="Stop the agent after this time.")
@click.option("--budget", "budget_usd", type=float, metavar="DOLLARS", help="Stop the agent when this is spent.")
@click.option("--memory", "memory_mib", type=int, metavar="MIB", help="Memory of the machine.")
@click.option("--cpus", type=int, help="Processors of the machine.")
@click.option("--disk", "disk_gib", type=int, metavar="GIB", help="Disk of the machine.")
@click.option("--record", type=click.Path(), help="Keep the traffic with the model in a tape.")
@click.option("--tape", type=click.Path(), help="Answer the model's requests from a tape, with no network.")
@click.option("--keep", is_flag=True, help="Keep the machine when the agent has ended.")
@click.option("-d", "--detach", is_flag=True, help="Print the id and return.")
@click.option("--json", "as_json", is_flag=True, help="End with one JSON object on stdout.")
def run(detach: bool, as_json: bool, **options: Any) -> int:
    """Let an agent work on a copy of REPO (a path, a URL, or owner/repo of GitHub), in a machine of its own.

    Your checkout is not touched. The result is a branch and a patch: see `hv diff` and `hv apply`. Ctrl-C asks the
    agent to stop and collects what there is; a second one leaves at once and the agent goes on stopping.
    """
    known: dict[str, Any] = {}
    try:
        return _run(_request(options), known, detach=detach, as_json=as_json)
    except KeyboardInterrupt:
        if not as_json:
            raise
        # One object all the same: the task as far as it is known, or that there is none.
        click.echo(json.dumps(known or {"error": as_problem(Cancelled("interrupted before there was a task"))}))
        return INTERRUPTED


def _run(request: dict[str, Any], task: dict[str, Any], *, detach: bool, as_json: bool) -> int:
    """Ask for a task and stay with it. `task` is filled with what is known of it, all the while."""
    client = connect()
    task.update(client.call("POST", "/v1/tasks", request))
    if detach:
        click.echo(json.dumps(task) if as_json else task["id"])
        return 0
    if not as_json:
        click.echo(f"{click.style(task['slug'], bold=True)}  ({task['id']})")
    watch(client, task, quiet=as_json)
    if as_json:
        click.echo(json.dumps(task))
    else:
        show.summary(task)
    return int(task["exit_code"])


def _request(options: dict[str, Any]) -> dict[str, Any]:
    prompt = _prompt(options.pop("prompt"), options.pop("prompt_file"))
    request = {key: value for key, value in options.items() if value is not None and value is not False}
    if request.get("command"):
        request.setdefault("agent", "command")
    for name in ("record", "tape"):
        if name in request:
            request[name] = str(Path(request[name]).absolute())
    return {**request, "prompt": prompt, "repo": located(request["repo"])}


def located(repo: str) -> str:
    """A path, resolved here where the person is; anything else (a URL, `user@host:path`, `owner/repo`) as it is."""
    path = Path(os.path.expanduser(repo))  # noqa: PTH111 (this one leaves an unknown user's ~ as it is)
    elsewhere = ":" in repo or (repo.count("/") == 1 and not repo.startswith((".", "/", "~")))
    return repo if not repo or (elsewhere and not path.exists()) else str(path.absolute())


def _prompt(message: str | None, file: str | None) -> str:
    if message is not None and file is not None:
        raise BadInput("-m and --prompt-file both say what to do: give one of them")
    if message is not None:
        return message
    if file is None:
        raise BadInput("nothing says what to do", hint='hv run REPO -m "make the failing test pass"')
    try:
        data = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
        return data.decode()
    except OSError as error:
        raise BadInput(f"the prompt file {file} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise BadInput(f"the prompt file {file} is not UTF-8: byte {error.start}") from error


TRIES = 5
"""Times in a row that a daemon may go away without a word about the task."""


_STATUS = {"task.assigned": "assigned", "task.started": "running"}


def watch(client: Client, task: dict[str, Any], *, quiet: bool, asks: bool = True) -> None:
    """Show a task's events until it is over; a daemon that goes away is started again and the task goes on.

    `task` follows what is known of it, and is the task as it ended on return. With `quiet` the transcript goes to
    stderr. With `asks` the first Ctrl-C asks for the task's end; else it leaves. Raises DaemonUnreachable when no
    daemon stays."""
    path = f"/v1/tasks/{quoted(task['id'])}"
    seen, failures, interrupted, asked = 0, 0, False, False
    while True:
        try:
            if failures:
                time.sleep(0.2 * failures)
                client = connect()
            if interrupted and not asked:
                client.call("POST", f"{path}/cancel")
                asked = True
            for event in client.stream("GET", f"{path}/events", after=seen, follow=True):
                for line in transcript.lines(event):
                    click.echo(line, err=quiet)
                seen, failures = event["seq"], 0
                task["status"] = _STATUS.get(event["body"]["type"], task["status"])
            task.update(client.call("GET", path))
            return
        except DaemonUnreachable:
            failures += 1
            if failures > TRIES:
                raise
            click.echo("the daemon went away; starting it again, the task goes on", err=True)
        except KeyboardInterrupt:
            if interrupted or not asks:
                click.echo(f"left; the task goes on without you: hv logs -f {task['id']}", err=True)
                raise
            interrupted = True
            click.echo("asking the agent to stop (Ctrl-C again leaves at once)", err=True)
