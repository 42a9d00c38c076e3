"""The process manager whose processes have a terminal that people can attach to: windows of a tmux server in the guest.

Each process is a session of its name on the guest user's own tmux server, so `tmux attach -t agent` finds the one that
is called `agent`. The window runs the same runner as `detached` uses: pid, exit code, outputs and stopping are the
same. A process that asks for a terminal has the window's, and its stdout is what it shows there; of any other the
window shows the outputs. The server is tied to nobody: it outlives connections, commands and the daemon.
"""

from __future__ import annotations

from hiveyard.processes import scripts
from hiveyard.processes.detached import Detached


class Tmux(Detached):
    """A ProcessManager. It holds no state; one object serves all guests. Needed in the image: tmux."""

    name = "tmux"
    _launch = scripts.LAUNCH_TMUX
    _terminals = True
