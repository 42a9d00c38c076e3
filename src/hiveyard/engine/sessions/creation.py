"""Create a session: its directory, its journal entry and its first prompt."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection

from hiveyard.core.errors import BadInput
from hiveyard.core.events import AnyBody, SessionCreated, SessionPreparing, TurnCreated
from hiveyard.engine.placement import capacity
from hiveyard.engine.resources import Resources
from hiveyard.engine.sessions.request import SpawnRequest
from hiveyard.engine.turns.prompts import Prompts
from hiveyard.engine.workspace.create import create_and_record
from hiveyard.engine.workspace.values import keep_values
from hiveyard.kit.names import slug
from hiveyard.store import journal, names, views

FIRST_TURN = 1


async def existing(request: SpawnRequest, resources: Resources) -> str | None:
    """Return the session that was created before with the same id and the same request."""
    id = request.id
    if id is None or (session := await resources.event_log.read(lambda conn: views.find_session(conn, id))) is None:
        return None
    request.check_same(session.request, "session")
    return id


async def create(id: str, request: SpawnRequest, resources: Resources, facts: Sequence[AnyBody] = ()) -> None:
    """Create the session's directory, then journal the session, with its first prompt if it has one, and `facts`."""
    settings, now = resources.settings, resources.clock.now()
    agent = request.agent or settings.agent
    wanted = request.name or slug(request.prompt or request.repo.rstrip("/").rsplit("/", 1)[-1], fallback="session")
    workspace = resources.workspace(id)

    def make() -> None:
        workspace.create(
            id=id,
            slug=wanted,
            repo=request.repo,
            agent=agent,
            prompt=request.prompt or "",
            at=now,
            tape=request.tape,
        )
        keep_values(workspace, env=request.env, mcp=request.mcp)
        if request.prompt is not None:
            Prompts(workspace.prompts).write(FIRST_TURN, request.prompt)

    def write(conn: Connection) -> None:
        free = names.free_slug(conn, wanted)
        if request.name is not None and free != request.name:
            raise BadInput(f"there is already a session or task called {request.name}", hint=f"--name {free}")
        if not request.wait:
            capacity.check(conn, settings, request.memory_mib or settings.memory_mib)
        created = SessionCreated(slug=free, repo=request.repo, agent=agent, request=request.as_json())
        journal.record(conn, id, created, at=now)
        if not request.wait:
            journal.record(conn, id, SessionPreparing(), at=now)
        if request.prompt is not None:
            journal.record(conn, id, TurnCreated(agent=agent, model=request.model or ""), at=now, turn=FIRST_TURN)
        for fact in facts:
            journal.record(conn, id, fact, at=now)

    await create_and_record(resources, workspace.root, make, write)
