"""The way to the vendors: one pool of connections for all doors, the real key added at the last moment.

Redirects are not followed: a key goes to the address that was set and to no other.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager

import anyio
import httpx2

from hiveyard.core.errors import BadSetting, HiveyardError, UpstreamFailed
from hiveyard.door import routes
from hiveyard.door.asked import Asked
from hiveyard.door.keys import Keys
from hiveyard.door.reply import Reply
from hiveyard.door.settings import DoorSettings
from hiveyard.kit.secret import Secret

_POOL = httpx2.Limits(max_connections=512, max_keepalive_connections=64, keepalive_expiry=30.0)


class Upstream:
    """Asks the vendors. An async context manager; connections are closed at its end."""

    def __init__(self, settings: DoorSettings, keys: Keys) -> None:
        self._settings = settings
        self._keys = keys
        self._client: httpx2.AsyncClient | None = None
        self._opened = AsyncExitStack()

    async def __aenter__(self) -> Upstream:
        return self

    async def __aexit__(self, *failure: object) -> None:
        with anyio.CancelScope(shield=True), anyio.move_on_after(5):
            await self._opened.aclose()

    @asynccontextmanager
    async def ask(self, asked: Asked) -> AsyncIterator[Reply]:
        """See `Answers.ask`."""
        vendor = asked.route.vendor
        key = self._keys.find(vendor)
        client = await self._connected()
        address = self._settings.upstream(vendor)
        url = httpx2.URL(address + asked.route.path).copy_with(query=asked.query or None)
        request = client.build_request(
            asked.route.method, url, headers=_headers(asked, key), content=asked.body or None
        )
        with _translated(address):
            response = await client.send(request, stream=True)
        try:
            if response.is_redirect:
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
            with anyio.CancelScope(shield=True), anyio.move_on_after(2):
                await response.aclose()

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
            raise BadSetting(f"door.ca_file {settings.ca_file} cannot be used: {error}") from error
    plain = all(settings.upstream(vendor).startswith("http://") for vendor in ("anthropic", "openai"))
    return not plain  # reading the authorities takes 40 ms


def _headers(asked: Asked, key: Secret) -> list[tuple[str, str]]:
    headers = list(asked.headers)
    if asked.route.vendor == "anthropic":
        return [*headers, ("x-api-key", key.reveal())]
    return [*headers, ("authorization", f"Bearer {key.reveal()}")]


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
