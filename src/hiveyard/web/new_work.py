"""The form for new work: what a person fills in, as the request that the command line would make."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hiveyard.core import units
from hiveyard.core.errors import BadInput
from hiveyard.engine.sessions.request import SpawnRequest, spawn_from_json
from hiveyard.engine.tasks.request import TaskRequest, from_json

_TEXTS = ("repo", "agent", "model", "provider", "image", "branch", "base", "account")
_OF_SESSIONS = ("live", "ask", "wait")


def request_of(form: Mapping[str, str]) -> TaskRequest | SpawnRequest:
    """Return the request for a task or a session. Raises BadInput."""
    asked: dict[str, Any] = {key: value for key in _TEXTS if (value := form.get(key, "").strip())}
    if "repo" not in asked:
        raise BadInput("the repository is missing", hint="a path on this host, a URL, or owner/repo")
    for key in ("include_dirty", "repository_config"):
        if form.get(key):
            asked[key] = True
    if form.get("network") == "open":
        asked["network"] = "open"
    if budget := form.get("budget", "").strip():
        asked["budget_usd"] = _number(budget.removeprefix("$"), "the budget")
    if memory := form.get("memory", "").strip():
        asked["memory_mib"] = int(units.mebibytes(memory))
    prompt = form.get("prompt", "").replace("\r\n", "\n")
    if form.get("kind") == "session":
        return _session(form, asked, prompt)
    if command := form.get("command", "").strip():
        asked |= {"command": command, "agent": "command"}
    if timeout := form.get("timeout", "").strip():
        asked["timeout"] = units.seconds(timeout)
    if not prompt.strip() and command and "{{prompt" not in command:
        prompt = command
    return from_json({**asked, "prompt": prompt})


def _session(form: Mapping[str, str], asked: dict[str, Any], prompt: str) -> SpawnRequest:
    asked |= {key: True for key in _OF_SESSIONS if form.get(key)}
    if name := form.get("name", "").strip():
        asked["name"] = name
    if form.get("snapshots"):
        asked["snapshots"] = "turns"
    if prompt.strip():
        asked["prompt"] = prompt
    return spawn_from_json(asked)


def _number(text: str, what: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise BadInput(f"{what} is {text[:40]!r}, and not a number of dollars") from None
