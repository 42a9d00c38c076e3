"""Decide how a turn went, from the agent's own report, its exit code, the reason it was stopped, and its changes.

An exit code of 0 alone is not success, and neither is an agent that reports success.
"""

from __future__ import annotations

from typing import NamedTuple

from hiveyard.core.errors import AgentFailed, AgentTimeout, Cancelled, HiveyardError, NothingDone
from hiveyard.core.events import Failure, Outcome, TurnEnded
from hiveyard.core.ports import Verdict


class Evidence(NamedTuple):
    """The facts about a turn whose process has ended.

    `stopped` is the reason why Hiveyard ended it, if it did. `changed`: the work tree differs from the base.
    """

    verdict: Verdict
    exit_code: int | None
    stopped: HiveyardError | None
    changed: bool


def judge(evidence: Evidence) -> TurnEnded:
    """Return the turn's outcome."""
    stopped, verdict = evidence.stopped, evidence.verdict
    if isinstance(stopped, Cancelled):
        return _ended("cancelled", evidence, as_failure(stopped))
    if stopped is not None:
        timeout = isinstance(stopped, AgentTimeout)
        return _ended("timeout" if timeout else "failed", evidence, as_failure(stopped))
    # An agent whose output was not understood may still have done its work: then the work tree decides.
    silent_success = verdict.code == NothingDone.code and evidence.changed
    if not verdict.ok and not silent_success:
        code, reason = verdict.code or AgentFailed.code, verdict.reason
        if code == NothingDone.code:
            reason += ", and it changed no file"
        return _ended("failed", evidence, Failure(code=code, message=reason, hint="hv logs shows its output"))
    return _ended("succeeded", evidence, None)


def as_failure(error: HiveyardError) -> Failure:
    """Return an error as data."""
    return Failure(code=error.code, message=error.message, hint=error.hint)


def _ended(outcome: Outcome, evidence: Evidence, failure: Failure | None) -> TurnEnded:
    return TurnEnded(
        outcome=outcome,
        exit_code=evidence.exit_code,
        failure=failure,
        conversation=evidence.verdict.conversation,
    )
