"""Run a small real OAuth server on loopback: PKCE codes that are valid once, and refresh tokens that rotate.

A client that uses a refresh token twice loses the sign-in, as the standard's best practice recommends.
"""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from hiveyard.credentials.claude_oauth import OAuthSettings
from tests.support.leaks import MARK

CLIENT = "hiveyard-test-client"


class Refused(Exception):
    """A refusal with OAuth's error code."""


@dataclass(slots=True)
class OAuthServer:
    """The state of the server. While `trouble` is not empty, it answers instead."""

    url: str = ""
    life: float = 3600.0
    codes: dict[str, dict[str, str]] = field(default_factory=dict)
    good: dict[str, str] = field(default_factory=dict)  # refresh token -> sign-in
    used: dict[str, str] = field(default_factory=dict)
    access: set[str] = field(default_factory=set)
    refreshes: int = 0
    reuses: int = 0
    issued: list[str] = field(default_factory=list)
    trouble: list[Callable[[BaseHTTPRequestHandler], None]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def settings(self, **more: object) -> OAuthSettings:
        parts = {
            "authorize_url": f"{self.url}/authorize",
            "token_url": f"{self.url}/token",
            "redirect_url": f"{self.url}/callback",
            "client_id": CLIENT,
            **more,
        }
        return OAuthSettings(**parts)  # type: ignore[arg-type]

    def approve(self, url: str) -> str:
        """Return the answer that the page shows when the user opens the address and agrees: `code#state`."""
        asked = {name: values[0] for name, values in parse_qs(urlsplit(url).query).items()}
        assert asked["response_type"] == "code"
        assert asked["code_challenge_method"] == "S256"
        assert asked["client_id"] == CLIENT
        code = f"code-{MARK}-{secrets.token_urlsafe(16)}"
        self.codes[code] = asked
        self.issued.append(code)
        return f"{code}#{asked['state']}"

    def sign_in(self) -> dict[str, object]:
        """Return the tokens of a new sign-in, as the endpoint does."""
        with self.lock:
            return self._grant(secrets.token_hex(4))

    def token(self, asked: dict[str, str]) -> dict[str, object]:
        with self.lock:
            if asked.get("client_id") != CLIENT:
                raise Refused("invalid_client")
            if asked.get("grant_type") == "authorization_code":
                return self._exchange(asked)
            if asked.get("grant_type") == "refresh_token":
                return self._refresh(asked["refresh_token"])
            raise Refused("unsupported_grant_type")

    def _exchange(self, asked: dict[str, str]) -> dict[str, object]:
        begun = self.codes.pop(asked["code"], None)
        digest = hashlib.sha256(asked["code_verifier"].encode()).digest()
        challenge = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
        if begun is None or begun["code_challenge"] != challenge or begun["redirect_uri"] != asked["redirect_uri"]:
            raise Refused("invalid_grant")
        return self._grant(secrets.token_hex(4), scope=begun["scope"])

    def _refresh(self, token: str) -> dict[str, object]:
        if token in self.used:
            self.reuses += 1
            family = self.used[token]
            self.good = {one: of for one, of in self.good.items() if of != family}
        if token not in self.good:
            raise Refused("invalid_grant")
        self.refreshes += 1
        self.used[token] = self.good.pop(token)
        return self._grant(self.used[token])

    def _grant(self, family: str, scope: str = "user:inference user:profile") -> dict[str, object]:
        access, refresh = (f"{kind}-{MARK}-{secrets.token_urlsafe(24)}/+" for kind in ("sk-ant-oat01", "sk-ant-ort01"))
        self.good[refresh] = family
        self.access.add(access)
        self.issued += [access, refresh]
        account = {"email_address": "me@example.org"}
        given = {"access_token": access, "refresh_token": refresh, "expires_in": self.life, "scope": scope}
        return {**given, "token_type": "Bearer", "account": account}


@contextmanager
def oauth_server() -> Iterator[OAuthServer]:
    """Serve until the block ends."""
    state = OAuthServer()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
            if state.trouble:
                state.trouble.pop(0)(self)
                return
            try:
                answer(self, 200, json.dumps(state.token(asked)).encode())
            except Refused as error:
                said = {"error": str(error), "error_description": f"not this one: {asked.get('refresh_token')}"}
                answer(self, 400, json.dumps(said).encode())

        def log_message(self, format: str, *arguments: object) -> None:
            """Log nothing: tests read no access log."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def answer(
    to: BaseHTTPRequestHandler, status: int, body: bytes, *, kind: str = "application/json", **headers: str
) -> None:
    """Return a complete answer. Underscores in names of headers stand for dashes."""
    to.send_response(status)
    to.send_header("content-type", kind)
    to.send_header("content-length", str(len(body)))
    to.send_header("connection", "close")
    for name, value in headers.items():
        to.send_header(name.replace("_", "-"), value)
    to.end_headers()
    to.wfile.write(body)
    to.close_connection = True
