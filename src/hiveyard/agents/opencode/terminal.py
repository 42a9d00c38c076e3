"""opencode at its terminal.

The program is its own server, on loopback and with a password: what happens comes as its events, and it is told by its
HTTP interface, beside whatever a person types.
"""

from __future__ import annotations

import base64
import http.client
import json
import math
import secrets
import shutil
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from itertools import count
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeVar

from hiveyard.agents.shared.guest_terminal import LATE, Feed, Refused, Tail, main, once, run, runtime, until

SETTLED = 5
"""Looks without anything new after which all of a turn was told."""
SHOWING = 20
"""How often, once a second, its screen is told which conversation to show."""
FIRST, LONGEST = 2.0, 120.0
"""Seconds that its server has for an answer: a request while it boots can hang for ever, so the first is given up soon,
and each after it later, for on an emulated machine that shares its processors every answer takes long."""

T = TypeVar("T")

# All others are about the program's own life, or pieces of what comes whole later.
_TELLING = (
    "message.updated",
    "message.part.updated",
    "permission.asked",
    "question.asked",
    "session.error",
    "session.idle",
    "session.status",
)
_WAITING = ("permission.asked", "question.asked", "session.idle")


# --- the program -----------------------------------------------------------------------------------------------------


def sit(settings: dict[str, Any]) -> int:
    place, feed = runtime(settings["state"]), Feed(settings["feed"])
    for former in ("session", "told", "telling"):
        (place / former).unlink(missing_ok=True)
    feed.begin()
    server = {"port": _free_port(), "password": secrets.token_urlsafe(24)}
    (place / "server").touch(mode=0o600)
    (place / "server").write_text(json.dumps(server))
    ears = _Ears(place, feed, settings)
    threading.Thread(target=ears.open, daemon=True).start()
    argv = [*settings["argv"], "--port", str(server["port"]), "--hostname", "127.0.0.1"]
    if settings["conversation"]:
        argv += ["--session", settings["conversation"]]
    try:
        return run(argv, {"OPENCODE_SERVER_PASSWORD": str(server["password"])}, feed, ears.listen)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


class _Ears:
    """Its events, brought into the feed: what is whole, of the conversations that people see."""

    def __init__(self, place: Path, feed: Feed, settings: Mapping[str, Any]) -> None:
        self._place = place
        self._feed = feed
        self._settings = settings
        self._heard: SimpleQueue[dict[str, Any]] = SimpleQueue()
        self._helpers: set[str] = set()
        self._running: set[str] = set()
        self._chosen = ""
        self._waiting: list[dict[str, Any]] = []
        self._quiet = 0

    def open(self) -> None:
        """Wait for the server, listen, and only then begin the conversation, so that nothing of it is missed. A server
        ends the stream when it sets itself up anew: that is listened to again."""
        for number in count():
            stream = self._stream()
            if number == 0:
                threading.Thread(target=self._begin, daemon=True).start()
            with suppress(OSError, ValueError, http.client.HTTPException):
                while line := stream.readline():
                    if line.startswith(b"data:"):
                        self._heard.put(json.loads(line[5:]))
            until(lambda: False, 0.1)

    def _stream(self) -> http.client.HTTPResponse:
        patience = FIRST
        while True:
            try:
                return _Server(self._place).stream("/event", patience)
            except TimeoutError:
                patience = min(2 * patience, LONGEST)
            except (OSError, http.client.HTTPException):
                until(lambda: False, 0.1)

    def _begin(self) -> None:
        server = _Server(self._place)
        name = _insisting(lambda: self._conversation(server))
        self._choose(name)
        self._heard.put({"type": "hiveyard.ready", "properties": {"sessionID": name}})
        # Its screen starts to listen a while after its server, and does not say when.
        for _ in range(SHOWING):
            if self._chosen != name:
                return
            _insisting(lambda: server.ask("POST", "/tui/select-session", {"sessionID": name}))
            until(lambda: self._chosen != name, 1.0)

    def _conversation(self, server: _Server) -> str:
        name = str(self._settings["conversation"] or "")
        if not name or server.ask("GET", f"/session/{name}").get("id") != name:
            name = str(server.ask("POST", "/session", {"title": self._settings["title"]})["id"])
        return name

    def _choose(self, name: str) -> None:
        self._chosen = name
        fresh = self._place / "session.new"
        fresh.write_text(name)
        fresh.replace(self._place / "session")

    def listen(self) -> None:
        self._quiet += 1
        while not self._heard.empty():
            event = self._heard.get()
            if self._tells(str(event.get("type")), event.get("properties") or {}):
                self._add(event)
        if self._quiet > SETTLED:
            self._add(None)

    def _add(self, event: dict[str, Any] | None) -> None:
        """Add an event. That it waits is told before the last of what led there: it comes behind that."""
        self._quiet = 0
        if event is None or event["type"] == "message.updated":
            for waiting in self._waiting:
                self._feed.add({"said": waiting})
            self._waiting = []
        if event and event["type"] in _WAITING:
            self._waiting.append(event)
        elif event:
            self._feed.add({"said": event})

    def _tells(self, kind: str, told: Mapping[str, Any]) -> bool:
        info = told.get("info") or {}
        if kind in ("session.created", "session.updated") and info.get("parentID"):
            self._helpers.add(str(info.get("id")))
        if kind in ("permission.asked", "question.asked", "hiveyard.ready"):
            return True
        if kind not in _TELLING or told.get("sessionID") in self._helpers:
            return False
        if kind == "message.part.updated":
            return self._whole(told.get("part") or {})
        if kind == "message.updated" and info.get("role") == "user":
            self._choose(str(told.get("sessionID")))
        if kind == "message.updated":
            return info.get("role") == "user"
        if kind == "session.status":
            return bool((told.get("status") or {}).get("type") == "retry")
        return True

    def _whole(self, part: Mapping[str, Any]) -> bool:
        kind, state = part.get("type"), part.get("state") or {}
        if kind in ("text", "reasoning"):
            # The words of a prompt carry no times.
            return "end" in part["time"] if part.get("time") else True
        if kind == "tool" and state.get("status") == "running":
            fresh = part.get("callID") not in self._running
            self._running.add(str(part.get("callID")))
            return fresh
        return kind == "step-finish" or (kind == "tool" and state.get("status") in ("completed", "error"))


# --- what it is told -------------------------------------------------------------------------------------------------


class _Server:
    """The program's own HTTP interface."""

    def __init__(self, place: Path) -> None:
        said = json.loads((place / "server").read_text())
        self._port = int(said["port"])
        token = base64.b64encode(f"opencode:{said['password']}".encode()).decode()
        self._headers = {"Authorization": f"Basic {token}", "Content-Type": "application/json"}

    def stream(self, path: str, patience: float) -> http.client.HTTPResponse:
        connection, answer = self._open("GET", path, None, patience)
        connection.sock.settimeout(None)
        return answer

    def ask(self, method: str, path: str, body: object = None, *, patience: float = math.inf) -> dict[str, Any]:
        _, answer = self._open(method, path, body, min(patience, LONGEST))
        with answer:
            data = answer.read()
        said = json.loads(data) if data.strip() else {}
        if answer.status >= 400 and method == "POST":
            raise Refused(f"opencode answered {answer.status}: {data.decode('utf-8', 'replace')[:300]}")
        return said if isinstance(said, dict) else {}

    def _open(
        self, method: str, path: str, body: object, timeout: float
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=timeout)
        try:
            connection.request(method, path, None if body is None else json.dumps(body), self._headers)
            answer = connection.getresponse()
            if answer.status == 401:
                raise Refused("another program answers on opencode's port")
        except BaseException:
            connection.close()
            raise
        return connection, answer


def _insisting(ask: Callable[[], T], end: float = math.inf) -> T:
    """Ask until there is an answer, or until `end`: the server may be busy for minutes."""
    while True:
        try:
            return ask()
        except (OSError, http.client.HTTPException):
            if time.monotonic() > end:
                raise
            until(lambda: False, 0.5)


def say(settings: dict[str, Any]) -> int:
    text = Path(settings["prompt"]).read_text(encoding="utf-8", errors="replace")
    if not text.strip():
        raise Refused("the prompt is empty")
    place, end = runtime(settings["state"]), time.monotonic() + settings["patience"]
    _session(place, settings["patience"])  # a program that begins cuts what is torn off its feed
    with once(place, Feed(settings["feed"]), settings["prompt"], text) as telling:
        if telling and not (telling.again and _got_through(place, text, telling.heard, end)):
            path = f"/session/{_session(place, settings['patience'])}/prompt_async"
            try:
                _Server(place).ask("POST", path, {"parts": [{"type": "text", "text": text}]})
            except (OSError, http.client.HTTPException) as error:
                # It may have the words all the same: one that is busy for minutes takes them when it comes to that.
                late = max(LONGEST, end - time.monotonic()) if isinstance(error, TimeoutError) else LATE
                if not until(lambda: _taken(text, telling.heard), late):
                    raise
    return 0


def _got_through(place: Path, text: str, heard: Tail, end: float) -> bool:
    """Whether the prompt was heard from somebody who is gone. A busy server may have it and not know yet: that is known
    when it answers again."""
    if _taken(text, heard):
        return True
    _insisting(lambda: _Server(place).ask("GET", "/session/status", patience=max(FIRST, end - time.monotonic())), end)
    return until(lambda: _taken(text, heard), LATE)


def _taken(text: str, heard: Tail) -> bool:
    """Whether the prompt stands in the feed. The words of a prompt carry no times."""
    parts = (((line.get("said") or {}).get("properties") or {}).get("part") or {} for line in heard.lines())
    return any(part.get("type") == "text" and part.get("text") == text and not part.get("time") for part in parts)


def interrupt(settings: dict[str, Any]) -> int:
    place = runtime(settings["state"])
    if not (place / "session").exists():
        return 0
    session, server = (place / "session").read_text(), _Server(place)
    server.ask("POST", f"/session/{session}/abort")
    if not until(lambda: session not in server.ask("GET", "/session/status"), 20.0):
        raise Refused("opencode goes on although it was told to stop")
    return 0


def _session(place: Path, patience: float) -> str:
    if not until((place / "session").exists, patience):
        raise Refused("opencode has not started")
    return (place / "session").read_text()


if __name__ == "__main__":
    main({"sit": sit, "say": say, "interrupt": interrupt})
