"""`hv send` and `hv interrupt`: telling a session's agent things."""

from __future__ import annotations

import json
from typing import Any

import click

from hiveyard.api.client import quoted
from hiveyard.cli import transcript
from hiveyard.cli.connect import connect
from hiveyard.cli.live import live
from hiveyard.cli.names import SESSION
from hiveyard.cli.options import JSON, prompt_of
from hiveyard.cli.problems import INTERRUPTED
from hiveyard.core.errors import BadInput, SessionNotRunning
from hiveyard.kit.text import one_line

FAILED = 1
_CODES = {"succeeded": 0, "failed": FAILED, "cancelled": INTERRUPTED, "timeout": FAILED}


@click.command(short_help="Tell a session's agent what to do next.")
@SESSION
@click.argument("text", required=False)
@click.option("-m", "--prompt", "--message", "prompt", help="The same as TEXT.")
@click.option("--prompt-file", type=click.Path(allow_dash=True), help="Read it from a file; - is stdin.")
@click.option("--wait", is_flag=True, help="Stay until that turn is over, and show it.")
@JSON
def send(session: str, text: str | None, prompt: str | None, prompt_file: str | None, wait: bool, as_json: bool) -> int:
    """One more turn in the same conversation, whether or not somebody sits there. TEXT may be - for stdin. While a turn
    is at work it waits. With --wait the exit code is the turn's: 0, 1 failed, 130 interrupted; Ctrl-C leaves, and the
    turn goes on."""
    said = _said(text, prompt, prompt_file)
    client = connect()
    before = client.call("GET", f"/v1/sessions/{quoted(session)}")["last_seq"]
    taken = client.call("POST", f"/v1/sessions/{quoted(session)}/prompts", {"text": said})
    if not wait:
        click.echo(json.dumps(taken) if as_json else f"turn {taken['turn']}")
        return 0
    ended = _turn_end(taken["id"], taken["turn"], after=before, quiet=as_json)
    if as_json:
        click.echo(json.dumps({**taken, "outcome": ended["outcome"], "error": ended.get("failure")}))
    elif failure := ended.get("failure"):
        click.echo(f"turn {taken['turn']} {ended['outcome']}: {one_line(failure['message'], 400)}", err=True)
    return _CODES[ended["outcome"]]


def _said(text: str | None, prompt: str | None, file: str | None) -> str:
    if text is not None and prompt is not None:
        raise BadInput("TEXT and -m both say what to do: give one of them")
    if text == "-" and file is None:
        text, file = None, "-"
    said = prompt_of(text if text is not None else prompt, file)
    if said is None:
        raise BadInput("nothing says what to do", hint='hv send ID "now run the tests"')
    return said


def _turn_end(id: str, turn: int, *, after: int, quiet: bool) -> dict[str, Any]:
    """Show a turn until it is over; the event of its end. With `quiet` it is shown on stderr."""
    for event in live(id, after=after):
        if event["turn"] != turn:
            continue
        for line in transcript.lines(event):
            click.echo(line, err=quiet)
        if event["body"]["type"] == "turn.ended":
            body: dict[str, Any] = event["body"]
            return body
    raise SessionNotRunning(f"{id} stopped before turn {turn} began", hint=f"hv resume {id}: it is said then")


@click.command(short_help="End a session's turn, and keep the session.")
@SESSION
@JSON
def interrupt(session: str, as_json: bool) -> None:
    """End the turn at work. The agent and its conversation stay: `hv send` goes on."""
    found = connect().call("POST", f"/v1/sessions/{quoted(session)}/interrupt")
    click.echo(json.dumps(found) if as_json else f"{found['name']}: interrupted")
