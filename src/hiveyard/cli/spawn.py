"""`hv spawn` and `hv resume`: a session, and the person's wait until it runs."""

from __future__ import annotations

import json
from typing import Any

import click

from hiveyard.api.client import quoted
from hiveyard.cli import transcript
from hiveyard.cli.connect import connect
from hiveyard.cli.live import ask, live
from hiveyard.cli.names import SESSION
from hiveyard.cli.options import JSON, prompt_of, wished, wishes
from hiveyard.core.errors import BadInput, SessionNotRunning
from hiveyard.kit.names import new_id

ATTACH = click.option("--attach", is_flag=True, help="Sit down at the agent when it runs.")


@click.command(short_help="Start a session that you can leave and come back to.")
@click.argument("where", required=False, metavar="[REPO]")
@click.argument("text", required=False, metavar="[PROMPT]")
@click.option("--repo", help="The repository: a path (default: here), a URL, or owner/repo of GitHub.")
@click.option(
    "-m", "--prompt", "--message", "prompt", help="The same as PROMPT; - is stdin. Without one the agent waits for you."
)
@click.option("--prompt-file", type=click.Path(allow_dash=True), help="Read that from a file; - is stdin.")
@click.option("--ref", "--base", "base", metavar="REV", help="The branch or commit to start from (default: HEAD).")
@click.option("--agent", help="claude or opencode.")
@click.option("--name", help="What to call it (default: made from the prompt or the repository).")
@click.option("--port", type=int, help="The host's port for ssh (default: a free one from 2222 on).")
@click.option("--snapshots", type=click.Choice(["turns"]), help="Take a snapshot at the end of each turn.")
@wishes
@ATTACH
@JSON
def spawn(where: str | None, attach: bool, as_json: bool, **options: Any) -> int:
    """Start an agent on a copy of REPO in a machine of its own, and leave it there: `hv attach` sits down at it, `hv
    stop` keeps its files, `hv resume` goes on in the same conversation.

    Waits until it runs; the last line on stdout is its id. Ctrl-C before that stops and removes it.
    """
    session = ask("POST", "/v1/sessions", {**_request(where, options), "id": new_id()})
    try:
        come_up(session, after=0)
    except KeyboardInterrupt:
        ask("DELETE", f"/v1/tasks/{session['id']}?force=true")
        click.echo(f"stopped and removed {session['name']}", err=True)
        raise
    return _there(session["id"], attach=attach, as_json=as_json)


@click.command(short_help="Go on with a session that was stopped.")
@SESSION
@click.option("--budget", "budget_usd", type=float, metavar="DOLLARS", help="What it may spend in all from now on.")
@ATTACH
@JSON
def resume(session: str, budget_usd: float | None, attach: bool, as_json: bool) -> int:
    """Go on in a new machine, in the same conversation of the agent. Waits until it runs; the last line on stdout is
    its id. Ctrl-C before that stops it again. One that is paused goes on. With --budget one that runs already gets that
    budget at once."""
    client = connect()
    found = client.call("GET", f"/v1/sessions/{quoted(session)}")
    path = f"/v1/sessions/{found['id']}"
    if found["status"] == "paused":
        client.call("POST", f"{path}/unpause")
    resumed = client.call("POST", f"{path}/resume", {"budget_usd": budget_usd})
    if resumed["status"] != "running":
        # The end of one that was taken for running is no news of how this goes.
        begun = resumed if found["status"] in ("running", "paused") else found
        try:
            come_up(found, after=begun["last_seq"])
        except KeyboardInterrupt:
            ask("POST", f"{path}/stop")
            click.echo(f"stopped {found['name']}", err=True)
            raise
    return _there(found["id"], attach=attach, as_json=as_json)


def _request(where: str | None, options: dict[str, Any]) -> dict[str, Any]:
    repo = options.pop("repo")
    if repo is not None and where is not None:
        raise BadInput(f"--repo {repo} and {where} both say which repository: give one of them")
    prompt = prompt_of(options.pop("prompt"), options.pop("prompt_file"), options.pop("text"))
    request = wished({**options, "repo": repo or where or "."})
    return request if prompt is None else {**request, "prompt": prompt}


def come_up(session: dict[str, Any], *, after: int) -> None:
    """Show on stderr what happens until the session runs. Raises SessionNotRunning when it stops before that."""
    name = session["name"]
    for event in live(session["id"], after=after):
        body = event["body"]
        for line in transcript.lines(event):
            click.echo(line, err=True)
        if body["type"] == "session.running":
            return
        if body["type"] == "session.failed":
            why, hint = body["failure"]["message"], body["failure"]["hint"]
            raise SessionNotRunning(f"{name} could not be made: {why}", hint=hint or f"hv logs {name}; hv rm {name}")
        if body["type"] == "session.stopped":
            hint = f"hv resume {name}, or hv rm {name}"
            raise SessionNotRunning(f"{name} stopped before it ran: {body['reason']}", hint=hint)
    raise SessionNotRunning(f"{name} is not running", hint=f"hv show {name}")


def _there(id: str, *, attach: bool, as_json: bool) -> int:
    """Say where the session is, and take the person there when they want it."""
    session = ask("GET", f"/v1/sessions/{id}")
    if as_json:
        click.echo(json.dumps(session))
    else:
        if not attach:
            click.echo(f"{session['name']} runs: hv attach {session['name']}", err=True)
        click.echo(id)
    if not attach:
        return 0
    from hiveyard.cli.terminal import show_agent

    return show_agent(id)
