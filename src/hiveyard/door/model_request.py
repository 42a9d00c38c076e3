"""A guest's request to a model, as far as the door has to understand it.

Bodies are large and come from strangers: of most of one only its extent is looked at (parsed JSON takes up to thirty
times its size in memory, and the event loop stands still meanwhile). The conversation itself is parsed where a tape
needs it, and only as long as it has no more parts than a true one can have.
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
from hiveyard.door.normalize import settled
from hiveyard.door.routes import Route
from hiveyard.kit.shape import count, record, text

_SMALL = 64 << 10
_COUNTED = 4 << 20
_PARSED = 32 << 20
_PARTS_COUNTED = 50_000
_PARTS_PARSED = 200_000
_FEW = 1 << 20
_FULL_CONTEXT = 200_000
"""Tokens that a body over 4 MiB is taken for: no text is that long, so most of it is data such as images. Also what
names a conversation or a file that only the vendor has."""
_ABSENT = msgspec.Raw(b"")
_NOT_LATER = (b"", b"false", b"null")
_NOTHING = (b"", b"null")
# With some models codex offers its tools as the first item of the conversation.
_WITHIN = re.compile(rb'\s*\[\s*\{[^{}\[\]]*"type"\s*:\s*"additional_tools"')
_OPTIONS = re.compile(rb'"stream_options"\s*:\s*')


class Top(msgspec.Struct, frozen=True, kw_only=True):
    """The fields of a body that count, unparsed; the last of several with one name."""

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
    """One request: what is asked for (`route`, `query`, `headers`), and its body, empty when there is none.

    `counted` tells that the door asked for the count of tokens which the guest did not ask for.
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
        """Whether it offers tools; agents' side errands (titles, summaries, probes) do not."""
        if _WITHIN.match(memoryview(self.top.input)[:_SMALL]):
            return True
        offered = bytes(self.top.tools).strip()
        return offered.startswith(b"[") and not offered[1:].lstrip().startswith(b"]")

    @property
    def most_output(self) -> int:
        """The limit that it sets to the answer, in tokens; 0 when it sets none."""
        limits = (self.top.max_tokens, self.top.max_completion_tokens, self.top.max_output_tokens)
        return max(count(_small(limit)) for limit in limits)

    @cached_property
    def tokens(self) -> int:
        """About how many tokens it is."""
        if len(self.body) > _COUNTED or self._goes_on:
            return _FULL_CONTEXT
        if _crowded(self.body, _PARTS_COUNTED):
            return len(self.body) // conversation.TOKEN
        return conversation.tokens(_decoded(self.body) if self.body else {}, _FULL_CONTEXT)

    @property
    def _goes_on(self) -> bool:
        """Whether most of the conversation is at the vendor, who counts it as input all the same."""
        before = (self.top.previous_response_id, self.top.conversation)
        return any(bytes(raw).strip() not in _NOTHING for raw in before)

    @property
    def place(self) -> Place:
        return self._read[0]

    @property
    def system(self) -> str:
        """The beginning of the system prompt, settled."""
        return self._read[1]

    @cached_property
    def _read(self) -> tuple[Place, str]:
        """What the conversation says; nothing where the body is too large to be looked into. This may take a second."""
        looked_into = 0 < len(self.body) <= _PARSED and not _crowded(self.body, _PARTS_PARSED)
        content = _decoded(self.body) if looked_into else {}
        told = settled(conversation.system(self._protocol, content)[:2000])[:120]
        return conversation.place(conversation.steps(self._protocol, content)), told

    @property
    def _protocol(self) -> str:
        return self.route.protocol or self.route.vendor


def understand(
    route: Route, *, query: bytes = b"", headers: tuple[tuple[str, str], ...] = (), body: bytes = b""
) -> ModelRequest:
    """Read a request. Raises BadInput when the body is not a JSON object, or asks for an answer that is made later: it
    would be paid, told by nobody, and could not be fetched."""
    if route.method == "GET":
        return ModelRequest(route=route, query=query, headers=headers)
    asked = ModelRequest(route=route, query=query, headers=headers, body=body, top=_top(body))
    if bytes(asked.top.background).strip() not in _NOT_LATER:
        raise BadInput("the door passes no request on whose answer is made in the background", hint="leave it out")
    return _counted(asked) if route.protocol == "openai-chat" and asked.stream else asked


def _top(body: bytes) -> Top:
    try:
        try:
            return msgspec.json.decode(body, type=Top)
        except msgspec.ValidationError:
            raise BadInput("the request's body is not a JSON object") from None
        except msgspec.DecodeError:
            # Agents written in JavaScript cut strings inside an emoji; half of one is for the vendor to judge. Here any
            # other character of the same length will do.
            return msgspec.json.decode(body.replace(rb"\ud", rb"\uf").replace(rb"\uD", rb"\uf"), type=Top)
    except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
        raise BadInput(f"the request's body is not JSON: {str(error)[:200]}") from None


def _crowded(body: bytes, most: int) -> bool:
    """Whether it may hold more values than `most`; each has a comma or a bracket before it. In quick steps: a stranger
    decides how many there are."""
    for sign in (b",", b"[", b"{"):
        at = body.find(sign)
        while at >= 0 and most > 0:
            at, most = body.find(sign, at + 1), most - 1
    return most <= 0


def _small(raw: msgspec.Raw) -> object:
    """The value of a field; None when it is unreasonably large or no JSON."""
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
        # Only this parser takes half an emoji.
        found: object = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"the request's body is not JSON: {str(error)[:200]}") from None
    return found


def _counted(asked: ModelRequest) -> ModelRequest:
    """A streamed chat completion tells its usage only when asked to, so the door asks.

    The chunk with the usage has no choices, and clients that did not ask for it are known to trip over that: the door
    takes it out again on the way back (see `meter.only_usage`).
    """
    options = record(_small(asked.top.stream_options))
    if options.get("include_usage") is True:
        return asked
    wanted = {**options, "include_usage": True}
    if not len(asked.top.stream_options):
        body = asked.body.rstrip()[:-1] + b',"stream_options":' + msgspec.json.encode(wanted) + b"}"
    else:
        body = _replaced(asked, msgspec.json.encode(wanted))
    return ModelRequest(
        route=asked.route, query=asked.query, headers=asked.headers, body=body, top=asked.top, counted=True
    )


def _replaced(asked: ModelRequest, options: bytes) -> bytes:
    """The body with other stream_options, and else as it came: said twice, a strict parser would refuse them.

    Where they stand is guessed, for the same words may stand further inside, and then looked up. Raises BadInput when
    that does not find them."""
    body, before = asked.body, bytes(asked.top.stream_options)
    # Each guess reads all of the body once more.
    for found in islice(_OPTIONS.finditer(body), 16 if len(body) <= _FEW else 1):
        if body.startswith(before, found.end()):
            guess = body[: found.end()] + options + body[found.end() + len(before) :]
            if record(_small(_top(guess).stream_options)).get("include_usage") is True:
                return guess
    raise BadInput("the request's stream_options are written in an unusual way", hint='"include_usage": true')
