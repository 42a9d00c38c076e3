"""Send requests to the vendors through one pool of connections for all doors. The real key is added just before.

Redirects are not followed: a key is sent only to the configured address.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager

import anyio
import httpx2

from hiveyard.core.errors import BadSetting, HiveyardError, UpstreamFailed
from hiveyard.door import routes
from hiveyard.door.broker import Broker, Credential
from hiveyard.door.model_request import ModelRequest
from hiveyard.door.reply import Answers, Progress, Reply
from hiveyard.door.settings import DoorSettings

_OAUTH_BETA = "oauth-2025-04-20"  # the header that Anthropic requires with the token of a sign-in
_POOL = httpx2.Limits(max_connections=512, max_keepalive_connections=64, keepalive_expiry=30.0)


class Upstream:
    """The client for the vendors: an async context manager that closes its connections at the end."""

    def __init__(self, settings: DoorSettings, broker: Broker) -> None:
        self._settings = settings
        self._broker = broker
        self._client: httpx2.AsyncClient | None = None
        self._opened = AsyncExitStack()

    async def __aenter__(self) -> Upstream:
        return self

    async def __aexit__(self, *failure: object) -> None:
        with anyio.CancelScope(shield=True), anyio.move_on_after(5):
            await self._opened.aclose()

    def of(self, account: str) -> Answers:
        """Return the source of the vendors' answers to requests that an account pays."""
        return _AccountAnswers(self, account)

    @asynccontextmanager
    async def ask(self, asked: ModelRequest, account: str, progress: Progress) -> AsyncIterator[Reply]:
        """Send a request: see `Answers.ask`."""
        address = self._settings.upstream(asked.route.vendor)
        credential = await self._broker.credential(asked.route.vendor, account)
        response = await self._send(asked, credential, address, progress)
        if response.status_code == 401 and credential.expires:
            # It was revoked, or expired too early; the next one may be valid. The complete body is in memory for a
            # retry.
            await _close(response)
            progress.mark_unsent()
            credential = await self._broker.credential(asked.route.vendor, account, refused=credential.secret)
            response = await self._send(asked, credential, address, progress)
        try:
            if response.is_redirect:
                progress.mark_unsent()
                raise UpstreamFailed(
                    f"{address} answered {response.status_code}, a redirect; redirects are not followed"
                )
            yield Reply(
                status=response.status_code,
                headers=tuple(_response_headers(response)),
                chunks=_chunks(response, address),
                source="upstream",
            )
        finally:
            await _close(response)

    async def _send(
        self, asked: ModelRequest, credential: Credential, address: str, progress: Progress
    ) -> httpx2.Response:
        async def trace(event: str, facts: Mapping[str, object]) -> None:
            # Earlier events are about the connection, and the CONNECT request to a proxy.
            if (
                event.endswith(".send_request_body.started")
                and getattr(facts.get("request"), "method", b"") != b"CONNECT"
            ):
                progress.mark_sent()

        client = await self._http_client()
        url = httpx2.URL(address + asked.route.path).copy_with(query=asked.query or None)
        request = client.build_request(
            asked.route.method,
            url,
            headers=_headers(asked, credential),
            content=asked.body or None,
            extensions={"trace": trace},
        )
        with _translated(address):
            return await client.send(request, stream=True)

    async def _http_client(self) -> httpx2.AsyncClient:
        """Return the HTTP client, which is created on first use: a session with a tape needs none."""
        if self._client is None:
            settings = self._settings
            for noisy in ("httpx2", "httpcore2"):
                # At DEBUG these log the headers of answers, before keys in them are masked.
                logging.getLogger(noisy).setLevel(logging.WARNING)
            client = httpx2.AsyncClient(
                # Certificate authorities and proxies come from the settings, not from the daemon's environment.
                trust_env=False,
                transport=httpx2.AsyncHTTPTransport(
                    verify=_trust(settings), trust_env=False, limits=_POOL, proxy=settings.proxy or None, retries=1
                ),
                timeout=httpx2.Timeout(
                    connect=settings.connect_seconds, read=settings.silence_seconds, write=60.0, pool=60.0
                ),
                follow_redirects=False,
                # The door reads the bytes that it relays, so they must not be compressed.
                headers={"accept-encoding": "identity", "user-agent": "hiveyard"},
            )
            self._client = await self._opened.enter_async_context(client)
        return self._client


def _trust(settings: DoorSettings) -> ssl.SSLContext | bool:
    if settings.ca_file:
        try:
            return ssl.create_default_context(cafile=settings.ca_file)
        except OSError as error:
            message = f"door.ca_file cannot be used: {error.strerror or type(error).__name__}"  # the guest sees it
            raise BadSetting(message, hint=f"ls -l {settings.ca_file}") from error
    plain = all(settings.upstream(vendor).startswith("http://") for vendor in ("anthropic", "openai"))
    return not plain  # loading the certificate authorities takes 40 ms


class _AccountAnswers:
    """The vendors' answers for one account."""

    def __init__(self, upstream: Upstream, account: str) -> None:
        self._upstream = upstream
        self._account = account

    def ask(self, asked: ModelRequest, progress: Progress) -> AbstractAsyncContextManager[Reply]:
        return self._upstream.ask(asked, self._account, progress)


async def _close(response: httpx2.Response) -> None:
    with anyio.CancelScope(shield=True), anyio.move_on_after(2):
        await response.aclose()


def _headers(asked: ModelRequest, credential: Credential) -> list[tuple[bytes, bytes]]:
    """Return the headers as bytes: the vendor validates those of the guest."""
    headers, key = list(asked.headers), credential.secret.reveal()
    if credential.expires:
        betas = [value for name, value in headers if name == "anthropic-beta"]
        headers = [(name, value) for name, value in headers if name != "anthropic-beta"]
        headers.append(("anthropic-beta", ",".join((*betas, _OAUTH_BETA))))
    if asked.route.vendor == "anthropic" and not credential.expires:
        headers.append(("x-api-key", key))
    else:
        headers.append(("authorization", f"Bearer {key}"))
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]


def _response_headers(response: httpx2.Response) -> list[tuple[str, str]]:
    headers = routes.response_headers(response.headers.items())
    if response.headers.get("content-encoding", "identity") != "identity":
        # The vendor compressed it nevertheless. It is decoded here, and its length changes.
        headers = [(name, value) for name, value in headers if name != "content-length"]
    return headers


async def _chunks(response: httpx2.Response, address: str) -> AsyncIterator[bytes]:
    with _translated(address, started=True):
        async for chunk in response.aiter_bytes():
            yield chunk


@contextmanager
def _translated(address: str, *, started: bool = False) -> Iterator[None]:
    """Translate the client's errors into ours. Their texts have hosts and states, but no headers or bodies."""
    try:
        yield
    except httpx2.TimeoutException as error:
        raise UpstreamFailed(f"{address} did not answer in time ({type(error).__name__})") from error
    except httpx2.ConnectError as error:
        raise UpstreamFailed(f"{address} cannot be reached: {error}", hint="hv doctor") from error
    except httpx2.HTTPError as error:
        what = "cut its answer" if started else "failed"
        raise UpstreamFailed(f"{address} {what}: {error or type(error).__name__}") from error
    except HiveyardError:
        raise
