"""Pause and resume a machine: its processors are stopped, and its clock is set when they run again."""

from __future__ import annotations

import logging
import os
from dataclasses import replace

import anyio
import anyio.lowlevel

from hiveyard.core.errors import BootFailed, MachineLost
from hiveyard.kit.shape import record as fields
from hiveyard.kit.shape import text
from hiveyard.machines.qemu.personalize import Work, session_files, set_time
from hiveyard.machines.qemu.record import QemuDirectory, Record
from hiveyard.machines.qemu.vm import find_process
from hiveyard.machines.qemu.wire import Wire, qmp

_log = logging.getLogger(__name__)
_SET_CLOCK_TIMEOUT = 10.0


async def is_running(wire: Wire) -> bool:
    return text(fields(await wire.call("query-status")).get("status")) == "running"


async def stop_cpus(wire: Wire) -> None:
    """Stop the processors. A cancellation takes effect afterwards, because a half-sent command would leave the state
    unknown."""
    with anyio.CancelScope(shield=True):
        await wire.call("stop")
    await anyio.lowlevel.checkpoint_if_cancelled()


async def pause(record: Record, directory: QemuDirectory) -> None:
    """Pause a machine. A paused machine is a success. If it fails, the machine continues to run."""
    async with qmp(directory.qmp) as wire:
        if not await is_running(wire):
            return
        # A machine that never runs again loses nothing that its guest has written.
        await change_files(record, directory, "sync")
        try:
            await stop_cpus(wire)
        except BaseException:
            with anyio.CancelScope(shield=True):
                await wire.call("cont")
            raise


async def resume(record: Record, directory: QemuDirectory) -> None:
    """Resume a machine. A running machine is a success."""
    async with qmp(directory.qmp) as wire:
        was_paused = not await is_running(wire)
        if was_paused:
            await wire.call("cont")
    if was_paused:
        await update_clock(record, directory, within=60.0)


async def update_clock(record: Record, directory: QemuDirectory, *, within: float | None = None) -> None:
    """Set the clock of a machine that was paused."""
    try:
        await set_time(directory.become, record.name, within=within or _SET_CLOCK_TIMEOUT)
    except (MachineLost, BootFailed, TimeoutError) as error:
        # Not an error of the caller: the machine runs, and the next one that uses it finds out if it is broken.
        _log.warning("machine %s did not set its clock: %s", record.name, error)


async def change_files(record: Record, directory: QemuDirectory, work: Work) -> bool:
    """Let the guest do `work` with its session's file system. Return whether it did: it may be busy or hostile."""
    try:
        await session_files(directory.become, record.name, work)
    except (MachineLost, BootFailed, TimeoutError) as error:
        _log.warning("machine %s did not %s its session's files: %s", record.name, work, error)
        return False
    return True


def mark_halted(record: Record, directory: QemuDirectory) -> Record:
    """Record that this process is about to pause the machine for a moment."""
    record = replace(record, halted=find_process(os.getpid()))
    record.write(directory.record)
    return record


def clear_halted(record: Record, directory: QemuDirectory) -> Record:
    record = replace(record, halted=None)
    record.write(directory.record)
    return record


async def resume_if_abandoned(record: Record, directory: QemuDirectory) -> Record:
    """Resume a machine if the process that paused it for a moment was killed meanwhile. Return its record."""
    if record.halted is None or record.halted.alive:
        return record
    async with qmp(directory.qmp) as wire:
        if not await is_running(wire):
            await wire.call("cont")
    await update_clock(record, directory)
    await change_files(record, directory, "thaw")
    return clear_halted(record, directory)
