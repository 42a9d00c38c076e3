"""Prompts are stored on the host until the agent takes them."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from hiveyard.core.events import TurnEnded
from tests.engine.conftest import Yard
from tests.engine.yards import answer, events, run_turn, spawned, wait_until
from tests.support.puppet import register

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def puppet() -> None:
    register()


async def test_a_lost_prompt_fails_only_its_own_turn(yard: Yard, repo: Path) -> None:
    async with yard.open() as engine:
        id = await spawned(engine, repo)
        for number, text in enumerate(("wait", "remember pear", "remember plum", "remember fig"), 1):
            assert await engine.sessions.send(id, text) == number
        prompts = yard.paths.sessions / id / "prompts"
        (prompts / "2.txt").unlink()
        with (prompts / "4.txt").open("ab") as file:
            file.truncate(1 << 30)
        await wait_until(engine, id, lambda view: view.activity == "thinking")
        await engine.sessions.interrupt(id)
        with anyio.fail_after(60):
            for turn in (2, 3, 4):
                await answer(engine, id, turn)
        ended = {event.turn: event.body for event in await events(engine, id, "turn.ended")}
        for turn, why in ((2, "No such file"), (4, "longer than any prompt")):
            failed = ended[turn]
            assert isinstance(failed, TurnEnded) and failed.failure is not None
            assert (failed.outcome, failed.failure.code) == ("failed", "session.damaged")
            assert failed.failure.message.startswith(f"the prompt of turn {turn} is lost: ")
            assert why in failed.failure.message
        assert await run_turn(engine, id, "recall") == "kept: plum"
        await engine.sessions.stop(id)
