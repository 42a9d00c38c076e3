"""The latest events, held within limits."""

from __future__ import annotations

import pytest

from hiveyard.core import events as e
from hiveyard.store.outbox import Appended
from hiveyard.store.tail import Tail

pytestmark = pytest.mark.anyio


def some(*numbers: int, session: str = "s", size: int = 1) -> list[Appended]:
    body = e.Notice(message="x")
    return [Appended(e.Event(seq=n, at=0.0, session=session, body=body), size) for n in numbers]


def numbers(tail: Tail, position: int, session: str | None = None) -> list[int] | None:
    piece = tail.after(position, session, 100)
    return None if piece is None else [event.seq for event in piece.events]


async def test_the_tail_starts_after_its_floor() -> None:
    tail = Tail(10)
    tail.publish(some(11, 12), [])
    assert numbers(tail, 10) == [11, 12]
    assert numbers(tail, 11) == [12]
    assert numbers(tail, 12) == []
    assert numbers(tail, 9) is None


async def test_the_tail_drops_the_oldest_events_over_a_limit() -> None:
    for tail, size in ((Tail(0, max_events=10), 1), (Tail(0, max_bytes=100), 10)):
        for n in range(1, 51):
            tail.publish(some(n, size=size), [])
            assert len(tail._held) <= 10
        assert numbers(tail, 0) is None
        assert numbers(tail, tail.floor) == list(range(tail.floor + 1, 51))


async def test_an_event_over_the_limit_is_read_from_the_database() -> None:
    tail = Tail(0, max_bytes=100)
    tail.publish(some(1, size=1000), [])
    assert numbers(tail, 0) is None
    assert numbers(tail, 1) == []


async def test_a_gap_sends_readers_to_the_database_and_wakes_all_of_them() -> None:
    tail = Tail(0)
    tail.publish(some(1, 2), [])
    waiting = tail.growth("another")
    tail.publish(some(5), [])
    assert numbers(tail, 2) is None
    assert numbers(tail, 4) == [5]
    assert waiting.is_set()


async def test_a_gap_within_a_commit_sends_readers_to_the_database_too() -> None:
    tail = Tail(0)
    tail.publish(some(1), [])
    waiting = tail.growth("another")
    tail.publish(some(2, 3, 8, 9), [])
    assert [numbers(tail, position) for position in (1, 3, 6, 7, 8)] == [None, None, None, [8, 9], [9]]
    assert waiting.is_set()
    tail.publish(some(10), [])
    assert numbers(tail, 7) == [8, 9, 10]


async def test_only_readers_of_the_new_events_are_woken() -> None:
    tail = Tail(0)
    mine, other, everything = tail.growth("s"), tail.growth("other"), tail.growth(None)
    tail.publish(some(1), [])
    assert (mine.is_set(), other.is_set(), everything.is_set()) == (True, False, True)


async def test_a_position_moves_past_the_events_of_other_sessions() -> None:
    tail = Tail(0)
    tail.publish(some(1, 2, 3, session="other"), [])
    piece = tail.after(0, "s", 2)
    assert piece is not None and (piece.events, piece.position) == ([], 2)


async def test_readers_that_ended_leave_nothing_behind() -> None:
    tail = Tail(0)
    for n in range(100):
        tail.growth(str(n))
    assert len(tail._growing) == 0
