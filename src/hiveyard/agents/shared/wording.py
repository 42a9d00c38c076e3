"""Convert texts of agent programs: one-line summaries, diffs, error codes."""

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
"""The beginning of goose's message about a failed turn."""
DIFF_SOURCE_LIMIT = 1 << 20
"""The largest file, in characters, for which a diff is computed. The branch's patch shows larger changes too."""
_DIFF_LINES = 10_000
"""The largest file in lines, if it existed before: the time grows with their square."""

# The most informative argument of a call, for the tools of all programs. The first one that exists is used.
_KEY_ARGUMENTS = (
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
    """Return a readable line about a call: `Bash: pytest -q`, `Edit: src/a.py`."""
    detail = next((text(arguments.get(key)) for key in _KEY_ARGUMENTS if text(arguments.get(key))), "")
    if patch := text(arguments.get("patchText")):
        detail = ", ".join(_PATCHED.findall(patch[:DIFF_SOURCE_LIMIT])[:20])
    if detail.startswith("/"):
        detail = relative(detail, workdir)
    name = one_line(tool, 60) or "a tool"
    return one_line(f"{name}: {detail[:1000]}" if detail else name, SUMMARY_LIMIT)


def relative(path: str, workdir: str) -> str:
    """Return `path` relative to the working directory, if it is below it."""
    if workdir and PurePosixPath(path).is_relative_to(workdir):
        return str(PurePosixPath(path).relative_to(workdir))
    return path


def created(path: str, content: str) -> str:
    """Return the unified diff of a new file."""
    return changed(path, None, content)


def changed(path: str, old: str | None, new: str) -> str:
    """Return the unified diff of a file with the content `old` (None: it did not exist) and `new`."""
    if len(old or "") + len(new) > DIFF_SOURCE_LIMIT:
        return ""
    before = "/dev/null" if old is None else f"a/{path}"
    former, latter = (old or "").splitlines(keepends=True), new.splitlines(keepends=True)
    if former and len(former) + len(latter) > _DIFF_LINES:
        return ""
    return _unified(former, latter, before, f"b/{path}")


def patched(path: str, hunks: object) -> str:
    """Return a unified diff from hunks of the form {oldStart, oldLines, newStart, newLines, lines}."""
    parts: list[str] = []
    for hunk in map(record, items(hunks)):
        old, new = _span(hunk, "old"), _span(hunk, "new")
        parts.append(f"@@ -{old} +{new} @@\n" + "".join(f"{text(line)}\n" for line in items(hunk.get("lines"))))
    return with_header(path, "".join(parts))


def with_header(path: str, diff: str) -> str:
    """Return a diff of one file with git's header, in place of any other."""
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
    """Return the error code for an HTTP status of a model's API, or for a program's message if there is no status."""
    if (found := _DOOR_ERROR.search(message[:4000])) and found.group(1) in _DOOR_CODES:
        return found.group(1)
    lower = message[:4000].lower()
    if status in (401, 403) or any(sign in lower for sign in _KEY_SIGNS):
        return KeyRefused.code
    if status == 429 or any(sign in lower for sign in _LIMIT_SIGNS):
        return RateLimited.code
    if status >= 500 or any(sign in lower for sign in _CUT_SIGNS):
        return UpstreamFailed.code
    return AgentFailed.code


def door_message(words: str) -> str:
    """Return the door's own message in a program's text, or the whole text if there is none."""
    found = _DOOR_ERROR.search(words[:4000])
    return found[0] if found else words


# The door's own message, as agents repeat it. It is more exact than a status.
_DOOR_ERROR = re.compile(r"Hiveyard: .*?\[([a-z_.]+)\]", re.DOTALL)
_DOOR_CODES = {error.code for error in (BudgetSpent, KeyMissing, KeyRefused, NotOnTape, RateLimited, UpstreamFailed)}
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
    """Return the HTTP status in a program's error text, or 0."""
    found = _STATUS.search(words[:4000])
    return int(found[1]) if found else 0


_STATUS = re.compile(r"(?:status:? |\()([45]\d\d)\b", re.IGNORECASE)


def ending(program: str, exit_code: int | None, stderr: str) -> str:
    """Describe the end of a program for a user: its exit code in words, and the last line of stderr."""
    last = one_line(stderr.strip().rpartition("\n")[2])
    if exit_code is None:
        what = "ended without an exit code"
    elif exit_code == 127:
        what = "could not be started in the guest"
    elif exit_code > 128 and exit_code - 128 in _SIGNALS:
        what = f"was killed by {_SIGNALS[exit_code - 128]}"
    else:
        what = f"ended with exit code {exit_code}"
    return f"{program} {what}" + (f": {last}" if last else "")


_SIGNALS = {1: "SIGHUP", 2: "SIGINT", 6: "SIGABRT", 9: "SIGKILL", 11: "SIGSEGV", 15: "SIGTERM"}


def checked_model(model: str) -> str:
    """Return a model's name that cannot be mistaken for an option. Raises BadInput."""
    if not _MODEL.match(model):
        raise BadInput(f"{model[:100]!r} is not a valid model name")
    return model


def checked_conversation(conversation: str) -> str:
    """Return a conversation's id that cannot be mistaken for an option. Raises BadInput."""
    if not _CONVERSATION.match(conversation):
        raise BadInput(f"{conversation[:100]!r} is not a valid id of a conversation")
    return conversation
