"""The request for a session."""

from __future__ import annotations

import re
from typing import Annotated, Literal

import msgspec

from hiveyard.core.errors import BadInput
from hiveyard.core.parsing import parsed
from hiveyard.engine.run_spec import RunSpec, check_prompt
from hiveyard.store.views import SessionRow

Port = Annotated[int, msgspec.Meta(ge=1024, le=65535)]
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?\Z")


class SpawnRequest(RunSpec, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A request for a session. Without `prompt` the agent waits for the user. `port` is the host port for ssh, on the
    loopback. `snapshots` says when snapshots are taken automatically. With `live` the agent runs without a terminal,
    in a process that stays between turns; agents without a terminal of their own always do. With `ask`, which includes
    `live`, it asks for permission before it changes or runs anything. With `wait` it waits in line for memory, where it
    would be refused else."""

    name: str | None = None
    prompt: str | None = None
    port: Port | None = None
    snapshots: Literal["turns"] | None = None
    live: bool = False
    ask: bool = False
    wait: bool = False

    def checked(self) -> SpawnRequest:
        """Validate the fields by themselves and return the request. Raises BadInput."""
        self.check_spec()
        if self.prompt is not None:
            check_prompt(self.prompt, "without --prompt the agent waits for you")
        if self.name is not None:
            check_name(self.name)
        return self


def check_name(name: str) -> None:
    """Raise BadInput for an invalid session name."""
    if not _NAME.match(name):
        raise BadInput(f"{name[:80]!r} is not a valid session name: use 1 to 40 of a-z, 0-9 and -, no - at the ends")


def spawn_from_json(data: object) -> SpawnRequest:
    """Parse a request from plain data. Raises BadInput."""
    return parsed(data, SpawnRequest, "spawn request")


def session_request(session: SessionRow) -> SpawnRequest:
    """Return the session's request as of now. Its budget may be 0, which no request can ask for: forks took the rest of
    it. Raises BadInput."""
    asked = dict(session.request)
    budget = asked.get("budget_usd")
    if budget is None or budget > 0:
        return spawn_from_json(asked)
    del asked["budget_usd"]
    return msgspec.structs.replace(spawn_from_json(asked), budget_usd=0.0)
