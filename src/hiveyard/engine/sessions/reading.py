"""Start a machine only to read the files on a session's disk: the host never reads that itself."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio

from hiveyard.core.ports import Guest
from hiveyard.engine.placement import capacity
from hiveyard.engine.placement.provisioner import Provisioner
from hiveyard.engine.resources import Resources
from hiveyard.engine.sessions.request import session_request
from hiveyard.store.views import SessionRow


@asynccontextmanager
async def reading_machine(session: SessionRow, resources: Resources) -> AsyncIterator[Guest]:
    """Yield the guest of a machine without a door, which is removed at the end of the block. The session has no machine
    of its own, and gets none meanwhile. Raises NoMemory, and as `boot`."""
    request = session_request(session)
    provider = resources.providers[session.provider or ""]
    memory = request.memory_mib or resources.settings.memory_mib
    await resources.event_log.read(lambda conn: capacity.check(conn, resources.settings, memory, excluding=session.id))
    provisioner = Provisioner(session.id, request, resources)
    lease = provisioner.lease(provider, await provisioner.image(provider), door=False)
    try:
        await lease.start()
        async with lease.guest() as guest:
            yield guest
    finally:
        with anyio.CancelScope(shield=True):
            await lease.release()
