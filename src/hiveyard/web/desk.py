"""The desk: what waits for the person."""

from __future__ import annotations

from typing import NamedTuple

from hiveyard.engine.sessions.steering import AskView
from hiveyard.engine.sessions.view import SessionView
from hiveyard.engine.workspace.result import Diffstat
from hiveyard.hive.members import MessageView
from hiveyard.hive.names import OPERATOR
from hiveyard.web.looks import state_of
from hiveyard.web.site import Site

RECENT = 12
"""Questions that are over, shown below the open ones."""


class Result(NamedTuple):
    """A task or session that ended a turn and was not looked at since, with the size of its changes. `words` is what
    its agent said last."""

    work: SessionView
    stat: Diffstat | None
    words: str


class Desk(NamedTuple):
    """Everything that waits for the user, the oldest first; `past` are the last questions that are over."""

    asks: list[AskView]
    mail: list[MessageView]
    trouble: list[Result]
    results: list[Result]
    past: list[AskView]
    seq: int

    @property
    def waiting(self) -> int:
        return len(self.asks) + len(self.mail) + len(self.trouble) + len(self.results)


async def read_desk(site: Site) -> Desk:
    """Return what waits now."""
    engine, seen = site.engine, site.seen
    asks = await engine.steering.asks(all=False)
    mine = [ask for ask in asks if ask.to in ("", OPERATOR)]
    ends = await engine.history.ends()
    seen.keep_only(ends)
    unseen = {id for id, seq in ends.items() if not seen.has(id, seq)} - {ask.session for ask in mine}
    works = await engine.sessions.views(over=True, tasks=True, ids=unseen)
    new = [work for work in reversed(works) if state_of(work).tone not in ("busy", "wait")]
    words = await engine.history.last_words([work.id for work in new])
    stats = await engine.history.diffstats([work.id for work in new])
    found = [Result(work, stats.get(work.id), words.get(work.id, "")) for work in new]
    return Desk(
        asks=mine,
        mail=list(await site.members.unread()),
        trouble=[one for one in found if state_of(one.work).tone == "bad"],
        results=[one for one in found if state_of(one.work).tone != "bad"],
        past=[ask for ask in await engine.steering.asks(all=True, limit=RECENT) if ask.ended_at is not None],
        seq=asks.seq,
    )
