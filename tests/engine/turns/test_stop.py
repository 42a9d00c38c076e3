"""Asking for the end of a task."""

from __future__ import annotations

import anyio
import pytest

from hiveyard.core.errors import AgentTimeout, Cancelled
from hiveyard.engine.turns.stop import Stop


@pytest.mark.anyio
async def test_what_may_be_abandoned_is_cancelled_and_the_reason_is_raised() -> None:
    stop = Stop()
    async with anyio.create_task_group() as group:
        group.start_soon(_ask_soon, stop)
        with pytest.raises(Cancelled, match="enough"), stop.cancel_on_request():
            await anyio.sleep_forever()


async def _ask_soon(stop: Stop) -> None:
    await anyio.lowlevel.checkpoint()
    stop.request(Cancelled("enough"))


@pytest.mark.anyio
async def test_nothing_begins_after_the_end_was_asked_for() -> None:
    stop = Stop()
    stop.request(Cancelled("enough"))
    begun = False
    with pytest.raises(Cancelled), stop.cancel_on_request():
        begun = True
    assert not begun


@pytest.mark.anyio
async def test_the_first_reason_stays() -> None:
    stop = Stop()
    stop.request(AgentTimeout("first"))
    stop.request(Cancelled("second"))
    assert (await stop.wait()).message == "first"


@pytest.mark.anyio
async def test_a_block_that_ends_by_itself_raises_nothing() -> None:
    stop = Stop()
    with stop.cancel_on_request():
        await anyio.lowlevel.checkpoint()
    assert stop.reason is None
