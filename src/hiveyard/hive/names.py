"""Names in the hive that are not of members."""

from __future__ import annotations

from hiveyard.core.errors import BadInput
from hiveyard.engine.sessions.request import check_name

OPERATOR = "operator"
SYSTEM = "hive"
"""The author of messages that Hiveyard itself writes."""
ALL = "all"
"""As a recipient: every member but the author."""
RESERVED = (OPERATOR, SYSTEM, ALL, "system", "everybody")


def check_member_name(name: str) -> None:
    """Raise BadInput for a name that a member cannot have."""
    check_name(name)
    if name in RESERVED:
        raise BadInput(f"no member can be called {name}: the hive uses this name", hint="hv hive add OTHER-NAME")
