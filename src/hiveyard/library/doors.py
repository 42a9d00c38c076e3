"""The doors of an orchestrator's machines. Each is open from before its machine boots until the machine is removed."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import NamedTuple, TypeVar

import anyio
import msgspec
from anyio.abc import TaskGroup, TaskStatus

from hiveyard.core.doors import Doors, OpenDoor
from hiveyard.core.errors import BadInput
from hiveyard.core.events import DoorEvent, Notice
from hiveyard.core.machines import MachineSpec
from hiveyard.core.ports import Provider
from hiveyard.kit.group import together
from hiveyard.kit.mask import Mask
from hiveyard.kit.secret import Secret
from hiveyard.library.events import DoorReported, Listener
from hiveyard.library.secret_masks import SecretMasks

T = TypeVar("T", bound=msgspec.Struct)


class _MachineDoor(NamedTuple):
    close: anyio.Event
    closed: anyio.Event


class MachineDoors:
    """The open doors. Without `doors` it does nothing.

    Events of a door are emitted as `DoorReported`. The secrets of its machine are masked in them, because a guest can
    put these into its requests."""

    def __init__(self, doors: Doors | None, agent: str, emit: Listener, masks: SecretMasks) -> None:
        self._doors = doors
        self._agent = agent
        self._emit = emit
        self._masks = masks
        self._machine_doors: dict[str, _MachineDoor] = {}
        self._group: TaskGroup | None = None
        self._open_door: OpenDoor | None = None
        self._resources = AsyncExitStack()

    async def __aenter__(self) -> None:
        if self._doors is None:
            return
        async with AsyncExitStack() as opening:
            self._open_door = await opening.enter_async_context(self._doors.serving(self._report))
            self._group = await opening.enter_async_context(together())
            self._resources = opening.pop_all()

    async def __aexit__(self, *raised: object) -> None:
        if self._group is not None:
            self._group.cancel_scope.cancel()
        self._group = None
        await self._resources.aclose()

    def placeholder(self, provider: Provider, spec: MachineSpec, given: Secret | None) -> Secret | None:
        """Return the key that a machine's door will accept: the given one, or a new one; None without doors.

        Raises BadInput for a machine that can have no door, or for an agent for which the doors are not allowed."""
        if self._doors is None:
            if given is not None:
                raise BadInput(
                    "a placeholder needs a door, and there are no doors", hint="Orchestrator(..., doors=...)"
                )
            return None
        if self._group is None:
            raise BadInput(
                "the orchestrator is not open, so it cannot serve the machine's door",
                hint="async with Orchestrator(...) as orchestrator: ...",
            )
        if not provider.capabilities.door_url:
            raise BadInput(f"machines of {provider.name} have no door", hint="omit `doors`")
        if spec.door is not None:
            raise BadInput("the spec has a door, and the orchestrator has `doors`", hint="omit one of them")
        self._doors.check_agent(self._agent)
        return given or Secret(f"hv-{secrets.token_urlsafe(24)}")

    async def open(self, machine: str, directory: Path, placeholder: Secret, protocols: Sequence[str]) -> None:
        """Open a machine's door. Raises CredentialsError if there is no key for any of `protocols`, DoorError."""
        assert self._doors is not None and self._group is not None
        self._doors.check(protocols)
        await self._group.start(self._keep_open, machine, directory, placeholder, name=f"the door of {machine}")

    async def close(self, machine: str) -> None:
        """Close a machine's door. A door that is not open is a success."""
        if door := self._machine_doors.pop(machine, None):
            door.close.set()
            await door.closed.wait()

    async def _keep_open(
        self, machine: str, directory: Path, placeholder: Secret, *, task_status: TaskStatus[None]
    ) -> None:
        """Keep a door open in a task of its own, because another task than the opener closes it."""
        assert self._open_door is not None
        door = _MachineDoor(anyio.Event(), anyio.Event())
        try:
            async with self._open_door(machine, directory, placeholder):
                self._machine_doors[machine] = door
                task_status.started()
                await door.close.wait()
        finally:
            door.closed.set()

    def _report(self, machine: str, event: DoorEvent | Notice) -> None:
        self._emit(DoorReported(machine=machine, fact=_masked(event, self._masks.mask(machine))))


def _masked(event: T, mask: Mask) -> T:
    """Return a copy with the secrets masked in all texts."""
    found: dict[str, object] = {}
    for name in event.__struct_fields__:
        value = getattr(event, name)
        if isinstance(value, str):
            found[name] = mask.text(value)
        elif isinstance(value, msgspec.Struct):
            found[name] = _masked(value, mask)
    return msgspec.structs.replace(event, **found)
