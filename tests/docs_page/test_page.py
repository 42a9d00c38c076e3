"""The code on the page is complete: its types hold, and its last script runs as printed."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from anyio.from_thread import start_blocking_portal

from hiveyard.core.events import AgentOutput
from hiveyard.core.ports import Agent
from hiveyard.testing.model import scripted_model
from hiveyard.testing.script import say
from tests.docs_page.page import last

KEY = "sk-ant-Zq8TestSecret-of-nobody"
ROOT = Path(__file__).resolve().parents[2]


def test_its_classes_keep_to_the_ports_as_mypy_sees_it(site: Path, tmp_path: Path) -> None:
    uses = tmp_path / "uses.py"
    uses.write_text(
        "from pathlib import Path\n"
        "from hiveyard.core.ports import Agent, ProcessManager, Provider\n"
        "from yard_extras.ask import Ask\nfrom yard_extras.few import Few\nfrom yard_extras.plain import Plain\n"
        "provider: Provider = Few(Path(), Path())\nagent: Agent = Ask()\nmanager: ProcessManager = Plain()\n"
    )
    (tmp_path / "script.py").write_text(last())
    cache = ["--cache-dir", str(ROOT / ".mypy_cache")]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", *cache, str(uses), str(tmp_path / "script.py")],
        cwd=tmp_path,
        env={**os.environ, "MYPYPATH": f"{ROOT / 'src'}:{site}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_all_three_do_their_work_as_printed(works: None, site: Path, tmp_path: Path) -> None:
    with start_blocking_portal() as portal:
        serving = scripted_model([say("I have got none.")], key=KEY, side_reply=None)
        with portal.wrap_async_context_manager(serving) as model:
            environment = {"ANTHROPIC_API_KEY": KEY, "HIVEYARD_ANTHROPIC_UPSTREAM": f"{model.url}/anthropic"}
            done = subprocess.run(
                [sys.executable, "-c", last()],
                cwd=tmp_path,
                env={**os.environ, **environment, "PYTHONPATH": str(site)},
                capture_output=True,
                text=True,
                timeout=120,
            )
    text, usage, verdict = done.stdout.splitlines()
    assert done.stderr == ""
    assert text == "AgentText(text='I have got none.')"
    assert "input_tokens=1000, output_tokens=50" in usage
    assert verdict == "Verdict(ok=True, code='', reason='', conversation=None)"
    assert [entry for entry in (tmp_path / "run").iterdir() if not entry.name.startswith(".")] == []


@pytest.mark.parametrize(
    "line", [b"", b"\xff", b"[]", b"null", b'{"content": 1}', b'{"content": [], "usage": {}}', b"[" * 100_000]
)
def test_its_agent_believes_nothing_that_a_guest_says(site: Path, line: bytes) -> None:
    agent: Agent = import_module("yard_extras.ask").Ask()
    parser = agent.parser()
    assert [type(event) for event in parser.feed(line)] == [AgentOutput]
    assert parser.verdict(0, "") == (False, "agent.failed", "it said nothing", None)
    assert parser.verdict(1, "Traceback\nurllib.error.HTTPError: 401\n").reason == "urllib.error.HTTPError: 401"
