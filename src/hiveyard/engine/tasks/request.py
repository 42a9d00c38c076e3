"""The request for a task: complete, validated, and stored unchanged."""

from __future__ import annotations

from hiveyard.core.errors import BadInput
from hiveyard.core.parsing import parsed
from hiveyard.engine.run_spec import RunSpec, Seconds, check_prompt


class TaskRequest(RunSpec, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A job for an agent. Null means: as the settings say. Paths are absolute and the host's. `timeout` is seconds,
    `memory_mib` MiB, `disk_gib` GiB."""

    prompt: str
    timeout: Seconds | None = None
    keep: bool = False

    def checked(self) -> TaskRequest:
        """Validate the request by itself and return it. Raises BadInput."""
        check_prompt(self.prompt, 'say what to do: hv run REPO -m "make the failing test pass"')
        self.check_spec()
        if self.agent == "acp":
            raise BadInput("an ACP program runs in a session, not in a task", hint="hv spawn --acp 'my-agent --acp'")
        return self


def from_json(data: object) -> TaskRequest:
    """Parse a request from JSON data. Raises BadInput."""
    return parsed(data, TaskRequest, "task request")
