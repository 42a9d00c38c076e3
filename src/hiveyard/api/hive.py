"""Routes of the hive. Its questions are at `/v1/asks`, with those of sessions."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from fastapi import FastAPI, Query, Request, Response

from hiveyard.api.answers import answer, body
from hiveyard.api.bodies import MailRead, NapRequest, Removed
from hiveyard.api.document import gives, takes
from hiveyard.core.parsing import parsed
from hiveyard.hive.mailbox import MessageRequest, Sent
from hiveyard.hive.members import MemberRequest, Members, MemberView, MessageView, ReminderView
from hiveyard.hive.names import OPERATOR

_MEMBERS = "/v1/hive/members"
_MOST_MAIL = 1000


def add_hive(app: FastAPI, members: Members) -> None:
    _add_members(app, members)
    _add_messages(app, members)
    _add_reminders(app, members)
    _add_action(app, members, "wake", members.wake)
    _add_action(app, members, "stop", members.stop)
    _add_action(app, members, "start", members.start)


def _add_action(app: FastAPI, members: Members, verb: str, action: Callable[[str], Awaitable[None]]) -> None:
    """Add a route that does something with a member and answers with its new state."""

    @app.post(f"{_MEMBERS}/{{name}}/{verb}", name=f"{verb} member", **gives(MemberView))
    async def act(name: str) -> Response:
        await action(name)
        return answer(await members.view(name))


def _add_members(app: FastAPI, members: Members) -> None:
    @app.post(_MEMBERS, **takes(MemberRequest), **gives(MemberView, 201))
    async def add_member(request: Request) -> Response:
        return answer(await members.add(parsed(await body(request), MemberRequest, "member request")), 201)

    @app.get(_MEMBERS, **gives(list[MemberView]))
    async def list_members() -> Response:
        return answer(await members.views())

    @app.get(f"{_MEMBERS}/{{name}}", **gives(MemberView))
    async def member(name: str) -> Response:
        return answer(await members.view(name))

    @app.delete(f"{_MEMBERS}/{{name}}", **gives(Removed))
    async def remove_member(name: str, force: bool = False) -> Response:
        return answer(Removed(await members.remove(name, force=force)))

    @app.post(f"{_MEMBERS}/{{name}}/nap", **takes(NapRequest), **gives(MemberView))
    async def nap(name: str, request: Request) -> Response:
        asked = parsed(await body(request), NapRequest, "nap request")
        await members.nap(name, asked.seconds)
        return answer(await members.view(name))


def _add_messages(app: FastAPI, members: Members) -> None:
    @app.post("/v1/hive/messages", **takes(MessageRequest), **gives(list[Sent], 201))
    async def send_message(request: Request) -> Response:
        asked = parsed(await body(request), MessageRequest, "message")
        return answer(await members.hive.mailbox.send(OPERATOR, asked), 201)

    @app.get("/v1/hive/mail", **gives(list[MessageView]))
    async def mail(of: str = OPERATOR, unread: bool = False, limit: int = Query(100, ge=1, le=_MOST_MAIL)) -> Response:
        """The latest messages from and for a member or the operator, or the operator's unread mail."""
        return answer(await members.unread() if unread else await members.mail(of, limit=limit))

    @app.post("/v1/hive/mail/read", **takes(MailRead), **gives(list[MessageView]))
    async def mark_read(request: Request) -> Response:
        await members.hive.mailbox.mark_read(parsed(await body(request), MailRead, "list of messages").ids)
        return answer(await members.unread())


def _add_reminders(app: FastAPI, members: Members) -> None:
    @app.get(f"{_MEMBERS}/{{name}}/reminders", **gives(list[ReminderView]))
    async def reminders(name: str) -> Response:
        return answer(await members.reminders(name))

    @app.delete(f"{_MEMBERS}/{{name}}/reminders/{{reminder}}", **gives(Removed))
    async def cancel_reminder(name: str, reminder: str) -> Response:
        await members.cancel_reminder(name, reminder)
        return answer(Removed(reminder))
