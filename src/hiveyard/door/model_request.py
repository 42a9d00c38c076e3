"""Parse a guest's request to a model, as far as the door needs it.

Bodies are large and untrusted. Most of a body is not parsed, only measured: parsed JSON takes up to thirty times its
size in memory, and the event loop is blocked meanwhile. The conversation is parsed only if a tape needs it, and only if
it has no more parts than a real conversation can have.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice

import msgspec

from hiveyard.core.errors import BadInput
from hiveyard.door import conversation
from hiveyard.door.conversation import Place
from hiveyard.door.normalize import normalized
from hiveyard.door.routes import Route
from hiveyard.kit.shape import count, record, text

_SMALL = 64 << 10
_COUNTED = 4 << 20
_PARSED = 32 << 20
_PARTS_COUNTED = 50_000
_PARTS_PARSED = 200_000
_FEW = 1 << 20
_FULL_CONTEXT = 200_000
"""The estimated tokens of a body over 4 MiB: no text is that long, so most of it is data such as images. Also those of
a request that refers to a conversation or a file that only the vendor has."""
_ABSENT = msgspec.Raw(b"")
_NOT_BACKGROUND = (b"", b"false", b"null")
_NULL = (b"", b"null")
# With some models codex sends its tools as the first item of the conversation.
_WITHIN = re.compile(rb'\s*\[\s*\{[^{}\[\]]*"type"\s*:\s*"additional_tools"')
_OPTIONS = re.compile(rb'"stream_options"\s*:\s*')


class Top(msgspec.Struct, frozen=True, kw_only=True):
    """The relevant fields of a body, unparsed. Of several fields with one name it has the last."""

    model: msgspec.Raw = _ABSENT
    stream: msgspec.Raw = _ABSENT
    stream_options: msgspec.Raw = _ABSENT
    tools: msgspec.Raw = _ABSENT
    input: msgspec.Raw = _ABSENT
    max_tokens: msgspec.Raw = _ABSENT
    max_completion_tokens: msgspec.Raw = _ABSENT
    max_output_tokens: msgspec.Raw = _ABSENT
    background: msgspec.Raw = _ABSENT
    previous_response_id: msgspec.Raw = _ABSENT
    conversation: msgspec.Raw = _ABSENT


@dataclass(frozen=True, kw_only=True)
class ModelRequest:
    """A request: `route`, `query`, `headers`, and the body, which is empty if there is none.

    `counted` is true if the door added a request for the token count, which the guest did not make.
    """

    route: Route
    query: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    top: Top = field(default_factory=Top)
    counted: bool = False

    @cached_property
    def model(self) -> str:
        return text(_small(self.top.model))[:200]

    @cached_property
    def stream(self) -> bool:
        return _small(self.top.stream) is True

    @property
    def tools(self) -> bool:
        """Whether the request offers tools. Agents' side requests (titles, summaries, probes) do not."""
        if _WITHIN.match(memoryview(self.top.input)[:_SMALL]):
            return True
        offered = bytes(self.top.tools).strip()
        return offered.startswith(b"[") and not offered[1:].lstrip().startswith(b"]")

    @property
    def most_output(self) -> int:
        """Return the request's limit for the answer in tokens; 0 if it has none."""
        limits = (self.top.max_tokens, self.top.max_completion_tokens, self.top.max_output_tokens)
        return max(count(_small(limit)) for limit in limits)

    @cached_property
    def tokens(self) -> int:
        """Estimate the tokens of the request."""
        if len(self.body) > _COUNTED or self._continues:
            return _FULL_CONTEXT
        if _has_more_values(self.body, _PARTS_COUNTED):
            return len(self.body) // conversation.TOKEN
        return conversation.tokens(_decoded(self.body) if self.body else {}, _FULL_CONTEXT)

    @property
    def _continues(self) -> bool:
        """Whether the vendor has most of the conversation, which it counts as input, too."""
        before = (self.top.previous_response_id, self.top.conversation)
        return any(bytes(raw).strip() not in _NULL for raw in before)

    @property
    def place(self) -> Place:
        return self._read[0]

    @property
    def system(self) -> str:
        """Return the beginning of the system prompt, normalized."""
        return self._read[1]

    @cached_property
    def _read(self) -> tuple[Place, str]:
        """Parse the conversation, which may take a second. A body that is too large counts as empty."""
        parsed = 0 < len(self.body) <= _PARSED and not _has_more_values(self.body, _PARTS_PARSED)
        content = _decoded(self.body) if parsed else {}
        system = normalized(conversation.system(self._protocol, content)[:2000])[:120]
        return conversation.place(conversation.steps(self._protocol, content)), system

    @property
    def _protocol(self) -> str:
        return self.route.protocol or self.route.vendor


def parse_request(
    route: Route, *, query: bytes = b"", headers: tuple[tuple[str, str], ...] = (), body: bytes = b""
) -> ModelRequest:
    """Parse a request. Raises BadInput if the body is not a JSON object, or asks for an answer in the background: it
    would cost money, but nobody could record or fetch it."""
    if route.method == "GET":
        return ModelRequest(route=route, query=query, headers=headers)
    asked = ModelRequest(route=route, query=query, headers=headers, body=body, top=_top(body))
    if bytes(asked.top.background).strip() not in _NOT_BACKGROUND:
        raise BadInput("the door does not support answers in the background", hint="leave out `background`")
    return _counted(asked) if route.protocol == "openai-chat" and asked.stream else asked


def _top(body: bytes) -> Top:
    try:
        try:
            return msgspec.json.decode(body, type=Top)
        except msgspec.ValidationError:
            raise BadInput("the request's body is not a JSON object") from None
        except msgspec.DecodeError:
            # Agents written in JavaScript cut strings inside an emoji, and the vendor decides what to do with half of
            # one. Here another character of the same length replaces it.
            return msgspec.json.decode(body.replace(rb"\ud", rb"\uf").replace(rb"\uD", rb"\uf"), type=Top)
    except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
        raise BadInput(f"the request's body is not JSON: {str(error)[:200]}") from None


def _has_more_values(body: bytes, most: int) -> bool:
    """Whether JSON may have more values than `most`; each has a comma or a bracket before it. Takes little time: the
    guest decides how many there are."""
    for sign in (b",", b"[", b"{"):
        at = body.find(sign)
        while at >= 0 and most > 0:
            at, most = body.find(sign, at + 1), most - 1
    return most <= 0


def _small(raw: msgspec.Raw) -> object:
    """Return the value of a field; None if it is too large or not JSON."""
    if len(raw) > _SMALL:
        return None
    try:
        return _decoded(bytes(raw))
    except BadInput:
        return None


def _decoded(data: bytes) -> object:
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        pass
    try:
        # Only this parser accepts half an emoji.
        found: object = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"the request's body is not JSON: {str(error)[:200]}") from None
    return found


def _counted(asked: ModelRequest) -> ModelRequest:
    """Request the usage of a streamed chat completion, which the vendor sends only on request.

    The chunk with the usage has no choices, and some clients that did not request it fail on it. So the door removes it
    from the answer (see `meter.only_usage`).
    """
    options = record(_small(asked.top.stream_options))
    if options.get("include_usage") is True:
        return asked
    changed = {**options, "include_usage": True}
    if not len(asked.top.stream_options):
        body = asked.body.rstrip()[:-1] + b',"stream_options":' + msgspec.json.encode(changed) + b"}"
    else:
        body = _replaced(asked, msgspec.json.encode(changed))
    return ModelRequest(
        route=asked.route, query=asked.query, headers=asked.headers, body=body, top=asked.top, counted=True
    )


def _replaced(asked: ModelRequest, options: bytes) -> bytes:
    """Replace the stream_options in the body. A second field of that name would fail in a strict parser.

    Their position is guessed, since the same text may also be inside a value, and then verified by parsing. Raises
    BadInput if it is not found."""
    body, before = asked.body, bytes(asked.top.stream_options)
    # Each guess parses the whole body once.
    for found in islice(_OPTIONS.finditer(body), 16 if len(body) <= _FEW else 1):
        if body.startswith(before, found.end()):
            guess = body[: found.end()] + options + body[found.end() + len(before) :]
            if record(_small(_top(guess).stream_options)).get("include_usage") is True:
                return guess
    raise BadInput("the request's stream_options have an unusual form", hint='"include_usage": true')
