"""Accounts: the key of a request, and one sign-in that many doors share."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import anyio
import msgspec
import pytest
from anyio.abc import SocketStream

from hiveyard.core.errors import BadInput, CredentialsError, KeyMissing
from hiveyard.core.events import ModelFailed
from hiveyard.credentials.claude_oauth import begin, exchange
from hiveyard.door.doors import Doors
from hiveyard.door.keys import Keys
from hiveyard.door.settings import DoorSettings
from hiveyard.kit.files import write_atomic
from hiveyard.kit.secret import Secret
from tests.credentials.oauth_server import CLIENT, OAuthServer, answer, oauth_server
from tests.support.leaks import Said, listening

from .house import PLACEHOLDER, MemoryJournal, guest, message
from .upstream import Request, Upstream, upstream, whole

pytestmark = pytest.mark.anyio
GUESTS = 12


def key_file(directory: Path, content: str) -> Path:
    file = directory / "keys.toml"
    write_atomic(file, content.encode(), mode=0o600)
    return file


@pytest.fixture
def server() -> Iterator[OAuthServer]:
    with oauth_server() as server:
        yield server


@pytest.fixture
def said(server: OAuthServer) -> Iterator[Said]:
    """Collect all output of a test. At its end the output must not contain a token of the server."""
    with listening() as said:
        yield said
    said.none_of(server.issued)


@pytest.fixture
async def keys(server: OAuthServer, tmp_path: Path) -> Path:
    """Write a keys.toml with one account that has a sign-in, and one that has a key."""
    sign_in = begin(server.settings())
    tokens = await exchange(server.settings(), sign_in, server.approve(sign_in.url))
    write_atomic(tmp_path / "mine.json", tokens.file().reveal().encode(), mode=0o600)
    return key_file(
        tmp_path,
        f'[accounts.mine]\nclaude_sign_in = "mine.json"\ntoken_url = "{server.url}/token"\nclient_id = "{CLIENT}"\n'
        '[accounts.work]\nanthropic = "sk-ant-Zq8TestSecret-work"\n',
    )


@pytest.fixture
async def vendor(server: OAuthServer) -> AsyncIterator[Upstream]:
    """Accept the valid access tokens of the server, and echo the token of the request."""

    async def check(request: Request, stream: SocketStream) -> None:
        shown = (request.header("authorization") or "").removeprefix("Bearer ")
        status = 200 if shown in server.access else 401
        await whole(json.dumps({"shown": shown}).encode(), status=status)(request, stream)

    async with upstream(check) as up:
        yield up


async def ask_all(keys: Path, vendor: Upstream, journal: MemoryJournal, said: Said, *, daemons: int = 1) -> list[int]:
    """Return the answers to many guests, each with its own door, that send requests at the same time."""
    settings = DoorSettings(anthropic_upstream=vendor.url, openai_upstream=vendor.url)
    got: list[int] = []

    async def one(doors: Doors, number: int) -> None:
        directory = keys.parent / f"door-{number}"
        directory.mkdir(exist_ok=True)
        opening = doors.open(
            session=f"s{number}", directory=directory, placeholder=Secret(PLACEHOLDER), account="mine", turn=1
        )
        async with opening as door, guest(door) as client:
            answered = await client.post(
                "/anthropic/v1/messages", json=message(), headers={"anthropic-beta": "something-2026"}
            )
            got.append(answered.status_code)
            said.add(f"{answered.text} {answered.headers}")

    async with AsyncExitStack() as stack:
        open_doors = [
            await stack.enter_async_context(Doors(settings, Keys({}, keys), journal.record)) for _ in range(daemons)
        ]
        async with anyio.create_task_group() as group:
            for number in range(GUESTS):
                group.start_soon(one, open_doors[number % daemons], number)
    said.add(msgspec.json.encode([event for _, _, event in journal.events]).decode())
    return got


async def test_guests_share_a_sign_in_and_see_nothing_of_it(
    server: OAuthServer, keys: Path, vendor: Upstream, said: Said
) -> None:
    assert await ask_all(keys, vendor, MemoryJournal(), said) == [200] * GUESTS
    assert server.refreshes == 0
    assert {request.header("anthropic-beta") for request in vendor.requests} == {"something-2026,oauth-2025-04-20"}
    assert {request.header("x-api-key") for request in vendor.requests} == {None}


@pytest.mark.parametrize("daemons", [1, 2])
async def test_a_token_that_is_revoked_early_is_refreshed_once_for_all_guests(
    server: OAuthServer, keys: Path, vendor: Upstream, said: Said, daemons: int
) -> None:
    assert await ask_all(keys, vendor, MemoryJournal(), said, daemons=daemons) == [200] * GUESTS
    server.access.clear()
    assert await ask_all(keys, vendor, MemoryJournal(), said, daemons=daemons) == [200] * GUESTS
    assert (server.refreshes, server.reuses) == (1, 0)


async def test_a_token_that_has_expired_is_refreshed_before_it_is_sent(
    server: OAuthServer, keys: Path, vendor: Upstream, said: Said
) -> None:
    stored = json.loads((keys.parent / "mine.json").read_text())
    stored["claudeAiOauth"]["expiresAt"] = 1_700_000_000_000
    write_atomic(keys.parent / "mine.json", json.dumps(stored).encode(), mode=0o600)
    assert await ask_all(keys, vendor, MemoryJournal(), said, daemons=2) == [200] * GUESTS
    assert (server.refreshes, server.reuses) == (1, 0)
    assert len(vendor.requests) == GUESTS
    kept = keys.parent / "mine.json"
    assert kept.stat().st_mode & 0o777 == 0o600
    assert json.loads(kept.read_text())["claudeAiOauth"]["accessToken"] in server.access


async def test_a_revoked_sign_in_is_reported_to_the_agent_and_to_the_user(
    server: OAuthServer, keys: Path, vendor: Upstream, said: Said
) -> None:
    server.access.clear()
    server.good.clear()
    journal = MemoryJournal()
    assert await ask_all(keys, vendor, journal, said) == [401] * GUESTS
    assert {event.failure.code for event in journal.of(ModelFailed)} == {"credentials.sign_in_refused"}


@pytest.mark.parametrize(
    ("status", "seen", "code"),
    [(429, 429, "credentials.sign_in_rate_limited"), (503, 502, "credentials.sign_in_unavailable")],
)
async def test_an_outage_of_the_sign_in_service_is_a_temporary_error(
    server: OAuthServer, keys: Path, vendor: Upstream, said: Said, status: int, seen: int, code: str
) -> None:
    server.access.clear()
    server.trouble = [lambda to: answer(to, status, b"{}")] * GUESTS
    journal = MemoryJournal()
    assert await ask_all(keys, vendor, journal, said) == [seen] * GUESTS
    assert {event.failure.code for event in journal.of(ModelFailed)} == {code}


async def test_an_account_pays_with_its_own_key_and_with_no_other(tmp_path: Path) -> None:
    lines = 'openai = "sk-Zq8TestSecret-other"\n[accounts.work]\nanthropic = "sk-ant-Zq8TestSecret-work"\n'
    environment = dict.fromkeys(("ANTHROPIC_API_KEY", "OPENAI_API_KEY"), "sk-Zq8TestSecret-of-the-environment")
    keys = Keys(environment, key_file(tmp_path, lines))
    journal = MemoryJournal()
    async with upstream(whole(b"{}")) as up:
        settings = DoorSettings(anthropic_upstream=up.url, openai_upstream=up.url)
        async with Doors(settings, keys, journal.record) as doors:
            opening = doors.open(session="s1", directory=tmp_path, placeholder=Secret(PLACEHOLDER), account="work")
            async with opening as door, guest(door) as client:
                first = await client.post("/anthropic/v1/messages", json=message())
                second = await client.post("/openai/v1/responses", json={})
                key_file(tmp_path, "")
                third = await client.post("/anthropic/v1/messages", json=message())
    assert [one.status_code for one in (first, second, third)] == [200, 401, 401]
    assert [request.header("x-api-key") for request in up.requests] == ["sk-ant-Zq8TestSecret-work"]
    assert "the account work has no key for openai" in second.text
    assert "there is no account work in keys.toml" in third.text


def test_an_unknown_account_is_bad_input_before_anything_starts(tmp_path: Path) -> None:
    keys = Keys({}, key_file(tmp_path, '[accounts.work]\nanthropic = "sk-ant-Zq8TestSecret-work"\n'))
    keys.check("")
    keys.check("work")
    with pytest.raises(BadInput, match=r"no account 'wrok' in keys\.toml") as caught:
        keys.check("wrok")
    assert caught.value.hint == "accounts: work"
    (tmp_path / "keys.toml").chmod(0o644)
    keys.check("")  # without an account none is needed
    with pytest.raises(CredentialsError, match="others can read"):
        keys.check("work")


@pytest.mark.parametrize(
    "content",
    [
        "accounts = 'sk-Zq8TestSecret'",
        "accounts.work = 'sk-Zq8TestSecret'",
        "[accounts.'sk work']\nanthropic = 'sk-Zq8TestSecret'",
        "[accounts.work]\ngemini = 'sk-Zq8TestSecret'",
        "[accounts.work]\nanthropic = 'sk-Zq8TestSecret'\nclaude_sign_in = 'mine.json'",
        "[accounts.work]\nclaude_sign_in = 'mine.json'\ntoken_url = 'http://example.org/sk-Zq8TestSecret'",
        "[accounts.work]\nclaude_sign_in = 'mine.json'\ntoken_url = 'https://[sk-Zq8TestSecret'",
        "[accounts.work]\nclaude_sign_in = 'mine.json'\ntoken_url = 'https://[::sk-Zq8TestSecret]/token'",
        "[accounts.work]\nclaude_sign_in = 'mine.json'\ntoken_url = 'https://example.org:sk-Zq8TestSecret/'",
        '[accounts.work]\nclaude_sign_in = "mine.json"\ntoken_url = "https://example.org/sk-Zq8TestSecret\\u0000secret"',
        "[accounts.work]\nclaude_sign_in = '~sk-Zq8TestSecret/mine.json'",
        '[accounts.work]\nclaude_sign_in = "sk-Zq8TestSecret\\u0000secret"',
        "claude_sign_in = 'sk-Zq8TestSecret'",
    ],
)
def test_an_invalid_account_is_an_error_that_shows_no_key(tmp_path: Path, content: str) -> None:
    with pytest.raises(CredentialsError) as caught:
        Keys({}, key_file(tmp_path, content)).account("work")
    assert type(caught.value) is CredentialsError, "and not that there is no such account"
    assert "Zq8TestSecret" not in f"{caught.value.message} {caught.value.hint}"


def loose(file: Path) -> None:
    file.chmod(0o644)


def broken(file: Path) -> None:
    file.write_text("{")


@pytest.mark.parametrize("harm", [Path.unlink, loose, broken])
async def test_an_unusable_file_of_tokens_is_reported(
    keys: Path, vendor: Upstream, said: Said, harm: Callable[[Path], None]
) -> None:
    harm(keys.parent / "mine.json")
    journal = MemoryJournal()
    assert await ask_all(keys, vendor, journal, said) == [401] * GUESTS
    assert all(event.failure.code.startswith("credentials") for event in journal.of(ModelFailed))
    assert vendor.requests == []


def test_a_missing_account_has_no_key() -> None:
    with pytest.raises(KeyMissing):
        Keys({"ANTHROPIC_API_KEY": "sk-Zq8TestSecret-of-the-environment"}).find("anthropic", "work")
