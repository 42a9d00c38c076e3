"""The agent of a session: held at its own terminal, or live."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from sqlalchemy import Connection

from hiveyard.agents import by_name, names
from hiveyard.core.drivers import HasDriver
from hiveyard.core.errors import BadInput, UnknownAgent
from hiveyard.core.ports import HasTerminal
from hiveyard.engine.resources import Resources
from hiveyard.engine.sessions.request import SpawnRequest
from hiveyard.engine.turns.agent_runner import AgentRunner
from hiveyard.engine.turns.live_runner import LiveAgent, LiveRunner
from hiveyard.engine.turns.prompts import Prompts
from hiveyard.engine.turns.terminal_runner import TERMINAL, TerminalAgent, TerminalRunner
from hiveyard.engine.turns.turn_queue import TurnQueue
from hiveyard.engine.turns.turn_spec import check_turn, turn_spec
from hiveyard.engine.turns.turn_tracker import TurnTracker
from hiveyard.store import lineage, views
from hiveyard.store.views import SessionRow

LIVE, TERMINAL_MODE, ONE_SHOT = "live", "terminal", "one-shot"


def mode_of(session: SessionRow) -> str:
    """Return how the agent of a session is held: `live`, `terminal`, or `one-shot` for a task."""
    if not session.own:
        return ONE_SHOT
    request = session.request
    try:
        has_terminal = isinstance(by_name(session.agent), HasTerminal)
    except UnknownAgent:  # of a plugin that is not installed any more
        has_terminal = True
    return TERMINAL_MODE if has_terminal and not (request.get("live") or request.get("ask")) else LIVE


def is_live(request: SpawnRequest, default: str) -> bool:
    """Return whether the session's agent is live: it was asked for, or the agent has no terminal. `default` is the
    agent of a request that names none."""
    return request.live or request.ask or not isinstance(by_name(request.agent or default), HasTerminal)


def check_agent(request: SpawnRequest, default: str) -> None:
    """Validate a request and whether its agent can be held in a session as it asks. Raises UnknownAgent; BadInput also
    for an agent that cannot take the tool servers, system text or variables."""
    name = request.agent or default
    agent, live = by_name(name), is_live(request, default)
    if live and not isinstance(agent, HasDriver):
        able = ", ".join(other for other in names() if isinstance(by_name(other), HasTerminal | HasDriver))
        way = "in a live session" if request.live or request.ask else "in a session"
        raise BadInput(
            f"{name} takes one prompt only and cannot stay {way}", hint=f"--agent, one of: {able}; or hv run"
        )
    request.checked()
    if live and isinstance(agent, HasDriver):
        check_turn(request, agent.live_process, ask=request.ask)
    elif isinstance(agent, HasTerminal):
        check_turn(request, agent.agent_terminal)


async def session_agent(
    id: str, request: SpawnRequest, door_url: str, resources: Resources, on_turn_over: Callable[[], None]
) -> AgentRunner:
    """Return what holds the agent of a session, with the turns that the journal knows."""
    agent = by_name(request.agent or resources.settings.agent)
    workspace = resources.workspace(id)

    def state(conn: Connection) -> tuple[list[views.TurnRow], str | None]:
        return views.turns(conn, id), lineage.conversation(conn, id)

    rows, conversation = await resources.event_log.read(state)
    turn = turn_spec(request, workspace, door_url, name=TERMINAL, conversation=conversation, ask=request.ask)
    prompts = Prompts(workspace.prompts)
    if is_live(request, resources.settings.agent):
        return LiveRunner(
            session=id,
            agent=cast(LiveAgent, agent),
            turn=turn,
            queue=TurnQueue(agent.name, rows, conversation),
            prompts=prompts,
            resources=resources,
            on_turn_over=on_turn_over,
        )
    return TerminalRunner(
        session=id,
        agent=cast(TerminalAgent, agent),
        turn=turn,
        queue=TurnTracker(agent.name, rows, conversation),
        prompts=prompts,
        resources=resources,
        on_turn_over=on_turn_over,
    )
