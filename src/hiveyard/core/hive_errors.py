"""Errors of the hive: a branch of the tree in `core/errors.py`."""

from __future__ import annotations

from hiveyard.core.error import HiveyardError


class HiveError(HiveyardError):
    code = "hive"


class MessageHeldBack(HiveError):
    """The message waits until the operator has decided, because its sender writes too much."""

    code = "hive.held"


class NotAllowed(HiveError):
    """The member may not do this: write to that member, or answer that question."""

    code = "hive.not_allowed"
