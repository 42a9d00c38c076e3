"""Compare sessions: the changes of each, the tests its agent ran and their outcome, time, tokens and money."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal

import msgspec
from sqlalchemy import Connection

from hiveyard import repository
from hiveyard.core.errors import BadInput, HiveyardError
from hiveyard.core.events import AgentToolCalled, AgentToolReturned, Event
from hiveyard.core.usage import Usage
from hiveyard.engine.resources import Resources
from hiveyard.engine.sessions.service import Sessions
from hiveyard.engine.workspace.integrity import check_commits
from hiveyard.engine.workspace.result import Diffstat, missing_work
from hiveyard.kit.text import decode, one_line
from hiveyard.repository.git import git
from hiveyard.store import journal, views
from hiveyard.store.views import ResultRow, SessionRow, TurnRow

MAX_SESSIONS = 16
"""Maximum number of sessions in one comparison."""
_FILES = 2000
_SHOWN = 200
# A program that runs tests, at the beginning of a command in a command line.
_TESTS = re.compile(
    r"(?:^|[;&|(\n])\s*(?:(?:\w+=\S*|sudo|time|env|exec|timeout\s+\S+)\s+)*(?:[\w./-]*/)?(?:pytest|py\.test|tox|nox|ctest|rspec|phpunit|bats|jest|vitest|mocha|"
    r"(?:python[\d.]*|uv run|poetry run)\s+(?:-m\s+)?(?:pytest|unittest|nose2?)|"
    r"(?:npm|pnpm|yarn|bun|deno|cargo|go|mvn|gradlew?|dotnet|mix|rake|swift|zig build)\s+(?:run\s+)?test|"
    r"make\s+(?:-\S+\s+)*(?:test|check)|npx\s+(?:jest|vitest|mocha))\b"
)
# In `pytest | tail` the exit code is that of tail, so the output decides.
_FAILED = re.compile(
    r"\b[1-9]\d* (?:failed|failures?|errors?|failing)\b|^(?:FAILED|FAIL:|--- FAIL)|test result: FAILED", re.M
)


class ChangedFile(msgspec.Struct, frozen=True, kw_only=True):
    """A changed file with its numbers of added and removed lines; null for a file that is not text."""

    path: str
    insertions: int | None
    deletions: int | None


class TestRun(msgspec.Struct, frozen=True, kw_only=True):
    """A command that runs tests, with the outcome of its last run. `times` counts the runs."""

    command: str
    outcome: Literal["passed", "failed", "unknown"]
    times: int


class Compared(msgspec.Struct, frozen=True, kw_only=True):
    """A session with its changes against its base. `seconds` is the duration of its turns. `notice` says why the work
    may not be up to date."""

    id: str
    name: str
    status: str
    parent: str | None
    branch: str | None
    commits: int
    diffstat: Diffstat
    files: list[ChangedFile]
    tests: list[TestRun]
    turns: int
    seconds: float
    usage: Usage
    notice: str = ""


class Comparisons:
    """The service that compares sessions."""

    def __init__(self, resources: Resources, sessions: Sessions) -> None:
        self._r = resources
        self._sessions = sessions

    async def compare(self, ids: list[str]) -> list[Compared]:
        """Return one result per session, in the order of `ids`. Raises NotFound, SessionDamaged, BadInput for too many
        sessions."""
        if len(ids) > MAX_SESSIONS:
            raise BadInput(f"{len(ids)} sessions are too many to compare: at most {MAX_SESSIONS}")
        return [await self._one(id) for id in dict.fromkeys(ids)]

    async def _one(self, id: str) -> Compared:
        notice = ""
        await self._sessions.row(id)
        try:
            await self._sessions.collect(id)
        except HiveyardError as error:
            notice = f"the work may not be up to date: {error.message}"
        await check_commits(self._r, await self._sessions.row(id))

        def read(conn: Connection) -> tuple[SessionRow, ResultRow | None, list[TurnRow], list[TestRun], str]:
            session = views.session(conn, id)
            lacks = missing_work(conn, session, self._r.workspace(id))
            return session, views.result(conn, id), views.turns(conn, id), _tests(conn, id), lacks

        session, result, turns, tests, lacks = await self._r.event_log.read(read)
        files = await self._files(session, result)
        return Compared(
            id=id,
            name=session.slug,
            status=session.phase.value,
            parent=session.parent,
            branch=session.branch,
            commits=result.commits if result else 0,
            diffstat=Diffstat(
                files=len(files),
                insertions=sum(file.insertions or 0 for file in files),
                deletions=sum(file.deletions or 0 for file in files),
            ),
            files=files[:_FILES],
            tests=tests,
            turns=sum(turn.started_at is not None for turn in turns),
            seconds=_seconds(turns, self._r.clock.now()),
            usage=session.spent,
            notice=notice or lacks,
        )

    async def _files(self, session: SessionRow, result: ResultRow | None) -> list[ChangedFile]:
        if result is None or not result.commits:
            return []
        origin, found = self._r.workspace(session.id).origin, []
        for change in await repository.changes(origin, result.base, result.head, result.branch):
            listed = await git(*change.words("--numstat", "-z", "--no-renames"))
            found += _numbers(listed.stdout, f"{change.path}/" if change.path else "")
        return found


def _numbers(listed: bytes, below: str) -> list[ChangedFile]:
    found = []
    for line in listed.split(b"\0"):
        added, _, rest = line.partition(b"\t")
        removed, _, path = rest.partition(b"\t")
        if path:
            numbers = [int(number) if number.isdigit() else None for number in (added, removed)]
            file = ChangedFile(path=below + decode(path), insertions=numbers[0], deletions=numbers[1])
            found.append(file)
    return found


def _tests(conn: Connection, id: str) -> list[TestRun]:
    return tests_of(event.body for page in _pages(conn, id) for event in page)


def tests_of(bodies: Iterable[object]) -> list[TestRun]:
    """Return the commands that run tests, each with the outcome of its last run."""
    called: dict[str, str] = {}
    runs: dict[str, TestRun] = {}
    for body in bodies:
        if isinstance(body, AgentToolCalled) and _TESTS.search(line := body.summary.partition(": ")[2] or body.summary):
            command = one_line(line, _SHOWN)
            called[body.call] = command
            times = runs[command].times if command in runs else 0
            runs.pop(command, None)
            runs[command] = TestRun(command=command, outcome="unknown", times=times + 1)
        elif isinstance(body, AgentToolReturned) and body.call in called:
            command = called.pop(body.call)
            failed = body.is_error or _FAILED.search(body.output)
            runs[command] = msgspec.structs.replace(runs[command], outcome="failed" if failed else "passed")
    return list(runs.values())


def _pages(conn: Connection, id: str) -> Iterable[list[Event]]:
    after = 0
    while page := journal.events(conn, session=id, after=after):
        yield page
        after = page[-1].seq


def _seconds(turns: Iterable[TurnRow], now: float) -> float:
    return sum((turn.ended_at or now) - turn.started_at for turn in turns if turn.started_at is not None)
