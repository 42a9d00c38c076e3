"""The examples of the README and of docs/build.md run as they are printed; and what they say is complete."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from anyio.from_thread import start_blocking_portal

import hiveyard
from hiveyard.library import RuntimeEvent
from hiveyard.library import events as library_events
from hiveyard.testing.model import scripted_model
from hiveyard.testing.script import Call, File, Step, say
from tests.support.person import person

KEY = "sk-ant-Zq8TestSecret-of-nobody"
ROOT = Path(__file__).resolve().parents[2]
EXPECTED = {
    "README.md 1": "HELLO\n\n",
    "docs/build.md 1": "HELLO\n\n",
    "docs/build.md 2": "I have got some tools.\n",
    "docs/build.md 3": (
        "permission requested: Write: hello.txt\nWritten.\npermission requested: Write: hello.txt\nWritten.\n"
    ),
    "docs/build.md 4": (
        "BootStarted\nBootReady\nCredentialsInstalled\nMachineInfoWritten\nSessionStarted\n"
        "600 /home/agent/.codex/auth.json\n600 /home/agent/.codex/config.toml\n600 /home/agent/.machine.json\n"
        "[('look', 0)]\nMachineTerminated\n"
    ),
    "docs/build.md 5": "100\n",
}
REAL = {"docs/build.md 2", "docs/build.md 3", "docs/build.md 5"}
AT_A_TERMINAL = "docs/build.md 6"
TOOLS = [say("I have got some tools.")]
HELLO = [Step(calls=[Call(write=File(path="hello.txt", content="Hello.\n"))]), say("Written.")]


def blocks() -> dict[str, str]:
    """Those of "Write your own" are the concern of tests/extras."""
    pages = {
        page: (ROOT / page).read_text().partition("## Write your own")[0] for page in ("README.md", "docs/build.md")
    }
    return {
        f"{page} {number}": block
        for page, text in pages.items()
        for number, block in enumerate(re.findall(r"```python\n(.*?)```", text, re.DOTALL), 1)
    }


def test_each_example_is_run() -> None:
    assert set(blocks()) == {*EXPECTED, AT_A_TERMINAL}


def test_ten_lines_are_ten() -> None:
    assert len([line for line in blocks()["docs/build.md 1"].splitlines() if line]) == 10


@pytest.fixture
def environment(which: str) -> Iterator[dict[str, str]]:
    """The environment of a user with a key, and a vendor with answers."""
    with start_blocking_portal() as portal:
        serving = scripted_model(HELLO if which == "docs/build.md 3" else TOOLS, key=KEY)
        with portal.wrap_async_context_manager(serving) as model:
            yield {**os.environ, "ANTHROPIC_API_KEY": KEY, "HIVEYARD_ANTHROPIC_UPSTREAM": f"{model.url}/anthropic"}


@pytest.mark.parametrize(
    "which", [pytest.param(which, marks=[pytest.mark.real] if which in REAL else []) for which in EXPECTED]
)
def test_an_example_runs_as_printed(works: None, environment: dict[str, str], tmp_path: Path, which: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", blocks()[which]],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=1200 if which in REAL else 120,  # there may be an image to build
    )
    assert (done.stdout, done.stderr) == (EXPECTED[which], "")
    assert [entry for entry in (tmp_path / "run").iterdir() if not entry.name.startswith(".")] == []


@pytest.mark.anyio
async def test_a_user_attaches_to_a_terminal(works: None, tmp_path: Path) -> None:
    (tmp_path / "example.py").write_text(blocks()[AT_A_TERMINAL])
    inside = f"cd '{tmp_path}' && exec '{sys.executable}' example.py"
    async with person(["sh", "-c", inside]) as somebody:
        await somebody.sees("$")
        somebody.type("echo here it $((6 * 7)) is\r")
        await somebody.sees("here it 42 is")
        somebody.type("exit\r")
        assert await somebody.leaves() == 0
    assert [entry for entry in (tmp_path / "run").iterdir() if not entry.name.startswith(".")] == []


def events(kind: type[RuntimeEvent] = RuntimeEvent) -> Iterator[type[RuntimeEvent]]:
    for more in kind.__subclasses__():
        yield more
        yield from events(more)


def test_every_event_is_in_the_docs_with_its_fields() -> None:
    told = {
        name: set(re.findall(r"`(\w+)`", fields))
        for name, fields in re.findall(
            r"^\| `(\w+)` \| .* \| (.*)\|$", (ROOT / "docs/build.md").read_text(), re.MULTILINE
        )
    }
    assert told == {
        str(kind.__struct_config__.tag): set(kind.__struct_fields__) - {"machine"}
        for kind in events()
        if kind is not library_events._Failed
    }


def test_the_library_is_imported_only_on_use() -> None:
    asked = "import sys, hiveyard, hiveyard.cli.main; print([name for name in sys.modules if 'orchestrator' in name])"
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_package_exports_its_public_names() -> None:
    assert {name: hasattr(hiveyard, name) for name in hiveyard.__all__} == dict.fromkeys(hiveyard.__all__, True)
    with pytest.raises(ImportError, match="cannot import name 'Nothing'"):
        from hiveyard import Nothing  # type: ignore[attr-defined]  # noqa: F401
