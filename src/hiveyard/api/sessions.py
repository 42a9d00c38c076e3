"""Routes for sessions."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from fastapi import FastAPI, Query, Request, Response

from hiveyard.api.answers import answer, body
from hiveyard.api.bodies import ModelChoice, Prompt, ResumeRequest, TerminalProgram, TerminalRequest, TurnAccepted
from hiveyard.api.bounds import LAST_SEQ, until_disconnected
from hiveyard.api.document import gives, takes
from hiveyard.core.commands import Command
from hiveyard.core.errors import BadInput
from hiveyard.core.parsing import parsed
from hiveyard.engine.engine import Engine
from hiveyard.engine.sessions.request import SpawnRequest, spawn_from_json
from hiveyard.engine.sessions.steering import AskAnswer, AskView
from hiveyard.engine.sessions.view import SessionView
from hiveyard.engine.turns.terminal_runner import TERMINAL
from hiveyard.engine.workspace.directory import GUEST_REPO
from hiveyard.engine.workspace.result import ResultLocation
from hiveyard.hive.members import Members
from hiveyard.processes.terminal import attaching, shown


def add_sessions(app: FastAPI, engine: Engine, members: Members) -> None:
    """Add the routes of sessions. Their events are at `/v1/tasks/{ref}/events`, as those of tasks are."""
    _add_lifecycle(app, engine, members)
    _add_prompts(app, engine, members)
    _add_turns(app, engine)
    _add_asks(app, engine, members)
    sessions = engine.sessions
    _add_action(app, engine, "stop", sessions.stop)
    _add_action(app, engine, "pause", sessions.pause)
    _add_action(app, engine, "unpause", sessions.unpause)
    _add_action(app, engine, "interrupt", sessions.interrupt)


def _add_action(app: FastAPI, engine: Engine, verb: str, action: Callable[[str], Awaitable[None]]) -> None:
    """Add a route that does something with a session and answers with its new state."""

    @app.post(f"/v1/sessions/{{ref}}/{verb}", name=verb, **gives(SessionView))
    async def act(ref: str) -> Response:
        id = await engine.resolve(ref)
        await action(id)
        return answer(await engine.sessions.view(id))


def _add_lifecycle(app: FastAPI, engine: Engine, members: Members) -> None:
    sessions = engine.sessions

    @app.post("/v1/sessions", **takes(SpawnRequest), **gives(SessionView, 201))
    async def spawn(request: Request) -> Response:
        asked = spawn_from_json(await body(request))
        id = await until_disconnected(request, sessions.spawn(asked))
        if await request.is_disconnected():
            # The client does not know the session's id: nobody would watch it.
            await engine.remove(id, force=True)
            raise BadInput("the client disconnected")
        return answer(await sessions.view(id), 201)

    @app.get("/v1/sessions", **gives(list[SessionView]))
    async def list_sessions(
        all: bool = False, tasks: bool = False, limit: int | None = Query(None, ge=1, le=LAST_SEQ)
    ) -> Response:
        return answer(await sessions.views(over=all, tasks=tasks, limit=limit))

    @app.get("/v1/sessions/{ref}", **gives(SessionView))
    async def session(ref: str) -> Response:
        row = await sessions.row(await engine.resolve(ref))  # a task has a view of its own
        return answer(await sessions.view(row.id))

    @app.post("/v1/sessions/{ref}/resume", **takes(ResumeRequest), **gives(SessionView, 202))
    async def resume(ref: str, request: Request) -> Response:
        asked = parsed(await body(request), ResumeRequest, "resume request")
        id = await engine.resolve(ref)
        prompt = asked.prompt
        if prompt is not None and (member := await members.member_of(id)) is not None:
            await members.write(member.name, prompt)
            prompt = None
        await sessions.resume(id, asked, prompt)
        return answer(await sessions.view(id), 202)


def _add_prompts(app: FastAPI, engine: Engine, members: Members) -> None:
    @app.post("/v1/sessions/{ref}/prompts", **takes(Prompt), **gives(TurnAccepted, 202))
    async def send(ref: str, request: Request) -> Response:
        prompt = parsed(await body(request), Prompt, "prompt")
        id = await engine.resolve(ref)
        if (member := await members.member_of(id)) is not None:
            # The turns of a member are started by its mailbox alone.
            sent = await members.write(member.name, prompt.text, urgent=prompt.now)
            return answer(TurnAccepted(id, 0, sent.id), 202)
        if prompt.now:
            await engine.steering.add(id, prompt.text)
        turn = 0 if prompt.now else await engine.sessions.send(id, prompt.text)
        return answer(TurnAccepted(id, turn), 202)


def _add_turns(app: FastAPI, engine: Engine) -> None:
    sessions = engine.sessions

    @app.post("/v1/sessions/{ref}/model", **takes(ModelChoice), **gives(SessionView))
    async def model(ref: str, request: Request) -> Response:
        chosen = parsed(await body(request), ModelChoice, "choice of a model")
        id = await engine.resolve(ref)
        await engine.steering.choose_model(id, chosen.model)
        return answer(await sessions.view(id))

    @app.post("/v1/sessions/{ref}/harvest", **gives(ResultLocation))
    async def harvest(ref: str) -> Response:
        id = await engine.resolve(ref)
        await sessions.collect(id)
        return answer(await engine.source(id))

    @app.post("/v1/sessions/{ref}/terminal", **takes(TerminalRequest), **gives(TerminalProgram))
    async def terminal(ref: str, request: Request) -> Response:
        asked = parsed(await body(request), TerminalRequest, "terminal request")
        id = await engine.resolve(ref)
        argv = await engine.access.terminal(id, _terminal_command(asked), of_agent=asked.argv is None)
        return answer(TerminalProgram(list(argv)))


def _add_asks(app: FastAPI, engine: Engine, members: Members) -> None:
    @app.get("/v1/asks", **gives(list[AskView]))
    async def asks(all: bool = False, limit: int | None = Query(None, ge=1, le=LAST_SEQ)) -> Response:
        return answer(await engine.steering.asks(all=all, limit=limit))

    @app.post("/v1/asks/{ref}/answer", name="answer", **takes(AskAnswer), **gives(AskView))
    async def answer_ask(ref: str, request: Request) -> Response:
        given = parsed(await body(request), AskAnswer, "answer")
        return answer(await members.answer(ref, given))


def _terminal_command(asked: TerminalRequest) -> Command:
    """Return the command in the guest whose output the terminal shows."""
    if asked.argv is None:
        return attaching(TERMINAL, read_only=asked.read_only, term=asked.term, colors=asked.colors)
    return shown(asked.argv, cwd=GUEST_REPO, term=asked.term, colors=asked.colors)
