"""A guest that is told the time and says nothing."""

from __future__ import annotations

import anyio
import pytest

from hiveyard.machines.qemu.personalize import tick
from tests.support.leaks import searched_directory

pytestmark = pytest.mark.anyio


async def test_a_guest_that_does_not_take_the_time_is_not_waited_for_for_ever() -> None:
    with searched_directory() as place:
        async with await anyio.create_unix_listener(place / "become"):
            with anyio.fail_after(30), pytest.raises(TimeoutError):
                await tick(place / "become", "m", within=0.1)
                raise AssertionError("it was taken")
