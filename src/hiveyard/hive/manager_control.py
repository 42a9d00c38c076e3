"""Let a manager act on the other members, as far as the operator has not decided about them."""

from __future__ import annotations

from typing import NamedTuple

from sqlalchemy import Connection

from hiveyard.core.errors import BadInput, NotAllowed
from hiveyard.core.events import AnyBody, MemberStopped
from hiveyard.core.states import AT_WORK
from hiveyard.engine.engine import Engine
from hiveyard.engine.event_log import EventLog
from hiveyard.hive.hive import ASLEEP, is_napping
from hiveyard.hive.last_lines import last_lines
from hiveyard.hive.members import Members
from hiveyard.store import hive_views, lineage, views
from hiveyard.store.hive_views import MemberRow
from hiveyard.store.views import SessionRow


class _Found(NamedTuple):
    member: MemberRow
    session: SessionRow
    last: AnyBody | None


class ManagerControl:
    """The actions of a manager on another member. It never undoes what the operator did: a stop, a nap, or a question
    about a member that crashed too often."""

    def __init__(self, members: Members, engine: Engine, event_log: EventLog) -> None:
        self._members = members
        self._sessions = engine.sessions
        self._log = event_log

    async def last_lines(self, name: str, count: int) -> list[str]:
        """Return the last lines of a member's transcript."""
        return await self._log.read(lambda conn: last_lines(conn, hive_views.member(conn, name).session, count))

    async def wake(self, name: str, by: str) -> None:
        """End a member's sleep. Raises NotAllowed while it naps."""
        found = await self._other(name, by)
        if is_napping(found.member, self._log.clock.now()):
            raise NotAllowed(f"{name} naps: only the operator wakes it", hint="send it a message, which waits")
        await self._members.wake(name, by)

    async def start(self, name: str, by: str) -> None:
        _check_startable(await self._other(name, by))
        await self._members.start(name, by)

    async def stop(self, name: str, by: str) -> None:
        found = await self._other(name, by)
        if found.session.phase in AT_WORK or _is_asleep(found):
            await self._members.stop(name, by)

    async def restart(self, name: str, by: str) -> None:
        """Stop a member and start it again, in the same conversation."""
        _check_startable(await self._other(name, by))
        await self.stop(name, by)
        await self._members.start(name, by)

    async def _other(self, name: str, by: str) -> _Found:
        """Return a member that is not the manager itself. Raises BadInput, NotFound."""
        if name == by:
            raise BadInput(f"{by} cannot do this to itself", hint="ask the operator")
        return await self._log.read(lambda conn: _found(conn, name))


def _found(conn: Connection, name: str) -> _Found:
    member = hive_views.member(conn, name)
    last = lineage.latest(conn, member.session, "member.stopped", "member.crashed", "member.woken")
    return _Found(member, views.session(conn, member.session), last)


def _is_asleep(found: _Found) -> bool:
    return found.session.reason == ASLEEP and not found.member.stopped


def _check_startable(found: _Found) -> None:
    """Raise NotAllowed for a member that is stopped, and that no manager stopped."""
    by_a_manager = isinstance(found.last, MemberStopped) and found.last.by
    if found.session.phase not in AT_WORK and not _is_asleep(found) and not by_a_manager:
        raise NotAllowed(f"only the operator starts {found.member.name} now: {found.session.reason}", hint="ask")
