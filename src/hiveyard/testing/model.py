"""A model that follows a script: a real server of the Anthropic and OpenAI protocols, for tests of agents and doors.

    async with scripted_model([shell("pytest -q"), say("Done.")]) as model:
        ...  # point an agent at model.url (or model.url + "/anthropic", "/openai")
    assert model.requests[0].step == 0

    python -m hiveyard.testing.model --script script.json --port 0      # prints {"url": "http://127.0.0.1:…"}

It serves `/v1/messages` (with `/count_tokens`), `/v1/chat/completions`, `/v1/responses` and `/v1/models`, streaming and
not, below any prefix. For scripts see `hiveyard.testing.script`. A request that offers no tools is a side request of
the agent (a title, a summary, a probe) and gets a fixed answer. Keys are not stored, only keyed digests of them.
"""

from __future__ import annotations

import argparse
import hashlib
import hmac
import secrets
import sys
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Literal

import anyio
import msgspec
from anyio.abc import ByteStream

from hiveyard.core.errors import BadInput, HiveyardError
from hiveyard.testing import dialects
from hiveyard.testing.conversation import Asked, Protocol, read
from hiveyard.testing.reply import Reply, fit, smallest
from hiveyard.testing.script import Fault, Script, Step, Tokens, load, named_by
from hiveyard.testing.wire import Answer, Request, converse

_ENDPOINTS: Mapping[str, Protocol] = {
    "/v1/messages": "anthropic",
    "/v1/chat/completions": "chat",
    "/v1/responses": "responses",
}
_KEY_HEADERS = ("authorization", "x-api-key", "api-key", "cookie", "proxy-authorization")
_END = Step(text="The script is at its end.")


class Recorded(msgspec.Struct, frozen=True, kw_only=True):
    """A recorded request.

    `key` is the header of its key (`x-api-key`, `authorization` or ""); `key_digest` distinguishes keys. `side` marks a
    request outside the script. `status` is the status of its answer."""

    path: str
    headers: dict[str, str]
    body: bytes
    key: str
    key_digest: str
    status: int
    model: str = ""
    prompt: str = ""
    step: int = 0
    tools: list[str] = []
    side: bool = False


class ScriptedModel:
    """A scripted model. `url` is its address. `requests` are all requests in order.

    `asked` are those of the conversation: an agent may request a title at any time."""

    def __init__(
        self,
        script: Script = (),
        *,
        scripts: Mapping[str, Script] | None = None,
        key: str | None = None,
        side_reply: str | None = "A scripted side reply",
        models: Sequence[str] = ("claude-sonnet-5-5", "gpt-5.5"),
    ) -> None:
        """Make a model. `script` answers every prompt that names no other script by a marker; `scripts` are those that
        may be named.

        With `key`, any other key is refused with 401. With `side_reply` None, requests without tools follow the script
        too, for clients that are not agents."""
        self.url = ""
        self.requests: list[Recorded] = []
        self._script = list(script)
        self._scripts = dict(scripts or {})
        self._salt = secrets.token_bytes(16)
        self._key = None if key is None else self._digest(key)
        self._side_reply = side_reply
        self._models = tuple(models)
        self._faults: Counter[tuple[str, int]] = Counter()
        self._gates: dict[str, anyio.Event] = {}

    @property
    def asked(self) -> list[Recorded]:
        return [request for request in self.requests if not request.side]

    def open(self, gate: str) -> None:
        """Open a gate: all present and future replies that wait at it continue."""
        self._gate(gate).set()

    def _gate(self, name: str) -> anyio.Event:
        return self._gates.setdefault(name, anyio.Event())

    def saw_key(self, secret: str) -> bool:
        """Return whether any request had this key."""
        digest = self._digest(secret)
        return any(request.key_digest == digest for request in self.requests)

    async def answer(self, request: Request) -> Answer:
        """Answer an HTTP request. Every request is recorded."""
        if request.path.startswith("/_model/"):
            return self._control(request)
        key, digest = self._key_of(request.headers)
        protocol = next((_ENDPOINTS[end] for end in _ENDPOINTS if request.path.endswith(end)), None)
        if self._key not in (None, digest):
            given, asked, side = (
                _refusal(protocol or "chat", Fault(status=401, message="invalid x-api-key")),
                None,
                True,
            )
        elif protocol is None:
            given, asked, side = self._elsewhere(request), None, True
        else:
            asked = read(protocol, _json(request.body))
            side = self._side_reply is not None and not asked.tools
            given = self._side(asked) if side else self._scripted(asked)
        self._record(request, key, digest, given.status, asked, side)
        return given

    def _scripted(self, asked: Asked) -> Answer:
        try:
            script = named_by(asked.prompt, self._scripts) or self._script
        except BadInput as error:
            return _refusal(asked.protocol, Fault(status=400, message=error.message))
        step = script[asked.step] if asked.step < len(script) else _END
        fault = self._fault(step, asked)
        if fault is not None and fault.status:
            return _refusal(asked.protocol, fault)
        name = hashlib.sha256(asked.prompt.encode()).hexdigest()[:8] + f"x{asked.step}"
        given = _given(asked, fit(step, asked, name), step, cut=fault is not None)
        return replace(given, gate=self._gate(step.gate)) if step.gate else given

    def _fault(self, step: Step, asked: Asked) -> Fault | None:
        """Return the step's fault while it still applies. The counts of faults are the server's only state."""
        if step.fault is None:
            return None
        place = (asked.prompt, asked.step)
        self._faults[place] += 1
        return step.fault if not step.fault.times or self._faults[place] <= step.fault.times else None

    def _side(self, asked: Asked) -> Answer:
        reply_text = self._side_reply or ""
        if asked.schema is not None:
            reply_text = msgspec.json.encode(smallest(asked.schema)).decode()
        usage = Tokens(input=10, output=2)
        reply = Reply("side", asked.model, "", reply_text, (), usage, False)
        return _given(asked, reply, Step())

    def _elsewhere(self, request: Request) -> Answer:
        if request.path.endswith("/v1/messages/count_tokens"):
            return _document({"input_tokens": max(1, len(request.body) // 4)})
        if request.path.endswith("/v1/models"):
            both = {"object": "model", "type": "model", "created": 0, "owned_by": "scripted"}
            data = [{"id": name, "display_name": name, **both} for name in self._models]
            return _document({"object": "list", "data": data, "has_more": False})
        return _refusal("chat", Fault(status=404, message=f"no such endpoint: {request.method} {request.path}"))

    def _control(self, request: Request) -> Answer:
        """Serve tests in another process: `/_model/health`, `/_model/requests`, `/_model/saw-key` (POST a key) and
        `/_model/open` (POST the name of a gate)."""
        if request.path == "/_model/requests":
            return Answer(chunks=[msgspec.json.encode(self.requests)])
        if request.path == "/_model/saw-key":
            return _document({"seen": self.saw_key(request.body.decode("utf-8", "replace"))})
        if request.path == "/_model/open":
            self.open(request.body.decode("utf-8", "replace"))
        return _document({"ok": True})

    def _record(self, request: Request, key: str, digest: str, status: int, asked: Asked | None, side: bool) -> None:
        entry = Recorded(
            path=request.path,
            headers={name: value for name, value in request.headers if name not in _KEY_HEADERS},
            body=request.body,
            key=key,
            key_digest=digest,
            status=status,
            side=side,
        )
        if asked is not None:
            details = {"model": asked.model, "prompt": asked.prompt, "step": asked.step, "tools": list(asked.tools)}
            entry = msgspec.structs.replace(entry, **details)
        self.requests.append(entry)

    def _key_of(self, headers: Sequence[tuple[str, str]]) -> tuple[str, str]:
        for name, value in headers:
            if name in _KEY_HEADERS:
                return name, self._digest(value.removeprefix("Bearer ").strip())
        return "", ""

    def _digest(self, key: str) -> str:
        return hmac.new(self._salt, key.encode(), "sha256").hexdigest()


@asynccontextmanager
async def scripted_model(
    script: Script = (),
    *,
    scripts: Mapping[str, Script] | None = None,
    key: str | None = None,
    side_reply: str | None = "A scripted side reply",
    port: int = 0,
    socket: Path | None = None,
) -> AsyncIterator[ScriptedModel]:
    """Run a scripted model while the block runs, on loopback (`port` 0: a free port) or on a unix `socket`.

    For the other parameters see ScriptedModel."""
    model = ScriptedModel(script, scripts=scripts, key=key, side_reply=side_reply)

    async def handle(stream: ByteStream) -> None:
        await converse(stream, model.answer)

    listener = (
        await anyio.create_unix_listener(socket)
        if socket is not None
        else await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=port)
    )
    async with listener, anyio.create_task_group() as group:
        bound = listener.extra(anyio.abc.SocketAttribute.local_address)  # noqa: S610 - not Django's extra
        model.url = "http://localhost" if socket is not None else f"http://127.0.0.1:{bound[1]}"
        group.start_soon(listener.serve, handle, name="the scripted model")
        try:
            yield model
        finally:
            group.cancel_scope.cancel()


def _given(asked: Asked, reply: Reply, step: Step, *, cut: bool = False) -> Answer:
    if not asked.stream:
        document = msgspec.json.encode(dialects.document(asked.protocol, reply))
        return Answer(chunks=[document], delay=step.delay, cut=cut)
    chunks = [event.encode() for event in dialects.events(asked.protocol, reply)]
    kind = "text/event-stream; charset=utf-8"
    return Answer(chunks=chunks, content_type=kind, delay=step.delay, chunk_delay=step.chunk_delay, cut=cut)


def _refusal(protocol: Protocol, fault: Fault) -> Answer:
    message = fault.message or f"scripted error {fault.status}"
    body = msgspec.json.encode(dialects.error(protocol, fault.status, message))
    return Answer(chunks=[body], status=fault.status, headers=dict(fault.headers))


def _document(body: Mapping[str, object]) -> Answer:
    return Answer(chunks=[msgspec.json.encode(body)])


def _json(body: bytes) -> object:
    try:
        found: object = msgspec.json.decode(body)
    except msgspec.DecodeError:
        return None
    return found


def main(argv: Sequence[str] | None = None) -> Literal[0, 2]:
    """Serve until interrupted."""
    options = argparse.ArgumentParser(
        prog="python -m hiveyard.testing.model", description=(__doc__ or "").split("\n")[0]
    )
    options.add_argument("--script", type=Path, help="a JSON file: a list of steps, or an object of named lists")
    options.add_argument("--port", type=int, default=0, help="on 127.0.0.1; 0 takes a free one")
    options.add_argument("--socket", type=Path, help="listen on this unix socket instead")
    given = options.parse_args(argv)
    try:
        scripts = _load(given.script)
        anyio.run(_serve, scripts, given.port, given.socket)
    except KeyboardInterrupt:
        pass
    except (HiveyardError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


def _load(path: Path | None) -> Mapping[str, Script]:
    """The scripts of a file by name; a plain list is called `default`."""
    if path is None:
        return {}
    data = path.read_bytes()
    if not data.lstrip().startswith(b"{"):
        return {"default": load(data)}
    try:
        parts = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
    except msgspec.MsgspecError as error:
        raise BadInput(f"{path} is no JSON: {error}") from error
    return {name: load(bytes(part)) for name, part in parts.items()}


async def _serve(scripts: Mapping[str, Script], port: int, socket: Path | None) -> None:
    async with scripted_model(scripts.get("default", ()), scripts=scripts, port=port, socket=socket) as model:
        sys.stdout.write(msgspec.json.encode({"url": model.url}).decode() + "\n")
        sys.stdout.flush()
        await anyio.sleep_forever()


if __name__ == "__main__":
    sys.exit(main())
