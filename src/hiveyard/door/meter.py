"""Counts tokens, and what else has a price, while an answer passes: three protocols, streamed or whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import msgspec

from hiveyard.core.usage import Usage
from hiveyard.door.model_request import ModelRequest
from hiveyard.door.prices import IMAGES, Extra
from hiveyard.door.sse import LONGEST, EventData
from hiveyard.kit.shape import count, items, record, text
from hiveyard.kit.text import one_line

_TOKEN = 4
_PACE = 50  # tokens that a model says in a second, about
_MOST_OUTPUT = 32_000  # tokens that an answer is taken for at most where the request sets no limit
_PLACE = "inference_geo"
_TERMS = ("service_tier", "speed", _PLACE)
_ASIDE = ("compaction", "advisor_message")
_MOST_ASIDE = 1000
_PAID = {
    "image_generation_call": IMAGES,
    "code_interpreter_call": "code_interpreter",
    "file_search_call": "file_search",
}


@dataclass(slots=True)
class Count:
    """Tokens as the vendor tells them, as they come. `told` is whether it told any."""

    input: int = 0
    output: int = 0
    cache_read: int = 0
    cache_write: int = 0
    cache_write_1h: int = 0
    web_searches: int = 0
    told: bool = False


class Part(NamedTuple):
    """What one model used for an answer, without its price, and what else its price depends on."""

    model: str
    usage: Usage
    extra: Extra


class Meter:
    """Reads one answer while it passes.

    `finished` is true once the answer has said itself that it is complete, `trouble` is an error that came inside an
    answer which began well, `model` is who answered.
    """

    def __init__(self, asked: ModelRequest, *, streamed: bool) -> None:
        self.count = Count()
        self.finished = False
        self.trouble = ""
        self.model = asked.model
        self._asked = asked
        self._read = _READERS.get(asked.route.protocol)
        self._events = EventData() if streamed else None
        self._whole = bytearray()
        self._said = 0
        self._reason = False
        self._counted = False
        self._terms: dict[str, str] = {}
        self._aside: list[Mapping[str, object]] = []
        self._tools: dict[str, Usage] = {}

    def feed(self, chunk: bytes) -> None:
        if self._read is None:
            return
        if self._events is not None:
            for data in self._events.feed(chunk):
                self._event(data)
        elif len(self._whole) <= LONGEST:
            self._whole += chunk

    def finish(self) -> None:
        """The answer has come to a clean end."""
        if self._read is None:
            self.finished = True
        elif self._events is not None:
            for data in self._events.finish():
                self._event(data)
            # Some servers end a chat without its last word; the reason why it ended is enough.
            self.finished = self.finished or self._reason
        else:
            self._event(bytes(self._whole))
            # Of one that was too long to be read nobody knows what it used.
            self.finished = self._counted or len(self._whole) <= LONGEST

    def usage(self, seconds: float = 0.0) -> Usage:
        """Tokens so far, without their price. An answer that was cut before the vendor told its count is estimated
        by what passed, and by the `seconds` that it took, so that hanging up does not make it free."""
        seen, said = self.count, -(-self._said // _TOKEN)
        if not (self.finished or self._counted):
            said = max(said, min(self._asked.most_output or _MOST_OUTPUT, int(seconds * _PACE)))
        return Usage(
            input_tokens=seen.input if seen.told else self._asked.tokens,
            output_tokens=seen.output if self.finished and seen.told else max(seen.output, said),
            cache_read_tokens=seen.cache_read,
            cache_write_tokens=seen.cache_write,
            requests=1,
        )

    def extra(self) -> Extra:
        """What else the price depends on, as the vendor told it."""
        return Extra(
            cache_write_1h=self.count.cache_write_1h, web_searches=self.count.web_searches, terms=dict(self._terms)
        )

    def parts(self, seconds: float = 0.0) -> list[Part]:
        """What is to be paid: the answer, and what its count leaves out, models and tools that the vendor asked beside
        it."""
        tools = [Part(name, usage, Extra()) for name, usage in self._tools.items()]
        return [Part(self.model, self.usage(seconds), self.extra()), *map(self._beside, self._aside), *tools]

    def _beside(self, told: Mapping[str, object]) -> Part:
        counted = _counts(told)
        usage = Usage(
            input_tokens=counted["input"],
            output_tokens=counted["output"],
            cache_read_tokens=counted["cache_read"],
            cache_write_tokens=counted["cache_write"],
        )
        # Another model than the one that was asked is served in its own way, but in the same place.
        own = told.get("type") == "compaction"
        terms = {name: said for name, said in self._terms.items() if own or name == _PLACE} | _terms(told)
        extra = Extra(cache_write_1h=counted["cache_write_1h"], terms=terms)
        return Part(text(told.get("model"))[:200] or self.model, usage, extra)

    def _event(self, data: bytes) -> None:
        if data == b"[DONE]":
            self.finished = True
            return
        try:
            event = msgspec.json.decode(data)
        except (msgspec.DecodeError, RecursionError, UnicodeError):
            return
        if isinstance(event, dict) and self._read is not None:
            self._read(self, event)

    # How each protocol tells it. Counts are cumulative: the last one told is the right one.

    def anthropic(self, event: Mapping[str, object]) -> None:
        kind = event.get("type")
        if kind == "message_start":
            event = record(event, "message")
        elif kind == "message_stop":
            self.finished = True
        elif kind == "error":
            self._fail(event)
        self._named(event)
        delta = record(event, "delta")
        self._said += sum(len(text(delta.get(name))) for name in ("text", "thinking", "partial_json"))
        if usage := record(event, "usage"):
            self._told(**{name: usage.get(told) for name, told in _ANTHROPIC.items()})
            self._told(
                cache_write_1h=record(usage, "cache_creation").get("ephemeral_1h_input_tokens"),
                web_searches=record(usage, "server_tool_use").get("web_search_requests"),
            )
            self._counted = kind != "message_start"
            self._served(usage)
            if isinstance(usage.get("iterations"), list):
                told = map(record, islice(items(usage["iterations"]), _MOST_ASIDE))
                self._aside = [one for one in told if one.get("type") in _ASIDE]

    def chat(self, event: Mapping[str, object]) -> None:
        self._named(event)
        self._served(event)
        if event.get("error"):
            self._fail(event)
        for choice in map(record, items(event.get("choices"))):
            self._reason = self._reason or bool(choice.get("finish_reason"))
            delta = record(choice, "delta")
            self._said += len(text(delta.get("content"))) + len(text(delta.get("reasoning_content")))
            for call in items(delta.get("tool_calls")):
                self._said += len(text(record(call, "function").get("arguments")))
        if usage := record(event, "usage"):
            details = record(usage, "prompt_tokens_details")
            self._openai(usage.get("prompt_tokens"), usage.get("completion_tokens"), details)

    def responses(self, event: Mapping[str, object]) -> None:
        kind = text(event.get("type"))
        if kind in ("error", "response.failed"):
            self._fail(record(event, "response") or event)
        if kind in ("response.completed", "response.incomplete"):
            self.finished = True
        self._said += len(text(event.get("delta")))
        answer = record(event, "response") or event
        self._named(answer)
        self._served(answer)
        if usage := record(answer, "usage"):
            self._openai(usage.get("input_tokens"), usage.get("output_tokens"), record(usage, "input_tokens_details"))
            self.count.web_searches = sum(map(_searched, items(answer.get("output"))))
        if usage or record(answer, "tool_usage"):
            self._tools = _tools(answer)

    def _openai(self, given: object, said: object, details: Mapping[str, object]) -> None:
        read, written = count(details.get("cached_tokens")), count(details.get("cache_write_tokens"))
        fresh = max(0, count(given) - read - written)
        self._told(input=fresh, output=said, cache_read=read, cache_write=written)
        self._counted = True

    def _told(self, **counts: object) -> None:
        self.count.told = True
        for name, value in counts.items():
            if value is not None:
                setattr(self.count, name, count(value))

    def _named(self, answer: Mapping[str, object]) -> None:
        self.model = text(answer.get("model"))[:200] or self.model

    def _served(self, told: Mapping[str, object]) -> None:
        self._terms |= _terms(told)

    def _fail(self, event: Mapping[str, object]) -> None:
        error = event.get("error")
        said = text(record(error).get("message")) or text(error) or text(event.get("message"))
        self.trouble = one_line(said, 500) or "an error without words"


_READERS = {"anthropic": Meter.anthropic, "openai-chat": Meter.chat, "openai-responses": Meter.responses}


_ANTHROPIC = {
    "input": "input_tokens",
    "output": "output_tokens",
    "cache_read": "cache_read_input_tokens",
    "cache_write": "cache_creation_input_tokens",
}


def _counts(usage: Mapping[str, object]) -> dict[str, int]:
    """Anthropic's words for tokens in ours."""
    kept = record(usage, "cache_creation").get("ephemeral_1h_input_tokens")
    return {name: count(usage.get(told)) for name, told in _ANTHROPIC.items()} | {"cache_write_1h": count(kept)}


def _terms(told: Mapping[str, object]) -> dict[str, str]:
    return {name: one_line(said, 40) for name in _TERMS if (said := text(told.get(name)))}


def _tools(answer: Mapping[str, object]) -> dict[str, Usage]:
    """The tools on OpenAI's own servers that a response used and that are paid for, with their tokens, if it tells."""
    kinds = {text(record(item).get("type")) for item in items(answer.get("output"))}
    found = {name: Usage() for kind, name in _PAID.items() if kind in kinds}
    told = record(answer, "tool_usage", "image_gen")
    drawn = Usage(input_tokens=count(told.get("input_tokens")), output_tokens=count(told.get("output_tokens")))
    return found | ({IMAGES: drawn} if drawn != Usage() else {})


def _searched(item: object) -> bool:
    """Whether an item of a response is a search of the web; looking at a page that was found costs nothing."""
    return record(item).get("type") == "web_search_call" and record(item, "action").get("type") in (None, "search")


def only_usage(block: bytes) -> bool:
    """Whether an event of a chat stream is the one that tells the usage and nothing else."""
    if b'"usage"' not in block:
        return False
    for data in EventData().feed(block):
        try:
            event = msgspec.json.decode(data)
        except (msgspec.DecodeError, RecursionError, UnicodeError):
            return False
        if isinstance(event, dict) and event.get("choices") == [] and record(event, "usage"):
            return True
    return False
