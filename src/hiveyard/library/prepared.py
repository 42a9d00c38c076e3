"""A machine that is ready for an agent."""

from __future__ import annotations

from dataclasses import dataclass

from hiveyard.core.commands import process_name
from hiveyard.core.credentials import Installed
from hiveyard.core.errors import BadInput
from hiveyard.core.files import FileStep, MakeDirectory, WriteFile
from hiveyard.core.machines import Capabilities, Machine, MachineSpec
from hiveyard.core.ports import Guest, Turn
from hiveyard.kit.names import new_id
from hiveyard.kit.secret import Secret


@dataclass(frozen=True, slots=True, kw_only=True)
class Defaults:
    """What turns of an agent are when nothing else is said, as the fields of Turn."""

    model: str | None = None
    ask: bool = False
    system: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """The machine, what it was asked to be, what may be assumed of it, the profiles that were installed, in their
    order, what its door takes for a key, if it has one, the agent that it was made for, and that one's defaults."""

    machine: Machine
    spec: MachineSpec
    capabilities: Capabilities
    installed: tuple[Installed, ...] = ()
    placeholder: Secret | None = None
    agent: str = ""
    defaults: Defaults = Defaults()

    def turn(
        self,
        name: str | None = None,
        *,
        command: str | None = None,
        model: str | None = None,
        conversation: str | None = None,
        ask: bool | None = None,
        system: str | None = None,
        placeholder: str = "",
    ) -> Turn:
        """A turn with its files below the guest's session directory, at the machine's own door, with the placeholder
        of that unless one is given. `name` is the process's, a new one unless given; `core.commands.process_name` makes
        one of any words. `model`, `ask` and `system` are as the defaults say unless given. Work tree and agent's state
        are the same for all turns of the machine."""
        name = process_name(self.agent, new_id()) if name is None else name
        session = self.capabilities.session
        return Turn(
            name=name,
            prompt=f"{session}/turns/{name}/prompt",
            workdir=f"{session}/work",
            state=f"{session}/state",
            door_url=self.capabilities.door_url,
            placeholder=placeholder or (self.placeholder.reveal() if self.placeholder else ""),
            model=self.defaults.model if model is None else model,
            conversation=conversation,
            command=command,
            ask=self.defaults.ask if ask is None else ask,
            system=self.defaults.system if system is None else system,
        )


def encoded(prompt: str) -> bytes:
    """The file of a prompt. Raises BadInput for what no file can have."""
    try:
        return prompt.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        lone = prompt[error.start]
        raise BadInput(f"the prompt has a lone surrogate, {lone!r}, which no file can have") from error


async def make_room(guest: Guest, turn: Turn, prompt: bytes | None) -> None:
    """What a turn's process needs to find, beside its program."""
    steps: list[FileStep] = [MakeDirectory(path=turn.workdir), MakeDirectory(path=turn.state, mode=0o700)]
    if prompt is not None:
        steps.append(WriteFile(path=turn.prompt, data=prompt, mode=0o600))
    await guest.batch(steps)
