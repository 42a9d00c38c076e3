"""`hv send` and `hv interrupt`: send a session's agent a prompt, and end its turn."""

from __future__ import annotations

import json
from typing import Any

import click

from hiveyard.api.client import quoted
from hiveyard.cli import transcript
from hiveyard.cli.connect import connect
from hiveyard.cli.live import live
from hiveyard.cli.names import SESSION
from hiveyard.cli.options import JSON, read_prompt
from hiveyard.cli.problems import INTERRUPTED
from hiveyard.cli.work import find
from hiveyard.core.errors import BadInput, SessionNotRunning
from hiveyard.kit.text import one_line

FAILED = 1
_CODES = {"succeeded": 0, "failed": FAILED, "cancelled": INTERRUPTED, "timeout": FAILED}


@click.command(short_help="Send a session's agent its next prompt.")
@SESSION
@click.argument("text", required=False)
@click.option("-m", "--prompt", "--message", "prompt", help="The same as TEXT.")
@click.option("--prompt-file", type=click.Path(allow_dash=True), help="Read the prompt from a file; - is stdin.")
@click.option("--wait", is_flag=True, help="Show the turn until it ends.")
@click.option("--now", is_flag=True, help="Add the text to the turn that runs, if the session is live.")
@JSON
def send(
    session: str,
    text: str | None,
    prompt: str | None,
    prompt_file: str | None,
    wait: bool,
    now: bool,
    as_json: bool,
) -> int:
    """Send a prompt: one more turn in the same conversation, whether or not a user is attached. TEXT - is stdin. While
    another turn runs, the prompt waits. With --wait the exit code is the turn's: 0, 1 failed, 130 interrupted. Ctrl-C
    then leaves, and the turn continues. For a member of the hive the prompt is a message, and --now makes it urgent."""
    prompt_text = _prompt(text, prompt, prompt_file)
    if now and wait:
        raise BadInput("--now begins no turn that --wait could wait for", hint=f"hv logs -f {session}")
    client = connect()
    before = find(session).found.get("last_seq", 0)
    turn = client.call("POST", f"/v1/sessions/{quoted(session)}/prompts", {"text": prompt_text, "now": now})
    if not wait:
        click.echo(json.dumps(turn) if as_json else _accepted(turn))
        return 0
    if turn["message"]:
        turn["turn"] = _turn_of(turn["id"], turn["message"], after=before)
    ended = _follow_turn(turn["id"], turn["turn"], after=before, quiet=as_json)
    if as_json:
        click.echo(json.dumps({**turn, "outcome": ended["outcome"], "error": ended.get("failure")}))
    elif failure := ended.get("failure"):
        click.echo(f"turn {turn['turn']} {ended['outcome']}: {one_line(failure['message'], 400)}", err=True)
    return _CODES[ended["outcome"]]


def _accepted(turn: dict[str, Any]) -> str:
    if turn["message"]:
        return f"message {turn['message']}"
    return f"turn {turn['turn']}" if turn["turn"] else "added"


def _turn_of(id: str, message: str, *, after: int) -> int:
    """Wait until a message was delivered to a member of the hive; return the turn that got it."""
    for event in live(id, after=after):
        if event["body"]["type"] == "message.delivered" and event["body"]["message"] == message:
            return int(event["turn"])
    raise SessionNotRunning(f"{id} stopped before it got the message", hint="hv hive ls")


def _prompt(text: str | None, message: str | None, file: str | None) -> str:
    prompt = read_prompt(message, file, text)
    if prompt is None:
        raise BadInput("the prompt is missing", hint='hv send ID "now run the tests"')
    return prompt


def _follow_turn(id: str, turn: int, *, after: int, quiet: bool) -> dict[str, Any]:
    """Show a turn until it ends, on stderr if `quiet`, and return the event of its end."""
    for event in live(id, after=after):
        if event["turn"] != turn:
            continue
        for line in transcript.lines(event):
            click.echo(line, err=quiet)
        if event["body"]["type"] == "turn.ended":
            body: dict[str, Any] = event["body"]
            return body
    raise SessionNotRunning(f"{id} stopped before turn {turn} began", hint=f"hv resume {id}, which sends the prompt")


@click.command(short_help="End a session's turn, and keep the session.")
@SESSION
@JSON
def interrupt(session: str, as_json: bool) -> None:
    """End the current turn. The agent and its conversation stay; `hv send` continues it."""
    found = connect().call("POST", f"/v1/sessions/{quoted(session)}/interrupt")
    click.echo(json.dumps(found) if as_json else f"{found['name']}: interrupted")


@click.command(short_help="Choose the model of a live session.")
@SESSION
@click.argument("name")
@JSON
def model(session: str, name: str, as_json: bool) -> None:
    """Choose the model of a live session's later turns. It stays when the session is stopped and resumed."""
    found = connect().call("POST", f"/v1/sessions/{quoted(session)}/model", {"model": name})
    if as_json:
        click.echo(json.dumps(found))
    else:
        click.echo(f"{found['name']} uses {found['model']} from its next turn on", err=True)
