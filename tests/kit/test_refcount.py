from __future__ import annotations

import anyio
import anyio.lowlevel
import pytest

from hiveyard.kit.refcount import RefCounted

pytestmark = pytest.mark.anyio


async def test_the_last_user_closes_it_and_it_can_be_used_again() -> None:
    closed: list[str] = []

    async def close() -> None:
        closed.append("closed")

    shared = RefCounted(close)
    for times in (1, 2):
        first, second = shared.used(), shared.used()
        await first.__aenter__()
        async with second:
            await first.__aexit__(None, None, None)
            assert len(closed) == times - 1
        assert len(closed) == times


async def test_a_cancelled_user_closes_it_completely() -> None:
    closed: list[str] = []

    async def close() -> None:
        await anyio.lowlevel.checkpoint()
        closed.append("closed")

    with anyio.CancelScope() as scope:
        async with RefCounted(close).used():
            scope.cancel()
            await anyio.sleep_forever()
    assert closed == ["closed"]
