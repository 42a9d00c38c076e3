"""A manager acts on the other members by its tools, and never undoes what the operator did."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.engine.conftest import Yard

from .conftest import Stage, opened

pytestmark = pytest.mark.anyio


async def told(stage: Stage, tool: str, **arguments: object) -> str:
    """Let the manager call a tool for ada; return the answer."""
    call = f"tool {tool} {json.dumps({'name': 'ada', **arguments})}"
    await stage.turn_of(await stage.send("max", call))
    return (await stage.said("max"))[-1]


async def test_a_manager_reads_stops_starts_and_restarts_a_member(yard: Yard, repo: Path) -> None:
    async with opened(yard, repo) as stage:
        await stage.add("max", role="manager")
        await stage.add("ada")
        await stage.turn_of(await stage.send("ada", "remember \x1b[31mapple"))
        lines = (await told(stage, "logs", lines=9)).splitlines()
        assert len(lines) == 9 and "remember apple" in lines
        assert await told(stage, "stop") == "ada is stopped; its mail waits"
        assert (await stage.members.view("ada")).state == "stopped"
        assert await told(stage, "start") == "ada starts when there is room"
        await stage.until("ada", lambda view: view.state == "idle")
        assert await told(stage, "restart") == "ada starts again when there is room"
        await stage.until("ada", lambda view: view.state == "idle")
        assert [body.type for body in await stage.bodies("ada")].count("session.running") == 3
        assert "cannot do this to itself" in await told(stage, "stop", name="max")
        await stage.members.nap("ada", 600)
        assert "ada naps: only the operator wakes it" in await told(stage, "wake")
        await stage.members.stop("ada")
        assert "only the operator starts ada now" in await told(stage, "start")
        assert "only the operator starts ada now" in await told(stage, "restart")
        await stage.members.stop("max")


async def test_a_manager_wakes_a_member_that_is_asleep(yard: Yard, repo: Path) -> None:
    async with opened(yard, repo, asleep_after=0.3) as stage:
        await stage.add("max", "hello", role="manager")
        await stage.add("ada", "remember apple")
        await stage.until("ada", lambda view: view.state == "asleep")
        assert "ada is awake" in await told(stage, "wake")
        woken = [body for body in await stage.bodies("ada") if body.type == "member.woken"]
        assert [body.by for body in woken] == ["max"]  # type: ignore[union-attr]
        for name in ("ada", "max"):
            await stage.members.stop(name)
