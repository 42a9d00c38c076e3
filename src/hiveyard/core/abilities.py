"""Optional abilities of providers. `core/ports.py` re-exports them.

A provider has an ability if it implements the Protocol. Callers test for it with isinstance.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

from hiveyard.core.commands import Command
from hiveyard.core.machines import Machine, MachineSpec, StoredItem


@runtime_checkable
class Openable(Protocol):
    """A provider that keeps a program or connections open in the process that uses it.

    Any call opens what it needs and leaves it open."""

    def opened(self) -> AbstractAsyncContextManager[object]:
        """Keep the provider open while the block runs. In the block its `capabilities` are known.

        Blocks may be nested and may run concurrently. At the end of the last one everything of the provider in this
        process is closed. Machines stay, and the provider can be used again. Raises ProviderError."""


@runtime_checkable
class Terminals(Protocol):
    """A provider that can attach a user's terminal to a machine."""

    async def terminal(self, name: str, command: Command) -> Sequence[str]:
        """Return the argv of a host program that runs `command` in the ready machine on the terminal on which it is
        started.

        The user runs the program, and it ends when the command ends. Keys (Ctrl-C, Ctrl-Z) and the window size are
        forwarded to the command. The program exits with the command's exit code, and with a code other than 0 if the
        machine died. The command gets a terminal of the guest, never the host's. If the host's terminal closes, the
        command receives SIGHUP; if the program itself is killed, the command may continue. Raises NoSuchMachine,
        MachineNotReady, MachineLost, CannotExecute."""


Meanwhile = Callable[[], Coroutine[object, object, None]]
"""A callback that runs while a machine is paused for a snapshot."""


class SnapshotStats(NamedTuple):
    """The cost of a snapshot: how many seconds the machine was paused, and how many bytes the snapshot takes on disk
    beyond the blocks that it shares."""

    seconds: float
    size: int


@runtime_checkable
class Snapshots(Protocol):
    """A provider that can snapshot a running machine with memory, processes, devices and disk, and boot others from it.

    Such a provider also implements Pauses. Snapshots have names of their own, never change, and outlive the machine.
    They contain a session's disk, but no session directory: the caller copies that in `meanwhile`."""

    async def snapshot(
        self, name: str, snapshot: str, meanwhile: Meanwhile | None = None, *, temporary: bool = False
    ) -> SnapshotStats:
        """Take the snapshot `snapshot` of the machine `name`. An existing snapshot of that name is replaced.

        The machine is paused for as short a time as possible, and `meanwhile` is called once during it; a machine that
        was paused before stays paused. With `temporary`, machines are booted from the snapshot at once and it is
        removed afterwards, so it need not be small. If `meanwhile` or anything else fails or is cancelled, the machine
        is as before and nothing of the snapshot is left over. Raises the errors of `meanwhile`; NoSuchMachine,
        MachineNotReady, MachineLost, NoSpace; CannotKeepMemory if the memory of this machine cannot be saved."""

    async def make_ready(self, snapshot: str) -> None:
        """Check that `boot_from` will find everything that it needs of the snapshot, and fetch what is missing.

        For a caller that must give something up before `boot_from`. Raises NoSuchSnapshot; ProviderUnavailable if this
        host cannot run it; NoSpace; ProviderError if the snapshot is damaged."""

    async def boot_from(self, snapshot: str, name: str, spec: MachineSpec) -> Machine:
        """Make a ready machine `name` that continues from the snapshot.

        It has the same memory and processes, with their connections to a door closed; its name, keys, session's files,
        door and disk are its own, and a `spec.disk` must have been derived from the snapshot. `spec.image` and
        `spec.shape` are those of the snapshot's machine. Otherwise like `Provider.boot`. Raises NoSuchSnapshot, too."""

    async def snapshots(self) -> set[str]:
        """Return the names of all snapshots and of the remains of half-made ones."""

    async def remove_snapshot(self, snapshot: str) -> None:
        """Remove a snapshot. An absent snapshot is a success. Machines that were booted from it keep running."""


@runtime_checkable
class SessionDisks(Protocol):
    """A provider whose machines have a session's files on a disk of the session (`WorkspaceKind.DISK`).

    A disk is a directory of the host with files that only the provider understands. It belongs to the caller, who may
    move it to another place on the same file system and remove it while no machine uses it."""

    async def make_disk(self, disk: Path, tree: Path) -> None:
        """Make a disk at `disk`, which must not exist, with a copy of the directory `tree`. The guest's user owns the
        files. It is complete or does not exist. Raises NoSpace, ProviderError."""

    async def check_disk(self, disk: Path) -> None:
        """Raise SessionDamaged if the directory lacks files of a disk."""

    async def snapshot_disk(self, name: str, snapshot: str) -> SnapshotStats:
        """Take a snapshot of a machine's session disk without its memory. Otherwise like `Snapshots.snapshot`."""

    async def derive_disk(self, snapshot: str, disk: Path) -> None:
        """Make a disk at `disk`, which must not exist, with the content that the disk of a session had at a snapshot,
        with or without memory. It shares blocks with the snapshot, and either can be removed without the other. Raises
        NoSuchSnapshot, NoSpace."""


@runtime_checkable
class Forks(Protocol):
    """A provider of remote machines that forks a running machine in one step.

    Where machines share directories with this host, a fork must copy them while the machine is paused. Such providers
    implement Snapshots instead."""

    async def fork(self, name: str, children: Sequence[str], spec: MachineSpec) -> Sequence[Machine]:
        """Make ready machines, in the order of `children`, that continue from the current state of the machine `name`.

        The machine is paused for a moment. The children have the same memory and processes, and names of their own.
        `spec` is the machine's own; its `ttl` starts now. If the call fails or is cancelled, no child is left over.
        Raises BadInput for a name that is taken or given twice; NoSuchMachine, MachineNotReady; otherwise like
        `Provider.boot`."""


@runtime_checkable
class HasStorage(Protocol):
    """A provider that can list what it uses disk space for."""

    async def stored_items(self) -> list[StoredItem]:
        """Return everything that takes space now, made by this installation or in a cache that several installations
        share."""

    async def discard(self, item: StoredItem) -> None:
        """Remove a leftover item (kind `left`). An absent item is a success."""


@runtime_checkable
class Pauses(Protocol):
    """A provider that can pause a machine and resume it.

    A paused machine is still `ready`. Calls to its guest wait until it is resumed, or until their `timeout`. It stays
    paused if its daemon dies, and can be stopped and terminated like any other machine."""

    async def pause(self, name: str) -> None:
        """Pause the machine. A paused machine is a success.

        Raises NoSuchMachine, MachineNotReady; CannotFreeze if it cannot be paused (it keeps running)."""

    async def resume(self, name: str) -> None:
        """Resume the machine. A running machine is a success. Raises NoSuchMachine, MachineNotReady."""
