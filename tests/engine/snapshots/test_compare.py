"""Comparisons of sessions."""

from __future__ import annotations

from pathlib import Path

import pytest

from hiveyard.core.events import AgentToolCalled, AgentToolReturned, AnyBody
from hiveyard.engine.snapshots.compare import tests_of as runs_of
from hiveyard.engine.snapshots.fork import ForkRequest
from tests.engine.conftest import Yard
from tests.engine.yards import answer, run_turn, spawned
from tests.support.puppet import register


def ran(command: str, output: str = "", *, is_error: bool = False, tool: str = "Bash") -> list[AnyBody]:
    return [
        AgentToolCalled(call=command, tool=tool, summary=f"{tool}: {command}"),
        AgentToolReturned(call=command, output=output, is_error=is_error),
    ]


@pytest.mark.parametrize(
    ("command", "output", "is_error", "outcome"),
    [
        ("pytest -q", "3 passed", False, "passed"),
        ("cd app && python -m pytest tests", "1 failed, 2 passed", True, "failed"),
        ("python3 -m pytest | tail -3", "2 failed, 1 passed", False, "failed"),
        ("python -m unittest", "OK", False, "passed"),
        ("CI=1 timeout 60 .venv/bin/pytest -q", "1 passed", False, "passed"),
        ("npm run test", "", False, "passed"),
        ("cargo test", "test result: FAILED. 1 passed", False, "failed"),
        ("go test ./...", "--- FAIL: TestX", False, "failed"),
        ("make -s check", "0 errors", False, "passed"),
    ],
)
def test_commands_that_run_tests_are_found_with_their_outcome(
    command: str, output: str, is_error: bool, outcome: str
) -> None:
    (run,) = runs_of(ran(command, output, is_error=is_error))
    assert (run.command, run.outcome) == (command, outcome)


@pytest.mark.parametrize(
    "command", ["ls tests", "cat pytest.ini", "vim test.py", "git log --grep=test", "pip install x"]
)
def test_other_commands_are_not_tests(command: str) -> None:
    assert runs_of(ran(command)) == []


def test_the_last_run_of_a_command_counts() -> None:
    (run,) = runs_of([*ran("pytest", "1 failed", is_error=True), *ran("pytest", "1 passed")])
    assert (run.outcome, run.times) == ("passed", 2)
    (cut,) = runs_of(ran("pytest")[:1])
    assert cut.outcome == "unknown"


@pytest.mark.anyio
async def test_a_comparison_shows_the_changes_of_each_child(yard: Yard, repo: Path) -> None:
    register()
    async with yard.open() as engine:
        id = await spawned(engine, repo)
        spec = ForkRequest(instructions=["run printf '1\\n2\\n' > new.txt; rm b.txt", "run echo x >> a.txt"])
        children = (await engine.forks.fork(id, spec)).children
        for child in children:
            await answer(engine, child, 1)
        await run_turn(engine, children[0], "run make check || echo no")
        await run_turn(engine, children[1], "run make check")
        first, second, parent = await engine.comparisons.compare([*children, id])
        assert [(file.path, file.insertions, file.deletions) for file in first.files] == [
            ("b.txt", 0, 1),
            ("new.txt", 2, 0),
        ]
        assert [(file.path, file.insertions, file.deletions) for file in second.files] == [("a.txt", 1, 0)]
        assert (second.diffstat.files, second.diffstat.insertions) == (1, 1)
        assert [run.outcome for run in second.tests] == ["failed"]
        assert (first.parent, parent.parent, parent.files) == (id, None, [])
        assert first.turns == 2
        for one in (id, *children):
            await engine.sessions.stop(one)
