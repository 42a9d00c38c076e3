"""Normalize texts, so that the same request has the same text at another time and on another host."""

from __future__ import annotations

import re

LONGEST = 256 << 10
_BLOCKS = ("system-reminder", "environment_context", "environment_details", "env", "user_instructions", "INSTRUCTIONS")
_CHANGING = (
    (re.compile(r"\b[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}\b"), "<id>"),
    (
        re.compile(r"\b\d{4}-\d{2}-\d{2}(?:[T ]\d{2}:\d{2}(?::\d{2}(?:[.,]\d{1,9})?)?(?:Z|[+-]\d{2}:?\d{2})?)?"),
        "<time>",
    ),
    (re.compile(r"\b\d{1,2}:\d{2}(?::\d{2}(?:[.,]\d{1,9})?)?\b"), "<time>"),
    (re.compile(r"\b(?:ses|msg|prt|call|toolu|req|resp|chatcmpl)[_-][A-Za-z0-9]{6,64}\b"), "<id>"),
    (re.compile(r"\b(?=[0-9a-f]{0,63}\d)[0-9a-f]{12,64}\b"), "<id>"),
    (re.compile(r"(?:/private)?(?:/var)?/tmp/[^\s'\"`<>|:,;)]{1,512}"), "<path>"),
    (re.compile(r"\b\d+(?:\.\d+)?\s?(?:ms|s|sec|seconds)\b"), "<duration>"),
    (re.compile(r"\b\d{10,19}\b"), "<number>"),
)


def normalized(text: str) -> str:
    """Return `text` without what changes from run to run: reminder blocks, dates, times, ids, temporary paths.

    White space becomes one space. Of a very long text only the two ends count.
    """
    if len(text) > LONGEST:
        text = f"{text[: LONGEST // 2]} … {len(text)} … {text[-LONGEST // 2 :]}"
    text = _without_blocks(text)
    for pattern, sign in _CHANGING:
        text = pattern.sub(sign, text)
    return " ".join(text.split())


def empty(text: str) -> bool:
    """Whether a text is empty once it is normalized; faster than normalizing it."""
    if len(text) > LONGEST:
        return False
    bare = text.lstrip()
    return not bare or (bare.startswith("<") and not _without_blocks(bare).strip())


def _without_blocks(text: str) -> str:
    for name in _BLOCKS:
        text = _without(text, f"<{name}>", f"</{name}>")
    return text


def _without(text: str, opening: str, closing: str) -> str:
    """Return `text` without the blocks between two marks, in linear time for any input."""
    if opening not in text:
        return text
    kept, at = [], 0
    while (start := text.find(opening, at)) >= 0 and (end := text.find(closing, start)) >= 0:
        kept.append(text[at:start])
        at = end + len(closing)
    return "".join((*kept, text[at:]))
