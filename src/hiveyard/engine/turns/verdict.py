"""How a turn went: the agent's own words, its exit code, why it was stopped, and what it left, taken together.

An exit code of 0 is not success, and neither is an agent's saying so.
"""

from __future__ import annotations

from typing import NamedTuple

from hiveyard.core.errors import AgentFailed, AgentTimeout, Cancelled, HiveyardError, NothingDone
from hiveyard.core.events import Failure, Outcome, TurnEnded
from hiveyard.core.ports import Verdict


class Evidence(NamedTuple):
    """What is known when the process has ended.

    `stopped` is why we ended it, if we did. `changed` tells that the work tree differs from where it started.
    """

    verdict: Verdict
    exit_code: int | None
    stopped: HiveyardError | None
    changed: bool


def judge(evidence: Evidence) -> TurnEnded:
    """The turn's outcome."""
    stopped, verdict = evidence.stopped, evidence.verdict
    if isinstance(stopped, Cancelled):
        return _ended("cancelled", evidence, as_failure(stopped))
    if stopped is not None:
        timeout = isinstance(stopped, AgentTimeout)
        return _ended("timeout" if timeout else "failed", evidence, as_failure(stopped))
    # An agent of which we understood nothing may still have done its work: then the work tree is the witness.
    mute = verdict.code == NothingDone.code and evidence.changed
    if not verdict.ok and not mute:
        code, reason = verdict.code or AgentFailed.code, verdict.reason
        if code == NothingDone.code:
            reason += ", and it changed no file"
        return _ended("failed", evidence, Failure(code=code, message=reason, hint="hv logs shows what it said"))
    return _ended("succeeded", evidence, None)


def as_failure(error: HiveyardError) -> Failure:
    """An error as data."""
    return Failure(code=error.code, message=error.message, hint=error.hint)


def _ended(outcome: Outcome, evidence: Evidence, failure: Failure | None) -> TurnEnded:
    return TurnEnded(
        outcome=outcome,
        exit_code=evidence.exit_code,
        failure=failure,
        conversation=evidence.verdict.conversation,
    )
