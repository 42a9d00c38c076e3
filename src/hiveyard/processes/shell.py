"""Run one process in the foreground: `start` returns when it has ended.

The process and everything that it started end with the call, also if it is cancelled or the machine is lost; then the
process is `lost`. Its files remain. Everything else is as with `detached`: other callers can follow, stop or send to it
during the call, and an ended process has an exit code and outputs.
"""

from __future__ import annotations

from typing import Final

from hiveyard.core.commands import ProcessInfo, ProcessSpec
from hiveyard.core.context import of_processes
from hiveyard.core.errors import BadInput
from hiveyard.core.ports import Guest
from hiveyard.processes.detached import Detached

# Starts the runner inside the command that requests it, so that both end together.
_LAUNCH: Final = r"""
launch() { ( cd /; exec env "HIVEYARD_RUNNER=$f" setsid --wait bash -c "$1" hv "$dir" </dev/null >/dev/null 2>&1 ); }
"""


@of_processes
class Shell(Detached):
    """A ProcessManager. It holds no state; one object serves all guests."""

    name = "shell"
    _launch = _LAUNCH
    _start_timeout = None

    async def start(self, guest: Guest, spec: ProcessSpec) -> ProcessInfo:
        if spec.instances != 1:
            raise BadInput(f"the shell process manager runs one instance of a process, not {spec.instances}")
        await super().start(guest, spec)
        await self._ended(guest, spec.name)
        return await self.get(guest, spec.name)
