"""Values that a request leaves open come from the settings, and do not change later."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from hiveyard import config
from hiveyard.core.errors import BadSetting
from hiveyard.engine.settings import AgentSettings, EngineSettings
from hiveyard.engine.tasks.request import TaskRequest
from hiveyard.engine.validation import with_defaults
from tests.engine.conftest import Yard, done

pytestmark = pytest.mark.anyio


async def wished(yard: Yard, agent: str, asked: str | None = None, **settings: str) -> TaskRequest:
    engine = replace(yard.settings.engine, image=settings.pop("default", "default"))
    parts = config.Settings(engine=engine, agents={agent: AgentSettings(**settings)})
    async with Yard(yard.home, parts, {}).open() as opened:
        return with_defaults(TaskRequest(repo="/r", prompt="do it", agent=agent, image=asked), opened._r)


@pytest.mark.parametrize(
    ("agent", "settings", "image"),
    [
        ("claude", {}, None),
        ("codex", {}, "codex"),
        ("goose", {"image": "mine"}, "mine"),
        ("goose", {"default": "host"}, None),
    ],
)
async def test_an_agent_gets_an_image_that_contains_it(
    yard: Yard, agent: str, settings: dict[str, str], image: str | None
) -> None:
    assert (await wished(yard, agent, **settings)).image == image
    assert (await wished(yard, agent, "other", **settings)).image == "other"


async def test_an_agent_has_its_own_model_and_account(yard: Yard) -> None:
    spec = await wished(yard, "opencode", model="one", account="work")
    assert (spec.model, spec.account) == ("one", "work")


async def test_a_task_keeps_the_model_of_its_creation(yard: Yard, repo: Path) -> None:
    asked = TaskRequest(repo=str(repo), prompt="do it", agent="command", command="true")
    parts = replace(yard.settings, agents={"command": AgentSettings(model="one")})
    async with Yard(yard.home, parts, {}).open() as engine:
        id = await engine.submit(asked)
        await done(engine, id)
    async with yard.open() as engine:
        assert (await engine.report(id)).model == "one"


async def test_an_unknown_agent_in_the_settings_is_refused(yard: Yard) -> None:
    parts = config.Settings(engine=EngineSettings(), agents={"cluade": AgentSettings(model="one")})
    with pytest.raises(BadSetting, match=r"agents\.cluade") as raised:
        async with Yard(yard.home, parts, {}).open():
            pass
    assert "claude" in raised.value.hint
