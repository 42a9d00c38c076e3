"""Keep the chain of a session's disk short. Each snapshot adds a file to it, and each file makes reads slower.

While the machine runs, QEMU copies what the files in between have into the last one (`block-stream`). Nothing can be
copied into files that snapshots share, so the first file stays the base. Disks and snapshots that have a link to a file
in between keep it.
"""

from __future__ import annotations

import contextlib

import anyio
import anyio.to_thread

from hiveyard.core.errors import ProviderError
from hiveyard.kit.shape import count, items, text
from hiveyard.kit.shape import record as fields
from hiveyard.machines.qemu.command import SESSION
from hiveyard.machines.qemu.session_disk import SessionDisk
from hiveyard.machines.qemu.wire import Refused, Wire

_JOB = "flatten"
_LONG, _LONGEST = 10, 16  # files
_TIMEOUT = 600.0
_PAUSE = 0.05


async def begin_flattening(wire: Wire, disk: SessionDisk) -> None:
    """Start to shorten a chain that is long. QEMU goes on by itself, and the next snapshot interrupts it."""
    numbers = disk.numbers()
    if len(numbers) >= _LONG:
        top, base = (f"{SESSION}{number}" for number in (max(numbers), min(numbers)))
        await wire.call("block-stream", device=top, **{"job-id": _JOB, "base-node": base})


async def end_flattening(wire: Wire, disk: SessionDisk) -> None:
    """Stop shortening, and remove the files that are no longer in the chain. A chain that may not grow any more is
    shortened to the end. Raises ProviderError if that takes longer than ten minutes."""
    try:
        with anyio.fail_after(_TIMEOUT):
            if len(disk.numbers()) < _LONGEST:
                with contextlib.suppress(Refused):  # there is no such job
                    await wire.call("block-job-cancel", device=_JOB)
            while await wire.call("query-block-jobs"):  # noqa: ASYNC110 (its event may have come before)
                await anyio.sleep(_PAUSE)
    except TimeoutError:
        raise ProviderError(f"QEMU does not finish shortening the chain of {disk.root}") from None
    numbers = sorted(disk.numbers())
    if len(numbers) > 2 and await _depth(wire, f"{SESSION}{numbers[-1]}") == 1:
        for number in reversed(numbers[1:-1]):
            await wire.call("blockdev-del", **{"node-name": f"{SESSION}{number}"})
            await anyio.to_thread.run_sync(disk.path(number).unlink)


async def _depth(wire: Wire, node: str) -> int:
    """Return how many files are below the node to which QEMU writes; 0 if it writes to another."""
    for block in items(await wire.call("query-block")):
        inserted = fields(block, "inserted")
        if text(inserted.get("node-name")) == node:
            return count(inserted.get("backing_file_depth"))
    return 0
