"""Create a task or session: its directory, then its first events; either both exist or neither."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from pathlib import Path

import anyio.to_thread
from sqlalchemy import Connection

from hiveyard.core.errors import HiveyardError, NoSpace, OrchestrationError
from hiveyard.engine.resources import Resources


async def create_and_record(
    resources: Resources, root: Path, make: Callable[[], None], write: Callable[[Connection], None]
) -> None:
    """Call `make` to create the directory `root`, then record events with `write`. After an error the directory is
    removed. Raises NoSpace, OrchestrationError, and the errors of `write`."""
    try:
        await anyio.to_thread.run_sync(make)
        await resources.event_log.store.write(write)
    except (HiveyardError, OSError) as error:
        await anyio.to_thread.run_sync(lambda: shutil.rmtree(root, ignore_errors=True))
        if isinstance(error, OSError):
            raise _not_created(root, error) from error
        raise


def _not_created(root: Path, error: OSError) -> HiveyardError:
    kind = NoSpace if error.errno in (errno.ENOSPC, errno.EDQUOT) else OrchestrationError
    return kind(
        f"the session's directory {root} cannot be created: {error.strerror or error}", hint=f"df -h {root.parent}"
    )
