"""For any recorded events in any order, the rows are equal to a fold of the stored events."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, create_engine

from hiveyard.core import events as e
from hiveyard.core.errors import HiveyardError, IllegalMove
from hiveyard.core.states import Activity
from hiveyard.store import journal, views
from hiveyard.store.database import Store

from .fold import States, fold, stored, take
from .stories import FAILURE, called

SESSIONS = ("s1", "s2")
BODIES: list[e.AnyBody] = [
    e.TaskAssigned(provider="qemu", tier="vm", machine="m1"),
    e.TaskStarted(),
    e.TaskCompleted(),
    e.TaskFailed(failure=FAILURE),
    e.TaskCancelled(),
    e.TaskCancelAsked(),
    e.SessionPreparing(),
    e.SessionPrepared(base="x", branch="y"),
    e.SessionRunning(),
    e.SessionPlaced(provider="qemu", tier="vm"),
    e.SessionStopped(),
    e.SessionStopped(reason="the machine went down"),
    e.SessionPaused(),
    e.SessionUnpaused(),
    *(e.PortOpened(host_port=port, guest_port=22) for port in (2222, 2223)),
    e.PortOpened(host_port=2222, guest_port=8000),
    e.PortClosed(host_port=2222),
    e.SnapshotTaken(snapshot="p1", name="first", live=True, after_turn=1),
    e.SnapshotTaken(snapshot="p2", name="second", live=False),
    e.SnapshotRemoved(snapshot="p1"),
    e.SessionRewound(snapshot="p2", after_turn=1),
    e.SessionForked(parent="s1", snapshot="p2", live=True, feed_offset=7),
    e.SessionImported(exported_at=1.0),
    e.BudgetShared(children=["s2"], dollars=0.5),
    e.BudgetSet(dollars=2.0),
    e.SessionChanged(model="m", env={"A": "***"}),
    e.SessionFinished(),
    e.SessionFailed(failure=FAILURE),
    *(e.MachineBooting(machine=name, provider="docker") for name in ("m1", "m2")),
    *(e.MachineReady(machine=name) for name in ("m1", "m2")),
    *(e.MachineStopping(machine=name) for name in ("m1", "m2")),
    *(e.MachineStopped(machine=name) for name in ("m1", "m2")),
    *(e.MachineFailed(machine=name, failure=FAILURE) for name in ("m1", "m2")),
    e.TurnCreated(agent="claude"),
    e.TurnStarted(agent="claude"),
    e.TurnEnded(outcome="failed"),
    e.AgentText(text="x"),
    e.AgentToolCalled(call="1", tool="Bash", summary="ls"),
    e.AgentRetrying(attempt=1),
    e.AgentEnded(is_error=False),
    called(3, 4, 0.5),
    called(1, 1, None),
    e.Notice(message="x"),
]
entries = st.tuples(st.sampled_from(SESSIONS), st.sampled_from(BODIES), st.integers(1, 2))


def births(session: str) -> list[e.AnyBody]:
    return [e.TaskCreated(slug=session, request={}), e.SessionCreated(slug=session, repo="r", agent="a")]


@pytest.fixture(scope="module")
def conn(migrated_file: Path) -> Iterator[Connection]:
    engine = create_engine(f"sqlite:///{migrated_file}")
    with engine.connect() as opened:
        yield opened
    engine.dispose()


@settings(max_examples=200, deadline=None)
@given(story=st.lists(entries, max_size=60))
def test_rows_equal_a_fold_of_the_events(conn: Connection, story: list[tuple[str, e.AnyBody, int]]) -> None:
    expected = States()
    with conn.begin() as transaction:
        for session, body, turn in [(s, body, 1) for s in SESSIONS for body in births(s)] + story:
            allowed = True
            try:
                take(expected, session, body, turn)
            except IllegalMove:
                allowed = False
            with contextlib.nullcontext() if allowed else pytest.raises(IllegalMove):
                journal.record(conn, session, body, at=1.0, turn=turn)
        assert stored(conn) == expected == fold(journal.events(conn))
        transaction.rollback()


def test_a_session_is_thinking_after_a_pause_in_a_turn(conn: Connection) -> None:
    def after(*bodies: e.AnyBody) -> Activity:
        for body in bodies:
            journal.record(conn, "s1", body, at=1.0, turn=1)
        assert stored(conn) == fold(journal.events(conn))
        return views.sessions(conn)[0].activity

    with conn.begin() as transaction:
        assert after(*births("s1"), e.SessionPaused(), e.SessionUnpaused()) is Activity.IDLE
        assert after(e.TurnStarted(agent="claude"), e.SessionPaused(), e.SessionUnpaused()) is Activity.THINKING
        assert after(e.TurnEnded(outcome="succeeded"), e.SessionPaused(), e.SessionUnpaused()) is Activity.IDLE
        transaction.rollback()


def test_a_rewound_session_has_no_stop_reason(conn: Connection) -> None:
    with conn.begin() as transaction:
        taken = e.SnapshotTaken(snapshot="p2", name="second", live=False)
        stopped = e.SessionStopped(reason="the machine went down")
        for body in (*births("s1"), taken, stopped, e.SessionRewound(snapshot="p2")):
            journal.record(conn, "s1", body, at=1.0)
        assert stored(conn) == fold(journal.events(conn))
        assert views.sessions(conn)[0].reason == ""
        transaction.rollback()


@pytest.mark.anyio
async def test_a_long_story_gives_the_same_rows_on_every_database(store: Store) -> None:
    for session in SESSIONS:
        await store.append(session, *births(session))
    for round in range(3):
        for number, body in enumerate(BODIES * 2):
            with contextlib.suppress(HiveyardError):
                await store.append(SESSIONS[(number + round) % 2], body, turn=1 + number % 2)
    events = await store.read(lambda conn: journal.events(conn, limit=10_000))
    assert len(events) > 60
    assert await store.read(stored) == fold(events)
