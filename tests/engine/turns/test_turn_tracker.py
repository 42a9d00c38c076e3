"""The turns of a session follow from its feed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from hiveyard.core import events as e
from hiveyard.core.events import Failure
from hiveyard.core.events.body import TEXT_LIMIT, clip
from hiveyard.core.states import TurnState
from hiveyard.engine.event_log import Entry
from hiveyard.engine.turns.turn_tracker import PromptText, TurnTracker
from hiveyard.store.views import TurnRow

PROMPTED, ENDED = e.AgentPrompted(text="go"), e.AgentEnded(is_error=False)
INTERRUPTED = e.AgentEnded(is_error=True, reason="interrupted")


def told(
    tracker: TurnTracker, *bodies: e.AnyBody, waiting: Mapping[int, str] | None = None
) -> list[tuple[int | None, str]]:
    """Return the turns and types of the entries for some feed events, while prompts are `waiting`."""
    wordings = {number: PromptText(text) for number, text in (waiting or {}).items()}
    placed = tracker.assign_feed([Entry(body) for body in bodies], wordings)
    return [(one.turn, one.entry.body.type) for one in placed]


def outcomes(tracker: TurnTracker, *bodies: e.AnyBody) -> list[str]:
    placed = tracker.assign_feed([Entry(body) for body in bodies], {})
    return [one.entry.body.outcome for one in placed if isinstance(one.entry.body, e.TurnEnded)]


def row(number: int, state: TurnState) -> TurnRow:
    nothing: dict[str, Any] = dict.fromkeys(
        ("pid", "outcome", "exit_code", "failure", "conversation", "started_at", "ended_at")
    )
    return TurnRow(
        session="s", number=number, state=state, agent="a", program="", model="", output_offset=0, stderr_offset=0,
        created_at=0.0, **nothing,
    )  # fmt: skip


def test_a_typed_prompt_starts_a_turn() -> None:
    tracker = TurnTracker("claude", [], None)
    assert told(tracker, PROMPTED, e.AgentText(text="hm"), ENDED) == [
        (1, "turn.started"),
        (1, "agent.prompted"),
        (1, "agent.text"),
        (1, "agent.ended"),
        (1, "turn.ended"),
    ]
    assert told(tracker, PROMPTED)[0] == (2, "turn.started")
    assert (tracker.running, tracker.last, tracker.ended) == (2, 2, 1)


def test_a_sent_prompt_starts_its_waiting_turn() -> None:
    tracker = TurnTracker("claude", [], None)
    assert [tracker.add("")[0], tracker.add("")[0]] == [1, 2]
    assert tracker.next == 1
    assert told(tracker, PROMPTED, waiting={1: "go"})[0] == (1, "turn.started")
    assert tracker.next is None  # one at a time
    told(tracker, ENDED)
    assert tracker.next == 2


def test_text_typed_during_a_turn_belongs_to_it() -> None:
    tracker = TurnTracker("claude", [], None)
    told(tracker, PROMPTED)
    assert told(tracker, PROMPTED, ENDED) == [(1, "agent.prompted"), (1, "agent.ended"), (1, "turn.ended")]


def test_the_outcome_of_a_turn_follows_from_its_end_event() -> None:
    failed = e.AgentEnded(is_error=True, text="the model is overloaded")
    tracker = TurnTracker("claude", [], None)
    assert outcomes(tracker, PROMPTED, ENDED, PROMPTED, INTERRUPTED, PROMPTED, failed) == [
        "succeeded",
        "cancelled",
        "failed",
    ]


def test_an_end_event_without_a_turn_is_ignored() -> None:
    tracker = TurnTracker("claude", [], None)
    assert told(tracker, ENDED) == [(None, "agent.ended")]
    assert tracker.last == 0


def test_the_next_daemon_continues_the_turns() -> None:
    rows = [row(1, TurnState.ENDED), row(2, TurnState.RUNNING), row(3, TurnState.PENDING)]
    tracker = TurnTracker("claude", rows, "c-1")
    assert (tracker.running, tracker.ended, tracker.next) == (2, 1, None)
    assert told(tracker, ENDED)[-1] == (2, "turn.ended")
    assert tracker.next == 3
    assert tracker.add("")[0] == 4


def test_a_lost_machine_ends_only_the_running_turn() -> None:
    tracker = TurnTracker("claude", [row(1, TurnState.RUNNING), row(2, TurnState.PENDING)], "c-1")
    [(number, ended)] = tracker.abort(Failure(code="machine.lost", message="gone"))
    assert isinstance(ended, e.TurnEnded)
    assert (number, ended.outcome, ended.conversation) == (1, "failed", "c-1")
    assert tracker.abort(None) == []
    assert tracker.next == 2


def test_a_prompt_that_was_not_taken_ends_its_turn() -> None:
    tracker = TurnTracker("claude", [], None)
    number, _ = tracker.add("")
    ended = tracker.reject(number, Failure(code="agent.failed", message="it did not listen"))
    assert ended.outcome == "failed"
    assert tracker.next is None
    assert tracker.ended == 1


def test_a_typed_prompt_comes_before_the_waiting_one() -> None:
    tracker = TurnTracker("claude", [row(1, TurnState.RUNNING)], "c-1")
    assert tracker.add("")[0] == 2
    typed = e.AgentPrompted(text="typed meanwhile")
    begun = told(tracker, ENDED, typed, waiting={2: "go"})
    assert begun[1:] == [(1, "turn.ended"), (3, "turn.started"), (3, "agent.prompted")]
    assert (tracker.running, tracker.waiting, tracker.next, tracker.ended) == (3, (2,), None, 1)
    told(tracker, ENDED)
    assert (tracker.next, tracker.ended) == (2, 3)
    assert told(tracker, PROMPTED, ENDED, waiting={2: "go"})[0] == (2, "turn.started")
    assert (tracker.ended, tracker.last, tracker.waiting) == (2, 3, ())
    assert tracker.add("")[0] == 4


def test_the_next_daemon_knows_which_turn_ended_last() -> None:
    ended = row(1, TurnState.ENDED), row(3, TurnState.ENDED)
    tracker = TurnTracker("claude", [*ended, row(2, TurnState.PENDING)], None)
    assert (tracker.ended, tracker.next, tracker.last) == (3, 2, 3)
    assert told(tracker, e.AgentPrompted(text="typed"), waiting={2: "go"})[0] == (4, "turn.started")


@pytest.mark.parametrize(
    ("kept", "heard"),
    [
        ("  go on \r\n", "go on"),
        ("/clear", "\u2800/clear"),
        ("a\x00\x1b[1m\u200bb", "a\ufffd[1mb"),
        (" " + "long " * TEXT_LIMIT, clip("long " * TEXT_LIMIT)),
    ],
)
def test_invisible_changes_of_a_prompt_do_not_matter(kept: str, heard: str) -> None:
    assert PromptText(kept).is_of(heard)
    assert not PromptText(f"{kept[:8]}other").is_of(heard)


def test_a_sent_prompt_that_the_program_changed_is_recognized() -> None:
    """Otherwise its turn would wait for ever, and the next daemon would send it again."""
    tracker = TurnTracker("claude", [], None)
    number, _ = tracker.add("")
    tracker.mark_sent(number)
    assert tracker.next is None
    assert told(tracker, e.AgentPrompted(text="(another wording)"), waiting={1: "go"})[0] == (1, "turn.started")


def test_a_sent_prompt_during_a_typed_turn_starts_its_own_turn() -> None:
    tracker = TurnTracker("claude", [], None)
    tracker.add("")
    told(tracker, e.AgentPrompted(text="typed"), waiting={1: "go"})
    assert told(tracker, e.AgentPrompted(text="typed too"), waiting={1: "go"}) == [(2, "agent.prompted")]
    assert told(tracker, PROMPTED, ENDED, waiting={1: "go"}) == [
        (2, "turn.ended"),
        (1, "turn.started"),
        (1, "agent.prompted"),
        (1, "agent.ended"),
        (1, "turn.ended"),
    ]
    assert (tracker.running, tracker.waiting, tracker.ended) == (None, (), 1)
