"""The outcome of a turn follows from the evidence."""

from __future__ import annotations

import pytest

from hiveyard.core.errors import AgentTimeout, BudgetSpent, Cancelled, HiveyardError
from hiveyard.core.ports import Verdict
from hiveyard.engine.turns.verdict import Evidence, judge

GOOD = Verdict(True, conversation="c1")
BAD = Verdict(False, "door.rate_limited", "the vendor answered 429")


def test_a_successful_agent_succeeds_and_its_conversation_is_kept() -> None:
    ended = judge(Evidence(GOOD, 0, None, True))
    assert (ended.outcome, ended.failure, ended.conversation) == ("succeeded", None, "c1")


def test_exit_code_0_is_no_success_if_the_agent_reports_a_failure() -> None:
    ended = judge(Evidence(BAD, 0, None, True))
    assert ended.outcome == "failed"
    assert ended.failure is not None
    assert (ended.failure.code, ended.failure.message) == ("door.rate_limited", "the vendor answered 429")


def test_an_agent_without_output_succeeds_if_the_work_tree_changed() -> None:
    mute = Verdict(False, "agent.nothing_done", "it said nothing")
    assert judge(Evidence(mute, 0, None, True)).outcome == "succeeded"
    idle = judge(Evidence(mute, 0, None, False))
    assert idle.failure is not None
    assert (idle.outcome, idle.failure.message) == ("failed", "it said nothing, and it changed no file")


@pytest.mark.parametrize(
    ("reason", "outcome"),
    [(AgentTimeout("t"), "timeout"), (Cancelled("c"), "cancelled"), (BudgetSpent("b"), "failed")],
)
def test_the_reason_for_a_stop_overrides_the_agents_report(reason: HiveyardError, outcome: str) -> None:
    ended = judge(Evidence(GOOD, 0, reason, True))
    assert ended.outcome == outcome
    assert ended.failure is not None
    assert ended.failure.code == reason.code
