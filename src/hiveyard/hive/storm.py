"""Notice a storm: members that write to each other without end."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection

from hiveyard.core.states import AskState
from hiveyard.hive.names import OPERATOR, SYSTEM
from hiveyard.hive.settings import HiveSettings
from hiveyard.store import hive_views
from hiveyard.store.hive_views import MemberKey
from hiveyard.store.views import AskRow

GO_ON, RAISE, DROP = "go-on", "raise", "drop"
MINUTE = 60.0
MAX_HELD = 100
"""Messages that one question holds. More are refused."""


def open_storm(storms: Sequence[AskRow]) -> AskRow | None:
    """Return the question about messages between two that the operator has not answered yet."""
    return next((ask for ask in storms if ask.state is AskState.OPEN), None)


def excess(
    conn: Connection,
    sender: MemberKey,
    to: MemberKey,
    storms: Sequence[AskRow],
    hops: int,
    now: float,
    settings: HiveSettings,
) -> str | None:
    """Return why one more message between two is too much; None if it is not. The operator may write without limit."""
    if sender.name in (OPERATOR, SYSTEM):
        return None
    answered = [ask for ask in storms if ask.state is AskState.ANSWERED]
    factor: int = 2 ** sum((ask.answer or {}).get("option") == RAISE for ask in answered)
    if hops > settings.max_hops * factor:
        return f"{hops} messages of members followed from each other; {settings.max_hops * factor} may"
    since = max(now - MINUTE, *(ask.ended_at or 0.0 for ask in answered), 0.0)
    count = 1 + hive_views.sent_between(conn, sender.name, to.name, since, without=OPERATOR)
    if count > settings.messages_per_minute * factor:
        most = settings.messages_per_minute * factor
        return f"{sender.name} and {to.name} sent each other {count} messages in a minute; {most} may be sent"
    return None
