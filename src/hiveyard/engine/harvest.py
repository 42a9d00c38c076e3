"""Bringing an agent's work out of its guest, and writing down what it was."""

from __future__ import annotations

from hiveyard.core.events import Notice, ResultCollected
from hiveyard.core.ports import Guest
from hiveyard.engine import repository
from hiveyard.engine.resources import Resources
from hiveyard.store import views
from hiveyard.store.views import ResultRow


async def harvest(id: str, guest: Guest, resources: Resources, *, turn: int | None, aside: bool = False) -> ResultRow:
    """Take the branch and the patch of session `id` out of its guest, and journal the result, which replaces an
    earlier one. With `aside` the guest's repository stays as it is. Raises what `repository.collect` raises."""
    ledger, workspace = resources.ledger, resources.workspace(id)
    async with ledger.phase(id, "collect"):
        session = await ledger.read(lambda conn: views.session(conn, id))
        assert session.base is not None and session.branch is not None
        got = await repository.collect(
            guest, workspace.origin, workspace.result, base=session.base, branch=session.branch, aside=aside
        )
    result = ResultCollected(
        branch=session.branch,
        base=session.base,
        head=got.head,
        commits=got.commits,
        files=got.files,
        insertions=got.insertions,
        deletions=got.deletions,
        leftover=got.leftover,
    )
    await ledger.record(id, *[Notice(message=notice) for notice in got.notices], result, turn=turn)
    collected = await ledger.read(lambda conn: views.result(conn, id))
    assert collected is not None
    return collected
