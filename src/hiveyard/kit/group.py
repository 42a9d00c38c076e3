"""A task group for work that has one result: its failure comes out as itself and not wrapped in a group."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
from anyio.abc import TaskGroup


@asynccontextmanager
async def together() -> AsyncIterator[TaskGroup]:
    """An anyio task group. When it fails, the first failure is raised, with the whole group as its cause."""
    try:
        async with anyio.create_task_group() as group:
            yield group
    except BaseExceptionGroup as failures:
        raise first(failures) from failures


def first(failure: BaseException) -> BaseException:
    """A failure, or the first one in a group of them."""
    while isinstance(failure, BaseExceptionGroup):
        failure = failure.exceptions[0]
    return failure
