"""Encode a reply in one of three protocols: as a JSON document, or as the events of a stream."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import msgspec

from hiveyard.testing.conversation import Protocol
from hiveyard.testing.reply import Reply
from hiveyard.testing.script import Tokens

JSON = Mapping[str, object]
_CREATED = 1_700_000_000  # constant, so that replies are reproducible
_PIECE = 24


class Event(NamedTuple):
    """A server-sent event. With an empty name it is only a line of data."""

    name: str
    data: JSON | str

    def encode(self) -> bytes:
        data = self.data if isinstance(self.data, str) else msgspec.json.encode(self.data).decode()
        return (f"event: {self.name}\n" if self.name else "").encode() + f"data: {data}\n\n".encode()


def document(protocol: Protocol, reply: Reply) -> JSON:
    """Return the complete reply."""
    return {"anthropic": _message, "chat": _completion, "responses": _response}[protocol](reply)


def events(protocol: Protocol, reply: Reply) -> Iterator[Event]:
    """Yield the reply as a stream."""
    return {"anthropic": _message_events, "chat": _completion_events, "responses": _response_events}[protocol](reply)


def error(protocol: Protocol, status: int, message: str) -> JSON:
    """Return the body of an HTTP error, in the vendor's format."""
    kind = _KINDS.get(status, "api_error" if status >= 500 else "invalid_request_error")
    if protocol == "anthropic":
        return {"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_scripted"}
    return {"error": {"message": message, "type": kind, "param": None, "code": _CODES.get(status)}}


_KINDS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    529: "overloaded_error",
}
_CODES = {401: "invalid_api_key", 404: "model_not_found", 429: "rate_limit_exceeded"}


def _pieces(text: str) -> Iterator[str]:
    for start in range(0, len(text), _PIECE):
        yield text[start : start + _PIECE]


def _arguments(call_input: JSON | str) -> str:
    return call_input if isinstance(call_input, str) else msgspec.json.encode(call_input).decode()


# --- Anthropic messages ---------------------------------------------------------------------------------------------


def _blocks(reply: Reply) -> list[JSON]:
    thought = {"type": "thinking", "thinking": reply.thinking, "signature": "c2NyaXB0ZWQ="}
    blocks: list[JSON] = [thought] if reply.thinking else []
    if reply.text:
        blocks.append({"type": "text", "text": reply.text})
    blocks += [
        {"type": "tool_use", "id": call.id.replace("call_", "toolu_", 1), "name": call.name, "input": call.input}
        for call in reply.calls
    ]
    return blocks


def _message(reply: Reply) -> JSON:
    return {
        "id": f"msg_{reply.id}",
        "type": "message",
        "role": "assistant",
        "model": reply.model,
        "content": _blocks(reply),
        "stop_reason": "max_tokens" if reply.length else "tool_use" if reply.calls else "end_turn",
        "stop_sequence": None,
        "usage": {
            "input_tokens": reply.usage.input,
            "cache_creation_input_tokens": reply.usage.cache_write,
            "cache_read_input_tokens": reply.usage.cache_read,
            "output_tokens": reply.usage.output,
        },
    }


def _message_events(reply: Reply) -> Iterator[Event]:
    complete = dict(_message(reply))
    usage = {**_as_record(complete["usage"]), "output_tokens": 1}
    start = {**complete, "content": [], "stop_reason": None, "usage": usage}
    yield Event("message_start", {"type": "message_start", "message": start})
    for index, block in enumerate(_blocks(reply)):
        yield from _block_events(index, block)
    ending = {"stop_reason": complete["stop_reason"], "stop_sequence": None}
    yield Event("message_delta", {"type": "message_delta", "delta": ending, "usage": complete["usage"]})
    yield Event("message_stop", {"type": "message_stop"})


def _block_events(index: int, block: JSON) -> Iterator[Event]:
    empty: JSON
    deltas: list[JSON]
    if block["type"] == "thinking":
        empty = {"type": "thinking", "thinking": "", "signature": ""}
        deltas = [{"type": "thinking_delta", "thinking": piece} for piece in _pieces(str(block["thinking"]))]
        deltas.append({"type": "signature_delta", "signature": block["signature"]})
    elif block["type"] == "text":
        empty = {"type": "text", "text": ""}
        deltas = [{"type": "text_delta", "text": piece} for piece in _pieces(str(block["text"]))]
    else:
        empty = {**block, "input": {}}
        arguments = _arguments(_as_record(block["input"]))
        deltas = [{"type": "input_json_delta", "partial_json": piece} for piece in _pieces(arguments)]
    yield Event("content_block_start", {"type": "content_block_start", "index": index, "content_block": empty})
    for delta in deltas:
        yield Event("content_block_delta", {"type": "content_block_delta", "index": index, "delta": delta})
    yield Event("content_block_stop", {"type": "content_block_stop", "index": index})


# --- OpenAI chat completions ----------------------------------------------------------------------------------------


def _chat_usage(usage: Tokens) -> JSON:
    prompt = usage.input + usage.cache_read + usage.cache_write
    return {
        "prompt_tokens": prompt,
        "completion_tokens": usage.output,
        "total_tokens": prompt + usage.output,
        "prompt_tokens_details": {"cached_tokens": usage.cache_read},
    }


def _finish(reply: Reply) -> str:
    return "length" if reply.length else "tool_calls" if reply.calls else "stop"


def _chat_calls(reply: Reply) -> list[JSON]:
    return [
        {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": _arguments(call.input)}}
        for call in reply.calls
    ]


def _completion(reply: Reply) -> JSON:
    message: dict[str, object] = {"role": "assistant", "content": reply.text or None}
    if reply.thinking:
        message["reasoning_content"] = reply.thinking
    if reply.calls:
        message["tool_calls"] = _chat_calls(reply)
    choice = {"index": 0, "message": message, "finish_reason": _finish(reply), "logprobs": None}
    return {**_chat_head(reply, "chat.completion"), "choices": [choice], "usage": _chat_usage(reply.usage)}


def _chat_head(reply: Reply, kind: str) -> dict[str, object]:
    return {"id": f"chatcmpl-{reply.id}", "object": kind, "created": _CREATED, "model": reply.model}


def _completion_events(reply: Reply) -> Iterator[Event]:
    head = _chat_head(reply, "chat.completion.chunk")

    def chunk(delta: JSON, finish: str | None = None) -> Event:
        return Event("", {**head, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})

    yield chunk({"role": "assistant", "content": ""})
    for piece in _pieces(reply.thinking):
        yield chunk({"reasoning_content": piece})
    for piece in _pieces(reply.text):
        yield chunk({"content": piece})
    for index, call in enumerate(reply.calls):
        start = {"name": call.name, "arguments": ""}
        yield chunk({"tool_calls": [{"index": index, "id": call.id, "type": "function", "function": start}]})
        for piece in _pieces(_arguments(call.input)):
            yield chunk({"tool_calls": [{"index": index, "function": {"arguments": piece}}]})
    yield chunk({}, _finish(reply))
    yield Event("", {**head, "choices": [], "usage": _chat_usage(reply.usage)})
    yield Event("", "[DONE]")


# --- OpenAI responses -----------------------------------------------------------------------------------------------


def _output(reply: Reply) -> list[dict[str, object]]:
    output: list[dict[str, object]] = []
    if reply.thinking:
        summary = [{"type": "summary_text", "text": reply.thinking}]
        output.append({"id": f"rs_{reply.id}", "type": "reasoning", "summary": summary})
    if reply.text:
        part = {"type": "output_text", "text": reply.text, "annotations": []}
        message = {"type": "message", "role": "assistant", "status": "completed", "content": [part]}
        output.append({"id": f"msg_{reply.id}", **message})
    for call in reply.calls:
        kind = "custom_tool_call" if isinstance(call.input, str) else "function_call"
        space, _, name = call.name.rpartition("/")
        place = {"name": name, **({"namespace": space} if space else {})}
        item = {"type": kind, "call_id": call.id, **place, "status": "completed"}
        output.append({"id": f"fc_{call.id}", **item, _GIVEN[kind]: _arguments(call.input)})
    return output


_GIVEN = {"function_call": "arguments", "custom_tool_call": "input"}


def _response(reply: Reply) -> JSON:
    read = reply.usage.input + reply.usage.cache_read + reply.usage.cache_write
    return {
        "id": f"resp_{reply.id}",
        "object": "response",
        "created_at": _CREATED,
        "status": "incomplete" if reply.length else "completed",
        "incomplete_details": {"reason": "max_output_tokens"} if reply.length else None,
        "error": None,
        "model": reply.model,
        "output": _output(reply),
        "usage": {
            "input_tokens": read,
            "input_tokens_details": {"cached_tokens": reply.usage.cache_read},
            "output_tokens": reply.usage.output,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": read + reply.usage.output,
        },
    }


def _response_events(reply: Reply) -> Iterator[Event]:
    complete = _response(reply)
    started = {**complete, "status": "in_progress", "incomplete_details": None, "output": [], "usage": None}
    bare: list[tuple[str, JSON]] = [
        ("response.created", {"response": started}),
        ("response.in_progress", {"response": started}),
    ]
    for index, item in enumerate(_output(reply)):
        bare += _item_events(index, item)
    bare.append((f"response.{'incomplete' if reply.length else 'completed'}", {"response": complete}))
    for number, (name, data) in enumerate(bare):
        yield Event(name, {"type": name, "sequence_number": number, **data})


_EMPTY: Mapping[str, JSON] = {
    "message": {"content": []},
    "reasoning": {"summary": []},
    "function_call": {"arguments": ""},
    "custom_tool_call": {"input": ""},
}


def _item_events(index: int, item: dict[str, object]) -> Iterator[tuple[str, JSON]]:
    place = {"output_index": index, "item_id": item["id"]}
    start = {**item, **_EMPTY[str(item["type"])]}
    if "status" in start:
        start["status"] = "in_progress"
    yield "response.output_item.added", {"output_index": index, "item": start}
    if key := _GIVEN.get(str(item["type"])):
        name = f"response.{item['type']}_{key}"
        for piece in _pieces(str(item[key])):
            yield f"{name}.delta", {**place, "delta": piece}
        yield f"{name}.done", {**place, key: item[key]}
    else:
        yield from _part_events(place, item)
    yield "response.output_item.done", {"output_index": index, "item": item}


def _part_events(place: JSON, item: JSON) -> Iterator[tuple[str, JSON]]:
    thinks = item["type"] == "reasoning"
    head = "response.reasoning_summary" if thinks else "response.output"
    added = "response.reasoning_summary_part" if thinks else "response.content_part"
    where = {**place, "summary_index" if thinks else "content_index": 0}
    parts = item["summary" if thinks else "content"]
    assert isinstance(parts, list)
    part = parts[0]
    yield f"{added}.added", {**where, "part": {**part, "text": ""}}
    for piece in _pieces(part["text"]):
        yield f"{head}_text.delta", {**where, "delta": piece}
    yield f"{head}_text.done", {**where, "text": part["text"]}
    yield f"{added}.done", {**where, "part": part}


def _as_record(value: object) -> JSON:
    assert isinstance(value, dict)
    return value
