"""Routes of one task or session: its transcript, live, and its tabs."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

import anyio
import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from hiveyard import repository
from hiveyard.core.errors import NotFound
from hiveyard.core.events import Event
from hiveyard.engine.workspace.result import ResultLocation
from hiveyard.hive.names import OPERATOR
from hiveyard.kit import process
from hiveyard.kit.text import decode, printable
from hiveyard.web.diff import Diff, pairs, parse
from hiveyard.web.lists import ask_input, mark_seen
from hiveyard.web.site import Site, after, message, number
from hiveyard.web.transcript_view import Item, items, sections

WINDOW = 600
"""Events of a transcript that a page begins with, and that each step back adds."""
BEHIND = 3000
"""Events that a page may have missed before it is told to load again."""
DIFF_BYTES = 4 << 20
DIFF_SECONDS = 30.0
PAUSE = 0.08
"""Seconds in which events are collected into one message."""
_STILL = ("agent.text", "agent.thinking", "agent.output", "agent.usage", "agent.tool_returned", "agent.edited")
"""Types of events after which the head of the page is the same."""
LAST = 1 << 60


def session_routes(site: Site) -> list[Route]:
    async def show(request: Request) -> Response:
        id = await _id(site, request)
        await mark_seen(site, request, id)
        return site.page(request, "session.html", **await _transcript(site, id))

    async def older(request: Request) -> Response:
        id = await _id(site, request)
        events = await site.engine.history.before(id, number(request.query_params.get("before")), WINDOW)
        return site.page(request, "older.html", id=id, **_window(events), turns=await _turns(site, id))

    async def live(request: Request) -> Response:
        id = await _id(site, request)
        return site.stream(request, _messages(site, id, after(request)))

    async def changes(request: Request) -> Response:
        id = await _id(site, request)
        found, diff = await _changes(site, id)
        split = request.query_params.get("view") == "split"
        values = await _head(site, id)
        return site.page(request, "changes.html", **values, source=found, diff=diff, split=split, pairs=pairs)

    async def events(request: Request) -> Response:
        id = await _id(site, request)
        before = number(request.query_params.get("before"), LAST)
        found = await site.engine.history.before(id, before, 200)
        rows = [(event, msgspec.json.format(msgspec.json.encode(event.body)).decode()) for event in reversed(found)]
        return site.page(request, "events.html", **await _head(site, id), rows=rows, more=len(found) == 200)

    async def console(request: Request) -> Response:
        id = await _id(site, request)
        found = await site.engine.history.before(id, LAST, 2000)
        raw = [decode(event.raw) for event in found if event.raw is not None]
        lines = [printable(line)[:2000] for text in raw for line in text.split("\n")][-2000:]
        return site.page(request, "console.html", **await _head(site, id), lines=lines)

    async def snapshots(request: Request) -> Response:
        id = await _id(site, request)
        found = await site.engine.snapshots.list(id)
        return site.page(request, "snapshots.html", **await _head(site, id), snapshots=list(reversed(found)))

    return [
        Route("/s/{ref}", show),
        Route("/s/{ref}/older", older),
        Route("/s/{ref}/live", live),
        Route("/s/{ref}/changes", changes),
        Route("/s/{ref}/events", events),
        Route("/s/{ref}/console", console),
        Route("/s/{ref}/snapshots", snapshots),
    ]


async def _id(site: Site, request: Request) -> str:
    return await site.engine.resolve(request.path_params["ref"])


async def _head(site: Site, id: str) -> dict[str, Any]:
    """Return the values of the head that all tabs of a session share."""
    work = await site.engine.sessions.view(id)
    open_asks = [
        ask for ask in await site.engine.steering.asks(all=False) if ask.session == id and ask.to in ("", OPERATOR)
    ]
    return {
        "work": work,
        "stat": (await site.engine.history.diffstats([id])).get(id),
        "asks": open_asks,
        "inputs": {ask.id: ask_input(ask) for ask in open_asks},
        "queue": await site.engine.history.queued(id),
    }


async def _turns(site: Site, id: str) -> dict[int, Any]:
    return {one.turn.number: one for one in await site.engine.history.turns(id)}


async def _transcript(site: Site, id: str) -> dict[str, Any]:
    events = await site.engine.history.before(id, LAST, WINDOW)
    seq = events[-1].seq if events else 0
    head, window = await _head(site, id), _window(events)
    values = {**head, **window, "turns": await _turns(site, id), "seq": seq}
    return {**values, "prompt": await _prompt_of_task(site, id, head, window)}


async def _prompt_of_task(site: Site, id: str, head: dict[str, Any], window: dict[str, Any]) -> str:
    """Return the prompt of a task whose transcript, which is shown from its beginning, does not have it."""
    told = any(item.entry.kind == "prompt" for section in window["sections"] for item in section.items)
    if head["work"].task is None or window["first"] or told:
        return ""
    return (await site.engine.report(id)).prompt


def _window(events: Sequence[Event]) -> dict[str, Any]:
    first = events[0].seq if len(events) == WINDOW else 0
    return {"sections": sections(items(events)), "first": first}


async def _messages(site: Site, id: str, after: int) -> AsyncGenerator[str, None]:
    """Yield what changes on the page of a session: new items, the heads of their turns, and the head of the page."""
    behind = 0
    async with aclosing(site.engine.history.follow(id, after=after)) as pages:
        async for events in pages:
            behind = behind + len(events) if len(events) > WINDOW // 2 else 0
            if behind > BEHIND:
                yield message({}, event="reload")
                return
            yield message(await _update(site, id, events), seq=events[-1].seq)
            await anyio.sleep(PAUSE)
    yield message({}, event="gone")


async def _update(site: Site, id: str, events: Sequence[Event]) -> dict[str, Any]:
    found = items(events)
    update: dict[str, Any] = {"items": [_item(site, item) for item in found], "waiting": site.waiting}
    if any(event.body.type not in _STILL for event in events):
        try:
            values = await _head(site, id)
        except NotFound:
            return update
        turns = await _turns(site, id)
        touched = {event.turn for event in events if event.turn in turns}
        update["turns"] = {turn: site.fragment("turn.html", one=turns[turn]) for turn in touched}
        update["head"] = site.fragment("head.html", **values)
        update["foot"] = site.fragment("foot.html", **values)
        update["ended"] = any(event.body.type == "turn.ended" for event in events)
    return update


def _item(site: Site, item: Item) -> dict[str, Any]:
    within = item.entry.kind == "result" and bool(item.entry.call)
    return {
        "turn": item.turn,
        "call": item.entry.call if within else "",
        "failed": item.entry.failed,
        "html": site.fragment("result.html" if within else "item.html", item=item, entry=item.entry),
    }


async def _changes(site: Site, id: str) -> tuple[ResultLocation | None, Diff]:
    """Return where the collected work is, and its diff."""
    work = await site.engine.sessions.view(id)
    if work.base is None:
        return None, Diff([], 0)
    found = await site.engine.source(id)
    if found.head is None or found.head == found.base:
        return found, Diff([], 0)
    files, cut = [], 0
    for change in await repository.changes(Path(found.origin), found.base, found.head, found.branch):
        done = await process.run(["git", *change.words()], timeout=DIFF_SECONDS, limit=DIFF_BYTES)
        part = parse(decode(done.stdout))
        files += part.files
        cut += part.cut
    return found, Diff(files, cut)
