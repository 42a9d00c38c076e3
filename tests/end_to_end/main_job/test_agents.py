"""The main job: a real agent changes a real repository in a machine of each kind, and all its work is reported."""

from __future__ import annotations

from pathlib import Path

import pytest

from hiveyard.images.images import Images
from hiveyard.paths import default_paths
from hiveyard.testing.script import Call, File, Step, Tokens, say, shell
from tests.end_to_end.main_job.conftest import Opening, Speaking, only, patched
from tests.engine.conftest import git

pytestmark = pytest.mark.real

USAGE = Tokens(input=200, output=40, cache_read=3000, cache_write=500)
WORK = [
    Step(
        thinking="A list of three is asked for.",
        text="I write the third file.",
        calls=[Call(write=File(path="/session/repo/c.txt", content="three\n"))],
        usage=USAGE,
    ),
    shell("git add c.txt && git commit -qm 'Add the third' && sed -i s/one/ONE/ a.txt && cat c.txt", text="Commit."),
    say("There are three now."),
]
IMAGES = {"goose": "goose"}
OPENAI_KEY = "sk-Zq8TestSecret-of-nobody"
TIERS = {"qemu": "vm", "docker": "container", "bubblewrap": "namespace"}


# Each agent once, and each provider once, in `make test`; the rest of the matrix in `make long PART=agents`.
ONCE = (
    ("bubblewrap", "claude"),
    ("bubblewrap", "opencode"),
    ("bubblewrap", "goose"),
    ("docker", "claude"),
    ("qemu", "claude"),
)
REST = (("docker", "opencode"), ("docker", "goose"), ("qemu", "opencode"), ("qemu", "goose"))


@pytest.mark.parametrize(
    ("provider", "agent"), [*ONCE, *(pytest.param(*pair, marks=pytest.mark.long("agents")) for pair in REST)]
)
def test_a_real_agent_changes_a_real_repository(
    provider: str, agent: str, opening: Opening, speaking: Speaking, repo: Path, tmp_path: Path
) -> None:
    before = git(repo, "rev-parse", "HEAD")
    with speaking(WORK) as model, opening(provider, model) as yard:
        image = IMAGES.get(agent, "default")
        status, report = yard.run(repo, "-m", "Make it three.", "--agent", agent, "--image", image)
        assert (status, report["status"], report["error"]) == (0, "completed", None), yard("logs", report["id"]).stdout

        # The agent's commits, and one commit by Hiveyard of its uncommitted work.
        assert (report["branch"], report["base"], report["commits"]) == ("hv/make-it-three", before, 2)
        assert report["diffstat"] == {"files": 2, "insertions": 2, "deletions": 1}
        work = patched(repo, report, tmp_path / "patched")
        assert [(work / name).read_text() for name in ("a.txt", "b.txt", "c.txt")] == ["ONE\n", "two\n", "three\n"]
        assert yard("apply", report["slug"]).returncode == 0
        assert git(repo, "log", "--format=%s", "hv/make-it-three").splitlines()[1:] == ["Add the third", "first"]
        assert (git(repo, "rev-parse", "HEAD"), git(repo, "status", "--porcelain")) == (before, "")

        # The provider, the agent and the cost.
        assert (report["provider"], report["tier"], report["agent"]) == (provider, TIERS[provider], agent)
        assert report["program"] == f"{agent} {_program_of(image, agent)}"
        usage = report["usage"]
        assert usage["requests"] == len(model.requests) == 3
        assert usage["input_tokens"] == 200 + 1000 + 1000
        assert usage["output_tokens"] == 40 + 50 + 50
        assert (usage["cache_read_tokens"], usage["cache_write_tokens"]) == (3000, 500)
        assert usage["cost_usd"] > 0
        assert {"clone", "image", "boot", "push", "agent", "collect", "release", "total"} <= report["timings"].keys()

        # The events that were recorded meanwhile.
        assert only(yard.bodies(report["id"], "task.assigned"))["why"]
        assert only(yard.bodies(report["id"], "agent.started"))["conversation"]
        called = [body["summary"] for body in yard.bodies(report["id"], "agent.tool_called")]
        assert called[0].lower() == "write: c.txt"
        assert called[1].lower().startswith(("bash: git add c.txt", "shell: git add c.txt"))
        returned = yard.bodies(report["id"], "agent.tool_returned")
        assert len(returned) == 2
        assert "three" in returned[1]["output"]
        edited = only(yard.bodies(report["id"], "agent.edited"))
        assert edited["path"] == "c.txt"
        assert "+three" in edited["diff"]
        assert "A list of three is asked for." in str(yard.bodies(report["id"], "agent.thinking"))
        assert "There are three now." in str(yard.bodies(report["id"], "agent.text"))
        assert yard.bodies(report["id"], "agent.usage")[-1]["usage"]["output_tokens"] == usage["output_tokens"]
        logs = yard("logs", report["slug"]).stdout
        assert "git add c.txt" in logs


@pytest.mark.parametrize("model_name", ["gpt-5.5", None], ids=["with tools", "with a program for its tools"])
def test_codex_changes_a_real_repository(
    model_name: str | None, opening: Opening, speaking: Speaking, repo: Path, tmp_path: Path
) -> None:
    given = ["--model", model_name] if model_name else []
    usage = Tokens(input=200, output=40, cache_read=3000)
    script = [
        Step(
            thinking="A list.",
            text="I commit.",
            calls=[Call(shell="sed -i s/one/ONE/ a.txt && cat a.txt")],
            usage=usage,
        ),
        shell("printf 'three\\n' > c.txt"),
        say("Three."),
    ]
    with speaking(script) as model, opening("bubblewrap", model, OPENAI_API_KEY=OPENAI_KEY) as yard:
        status, report = yard.run(repo, "-m", "Make it three.", "--agent", "codex", "--image", "codex", *given)
        assert (status, report["status"], report["error"]) == (0, "completed", None), yard("logs", report["id"]).stdout
        assert (report["program"], report["commits"]) == (f"codex {_program_of('codex', 'codex')}", 1)
        work = patched(repo, report, tmp_path / "patched")
        assert [(work / name).read_text() for name in ("a.txt", "c.txt")] == ["ONE\n", "three\n"]

        # The door's count of the usage, and the one that codex reports.
        assert model.saw_key(OPENAI_KEY)
        assert {request.path for request in model.requests} == {"/v1/responses"}
        counted, said = report["usage"], yard.bodies(report["id"], "agent.usage")[-1]["usage"]
        assert counted["requests"] == len(model.requests) == 3
        for usage_of in (counted, said):
            assert (usage_of["input_tokens"], usage_of["output_tokens"]) == (2200, 140)
            assert usage_of["cache_read_tokens"] == 3000
        assert counted["cost_usd"] > 0
        called = [body["summary"] for body in yard.bodies(report["id"], "agent.tool_called")]
        assert [line.partition(" ")[0] for line in called] == ["shell:", "shell:"]
        assert "Three." in str(yard.bodies(report["id"], "agent.text"))


def _program_of(image: str, agent: str) -> str:
    """Return the version of a program in an image."""
    return Images(default_paths().cache).get(image).programs[agent]
