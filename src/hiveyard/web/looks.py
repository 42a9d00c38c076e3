"""How facts look on the page: states with their icons and words, figures, texts of agents."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from hiveyard.core.states import TaskState
from hiveyard.core.usage import Usage
from hiveyard.engine.sessions.view import SessionView
from hiveyard.kit.figures import count, counted, dollars, size, span
from hiveyard.kit.text import one_line, printable
from hiveyard.transcript import clean

HERE = Path(__file__).parent
_INLINE = re.compile(r"`([^`\n]+)`|\*\*([^*\n]+)\*\*")
_FENCE = re.compile(r"^```[^\n]*\n(.*?)(?:^```[ \t]*$|\Z)", re.MULTILINE | re.DOTALL)
# Zero-width characters and directional marks hide in names; in a text they are kept, as scripts need them.
_HIDDEN = re.compile("[\u200b-\u200f\u2060\ufeff]")
_CODE, _STRONG = Markup("<code>{}</code>"), Markup("<strong>{}</strong>")


class State(NamedTuple):
    """The state of work on the page: a tone of the design system, an icon, and a word."""

    tone: str
    icon: str
    word: str


_TASKS = {
    TaskState.PENDING: State("quiet", "queued", "queued"),
    TaskState.COMPLETED: State("good", "check", "completed"),
    TaskState.FAILED: State("bad", "cross", "failed"),
    TaskState.CANCELLED: State("quiet", "stop", "cancelled"),
}
_STATES = {
    "created": State("quiet", "queued", "queued"),
    "preparing": State("busy", "spin", "preparing"),
    "paused": State("quiet", "pause", "paused"),
    "stopped": State("quiet", "stop", "stopped"),
    "finished": State("good", "check", "finished"),
    "failed": State("bad", "cross", "failed"),
}
_ACTIVITIES = {
    "idle": State("good", "ready", "ready"),
    "thinking": State("busy", "spin", "thinking"),
    "executing": State("busy", "spin", "executing"),
    "waiting": State("wait", "hand", "waits for you"),
}


def state_of(work: SessionView) -> State:
    """Return the state of a task or session."""
    if work.task is not None and work.task in _TASKS and work.status not in ("preparing", "running", "paused"):
        return _TASKS[work.task]
    if work.status == "running":
        return _ACTIVITIES.get(work.activity, _ACTIVITIES["idle"])
    return _STATES.get(work.status, State("quiet", "stop", work.status))


def is_task(work: SessionView) -> bool:
    """Return whether this is a task that does not go on as a session."""
    return work.task is not None and work.mode == "one-shot"


def is_at_work(work: SessionView) -> bool:
    return work.status in ("created", "preparing", "running", "paused")


def can_continue(work: SessionView) -> bool:
    """Return whether a person can send it a prompt: a session, or a task that is over and has a conversation."""
    return not is_task(work) or (not is_at_work(work) and work.agent != "command")


def why(work: SessionView) -> str:
    """Return why a task or session does not run, on one line."""
    return one_line(work.waits_for or (work.error.message if work.error else work.reason), 300)


def tokens(usage: Usage) -> int:
    return usage.input_tokens + usage.cache_read_tokens + usage.cache_write_tokens + usage.output_tokens


def age(at: float) -> str:
    """Return the time since `at` in one unit, as the page's clock does."""
    seconds = max(0.0, time.time() - at)
    return "now" if seconds < 5 else span(seconds).split(".")[0].rstrip("s") + "s" if seconds < 10 else span(seconds)


def when(at: float | None) -> Markup:
    """Return a time that the page keeps up to date."""
    if at is None:
        return Markup("–")
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at))
    return Markup('<time datetime="{}">{}</time>').format(stamp, age(at))


def name(text: str, limit: int = 200) -> str:
    """Return a name from anywhere as one line that looks like what it is."""
    return one_line(_HIDDEN.sub("", text[: 8 * limit]), limit)


def prose(text: str) -> Markup:
    """Return an agent's text: escaped, with code between fences and backticks set as code. Links stay text."""
    parts, at = [], 0
    shown = "\n".join(clean(text))
    for fence in _FENCE.finditer(shown):
        parts += [_paragraphs(shown[at : fence.start()]), Markup("<pre>{}</pre>").format(fence[1].rstrip("\n"))]
        at = fence.end()
    return Markup().join([*parts, _paragraphs(shown[at:])])


def _paragraphs(text: str) -> Markup:
    return Markup().join(
        Markup("<p>{}</p>").format(_inline(part)) for part in re.split(r"\n{2,}", text.strip("\n")) if part
    )


def _inline(text: str) -> Markup:
    parts, at = [], 0
    for match in _INLINE.finditer(text):
        marked = _CODE.format(match[1]) if match[1] else _STRONG.format(match[2])
        parts += [escape(text[at : match.start()]), marked]
        at = match.end()
    return Markup().join([*parts, escape(text[at:])])


def block(text: str, limit: int = 40_000) -> str:
    """Return a long text as printable lines, up to a limit that a browser takes lightly."""
    shown = "\n".join(line[:2000] + ("…" if len(line) > 2000 else "") for line in clean(text[:limit]))
    return shown + (f"\n[{len(text) - limit} more characters: hv events]" if len(text) > limit else "")


def environment() -> Environment:
    """Return the templates, which escape everything that is not markup of this module."""
    env = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    functions = (
        state_of,
        is_task,
        is_at_work,
        can_continue,
        why,
        tokens,
        age,
        when,
        name,
        prose,
        block,
        span,
        count,
        counted,
        size,
    )
    env.globals.update({one.__name__: one for one in functions})
    env.globals.update(dollars=dollars)
    env.filters.update(name=name, printable=printable)
    return env
