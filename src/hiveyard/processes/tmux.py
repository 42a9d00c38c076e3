"""Run processes in windows of a tmux server in the guest, so that users can attach to their terminals.

Each process is a tmux session with its name on the guest user's own server, so `tmux attach -t agent` attaches to the
process `agent`. The window runs the same runner as `detached`, so pid, exit code, outputs and stopping work in the same
way. A process that requests a terminal gets the window's, and its stdout is what it prints there. For other processes
the window shows the outputs. The server outlives connections, commands and the daemon.
"""

from __future__ import annotations

from hiveyard.processes import scripts
from hiveyard.processes.detached import Detached


class Tmux(Detached):
    """A ProcessManager. It holds no state; one object serves all guests. Needed in the image: tmux."""

    name = "tmux"
    _launch = scripts.LAUNCH_TMUX
    _terminals = True
