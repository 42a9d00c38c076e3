"""A guest that does not answer when its clock is set."""

from __future__ import annotations

import anyio
import pytest

from hiveyard.machines.qemu.personalize import set_time
from tests.support.leaks import searched_directory

pytestmark = pytest.mark.anyio


async def test_setting_the_clock_of_a_silent_guest_times_out() -> None:
    with searched_directory() as place:
        async with await anyio.create_unix_listener(place / "become"):
            with anyio.fail_after(30), pytest.raises(TimeoutError):
                await set_time(place / "become", "m", within=0.1)
                raise AssertionError("the guest answered")
