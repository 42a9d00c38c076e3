"""How a turn's outcome follows from what is known of it."""

from __future__ import annotations

import pytest

from hiveyard.core.errors import AgentTimeout, BudgetSpent, Cancelled, HiveyardError
from hiveyard.core.ports import Verdict
from hiveyard.engine.turns.verdict import Evidence, judge

GOOD = Verdict(True, conversation="c1")
BAD = Verdict(False, "door.rate_limited", "the vendor answered 429")


def test_an_agent_that_did_well_succeeded_and_its_conversation_is_kept() -> None:
    ended = judge(Evidence(GOOD, 0, None, True))
    assert (ended.outcome, ended.failure, ended.conversation) == ("succeeded", None, "c1")


def test_exit_code_0_is_no_success_when_the_agent_says_that_it_failed() -> None:
    ended = judge(Evidence(BAD, 0, None, True))
    assert ended.outcome == "failed"
    assert ended.failure is not None
    assert (ended.failure.code, ended.failure.message) == ("door.rate_limited", "the vendor answered 429")


def test_an_agent_that_seems_to_have_done_nothing_succeeded_when_the_work_tree_says_otherwise() -> None:
    mute = Verdict(False, "agent.nothing_done", "it said nothing")
    assert judge(Evidence(mute, 0, None, True)).outcome == "succeeded"
    idle = judge(Evidence(mute, 0, None, False))
    assert idle.failure is not None
    assert (idle.outcome, idle.failure.message) == ("failed", "it said nothing, and it changed no file")


@pytest.mark.parametrize(
    ("reason", "outcome"),
    [(AgentTimeout("t"), "timeout"), (Cancelled("c"), "cancelled"), (BudgetSpent("b"), "failed")],
)
def test_why_it_was_stopped_counts_more_than_what_it_says(reason: HiveyardError, outcome: str) -> None:
    ended = judge(Evidence(GOOD, 0, reason, True))
    assert ended.outcome == outcome
    assert ended.failure is not None
    assert ended.failure.code == reason.code
