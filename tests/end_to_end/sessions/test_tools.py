"""Real agents call a tool of a small tool server in the repository: as tasks, at their terminals, and live."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hiveyard.testing.model import ScriptedModel
from hiveyard.testing.script import Call, Step, say
from tests.end_to_end.main_job.conftest import Opening, Speaking, Yard, docker_socket, opening, portal, speaking
from tests.end_to_end.main_job.host import files_with
from tests.end_to_end.main_job.probe import forms
from tests.end_to_end.main_job.test_agents import OPENAI_KEY
from tests.end_to_end.sessions.test_live_agents import IMAGES, MODELS, PATIENCE, PLACES
from tests.engine.conftest import git, repo
from tests.support.leaks import MARK

__all__ = ["docker_socket", "opening", "portal", "repo", "speaking"]
pytestmark = pytest.mark.real

WORD = f"{MARK}-of-a-tool"
SERVER = Path(__file__).parents[2] / "support" / "tool_server.py"
TOOLS = {
    "claude": "mcp__numbers__lucky",
    "opencode": "numbers_lucky",
    "codex": "mcp__numbers/lucky",
    "goose": "numbers__lucky",
}
SYSTEM = "Speak as a pirate does."


@pytest.fixture
def words(repo: Path, tmp_path: Path) -> list[str]:
    """Return the options for the tool server, which is in the repository, and a system text."""
    (repo / "tool_server.py").write_text(SERVER.read_text())
    git(repo, "add", ".")
    git(repo, "commit", "-q", "-m", "a tool server")
    env = {"TOOL_WORD": "${WORD}"}
    numbers = {"command": "python3", "args": ["tool_server.py", "17"], "env": env, "tools": ["lucky"]}
    (tmp_path / "mcp.json").write_text(json.dumps({"mcpServers": {"numbers": numbers}}))
    (tmp_path / "system.md").write_text(SYSTEM)
    return ["--mcp-file", str(tmp_path / "mcp.json"), "--system-file", str(tmp_path / "system.md"), "--env", "WORD"]


def used(agent: str) -> list[Step]:
    return [Step(calls=[Call(tool=TOOLS[agent], input={})]), say("It is seventeen.")]


def check(model: ScriptedModel, yard: Yard) -> None:
    """Check that the tool answered and the text arrived, and that the secret value is in one private file only."""
    asked = model.asked[-1].body.decode()
    assert f"the lucky number is 17, {WORD[::-1]}" in asked
    assert SYSTEM in asked
    assert [Path(path).name for path in files_with(yard.home, forms(WORD))] == ["values.json"]


@pytest.mark.parametrize("provider", PLACES)
@pytest.mark.parametrize("agent", MODELS)
def test_a_task_and_its_session_call_a_tool(
    agent: str, provider: str, opening: Opening, speaking: Speaking, repo: Path, words: list[str]
) -> None:
    scripts = {"lucky": used(agent)}
    with (
        speaking([], scripts=scripts) as model,
        opening(provider, model, OPENAI_API_KEY=OPENAI_KEY, WORD=WORD) as yard,
    ):
        place = ("--agent", agent, "--image", IMAGES.get(agent, "default"), "--model", MODELS[agent])
        status, report = yard.run(repo, "-m", "[[script:lucky]] say the lucky number", *place, *words)
        assert (status, report["status"]) == (0, "completed"), report
        check(model, yard)
        told = yard("send", report["slug"], "[[script:lucky]] once more", "--wait", timeout=PATIENCE)
        assert "It is seventeen." in told.stdout, told.stderr
        check(model, yard)
        assert yard("stop", report["id"], timeout=PATIENCE).returncode == 0


@pytest.mark.parametrize("provider", PLACES)
@pytest.mark.parametrize("agent", ["claude", "opencode"])
def test_a_live_session_calls_a_tool_also_after_it_was_resumed(
    agent: str, provider: str, opening: Opening, speaking: Speaking, repo: Path, words: list[str]
) -> None:
    with speaking([], scripts={"lucky": used(agent)}) as model, opening(provider, model, WORD=WORD) as yard:
        spawned = yard("spawn", "--repo", str(repo), "--agent", agent, "--live", *words, timeout=PATIENCE)
        assert spawned.returncode == 0, spawned.stderr
        id = spawned.stdout.splitlines()[-1]
        for time in ("first", "second"):
            told = yard("send", id, f"[[script:lucky]] say the {time} number", "--wait", timeout=PATIENCE)
            assert "It is seventeen." in told.stdout, told.stderr
            check(model, yard)
            assert yard("stop", id, timeout=PATIENCE).returncode == 0
            assert yard("resume", id, timeout=PATIENCE).returncode == 0
        assert yard("stop", id, timeout=PATIENCE).returncode == 0
