"""Open the door of a session while its agent works, with the account, budget and tape of its request."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager, closing
from pathlib import Path

import anyio.to_thread

from hiveyard.core.errors import BadTape
from hiveyard.core.events import Notice
from hiveyard.core.states import Phase
from hiveyard.door.door import Door
from hiveyard.door.tape import Tape
from hiveyard.door.tape_recorder import Recorder
from hiveyard.engine.resources import Resources
from hiveyard.engine.run_spec import RunSpec
from hiveyard.store.views import SessionRow


@asynccontextmanager
async def open_session_door(
    resources: Resources, session: SessionRow, spec: RunSpec, *, turn: int | None = None, on_budget: Callable[[], None]
) -> AsyncIterator[Door]:
    """Open the session's door for the duration of the block. Its traffic is journaled, for `turn` if the session has
    only
    one. Tapes are read in threads, because they may be large or on a slow disk."""
    workspace = resources.workspace(session.id)
    with ExitStack() as files:
        tape = await anyio.to_thread.run_sync(Tape.load, workspace.tape) if spec.tape else None
        recorder = await _recorder(resources, session, Path(spec.record)) if spec.record else None
        if recorder is not None:
            files.enter_context(closing(recorder))
        async with resources.doors.open(
            session=session.id,
            directory=resources.door_path(session.id),
            placeholder=workspace.placeholder(),
            inherited=workspace.inherited(),
            account=spec.account or resources.settings.account,
            budget_usd=spec.budget_usd,
            spent=session.spent,
            turn=turn,
            tape=tape,
            recorder=recorder,
            on_budget=on_budget,
        ) as door:
            yield door


async def _recorder(resources: Resources, session: SessionRow, file: Path) -> Recorder | None:
    try:
        return await anyio.to_thread.run_sync(Recorder, file)
    except BadTape as error:
        if session.phase is not Phase.RUNNING:
            raise
        # The session runs: do not stop its machine because of the tape.
        notice = Notice(message=f"recording stops: {error.message}", code=error.code)
        await resources.event_log.record(session.id, notice)
        return None
