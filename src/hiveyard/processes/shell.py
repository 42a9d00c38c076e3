"""The process manager for one command, in the foreground: `start` returns when it has ended.

It runs within the call: whoever cancels that, or loses the machine, ends the process and all that it started, which is
`lost` then. So nothing outlives the call but its files. For the rest it is as `detached`: others can follow, stop, or
send to it while the call lasts, and a process that ended is told with its exit code and its outputs.
"""

from __future__ import annotations

from typing import Final

from hiveyard.core.commands import ProcessInfo, ProcessSpec
from hiveyard.core.context import of_processes
from hiveyard.core.errors import BadInput
from hiveyard.core.ports import Guest
from hiveyard.processes.detached import Detached

# Starts the runner: within the command that asks for it, whose end is its end.
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
