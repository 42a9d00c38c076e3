"""The secret values of a session's request: those of its environment variables, and of its tool servers' headers and
variables.

The journal has `***` in their place. The values are in a file of the session's directory that only the user can read
and that no guest sees and no archive has. The file is written before the journal names what is in it."""

from __future__ import annotations

from typing import TypeVar

import msgspec

from hiveyard.core.errors import BadInput
from hiveyard.core.parsing import parsed
from hiveyard.core.tools import ToolServer
from hiveyard.engine.run_spec import RunSpec
from hiveyard.engine.workspace.directory import Workspace
from hiveyard.kit.files import write_atomic
from hiveyard.kit.secret import Secret

R = TypeVar("R", bound=RunSpec)


class _Values(msgspec.Struct, kw_only=True, frozen=True):
    """The content of the file. Servers are complete, so that a value belongs to the address that it was given for."""

    env: dict[str, Secret] = {}
    mcp: dict[str, ToolServer] = {}


def keep_values(
    workspace: Workspace, *, env: dict[str, Secret] | None = None, mcp: dict[str, ToolServer] | None = None
) -> None:
    """Store values beside those that are stored already; those of the same name are replaced. Raises OSError."""
    if not env and not mcp:
        return
    stored = _read(workspace)
    new = _Values(env={**stored.env, **(env or {})}, mcp={**stored.mcp, **(mcp or {})})
    write_atomic(workspace.values_file, msgspec.json.encode(new, enc_hook=Secret.reveal), mode=0o600)


def with_values(workspace: Workspace, request: R) -> R:
    """Return a stored request with its secret values. Raises BadInput for a value that this host does not have, because
    the session was imported; SessionDamaged."""
    if not request.env and not request.mcp:
        return request
    stored = _read(workspace)
    env = {name: stored.env.get(name) for name in request.env or {}}
    if missing := next((name for name, value in env.items() if value is None), None):
        raise _lost(f"the value of the variable {missing}", f"--env {missing}", workspace)
    mcp = {}
    for name, server in (request.mcp or {}).items():
        mcp[name] = kept = stored.mcp.get(name, server)
        if kept is server and server.values:
            raise _lost(f"the values of the tool server {name}", "--mcp-file FILE", workspace)
    return msgspec.structs.replace(request, env=env or None, mcp=mcp or None)


def _read(workspace: Workspace) -> _Values:
    try:
        return parsed(msgspec.json.decode(workspace.values_file.read_bytes()), _Values, "file of values")
    except FileNotFoundError:
        return _Values()
    except OSError as error:
        raise workspace.damaged(f"values.json cannot be read: {error.strerror}") from None
    except (msgspec.MsgspecError, BadInput):
        raise workspace.damaged("values.json is invalid") from None


def _lost(what: str, option: str, workspace: Workspace) -> BadInput:
    return BadInput(
        f"this host does not have {what}: archives have none", hint=f"hv resume {workspace.root.name} {option}"
    )
