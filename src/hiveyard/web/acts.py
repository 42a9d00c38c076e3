"""Routes that change something: each is one call of the engine, as a verb of `hv` is."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from hiveyard import agents
from hiveyard.core.errors import BadInput, NotFound
from hiveyard.engine.sessions.change import SessionChange
from hiveyard.engine.sessions.view import SessionView
from hiveyard.engine.snapshots.fork import ForkRequest
from hiveyard.engine.tasks.request import TaskRequest
from hiveyard.web.looks import name
from hiveyard.web.new_work import request_of
from hiveyard.web.site import Site, form, number

Form = Mapping[str, str]
Act = Callable[[Site, SessionView, Form], Awaitable[str]]
DIALOGS = ("rm", "cancel", "snapshot", "fork", "rewind", "resume", "model", "snapshot-rm")


def act_routes(site: Site) -> list[Route]:
    async def act(request: Request) -> Response:
        verb = request.path_params["verb"]
        if verb not in _ACTS:
            raise NotFound(f"the page has no act {verb[:40]!r}")
        work = await site.engine.sessions.view(await site.engine.resolve(request.path_params["ref"]))
        words = await _ACTS[verb](site, work, await form(request))
        events = {"hv:removed": {"id": work.id}} if verb == "rm" else {}
        return site.done(words, events={**events, f"hv:did-{verb}": {"id": work.id}})

    async def dialog(request: Request) -> Response:
        verb = request.path_params["verb"]
        if verb not in DIALOGS:
            raise NotFound(f"the page has no dialog {verb[:40]!r}")
        work = await site.engine.sessions.view(await site.engine.resolve(request.path_params["ref"]))
        snapshots = await site.engine.snapshots.list(work.id) if verb in ("fork", "rewind", "snapshot-rm") else []
        chosen = request.query_params.get("snapshot", "")
        return site.page(request, "dialog.html", verb=verb, work=work, snapshots=snapshots, chosen=chosen)

    async def new(request: Request) -> Response:
        works = await site.engine.sessions.views(over=True, tasks=True, limit=200)
        repos = list(dict.fromkeys(work.repo for work in works))[:20]
        programs = [one for one in agents.names() if one not in ("acp", "command")]
        kind = "session" if request.query_params.get("kind") == "session" else "task"
        return site.page(
            request, "new.html", repos=repos, agents=programs, kind=kind, repo=request.query_params.get("repo", "")
        )

    async def create(request: Request) -> Response:
        asked = request_of(await form(request))
        start = site.engine.submit(asked) if isinstance(asked, TaskRequest) else site.engine.sessions.spawn(asked)
        id = await start
        answered = site.done("started")
        answered.headers["HX-Redirect"] = f"/s/{id}"
        return answered

    return [
        Route("/s/{ref}/act/{verb}", act, methods=["POST"]),
        Route("/s/{ref}/dialog/{verb}", dialog),
        Route("/new", new),
        Route("/new", create, methods=["POST"]),
    ]


async def _send(site: Site, work: SessionView, given: Form) -> str:
    text = given.get("text", "").replace("\r\n", "\n")
    if (member := await site.members.member_of(work.id)) is not None:
        await site.members.write(member.name, text, urgent=bool(given.get("now")))
        return f"sent to {member.name}"
    if given.get("now"):
        await site.engine.steering.add(work.id, text)
        return "added to the turn"
    if work.status in ("stopped", "failed", "finished"):
        await site.engine.sessions.resume(work.id, prompt=text)
    else:
        await site.engine.sessions.send(work.id, text)
    return ""


async def _interrupt(site: Site, work: SessionView, given: Form) -> str:
    await site.engine.sessions.interrupt(work.id)
    return f"{work.name}: interrupted"


async def _stop(site: Site, work: SessionView, given: Form) -> str:
    if (member := await site.members.member_of(work.id)) is not None:
        await site.members.stop(member.name)
    else:
        await site.engine.sessions.stop(work.id)
    return f"{work.name}: stopped"


async def _cancel(site: Site, work: SessionView, given: Form) -> str:
    await site.engine.cancel(work.id)
    return f"{work.name}: stopping its agent"


async def _resume(site: Site, work: SessionView, given: Form) -> str:
    budget = given.get("budget", "").strip().removeprefix("$")
    try:
        change = SessionChange(
            budget_usd=float(budget) if budget else None, model=given.get("model", "").strip() or None
        )
    except ValueError:
        raise BadInput(f"the budget is {budget[:40]!r}, and not a number of dollars") from None
    prompt = given.get("text", "").strip() or None
    if (member := await site.members.member_of(work.id)) is not None:
        if prompt is not None:
            await site.members.write(member.name, prompt)
        await site.members.start(member.name)
        return f"{member.name}: starts"
    await site.engine.sessions.resume(work.id, change, prompt)
    return f"{work.name}: resumes"


async def _pause(site: Site, work: SessionView, given: Form) -> str:
    await site.engine.sessions.pause(work.id)
    return f"{work.name}: paused"


async def _unpause(site: Site, work: SessionView, given: Form) -> str:
    await site.engine.sessions.unpause(work.id)
    return f"{work.name}: continues"


async def _model(site: Site, work: SessionView, given: Form) -> str:
    await site.engine.steering.choose_model(work.id, given.get("model", "").strip())
    return f"the model of later turns is {name(given.get('model', ''), 80)}"


async def _collect(site: Site, work: SessionView, given: Form) -> str:
    await site.engine.sessions.collect(work.id)
    return "collected"


async def _remove(site: Site, work: SessionView, given: Form) -> str:
    if given.get("name", "").strip() != work.name:
        raise BadInput("the name is not the one of what would be removed", hint=work.name)
    if (member := await site.members.member_of(work.id)) is not None:
        await site.members.remove(member.name, force=True)
    else:
        await site.engine.remove(work.id, force=True)
    return f"{work.name}: removed"


async def _snapshot(site: Site, work: SessionView, given: Form) -> str:
    point = await site.engine.snapshots.take(work.id, given.get("name", "").strip() or None)
    return f"snapshot {point.row.name}"


async def _remove_snapshot(site: Site, work: SessionView, given: Form) -> str:
    await site.engine.snapshots.remove(work.id, given.get("snapshot", ""))
    return "the snapshot was removed"


async def _fork(site: Site, work: SessionView, given: Form) -> str:
    text = given.get("text", "").strip()
    asked = ForkRequest(
        count=number(given.get("count"), 1),
        snapshot=given.get("snapshot", "").strip() or None,
        instructions=[text] if text else [],
        name=given.get("name", "").strip() or None,
    )
    made = await site.engine.forks.fork(work.id, asked)
    return f"forked into {len(made.children)}" + (f": {made.notice}" if made.notice else "")


async def _rewind(site: Site, work: SessionView, given: Form) -> str:
    await site.engine.rewinds.rewind(work.id, given.get("snapshot", ""), force=True)
    return f"{work.name}: rewound"


_ACTS: Mapping[str, Act] = {
    "send": _send,
    "interrupt": _interrupt,
    "stop": _stop,
    "cancel": _cancel,
    "resume": _resume,
    "pause": _pause,
    "unpause": _unpause,
    "model": _model,
    "collect": _collect,
    "rm": _remove,
    "snapshot": _snapshot,
    "snapshot-rm": _remove_snapshot,
    "fork": _fork,
    "rewind": _rewind,
}
