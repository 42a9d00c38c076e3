"""The way to the vendors: one pool of connections for all doors, the real key added at the last moment.

Redirects are not followed: a key goes to the address that was set and to no other.
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
from hiveyard.door.reply import Answers, Passage, Reply
from hiveyard.door.settings import DoorSettings

_SIGNED_IN = "oauth-2025-04-20"  # what Anthropic wants to be told of a token that a sign-in gave
_POOL = httpx2.Limits(max_connections=512, max_keepalive_connections=64, keepalive_expiry=30.0)


class Upstream:
    """Asks the vendors. An async context manager; connections are closed at its end."""

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
        """The vendors' answers to requests that are sent, and paid, by an account."""
        return _Paid(self, account)

    @asynccontextmanager
    async def ask(self, asked: ModelRequest, account: str, passage: Passage) -> AsyncIterator[Reply]:
        """See `Answers.ask`."""
        address = self._settings.upstream(asked.route.vendor)
        credential = await self._broker.credential(asked.route.vendor, account)
        response = await self._send(asked, credential, address, passage)
        if response.status_code == 401 and credential.expires:
            # It was revoked, or expired earlier than it should: the next one may do. All of a body is at hand.
            await _closed(response)
            passage.come_back()
            credential = await self._broker.credential(asked.route.vendor, account, refused=credential.secret)
            response = await self._send(asked, credential, address, passage)
        try:
            if response.is_redirect:
                passage.come_back()
                raise UpstreamFailed(
                    f"{address} answered {response.status_code}, a redirect; redirects are not followed"
                )
            yield Reply(
                status=response.status_code,
                headers=tuple(_answered(response)),
                chunks=_chunks(response, address),
                source="upstream",
            )
        finally:
            await _closed(response)

    async def _send(
        self, asked: ModelRequest, credential: Credential, address: str, passage: Passage
    ) -> httpx2.Response:
        async def trace(event: str, facts: Mapping[str, object]) -> None:
            # Before that there was a connection to wait for, and perhaps a proxy to ask for one.
            if (
                event.endswith(".send_request_body.started")
                and getattr(facts.get("request"), "method", b"") != b"CONNECT"
            ):
                passage.leave()

        client = await self._connected()
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

    async def _connected(self) -> httpx2.AsyncClient:
        """The client, made when it is first needed: a session on a tape needs none."""
        if self._client is None:
            settings = self._settings
            for noisy in ("httpx2", "httpcore2"):
                # At DEBUG these log the headers of answers, before keys in them are masked.
                logging.getLogger(noisy).setLevel(logging.WARNING)
            client = httpx2.AsyncClient(
                # Trust and proxies come from the settings, not from whatever environment the daemon was started in.
                trust_env=False,
                transport=httpx2.AsyncHTTPTransport(
                    verify=_trust(settings), trust_env=False, limits=_POOL, proxy=settings.proxy or None, retries=1
                ),
                timeout=httpx2.Timeout(
                    connect=settings.connect_seconds, read=settings.silence_seconds, write=60.0, pool=60.0
                ),
                follow_redirects=False,
                # Bytes are passed as they come and read on the way, so they must not be compressed.
                headers={"accept-encoding": "identity", "user-agent": "hiveyard"},
            )
            self._client = await self._opened.enter_async_context(client)
        return self._client


def _trust(settings: DoorSettings) -> ssl.SSLContext | bool:
    if settings.ca_file:
        try:
            return ssl.create_default_context(cafile=settings.ca_file)
        except OSError as error:
            said = f"door.ca_file cannot be used: {error.strerror or type(error).__name__}"  # a guest is told it
            raise BadSetting(said, hint=f"ls -l {settings.ca_file}") from error
    plain = all(settings.upstream(vendor).startswith("http://") for vendor in ("anthropic", "openai"))
    return not plain  # reading the authorities takes 40 ms


class _Paid:
    """Answers of the vendors, on one account."""

    def __init__(self, upstream: Upstream, account: str) -> None:
        self._upstream = upstream
        self._account = account

    def ask(self, asked: ModelRequest, passage: Passage) -> AbstractAsyncContextManager[Reply]:
        return self._upstream.ask(asked, self._account, passage)


async def _closed(response: httpx2.Response) -> None:
    with anyio.CancelScope(shield=True), anyio.move_on_after(2):
        await response.aclose()


def _headers(asked: ModelRequest, credential: Credential) -> list[tuple[bytes, bytes]]:
    """As bytes: what a guest puts into its own is for the vendor to judge."""
    headers, key = list(asked.headers), credential.secret.reveal()
    if credential.expires:
        betas = [value for name, value in headers if name == "anthropic-beta"]
        headers = [(name, value) for name, value in headers if name != "anthropic-beta"]
        headers.append(("anthropic-beta", ",".join((*betas, _SIGNED_IN))))
    if asked.route.vendor == "anthropic" and not credential.expires:
        headers.append(("x-api-key", key))
    else:
        headers.append(("authorization", f"Bearer {key}"))
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]


def _answered(response: httpx2.Response) -> list[tuple[str, str]]:
    headers = routes.answered_headers(response.headers.items())
    if response.headers.get("content-encoding", "identity") != "identity":
        # It was compressed all the same: it is decoded here, and its length is another one now.
        headers = [(name, value) for name, value in headers if name != "content-length"]
    return headers


async def _chunks(response: httpx2.Response, address: str) -> AsyncIterator[bytes]:
    with _translated(address, begun=True):
        async for chunk in response.aiter_bytes():
            yield chunk


@contextmanager
def _translated(address: str, *, begun: bool = False) -> Iterator[None]:
    """Turns the client's errors into ours. Their texts name hosts and states, never headers; bodies are not in them."""
    try:
        yield
    except httpx2.TimeoutException as error:
        raise UpstreamFailed(f"{address} said nothing for too long ({type(error).__name__})") from error
    except httpx2.ConnectError as error:
        raise UpstreamFailed(f"{address} cannot be reached: {error}", hint="hv doctor") from error
    except httpx2.HTTPError as error:
        what = "cut its answer" if begun else "failed"
        raise UpstreamFailed(f"{address} {what}: {error or type(error).__name__}") from error
    except HiveyardError:
        raise
