"""Sign in and refresh with a real server on loopback, also with invalid answers."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler

import pytest

from hiveyard.core.errors import (
    BadInput,
    BadSetting,
    BadSignInAnswer,
    CredentialsError,
    SignInNotFound,
    SignInRateLimited,
    SignInRefused,
    SignInTimeout,
    SignInUnauthorized,
    SignInUnavailable,
    SignInUnreachable,
)
from hiveyard.credentials.claude_oauth import OAuthSettings, Tokens, begin, exchange, refresh, tokens_of_file
from hiveyard.kit.secret import Secret
from tests.support.leaks import Said, listening

from .oauth_server import OAuthServer, answer, oauth_server

pytestmark = pytest.mark.anyio
Trouble = Callable[[BaseHTTPRequestHandler], None]


@pytest.fixture
def server() -> Iterator[OAuthServer]:
    with oauth_server() as server:
        yield server


@pytest.fixture
def said(server: OAuthServer) -> Iterator[Said]:
    """Collect all output of a test. At its end the output must not contain a token of the server."""
    with listening() as said:
        yield said
    assert said.lines
    said.none_of(server.issued)


async def signed_in(server: OAuthServer) -> Tokens:
    sign_in = begin(server.settings())
    return await exchange(server.settings(), sign_in, server.approve(sign_in.url))


async def refused(said: Said, settings: OAuthSettings, tokens: Tokens) -> CredentialsError:
    with pytest.raises(CredentialsError) as caught:
        await refresh(settings, tokens)
    said.add_error(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    return caught.value


async def test_a_user_signs_in_and_the_tokens_are_refreshed(server: OAuthServer, said: Said) -> None:
    tokens = await signed_in(server)
    assert tokens.access.reveal() in server.access
    assert tokens.account == "me@example.org"
    assert tokens.scopes == ("user:inference", "user:profile")
    fresh = await refresh(server.settings(), tokens)
    assert fresh.access.reveal() in server.access
    assert fresh.access != tokens.access
    assert fresh.refresh != tokens.refresh
    said.add(f"{tokens} {fresh!r}")


async def test_a_refresh_token_is_valid_once(server: OAuthServer, said: Said) -> None:
    tokens = await signed_in(server)
    await refresh(server.settings(), tokens)
    error = await refused(said, server.settings(), tokens)
    assert isinstance(error, SignInRefused)
    assert error.context["status"] == "400"
    assert "invalid_grant: not this one: ***" in error.message


async def test_a_code_is_valid_once_and_only_with_its_own_verifier(server: OAuthServer) -> None:
    settings = server.settings()
    first, second = begin(settings), begin(settings)
    pasted = server.approve(first.url)
    with pytest.raises(SignInRefused):
        await exchange(settings, replace(first, verifier=second.verifier), pasted)
    pasted = server.approve(second.url)
    await exchange(settings, second, pasted)
    with pytest.raises(SignInRefused):
        await exchange(settings, second, pasted)


async def test_the_address_of_the_page_is_accepted_as_an_answer(server: OAuthServer) -> None:
    sign_in = begin(server.settings())
    code, _, state = server.approve(sign_in.url).partition("#")
    await exchange(server.settings(), sign_in, f" {server.url}/callback?state={state}&code={code}\n")


@pytest.mark.parametrize(
    "pasted", ["", "code", "code-12345678#", "#state", "a b c d e f g#x", "http://[", "ü" * 9 + "#x"]
)
async def test_an_invalid_answer_is_bad_input(server: OAuthServer, pasted: str) -> None:
    with pytest.raises(BadInput, match="not the answer of a sign-in"):
        await exchange(server.settings(), begin(server.settings()), pasted)


async def test_an_answer_of_another_sign_in_is_refused(server: OAuthServer) -> None:
    mine, other = begin(server.settings()), begin(server.settings())
    for pasted in (server.approve(other.url), "code-12345678#%ff", f"{server.url}?code=code-12345678&state=%ff"):
        with pytest.raises(BadInput, match="another sign-in"):
            await exchange(server.settings(), mine, pasted)


async def test_another_client_is_refused(server: OAuthServer, said: Said) -> None:
    tokens = await signed_in(server)
    error = await refused(said, server.settings(client_id="somebody"), tokens)
    assert "invalid_client" in error.message


async def test_tokens_that_cannot_be_refreshed_are_not_sent(server: OAuthServer, said: Said) -> None:
    tokens = replace(await signed_in(server), refresh=None)
    error = await refused(said, server.settings(), tokens)
    assert error.hint == "sign in again"


def test_a_token_expires_at_its_time_or_a_margin_earlier() -> None:
    tokens = Tokens(access=Secret("Zq8TestSecret"), refresh=None, expires_at=1000.0)
    assert not tokens.expired(999.0)
    assert tokens.expired(1000.0)
    assert tokens.expired(999.0, margin=2.0)


def test_claude_codes_own_file_is_read_and_written_completely() -> None:
    content = {
        "accessToken": "sk-ant-oat01-Zq8TestSecret",
        "refreshToken": "sk-ant-ort01-Zq8TestSecret",
        "expiresAt": 1_700_000_000_000,
        "scopes": ["user:inference"],
        "subscriptionType": "max",
    }
    tokens = tokens_of_file(Secret(json.dumps({"claudeAiOauth": content})))
    assert tokens.expires_at == 1_700_000_000
    assert json.loads(tokens.file().reveal()) == {"claudeAiOauth": content}


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "{}", '{"claudeAiOauth": {"accessToken": "sk-Zq8TestSecret", "expiresAt": "soon"}}', "\udc00"],
)
def test_an_invalid_file_is_an_error_that_does_not_show_it(content: str) -> None:
    with pytest.raises(CredentialsError) as caught:
        tokens_of_file(Secret(content))
    assert "Zq8TestSecret" not in str(caught.value)


# --- invalid answers -------------------------------------------------------------------------------------------------


def whole(status: int, body: bytes, kind: str = "application/json", **headers: str) -> Trouble:
    return lambda to: answer(to, status, body, kind=kind, **headers)


def cut(to: BaseHTTPRequestHandler) -> None:
    to.send_response(200)
    to.send_header("content-length", "1000")
    to.end_headers()
    to.wfile.write(b'{"access_token": "sk-ant-Zq8TestSecret')
    to.close_connection = True


def flood(to: BaseHTTPRequestHandler) -> None:
    to.send_response(200)
    to.send_header("content-length", str(50 << 20))
    to.end_headers()
    with suppress(OSError):
        for _ in range(50):
            to.wfile.write(b" " * (1 << 20))
    to.close_connection = True


def hang_up(to: BaseHTTPRequestHandler) -> None:
    to.connection.shutdown(socket.SHUT_RDWR)
    to.close_connection = True


def drip(to: BaseHTTPRequestHandler) -> None:
    to.send_response(200)
    to.end_headers()
    to.connection.settimeout(0.02)
    with suppress(OSError):
        while True:
            to.wfile.write(b" ")
            to.wfile.flush()
            with suppress(TimeoutError):
                if not to.connection.recv(1):
                    return


def no_http(to: BaseHTTPRequestHandler) -> None:
    to.wfile.write(b"\x16\x03\x01 no HTTP at all\r\n\r\n")
    to.close_connection = True


TROUBLE: dict[str, tuple[Trouble, type[CredentialsError], str]] = {
    "400": (whole(400, b'{"error": "invalid_grant"}'), SignInRefused, "answered 400: invalid_grant"),
    "401": (
        whole(401, b'{"error": {"type": "authentication_error", "message": "who?"}}'),
        SignInUnauthorized,
        "401: authentication_error: who?",
    ),
    "403": (whole(403, b"{}"), SignInUnauthorized, "answered 403"),
    "404": (whole(404, b"<html>nothing here</html>", "text/html"), SignInNotFound, "answered 404"),
    "418": (whole(418, b"[]"), SignInRefused, "answered 418"),
    "429": (whole(429, b"{}", retry_after="17"), SignInRateLimited, "answered 429"),
    "500": (whole(500, b"{"), SignInUnavailable, "answered 500"),
    "529": (whole(529, b'{"error": {"type": "overloaded_error"}}'), SignInUnavailable, "529: overloaded_error"),
    "a redirect": (whole(302, b"", location="http://127.0.0.1:1/"), BadSignInAnswer, "answered 302"),
    "HTML": (whole(200, b"<html>Sign in to the hotel</html>", "text/html"), BadSignInAnswer, "33 bytes of text/html"),
    "cut JSON": (whole(200, b'{"access_token": "sk-ant-Zq8TestSecret'), BadSignInAnswer, "without a JSON object"),
    "no UTF-8": (whole(200, b'{"access_token": "\xff"}'), BadSignInAnswer, "without a JSON object"),
    "another shape": (whole(200, b"[1, 2]"), BadSignInAnswer, "without a JSON object"),
    "deep": (whole(200, b"[" * 100_000), BadSignInAnswer, "without a JSON object"),
    "no token": (whole(200, b'{"expires_in": 3600}'), BadSignInAnswer, "no valid access_token"),
    "a token that is a number": (whole(200, b'{"access_token": 7, "expires_in": 9}'), BadSignInAnswer, "access_token"),
    "no life": (whole(200, b'{"access_token": "sk-ant-oat01-Zq8TestSecret"}'), BadSignInAnswer, "no valid expires_in"),
    "a life below zero": (
        whole(200, b'{"access_token": "sk-ant-oat01-Zq8TestSecret", "expires_in": -1}'),
        BadSignInAnswer,
        "no valid expires_in",
    ),
    "an endless life": (
        whole(200, b'{"access_token": "sk-ant-oat01-Zq8TestSecret", "expires_in": 1e300}'),
        BadSignInAnswer,
        "no valid expires_in",
    ),
    "a token with a line break": (
        whole(200, b'{"access_token": "sk-ant-Zq8TestSecret\\r\\nx-evil: 1", "expires_in": 9}'),
        BadSignInAnswer,
        "invalid characters",
    ),
    "compressed": (whole(200, b"\x1f\x8b", content_encoding="gzip"), BadSignInAnswer, "with compression"),
    "cut in half": (cut, BadSignInAnswer, "cut its answer"),
    "50 MB": (flood, BadSignInAnswer, "more than 262144 bytes"),
    "no HTTP": (no_http, BadSignInAnswer, "did not answer with HTTP"),
    "a closed connection": (hang_up, BadSignInAnswer, "cut its answer"),
}


@pytest.mark.parametrize("what", TROUBLE)
async def test_a_bad_answer_is_an_exact_error_without_a_secret(server: OAuthServer, said: Said, what: str) -> None:
    trouble, kind, words = TROUBLE[what]
    tokens = await signed_in(server)
    server.trouble.append(trouble)
    error = await refused(said, server.settings(), tokens)
    assert type(error) is kind
    assert words in error.message
    assert len(error.message) < 500
    # The refresh token is still valid.
    assert (await refresh(server.settings(), tokens)).access.reveal() in server.access


async def test_an_error_that_quotes_the_secret_encoded_is_masked(server: OAuthServer, said: Said) -> None:
    tokens = await signed_in(server)
    assert tokens.refresh is not None
    body = {"error": {"type": "x" * 10_000, "message": f"{tokens.refresh.reveal()} {tokens.access.reveal()}"}}
    server.trouble.append(whole(400, json.dumps(body).encode()))
    await refused(said, server.settings(), tokens)
    body["error"]["type"] = tokens.access.reveal()
    server.trouble.append(whole(400, json.dumps(body).encode()))
    assert "***" in (await refused(said, server.settings(), tokens)).message


@pytest.mark.parametrize(
    ("told", "wait"), [("17", 17.0), ("-3", 0.0), ("soon", None), ("", None), ("1e400", None), ("nan", None)]
)
async def test_a_rate_limit_has_the_retry_time_if_there_was_one(
    server: OAuthServer, said: Said, told: str, wait: float | None
) -> None:
    tokens = await signed_in(server)
    server.trouble.append(whole(429, b"{}", retry_after=told))
    error = await refused(said, server.settings(), tokens)
    assert isinstance(error, SignInRateLimited)
    assert error.retry_after == wait
    assert error.retry


async def test_a_rate_limit_may_have_a_date(server: OAuthServer, said: Said) -> None:
    tokens = await signed_in(server)
    server.trouble.append(whole(429, b"{}", retry_after="Sat, 01 Jan 2000 00:00:00 GMT"))
    error = await refused(said, server.settings(), tokens)
    assert isinstance(error, SignInRateLimited)
    assert error.retry_after == 0.0


async def test_an_endpoint_that_sends_slowly_is_a_timeout(server: OAuthServer, said: Said) -> None:
    tokens = await signed_in(server)
    server.trouble.append(drip)
    error = await refused(said, server.settings(seconds=0.5), tokens)
    assert type(error) is SignInTimeout
    assert "did not answer within 0.5s" in error.message


async def test_a_missing_endpoint_is_unreachable(server: OAuthServer, said: Said) -> None:
    tokens = await signed_in(server)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    error = await refused(said, server.settings(token_url=f"http://127.0.0.1:{port}/token"), tokens)
    assert type(error) is SignInUnreachable


@pytest.mark.parametrize(
    "url",
    [
        "",
        "ftp://127.0.0.1/",
        "http://example.org/token",
        "https://u:Zq8TestSecret@example.org/",
        "https://example.org/?a=b",
        "https://[u:Zq8TestSecret",
        "https://[::u:Zq8TestSecret]/",
        "https://example.org:u:Zq8TestSecret/",
        "https://example.org/u:Zq8TestSecret\0",
        "https://\u2100u:Zq8TestSecret/",
    ],
)
def test_a_token_is_never_sent_unencrypted(url: str) -> None:
    with pytest.raises(BadSetting) as caught:
        OAuthSettings(token_url=url)
    assert "Zq8TestSecret" not in str(caught.value)
    assert caught.value.__context__ is None
