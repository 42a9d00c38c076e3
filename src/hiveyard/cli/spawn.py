"""`hv spawn` and `hv resume`: start a session, and wait until it runs."""

from __future__ import annotations

import json
from typing import Any

import click

from hiveyard.api.client import ApiError
from hiveyard.cli import transcript
from hiveyard.cli.connect import connect
from hiveyard.cli.live import ask, live
from hiveyard.cli.names import SESSION
from hiveyard.cli.options import JSON, F, image_reference, read_prompt, spec_options, spec_request
from hiveyard.cli.tools import tool_options, tool_request
from hiveyard.cli.work import find
from hiveyard.core.errors import BadInput, NotFound, SessionNotRunning
from hiveyard.kit.names import new_id

ATTACH = click.option("--attach", is_flag=True, help="Attach this terminal when the agent runs.")


_SESSION_OPTIONS = (
    click.option("--repo", help="The repository: a path (default: here), a URL, or owner/repo of GitHub."),
    click.option(
        "-m", "--prompt", "--message", "prompt", help="The same as PROMPT; - is stdin. Without one the agent waits."
    ),
    click.option("--prompt-file", type=click.Path(allow_dash=True), help="Read the prompt from a file; - is stdin."),
    click.option("--ref", "--base", "base", metavar="REV", help="The branch or commit to start from (default: HEAD)."),
    click.option("--agent", help="claude, opencode, codex or goose."),
    click.option("--acp", metavar="COMMAND", help="A program that speaks the Agent Client Protocol, as the agent."),
    click.option(
        "--ask", is_flag=True, help="The agent asks before it changes or runs anything: hv inbox. Includes --live."
    ),
    click.option("--port", type=int, help="The host's port for ssh (default: a free one from 2222 on)."),
    click.option("--snapshots", type=click.Choice(["turns"]), help="Take a snapshot at the end of each turn."),
)


def session_options(verb: F) -> F:
    """Add the options that sessions and members of the hive share."""
    for option in reversed(_SESSION_OPTIONS):
        verb = option(verb)
    return spec_options(verb)


@click.command(short_help="Start a session that you can leave and come back to.")
@click.argument("where", required=False, metavar="[REPO]")
@click.argument("text", required=False, metavar="[PROMPT]")
@click.option("--live", is_flag=True, help="Run the agent without a terminal, as codex and goose always run.")
@click.option("--name", help="The session's name (default: made from the prompt or the repository).")
@click.option("--wait", is_flag=True, help="Wait in line for memory, instead of failing when there is none.")
@session_options
@ATTACH
@JSON
def spawn(where: str | None, attach: bool, as_json: bool, **options: Any) -> int:
    """Start an agent at its own terminal program, on a copy of REPO, in a machine of its own. `hv attach` attaches to
    it, `hv stop` keeps its files, and `hv resume` continues the same conversation.

    Wait until it runs; the last line on stdout is its id. Ctrl-C before that stops and removes it.
    """
    request = {**session_request(where, options), "id": (id := new_id())}
    try:
        wait_until_running(ask("POST", "/v1/sessions", request), after=0)
    except KeyboardInterrupt:
        click.echo(f"stopped and removed {_remove(id) or request.get('name') or id}", err=True)
        raise
    return _report(id, attach=attach, as_json=as_json)


def _remove(id: str) -> str:
    """Remove a session; return its name, or an empty text if the daemon has removed it when its client left."""
    try:
        name = str(ask("GET", f"/v1/sessions/{id}")["name"])
        ask("DELETE", f"/v1/tasks/{id}?force=true")
    except ApiError as error:
        if error.code != NotFound.code:
            raise
        return ""
    return name


@click.command(short_help="Continue a session that was stopped.")
@SESSION
@click.option("-m", "--prompt", "--message", "prompt", help="The next prompt; - is stdin.")
@click.option(
    "--budget", "budget_usd", type=float, metavar="DOLLARS", help="The new total budget, including what was spent."
)
@click.option("--model", help="The model from now on, as the agent names it.")
@click.option("--image", help="The image of the new machine: its name or id, or a recipe file.")
@tool_options
@ATTACH
@JSON
def resume(session: str, prompt: str | None, attach: bool, as_json: bool, **options: Any) -> int:
    """Continue a stopped session, or a task that is over, in a new machine, in the same conversation of the agent. Wait
    until it runs; the last line on stdout is its id. Ctrl-C before that stops it again. A paused session continues.
    With --budget, a session that already runs gets that budget at once. --mcp and --env add to what the session has."""
    change = {**tool_request(options), **options}
    if change["image"] is not None:
        change["image"] = image_reference(change["image"])
    client = connect()
    found = find(session).found
    path = f"/v1/sessions/{found['id']}"
    if found["status"] == "paused":
        client.call("POST", f"{path}/unpause")
    asked = {**change, "prompt": read_prompt(prompt, None)}
    resumed = client.call("POST", f"{path}/resume", asked)
    if resumed["status"] != "running":
        # If the session was believed to run, events up to now are about its end, not about this start.
        before = found if found["status"] == "stopped" else resumed
        try:
            wait_until_running(resumed, after=before["last_seq"])
        except KeyboardInterrupt:
            ask("POST", f"{path}/stop")
            click.echo(f"stopped {resumed['name']}", err=True)
            raise
    return _report(found["id"], attach=attach, as_json=as_json)


def session_request(where: str | None, options: dict[str, Any]) -> dict[str, Any]:
    """Return the request for the options of `session_options`. Raises BadInput."""
    repo = options.pop("repo")
    if repo is not None and where is not None:
        raise BadInput(f"--repo {repo} and {where} both give the repository: give one of them")
    if (acp := options.pop("acp")) is not None:
        if options["agent"] is not None:
            raise BadInput(f"--acp and --agent {options['agent']} both give the agent: give one of them")
        options |= {"agent": "acp", "command": acp}
    prompt = read_prompt(options.pop("prompt"), options.pop("prompt_file"), options.pop("text"))
    request = spec_request({**options, "repo": repo or where or "."})
    return request if prompt is None else {**request, "prompt": prompt}


def wait_until_running(session: dict[str, Any], *, after: int) -> None:
    """Show the session's events on stderr until it runs. Raises SessionNotRunning when it stops before that."""
    name = session["name"]
    for event in live(session["id"], after=after):
        body = event["body"]
        for line in transcript.lines(event):
            click.echo(line, err=True)
        if body["type"] == "session.running":
            return
        if body["type"] == "session.failed":
            why, hint = body["failure"]["message"], body["failure"]["hint"]
            raise SessionNotRunning(f"{name} could not be started: {why}", hint=hint or f"hv logs {name}; hv rm {name}")
        if body["type"] == "session.stopped":
            hint = f"hv resume {name}, or hv rm {name}"
            raise SessionNotRunning(f"{name} stopped before it ran: {body['reason']}", hint=hint)
    raise SessionNotRunning(f"{name} is not running", hint=f"hv show {name}")


def _report(id: str, *, attach: bool, as_json: bool) -> int:
    """Print the running session, then attach to it if `attach`. Return the exit code."""
    session = ask("GET", f"/v1/sessions/{id}")
    if as_json:
        click.echo(json.dumps(session))
    else:
        if not attach:
            click.echo(f"{session['name']} runs: hv attach {session['name']}", err=True)
        click.echo(id)
    if not attach:
        return 0
    from hiveyard.cli.attach import attach_to

    return attach_to(id)
