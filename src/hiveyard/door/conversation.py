"""Read a conversation from a request in any of three protocols: its steps, and the position in it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

from hiveyard.door.normalize import LONGEST, empty, normalized
from hiveyard.kit.shape import items, record, text

_RESULTS = 1 << 20  # characters of results that are normalized; the rest counts as it is
_DATA_KEYS = frozenset({"data", "image_url", "file_data", "url", "encrypted_content", "signature"})
_IMAGE = 1500  # tokens of an image, about
_DOCUMENT = 10  # bytes of a document per token, about
TOKEN = 4  # characters per token, about, in English and in code


class Step(NamedTuple):
    """One message of a conversation, or the results of one tool."""

    who: Literal["user", "model", "tool"]
    text: str


class Place(NamedTuple):
    """The position of a request in its conversation. It is the same for the same request of another run.

    `text` is the user's last message, normalized. `turn` counts the user's messages up to it, and `round` the model's
    answers after it. `results` is a digest of the tools' results since the last answer.
    """

    turn: int
    round: int
    text: str
    results: str


def steps(protocol: str, request: object) -> list[Step]:
    """Return the steps of a request's conversation, oldest first."""
    if protocol == "openai-responses":
        return _of_responses(record(request).get("input"))
    messages = items(record(request).get("messages"))
    read = _of_chat if protocol == "openai-chat" else _of_anthropic
    return [step for message in messages for step in read(message)]


def place(conversation: Sequence[Step]) -> Place:
    """Return the position of a conversation. Messages that are empty once normalized (only reminders) do not count."""
    turn, rounds, message = 0, 0, ""
    results: list[str] = []
    before = ""
    for step in conversation:
        if step.who == "model":
            rounds += before != "model"
            results.clear()
        elif step.who == "tool":
            results.append(step.text)
        elif not empty(step.text):
            turn, rounds, message = turn + 1, 0, step.text
            results.clear()
        else:
            continue
        before = step.who
    return Place(turn, rounds, normalized(message), _digest(results))


def _digest(results: Sequence[str]) -> str:
    """Return a digest of results. Normalizing is slow, so only the first `_RESULTS` characters are normalized."""
    if not results:
        return ""
    digest, left = hashlib.sha256(), _RESULTS
    for number, result in enumerate(results):
        left -= min(len(result), LONGEST)
        words = normalized(result) if left >= 0 else result
        digest.update(("\0" * (number > 0) + words).encode("utf-8", "replace"))
    return digest.hexdigest()[:16]


def system(protocol: str, request: object) -> str:
    """Return the system prompt."""
    body = record(request)
    if protocol == "openai-responses":
        return text(body.get("instructions"))
    if protocol == "openai-chat":
        prompts = (m for m in map(record, items(body.get("messages"))) if m.get("role") in ("system", "developer"))
        return "\n".join(_content(m.get("content")) for m in prompts)
    return _content(body.get("system"))


def tokens(request: object, unseen: int) -> int:
    """Estimate the tokens of a request: at least `unseen` if it refers to data that only the vendor has."""
    found, waiting = 0, [request]
    least = 0
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            found += len(value)
        elif isinstance(value, list):
            waiting += value
        elif isinstance(value, dict):
            if _elsewhere(value):
                least = unseen
            for key, item in value.items():
                size = _data(value, key, item)
                if size is None:
                    waiting.append(item)
                else:
                    found += TOKEN * size
    return max(least, -(-found // TOKEN))


def _elsewhere(value: Mapping[str, object]) -> bool:
    """Whether this is a file at the vendor, or a document that the vendor fetches. Its length is unknown."""
    fetched = value.get("type") == "document" and record(value, "source").get("type") == "url"
    return fetched or any(isinstance(value.get(key), str) for key in ("file_id", "file_url"))


def _data(value: Mapping[str, object], key: str, item: object) -> int | None:
    """Return the tokens of a key's value if it is data; None if it is text."""
    if key not in _DATA_KEYS:
        return None
    if key == "data":
        kind = text(value.get("media_type"))
        if value.get("type") == "text" or kind.startswith("text/") or not (kind or "format" in value):
            return None
        return _IMAGE if kind.startswith("image/") else _document(item) if "pdf" in kind else 0
    if key == "image_url":
        return _IMAGE
    return _document(item) if key == "file_data" else 0


def _document(item: object) -> int:
    """Return the tokens of a document in base64, mostly a PDF."""
    return len(item) * 3 // 4 // _DOCUMENT if isinstance(item, str) else 0


def _of_anthropic(message: object) -> Iterator[Step]:
    role, content = record(message).get("role"), record(message).get("content")
    if role == "assistant":
        yield Step("model", "")
    elif role == "user":
        for block in items(content):
            if record(block).get("type") == "tool_result":
                yield Step("tool", _content(record(block).get("content")))
        yield Step("user", _content(content))


def _of_chat(message: object) -> Iterator[Step]:
    role, content = record(message).get("role"), record(message).get("content")
    if role == "assistant":
        yield Step("model", "")
    elif role == "user":
        yield Step("user", _content(content))
    elif role in ("tool", "function"):
        yield Step("tool", _content(content))


def _of_responses(given: object) -> list[Step]:
    if isinstance(given, str):
        return [Step("user", text(given))]
    return [step for item in items(given) for step in _of_item(item)]


def _of_item(item: object) -> Iterator[Step]:
    kind, role = text(record(item).get("type")) or "message", record(item).get("role")
    if kind.endswith("_output"):
        output = record(item).get("output")
        yield Step("tool", _content(output))
    elif kind not in ("message", "additional_tools") or role == "assistant":
        yield Step("model", "")
    elif role == "user":
        yield Step("user", _content(record(item).get("content")))


def _content(content: object) -> str:
    """Return the text of a message: a string, or the blocks that have text."""
    if isinstance(content, str):
        return text(content)
    return "\n".join(words for block in items(content) if (words := text(record(block).get("text"))))
