"""The real agent programs with the scripted model, without a network and as an unprivileged user."""

from __future__ import annotations

import json
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from hiveyard.core.commands import ProcessSpec
from hiveyard.core.events import AgentEdited, AgentUsage
from hiveyard.core.tools import ToolServer
from hiveyard.kit import process
from hiveyard.testing.script import Call, File, Step, cut, refuse, say, shell
from tests.agents.hostile import INSTRUCTIONS, poison
from tests.agents.real import GIT_ENV, REAL, HostYard, Played

pytestmark = [pytest.mark.real, pytest.mark.anyio]
AGENTS = REAL
TOOL_SERVER = Path(__file__).parents[1] / "support" / "tool_server.py"
MORE = pytest.mark.long("agents")
"""For cases that the others cover together: as a rule one of each kind is enough."""


@pytest.mark.parametrize("agent", AGENTS)
async def test_it_edits_a_file_and_connects_to_nothing_but_the_door(agent: str, yard: HostYard) -> None:
    calls = [
        Call(write=File(path=str(yard.repo / "a.py"), content="x = 1\n")),
        Call(shell="getent hosts looked-for.example.; true"),
    ]
    played = await yard.play(agent, [Step(text="I write.", calls=calls), say("Done.")])
    assert played.verdict.ok, played.verdict.reason
    assert (yard.repo / "a.py").read_text() == "x = 1\n"
    if agent != "codex":  # its model may write JavaScript that calls a shell, and tells of no files
        assert [event.path for event in played.events if isinstance(event, AgentEdited)] == ["a.py"]
    assert played.model.saw_key("hv-placeholder")
    assert not any(request.side for request in played.model.requests), "it pays for errands"
    if agent != "opencode":  # it asks for its packages, whatever is set
        assert {name.strip(".") for name in yard.lookups} == {"looked-for.example"}, "of these the shell's own is seen"


@pytest.mark.parametrize("agent", AGENTS)
async def test_a_prompt_of_any_size_and_content_arrives_as_it_is(agent: str, yard: HostYard) -> None:
    hard = "first \"line\" 'quoted' $HOME `id` \\n --model x {{prompt}}\n\ttab é 🐝 \u202e\n" * 15_000
    assert len(hard) < 1 << 20 < len(hard.encode())  # codex takes no more characters than that
    played = await yard.play(agent, [say("Read.")], prompt=f"{hard}END")
    assert played.verdict.ok, played.verdict.reason
    assert f"{hard}END" in played.model.asked[0].prompt


@pytest.mark.parametrize("agent", AGENTS)
async def test_a_repository_cannot_run_code_on_start(agent: str, yard: HostYard) -> None:
    marks = _marks(yard)
    poison(yard.repo, marks)
    await _commit(yard)
    script = [
        Step(calls=[Call(shell="env | grep HOSTILE; true"), Call(write=File(path=f"{yard.repo}/a.py", content="x\n"))]),
        say("Done."),
    ]
    played = await yard.play(agent, script)
    assert played.verdict.ok, played.verdict.reason
    assert sorted(mark.name for mark in marks.iterdir()) == []
    assert b"HOSTILE_ENV=1" not in played.finished.stdout
    assert INSTRUCTIONS.encode() in played.model.asked[0].body, "its instructions are welcome"
    assert await _status(yard) == ["?? a.py"], "its files stand where they stood"


@pytest.mark.parametrize("agent", AGENTS)
async def test_a_repository_may_call_its_instructions_claude_md(agent: str, yard: HostYard) -> None:
    (yard.repo / "CLAUDE.md").write_text(INSTRUCTIONS)
    played = await yard.play(agent, [say("Done.")])
    assert played.verdict.ok, played.verdict.reason
    assert INSTRUCTIONS.encode() in played.model.asked[0].body


@pytest.mark.parametrize("agent", AGENTS)
async def test_a_conversation_continues_with_all_instructions_and_its_usage_is_counted_once(
    agent: str, yard: HostYard
) -> None:
    (yard.repo / "AGENTS.md").write_text(INSTRUCTIONS)
    system = "Speak as a pirate does."
    first = await yard.play(agent, [say("I am the first answer.")], prompt="the first question", system=system)
    assert first.verdict.conversation
    more = {"conversation": first.verdict.conversation, "system": system}
    second = await yard.play(agent, [say("Again.")], prompt="the second question", name="turn-2", **more)  # type: ignore[arg-type]
    assert b"I am the first answer." in second.model.asked[0].body
    for played in (first, second):
        assert played.verdict.ok, played.verdict.reason
        assert INSTRUCTIONS.encode() in played.model.asked[0].body
        assert system.encode() in played.model.asked[0].body
        assert "pirate" not in played.model.asked[0].prompt
        assert _usage(played) == (1000, 50)


@pytest.mark.parametrize("agent", AGENTS)
async def test_only_the_named_tools_of_a_server_answer(agent: str, yard: HostYard) -> None:
    name = {"claude": "mcp__numbers__", "opencode": "numbers_", "codex": "mcp__numbers/", "goose": "numbers__"}[agent]
    calls = [Call(tool=f"{name}{tool}", input={}) for tool in ("lucky", "secret")]
    numbers = ToolServer(command="python3", args=[str(yard.repo / "tools.py"), "17"], tools=["lucky"])
    (yard.repo / "tools.py").write_text(TOOL_SERVER.read_text())
    model = "gpt-5.5" if agent == "codex" else None
    script = [*(Step(calls=[call]) for call in calls), say("Done.")]
    played = await yard.play(agent, script, mcp={"numbers": numbers}, model=model)
    asked = played.model.asked[-1].body
    assert b"the lucky number is 17" in asked
    assert b"the secret number is" not in asked


async def test_a_trusted_repository_runs_its_code_in_claude(yard: HostYard) -> None:
    marks = _marks(yard)
    poison(yard.repo, marks)
    await yard.play("claude", [say("Done.")], repository_config=True)
    assert {"claude-mcp", "claude-SessionStart", "claude-helper"} <= {mark.name for mark in marks.iterdir()}


async def test_a_trusted_repository_runs_its_code_in_codex(yard: HostYard) -> None:
    marks = _marks(yard)
    poison(yard.repo, marks)
    script = [shell("env | grep HOSTILE; true"), say("Done.")]
    played = await yard.play("codex", script, repository_config=True, model="gpt-5.5")
    assert played.verdict.ok, played.verdict.reason
    assert {"codex-mcp", "codex-SessionStart"} <= {mark.name for mark in marks.iterdir()}
    assert b"HOSTILE_ENV=1" in played.finished.stdout


async def test_a_trusted_repository_runs_its_code_in_goose(yard: HostYard) -> None:
    marks = _marks(yard)
    poison(yard.repo, marks)
    await yard.play("goose", [say("Done.")], repository_config=True)
    assert {"goose-mcp", "goose-SessionStart"} <= {mark.name for mark in marks.iterdir()}


async def test_goose_does_not_start_if_a_plugin_cannot_be_disabled(yard: HostYard) -> None:
    marks = _marks(yard)
    poison(yard.repo, marks)
    (yard.repo / ".agents" / "plugins" / "evil").rename(yard.repo / ".agents" / "plugins" / 'ev"il')
    played = await yard.play("goose", [say("never said")])
    assert "a plugin of the repository that cannot be switched off" in played.verdict.reason
    assert (list(marks.iterdir()), played.model.requests) == ([], [])


async def test_a_trusted_repository_runs_its_code_in_opencode(yard: HostYard) -> None:
    marks = _marks(yard)
    poison(yard.repo, marks)
    # Without a network it waits for ever for the dependencies of plugins, before anything else.
    shutil.rmtree(yard.repo / ".opencode")
    (yard.repo / "opencode.jsonc").unlink()
    config = json.loads((yard.repo / "opencode.json").read_text())
    (yard.repo / "opencode.json").write_text(json.dumps({"mcp": config["mcp"]}))
    await yard.play("opencode", [say("Done.")], repository_config=True)
    assert [mark.name for mark in marks.iterdir()] == ["opencode-mcp"]


async def test_hidden_files_are_restored_after_opencode_was_killed(yard: HostYard) -> None:
    (yard.repo / ".opencode").mkdir()
    (yard.repo / ".opencode" / "notes.md").write_text("mine")
    (yard.repo / "opencode.json").write_text("{}")
    await _commit(yard)
    began = yard.root / "state" / "began"
    script = [shell(f"touch {began}; tail -f /dev/null")]
    killed = await yard.play("opencode", script, stop_after=began, stop_with=signal.SIGKILL)
    assert not killed.verdict.ok
    assert not (yard.repo / "opencode.json").exists()
    assert await _status(yard) == [], "git misses nothing meanwhile"
    await yard.play("opencode", [say("Done.")], name="turn-2")
    assert (yard.repo / "opencode.json").read_text() == "{}"
    assert (yard.repo / ".opencode" / "notes.md").read_text() == "mine"
    assert await _status(yard) == []


@pytest.mark.parametrize(
    ("agent", "model", "asked"),
    [
        pytest.param("claude", "claude-haiku-5-5", "claude-haiku-5-5", marks=MORE),
        ("claude", "some/door-model", "some/door-model"),
        pytest.param("opencode", "gpt-5.5", "gpt-5.5", marks=MORE),
        ("opencode", "anthropic/claude-of-tomorrow", "claude-of-tomorrow"),
        pytest.param("opencode", "openai/of-tomorrow", "of-tomorrow", marks=MORE),
        pytest.param("codex", "gpt-5.5", "gpt-5.5", marks=MORE),
        ("codex", "some/door-model", "some/door-model"),
        pytest.param("goose", "gpt-5.5", "gpt-5.5", marks=MORE),
        ("goose", "anthropic/claude-of-tomorrow", "claude-of-tomorrow"),
        ("goose", "openai/of-tomorrow", "of-tomorrow"),
    ],
)
async def test_any_model_can_be_named(agent: str, model: str, asked: str, yard: HostYard) -> None:
    played = await yard.play(agent, [say("Done.")], model=model)
    assert played.verdict.ok, played.verdict.reason
    assert {request.model for request in played.model.requests if request.model} == {asked}


@pytest.mark.parametrize("agent", AGENTS)
async def test_a_key_that_the_door_refuses_has_its_own_code(agent: str, yard: HostYard) -> None:
    yard.env, yard.tamper = {"CLAUDE_CODE_MAX_RETRIES": "1"}, _hasty
    played = await yard.play(agent, [say("never said")], key="another key")
    assert played.verdict.code == "credentials.key_refused"
    assert not played.model.saw_key("another key")


@pytest.mark.parametrize("agent", AGENTS)
async def test_a_temporary_server_error_is_retried(agent: str, yard: HostYard) -> None:
    played = await yard.play(agent, [refuse(529, times=1), say("never asked for")])
    assert played.verdict.ok, played.verdict.reason
    assert [request.status for request in played.model.requests if request.model][:2] == [529, 200]


@pytest.mark.parametrize(
    ("step", "code"),
    [
        pytest.param(refuse(400, message="too strange"), "agent.failed", id="400", marks=MORE),
        pytest.param(refuse(429, headers={"retry-after": "1"}), "door.rate_limited", id="429"),
        pytest.param(refuse(500), "door.upstream_failed", id="500", marks=MORE),
        pytest.param(cut(), "door.upstream_failed", id="cut"),
    ],
)
@pytest.mark.parametrize("agent", ["claude", "codex", "goose"])  # opencode would try for ever
async def test_a_permanent_server_error_ends_the_turn(agent: str, step: Step, code: str, yard: HostYard) -> None:
    yard.env, yard.tamper = {"CLAUDE_CODE_MAX_RETRIES": "1"}, _hasty
    played = await yard.play(agent, [step])
    assert (played.verdict.ok, played.verdict.code) == (False, code), played.verdict


@pytest.mark.parametrize("agent", AGENTS)
async def test_an_interrupted_turn_fails_and_its_conversation_continues(agent: str, yard: HostYard) -> None:
    # opencode tells of a call when it is over.
    began = yard.root / "state" / "began"
    stop = {"stop_after": began} if agent == "opencode" else {"signal_at": (b"tail -f", signal.SIGINT)}
    script = [shell(f"touch {began}; tail -f /dev/null"), say("never said")]
    stopped = await yard.play(agent, script, prompt="listen", **stop)
    assert not stopped.verdict.ok
    assert stopped.verdict.conversation
    on = await yard.play(
        agent, [say("Done.")], prompt="now stop", name="turn-2", conversation=stopped.verdict.conversation
    )
    assert on.verdict.ok, on.verdict.reason
    assert b"listen" in on.model.asked[-1].body


@pytest.mark.parametrize(
    ("agent", "conversation"),
    [
        ("claude", "00000000-0000-4000-8000-000000000000"),
        ("opencode", "ses_0000000000000000000000000"),
        ("codex", "00000000-0000-4000-8000-000000000000"),
        ("goose", "00000000-0000-4000-8000-000000000000"),
    ],
)
async def test_an_unknown_conversation_is_an_error(agent: str, conversation: str, yard: HostYard) -> None:
    played = await yard.play(agent, [say("never said")], conversation=conversation)
    assert (played.verdict.ok, played.verdict.code) == (False, "agent.failed")
    assert not any(request.model for request in played.model.requests)


def _hasty(spec: ProcessSpec) -> ProcessSpec:
    """codex with fewer tries: each is twice as late as the one before."""
    argv = [word.replace("stream_max_retries=7", "stream_max_retries=2") for word in spec.command.words()]
    return replace(spec, command=replace(spec.command, argv=tuple(argv)))


def _marks(yard: HostYard) -> Path:
    marks = yard.root / "marks"
    marks.mkdir()
    return marks


def _usage(played: Played) -> tuple[int, int]:
    usage = [event.usage for event in played.events if isinstance(event, AgentUsage)][-1]
    return usage.input_tokens, usage.output_tokens


async def _commit(yard: HostYard) -> None:
    for words in (("add", "-A"), ("commit", "-qm", "more")):
        done = await process.run(["git", *words], cwd=yard.repo, env=GIT_ENV)
        assert done.ok, done.error_output()


async def _status(yard: HostYard) -> list[str]:
    status = ["git", "-c", f"safe.directory={yard.repo}", "status", "--porcelain"]
    return (await process.run(status, cwd=yard.repo, env=GIT_ENV)).stdout.decode().splitlines()
