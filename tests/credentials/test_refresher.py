"""One writer of an account's tokens, for any number of callers and processes."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from hiveyard.core.errors import KeyMissing, SignInRefused, SignInUnavailable
from hiveyard.credentials.claude_oauth import Tokens, begin, exchange
from hiveyard.credentials.refresher import Refresher
from hiveyard.kit.clock import SystemClock
from hiveyard.kit.files import locked

from .keeper import Keeper
from .oauth_server import OAuthServer, answer, oauth_server

pytestmark = pytest.mark.anyio
ROOT = Path(__file__).resolve().parents[2]


class HeldClock(SystemClock):
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.at = 1_700_000_000.0

    def now(self) -> float:
        return self.at


@pytest.fixture
def server() -> Iterator[OAuthServer]:
    with oauth_server() as server:
        yield server


@pytest.fixture
def keeper(tmp_path: Path) -> Keeper:
    return Keeper(tmp_path / "tokens.json")


@pytest.fixture
def clock() -> HeldClock:
    return HeldClock()


@pytest.fixture
async def first(server: OAuthServer, keeper: Keeper, clock: HeldClock) -> Tokens:
    """Return the tokens of a saved sign-in."""
    sign_in = begin(server.settings())
    tokens = await exchange(server.settings(), sign_in, server.approve(sign_in.url), clock=clock)
    await keeper.save(tokens)
    return tokens


@pytest.fixture
def refresher(server: OAuthServer, keeper: Keeper, clock: HeldClock) -> Refresher:
    return another(server, keeper, clock)


def another(server: OAuthServer, keeper: Keeper, clock: HeldClock) -> Refresher:
    return Refresher(
        server.settings(), keeper.load, keeper.save, lock=keeper.path.with_name("lock"), margin=300, clock=clock
    )


async def ask_at_once(refresher: Refresher, times: int) -> set[str]:
    found: set[str] = set()

    async def one() -> None:
        found.add((await refresher.tokens()).access.reveal())

    async with anyio.create_task_group() as group:
        for _ in range(times):
            group.start_soon(one)
    return found


async def test_valid_tokens_are_not_refreshed(server: OAuthServer, refresher: Refresher, first: Tokens) -> None:
    assert await ask_at_once(refresher, 10) == {first.access.reveal()}
    assert server.refreshes == 0


async def test_an_expired_token_is_refreshed_once_for_all_callers(
    server: OAuthServer, refresher: Refresher, first: Tokens, clock: HeldClock
) -> None:
    await refresher.tokens()
    clock.at += server.life - 299
    (fresh,) = await ask_at_once(refresher, 50)
    assert fresh != first.access.reveal()
    assert server.refreshes == 1


async def test_tokens_with_a_lifetime_under_the_margin_are_refreshed_after_half_of_it(
    server: OAuthServer, refresher: Refresher, first: Tokens, clock: HeldClock
) -> None:
    server.life = 200
    clock.at = first.expires_at
    (fresh,) = await ask_at_once(refresher, 10)
    clock.at += 99
    assert await ask_at_once(refresher, 10) == {fresh}
    assert server.refreshes == 1
    clock.at += 2
    (later,) = await ask_at_once(refresher, 10)
    assert later != fresh
    assert server.refreshes == 2


async def test_a_token_that_the_vendor_refused_is_replaced_once(
    server: OAuthServer, refresher: Refresher, first: Tokens
) -> None:
    fresh = await refresher.tokens(refused=first.access)
    assert fresh.access != first.access
    assert (await refresher.tokens(refused=first.access)).access == fresh.access
    assert server.refreshes == 1


async def test_tokens_that_another_refresher_saved_are_used(
    server: OAuthServer, refresher: Refresher, keeper: Keeper, first: Tokens, clock: HeldClock
) -> None:
    other = another(server, keeper, clock)
    await other.tokens()
    clock.at += server.life
    fresh = await refresher.tokens()
    assert (await other.tokens()).access == fresh.access
    assert server.refreshes == 1


async def test_two_processes_refresh_one_after_the_other(server: OAuthServer, keeper: Keeper, first: Tokens) -> None:
    # The lifetime is so short that each call refreshes. A refresh token used twice would end the sign-in.
    server.life = 1e-6
    said = run_processes(server, keeper, processes=2, times=10, margin=60)
    assert server.reuses == 0
    assert server.refreshes == 20
    assert len(set(said)) == 20


async def test_two_processes_with_an_expired_token_refresh_it_once(
    server: OAuthServer, keeper: Keeper, first: Tokens
) -> None:
    # The clock of the first tokens is in the past.
    said = run_processes(server, keeper, processes=2, times=3, margin=60)
    assert server.refreshes == 1
    assert len(set(said)) == 1


def run_processes(server: OAuthServer, keeper: Keeper, *, processes: int, times: int, margin: float) -> list[str]:
    """Return the tokens that several processes got, which started at the same moment."""
    words = [str(keeper.path), str(keeper.path.with_name("lock")), server.url, str(times), str(margin)]
    argv = [sys.executable, "-m", "tests.credentials.keeper", *words]
    running = [
        subprocess.Popen(argv, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(processes)
    ]
    try:
        for process in running:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in running:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        said = [process.communicate(timeout=120)[0].split() for process in running]
        assert [process.returncode for process in running] == [0] * processes
    finally:
        for process in running:
            process.kill()
            process.wait()
    return [line for lines in said for line in lines]


async def test_a_missing_sign_in_is_an_error(refresher: Refresher) -> None:
    with pytest.raises(KeyMissing, match="has no sign-in"):
        await refresher.tokens()


async def test_tokens_that_could_not_be_saved_are_saved_by_the_next_call(
    server: OAuthServer, refresher: Refresher, keeper: Keeper, first: Tokens, clock: HeldClock
) -> None:
    clock.at += server.life
    keeper.broken = True
    for _ in range(2):
        with pytest.raises(OSError, match="No space left"):
            await refresher.tokens()
    keeper.broken = False
    fresh = await refresher.tokens()
    assert server.refreshes == 1
    assert fresh.access != first.access
    stored = await keeper.load()
    assert stored is not None
    assert stored.refresh == fresh.refresh


async def test_a_new_sign_in_is_not_overwritten_by_unsaved_tokens(
    server: OAuthServer, refresher: Refresher, keeper: Keeper, first: Tokens, clock: HeldClock
) -> None:
    clock.at += server.life
    keeper.broken = True
    with pytest.raises(OSError, match="No space left"):
        await refresher.tokens()
    keeper.broken = False
    sign_in = begin(server.settings())
    anew = await exchange(server.settings(), sign_in, server.approve(sign_in.url), clock=clock)
    await keeper.save(anew)
    assert (await refresher.tokens()).access == anew.access


async def test_a_refresh_whose_caller_is_cancelled_is_finished_and_saved(
    server: OAuthServer, refresher: Refresher, keeper: Keeper, first: Tokens, clock: HeldClock
) -> None:
    clock.at += server.life
    arrived, go_on = threading.Event(), threading.Event()

    def slow(to: BaseHTTPRequestHandler) -> None:
        arrived.set()
        go_on.wait(60)
        assert first.refresh is not None
        asked = {"client_id": server.settings().client_id, "grant_type": "refresh_token"}
        given = server.token({**asked, "refresh_token": first.refresh.reveal()})
        answer(to, 200, json.dumps(given).encode())

    server.trouble.append(slow)
    async with anyio.create_task_group() as group:
        group.start_soon(refresher.tokens)
        await anyio.to_thread.run_sync(arrived.wait)
        group.cancel_scope.cancel()
        go_on.set()
    stored = await keeper.load()
    assert stored is not None
    assert stored.refresh != first.refresh
    assert (await refresher.tokens()).refresh == stored.refresh
    assert server.refreshes == 1


async def test_a_refusal_reaches_each_caller_and_a_later_call_tries_again(
    server: OAuthServer, refresher: Refresher, first: Tokens, clock: HeldClock
) -> None:
    clock.at += server.life
    server.trouble.append(lambda to: answer(to, 503, b""))
    with pytest.raises(SignInUnavailable):
        await refresher.tokens()
    await refresher.tokens()
    server.good.clear()
    clock.at += server.life
    with pytest.raises(SignInRefused):
        await refresher.tokens()


async def test_a_token_is_used_while_the_sign_in_service_fails(
    server: OAuthServer, refresher: Refresher, first: Tokens, clock: HeldClock
) -> None:
    clock.at += server.life - 299
    server.trouble.append(lambda to: answer(to, 503, b""))
    assert await ask_at_once(refresher, 10) == {first.access.reveal()}
    clock.at += 29
    assert await ask_at_once(refresher, 10) == {first.access.reveal()}, "it is not asked again and again"
    assert server.refreshes == 0
    server.trouble.append(lambda to: answer(to, 503, b""))
    with pytest.raises(SignInUnavailable):
        await refresher.tokens(refused=first.access)
    clock.at += 31
    (fresh,) = await ask_at_once(refresher, 10)
    assert fresh != first.access.reveal()
    assert server.refreshes == 1


async def test_a_token_that_cannot_be_refreshed_is_used_until_it_expires(
    refresher: Refresher, keeper: Keeper, first: Tokens, clock: HeldClock
) -> None:
    await keeper.save(replace(first, refresh=None))
    clock.at = first.expires_at - 1
    assert (await refresher.tokens()).access == first.access
    clock.at += 2
    with pytest.raises(SignInRefused, match="no refresh token"):
        await refresher.tokens()


async def test_waiting_for_another_process_can_be_cancelled(
    server: OAuthServer, refresher: Refresher, keeper: Keeper, first: Tokens
) -> None:
    with locked(keeper.path.with_name("lock")):
        with anyio.move_on_after(0.2) as scope:
            await refresher.tokens()
        assert scope.cancelled_caught
    assert (await refresher.tokens()).access == first.access
