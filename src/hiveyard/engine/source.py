"""Where a task's result lies on the host."""

from __future__ import annotations

import msgspec


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """`repo` is what the task was made from; `origin` is the host's own bare repository that holds `branch`."""

    repo: str
    origin: str
    branch: str
    base: str
    head: str | None
    patch: str | None
