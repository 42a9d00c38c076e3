"""The lines of an event: complete for a command's output, else with a mark for all that is left out."""

from __future__ import annotations

import base64
from typing import Any

import click
import pytest

from hiveyard.cli import transcript
from hiveyard.core.events.body import clip

ID = "01abc"


def lines(type: str, *, raw: bytes | None = None, complete: bool = False, **fields: Any) -> list[str]:
    event: dict[str, Any] = {"session": ID, "turn": 1, "body": {"type": type, **fields}}
    if raw is not None:
        event["raw"] = base64.b64encode(raw).decode()
    return [click.unstyle(line) for line in transcript.lines(event, complete=complete)]


def test_the_output_of_a_command_is_complete() -> None:
    numbers = "\n".join(map(str, range(1, 1001)))
    raw = f"{numbers}\n\n" + '{"a": 1}\n' + "x" * 100_000
    shown = lines("agent.output", text=clip(raw), raw=raw.encode(), complete=True)
    assert shown == raw.split("\n")


def test_a_blank_line_of_a_command_is_a_line() -> None:
    assert lines("agent.output", text="", raw=b"", complete=True) == [""]


def test_an_escape_without_an_end_takes_no_other_line_away() -> None:
    raw = "\x1b]0;owned\n1\n2\x1b[2J\n\x1bPq\n3"
    assert lines("agent.output", text=raw, raw=raw.encode(), complete=True) == ["", "1", "2", "", "3"]
    assert lines("agent.text", text=raw) == ["", "1", "2", "", "3"]


def test_what_is_folded_says_how_much_and_how_to_see_it() -> None:
    long = "y" * 500
    text = "\n".join([*map(str, range(100)), '{"type": "unknown"}', '{"type": "unknown"}'])
    shown = lines("agent.output", text=f"{long}\n{text}")
    assert shown[0] == "y" * 400 + "…"
    assert shown[40:] == [
        f"  [61 more lines, 100 more characters in long lines: hv events {ID} --raw]",
        f"  [2 lines of JSON not shown: hv events {ID} --raw]",
    ]


def test_a_single_line_of_json_is_counted() -> None:
    assert lines("agent.output", text='{"type": "unknown"}') == [f"  [1 line of JSON not shown: hv events {ID} --raw]"]


@pytest.mark.parametrize(
    ("type", "field"), [("agent.output", "text"), ("agent.text", "text"), ("agent.tool_returned", "output")]
)
def test_what_the_journal_clipped_is_counted_too(type: str, field: str) -> None:
    fields: Any = {field: clip("abc\n" * 40_000)}
    shown = lines(type, **fields)
    assert "94464 more characters" in shown[-1]
    assert f"hv events {ID} --raw" in shown[-1]


def test_a_tool_and_an_edit_say_what_is_missing() -> None:
    shown = lines("agent.tool_returned", call="1", output="\n".join(["z" * 250, *map(str, range(9))]))
    assert shown[0] == "  " + "z" * 200 + "…"
    assert shown[-1] == f"  [2 more lines, 50 more characters in long lines: hv events {ID} --raw]"
    shown = lines("agent.edited", path="a.py", diff="\n".join(f"+{number}" for number in range(41)))
    assert shown[-1] == f"  [1 more line: hv events {ID}]"


def test_a_long_message_says_what_is_missing() -> None:
    [shown] = lines("notice", message="m" * 401)
    assert shown == "! " + "m" * 400 + f"…  [1 more character: hv events {ID}]"
