"""Claude Code at its terminal.

It is heard by what it writes for itself: its transcripts, and hooks for what stands in none (that it has started, that
it asks). It is told by its own editor key: Ctrl-G has an editor of ours put the prompt into its input as it stands,
where a paste would be marked as pasted and a typed `/` or `!` be taken for a command; Enter sends it.
"""

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
    LATE,
    Feed,
    Refused,
    Tail,
    Telling,
    main,
    once,
    run,
    runtime,
    tmux,
    until,
)

# A blank that is no white space for the program: before it, what looks like a command is a prompt.
GUARD = "\u2800"
SETTLED = 8
"""Looks without anything new after which all that has happened is written down."""
_COMMAND = re.compile(r"\s*(?:/|(?:exit|quit|:wq?!?|:q!?)\s*\Z)", re.IGNORECASE)

_HOOKS = {
    "SessionStart": "",
    "PermissionRequest": "",
    "Notification": "permission_prompt|elicitation_dialog",
    # Its summary in the transcript ends a turn, behind all that was said in it: so there must be a hook.
    "Stop": "",
}
_TYPES = ("user", "assistant", "system", "queue-operation", "unreadable")
_SILENT = ("turn_duration", "local_command", "compact_boundary", "away_summary")

# $1 is the file that Claude Code wants to have edited; ours is only that of its input, and only where we pressed it.
# Each press leaves a file, since a slow program gets to the second when the prompt was taken at the first.
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


def sit(settings: dict[str, Any]) -> int:
    config, place, feed = Path(settings["config"]), runtime(settings["state"]), Feed(settings["feed"])
    for name in ("prompt", "taking", "taken", "draft", "last", "told", "telling", "hooks"):
        (place / name).unlink(missing_ok=True)
    feed.begin()
    _welcome(config, settings["workdir"])
    editor = place / "edit"
    editor.write_text(_EDITOR.format(runtime=shlex.quote(str(place))))
    editor.chmod(0o700)
    (place / "settings.json").write_text(json.dumps({**_settings(place), **settings["settings"]}))
    ears = _Ears(config, place / "hooks", feed, settings)
    argv = [*settings["argv"], "--settings", str(place / "settings.json"), *_conversation(config, settings)]
    own = os.environ.get("VISUAL") or os.environ.get("EDITOR") or ""
    env = {"EDITOR": str(editor), "VISUAL": str(editor), "HIVEYARD_EDITOR": own}
    try:
        return run(argv, env, feed, ears.listen)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _conversation(config: Path, settings: dict[str, Any]) -> list[str]:
    """Go on with the conversation when there is one: its name is known before it begins, and the program writes it down
    with its first prompt."""
    memory = config / "hiveyard-conversation"
    name = settings["conversation"] or (memory.read_text() if memory.exists() else str(uuid.uuid4()))
    memory.write_text(name)
    known = any(config.glob(f"projects/*/{name}.jsonl"))
    return ["--resume" if known else "--session-id", name]


def _welcome(config: Path, workdir: str) -> None:
    """Answer beforehand what the program asks in a new place: its looks, this key, this directory."""
    config.mkdir(parents=True, exist_ok=True)
    file = config / ".claude.json"
    try:
        said = json.loads(file.read_text())
    except (OSError, ValueError):
        said = {}
    known = said if isinstance(said, dict) else {}
    key = os.environ.get("ANTHROPIC_API_KEY", "")[-20:]
    known.setdefault("theme", "dark")
    known["hasCompletedOnboarding"] = True
    known["customApiKeyResponses"] = {"approved": [key], "rejected": []}
    project = known.setdefault("projects", {}).setdefault(workdir, {})
    project |= {"hasTrustDialogAccepted": True, "hasCompletedProjectOnboarding": True}
    fresh = file.with_suffix(".new")
    fresh.write_text(json.dumps(known))
    fresh.replace(file)


def _settings(place: Path) -> dict[str, Any]:
    heard = f"flock {shlex.quote(str(place / 'lock'))} sh -c 'cat; echo' >>{shlex.quote(str(place / 'hooks'))}"
    hooks = {
        event: [{"matcher": matcher, "hooks": [{"type": "command", "command": "true" if event == "Stop" else heard}]}]
        for event, matcher in _HOOKS.items()
    }
    # Its moving signs cost a fifth of a processor for as long as it waits for its model.
    return {"hooks": hooks, "skipDangerousModePermissionPrompt": True, "prefersReducedMotion": True}


class _Ears:
    """What it writes down, brought into the feed in its order."""

    def __init__(self, config: Path, hooks: Path, feed: Feed, settings: dict[str, Any]) -> None:
        self._feed = feed
        self._hooks = Tail(hooks)
        # What was said before anybody listened (a turn without a terminal) stays unheard.
        self._begin = {path.name: path.stat().st_size for path in config.glob("projects/*/*.jsonl")} | feed.places()
        self._transcripts: dict[str, Tail] = {}
        self._settings = settings
        self._questions: list[dict[str, Any]] = []
        self._working = False
        self._still = self._idle = 0

    def listen(self) -> None:
        for hook in self._hooks.lines():
            if hook.get("hook_event_name") == "SessionStart":
                path = Path(str(hook.get("transcript_path")))
                self._transcripts.setdefault(path.name, Tail(path, self._begin.get(path.name, 0)))
                self._feed.add({"hook": hook})
            else:
                self._questions.append(hook)
                self._still = 0
        for name, transcript in self._transcripts.items():
            for said in transcript.lines():
                if _telling(said):
                    self._feed.add({"at": [name, transcript.offset], "said": _slim(said)})
                    self._working, self._still = said.get("subtype") != "stop_hook_summary", 0
        self._still += 1
        # What led to a question is written down a moment after it is asked.
        if self._still > SETTLED and self._questions:
            self._feed.add({"hook": self._questions.pop(0)})
        self._notice_idleness()

    def _notice_idleness(self) -> None:
        """Some ends of a turn stand in no transcript: Escape before the first word takes the prompt back."""
        self._idle = self._idle + 1 if self._working and _status(self._settings) == "idle" else 0
        if min(self._idle, self._still) > 2 * SETTLED:
            self._working = False
            self._feed.add({"idle": True})


def _telling(said: dict[str, Any]) -> bool:
    if said.get("type") == "attachment":  # a prompt that was taken into a turn at work
        attachment = said.get("attachment")
        return isinstance(attachment, dict) and attachment.get("type") == "queued_command"
    return said.get("type") in _TYPES and said.get("subtype") not in _SILENT


def _slim(said: dict[str, Any]) -> dict[str, Any]:
    """Without the whole file that an edit began with."""
    result = said.get("toolUseResult")
    if isinstance(result, dict) and "originalFile" in result:
        return {**said, "toolUseResult": {key: value for key, value in result.items() if key != "originalFile"}}
    return said


# --- what it is told -------------------------------------------------------------------------------------------------


def say(settings: dict[str, Any]) -> int:
    text = Path(settings["prompt"]).read_text(encoding="utf-8", errors="replace")
    if not _essence(text):
        raise Refused("the prompt is empty")
    place = runtime(settings["state"])
    # A program that begins cuts what is torn off its feed, and forgets what was told.
    until(lambda: _status(settings) != "", settings["patience"])
    with once(place, Feed(settings["feed"]), settings["prompt"], text) as telling:
        if telling:
            _tell(place, settings, text, telling)
    return 0


def _tell(place: Path, settings: dict[str, Any], text: str, telling: Telling) -> None:
    kept, last = place / "draft", place / "last"
    if not telling.again:
        kept.unlink(missing_ok=True)
    former = _read(kept)
    if telling.again and until(lambda: _taken(text, telling.heard), LATE):
        draft = former
    else:
        draft = _put(place, settings, _safe(text))
        if telling.again and _essence(draft) == _essence(text):
            draft = former  # it is our own, put there and not sent; what a person had begun stood there before
        _send(settings, text, telling.heard)
    # What a person had begun to write; a prompt that was interrupted at once stands there too.
    if draft.strip() and not (last.exists() and _essence(draft) == _essence(_read(last))):
        _put(place, settings, draft)
    last.write_text(text, encoding="utf-8")


def _read(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""


def _safe(text: str) -> str:
    """The prompt so that all of it is one: no command, and no backslash before the Enter, which would be a newline."""
    return (GUARD if _COMMAND.match(text) else "") + text + (" " if text.endswith("\\") else "")


def _put(place: Path, settings: dict[str, Any], text: str) -> str:
    """Have the program's input hold `text`. Returns what a person had typed there."""
    taken = place / "taken"
    taken.unlink(missing_ok=True)
    for press in place.glob("press.*"):
        press.unlink()
    waiting = place / "prompt.new"
    waiting.write_text(text, encoding="utf-8")
    waiting.replace(place / "prompt")
    end = time.monotonic() + settings["patience"]
    try:
        for number in count():
            if taken.exists():
                break
            if time.monotonic() > end or _status(settings) not in ("idle", "busy"):
                raise Refused(_why_not(settings))
            if (place / "prompt").exists():
                (place / f"press.{number}").touch()
                _press("C-g")
            until(taken.exists, 3.0)
    finally:
        (place / "prompt").unlink(missing_ok=True)
    return (place / "draft").read_text(encoding="utf-8", errors="replace")


def _send(settings: dict[str, Any], text: str, heard: Tail) -> None:
    """Press Enter until the prompt stands in the feed: the program may still redraw, or want to be asked twice."""
    end = time.monotonic() + settings["patience"]
    while time.monotonic() < end:
        if _status(settings) == "waiting":
            raise Refused(_why_not(settings))
        _press("Enter")
        if until(lambda: _taken(text, heard), 3.0):
            return
    raise Refused("claude has the prompt in its input, but does not take it")


def _taken(text: str, heard: Tail) -> bool:
    wanted = _essence(text)
    return any(_essence(taken) == wanted for taken in _prompts(heard))


def _prompts(heard: Tail) -> Iterator[str]:
    """What was taken as a prompt, or to be one after the turn at work."""
    for line in heard.lines():
        said = line.get("said", {})
        content = said.get("message", {}).get("content")
        if said.get("type") == "user" and isinstance(content, str):
            yield content
        elif said.get("type") == "user" and isinstance(content, list):
            yield "\n".join(str(block.get("text", "")) for block in content if isinstance(block, dict))
        elif said.get("operation") == "enqueue":
            yield str(said.get("content"))


def _essence(text: str) -> str:
    """What the program leaves of a text: it drops white space at the ends and characters that nobody sees."""
    return "".join(char for char in text if unicodedata.category(char)[0] not in "CZ" and char != GUARD)


def interrupt(settings: dict[str, Any]) -> int:
    if _session(settings) is None:
        return 0
    for _ in range(10):
        if _status(settings) not in ("busy", "waiting"):
            return 0
        _press("Escape")
        if until(lambda: _status(settings) not in ("busy", "waiting"), 2.0):
            return 0
    raise Refused("claude goes on whatever is pressed")


def _press(key: str) -> None:
    target = "agent:"
    tmux("copy-mode", "-q", "-t", target)  # somebody scrolled: the keys are the program's
    if not tmux("send-keys", "-t", target, key):
        raise Refused("no terminal called `agent` runs in this machine")


def _status(settings: dict[str, Any]) -> str:
    """What the program says of itself: idle, busy or waiting; nothing when it does not run or still starts."""
    session = _session(settings)
    return str(session.get("status", "")) if session else ""


def _session(settings: dict[str, Any]) -> dict[str, Any] | None:
    for file in Path(settings["config"]).glob("sessions/*.json"):
        try:
            said = json.loads(file.read_text())
            alive = Path(f"/proc/{int(said['pid'])}/stat").read_text().rpartition(")")[2].split()[19]
        except (OSError, ValueError, KeyError, TypeError, IndexError):
            continue
        if said.get("kind") == "interactive" and said.get("procStart", alive) == alive:
            return dict(said)
    return None


def _why_not(settings: dict[str, Any]) -> str:
    status = _status(settings)
    if status == "waiting":
        return "claude waits for an answer of a person at its terminal"
    if not tmux("has-session", "-t", "=agent"):
        return "no terminal called `agent` runs in this machine"
    return "claude shows something else than its input" if status else "claude has not started"


if __name__ == "__main__":
    main({"sit": sit, "say": say, "interrupt": interrupt})
