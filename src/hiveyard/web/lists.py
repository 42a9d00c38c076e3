"""Routes of the desk and of the overview, and the stream that keeps both up to date."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection
from contextlib import aclosing
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from hiveyard.core.errors import NotFound
from hiveyard.engine.sessions.steering import AskAnswer, AskView
from hiveyard.engine.sessions.view import SessionView
from hiveyard.transcript import given
from hiveyard.web.desk import Desk, read_desk
from hiveyard.web.feed import Feed
from hiveyard.web.looks import is_at_work
from hiveyard.web.site import Site, after, device_of, form, message


def list_routes(site: Site, feed: Feed) -> list[Route]:
    async def desk(request: Request) -> Response:
        found = await read_desk(site)
        site.waiting = found.waiting
        return site.page(request, "desk.html", **desk_values(found))

    async def overview(request: Request) -> Response:
        works = await site.engine.sessions.views(over=True, tasks=True)
        rows = await row_values(site, works)
        return site.page(request, "overview.html", rows=rows, seq=works.seq, repos=_repos(works))

    async def live(request: Request) -> Response:
        known = after(request) if "after" in request.query_params or "last-event-id" in request.headers else feed.seq
        return site.stream(request, _messages(feed, known))

    async def ping(request: Request) -> Response:
        return Response()

    async def answer(request: Request) -> Response:
        sent = await form(request)
        chosen = [value for key, value in sent.items() if key.startswith("option-")] or [sent.get("answer", "")]
        asked = AskAnswer(answer=chosen[0], more=chosen[1:], message=sent.get("message", "").strip())
        ask = await site.members.answer(request.path_params["ref"], asked)
        return site.done(f"{ask.name}: {given_answer(ask)}", events={"hv:desk": {}})

    async def read(request: Request) -> Response:
        await site.members.hive.mailbox.mark_read([request.path_params["message"]])
        return site.done("", events={"hv:desk": {}})

    async def reply(request: Request) -> Response:
        sent = await form(request)
        to = request.path_params["member"]
        await site.members.write(to, sent.get("text", ""))
        if message := sent.get("message"):
            await site.members.hive.mailbox.mark_read([message])
        return site.done(f"sent to {to}", events={"hv:desk": {}})

    async def looked_at(request: Request) -> Response:
        id = await site.engine.resolve(request.path_params["ref"])
        await mark_seen(site, request, id)
        return site.done("looked at", events={"hv:desk": {}})

    return [
        Route("/", desk),
        Route("/overview", overview),
        Route("/live", live),
        Route("/live/ping", ping),
        Route("/asks/{ref}/answer", answer, methods=["POST"]),
        Route("/mail/{message}/read", read, methods=["POST"]),
        Route("/members/{member}/write", reply, methods=["POST"]),
        Route("/s/{ref}/seen", looked_at, methods=["POST"]),
    ]


def desk_values(found: Desk) -> dict[str, Any]:
    """Return the values of the desk's template."""
    asked = {ask.id: ask_input(ask) for ask in found.asks}
    answers = {ask.id: given_answer(ask) for ask in found.past}
    return {"desk": found, "inputs": asked, "answers": answers, "seq": found.seq}


def ask_input(ask: AskView) -> str:
    """Return what a tool would get, in the form that is the easiest to read: a command alone, else JSON."""
    try:
        found = msgspec.json.decode(ask.input) if ask.input else ""
    except msgspec.MsgspecError:
        return ask.input
    if isinstance(found, dict) and isinstance(found.get("command"), str):
        return str(found["command"])
    return msgspec.json.format(msgspec.json.encode(found)).decode() if found else ""


def given_answer(ask: AskView) -> str:
    """Return how a question ended."""
    if ask.answer is None:
        return "ended without an answer"
    words = given({"request": ask.kind == "permission", **ask.answer})
    names = {one.id: one.name for one in ask.options} | {"allow": "allowed", "deny": "denied"}
    return names.get(words, words)


async def mark_seen(site: Site, request: Request, id: str) -> None:
    """Record that a person looked at a session's result. A browser that may only look records nothing."""
    if not device_of(request).read_only and (seq := (await site.engine.history.ends()).get(id)):
        site.seen.mark(id, seq)


async def row_values(site: Site, works: Collection[SessionView]) -> list[dict[str, Any]]:
    """Return the values of rows: a session, the size of its changes, what its agent does, and the member it is of."""
    stats = await site.engine.history.diffstats([work.id for work in works])
    busy = [work.id for work in works if is_at_work(work)]
    words = await site.engine.history.last_words(busy)
    members = {one.session.id: one for one in await site.members.views({work.id for work in works})}
    return [
        {
            "work": work,
            "stat": stats.get(work.id),
            "words": words.get(work.id, ""),
            "member": members.get(work.id),
        }
        for work in works
    ]


async def render_changes(site: Site, ids: Collection[str], counts: bool) -> str:
    """Return the message about sessions that changed: their rows, those that are gone, and how much waits."""
    works, gone = [], []
    for id in filter(None, ids):  # events of the hive belong to no session
        try:
            works.append(await site.engine.sessions.view(id))
        except NotFound:
            gone.append(id)
    rows = [
        {"id": values["work"].id, "html": site.fragment("row.html", **values)}
        for values in await row_values(site, works)
    ]
    if counts:
        site.waiting = (await read_desk(site)).waiting
    return msgspec.json.encode({"rows": rows, "gone": gone, "waiting": site.waiting, "desk": counts}).decode()


async def _messages(feed: Feed, after: int) -> AsyncGenerator[str, None]:
    async with aclosing(feed.messages(after)) as changes:
        async for change in changes:
            if change is None:
                yield message({}, event="reload")
            else:
                yield message(change.data, seq=change.seq)


def _repos(works: Collection[SessionView]) -> list[str]:
    return sorted({work.repo for work in works})
