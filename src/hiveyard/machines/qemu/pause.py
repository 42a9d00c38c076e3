"""A machine that stands still: its processors are stopped, and so is everything between it and its session's files.

The guest's way to /session is hushed first, while the guest can still agree to that; then its memory, its devices and
its directory belong together, and stay so until it goes on.
"""

from __future__ import annotations

import logging
import os
from dataclasses import replace

import anyio
import anyio.lowlevel

from hiveyard.core.errors import BootFailed, MachineLost
from hiveyard.kit.shape import record as fields
from hiveyard.kit.shape import text
from hiveyard.machines.qemu.fuse_process import hush, speak
from hiveyard.machines.qemu.personalize import tick
from hiveyard.machines.qemu.record import Record, Rig
from hiveyard.machines.qemu.vm import seen
from hiveyard.machines.qemu.wire import Wire, qmp

_log = logging.getLogger(__name__)
_TICK = 10.0


async def runs(wire: Wire) -> bool:
    return text(fields(await wire.call("query-status")).get("status")) == "running"


async def stop(wire: Wire) -> None:
    """Stop its processors. Cancelled or not, it stands still after this: half a command would leave nobody knowing."""
    with anyio.CancelScope(shield=True):
        await wire.call("stop")
    await anyio.lowlevel.checkpoint_if_cancelled()


async def hold_still(record: Record, rig: Rig) -> None:
    """Standing still already is a success. When it fails the machine goes on."""
    async with qmp(rig.qmp) as wire:
        if not await runs(wire):
            return
        record = halted(record, rig)
        try:
            await hush(rig.session)
            await stop(wire)
        except BaseException:
            with anyio.CancelScope(shield=True):
                await wire.call("cont")
                await speak(rig.session)
            raise
        finally:
            unhalted(record, rig)


async def go_on(record: Record, rig: Rig) -> None:
    """Running already is a success."""
    async with qmp(rig.qmp) as wire:
        stood = not await runs(wire)
        if stood:
            await wire.call("cont")
    # Even when it runs: whoever let it go on may have been killed before this.
    await speak(rig.session)
    if stood:
        await catch_up(record, rig, within=60.0)


async def catch_up(record: Record, rig: Rig, *, within: float | None = None) -> None:
    """Give a machine that goes on the time that it stood still for."""
    try:
        await tick(rig.become, record.name, within=within or _TICK)
    except (MachineLost, BootFailed, TimeoutError) as error:
        # It goes on all the same: whoever needs it finds out what has become of it.
        _log.warning("machine %s did not take the time: %s", record.name, error)


def halted(record: Record, rig: Rig) -> Record:
    """Write down that this process is about to hold it still, for a moment."""
    record = replace(record, halted=seen(os.getpid()))
    record.write(rig.record)
    return record


def unhalted(record: Record, rig: Rig) -> Record:
    record = replace(record, halted=None)
    record.write(rig.record)
    return record


async def mended(record: Record, rig: Rig) -> Record:
    """The machine, going on when whoever held it still for a moment was killed meanwhile."""
    if record.halted is None or record.halted.alive:
        return record
    async with qmp(rig.qmp) as wire:
        if not await runs(wire):
            await wire.call("cont")
    await speak(rig.session)
    await catch_up(record, rig)
    return unhalted(record, rig)
