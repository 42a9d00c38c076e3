"""Real agents as members: they read their mail in a prompt, and call the tools of the hive at their door."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from hiveyard.testing.script import Call, Step, say
from tests.end_to_end.main_job.conftest import Opening, Speaking, Yard, docker_socket, opening, portal, speaking
from tests.end_to_end.main_job.test_agents import OPENAI_KEY
from tests.end_to_end.sessions.test_live_agents import IMAGES, MODELS, PATIENCE, PLACES
from tests.engine.conftest import repo

__all__ = ["docker_socket", "opening", "portal", "repo", "speaking"]
pytestmark = pytest.mark.real
TOOLS = {"claude": "mcp__hive__{}", "opencode": "hive_{}", "codex": "mcp__hive/{}", "goose": "hive__{}"}


def script(agent: str) -> list[Step]:
    """Let the agent report to the operator, and ask a question."""
    send = {"to": ["operator"], "text": "it is seventeen"}
    ask = {"question": "go on?", "options": ["yes", "no"]}
    calls = [Call(tool=TOOLS[agent].format(name), input=input) for name, input in (("send", send), ("ask", ask))]
    return [*(Step(calls=[call]) for call in calls), say("I have reported.")]


def mail(yard: Yard, name: str, count: int) -> list[dict[str, Any]]:
    """Return the messages from and for a member, or the operator, once there are enough that were not held back."""
    until = time.monotonic() + PATIENCE
    while len(found := yard.json("hive", "mail", *([name] if name else []))) < count:
        assert time.monotonic() < until, found
        time.sleep(0.5)
    return list(found)


@pytest.mark.parametrize("provider", PLACES)
@pytest.mark.parametrize("agent", MODELS)
def test_a_real_agent_is_a_member(agent: str, provider: str, opening: Opening, speaking: Speaking, repo: Path) -> None:
    scripts = {"report": script(agent), "next": [say("I know it now.")]}
    with speaking([], scripts=scripts) as model, opening(provider, model, OPENAI_API_KEY=OPENAI_KEY) as yard:
        place = ("--agent", agent, "--image", IMAGES.get(agent, "default"), "--model", MODELS[agent])
        added = yard("hive", "add", "ada", str(repo), *place, timeout=PATIENCE)
        assert added.returncode == 0, added.stderr
        sent = yard("send", "ada", "[[script:report]] how many are there?", "--wait", timeout=PATIENCE)
        assert "I have reported." in sent.stdout, sent.stdout + sent.stderr
        [told] = [one for one in mail(yard, "", 1) if one["sender"] == "ada"]
        assert told["text"] == "it is seventeen"
        asked = model.asked[-1].body.decode()
        assert "You are ada, a member of a hive" in asked
        assert "from operator" in asked and "how many are there?" in asked

        [ask] = yard.json("inbox")
        assert (ask["asker"], ask["message"]) == ("ada", "go on?")
        assert yard("answer", ask["id"], "yes", "-m", "[[script:next]]").returncode == 0
        answer = mail(yard, "ada", 3)[-1]
        assert (answer["kind"], answer["sender"], answer["text"]) == ("answer", "operator", "yes\n[[script:next]]")
        assert yard("hive", "stop", "ada", timeout=PATIENCE).returncode == 0
