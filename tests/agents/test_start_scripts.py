"""The scripts before codex and goose on their command lines, run with a script in place of the program."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from hiveyard import agents
from hiveyard.core.events import AgentEvent, AgentStarted, AgentUsage
from hiveyard.core.ports import Turn
from hiveyard.kit import process

pytestmark = pytest.mark.anyio
CONVERSATION = "01a20093-22b8-79e0-9ac3-f16432da4ca0"


class Begun:
    """A turn of an agent in the directory `repo`, whose program is a shell script."""

    def __init__(self, agent: str, done: process.Completed) -> None:
        self.done = done
        self.lines = done.stdout.splitlines()
        parser = agents.by_name(agent).parser()
        self.events: Sequence[AgentEvent] = [event for line in self.lines for event in parser.feed(line)]
        self.verdict = parser.verdict(done.status, done.stderr.decode())


async def begin(tmp_path: Path, agent: str, script: str, *, trusted: bool = False, conversation: str = "") -> Begun:
    program = tmp_path / "bin" / agent
    program.parent.mkdir(exist_ok=True)
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    (tmp_path / "repo").mkdir(exist_ok=True)
    turn = Turn(
        name="turn-1",
        prompt="/nowhere",
        workdir=str(tmp_path / "repo"),
        state=str(tmp_path / "state"),
        door_url="http://127.0.0.1:8377",
        placeholder="hv-placeholder",
        conversation=conversation or None,
        repository_config=trusted,
    )
    spec = agents.by_name(agent).process(turn)
    env = {"PATH": f"{program.parent}:/usr/bin:/bin", **spec.command.env}
    done = await process.run(spec.command.words(), stdin=b"the prompt", cwd=tmp_path / "repo", env=env)
    return Begun(agent, done)


async def test_codex_gets_its_home_and_prompt_and_its_exit_code_is_kept(tmp_path: Path) -> None:
    begun = await begin(tmp_path, "codex", 'cat >&2; ls -d "$CODEX_HOME" >&2; exit 7')
    assert begun.done.stderr.decode() == f"the prompt{tmp_path}/state/codex\n"
    assert begun.done.status == 7


async def test_usage_of_earlier_turns_is_subtracted_for_codex(tmp_path: Path) -> None:
    def counted(conversation: str, *totals: int) -> None:
        place = tmp_path / "state" / "codex" / "sessions" / "2026" / "11" / "22"
        place.mkdir(parents=True, exist_ok=True)
        lines = [
            {
                "type": "event_msg",
                "payload": {"type": "token_count", "info": {"total_token_usage": {"input_tokens": n}}},
            }
            for n in totals
        ]
        text = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines)
        (place / f"rollout-2026-11-22T00-06-12-{conversation}.jsonl").write_text(text)

    counted(CONVERSATION, 100, 250)
    counted(CONVERSATION.replace("01", "02", 1), 999)
    script = """echo '{"type":"turn.completed","usage":{"input_tokens":300}}'"""
    went_on = await begin(tmp_path, "codex", script, conversation=CONVERSATION)
    anew = await begin(tmp_path, "codex", script)
    assert [used(begun) for begun in (went_on, anew)] == [50, 300]


def used(begun: Begun) -> int:
    return next(event.usage.input_tokens for event in begun.events if isinstance(event, AgentUsage))


async def test_each_conversation_of_goose_gets_a_name_for_continuing(tmp_path: Path) -> None:
    names = [(await begin(tmp_path, "goose", 'echo "$@" >&2')).verdict.conversation for _ in range(2)]
    assert len(set(names)) == 2
    begun = await begin(tmp_path, "goose", 'echo "$@" >&2; echo []', conversation=names[0] or "")
    said = begun.done.stderr.decode().splitlines()
    assert said[0] == "session list --format json"
    assert said[1].endswith(f" --resume --name {names[0]}")
    assert [event.conversation for event in begun.events if isinstance(event, AgentStarted)] == [names[0]]


async def test_goose_does_not_continue_if_it_cannot_list_its_conversations(tmp_path: Path) -> None:
    begun = await begin(tmp_path, "goose", 'echo "$@"; echo "no database" >&2; exit 3', conversation=CONVERSATION)
    assert (begun.lines, begun.verdict.reason) == ([], "goose ended with exit code 3: no database")


@pytest.fixture
def plugins(tmp_path: Path) -> Path:
    place = tmp_path / "repo" / ".agents" / "plugins"
    for name in ("one", ".two", "..three", "with a space", "a-b_c.d+e@f"):
        (place / name).mkdir(parents=True)
    (place / "no-plugin").write_text("a file")
    (place / "linked").symlink_to("one")
    return place


async def test_every_plugin_of_a_repository_is_disabled_by_its_path(tmp_path: Path, plugins: Path) -> None:
    begun = await begin(tmp_path, "goose", 'printf %s "$PLUGINS" >&2')
    off = json.loads(begun.done.stderr)
    names = ("one", ".two", "..three", "with a space", "a-b_c.d+e@f", "linked")
    assert off == {str(plugins / name): {"enabled": False} for name in names}


async def test_plugins_of_a_trusted_repository_are_not_disabled(tmp_path: Path, plugins: Path) -> None:
    begun = await begin(tmp_path, "goose", 'echo "${PLUGINS-unset}" >&2', trusted=True)
    assert begun.done.stderr == b"unset\n"


@pytest.mark.parametrize("name", ['"', "back\\slash", "new\nline", "ünicode", "$(touch x)", "\udcff"])
async def test_goose_does_not_start_with_a_plugin_that_cannot_be_disabled(
    tmp_path: Path, plugins: Path, name: str
) -> None:
    (plugins / name).mkdir()
    begun = await begin(tmp_path, "goose", "echo started")
    assert (begun.done.status, begun.lines) == (70, [])
    assert "a plugin of the repository that cannot be switched off" in begun.verdict.reason
