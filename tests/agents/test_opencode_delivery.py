"""A prompt is delivered to opencode's server once, however long it is busy."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from hiveyard.agents.opencode import terminal
from hiveyard.agents.shared.guest_terminal import Feed, runtime

AWHILE = 60.0
"""Seconds after which what a test waits for does not come."""
HEARD = {"said": {"properties": {"part": {"type": "text", "text": "do it"}}}}


class _Busy(ThreadingHTTPServer):
    """Takes requests, and answers none before it is closed, and then questions only."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Asked)
        self.bodies: list[bytes] = []
        self.taken, self.asked, self.closing = threading.Event(), threading.Event(), threading.Event()


class _Asked(BaseHTTPRequestHandler):
    server: _Busy

    def do_GET(self) -> None:
        self.server.asked.set()
        self.server.closing.wait()
        self.send_response(200)
        self.end_headers()

    def do_POST(self) -> None:
        self.server.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.taken.set()
        self.server.closing.wait()

    def log_message(self, format: str, *args: object) -> None:
        return


@contextmanager
def busy() -> Iterator[_Busy]:
    with _Busy() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield server
        finally:
            server.closing.set()
            server.shutdown()
            thread.join()


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, object]]:
    monkeypatch.setattr(terminal, "MAX_TIMEOUT", 0.3)
    (tmp_path / "prompt").write_text("do it")
    (tmp_path / "feed").touch()
    place = runtime(str(tmp_path))
    (place / "session").write_text("ses_1")
    yield {"state": str(tmp_path), "prompt": str(tmp_path / "prompt"), "feed": str(tmp_path / "feed"), "patience": 30.0}
    for left in place.iterdir():
        left.unlink()
    place.rmdir()


@contextmanager
def meanwhile(hear: Callable[[], None]) -> Iterator[None]:
    thread = threading.Thread(target=hear, daemon=True)
    thread.start()
    yield
    thread.join()


def known(settings: dict[str, object], server: _Busy) -> None:
    said = {"port": server.server_address[1], "password": "none"}
    (runtime(str(settings["state"])) / "server").write_text(json.dumps(said))


def test_a_prompt_with_a_late_answer_is_sent_when_it_is_in_the_feed(settings: dict[str, object]) -> None:
    def hear() -> None:
        server.taken.wait(AWHILE)
        server.closing.wait(1.0)
        Feed(str(settings["feed"])).add(HEARD)

    with busy() as server:
        known(settings, server)
        with meanwhile(hear):
            assert terminal.send_prompt(settings) == 0
        assert terminal.send_prompt(settings) == 0
    assert [json.loads(body)["parts"][0]["text"] for body in server.bodies] == ["do it"]


def test_a_prompt_in_the_feed_is_sent_although_the_connection_broke(settings: dict[str, object]) -> None:
    def hear() -> None:
        server.taken.wait(AWHILE)
        Feed(str(settings["feed"])).add(HEARD)
        server.closing.set()  # the connection is closed without an answer

    with busy() as server:
        known(settings, server)
        with meanwhile(hear):
            assert terminal.send_prompt(settings) == 0
    assert len(server.bodies) == 1


def test_a_prompt_that_never_reaches_the_feed_is_an_error(settings: dict[str, object]) -> None:
    settings["patience"] = 0.5
    with busy() as server:
        known(settings, server)
        for _ in range(2):
            with pytest.raises(TimeoutError):
                terminal.send_prompt(settings)
        assert server.taken.wait(AWHILE)
    assert len(server.bodies) == 1


def test_a_prompt_that_a_busy_server_already_has_is_not_sent_again(
    settings: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(terminal, "DELAY", 0.3)

    def hear() -> None:
        server.asked.wait(AWHILE)
        server.closing.wait(1.0)
        Feed(str(settings["feed"])).add(HEARD)
        server.closing.set()

    with busy() as server:
        known(settings, server)
        with pytest.raises(TimeoutError):
            terminal.send_prompt({**settings, "patience": 0.5})
        with meanwhile(hear):
            assert terminal.send_prompt(settings) == 0
        assert server.taken.wait(AWHILE)
    assert len(server.bodies) == 1
