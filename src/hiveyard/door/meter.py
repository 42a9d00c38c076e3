"""Count tokens, and what else has a price, in an answer that is relayed: three protocols, streamed or not."""

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
_PACE = 50  # tokens that a model generates per second, about
_MOST_OUTPUT = 32_000  # most tokens that an answer is estimated at if the request sets no limit
_REGION = "inference_geo"
_TERMS = ("service_tier", "speed", _REGION)
_SIDE_TYPES = ("compaction", "advisor_message")
_MAX_SIDE_USAGE = 1000
_PAID = {
    "image_generation_call": IMAGES,
    "code_interpreter_call": "code_interpreter",
    "file_search_call": "file_search",
}


@dataclass(slots=True)
class Count:
    """The latest token counts of the vendor. `reported` is whether it sent any."""

    input: int = 0
    output: int = 0
    cache_read: int = 0
    cache_write: int = 0
    cache_write_1h: int = 0
    web_searches: int = 0
    reported: bool = False


class Part(NamedTuple):
    """The usage of one model for an answer, without its price, and what else the price depends on."""

    model: str
    usage: Usage
    extra: Extra


class Meter:
    """A meter that reads one answer while it is relayed.

    `finished` is true once the answer has declared itself complete. `trouble` is an error inside an answer that began
    well. `model` is the model that answered.
    """

    def __init__(self, asked: ModelRequest, *, streamed: bool) -> None:
        self.count = Count()
        self.finished = False
        self.trouble = ""
        self.model = asked.model
        self._asked = asked
        self._read = _READERS.get(asked.route.protocol)
        self._events = EventData() if streamed else None
        self._body = bytearray()
        self._characters = 0
        self._has_reason = False
        self._has_count = False
        self._terms: dict[str, str] = {}
        self._side_usage: list[Mapping[str, object]] = []
        self._tools: dict[str, Usage] = {}

    def feed(self, chunk: bytes) -> None:
        if self._read is None:
            return
        if self._events is not None:
            for data in self._events.feed(chunk):
                self._event(data)
        elif len(self._body) <= LONGEST:
            self._body += chunk

    def finish(self) -> None:
        """Process the regular end of the answer."""
        if self._read is None:
            self.finished = True
        elif self._events is not None:
            for data in self._events.finish():
                self._event(data)
            # Some servers end a chat without [DONE]; a finish reason is enough.
            self.finished = self.finished or self._has_reason
        else:
            self._event(bytes(self._body))
            # The usage of an answer that was too long to be read is unknown.
            self.finished = self._has_count or len(self._body) <= LONGEST

    def usage(self, seconds: float = 0.0) -> Usage:
        """Return the tokens so far, without their price. An answer that was cut before the vendor sent its count is
        estimated by its length, and by the `seconds` that it took, so that closing the connection does not make it
        free."""
        seen, output = self.count, -(-self._characters // _TOKEN)
        if not (self.finished or self._has_count):
            output = max(output, min(self._asked.most_output or _MOST_OUTPUT, int(seconds * _PACE)))
        return Usage(
            input_tokens=seen.input if seen.reported else self._asked.tokens,
            output_tokens=seen.output if self.finished and seen.reported else max(seen.output, output),
            cache_read_tokens=seen.cache_read,
            cache_write_tokens=seen.cache_write,
            requests=1,
        )

    def extra(self) -> Extra:
        """Return what else the price depends on, as reported by the vendor."""
        return Extra(
            cache_write_1h=self.count.cache_write_1h, web_searches=self.count.web_searches, terms=dict(self._terms)
        )

    def parts(self, seconds: float = 0.0) -> list[Part]:
        """Return the parts to pay for: the answer, and the other models and tools that the vendor used for it and that
        the answer's count does not include."""
        tools = [Part(name, usage, Extra()) for name, usage in self._tools.items()]
        return [Part(self.model, self.usage(seconds), self.extra()), *map(self._side_part, self._side_usage), *tools]

    def _side_part(self, usage_of: Mapping[str, object]) -> Part:
        counted = _counts(usage_of)
        usage = Usage(
            input_tokens=counted["input"],
            output_tokens=counted["output"],
            cache_read_tokens=counted["cache_read"],
            cache_write_tokens=counted["cache_write"],
        )
        # Another model than the requested one has its own service terms, but runs in the same region.
        own = usage_of.get("type") == "compaction"
        terms = {name: value for name, value in self._terms.items() if own or name == _REGION} | _terms(usage_of)
        extra = Extra(cache_write_1h=counted["cache_write_1h"], terms=terms)
        return Part(text(usage_of.get("model"))[:200] or self.model, usage, extra)

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

    # One method per protocol. Counts are cumulative: the last one is valid.

    def anthropic(self, event: Mapping[str, object]) -> None:
        kind = event.get("type")
        if kind == "message_start":
            event = record(event, "message")
        elif kind == "message_stop":
            self.finished = True
        elif kind == "error":
            self._fail(event)
        self._set_model(event)
        delta = record(event, "delta")
        self._characters += sum(len(text(delta.get(name))) for name in ("text", "thinking", "partial_json"))
        if usage := record(event, "usage"):
            self._set_counts(**{name: usage.get(field) for name, field in _ANTHROPIC.items()})
            self._set_counts(
                cache_write_1h=record(usage, "cache_creation").get("ephemeral_1h_input_tokens"),
                web_searches=record(usage, "server_tool_use").get("web_search_requests"),
            )
            self._has_count = kind != "message_start"
            self._set_terms(usage)
            if isinstance(usage.get("iterations"), list):
                parts = map(record, islice(items(usage["iterations"]), _MAX_SIDE_USAGE))
                self._side_usage = [one for one in parts if one.get("type") in _SIDE_TYPES]

    def chat(self, event: Mapping[str, object]) -> None:
        self._set_model(event)
        self._set_terms(event)
        if event.get("error"):
            self._fail(event)
        for choice in map(record, items(event.get("choices"))):
            self._has_reason = self._has_reason or bool(choice.get("finish_reason"))
            delta = record(choice, "delta")
            self._characters += len(text(delta.get("content"))) + len(text(delta.get("reasoning_content")))
            for call in items(delta.get("tool_calls")):
                self._characters += len(text(record(call, "function").get("arguments")))
        if usage := record(event, "usage"):
            details = record(usage, "prompt_tokens_details")
            self._openai(usage.get("prompt_tokens"), usage.get("completion_tokens"), details)

    def responses(self, event: Mapping[str, object]) -> None:
        kind = text(event.get("type"))
        if kind in ("error", "response.failed"):
            self._fail(record(event, "response") or event)
        if kind in ("response.completed", "response.incomplete"):
            self.finished = True
        self._characters += len(text(event.get("delta")))
        answer = record(event, "response") or event
        self._set_model(answer)
        self._set_terms(answer)
        if usage := record(answer, "usage"):
            self._openai(usage.get("input_tokens"), usage.get("output_tokens"), record(usage, "input_tokens_details"))
            self.count.web_searches = sum(map(_searched, items(answer.get("output"))))
        if usage or record(answer, "tool_usage"):
            self._tools = _tools(answer)

    def _openai(self, input: object, output: object, details: Mapping[str, object]) -> None:
        read, written = count(details.get("cached_tokens")), count(details.get("cache_write_tokens"))
        fresh = max(0, count(input) - read - written)
        self._set_counts(input=fresh, output=output, cache_read=read, cache_write=written)
        self._has_count = True

    def _set_counts(self, **counts: object) -> None:
        self.count.reported = True
        for name, value in counts.items():
            if value is not None:
                setattr(self.count, name, count(value))

    def _set_model(self, answer: Mapping[str, object]) -> None:
        self.model = text(answer.get("model"))[:200] or self.model

    def _set_terms(self, answer: Mapping[str, object]) -> None:
        self._terms |= _terms(answer)

    def _fail(self, event: Mapping[str, object]) -> None:
        error = event.get("error")
        message = text(record(error).get("message")) or text(error) or text(event.get("message"))
        self.trouble = one_line(message, 500) or "an error without a message"


_READERS = {"anthropic": Meter.anthropic, "openai-chat": Meter.chat, "openai-responses": Meter.responses}


_ANTHROPIC = {
    "input": "input_tokens",
    "output": "output_tokens",
    "cache_read": "cache_read_input_tokens",
    "cache_write": "cache_creation_input_tokens",
}


def _counts(usage: Mapping[str, object]) -> dict[str, int]:
    """Translate Anthropic's names of token counts into ours."""
    kept = record(usage, "cache_creation").get("ephemeral_1h_input_tokens")
    return {name: count(usage.get(field)) for name, field in _ANTHROPIC.items()} | {"cache_write_1h": count(kept)}


def _terms(answer: Mapping[str, object]) -> dict[str, str]:
    return {name: one_line(value, 40) for name in _TERMS if (value := text(answer.get(name)))}


def _tools(answer: Mapping[str, object]) -> dict[str, Usage]:
    """Return the paid tools on OpenAI's servers that a response used, with their tokens if the response has them."""
    kinds = {text(record(item).get("type")) for item in items(answer.get("output"))}
    found = {name: Usage() for kind, name in _PAID.items() if kind in kinds}
    counts = record(answer, "tool_usage", "image_gen")
    images = Usage(input_tokens=count(counts.get("input_tokens")), output_tokens=count(counts.get("output_tokens")))
    return found | ({IMAGES: images} if images != Usage() else {})


def _searched(item: object) -> bool:
    """Whether an item of a response is a web search. Opening a page that was found costs nothing."""
    return record(item).get("type") == "web_search_call" and record(item, "action").get("type") in (None, "search")


def only_usage(block: bytes) -> bool:
    """Whether an event of a chat stream has the usage and nothing else."""
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
