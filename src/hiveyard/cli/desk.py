"""`hv inbox` and `hv answer`: the questions of agents, and their answers."""

from __future__ import annotations

import json
from typing import Any

import click

from hiveyard.api.client import quoted
from hiveyard.cli import show, transcript
from hiveyard.cli.connect import connect
from hiveyard.cli.live import live
from hiveyard.cli.options import FORMAT, JSON
from hiveyard.kit.text import one_line

_OPERATOR = "operator"
_HEADER = ("ID", "FROM", "TURN", "AGE", "STATUS", "QUESTION", "ANSWERS")


@click.command(short_help="List the questions and messages that wait for you.")
@click.option("-a", "--all", "everything", is_flag=True, help="Also list those that are over, the newest first.")
@click.option("-n", "--limit", type=click.IntRange(min=1), metavar="N", help="List only the first N.")
@click.option("-f", "--follow", is_flag=True, help="Then print what is new, until Ctrl-C.")
@FORMAT
@JSON
def inbox(everything: bool, limit: int | None, follow: bool, form: str | None, as_json: bool) -> None:
    """List what agents ask, the oldest first, with the command that answers it, then messages that you have not read.
    An agent that was started with --ask waits until you answer; the others go on meanwhile."""
    query = {"all": everything} | ({} if limit is None else {"limit": limit})
    client = connect()
    found, seq = client.listing("/v1/asks", **query)
    if as_json or form == "json":
        click.echo(json.dumps(found, indent=2))
    else:
        # What members ask each other does not wait for the user, who may answer it nevertheless: --all.
        mine = [ask for ask in found if everything or ask["to"] in ("", _OPERATOR)]
        _print(mine, show.plain(client.call("GET", "/v1/hive/mail", unread=True)))
    if follow:
        _follow(seq, as_json=as_json or form == "json")


def _follow(seq: int, *, as_json: bool) -> None:
    """Print the questions and messages for the operator that come after an event."""
    for event in live(None, after=seq, types=("agent.asked", "ask.opened", "message.sent")):
        body = event["body"]
        if body.get("to", _OPERATOR) != _OPERATOR or (body["type"] == "agent.asked" and not body.get("ask")):
            continue
        for line in [json.dumps(event)] if as_json else transcript.lines(event):
            click.echo(line)


def _print(found: list[dict[str, Any]], mail: list[dict[str, Any]]) -> None:
    """Print questions, each with the command that answers it, and unread messages."""
    found = show.plain(found)
    if not found and not mail:
        click.echo("nothing waits for you", err=True)
        return
    if found:
        show.table([_row(ask) for ask in found], _HEADER)
    for ask in found:
        if ask["status"] == "open":
            click.echo(f"  hv answer {ask['id']} {'|'.join(answers(ask)) or 'TEXT'}")
    if mail:
        show.table([mail_row(message) for message in mail], MAIL_HEADER)
        click.echo("  hv hive mail --read")


MAIL_HEADER = ("ID", "FROM", "TO", "AGE", "STATE", "MESSAGE")


def mail_row(message: dict[str, Any]) -> list[str]:
    """Return the row of a message in a table."""
    text = one_line(message["text"], 100)
    return [message["id"], message["sender"], message["to"], show.age(message["sent_at"]), message["state"], text]


def _row(ask: dict[str, Any]) -> list[str]:
    return [
        ask["id"],
        ask["name"],
        str(ask["turn"] or "-"),
        show.age(ask["asked_at"]),
        ask["status"],
        one_line(ask["message"], 100),
        _given(ask) if ask["answer"] else _offered(ask),
    ]


def _given(ask: dict[str, Any]) -> str:
    return transcript.given({"request": ask["kind"] == "permission", **ask["answer"]})


def _offered(ask: dict[str, Any]) -> str:
    """Return the answers that a question takes, with their meaning where it is not that of the word."""
    if ask["kind"] == "permission":
        return " ".join(answers(ask))
    return ", ".join(f"{option['id']}: {one_line(option['name'], 60)}" for option in ask["options"]) or "a text"


def answers(ask: dict[str, Any]) -> list[str]:
    """Return the answers that a question takes; none if it takes any text."""
    if ask["kind"] != "permission":
        return [one_line(option["id"], 80) for option in ask["options"]]
    return list(dict.fromkeys(["allow", "deny", *(one_line(option["id"], 80) for option in ask["options"])]))


@click.command(short_help="Answer the question of an agent.")
@click.argument("question")
@click.argument("answers", nargs=-1, required=True, metavar="ANSWER...")
@click.option("-m", "--message", default="", help="Words for the agent, for instance why it may not.")
@JSON
def answer(question: str, answers: tuple[str, ...], message: str, as_json: bool) -> None:
    """Answer QUESTION (an id of `hv inbox`, or its beginning) with `allow`, `deny` or one of its own answers; with
    several, or with a text, where it takes them. The first answer counts."""
    body = {"answer": answers[0], "more": list(answers[1:]), "message": message}
    given = connect().call("POST", f"/v1/asks/{quoted(question)}/answer", body)
    click.echo(json.dumps(given)) if as_json else click.echo(f"{given['id']}: {_given(given)}", err=True)
