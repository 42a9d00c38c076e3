"""The account that pays for a task."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from hiveyard.core.errors import BadInput
from hiveyard.engine.tasks.request import TaskRequest
from hiveyard.kit.files import write_atomic
from tests.door.upstream import upstream, whole
from tests.engine.conftest import Yard, asked, done
from tests.engine.yards import spawned, wait_until
from tests.support.puppet import register

pytestmark = pytest.mark.anyio
ASK = 'curl -sSf -H "x-api-key: $ANTHROPIC_API_KEY" "$ANTHROPIC_BASE_URL/v1/models"'


def write_keys(yard: Yard) -> None:
    keys = (
        '[accounts.work]\nanthropic = "sk-Zq8TestSecret-work"\n[accounts.home]\nanthropic = "sk-Zq8TestSecret-home"\n'
    )
    write_atomic(yard.paths.keys, keys.encode(), mode=0o600)


async def test_a_task_uses_the_account_it_names_or_the_default_one(yard: Yard, repo: Path) -> None:
    write_keys(yard)
    yard.settings = replace(yard.settings, engine=replace(yard.settings.engine, account="home"))
    async with upstream(whole(b'{"data": []}')) as up:
        yard.environment["HIVEYARD_ANTHROPIC_UPSTREAM"] = up.url
        async with yard.open() as engine:
            for account in ("work", None):
                report = await done(engine, await engine.submit(asked(repo, ASK, account=account)))
                assert report.exit_code == 0, report
    assert [request.header("x-api-key") for request in up.requests] == [
        "sk-Zq8TestSecret-work",
        "sk-Zq8TestSecret-home",
    ]


async def test_an_unknown_account_is_refused_before_there_is_a_task(yard: Yard, repo: Path) -> None:
    write_keys(yard)
    async with yard.open() as engine:
        with pytest.raises(BadInput, match="there is no account 'wrok'") as caught:
            await engine.submit(asked(repo, "true", account="wrok"))
        assert caught.value.hint == "accounts: home, work"


async def test_a_claude_sign_in_is_only_for_claude_code(yard: Yard, repo: Path) -> None:
    keys = '[accounts.mine]\nclaude_sign_in = "mine.json"\nopenai = "sk-Zq8TestSecret-of-this-account"\n'
    write_atomic(yard.paths.keys, keys.encode(), mode=0o600)
    async with yard.open() as engine:
        for agent in ("opencode", "command"):
            request = replace_agent(asked(repo, "true", account="mine"), agent)
            with pytest.raises(BadInput, match=f"Anthropic's own programs only, and the agent is {agent}"):
                await engine.submit(request)


async def test_a_session_whose_account_is_missing_resumes_when_it_is_back(yard: Yard, repo: Path) -> None:
    register()
    write_keys(yard)
    async with yard.open() as engine:
        id = await spawned(engine, repo, account="work")
        await engine.sessions.stop(id)
        yard.paths.keys.write_text('[accounts.home]\nanthropic = "sk-Zq8TestSecret-home"\n')
        with pytest.raises(BadInput, match="there is no account 'work'") as caught:
            await engine.sessions.resume(id)
        assert caught.value.hint == "accounts: home"
        assert (await engine.sessions.view(id)).status == "stopped"
        write_keys(yard)
        await engine.sessions.resume(id)
        await wait_until(engine, id, lambda view: view.status == "running")


def replace_agent(request: TaskRequest, agent: str) -> TaskRequest:
    return msgspec.structs.replace(request, agent=agent, command="true" if agent == "command" else None)
