"""Fork a session, as it is or from a snapshot. Each child has its own files, name, branch, door and share of the
budget. With a live snapshot the agents continue mid-thought; otherwise they resume the conversation."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import anyio
import anyio.to_thread
import msgspec
from anyio.abc import TaskGroup
from sqlalchemy import Connection

from hiveyard.core.errors import BadInput, BudgetSpent, HiveyardError, SessionNotRunning
from hiveyard.core.events import (
    AnyBody,
    BudgetShared,
    Notice,
    SessionCreated,
    SessionForked,
    SessionPlaced,
    SessionPrepared,
    SessionPreparing,
    TurnCreated,
    TurnStarted,
)
from hiveyard.engine.placement import capacity
from hiveyard.engine.resources import Resources
from hiveyard.engine.run_spec import check_prompt
from hiveyard.engine.sessions.request import check_name
from hiveyard.engine.sessions.service import Sessions
from hiveyard.engine.snapshots.service import Snapshots
from hiveyard.engine.turns.prompts import Prompts
from hiveyard.engine.workspace.directory import Meta, Workspace
from hiveyard.engine.workspace.integrity import check_origin
from hiveyard.engine.workspace.session_files import copy_error, files_of
from hiveyard.kit.files import write_atomic
from hiveyard.kit.names import new_id
from hiveyard.repository import branch_name, heads
from hiveyard.store import journal, lineage, names, views
from hiveyard.store.lineage import Point
from hiveyard.store.views import SessionRow

MAX_CHILDREN = 32
"""Maximum number of children of one fork."""
_NOT_INHERITED = ("wait", "name", "prompt", "branch", "base", "include_dirty", "port", "record", "budget_usd")
"""Fields of a session's request that its children do not inherit."""


class ForkRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A request for `count` children (null: as many as instructions, or one) of a session as it is, or as it was at
    `snapshot`. A single instruction is for all of them; otherwise each has its own. The children are called `name`,
    `name`-2, `name`-3, ..."""

    count: Annotated[int, msgspec.Meta(ge=1, le=MAX_CHILDREN)] | None = None
    snapshot: str | None = None
    instructions: list[str] = []
    name: str | None = None

    def checked(self) -> ForkRequest:
        """Validate the fields by themselves and return the request. Raises BadInput."""
        for text in self.instructions:
            check_prompt(text, 'say what to do: hv fork ID -m "try it with sqlite"')
        if self.name is not None:
            check_name(self.name)
        if len(self.instructions) not in (0, 1, self.children):
            raise BadInput(
                f"there are {len(self.instructions)} instructions for {self.children} children",
                hint="a single -m is for all of them; otherwise give as many -m as -n",
            )
        if self.children > MAX_CHILDREN:
            raise BadInput(f"{self.children} children are too many: one fork makes at most {MAX_CHILDREN}")
        return self

    @property
    def children(self) -> int:
        return self.count or max(1, len(self.instructions))

    def instruction(self, number: int) -> str | None:
        if not self.instructions:
            return None
        return self.instructions[number if len(self.instructions) > 1 else 0]


class Forked(msgspec.Struct, frozen=True, kw_only=True):
    """The ids of the children. If `live`, their agents continue mid-thought; otherwise they resume the conversation in
    new machines, as `notice` says."""

    snapshot: str
    live: bool
    children: list[str]
    notice: str = ""


class _Child(NamedTuple):
    id: str
    workspace: Workspace
    instruction: str | None


class ForkService:
    """The service that forks sessions."""

    def __init__(self, resources: Resources, sessions: Sessions, snapshots: Snapshots, group: TaskGroup) -> None:
        self._r = resources
        self._sessions = sessions
        self._snapshots = snapshots
        self._group = group

    async def fork(self, id: str, request: ForkRequest) -> Forked:
        """Create children; return when they are journaled and started. Either all of them are created, or none.

        Raises BadInput, NotFound, SessionNotRunning, SessionDamaged, BudgetSpent, NoMemory, NoSpace."""
        request.checked()
        session = await self._sessions.row(id)
        _share(session, request.children)
        await self._r.event_log.read(lambda conn: self._check_capacity(conn, session.request, request.children))
        if request.snapshot is not None:
            return await self._fork(id, request, request.snapshot)
        if self._sessions.find_runner(id) is None:
            hint = f"hv resume {session.slug}, or --from a snapshot: hv snapshots {session.slug}"
            raise SessionNotRunning(f"{session.slug} is {session.phase}: there is nothing to fork", hint=hint)
        point = await self._snapshots.take(id, f"fork-{new_id()}", temporary=True)
        children: list[str] = []
        try:
            forked = await self._fork(id, request, point.row.id)
            children = forked.children
            return forked
        finally:
            runners = [runner for child in children if (runner := self._sessions.find_runner(child)) is not None]
            self._group.start_soon(self._snapshots.remove_after_fork, point, runners, name=f"remove {point.row.id}")

    async def _fork(self, id: str, request: ForkRequest, ref: str) -> Forked:
        """Create the children of a snapshot. The session's lock keeps the snapshot and the session from being removed
        meanwhile."""
        async with self._sessions.lock(id):
            session = await self._sessions.row(id)
            await check_origin(self._r, session)
            point = await self._r.event_log.read(lambda conn: lineage.point(conn, id, ref))
            children = [self._child(request, number) for number in range(request.children)]
            with anyio.CancelScope(shield=True):
                await self._create_children(session, point, children, request.name)
        notice = "" if point.row.live else _no_memory_notice(session)
        return Forked(
            snapshot=point.row.id, live=point.row.live, children=[child.id for child in children], notice=notice
        )

    async def _create_children(
        self, session: SessionRow, point: Point, children: Sequence[_Child], name: str | None
    ) -> None:
        """Create, journal and start all children, or none."""
        try:
            await self._make(session, point, children)
            taken = await heads(self._r.workspace(session.id).origin)
            write = partial(self._write, session=session, point=point, children=children, heads=taken)
            await self._r.event_log.store.write(partial(write, name=name))
        except (HiveyardError, OSError) as error:
            for child in children:
                await anyio.to_thread.run_sync(shutil.rmtree, child.workspace.root, True)
            if isinstance(error, OSError):
                raise copy_error(session.slug, error) from error
            raise
        await self._begin(session, children)

    async def _begin(self, session: SessionRow, children: Sequence[_Child]) -> None:
        for child in children:
            child.workspace.unfinished.unlink()
            self._sessions.start(child.id)
        runner = self._sessions.find_runner(session.id)
        if runner is not None:
            await runner.apply_budget()

    def _check_capacity(self, conn: Connection, request: Mapping[str, Any], count: int) -> None:
        settings = self._r.settings
        capacity.check(conn, settings, (request.get("memory_mib") or settings.memory_mib) * count)

    def _child(self, request: ForkRequest, number: int) -> _Child:
        id = new_id()
        return _Child(id, self._r.workspace(id), request.instruction(number))

    # --- on disk -----------------------------------------------------------------------------------------------------

    async def _make(self, session: SessionRow, point: Point, children: Sequence[_Child]) -> None:
        """Create the children's directories, each marked as unfinished until it is journaled."""
        workspace, now = self._r.workspace(session.id), self._r.clock.now()
        # Without the lock, a copy could contain half of the work that is being collected.
        async with self._r.collect_lock(session.id):
            for child in children:
                child.workspace.root.mkdir(mode=0o700)
                child.workspace.unfinished.touch()
                files = files_of(self._r, session)
                await files.derive(point.row.id, child.workspace, reserve=self._r.settings.reserve)
                await anyio.to_thread.run_sync(_make, workspace, child, session, now)
        first = children[0].workspace.heard
        await self._r.event_log.read(lambda conn: write_agent_output(conn, workspace, session.id, first, point.seq))
        for child in children[1:]:
            os.link(first, child.workspace.heard)

    # --- in the journal ----------------------------------------------------------------------------------------------

    def _write(
        self,
        conn: Connection,
        *,
        session: SessionRow,
        point: Point,
        children: Sequence[_Child],
        heads: set[str],
        name: str | None,
    ) -> None:
        now = self._r.clock.now()
        lineage.point(conn, session.id, point.row.id)
        self._check_capacity(conn, _request(session, point), len(children))
        # Computed again: since the check, the session may have spent money or may have been forked.
        share = _share(views.session(conn, session.id), len(children))
        for child in children:
            slug = names.free_slug(conn, name or f"{session.slug[:32]}-fork")
            if name is not None and len(children) == 1 and slug != name:
                raise BadInput(f"there is already a session or task called {name}", hint=f"--name {slug}")
            branch = branch_name(slug, heads | views.branches(conn))
            for body in _child_events(session, point, slug, branch, share):
                journal.record(conn, child.id, body, at=now)
            turn = 1
            if point.row.live and point.taken.turn is not None:
                journal.record(conn, child.id, TurnStarted(agent=session.agent), at=now, turn=turn)
                turn += 1
            if child.instruction is not None:
                model = str(session.request.get("model") or "")
                Prompts(child.workspace.prompts).write(turn, child.instruction)
                journal.record(conn, child.id, TurnCreated(agent=session.agent, model=model), at=now, turn=turn)
        if share is not None:
            shared = BudgetShared(children=[child.id for child in children], dollars=share * len(children))
            journal.record(conn, session.id, shared, at=now)


def _make(parent: Workspace, child: _Child, session: SessionRow, at: float) -> None:
    own = child.workspace
    shutil.copytree(parent.origin, own.origin, symlinks=True, copy_function=_shared)
    if parent.tape.exists():
        shutil.copyfile(parent.tape, own.tape)
    if parent.values_file.exists():
        write_atomic(own.values_file, parent.values_file.read_bytes(), mode=0o600)
    keys = parent.keys()
    own.create_keys((keys.placeholder, *keys.inherited))
    own.write(
        Meta(
            id=child.id,
            name=session.slug,
            repo=session.repo,
            agent=session.agent,
            provider=session.provider,
            status="created",
            parent=session.id,
            created=at,
            updated=at,
        )
    )


def _shared(source: str, target: str) -> None:
    """Link git's objects, which are never written to again, and copy all other files."""
    if "/objects/" in source:
        os.link(source, target)
    else:
        shutil.copy2(source, target)


def write_agent_output(
    conn: Connection, workspace: Workspace, session: str, file: Path, upto: int | None = None
) -> None:
    """Write the agent's raw output until event `upto` to a file, for a parser that needs it."""
    with file.open("wb") as out:
        out.writelines(line + b"\n" for line in workspace.heard_lines())
        out.writelines(line + b"\n" for line in lineage.raw_lines(conn, session, upto))


def _child_events(session: SessionRow, point: Point, slug: str, branch: str, share: float | None) -> list[AnyBody]:
    request = _request(session, point)
    if share is not None:
        request["budget_usd"] = share
    assert session.base is not None and session.provider is not None and session.tier is not None
    forked = SessionForked(
        parent=session.id,
        snapshot=point.row.id,
        live=point.row.live,
        branch=session.branch or "",
        image=point.taken.image,
        conversation=point.taken.conversation,
        feed_offset=point.row.feed_offset,
    )
    events: list[AnyBody] = [
        SessionCreated(slug=slug, repo=session.repo, agent=session.agent, request=request, parent=session.id),
        SessionPrepared(base=session.base, branch=branch),
        SessionPlaced(provider=session.provider, tier=session.tier, why=f"forked from {session.slug}"),
        forked,
        SessionPreparing(),
    ]
    return events if point.row.live else [*events, Notice(message=_no_memory_notice(session))]


def _request(session: SessionRow, point: Point) -> dict[str, Any]:
    """Return the request of a child. A live snapshot needs a machine of the same size."""
    request = {key: value for key, value in session.request.items() if key not in _NOT_INHERITED}
    shape = point.taken.shape if point.row.live else None
    if shape is not None:
        request |= {"memory_mib": shape.memory_mib, "cpus": shape.cpus, "disk_gib": shape.disk_gib}
    return request


def _no_memory_notice(session: SessionRow) -> str:
    return (
        f"the snapshot of this {session.provider} machine has no memory: the files were copied, and the agent resumes"
        " its conversation in a new machine; the step that it was in at the snapshot is lost"
    )


def _share(session: SessionRow, children: int) -> float | None:
    """Return the budget of each child in dollars: the parent's remaining budget is divided equally among the parent and
    its children. Raises BudgetSpent."""
    budget = session.request.get("budget_usd")
    if budget is None:
        return None
    left = float(budget) - (session.spent.cost_usd or 0.0)
    if left <= 0:
        raise BudgetSpent(f"the budget of {session.slug} is spent: there is nothing to divide")
    return left / (children + 1)
