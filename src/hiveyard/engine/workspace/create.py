"""The beginning of a task or session: its directory, then its first events; there are both or neither."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from pathlib import Path

import anyio.to_thread
from sqlalchemy import Connection

from hiveyard.core.errors import HiveyardError, NoSpace, OrchestrationError
from hiveyard.engine.resources import Resources


async def make_and_journal(
    resources: Resources, root: Path, make: Callable[[], None], write: Callable[[Connection], None]
) -> None:
    """Have `make` make the directory `root`, then journal what `write` records. Raises NoSpace, OrchestrationError,
    and what `write` raises."""
    try:
        await anyio.to_thread.run_sync(make)
        await resources.event_log.store.write(write)
    except (HiveyardError, OSError) as error:
        await anyio.to_thread.run_sync(lambda: shutil.rmtree(root, ignore_errors=True))
        if isinstance(error, OSError):
            raise _unmade(root, error) from error
        raise


def _unmade(root: Path, error: OSError) -> HiveyardError:
    kind = NoSpace if error.errno in (errno.ENOSPC, errno.EDQUOT) else OrchestrationError
    return kind(
        f"the session's directory {root} cannot be made: {error.strerror or error}", hint=f"df -h {root.parent}"
    )
