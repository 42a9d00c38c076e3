"""The doors of an orchestrator's machines: each is open from before its machine boots until that is gone."""

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
    leave: anyio.Event
    left: anyio.Event


class MachineDoors:
    """Without `doors` there are none, and it does nothing. What happens at one is told as `DoorReported`, without the
    secrets of its machine, which a guest can put into what it asks for."""

    def __init__(self, doors: Doors | None, agent: str, tell: Listener, masks: SecretMasks) -> None:
        self._doors = doors
        self._agent = agent
        self._tell = tell
        self._masks = masks
        self._held: dict[str, _MachineDoor] = {}
        self._group: TaskGroup | None = None
        self._open_door: OpenDoor | None = None
        self._opened = AsyncExitStack()

    async def __aenter__(self) -> None:
        if self._doors is None:
            return
        async with AsyncExitStack() as opening:
            self._open_door = await opening.enter_async_context(self._doors.serving(self._told))
            self._group = await opening.enter_async_context(together())
            self._opened = opening.pop_all()

    async def __aexit__(self, *raised: object) -> None:
        if self._group is not None:
            self._group.cancel_scope.cancel()
        self._group = None
        await self._opened.aclose()

    def placeholder(self, provider: Provider, spec: MachineSpec, given: Secret | None) -> Secret | None:
        """What the door of a machine will take for a key: what is `given`, or a new one; None for no door. Raises
        BadInput for a machine that can have none, or an agent that it is not for."""
        if self._doors is None:
            if given is not None:
                raise BadInput("a placeholder is for a door, and there is none", hint="Orchestrator(..., doors=...)")
            return None
        if self._group is None:
            raise BadInput(
                "the orchestrator is not open: nobody would serve the machine's door",
                hint="async with Orchestrator(...) as orchestrator: ...",
            )
        if not provider.capabilities.door_url:
            raise BadInput(f"machines of {provider.name} have no door", hint="leave `doors` away")
        if spec.door is not None:
            raise BadInput("the spec brings a door of its own, and there are `doors`", hint="leave one of them away")
        self._doors.check_agent(self._agent)
        return given or Secret(f"hv-{secrets.token_urlsafe(24)}")

    async def open(self, machine: str, directory: Path, placeholder: Secret, protocols: Sequence[str]) -> None:
        """Raises CredentialsError when there is no key for any of `protocols`, DoorError."""
        assert self._doors is not None and self._group is not None
        self._doors.check(protocols)
        await self._group.start(self._hold, machine, directory, placeholder, name=f"the door of {machine}")

    async def close(self, machine: str) -> None:
        """One that is closed, or was never opened, is a success."""
        if doorway := self._held.pop(machine, None):
            doorway.leave.set()
            await doorway.left.wait()

    async def _hold(self, machine: str, directory: Path, placeholder: Secret, *, task_status: TaskStatus[None]) -> None:
        """In a task of its own: whoever closes a door is not the one who opened it."""
        assert self._open_door is not None
        doorway = _MachineDoor(anyio.Event(), anyio.Event())
        try:
            async with self._open_door(machine, directory, placeholder):
                self._held[machine] = doorway
                task_status.started()
                await doorway.leave.wait()
        finally:
            doorway.left.set()

    def _told(self, machine: str, fact: DoorEvent | Notice) -> None:
        self._tell(DoorReported(machine=machine, fact=_masked(fact, self._masks.mask(machine))))


def _masked(fact: T, mask: Mask) -> T:
    """The same again with the secrets masked in all its texts."""
    found: dict[str, object] = {}
    for name in fact.__struct_fields__:
        value = getattr(fact, name)
        if isinstance(value, str):
            found[name] = mask.text(value)
        elif isinstance(value, msgspec.Struct):
            found[name] = _masked(value, mask)
    return msgspec.structs.replace(fact, **found)
