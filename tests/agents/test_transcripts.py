"""Recorded output of the real programs, and its events. `python -m tests.transcripts.record` records it again."""

from __future__ import annotations

from pathlib import Path

import pytest

from hiveyard import agents
from hiveyard.core.events import AgentOutput
from tests.transcripts.record import CASES, directory, expect, transcript

ALL = [(agent, case) for agent, cases in CASES.items() for case in cases]


@pytest.mark.parametrize(("agent", "case"), ALL, ids=lambda value: str(value))
def test_a_transcript_gives_the_expected_events_and_verdict(agent: str, case: str) -> None:
    expected = (directory(agent) / f"{case}.expected").read_text(encoding="utf-8")
    assert expect(agent, case) == expected


@pytest.mark.parametrize(("agent", "case"), ALL, ids=lambda value: str(value))
def test_every_line_of_a_real_program_is_understood(agent: str, case: str) -> None:
    parser = agents.by_name(agent).parser()
    lines = transcript(agent, case).stdout.splitlines()
    unknown = [line for line in lines if any(isinstance(event, AgentOutput) for event in parser.feed(line))]
    assert unknown == [] or (agent, case) in PROSE


@pytest.mark.parametrize(("agent", "case"), ALL, ids=lambda value: str(value))
def test_parsing_is_deterministic(agent: str, case: str) -> None:
    assert expect(agent, case) == expect(agent, case)


@pytest.mark.parametrize("agent", CASES)
def test_no_transcript_contains_a_path_of_the_recording_machine(agent: str) -> None:
    for file in filter(Path.is_file, directory(agent).rglob("*")):
        words = file.read_bytes().replace(b"/$bunfs/root", b"")  # a place inside the program itself
        assert b"/root" not in words, file
        assert b"/work" not in words, file
        assert b"/tmp/tmp" not in words, file


PROSE = {("goose", "no-key")}
"""Where a program gives advice in place of lines."""
OUTCOMES = {
    ("claude", "cut-always"): "door.upstream_failed",
    ("claude", "empty"): "agent.nothing_done",
    ("claude", "interrupted"): "agent.failed",
    ("claude", "interrupted-streaming"): "agent.failed",
    ("claude", "max-output"): "agent.failed",
    ("claude", "no-key"): "credentials.key_refused",
    ("claude", "permission-denied"): "agent.failed",
    ("claude", "refused-400"): "agent.failed",
    ("claude", "refused-401"): "credentials.key_refused",
    ("claude", "refused-429"): "door.rate_limited",
    ("claude", "refused-500"): "door.upstream_failed",
    ("claude", "subscription-limit"): "door.rate_limited",
    ("claude", "terminated"): "agent.failed",
    ("claude", "unknown-conversation"): "agent.failed",
    ("opencode", "compacted-in-vain"): "agent.failed",
    ("opencode", "cut-always"): "door.upstream_failed",
    ("opencode", "empty"): "agent.nothing_done",
    ("opencode", "interrupted"): "agent.failed",
    ("opencode", "max-output"): "agent.failed",
    ("opencode", "no-key"): "credentials.key_refused",
    ("opencode", "permission-denied"): "agent.failed",
    ("opencode", "refused-400"): "agent.failed",
    ("opencode", "refused-401"): "credentials.key_refused",
    ("opencode", "refused-429"): "door.rate_limited",
    ("opencode", "refused-500"): "door.upstream_failed",
    ("opencode", "terminated"): "agent.failed",
    ("opencode", "terminated-in-retry"): "door.upstream_failed",
    ("opencode", "unknown-conversation"): "agent.failed",
    ("opencode", "unknown-model"): "agent.failed",
    ("codex", "cut-always"): "door.upstream_failed",
    ("codex", "empty"): "agent.nothing_done",
    ("codex", "interrupted"): "agent.failed",
    ("codex", "max-output"): "agent.failed",
    ("codex", "no-key"): "credentials.key_refused",
    ("codex", "refused-400"): "agent.failed",
    ("codex", "refused-401"): "credentials.key_refused",
    ("codex", "refused-429"): "door.rate_limited",
    ("codex", "refused-500"): "door.upstream_failed",
    ("codex", "terminated"): "agent.failed",
    ("codex", "terminated-in-retry"): "door.upstream_failed",
    ("codex", "unknown-conversation"): "agent.failed",
    ("codex", "unreachable"): "door.upstream_failed",
    ("goose", "cut-always"): "door.upstream_failed",
    ("goose", "cut-once"): "door.upstream_failed",
    ("goose", "empty"): "agent.nothing_done",
    ("goose", "interrupted"): "agent.failed",
    ("goose", "max-output"): "agent.failed",
    ("goose", "no-key"): "agent.failed",
    ("goose", "permission-denied"): "agent.failed",
    ("goose", "refused-400"): "agent.failed",
    ("goose", "refused-401"): "credentials.key_refused",
    ("goose", "refused-401-openai"): "credentials.key_refused",
    ("goose", "refused-429"): "door.rate_limited",
    ("goose", "refused-500"): "door.upstream_failed",
    ("goose", "refused-500-openai"): "door.upstream_failed",
    ("goose", "terminated"): "agent.failed",
    ("goose", "unknown-conversation"): "agent.failed",
    ("goose", "unreachable"): "door.upstream_failed",
}


@pytest.mark.parametrize(("agent", "case"), ALL, ids=lambda value: str(value))
def test_each_failure_has_its_code_and_all_others_succeed(agent: str, case: str) -> None:
    finished = transcript(agent, case)
    parser = agents.by_name(agent).parser()
    for line in finished.stdout.splitlines():
        parser.feed(line)
    verdict = parser.verdict(finished.exit_code, finished.stderr.decode())
    assert verdict.code == OUTCOMES.get((agent, case), "")
    assert verdict.ok is ((agent, case) not in OUTCOMES)
    assert verdict.ok or len(verdict.reason) > 10
