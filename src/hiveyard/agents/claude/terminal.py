"""Claude Code in its terminal. This file runs in the guest.

Its activity is read from its transcripts, and from hooks for events that no transcript contains (start, questions).
Prompts are sent with its editor key: at Ctrl-G it starts our editor, which puts the prompt into the input unchanged;
Enter submits it. A paste would be marked as pasted, and a typed `/` or `!` would start a command."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import time
import unicodedata
import uuid
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

from hiveyard.agents.shared.guest_terminal import (
    DELAY,
    Delivery,
    Feed,
    Refused,
    Tail,
    delivery,
    main,
    run,
    runtime,
    tmux,
    wait_until,
)

# A blank character that the program does not treat as white space. After it, a text is never a command.
GUARD = "\u2800"
SETTLED_POLLS = 8
"""Polls without news after which the transcripts are complete."""
_COMMAND = re.compile(r"\s*(?:/|(?:exit|quit|:wq?!?|:q!?)\s*\Z)", re.IGNORECASE)

_HOOKS = {
    "SessionStart": "",
    "PermissionRequest": "",
    "Notification": "permission_prompt|elicitation_dialog",
    # With a Stop hook, the transcript gets a summary of it at the end of each turn.
    "Stop": "",
}
_ENTRY_TYPES = ("user", "assistant", "system", "queue-operation", "unreadable")
_IGNORED_SUBTYPES = ("turn_duration", "local_command", "compact_boundary", "away_summary")

# $1 is the file to edit. Only the input, after a key press of ours, is filled by this script. Each press leaves a file
# press.N, because a slow program may handle the second press when the prompt was taken at the first.
_EDITOR = r"""#!/bin/sh
cd {runtime} || exit 1
case $1 in */claude-prompt-*)
  ours=
  for press in press.*; do rm "$press" 2>/dev/null && ours=1 && break; done
  if mv prompt taking 2>/dev/null; then
    cp -- "$1" draft && cat taking >"$1" && mv taking taken
    exit
  fi
  [ "$ours" ] && exit ;;
esac
for editor in "$HIVEYARD_EDITOR" editor nano vim vi; do
  [ "$editor" ] && command -v "${{editor%% *}}" >/dev/null && cd "$OLDPWD" && exec $editor "$@"
done
echo "no editor is installed in this machine" >&2
exit 1
"""


# --- the program -----------------------------------------------------------------------------------------------------


def run_terminal(settings: dict[str, Any]) -> int:
    config, place, feed = Path(settings["config"]), runtime(settings["state"]), Feed(settings["feed"])
    for name in ("prompt", "taking", "taken", "draft", "last", "told", "telling", "hooks"):
        (place / name).unlink(missing_ok=True)
    feed.prepare()
    _answer_setup(config, settings["workdir"])
    editor = place / "edit"
    editor.write_text(_EDITOR.format(runtime=shlex.quote(str(place))))
    editor.chmod(0o700)
    (place / "settings.json").write_text(json.dumps(_settings(place, settings["settings"])))
    collector = _Collector(config, place / "hooks", feed, settings)
    argv = [*settings["argv"], "--settings", str(place / "settings.json"), *_conversation_options(config, settings)]
    own = os.environ.get("VISUAL") or os.environ.get("EDITOR") or ""
    env = {"EDITOR": str(editor), "VISUAL": str(editor), "HIVEYARD_EDITOR": own}
    try:
        return run(argv, env, feed, collector.collect)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _conversation_options(config: Path, settings: dict[str, Any]) -> list[str]:
    """Continue the conversation if it exists.

    Its id is set before it begins, and the program stores it with its first prompt."""
    memory = config / "hiveyard-conversation"
    name = settings["conversation"] or (memory.read_text() if memory.exists() else str(uuid.uuid4()))
    memory.write_text(name)
    known = any(config.glob(f"projects/*/{name}.jsonl"))
    return ["--resume" if known else "--session-id", name]


def _answer_setup(config: Path, workdir: str) -> None:
    """Answer the program's setup questions in advance: theme, key, trust in the directory."""
    config.mkdir(parents=True, exist_ok=True)
    file = config / ".claude.json"
    try:
        stored = json.loads(file.read_text())
    except (OSError, ValueError):
        stored = {}
    known = stored if isinstance(stored, dict) else {}
    key = os.environ.get("ANTHROPIC_API_KEY", "")[-20:]
    known.setdefault("theme", "dark")
    known["hasCompletedOnboarding"] = True
    known["customApiKeyResponses"] = {"approved": [key], "rejected": []}
    project = known.setdefault("projects", {}).setdefault(workdir, {})
    project |= {"hasTrustDialogAccepted": True, "hasCompletedProjectOnboarding": True}
    fresh = file.with_suffix(".new")
    fresh.write_text(json.dumps(known))
    fresh.replace(file)


def _settings(place: Path, given: dict[str, Any]) -> dict[str, Any]:
    own = _hook_settings(place)
    return {**own, **given, "hooks": {**own["hooks"], **given.get("hooks", {})}}


def _hook_settings(place: Path) -> dict[str, Any]:
    append = f"flock {shlex.quote(str(place / 'lock'))} sh -c 'cat; echo' >>{shlex.quote(str(place / 'hooks'))}"
    hooks = {
        event: [{"matcher": matcher, "hooks": [{"type": "command", "command": "true" if event == "Stop" else append}]}]
        for event, matcher in _HOOKS.items()
    }
    # Its animations take a fifth of a CPU while it waits for its model.
    return {"hooks": hooks, "skipDangerousModePermissionPrompt": True, "prefersReducedMotion": True}


class _Collector:
    """Copies the program's records into the feed, in order."""

    def __init__(self, config: Path, hooks: Path, feed: Feed, settings: dict[str, Any]) -> None:
        self._feed = feed
        self._hooks = Tail(hooks)
        # Earlier entries (of turns without a terminal) are skipped.
        self._offsets = {
            path.name: path.stat().st_size for path in config.glob("projects/*/*.jsonl")
        } | feed.positions()
        self._transcripts: dict[str, Tail] = {}
        self._settings = settings
        self._pending_hooks: list[dict[str, Any]] = []
        self._working = False
        self._quiet_polls = self._idle_polls = 0

    def collect(self) -> None:
        for hook in self._hooks.lines():
            if hook.get("hook_event_name") == "SessionStart":
                path = Path(str(hook.get("transcript_path")))
                self._transcripts.setdefault(path.name, Tail(path, self._offsets.get(path.name, 0)))
                self._feed.add({"hook": hook})
            else:
                self._pending_hooks.append(hook)
                self._quiet_polls = 0
        for name, transcript in self._transcripts.items():
            for entry in transcript.lines():
                if _is_shown(entry):
                    self._feed.add({"at": [name, transcript.offset], "said": _without_original(entry)})
                    self._working, self._quiet_polls = entry.get("subtype") != "stop_hook_summary", 0
        self._quiet_polls += 1
        # The entries before a question are written shortly after its hook runs.
        if self._quiet_polls > SETTLED_POLLS and self._pending_hooks:
            self._feed.add({"hook": self._pending_hooks.pop(0)})
        self._notice_idleness()

    def _notice_idleness(self) -> None:
        """Report an end of a turn that no transcript contains: Escape before the first word withdraws the prompt."""
        self._idle_polls = self._idle_polls + 1 if self._working and _status(self._settings) == "idle" else 0
        if min(self._idle_polls, self._quiet_polls) > 2 * SETTLED_POLLS:
            self._working = False
            self._feed.add({"idle": True})


def _is_shown(entry: dict[str, Any]) -> bool:
    if entry.get("type") == "attachment":  # a prompt that was added to the current turn
        attachment = entry.get("attachment")
        return isinstance(attachment, dict) and attachment.get("type") == "queued_command"
    return entry.get("type") in _ENTRY_TYPES and entry.get("subtype") not in _IGNORED_SUBTYPES


def _without_original(entry: dict[str, Any]) -> dict[str, Any]:
    """Remove the original file from the result of an edit."""
    result = entry.get("toolUseResult")
    if isinstance(result, dict) and "originalFile" in result:
        return {**entry, "toolUseResult": {key: value for key, value in result.items() if key != "originalFile"}}
    return entry


# --- prompts and interrupts ------------------------------------------------------------------------------------------


def send_prompt(settings: dict[str, Any]) -> int:
    text = Path(settings["prompt"]).read_text(encoding="utf-8", errors="replace")
    if not _normalized(text):
        raise Refused("the prompt is empty")
    place = runtime(settings["state"])
    # A starting program repairs its feed and removes the records of deliveries.
    wait_until(lambda: _status(settings) != "", settings["patience"])
    with delivery(place, Feed(settings["feed"]), settings["prompt"], text) as attempt:
        if attempt:
            _deliver(place, settings, text, attempt)
    return 0


def _deliver(place: Path, settings: dict[str, Any], text: str, attempt: Delivery) -> None:
    draft_file, last_file = place / "draft", place / "last"
    if not attempt.retried:
        draft_file.unlink(missing_ok=True)
    user_draft = _read(draft_file)
    if attempt.retried and wait_until(lambda: _was_accepted(text, attempt.feed_tail), DELAY):
        draft = user_draft
    else:
        draft = _fill_input(place, settings, _safe(text))
        if attempt.retried and _normalized(draft) == _normalized(text):
            draft = user_draft  # our own text of the first attempt; the user's draft was saved then
        _press_enter(settings, text, attempt.feed_tail)
    # Restore the user's draft. A prompt that was interrupted at once returns to the input, too; it is dropped.
    if draft.strip() and not (last_file.exists() and _normalized(draft) == _normalized(_read(last_file))):
        _fill_input(place, settings, draft)
    last_file.write_text(text, encoding="utf-8")


def _read(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""


def _safe(text: str) -> str:
    """Return the prompt so that all of it is one prompt: not a command, no backslash before Enter (a newline)."""
    return (GUARD if _COMMAND.match(text) else "") + text + (" " if text.endswith("\\") else "")


def _fill_input(place: Path, settings: dict[str, Any], text: str) -> str:
    """Set the program's input to `text`. Return the user's draft that was there."""
    accepted = place / "taken"
    accepted.unlink(missing_ok=True)
    for press in place.glob("press.*"):
        press.unlink()
    fresh = place / "prompt.new"
    fresh.write_text(text, encoding="utf-8")
    fresh.replace(place / "prompt")
    end = time.monotonic() + settings["patience"]
    try:
        for number in count():
            if accepted.exists():
                break
            if time.monotonic() > end or _status(settings) not in ("idle", "busy"):
                raise Refused(_refusal(settings))
            if (place / "prompt").exists():
                (place / f"press.{number}").touch()
                _press_key("C-g")
            wait_until(accepted.exists, 3.0)
    finally:
        (place / "prompt").unlink(missing_ok=True)
    return (place / "draft").read_text(encoding="utf-8", errors="replace")


def _press_enter(settings: dict[str, Any], text: str, feed_tail: Tail) -> None:
    """Press Enter until the prompt is in the feed: the program may be redrawing, or need a second press."""
    end = time.monotonic() + settings["patience"]
    while time.monotonic() < end:
        if _status(settings) == "waiting":
            raise Refused(_refusal(settings))
        _press_key("Enter")
        if wait_until(lambda: _was_accepted(text, feed_tail), 3.0):
            return
    raise Refused("claude has the prompt in its input, but does not accept it")


def _was_accepted(text: str, feed_tail: Tail) -> bool:
    expected = _normalized(text)
    return any(_normalized(accepted) == expected for accepted in _accepted_prompts(feed_tail))


def _accepted_prompts(feed_tail: Tail) -> Iterator[str]:
    """Yield prompts that started a turn or were queued for one."""
    for line in feed_tail.lines():
        entry = line.get("said", {})
        content = entry.get("message", {}).get("content")
        if entry.get("type") == "user" and isinstance(content, str):
            yield content
        elif entry.get("type") == "user" and isinstance(content, list):
            yield "\n".join(str(block.get("text", "")) for block in content if isinstance(block, dict))
        elif entry.get("operation") == "enqueue":
            yield str(entry.get("content"))


def _normalized(text: str) -> str:
    """Return a text as the program keeps it: without invisible characters and white space."""
    return "".join(char for char in text if unicodedata.category(char)[0] not in "CZ" and char != GUARD)


def interrupt(settings: dict[str, Any]) -> int:
    if _session(settings) is None:
        return 0
    for _ in range(10):
        if _status(settings) not in ("busy", "waiting"):
            return 0
        _press_key("Escape")
        if wait_until(lambda: _status(settings) not in ("busy", "waiting"), 2.0):
            return 0
    raise Refused("claude continues although Escape was pressed")


def _press_key(key: str) -> None:
    target = "agent:"
    tmux("copy-mode", "-q", "-t", target)  # leave tmux's scroll mode, so that keys reach the program
    if not tmux("send-keys", "-t", target, key):
        raise Refused("no terminal called `agent` runs in this machine")


def _status(settings: dict[str, Any]) -> str:
    """Return the program's own status: idle, busy or waiting; "" while it is starting or not running."""
    session = _session(settings)
    return str(session.get("status", "")) if session else ""


def _session(settings: dict[str, Any]) -> dict[str, Any] | None:
    for file in Path(settings["config"]).glob("sessions/*.json"):
        try:
            entry = json.loads(file.read_text())
            alive = Path(f"/proc/{int(entry['pid'])}/stat").read_text().rpartition(")")[2].split()[19]
        except (OSError, ValueError, KeyError, TypeError, IndexError):
            continue
        if entry.get("kind") == "interactive" and entry.get("procStart", alive) == alive:
            return dict(entry)
    return None


def _refusal(settings: dict[str, Any]) -> str:
    status = _status(settings)
    if status == "waiting":
        return "claude is waiting for the user's answer at its terminal"
    if not tmux("has-session", "-t", "=agent"):
        return "no terminal called `agent` runs in this machine"
    return "claude does not show its input" if status else "claude has not started"


if __name__ == "__main__":
    main({"run": run_terminal, "send": send_prompt, "interrupt": interrupt})
