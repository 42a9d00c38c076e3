"""An installation with a past: tasks that are over and sessions that are stopped, as if they had been here. The
sessions have their directories, whose `meta.json` says what the journal does."""

from __future__ import annotations

from pathlib import Path

import msgspec
from sqlalchemy import Connection

from hiveyard.core import events as e
from hiveyard.core.usage import Usage
from hiveyard.engine.sessions.metadata import build_meta
from hiveyard.engine.workspace.directory import Workspace
from hiveyard.kit.clock import SystemClock
from hiveyard.kit.names import new_id
from hiveyard.paths import default_paths
from hiveyard.store import journal, views
from hiveyard.store.database import open_store
from hiveyard.store.views import SessionRow

PROMPT = "Make the failing test of the basket pass, and say in a sentence what was wrong with the discount. " * 5
DAY = 86400.0


async def past(home: Path, *, tasks: int, sessions: int) -> None:
    """Write so many tasks and sessions of the last days into the journal of the installation at `home`, and make the
    sessions' directories; no daemon may run there."""
    clock = SystemClock()
    where = default_paths({"HIVEYARD_HOME": str(home)})
    where.data.mkdir(parents=True, exist_ok=True)
    async with open_store(where.database, clock=clock) as store:
        begun = clock.now() - 7 * DAY

        def write(conn: Connection) -> list[SessionRow]:
            for number in range(tasks):
                _task(conn, number, begun + 7 * DAY * number / tasks)
            ids = {_session(conn, number, begun + 7 * DAY * number / sessions) for number in range(sessions)}
            return [row for row in views.sessions(conn, own=True) if row.id in ids]

        for row in await store.write(write):
            _directory(Workspace(where.sessions / row.id), row)


def _directory(workspace: Workspace, row: SessionRow) -> None:
    """Write the files of a stopped session, without waiting for the disk; its `events.jsonl` is written by
    the daemon that starts."""
    workspace.shared.mkdir(parents=True)
    (workspace.shared / "prompt.txt").write_text(PROMPT)
    workspace.meta_file.write_bytes(msgspec.json.format(msgspec.json.encode(build_meta(row, ())), indent=2) + b"\n")


def _session(conn: Connection, number: int, at: float) -> str:
    """One with two turns, whose machine is gone; its id."""
    id, slug, repo = new_id(), f"shop-{number}", "/srv/code/shop"
    own = (e.TaskCreated, e.SessionCreated, e.TaskAssigned, e.TaskStarted, e.TaskCompleted, e.SessionFinished)
    request = {"repo": repo, "agent": "claude", "prompt": PROMPT, "network": "door"}
    life = [body for body in _story(f"hv-{id}", slug) if not isinstance(body, own)]
    end = next(place for place, body in enumerate(life) if isinstance(body, e.MachineStopping))
    again = [body for body in life if isinstance(body, e.TurnEvent | e.AgentEvent | e.DoorEvent)]
    story = [
        e.SessionCreated(slug=slug, repo=repo, agent="claude", request=request),
        e.SessionPlaced(provider="qemu", tier="vm"),
        *life[:end],
        *again,
        *life[end:],
        e.SessionStopped(reason="stopped"),
    ]
    turn = 0
    for later, body in enumerate(story):
        turn += isinstance(body, e.TurnStarted)
        journal.record(conn, id, body, at=at + later, turn=turn or None)
    return id


def _task(conn: Connection, number: int, at: float) -> None:
    id, slug = new_id(), f"make-the-failing-test-pass-{number}"
    for later, body in enumerate(_story(f"hv-{id}", slug)):
        turn = 1 if isinstance(body, e.TurnEvent | e.AgentEvent | e.DoorEvent) else None
        journal.record(conn, id, body, at=at + later, turn=turn)


def _story(machine: str, slug: str) -> list[e.AnyBody]:
    repo, branch, commit = "/srv/code/shop", f"hv/{slug}", "0123456789abcdef" * 2 + "01234567"
    usage = Usage(input_tokens=1200, output_tokens=300, cache_read_tokens=40_000, cost_usd=0.034, requests=1)
    return [
        e.TaskCreated(slug=slug, request={"repo": repo, "prompt": PROMPT, "agent": "claude"}),
        e.SessionCreated(slug=slug, repo=repo, agent="claude"),
        e.SessionPreparing(),
        e.SessionPrepared(base=commit, branch=branch),
        e.TaskAssigned(provider="qemu", tier="vm", machine=machine, why="the strongest that works here"),
        e.MachineBooting(machine=machine, provider="qemu"),
        e.MachineReady(machine=machine, seconds=0.4),
        e.SessionRunning(),
        e.TaskStarted(),
        e.TurnStarted(agent="claude", program="claude 2.1.0", model="claude-sonnet", pid=42),
        e.AgentStarted(conversation="c-1", model="claude-sonnet", version="2.1.0"),
        *[e.AgentText(text="The discount is taken from the wrong total. " * 4) for _ in range(5)],
        e.ModelCalled(protocol="anthropic", model="claude-sonnet", status=200, seconds=2.0, usage=usage),
        e.AgentEnded(is_error=False, text="done"),
        e.ResultCollected(branch=branch, base=commit, head=commit, commits=1, files=2, insertions=9, deletions=4),
        e.TurnEnded(outcome="succeeded", exit_code=0, conversation="c-1"),
        *[e.PhaseEnded(phase=phase, seconds=1.5) for phase in ("clone", "boot", "push", "agent", "collect")],
        e.MachineStopping(machine=machine),
        e.MachineStopped(machine=machine),
        e.SessionFinished(),
        e.TaskCompleted(),
    ]
