"""`hv hive send`, `hv hive mail` and `hv hive log`: messages to members, and from them."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import click

from hiveyard.api.client import quoted
from hiveyard.cli import show, transcript
from hiveyard.cli.connect import connect
from hiveyard.cli.desk import MAIL_HEADER, mail_row
from hiveyard.cli.live import live
from hiveyard.cli.options import JSON, read_prompt
from hiveyard.core.errors import BadInput
from hiveyard.kit.text import printable

_OPERATOR = "operator"
_OF_THE_HIVE = ("member.", "message.", "ask.", "reminder.")


@click.command("send", short_help="Write to members.")
@click.argument("to")
@click.argument("text", required=False)
@click.option("-m", "--message", help="The same as TEXT; - is stdin.")
@click.option("--reply-to", default="", metavar="ID", help="The message that this answers.")
@click.option("--urgent", is_flag=True, help="Do not wait until the turn that runs ends.")
@click.option("--file", "files", multiple=True, type=click.Path(), help="Send a file with it.")
@JSON
def send(
    to: str, text: str | None, message: str | None, reply_to: str, urgent: bool, files: tuple[str, ...], as_json: bool
) -> None:
    """Write a message to TO: a member, several with commas between them, or `all`. It starts a turn of each, now or
    when the turn that runs ends."""
    found = read_prompt(message, None, text)
    if found is None:
        raise BadInput("the text is missing", hint='hv hive send NAME "what is new"')
    body = {
        "to": to.split(","),
        "text": found,
        "reply_to": reply_to,
        "priority": "urgent" if urgent else "normal",
        "files": {Path(file).name: _read(file) for file in files},
    }
    sent = connect().call("POST", "/v1/hive/messages", body)
    if as_json:
        click.echo(json.dumps(sent))
        return
    for one in sent:
        click.echo(f"{one['id']} to {one['to']}")


def _read(file: str) -> str:
    try:
        return base64.b64encode(Path(file).read_bytes()).decode()
    except OSError as error:
        raise BadInput(f"{file} cannot be read: {error.strerror}") from error


@click.command("mail", short_help="List messages.")
@click.argument("name", required=False)
@click.option("-n", "--limit", type=click.IntRange(1, 1000), default=100, metavar="N", help="Only the latest N.")
@click.option("--read", is_flag=True, help="Print your unread messages completely, and mark them as read.")
@JSON
def mail(name: str | None, limit: int, read: bool, as_json: bool) -> None:
    """List the latest messages from and for the member NAME; without NAME, yours. With --read, print the messages that
    you have not read."""
    client = connect()
    if read and name is not None:
        raise BadInput("--read is for your own messages", hint="hv hive mail --read")
    query: dict[str, Any] = {"unread": True} if read else {"of": name or _OPERATOR, "limit": limit}
    found = client.call("GET", "/v1/hive/mail", **query)
    if as_json:
        click.echo(json.dumps(found, indent=2))
    elif read:
        _print_completely(found)
    elif found:
        show.table([mail_row(message) for message in show.plain(found)], MAIL_HEADER)
    else:
        click.echo("no messages", err=True)
    if read and found:
        client.call("POST", "/v1/hive/mail/read", {"ids": [message["id"] for message in found]})


def _print_completely(found: list[dict[str, Any]]) -> None:
    for message in found:
        click.echo(
            click.style(f"{message['id']} from {message['sender']}, {show.age(message['sent_at'])} ago", bold=True)
        )
        click.echo(printable(message["text"]))
        click.echo(f"  hv hive send {message['sender']} --reply-to {message['id']} TEXT\n")


@click.command("log", short_help="Show what happens in the hive.")
@click.argument("name", required=False)
@click.option("-f", "--follow", is_flag=True, help="Continue until Ctrl-C.")
@JSON
def log(name: str | None, follow: bool, as_json: bool) -> None:
    """Show messages, questions and reminders: of the member NAME, or of the whole hive. `hv logs NAME` shows what its
    agent does."""
    client = connect()
    query: dict[str, Any] = {"type": list(_OF_THE_HIVE)}
    if name is not None:
        query["session"] = client.call("GET", f"/v1/hive/members/{quoted(name)}")["session"]["id"]
    events = client.stream("GET", "/v1/events", **query) if not follow else live(None, types=_OF_THE_HIVE)
    for event in events:
        if event["body"]["type"] != "ask.answered" and event["body"]["type"] not in transcript.HIVE:
            continue
        if name is not None and event["session"] != query["session"]:
            continue
        for line in [json.dumps(event)] if as_json else transcript.lines(event):
            click.echo(line)
