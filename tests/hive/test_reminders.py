"""Reminders: delivered once, also late, and whatever the wall clock does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hiveyard.core.errors import BadInput, NotFound
from hiveyard.core.states import MessageState
from hiveyard.hive.reminders import MAX_REMINDERS, ReminderRequest
from hiveyard.store.hive_views import ReminderRow

from .facts import Facts, facts

pytestmark = pytest.mark.anyio


async def remind(hive: Facts, name: str = "ada", **more: Any) -> ReminderRow:
    if "in_" not in more and "at" not in more and "every" not in more:
        more["in_"] = 60.0
    return await hive.hive.reminders.set(name, ReminderRequest(text="look", **more))


async def texts(hive: Facts) -> list[str]:
    return [row.text for row in await hive.waiting("ada")]


async def test_a_reminder_is_delivered_once_when_it_is_due(tmp_path: Path) -> None:
    async with facts(tmp_path) as hive:
        await hive.join("ada")
        await remind(hive)
        await hive.pass_time(59)
        assert await texts(hive) == []
        for _ in range(3):
            await hive.pass_time(1)
        assert await texts(hive) == ["look"]
        [row] = await hive.waiting("ada")
        assert (row.kind, row.sender) == ("reminder", "hive")
        assert await hive.hive.reminders.of("s-ada") == []


async def test_reminders_that_were_due_while_no_daemon_ran_come_once_and_say_how_late(tmp_path: Path) -> None:
    async with facts(tmp_path) as hive:
        await hive.join("ada")
        await remind(hive)
        repeated = await remind(hive, every=100.0)
    async with facts(tmp_path) as hive:
        await hive.pass_time(1000)
        late = await texts(hive)
        assert [text.partition("\n")[2] for text in late] == [
            "[940 seconds late: it was due at 2027-01-15 08:01:00 UTC]",
            "[900 seconds late: it was due at 2027-01-15 08:01:40 UTC]",
        ]
        [row] = await hive.hive.reminders.of("s-ada")
        assert (row.id, row.due_at) == (repeated.id, hive.clock.time + 100)
        await hive.pass_time(100)
        assert len(await texts(hive)) == 3


async def test_a_wall_clock_that_jumps_neither_loses_nor_doubles_a_reminder(tmp_path: Path) -> None:
    async with facts(tmp_path) as hive:
        await hive.join("ada")
        await remind(hive, every=60.0)
        await hive.pass_time(3600)  # forward
        assert len(await texts(hive)) == 1
        await hive.pass_time(-3600)  # and back
        assert len(await texts(hive)) == 1
        await hive.pass_time(3660)
        assert len(await texts(hive)) == 2


async def test_the_loop_reads_the_wall_clock_often_enough(tmp_path: Path) -> None:
    async with facts(tmp_path) as hive:
        await hive.join("ada")
        assert await hive.deadlines.step() is None
        await remind(hive, in_=10_000.0)
        assert await hive.deadlines.step() == 15.0
        await remind(hive, in_=3.0)
        assert await hive.deadlines.step() == 3.0


async def test_a_reminder_is_cancelled_by_the_beginning_of_its_id(tmp_path: Path) -> None:
    async with facts(tmp_path) as hive:
        await hive.join("ada", "bob")
        row = await remind(hive)
        with pytest.raises(NotFound):
            await hive.hive.reminders.cancel("s-bob", row.id)
        await hive.hive.reminders.cancel("s-ada", row.id[:5])
        await hive.pass_time(100)
        assert await texts(hive) == []
        with pytest.raises(NotFound):
            await hive.hive.reminders.cancel("s-ada", row.id)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"at": 1_700_000_000.0}, "2023-11-14 22:13:20 UTC is in the past"),
        ({"at": "2001-01-01"}, "is in the past"),
        ({"at": "tomorrow"}, "'tomorrow': it must be like"),
        ({"at": "2126-01-01"}, "more than ten years"),
        ({"at": 1e300}, "must be seconds"),
        ({"in_": 0.0}, "needs a time"),
        ({"in_": 1.0, "at": "2030-01-01"}, "give one of them"),
        ({"every": 1.0}, "every is 1"),
    ],
)
async def test_a_reminder_that_cannot_be_set_is_refused(tmp_path: Path, more: dict[str, Any], words: str) -> None:
    async with facts(tmp_path) as hive:
        await hive.join("ada")
        with pytest.raises(BadInput, match=words):
            await remind(hive, **more)


async def test_a_member_has_a_limited_number_of_reminders(tmp_path: Path) -> None:
    async with facts(tmp_path) as hive:
        await hive.join("ada")
        for _ in range(MAX_REMINDERS):
            await remind(hive)
        with pytest.raises(BadInput, match="has 100 reminders already"):
            await remind(hive)


async def test_a_member_cannot_wake_itself_for_ever(tmp_path: Path) -> None:
    async with facts(tmp_path, max_hops=3) as hive:
        await hive.join("ada")
        number = 0
        while True:
            await remind(hive, in_=1.0)
            await hive.pass_time(2)
            if not (waiting := await hive.waiting("ada")):
                break
            number += 1
            await hive.turn("ada", number, waiting[0].id)
            await hive.end_turn("ada", number)
        assert number < 6
        assert len(await hive.waiting("ada", MessageState.HELD)) == 1
        [ask] = await hive.asks()
        assert ask.kind == "storm"
