"""Talk to a live agent while it works: answers to its questions, text for the current turn, another model."""

from __future__ import annotations

from typing import Any

import msgspec
from sqlalchemy import Connection

from hiveyard.core.drivers import Answer
from hiveyard.core.errors import BadInput
from hiveyard.core.events import AnyBody, AskOption
from hiveyard.core.states import AskState
from hiveyard.engine.event_log import Listing
from hiveyard.engine.resources import Resources
from hiveyard.engine.run_spec import check_prompt
from hiveyard.engine.sessions.service import Sessions
from hiveyard.engine.turns.agent_runner import Steers
from hiveyard.store import views
from hiveyard.store.views import AskRow

ALLOW, DENY = "allow", "deny"
_MESSAGE_LIMIT = 10_000


class AskView(msgspec.Struct, frozen=True, kw_only=True):
    """A question. `session` and `name` are the session's; `input` is what `tool` would get, as JSON. `options` are the
    answers that the agent's program, or the asker, offers; several may be chosen if it is `multi`. `answer` is set once
    it is answered. A question that the hive keeps has an `asker`, and the member or operator `to` whom it was put.
    Times are seconds since the epoch."""

    id: str
    session: str
    name: str
    turn: int | None
    kind: str
    status: AskState
    message: str
    tool: str
    input: str
    options: tuple[AskOption, ...]
    answer: dict[str, Any] | None
    asked_at: float
    ended_at: float | None
    asker: str
    to: str
    multi: bool
    expires_at: float | None
    answered_by: str


class AskAnswer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An answer: `allow`, `deny`, or the id of one of the question's options; a text, if a member's question has no
    options. `more` are further options, if several may be chosen. `message` tells the agent why."""

    answer: str
    more: list[str] = []
    message: str = ""


class Steering:
    """The interface of live agents for the API, in addition to that of sessions."""

    def __init__(self, resources: Resources, sessions: Sessions) -> None:
        self._r = resources
        self._sessions = sessions

    async def add(self, id: str, text: str, *facts: AnyBody) -> None:
        """Add text to the current turn, and journal `facts` with it, as `Steers.steer`. Raises BadInput if no turn
        runs, or if the agent does not take it."""
        check_prompt(text, 'say what to do: hv send --now ID "and run the tests"')
        await (await self._agent(id)).steer(text, *facts)

    async def choose_model(self, id: str, model: str) -> None:
        """Choose the model of later turns. Raises BadInput if the agent cannot change it."""
        await (await self._agent(id)).choose(model)

    async def asks(self, *, all: bool, limit: int | None = None) -> Listing[AskView]:
        """Return the open questions, oldest first; with `all` also those that are over, newest first."""

        def read(conn: Connection) -> list[AskView]:
            return [_view(conn, row) for row in views.asks(conn, open_only=not all, limit=limit)]

        return await self._r.event_log.read_list(read)

    async def answer(self, ref: str, given: AskAnswer) -> AskView:
        """Give a question its first answer; return it once the answer is journaled. Raises NotFound, Ambiguous,
        BadInput, IllegalMove for a question that is over, SessionNotRunning."""
        ask = await self._r.event_log.read(lambda conn: views.ask(conn, ref))
        if ask.state is not AskState.OPEN:
            raise BadInput(f"the question {ask.id} is over: {_end(ask)}", hint="hv inbox")
        await (await self._agent(ask.session)).answer(ask, _answer(ask, given))
        return await self.ask(ask.id)

    async def ask(self, ref: str) -> AskView:
        """Return a question. Raises NotFound, Ambiguous."""
        return await self._r.event_log.read(lambda conn: _view(conn, views.ask(conn, ref)))

    async def _agent(self, id: str) -> Steers:
        agent = await self._sessions.agent_runner(id)
        if not isinstance(agent, Steers):
            raise BadInput("only a live session takes this, and its agent is at a terminal", hint=f"hv attach {id}")
        return agent


def _answer(ask: AskRow, given: AskAnswer) -> Answer:
    if len(given.message) > _MESSAGE_LIMIT:
        raise BadInput(f"the message has {len(given.message)} characters; {_MESSAGE_LIMIT} are allowed")
    if (option := next((one for one in ask.options if one.id == given.answer), None)) is not None:
        return Answer(allow=option.allow, option=option.id, message=given.message)
    if given.answer in (ALLOW, DENY):
        return Answer(allow=given.answer == ALLOW, message=given.message)
    offered = ", ".join(dict.fromkeys((ALLOW, DENY, *(one.id for one in ask.options))))
    raise BadInput(f"{given.answer[:80]!r} is not an answer to {ask.id}", hint=f"one of: {offered}")


def _end(ask: AskRow) -> str:
    if ask.state is AskState.EXPIRED:
        return "the agent does not wait for it any more"
    answer = ask.answer or {}
    return f"it was answered with {answer.get('option') or (ALLOW if answer.get('allow') else DENY)}"


def _view(conn: Connection, row: AskRow) -> AskView:
    session = views.find_session(conn, row.session)
    return AskView(
        id=row.id,
        session=row.session,
        name=row.asker or (session.slug if session else ""),
        turn=row.turn,
        kind=row.kind,
        status=row.state,
        message=row.message,
        tool=row.tool,
        input=row.input,
        options=row.options,
        answer=row.answer,
        asked_at=row.asked_at,
        ended_at=row.ended_at,
        asker=row.asker,
        to=row.target,
        multi=row.multi,
        expires_at=row.expires_at,
        answered_by=row.answered_by,
    )
