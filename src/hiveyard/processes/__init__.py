"""Process managers: they keep a process alive in a guest when nobody is connected."""

from __future__ import annotations

from typing import cast

from hiveyard import plugins
from hiveyard.core.errors import BadInput
from hiveyard.core.ports import ProcessManager
from hiveyard.processes.detached import Detached
from hiveyard.processes.shell import Shell
from hiveyard.processes.tmux import Tmux

_MANAGERS: dict[str, ProcessManager] = {manager.name: manager for manager in (Detached(), Tmux(), Shell())}


def by_name(name: str) -> ProcessManager:
    """The process manager called `name`, ours or a plugin's. Raises BadInput, BadPlugin."""
    if name in _MANAGERS:
        return _MANAGERS[name]
    made = plugins.make("hiveyard.process_managers", name, _MANAGERS)
    if made is None:
        known = ", ".join([*_MANAGERS, *plugins.names("hiveyard.process_managers", _MANAGERS)])
        raise BadInput(f"no process manager is called {name[:80]!r}", hint=f"one of: {known}")
    return cast(ProcessManager, made)
