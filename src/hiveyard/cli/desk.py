"""`hv inbox` and `hv answer`: the questions of agents, and their answers."""

from __future__ import annotations

import json
from typing import Any

import click

from hiveyard.api.client import quoted
from hiveyard.cli import show
from hiveyard.cli.connect import connect
from hiveyard.cli.options import FORMAT, JSON
from hiveyard.kit.text import one_line

_HEADER = ("ID", "FROM", "TURN", "AGE", "STATUS", "QUESTION", "ANSWERS")


@click.command(short_help="List the questions that wait for you.")
@click.option("-a", "--all", "everything", is_flag=True, help="Also list those that are over, the newest first.")
@click.option("-n", "--limit", type=click.IntRange(min=1), metavar="N", help="List only the first N.")
@FORMAT
@JSON
def inbox(everything: bool, limit: int | None, form: str | None, as_json: bool) -> None:
    """List what agents ask, the oldest first. An agent that was started with --ask waits until you answer; the others
    go on meanwhile."""
    query = {"all": everything} | ({} if limit is None else {"limit": limit})
    found = connect().call("GET", "/v1/asks", **query)
    if as_json or form == "json":
        click.echo(json.dumps(found, indent=2))
        return
    found = show.plain(found)
    if not found:
        click.echo("nothing waits for you", err=True)
        return
    show.table([_row(ask) for ask in found], _HEADER)


def _row(ask: dict[str, Any]) -> list[str]:
    return [
        ask["id"],
        ask["name"],
        str(ask["turn"] or "-"),
        show.age(ask["asked_at"]),
        ask["status"],
        one_line(ask["message"], 100),
        _given(ask["answer"]) if ask["answer"] else " ".join(answers(ask)),
    ]


def _given(answer: dict[str, Any]) -> str:
    return one_line(answer["option"], 80) if answer["option"] else ("allow" if answer["allow"] else "deny")


def answers(ask: dict[str, Any]) -> list[str]:
    """Return the answers that a question takes."""
    return list(dict.fromkeys(["allow", "deny", *(one_line(option["id"], 80) for option in ask["options"])]))


@click.command(short_help="Answer the question of an agent.")
@click.argument("question")
@click.argument("answer")
@click.option("-m", "--message", default="", help="Words for the agent, for instance why it may not.")
@JSON
def answer(question: str, answer: str, message: str, as_json: bool) -> None:
    """Answer QUESTION (an id of `hv inbox`, or its beginning) with `allow`, `deny` or one of its own answers. The first
    answer counts."""
    given = connect().call("POST", f"/v1/asks/{quoted(question)}/answer", {"answer": answer, "message": message})
    if as_json:
        click.echo(json.dumps(given))
    else:
        click.echo(f"{given['id']}: {_given(given['answer'])}", err=True)
