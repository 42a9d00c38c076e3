"""What agent programs say in words of their own, turned into ours: one-line summaries, diffs, error codes."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath

from hiveyard.core.errors import (
    AgentFailed,
    BadInput,
    BudgetSpent,
    KeyMissing,
    KeyRefused,
    NotOnTape,
    RateLimited,
    UpstreamFailed,
)
from hiveyard.kit.shape import count, items, record, text
from hiveyard.kit.text import one_line

SUMMARY_LIMIT = 200
GOOSE_ERROR_HEAD = "Ran into this error: "
"""How goose begins the message of a failed turn."""
DIFF_SOURCE_LIMIT = 1 << 20
"""Characters of a file beyond which no diff is computed here; the patch of the branch shows it anyway."""
_DIFF_LINES = 10_000
"""Lines, too, of a file that was there before: the work grows with their square."""

# The argument that says most about a call, for the tools of all programs; the first that is there wins.
_TELLING = (
    "command",
    "file_path",
    "filePath",
    "filepath",
    "notebook_path",
    "path",
    "pattern",
    "query",
    "url",
    "skill",
    "description",
    "prompt",
)
_PATCHED = re.compile(r"^\*\*\* (?:Add|Update|Delete) File: (.+)$", re.MULTILINE)
_MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@/\[\]-]{0,199}\Z")
_CONVERSATION = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}\Z")


def summary(tool: str, arguments: Mapping[str, object], workdir: str = "") -> str:
    """One readable line for a call: `Bash: pytest -q`, `Edit: src/a.py`."""
    told = next((text(arguments.get(key)) for key in _TELLING if text(arguments.get(key))), "")
    if patch := text(arguments.get("patchText")):
        told = ", ".join(_PATCHED.findall(patch[:DIFF_SOURCE_LIMIT])[:20])
    if told.startswith("/"):
        told = relative(told, workdir)
    name = one_line(tool, 60) or "a tool"
    return one_line(f"{name}: {told[:1000]}" if told else name, SUMMARY_LIMIT)


def relative(path: str, workdir: str) -> str:
    """`path` as seen from the working directory, when it is below it."""
    if workdir and PurePosixPath(path).is_relative_to(workdir):
        return str(PurePosixPath(path).relative_to(workdir))
    return path


def created(path: str, content: str) -> str:
    """The unified diff of a new file."""
    return changed(path, None, content)


def changed(path: str, old: str | None, new: str) -> str:
    """The unified diff of a file that was `old` (None: not there) and is `new`."""
    if len(old or "") + len(new) > DIFF_SOURCE_LIMIT:
        return ""
    before = "/dev/null" if old is None else f"a/{path}"
    former, latter = (old or "").splitlines(keepends=True), new.splitlines(keepends=True)
    if former and len(former) + len(latter) > _DIFF_LINES:
        return ""
    return _unified(former, latter, before, f"b/{path}")


def patched(path: str, hunks: object) -> str:
    """A unified diff from hunks of the shape {oldStart, oldLines, newStart, newLines, lines}."""
    parts: list[str] = []
    for hunk in map(record, items(hunks)):
        old, new = _span(hunk, "old"), _span(hunk, "new")
        parts.append(f"@@ -{old} +{new} @@\n" + "".join(f"{text(line)}\n" for line in items(hunk.get("lines"))))
    return headed(path, "".join(parts))


def headed(path: str, diff: str) -> str:
    """A diff of one file with the head that git would give it, whatever stands there."""
    start = diff.find("@@ ")
    if start < 0:
        return ""
    old = "/dev/null" if diff.startswith("@@ -0,0 ", start) else f"a/{path}"
    return f"--- {old}\n+++ b/{path}\n{diff[start:]}"


def _span(hunk: Mapping[str, object], side: str) -> str:
    return f"{count(hunk.get(f'{side}Start'))},{count(hunk.get(f'{side}Lines'))}"


def _unified(old: list[str], new: list[str], old_name: str, new_name: str) -> str:
    lines: Iterable[str] = difflib.unified_diff(old, new, old_name, new_name)
    return "".join(line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines)


def code_of(status: int, message: str = "") -> str:
    """The error code for an HTTP status that a model's API gave, or for what a program says when it has none."""
    if (ours := _OURS.search(message[:4000])) and ours.group(1) in _DOORS:
        return ours.group(1)
    lower = message[:4000].lower()
    if status in (401, 403) or any(sign in lower for sign in _KEY_SIGNS):
        return KeyRefused.code
    if status == 429 or any(sign in lower for sign in _LIMIT_SIGNS):
        return RateLimited.code
    if status >= 500 or any(sign in lower for sign in _CUT_SIGNS):
        return UpstreamFailed.code
    return AgentFailed.code


def door_said(words: str) -> str:
    """What the door says for itself in a program's words; all of them when it says nothing."""
    found = _OURS.search(words[:4000])
    return found[0] if found else words


# What the door says for itself, as agents repeat it: the reason is known better than a status tells it.
_OURS = re.compile(r"Hiveyard: .*?\[([a-z_.]+)\]", re.DOTALL)
_DOORS = {error.code for error in (BudgetSpent, KeyMissing, KeyRefused, NotOnTape, RateLimited, UpstreamFailed)}
_KEY_SIGNS = (
    "not logged in",
    "invalid api key",
    "invalid x-api-key",
    "authentication_error",
    "incorrect api key",
    "missing environment variable",
)
_LIMIT_SIGNS = ("rate limit", "rate_limit", "usage limit", "hit your", "too many requests")
_CUT_SIGNS = (
    "overloaded",
    "connection error",
    "connection closed",
    "connection reset",
    "connection refused",
    "error sending request",
    "high demand",
    "network error",
    "socket connection was closed",
    "econnrefused",
    "econnreset",
    "unable to connect",
    "stream ended",
    "fetch failed",
    "internal server error",
    "bad gateway",
    "service unavailable",
    "timed out",
)


def status_in(words: str) -> int:
    """The HTTP status of a failure that a program tells in words; 0 when there is none."""
    found = _STATUS.search(words[:4000])
    return int(found[1]) if found else 0


_STATUS = re.compile(r"(?:status:? |\()([45]\d\d)\b", re.IGNORECASE)


def ending(program: str, exit_code: int | None, stderr: str) -> str:
    """How a program ended, for a person: its exit code in words, and the last line of what it complained."""
    last = one_line(stderr.strip().rpartition("\n")[2])
    if exit_code is None:
        how = "is gone and left no exit code"
    elif exit_code == 127:
        how = "could not be started in the guest"
    elif exit_code > 128 and exit_code - 128 in _SIGNALS:
        how = f"was ended by {_SIGNALS[exit_code - 128]}"
    else:
        how = f"ended with exit code {exit_code}"
    return f"{program} {how}" + (f": {last}" if last else "")


_SIGNALS = {1: "SIGHUP", 2: "SIGINT", 6: "SIGABRT", 9: "SIGKILL", 11: "SIGSEGV", 15: "SIGTERM"}


def checked_model(model: str) -> str:
    """A model's name that cannot be taken for an option. Raises BadInput."""
    if not _MODEL.match(model):
        raise BadInput(f"{model[:100]!r} is no name of a model")
    return model


def checked_conversation(conversation: str) -> str:
    """A conversation's id that cannot be taken for an option. Raises BadInput."""
    if not _CONVERSATION.match(conversation):
        raise BadInput(f"{conversation[:100]!r} is no id of a conversation")
    return conversation
