"""The feed of Claude Code in its terminal (see terminal.py): entries of its transcripts and of its hooks.

A transcript contains messages of the same format as the stream of `claude -p`, so ClaudeParser reads them. The
beginning and end of a turn are marked differently, and are detected here."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

import msgspec

from hiveyard.agents.claude.parser import ClaudeParser
from hiveyard.agents.shared.jsonl import JSON, Reader, events, ignore
from hiveyard.agents.shared.wording import ending
from hiveyard.core.errors import AgentFailed
from hiveyard.core.events import (
    AgentAsked,
    AgentEnded,
    AgentEvent,
    AgentOutput,
    AgentPrompted,
    AgentText,
    AgentUsage,
    clip,
)
from hiveyard.core.ports import Verdict
from hiveyard.core.usage import Usage
from hiveyard.kit.shape import count, items, record, text
from hiveyard.kit.text import one_line

_INTERRUPTED = "[Request interrupted by user"
_GUARD = "\u2800"  # see GUARD in terminal.py
# Texts that may begin a turn and are not prompts: a command of the program, a shell command, a task notification.
_TURN_STARTS = (
    (re.compile(r"<command-name>(.*?)</command-name>.*?<command-args>(.*?)</command-args>", re.DOTALL), r"\1 \2"),
    (re.compile(r"<bash-input>(.*?)</bash-input>", re.DOTALL), r"! \1"),
    (re.compile(r"<task-notification>.*?<summary>(.*?)</summary>.*", re.DOTALL), r"\1"),
)
_OUTPUT_PREFIXES = ("<local-command-", "<bash-stdout>", "<bash-stderr>")


class ClaudeFeedParser:
    """A parser for all turns of a conversation, and of conversations that the user starts after it."""

    def __init__(self) -> None:
        self._stream = ClaudeParser()
        self._conversation: str | None = None
        self._seen: set[str] = set()
        self._working = False
        self._asked = False
        self._unreported = ""
        self._last_text = ""
        self._usage: dict[str, Usage] = {}

    def feed(self, line: bytes) -> Sequence[AgentEvent]:
        return events(line, self._read)

    def verdict(self, exit_code: int | None, stderr: str) -> Verdict:
        if exit_code == 0:
            return Verdict(True, conversation=self._conversation)
        return Verdict(False, AgentFailed.code, ending("claude", exit_code, stderr), self._conversation)

    def _read(self, line: JSON) -> Iterator[AgentEvent] | None:
        if "seat" in line:
            return self._program_changed()
        if "idle" in line:
            return self._stopped()
        if "hook" in line:
            return self._hook(record(line, "hook"))
        entry = record(line, "said")
        reader = self._readers().get(text(entry.get("type")))
        if reader is None:
            return None
        # A forked conversation begins with the entries of the other one.
        if (name := text(entry.get("uuid"))) in self._seen:
            return iter(())
        self._seen |= {name} - {""}
        return iter(()) if entry.get("isSidechain") is True else reader(entry)

    def _readers(self) -> Mapping[str, Reader]:
        return {
            "user": self._user,
            "assistant": self._assistant,
            "system": self._system,
            "attachment": self._attachment,
            "queue-operation": ignore,
        }

    # --- the program ------------------------------------------------------------------------------------------------

    def _program_changed(self) -> Iterator[AgentEvent]:
        """End the current turn: the program started or ended."""
        if self._working:
            yield from self._turn_over(is_error=True, reason="gone", words="claude ended in the middle of the turn")

    def _stopped(self) -> Iterator[AgentEvent]:
        """End a turn for which the program did not report an end."""
        if self._working:
            yield from self._turn_over(is_error=True, reason="interrupted", words="")

    def _hook(self, hook: JSON) -> Iterator[AgentEvent] | None:
        kind = text(hook.get("hook_event_name"))
        if kind == "SessionStart":
            return self._started(hook)
        if kind == "PermissionRequest":
            return self._question_asked(_question(hook))
        return self._question_asked(text(hook.get("message"))) if kind == "Notification" else None

    def _started(self, hook: JSON) -> Iterator[AgentEvent]:
        previous, self._conversation = self._conversation, text(hook.get("session_id"))
        if hook.get("source") == "compact" and previous == self._conversation:
            return
        self._stream = ClaudeParser()
        init = {"cwd": hook.get("cwd"), "session_id": self._conversation, "model": hook.get("model")}
        yield from self._stream.feed(msgspec.json.encode({"type": "system", "subtype": "init", **init}))

    def _question_asked(self, message: str) -> Iterator[AgentEvent]:
        if not self._asked:  # several hooks report the same dialog
            self._asked = True
            yield AgentAsked(message=one_line(message) or "claude waits for an answer")

    # --- the conversation -------------------------------------------------------------------------------------------

    def _user(self, entry: JSON) -> Iterator[AgentEvent]:
        self._asked = False
        content = record(entry, "message").get("content")
        blocks = [record(block) for block in items(content)]
        if any(block.get("type") == "tool_result" for block in blocks):
            yield from self._parse(entry)
            return
        words = text(content) or "\n".join(text(block.get("text")) for block in blocks)
        if words.startswith(_INTERRUPTED):
            yield from self._stopped()
        elif record(entry, "origin").get("kind") == "human" and not words.startswith(("<command-", "<bash-")):
            yield self._prompted(words)
        elif entry.get("isMeta") is not True and not words.startswith(_OUTPUT_PREFIXES):
            self._unreported = _start_text(words)  # reported if an answer follows

    def _attachment(self, entry: JSON) -> Iterator[AgentEvent]:
        attachment = record(entry, "attachment")
        words = text(attachment.get("prompt")) or "\n".join(
            text(record(block).get("text")) for block in items(attachment.get("prompt"))
        )
        if record(attachment, "origin").get("kind") == "human" and words:
            yield self._prompted(words)

    def _prompted(self, words: str) -> AgentEvent:
        self._working, self._unreported, self._last_text = True, "", ""
        return AgentPrompted(text=clip(words.removeprefix(_GUARD)))

    def _assistant(self, entry: JSON) -> Iterator[AgentEvent]:
        message, failed = record(entry, "message"), entry.get("isApiErrorMessage") is True
        if message.get("model") == "<synthetic>" and not failed:
            return  # it fills a gap after an interrupted turn
        if not self._working:
            yield self._prompted(self._unreported or "(no prompt: claude continued by itself)")
        if not failed:
            self._usage[text(message.get("id"))] = _usage(record(message, "usage"))
        for event in self._parse(entry):
            self._last_text = event.text if isinstance(event, AgentText) else self._last_text
            yield event
        if failed:
            words = "\n".join(text(record(block).get("text")) for block in items(message.get("content")))
            yield from self._turn_over(is_error=True, reason=text(entry.get("error")) or "api_error", words=words)

    def _parse(self, entry: JSON) -> Sequence[AgentEvent]:
        line = {key: entry.get(key) for key in ("type", "message", "error")}
        return self._stream.feed(msgspec.json.encode({**line, "tool_use_result": entry.get("toolUseResult")}))

    def _system(self, entry: JSON) -> Iterator[AgentEvent] | None:
        kind = text(entry.get("subtype"))
        if kind == "stop_hook_summary":
            return (
                self._turn_over(is_error=False, reason="completed", words=self._last_text)
                if self._working
                else iter(())
            )
        if kind == "informational":
            return iter([AgentOutput(text=clip(text(entry.get("content"))))])
        return None

    def _turn_over(self, *, is_error: bool, reason: str, words: str) -> Iterator[AgentEvent]:
        usage = sum(self._usage.values(), Usage(cost_usd=None))
        self._working, self._asked, self._usage = False, False, {}
        if usage.requests:
            yield AgentUsage(usage=usage)
        yield AgentEnded(is_error=is_error, text=clip(words), reason=reason)


def _start_text(words: str) -> str:
    for pattern, replacement in _TURN_STARTS:
        if found := pattern.search(words):
            return found.expand(replacement).strip()
    return words.strip()


def _question(hook: JSON) -> str:
    tool, given = text(hook.get("tool_name")), record(hook, "tool_input")
    questions = [text(record(question).get("question")) for question in items(given.get("questions"))]
    if any(questions):
        return " ".join(questions)
    return f"may it use {tool}?" if tool != "ExitPlanMode" else "may it carry out its plan?"


def _usage(used: JSON) -> Usage:
    return Usage(
        input_tokens=count(used.get("input_tokens")),
        output_tokens=count(used.get("output_tokens")),
        cache_read_tokens=count(used.get("cache_read_input_tokens")),
        cache_write_tokens=count(used.get("cache_creation_input_tokens")),
        cost_usd=None,
        requests=1,
    )
