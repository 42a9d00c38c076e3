"""Server-sent events: the journal of a task or session, and the progress of a long call."""

from __future__ import annotations

import base64
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing, suppress

import anyio
import msgspec

from hiveyard.api.bodies import BuildLine, built, problem
from hiveyard.core.errors import HiveyardError, NotFound
from hiveyard.core.events import Event, SessionFailed, SessionStopped, TaskCancelled, TaskCompleted, TaskFailed
from hiveyard.core.machines import Image, Report
from hiveyard.engine.engine import Engine
from hiveyard.kit.group import first, together
from hiveyard.kit.progress import heartbeat

log = logging.getLogger(__name__)
PAGE = 500
_ENDS = (TaskCompleted, TaskFailed, TaskCancelled, SessionStopped, SessionFailed)
"""Events after which a task or session may be over, once the events of the same moment were sent. A session can also
continue."""

END = "event: end\ndata: {}\n\n"


async def event_lines(engine: Engine, id: str, *, after: int, follow: bool, raw: bool) -> AsyncGenerator[str, None]:
    """Yield the events of a task or session as SSE messages. With `follow` the stream ends after its last event, else
    after the stored ones.

    The last message is `event: end`: without it the stream was cut."""
    source = _followed(engine, id, after) if follow else _stored(engine, id, after)
    async with aclosing(source) as events:
        async for event in events:
            yield _message(event, raw)
    yield END


async def all_event_lines(
    engine: Engine, *, after: int, follow: bool, raw: bool, types: Sequence[str], sessions: Sequence[str]
) -> AsyncGenerator[str, None]:
    """Yield the events of all tasks and sessions as SSE messages: those whose type begins with one of `types`, and of
    these `sessions` (empty: all). With `follow` the stream has no end; else it ends with `event: end`."""
    source = engine.follow(None, after=after) if follow else _stored(engine, None, after)
    async with aclosing(source) as events:
        async for event in events:
            if (not types or event.body.type.startswith(tuple(types))) and (not sessions or event.session in sessions):
                yield _message(event, raw)
    yield END


def _message(event: Event, raw: bool) -> str:
    data = {
        "seq": event.seq,
        "at": event.at,
        "session": event.session,
        "turn": event.turn,
        "body": msgspec.to_builtins(event.body),
    }
    if raw and event.raw is not None:
        data["raw"] = base64.b64encode(event.raw).decode()
    return f"id: {event.seq}\n{_data(data)}"


def _data(body: object) -> str:
    return f"data: {msgspec.json.encode(body).decode()}\n\n"


async def _stored(engine: Engine, id: str | None, after: int) -> AsyncGenerator[Event, None]:
    while page := await engine.events(id, after=after, limit=PAGE):
        for event in page:
            yield event
        after = page[-1].seq


async def _followed(engine: Engine, id: str, after: int) -> AsyncGenerator[Event, None]:
    if await engine.is_over(id):
        async for event in _stored(engine, id, after):
            yield event
        return
    async with aclosing(engine.follow(id, after=after)) as events:
        async for event in events:
            yield event
            if isinstance(event.body, _ENDS) and await _is_over(engine, id):
                after = event.seq
                break
        else:
            return
    async for event in _stored(engine, id, after):
        yield event


async def _is_over(engine: Engine, id: str) -> bool:
    """Return whether it is over; also true after it was removed while its last events were read."""
    try:
        return await engine.is_over(id)
    except NotFound:
        return True


async def progress_lines(work: Callable[[Report], Awaitable[Image]]) -> AsyncGenerator[str, None]:
    """Run a long call, and yield its progress, then its result or error, as SSE messages. Leaving cancels the call."""
    send, receive = anyio.create_memory_object_stream[str](1000)

    def report(line: str) -> None:
        # A slow or disconnected reader misses lines: the work neither waits for it nor fails with it.
        with suppress(anyio.WouldBlock, anyio.BrokenResourceError):
            send.send_nowait(_data(BuildLine(line)))

    async def run() -> None:
        async with send:
            try:
                async with heartbeat(report, "building") as beating:
                    image = await work(beating)
            except Exception as raised:
                error = first(raised)
                if not isinstance(error, HiveyardError):
                    log.exception("a long call failed")
                    error = HiveyardError(f"{type(error).__name__}: {error}", hint="see the daemon's log")
                await send.send(_data(problem(error)))
            else:
                await send.send(_data(built(image)))

    async with together() as group:
        group.start_soon(run, name="progress")
        async with receive:
            async for line in receive:
                yield line
    yield END
