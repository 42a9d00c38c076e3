"""Recorded conversations with programs for which there is no agent: their events, and the lines that were sent."""

from __future__ import annotations

import pytest

from hiveyard.core.events import AgentAsked, AgentEnded, AgentUsage
from tests.transcripts.talks import HERE, TALKS, described, replayed


@pytest.mark.parametrize("talk", TALKS)
def test_a_recorded_conversation_gives_the_expected_events(talk: str) -> None:
    assert described(replayed(talk).events) == (HERE / f"{talk}.expected").read_text()


@pytest.mark.parametrize("talk", TALKS)
def test_a_replay_sends_the_recorded_lines(talk: str) -> None:
    lines = (HERE / f"{talk}.talk").read_bytes().splitlines()
    assert replayed(talk).told == [line.removeprefix(b"> ") for line in lines if line.startswith(b"> ")]


@pytest.mark.parametrize("talk", TALKS)
def test_each_recorded_turn_has_its_outcome_and_usage(talk: str) -> None:
    events = replayed(talk).events
    ends = [event for event in events if isinstance(event, AgentEnded)]
    assert [end.is_error for end in ends] == [False, False, True, True, False]
    assert "that cannot be" in ends[2].text
    assert (ends[3].reason, ends[4].text) == ("interrupted", "I go on.")
    assert all(event.request and event.tool for event in events if isinstance(event, AgentAsked))
    used = [event.usage.input_tokens for event in events if isinstance(event, AgentUsage)]
    assert max(used, default=2000) == 2000
