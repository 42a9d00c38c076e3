"""Recorded events are read back unchanged, and the rows follow from them."""

from __future__ import annotations

import pytest
from sqlalchemy import Connection, text

from hiveyard.core import events as e
from hiveyard.core.errors import IllegalMove, NotFound
from hiveyard.core.machines import MachineStatus
from hiveyard.core.states import Activity, Phase, TaskState, TurnState
from hiveyard.core.usage import Usage
from hiveyard.store import journal, views
from hiveyard.store.database import Store

from .fold import fold, stored
from .stories import FAILURE, beginning, called, end, middle, turn

pytestmark = pytest.mark.anyio


async def test_events_come_back_as_they_were_recorded(store: Store) -> None:
    bodies = beginning() + middle() + turn() + [e.Notice(message="ünï ☂ \x00 \x1b[31m", code="x")] + end()
    recorded = await store.append("s1", *bodies, turn=1)
    read = await store.read(journal.events)
    assert read == recorded
    assert [event.body for event in read] == bodies
    assert [event.seq for event in read] == sorted({event.seq for event in read})


async def test_every_kind_of_event_can_be_kept(store: Store) -> None:
    """A type whose fields are lost in JSON would fail here."""
    await store.append("s1", *beginning())
    others: list[e.AnyBody] = [
        e.Progress(message="half way"),
        e.PhaseEnded(phase="boot", seconds=0.25),
        e.AgentRateLimited(message="wait", resets_at=1e9),
        e.AgentUsage(usage=Usage(input_tokens=1, cost_usd=None)),
        e.AgentEdited(path="a.py", diff="-a\n+b\n"),
        e.AgentOutput(text="?"),
        e.ModelFailed(protocol="openai", failure=FAILURE, status=429),
        e.DoorRefused(what="GET /etc", reason="no such path"),
        e.BudgetExhausted(budget_usd=0.5, spent_usd=0.51),
    ]
    await store.append("s1", *others)
    assert [event.body for event in await store.read(journal.events)][2:] == others


async def test_a_finished_task_leaves_its_rows(store: Store) -> None:
    await store.append("s1", *beginning(), *middle(), *turn(), *end(), turn=1)
    task = await store.read(lambda conn: views.task(conn, "s1"))
    session = await store.read(lambda conn: views.session(conn, "s1"))
    [run] = await store.read(lambda conn: views.turns(conn, "s1"))
    [machine] = await store.read(lambda conn: views.machines(conn, live_only=False))
    result = await store.read(lambda conn: views.result(conn, "s1"))
    assert (task.state, task.provider, task.tier, task.machine) == (TaskState.COMPLETED, "qemu", "vm", "hv-1")
    assert task.request == {"repo": "/r", "prompt": "fix\nit", "budget": 0.5}
    assert task.created_at and task.started_at and task.ended_at and task.failure is None
    assert (session.phase, session.activity) == (Phase.FINISHED, Activity.IDLE)
    assert (session.branch, session.base, session.machine) == ("hv/fix-it", "a" * 40, "hv-1")
    assert session.spent == Usage(input_tokens=10, output_tokens=20, cost_usd=0.25, requests=1)
    assert (run.state, run.outcome, run.exit_code, run.pid) == (TurnState.ENDED, "succeeded", 0, 42)
    assert (run.agent, run.program, run.model, run.conversation) == ("claude", "2.1.0", "claude-sonnet", "c-1")
    assert (machine.status, machine.session) == (MachineStatus.STOPPED, "s1")
    assert await store.read(views.machines) == []
    assert result is not None
    assert (result.commits, result.files, result.insertions, result.deletions, result.leftover) == (2, 1, 3, 0, False)


@pytest.mark.parametrize(
    ("body", "activity"),
    [
        (e.AgentRetrying(attempt=2), Activity.THINKING),
        (e.AgentRateLimited(message="later"), Activity.THINKING),
        (e.AgentAsked(message="may I?"), Activity.WAITING),
    ],
)
async def test_only_a_session_that_waits_for_the_user_is_waiting(
    store: Store, body: e.AnyBody, activity: Activity
) -> None:
    await store.append("s1", *beginning(), *middle(), e.AgentToolCalled(call="1", tool="sh", summary="sh"), body)
    assert (await store.read(lambda conn: views.session(conn, "s1"))).activity is activity


async def test_a_failure_is_kept_with_the_task_and_the_machine(store: Store) -> None:
    await store.append("s1", *beginning(), *middle(), e.MachineFailed(machine="hv-1", failure=FAILURE))
    await store.append("s1", e.SessionFailed(failure=FAILURE), e.TaskFailed(failure=FAILURE))
    assert (await store.read(lambda conn: views.task(conn, "s1"))).failure == FAILURE
    assert (await store.read(lambda conn: views.session(conn, "s1"))).failure == FAILURE
    [machine] = await store.read(views.machines)
    assert machine.status is MachineStatus.ERROR
    assert machine.reason == "machine.lost: it went away"


async def test_a_machine_of_the_same_name_can_be_made_again(store: Store) -> None:
    await store.append("s1", *beginning(), *middle(), e.MachineFailed(machine="hv-1", failure=FAILURE))
    await store.append("s1", e.MachineBooting(machine="hv-1", provider="docker"))
    [machine] = await store.read(views.machines)
    assert (machine.status, machine.provider, machine.reason) == (MachineStatus.BOOTING, "docker", "")


async def test_a_result_that_is_collected_again_replaces_the_first(store: Store) -> None:
    await store.append("s1", *beginning())
    for commits in (1, 2):
        collected = e.ResultCollected(branch="b", base="x", head="y", commits=commits, leftover=commits == 2)
        await store.append("s1", collected)
    result = await store.read(lambda conn: views.result(conn, "s1"))
    assert result is not None and (result.commits, result.leftover) == (2, True)


async def test_money_and_tokens_add_up_and_an_unknown_price_adds_nothing(store: Store) -> None:
    await store.append("s1", *beginning(), called(1, 2, 0.5), called(10, 20, None), called(100, 200, 0.25))
    session = await store.read(lambda conn: views.session(conn, "s1"))
    assert session.spent == Usage(input_tokens=111, output_tokens=222, cost_usd=0.75, requests=3)


async def test_the_first_cancel_request_is_kept(store: Store) -> None:
    await store.append("s1", *beginning())
    await store.write(lambda conn: journal.record(conn, "s1", e.TaskCancelAsked(), at=5.0))
    await store.write(lambda conn: journal.record(conn, "s1", e.TaskCancelAsked(), at=6.0))
    assert (await store.read(lambda conn: views.task(conn, "s1"))).cancel_asked_at == 5.0


async def test_a_turn_may_wait_before_it_runs(store: Store) -> None:
    await store.append("s1", *beginning())
    await store.append("s1", e.TurnCreated(agent="claude", model="opus"), turn=2)
    [waiting] = await store.read(lambda conn: views.turns(conn, "s1"))
    await store.append("s1", e.TurnStarted(agent="claude", pid=7), turn=2)
    running = await store.read(lambda conn: views.turn(conn, "s1", 2))
    assert (waiting.state, waiting.number, waiting.started_at) == (TurnState.PENDING, 2, None)
    assert (running.state, running.pid, running.model) == (TurnState.RUNNING, 7, "opus")


@pytest.mark.parametrize("body", [e.TaskCompleted(), e.SessionFinished(), e.MachineReady(machine="hv-9")])
async def test_an_illegal_move_is_refused_and_changes_nothing(store: Store, body: e.AnyBody) -> None:
    await store.append("s1", *beginning())
    with pytest.raises(IllegalMove):
        await store.append("s1", body)
    assert len(await store.read(journal.events)) == 2
    assert await store.read(stored) == fold(await store.read(journal.events))


async def test_an_illegal_move_that_is_caught_inside_the_write_changes_nothing(store: Store) -> None:
    await store.append("s1", *beginning())

    def write(conn: Connection) -> None:
        with pytest.raises(IllegalMove):
            journal.record(conn, "s1", e.TaskCompleted(), at=1.0)
        journal.record(conn, "s1", e.Notice(message="went on"), at=1.0)

    await store.write(write)
    assert [event.body.type for event in await store.read(journal.events)][2:] == ["notice"]


async def test_a_turn_event_needs_the_number_of_its_turn(store: Store) -> None:
    await store.append("s1", *beginning())
    with pytest.raises(IllegalMove, match="no turn number"):
        await store.append("s1", e.TurnStarted(agent="claude"))


@pytest.mark.parametrize(
    "body",
    [e.Notice(message="x"), e.AgentText(text="x"), called(1, 1, 1.0), e.MachineBooting(machine="m", provider="p")],
    ids=lambda body: body.type,
)
async def test_an_event_for_a_session_that_is_not_there_is_refused(store: Store, body: e.AnyBody) -> None:
    with pytest.raises(NotFound, match="nobody"):
        await store.append("nobody", body)
    assert await store.read(journal.last_seq) == 0


async def test_hiveyard_itself_may_record_events(store: Store) -> None:
    await store.append("", e.Notice(message="hello"))
    assert len(await store.read(journal.events)) == 1


async def test_half_a_surrogate_pair_is_replaced_and_the_event_kept(store: Store) -> None:
    await store.append("s1", *beginning())
    [event] = await store.append("s1", e.AgentText(text="a\ud800b"))
    assert event.body == e.AgentText(text="a\ufffdb")
    assert (await store.read(journal.events))[-1] == event


async def test_a_nul_that_a_guest_wrote_does_not_stop_the_journal(store: Store) -> None:
    nul = e.Failure(code="agent.failed", message="a\0b")
    await store.append("s1", *beginning(), *middle())
    await store.append("s1", e.TurnStarted(agent="claude"), e.AgentStarted(conversation="c\0", model="m\0"), turn=1)
    await store.append("s1", e.MachineFailed(machine="hv-1", failure=nul), e.TaskFailed(failure=nul))
    run = await store.read(lambda conn: views.turn(conn, "s1", 1))
    assert (run.conversation, run.model) == ("c\ufffd", "m\ufffd")
    assert (await store.read(lambda conn: views.task(conn, "s1"))).failure == nul


async def test_an_event_of_a_newer_version_reads_as_a_notice_and_its_line_is_unchanged(store: Store) -> None:
    await store.append("s1", *beginning())
    body = '{"type":"dream.dreamt","about":"sheep"}'

    def from_the_future(conn: Connection) -> None:
        columns = "INSERT INTO events (at, session, body) VALUES (1.0, 's1', :body)"
        conn.execute(text(columns), {"body": body})

    await store.write(from_the_future)
    [event] = await store.read(lambda conn: journal.events(conn, after=2))
    assert event.body == e.Notice(code=journal.UNKNOWN_EVENT, message=body)
    [(_, line)] = await store.read(lambda conn: journal.lines(conn, "s1", after=2))
    assert body.encode() in line


async def test_a_line_on_disk_is_the_event_itself(store: Store) -> None:
    await store.append("s1", *beginning())
    event = await store.write(lambda conn: journal.record(conn, "s1", e.AgentText(text="é"), at=1.5, raw=b"\x00\xff"))
    lines = await store.read(lambda conn: journal.lines(conn, "s1", after=2))
    assert lines == [(event.seq, journal.event_line(event))]


async def test_raw_lines_of_a_turn_come_in_their_order(store: Store) -> None:
    await store.append("s1", *beginning())
    entries = [(e.AgentOutput(text=str(n)), None if n % 3 else b"%d\xff\x00" % n) for n in range(300)]
    await store.write(lambda conn: journal.record_many(conn, "s1", entries, at=1.0, turn=1))
    await store.write(lambda conn: journal.record(conn, "s1", e.AgentOutput(text=""), at=1.0, turn=2, raw=b"other"))
    raws = await store.read(lambda conn: list(journal.raw_lines(conn, "s1", 1)))
    assert raws == [b"%d\xff\x00" % n for n in range(0, 300, 3)]


async def test_a_page_is_bounded_in_number_and_in_bytes_and_never_empty(store: Store) -> None:
    await store.append("s1", *beginning(), *(e.AgentText(text="x" * 1000) for _ in range(10)))
    five = await store.read(lambda conn: journal.events(conn, limit=5))
    small = await store.read(lambda conn: journal.events(conn, after=2, max_bytes=2500))
    one = await store.read(lambda conn: journal.events(conn, after=2, max_bytes=0))
    assert [len(page) for page in (five, small, one)] == [5, 3, 1]


async def test_the_output_offset_advances_together_with_its_events(store: Store) -> None:
    await store.append("s1", *beginning())
    await store.append("s1", e.TurnStarted(agent="claude"), turn=1)

    def take(conn: Connection, begun: int, until: int) -> None:
        journal.record(conn, "s1", e.AgentOutput(text=f"{begun}-{until}"), at=1.0, turn=1)
        journal.advance_output(conn, "s1", 1, until, since=begun)

    await store.write(lambda conn: take(conn, 0, 10))
    # Of a reader from before a crash and one from after it, only one succeeds.
    with pytest.raises(IllegalMove, match="is at 10"):
        await store.write(lambda conn: take(conn, 0, 15))
    await store.write(lambda conn: take(conn, 10, 15))
    texts = [event.body.text for event in await store.read(journal.events) if isinstance(event.body, e.AgentOutput)]
    assert texts == ["0-10", "10-15"]
    await store.write(lambda conn: journal.advance_output(conn, "s1", 1, 3, stream="stderr"))
    with pytest.raises(IllegalMove):
        await store.write(lambda conn: journal.advance_output(conn, "s1", 1, 14))
    with pytest.raises(NotFound):
        await store.write(lambda conn: journal.advance_output(conn, "s1", 9, 14))
    run = await store.read(lambda conn: views.turn(conn, "s1", 1))
    assert (run.output_offset, run.stderr_offset) == (15, 3)


async def test_a_forgotten_task_is_removed_completely_and_its_numbers_are_not_used_again(store: Store) -> None:
    await store.append("other", *beginning("other"))
    last = (await store.append("s1", *beginning(), *middle(), *turn(), *end(), turn=1))[-1].seq
    await store.write(lambda conn: journal.forget(conn, "s1"))
    assert {event.session for event in await store.read(journal.events)} == {"other"}
    assert await store.read(stored) == fold(await store.read(journal.events))
    assert await store.read(lambda conn: views.result(conn, "s1")) is None
    with pytest.raises(NotFound):
        await store.append("s1", e.Notice(message="late"))
    with pytest.raises(NotFound):
        await store.write(lambda conn: journal.forget(conn, "s1"))
    [event] = await store.append("other", e.Notice(message="next"))
    assert event.seq > last


async def test_an_active_session_cannot_be_forgotten(store: Store) -> None:
    await store.append("s1", *beginning())
    with pytest.raises(IllegalMove, match="pending"):
        await store.write(lambda conn: journal.forget(conn, "s1"))
    await store.append("s1", *middle(), e.TaskFailed(failure=FAILURE))
    with pytest.raises(IllegalMove, match="running"):
        await store.write(lambda conn: journal.forget(conn, "s1"))
    await store.append("s1", e.SessionFailed(failure=FAILURE))
    with pytest.raises(IllegalMove, match="machine hv-1"):
        await store.write(lambda conn: journal.forget(conn, "s1"))
    await store.append("s1", e.MachineStopping(machine="hv-1"), e.MachineStopped(machine="hv-1"))
    await store.write(lambda conn: journal.forget(conn, "s1"))
    assert await store.read(journal.events) == []
