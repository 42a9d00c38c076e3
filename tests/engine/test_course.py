"""The turns of a session, as its feed tells them."""

from __future__ import annotations

from typing import Any

from hiveyard.core import events as e
from hiveyard.core.events import Failure
from hiveyard.core.states import TurnState
from hiveyard.engine.course import Course
from hiveyard.engine.ledger import Entry
from hiveyard.store.views import TurnRow

PROMPTED, ENDED = e.AgentPrompted(text="go"), e.AgentEnded(is_error=False)
INTERRUPTED = e.AgentEnded(is_error=True, reason="interrupted")


def told(course: Course, *bodies: e.AnyBody) -> list[tuple[int | None, str]]:
    """What is journaled for some lines of the feed: turns and types."""
    return [(placed.turn, placed.entry.body.type) for placed in course.placed([Entry(body) for body in bodies])]


def outcomes(course: Course, *bodies: e.AnyBody) -> list[str]:
    placed = course.placed([Entry(body) for body in bodies])
    return [one.entry.body.outcome for one in placed if isinstance(one.entry.body, e.TurnEnded)]


def row(number: int, state: TurnState) -> TurnRow:
    nothing: dict[str, Any] = dict.fromkeys(
        ("pid", "outcome", "exit_code", "failure", "conversation", "started_at", "ended_at")
    )
    return TurnRow(
        session="s", number=number, state=state, agent="a", program="", model="", output_offset=0, stderr_offset=0,
        created_at=0.0, **nothing,
    )  # fmt: skip


def test_whoever_types_begins_a_turn() -> None:
    course = Course("claude", [], None)
    assert told(course, PROMPTED, e.AgentText(text="hm"), ENDED) == [
        (1, "turn.started"),
        (1, "agent.prompted"),
        (1, "agent.text"),
        (1, "agent.ended"),
        (1, "turn.ended"),
    ]
    assert told(course, PROMPTED)[0] == (2, "turn.started")
    assert (course.running, course.last, course.ended) == (2, 2, 1)


def test_a_prompt_of_ours_is_the_turn_that_waited_for_it() -> None:
    course = Course("claude", [], None)
    assert [course.added("")[0], course.added("")[0]] == [1, 2]
    assert course.next == 1
    assert told(course, PROMPTED)[0] == (1, "turn.started")
    assert course.next is None  # one at a time
    told(course, ENDED)
    assert course.next == 2


def test_what_is_typed_into_a_turn_belongs_to_it() -> None:
    course = Course("claude", [], None)
    told(course, PROMPTED)
    assert told(course, PROMPTED, ENDED) == [(1, "agent.prompted"), (1, "agent.ended"), (1, "turn.ended")]


def test_how_a_turn_ended_is_told_apart() -> None:
    failed = e.AgentEnded(is_error=True, text="the model is overloaded")
    course = Course("claude", [], None)
    assert outcomes(course, PROMPTED, ENDED, PROMPTED, INTERRUPTED, PROMPTED, failed) == [
        "succeeded",
        "cancelled",
        "failed",
    ]


def test_an_end_without_a_turn_is_no_turn() -> None:
    course = Course("claude", [], None)
    assert told(course, ENDED) == [(None, "agent.ended")]
    assert course.last == 0


def test_the_next_daemon_goes_on_where_the_turns_stood() -> None:
    rows = [row(1, TurnState.ENDED), row(2, TurnState.RUNNING), row(3, TurnState.PENDING)]
    course = Course("claude", rows, "c-1")
    assert (course.running, course.ended, course.next) == (2, 1, None)
    assert told(course, ENDED)[-1] == (2, "turn.ended")
    assert course.next == 3
    assert course.added("")[0] == 4


def test_a_machine_that_goes_down_ends_the_turn_at_work_and_no_other() -> None:
    course = Course("claude", [row(1, TurnState.RUNNING), row(2, TurnState.PENDING)], "c-1")
    [(number, ended)] = course.cut(Failure(code="machine.lost", message="gone"))
    assert isinstance(ended, e.TurnEnded)
    assert (number, ended.outcome, ended.conversation) == (1, "failed", "c-1")
    assert course.cut(None) == []
    assert course.next == 2


def test_a_prompt_that_was_not_taken_ends_its_turn() -> None:
    course = Course("claude", [], None)
    number, _ = course.added("")
    ended = course.refused(number, Failure(code="agent.failed", message="it did not listen"))
    assert ended.outcome == "failed"
    assert course.next is None
