"""opencode in its terminal. This file runs in the guest.

The program is also a server, on loopback and with a password. Its activity is read from its events, and prompts are
sent over its HTTP interface, independently of the user's typing."""

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

from hiveyard.agents.shared.guest_terminal import DELAY, Feed, Refused, Tail, delivery, main, run, runtime, wait_until

SETTLED_POLLS = 5
"""Polls without news after which all events of a turn have arrived."""
SHOW_ATTEMPTS = 20
"""How often its screen is asked, once a second, to show the conversation."""
FIRST_TIMEOUT, MAX_TIMEOUT = 2.0, 120.0
"""Timeouts in seconds. A request during the server's start can hang forever, so the first timeout is short. Later ones
grow, because on an emulated machine with shared CPUs every answer takes long."""

T = TypeVar("T")

# Other types are about the program itself, or are pieces of later events.
_EVENT_TYPES = (
    "message.updated",
    "message.part.updated",
    "permission.asked",
    "question.asked",
    "session.error",
    "session.idle",
    "session.status",
)
_DELAYED_TYPES = ("permission.asked", "question.asked", "session.idle")


# --- the program -----------------------------------------------------------------------------------------------------


def run_terminal(settings: dict[str, Any]) -> int:
    place, feed = runtime(settings["state"]), Feed(settings["feed"])
    for name in ("session", "told", "telling"):
        (place / name).unlink(missing_ok=True)
    feed.prepare()
    server = {"port": _free_port(), "password": secrets.token_urlsafe(24)}
    (place / "server").touch(mode=0o600)
    (place / "server").write_text(json.dumps(server))
    collector = _Collector(place, feed, settings)
    threading.Thread(target=collector.open, daemon=True).start()
    argv = [*settings["argv"], "--port", str(server["port"]), "--hostname", "127.0.0.1"]
    if settings["conversation"]:
        argv += ["--session", settings["conversation"]]
    try:
        return run(argv, {"OPENCODE_SERVER_PASSWORD": str(server["password"])}, feed, collector.collect)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


class _Collector:
    """Copies the server's complete events of the user's conversations into the feed."""

    def __init__(self, place: Path, feed: Feed, settings: Mapping[str, Any]) -> None:
        self._place = place
        self._feed = feed
        self._settings = settings
        self._events: SimpleQueue[dict[str, Any]] = SimpleQueue()
        self._child_sessions: set[str] = set()
        self._running_calls: set[str] = set()
        self._shown = ""
        self._delayed: list[dict[str, Any]] = []
        self._quiet_polls = 0

    def open(self) -> None:
        """Wait for the server, subscribe, and then start the conversation, so that no event is missed.

        A server that reconfigures itself ends the stream; it is then opened again."""
        for number in count():
            stream = self._stream()
            if number == 0:
                threading.Thread(target=self._start_conversation, daemon=True).start()
            with suppress(OSError, ValueError, http.client.HTTPException):
                while line := stream.readline():
                    if line.startswith(b"data:"):
                        self._events.put(json.loads(line[5:]))
            wait_until(lambda: False, 0.1)

    def _stream(self) -> http.client.HTTPResponse:
        patience = FIRST_TIMEOUT
        while True:
            try:
                return _Server(self._place).stream("/event", patience)
            except TimeoutError:
                patience = min(2 * patience, MAX_TIMEOUT)
            except (OSError, http.client.HTTPException):
                wait_until(lambda: False, 0.1)

    def _start_conversation(self) -> None:
        server = _Server(self._place)
        name = _retrying(lambda: self._conversation(server))
        self._show(name)
        self._events.put({"type": "hiveyard.ready", "properties": {"sessionID": name}})
        # The screen accepts this some time after the server's start, without a sign.
        for _ in range(SHOW_ATTEMPTS):
            if self._shown != name:
                return
            _retrying(lambda: server.request("POST", "/tui/select-session", {"sessionID": name}))
            wait_until(lambda: self._shown != name, 1.0)

    def _conversation(self, server: _Server) -> str:
        name = str(self._settings["conversation"] or "")
        if not name or server.request("GET", f"/session/{name}").get("id") != name:
            name = str(server.request("POST", "/session", {"title": self._settings["title"]})["id"])
        return name

    def _show(self, name: str) -> None:
        self._shown = name
        fresh = self._place / "session.new"
        fresh.write_text(name)
        fresh.replace(self._place / "session")

    def collect(self) -> None:
        self._quiet_polls += 1
        while not self._events.empty():
            event = self._events.get()
            if self._is_relevant(str(event.get("type")), event.get("properties") or {}):
                self._add(event)
        if self._quiet_polls > SETTLED_POLLS:
            self._add(None)

    def _add(self, event: dict[str, Any] | None) -> None:
        """Add an event. Events of type _DELAYED_TYPES may arrive before the last entries of their turn, so they are
        delayed."""
        self._quiet_polls = 0
        if event is None or event["type"] == "message.updated":
            for delayed in self._delayed:
                self._feed.add({"said": delayed})
            self._delayed = []
        if event and event["type"] in _DELAYED_TYPES:
            self._delayed.append(event)
        elif event:
            self._feed.add({"said": event})

    def _is_relevant(self, kind: str, properties: Mapping[str, Any]) -> bool:
        info = properties.get("info") or {}
        if kind in ("session.created", "session.updated") and info.get("parentID"):
            self._child_sessions.add(str(info.get("id")))
        if kind in ("permission.asked", "question.asked", "hiveyard.ready"):
            return True
        if kind not in _EVENT_TYPES or properties.get("sessionID") in self._child_sessions:
            return False
        if kind == "message.part.updated":
            return self._is_complete(properties.get("part") or {})
        if kind == "message.updated" and info.get("role") == "user":
            self._show(str(properties.get("sessionID")))
        if kind == "message.updated":
            return info.get("role") == "user"
        if kind == "session.status":
            return bool((properties.get("status") or {}).get("type") == "retry")
        return True

    def _is_complete(self, part: Mapping[str, Any]) -> bool:
        kind, state = part.get("type"), part.get("state") or {}
        if kind in ("text", "reasoning"):
            # The text of a prompt has no times.
            return "end" in part["time"] if part.get("time") else True
        if kind == "tool" and state.get("status") == "running":
            fresh = part.get("callID") not in self._running_calls
            self._running_calls.add(str(part.get("callID")))
            return fresh
        return kind == "step-finish" or (kind == "tool" and state.get("status") in ("completed", "error"))


# --- prompts and interrupts ------------------------------------------------------------------------------------------


class _Server:
    """A client of the program's own HTTP interface."""

    def __init__(self, place: Path) -> None:
        values = json.loads((place / "server").read_text())
        self._port = int(values["port"])
        token = base64.b64encode(f"opencode:{values['password']}".encode()).decode()
        self._headers = {"Authorization": f"Basic {token}", "Content-Type": "application/json"}

    def stream(self, path: str, patience: float) -> http.client.HTTPResponse:
        connection, answer = self._open("GET", path, None, patience)
        connection.sock.settimeout(None)
        return answer

    def request(self, method: str, path: str, body: object = None, *, patience: float = math.inf) -> dict[str, Any]:
        _, answer = self._open(method, path, body, min(patience, MAX_TIMEOUT))
        with answer:
            data = answer.read()
        values = json.loads(data) if data.strip() else {}
        if answer.status >= 400 and method == "POST":
            raise Refused(f"opencode answered {answer.status}: {data.decode('utf-8', 'replace')[:300]}")
        return values if isinstance(values, dict) else {}

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


def _retrying(request: Callable[[], T], end: float = math.inf) -> T:
    """Call `request` until it gets an answer, or until `end`: the server may be busy for minutes."""
    while True:
        try:
            return request()
        except (OSError, http.client.HTTPException):
            if time.monotonic() > end:
                raise
            wait_until(lambda: False, 0.5)


def send_prompt(settings: dict[str, Any]) -> int:
    text = Path(settings["prompt"]).read_text(encoding="utf-8", errors="replace")
    if not text.strip():
        raise Refused("the prompt is empty")
    place, end = runtime(settings["state"]), time.monotonic() + settings["patience"]
    _session(place, settings["patience"])  # a starting program repairs its feed first
    with delivery(place, Feed(settings["feed"]), settings["prompt"], text) as attempt:
        if attempt and not (attempt.retried and _was_delivered(place, text, attempt.feed_tail, end)):
            path = f"/session/{_session(place, settings['patience'])}/prompt_async"
            try:
                _Server(place).request("POST", path, {"parts": [{"type": "text", "text": text}]})
            except (OSError, http.client.HTTPException) as error:
                # The server may have the prompt anyway: one that is busy for minutes handles it later.
                wait = max(MAX_TIMEOUT, end - time.monotonic()) if isinstance(error, TimeoutError) else DELAY
                if not wait_until(lambda: _is_in_feed(text, attempt.feed_tail), wait):
                    raise
    return 0


def _was_delivered(place: Path, text: str, feed_tail: Tail, end: float) -> bool:
    """Return whether an interrupted attempt delivered the prompt.

    A busy server may have it and not report it yet; it does when it answers again."""
    if _is_in_feed(text, feed_tail):
        return True
    _retrying(
        lambda: _Server(place).request("GET", "/session/status", patience=max(FIRST_TIMEOUT, end - time.monotonic())),
        end,
    )
    return wait_until(lambda: _is_in_feed(text, feed_tail), DELAY)


def _is_in_feed(text: str, feed_tail: Tail) -> bool:
    """Return whether the prompt is in the feed. The text of a prompt has no times."""
    parts = (((line.get("said") or {}).get("properties") or {}).get("part") or {} for line in feed_tail.lines())
    return any(part.get("type") == "text" and part.get("text") == text and not part.get("time") for part in parts)


def interrupt(settings: dict[str, Any]) -> int:
    place = runtime(settings["state"])
    if not (place / "session").exists():
        return 0
    session, server = (place / "session").read_text(), _Server(place)
    server.request("POST", f"/session/{session}/abort")
    if not wait_until(lambda: session not in server.request("GET", "/session/status"), 20.0):
        raise Refused("opencode continues although it was asked to stop")
    return 0


def _session(place: Path, patience: float) -> str:
    if not wait_until((place / "session").exists, patience):
        raise Refused("opencode has not started")
    return (place / "session").read_text()


if __name__ == "__main__":
    main({"run": run_terminal, "send": send_prompt, "interrupt": interrupt})
