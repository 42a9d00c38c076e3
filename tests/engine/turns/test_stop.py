"""Requests to end a task."""

from __future__ import annotations

import anyio
import pytest

from hiveyard.core.errors import AgentTimeout, Cancelled
from hiveyard.engine.turns.stop import Stop


@pytest.mark.anyio
async def test_a_request_cancels_the_block_and_raises_the_reason() -> None:
    stop = Stop()
    async with anyio.create_task_group() as group:
        group.start_soon(_ask_soon, stop)
        with pytest.raises(Cancelled, match="enough"), stop.cancel_on_request():
            await anyio.sleep_forever()


async def _ask_soon(stop: Stop) -> None:
    await anyio.lowlevel.checkpoint()
    stop.request(Cancelled("enough"))


@pytest.mark.anyio
async def test_no_block_starts_after_a_request() -> None:
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
