"""The part of a request that tasks and sessions share: repository, agent, machine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from hiveyard.core.errors import BadInput
from hiveyard.core.machines import Shape
from hiveyard.core.tools import ToolServer, check_servers, check_variables
from hiveyard.core.units import DURATION_PATTERN, SIZE_PATTERN
from hiveyard.kit.names import is_id
from hiveyard.kit.secret import Secret
from hiveyard.kit.text import one_line

PROMPT_LIMIT = 16 << 20
"""Maximum size of a prompt in bytes: far more than any model reads, and far less than what would do harm."""

# In the OpenAPI document these are also texts with a unit.
Seconds = Annotated[
    float,
    msgspec.Meta(gt=0, le=366 * 86400.0, extra_json_schema={"type": ["number", "string"], "pattern": DURATION_PATTERN}),
]
Dollars = Annotated[float, msgspec.Meta(gt=0, le=1e6)]
Size = Annotated[
    int, msgspec.Meta(ge=1, le=1 << 24, extra_json_schema={"type": ["integer", "string"], "pattern": SIZE_PATTERN})
]
Cpus = Annotated[float, msgspec.Meta(ge=0.1, le=1 << 16)]


class RunSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The common fields of requests. Null means: as the settings say. Paths are absolute and the host's. `memory_mib`
    is MiB, `disk_gib` GiB.

    `id` is chosen by the caller, as `new_id` makes it. A request that is repeated with the same id, because an answer
    was lost, returns what the first one created.

    `system` is added to the agent's own system prompt. `mcp` are tool servers by name, and `env` variables for the
    agent's process. The journal has `***` in place of the values of headers and variables: they are in a file of the
    session's directory (engine/workspace/values.py).
    """

    repo: str
    id: str | None = None
    agent: str | None = None
    command: str | None = None
    model: str | None = None
    provider: str | None = None
    image: str | None = None
    branch: str | None = None
    base: str | None = None
    include_dirty: bool = False
    repository_config: bool = False
    network: Literal["door", "open"] = "door"
    budget_usd: Dollars | None = None
    account: str | None = None
    memory_mib: Size | None = None
    cpus: Cpus | None = None
    disk_gib: Size | None = None
    record: str | None = None
    tape: str | None = None
    system: str | None = None
    mcp: dict[str, ToolServer] | None = None
    env: dict[str, Secret] | None = None

    def check_spec(self) -> None:
        """Validate the fields by themselves. Raises BadInput."""
        for field, value in msgspec.structs.asdict(self).items():
            if isinstance(value, str) and field != "prompt":
                check_text(field, value)
        if self.id is not None and not is_id(self.id):
            raise BadInput(f"{one_line(self.id, 80)!r} is not an id: an id is 10 letters and digits, as hv makes it")
        default = Shape()
        Shape(
            memory_mib=self.memory_mib or default.memory_mib,
            cpus=self.cpus or default.cpus,
            disk_gib=self.disk_gib or default.disk_gib,
        )
        if self.tape and self.record:
            raise BadInput("--tape answers from a recording and --record makes one: choose one of them")
        for what, name in (("tape", self.tape), ("recording", self.record)):
            if name and not Path(name).is_absolute():
                raise BadInput(f"the {what}'s path must be absolute, not {name!r}")
        if self.agent == "command" and not self.command:
            raise BadInput(
                "the command agent needs a command line",
                hint="hv run REPO -m TEXT --command 'my-agent --prompt-file {{prompt_file}}'",
            )
        if self.agent == "acp" and not self.command:
            raise BadInput("the acp agent needs a command line", hint="hv spawn REPO --acp 'my-agent --acp'")
        if self.command and self.agent not in (None, "command", "acp"):
            raise BadInput(f"--command is for the command agent, and the agent is {self.agent}")
        check_variables(self.env or {})
        check_servers(self.mcp or {})
        outside = next((name for name, server in (self.mcp or {}).items() if not server.is_local), None)
        if outside is not None and self.network == "door":
            hint = "--network open, or a server inside the machine"
            raise BadInput(f"the machine cannot reach the tool server {outside}: its network is closed", hint=hint)

    def as_json(self) -> dict[str, Any]:
        """Return the request as plain data, without unset fields, secret values and its id."""
        return {
            key: value
            for key, value in msgspec.to_builtins(self, enc_hook=str).items()
            if value is not None and value is not False and key != "id"
        }

    def check_same(self, existing: Mapping[str, Any] | None, kind: str) -> None:
        """Check that the task or session with this id was created from this request; `existing` is the request that it
        was created from. Raises BadInput if that is another one."""
        if existing is None or dict(existing) != self.as_json():
            raise BadInput(f"there is already a {kind} {self.id}, created from another request")


def check_text(name: str, value: str) -> None:
    """Raise BadInput for a text that the journal cannot store, such as a file name that is not UTF-8."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise BadInput(f"{name} is not UTF-8: {one_line(value.encode('utf-8', 'replace').decode(), 120)}") from None


def check_prompt(prompt: str, hint: str) -> None:
    """Raise BadInput for a prompt that no agent can take; `hint` is the command to type instead of an empty one."""
    if not prompt.strip():
        raise BadInput("the prompt is empty", hint=hint)
    if "\0" in prompt:
        raise BadInput("the prompt contains a NUL character")
    try:
        size = len(prompt.encode())
    except UnicodeEncodeError as error:
        raise BadInput(f"the prompt is not Unicode text: character {error.start}") from None
    if size > PROMPT_LIMIT:
        raise BadInput(f"the prompt has {size} bytes; the limit is {PROMPT_LIMIT}")
