"""The start point of a session's next machine: an image, or a snapshot that it was forked from or rewound to."""

from __future__ import annotations

from typing import NamedTuple

from sqlalchemy import Connection

from hiveyard.core.commands import Command
from hiveyard.core.events import SessionForked
from hiveyard.core.machines import Shape
from hiveyard.core.ports import Guest
from hiveyard.engine.workspace import snapshot_files
from hiveyard.engine.workspace.directory import GUEST_REPO
from hiveyard.engine.workspace.session_files import SessionFiles
from hiveyard.store import lineage

_RENAME = """
cd -- "$1" || exit 0
export GIT_CONFIG_COUNT=1 GIT_CONFIG_KEY_0=safe.directory GIT_CONFIG_VALUE_0='*'
[[ $(<.git/HEAD) == "ref: refs/heads/$2" ]] || exit 0
for ((i = 0; i < 20; i++)); do git branch --quiet -m -- "$2" "$3" && exit; sleep 0.1; done
"""


class StartPoint(NamedTuple):
    """The start of a session's next machine. `snapshot` is the provider's name of a live snapshot to continue from.
    `rewound` is the snapshot whose files replace the session's. `image` and `shape` are those that the machine must
    have; if they are not set, those of the request."""

    snapshot: str | None = None
    rewound: str | None = None
    image: str = ""
    shape: Shape | None = None

    @staticmethod
    def of(conn: Connection, session: str) -> StartPoint:
        """Return a session's start point. Raises NotFound for a snapshot that was removed."""
        begin = lineage.pending_start(conn, session)
        if begin is None:
            return StartPoint()
        if isinstance(begin, SessionForked):
            if not begin.live:
                return StartPoint(image=begin.image)
            return StartPoint(snapshot_files.provider_name(begin.parent, begin.snapshot), image=begin.image)
        point = lineage.point(conn, session, begin.snapshot)
        shape = point.taken.shape if point.row.live else None
        return StartPoint(snapshot_files.snapshot_to_boot(session, point), point.row.id, point.taken.image, shape)

    async def restore_files(self, files: SessionFiles) -> None:
        """Restore the session's files from the snapshot, after a rewind. No machine may be using them."""
        if self.rewound is not None:
            await files.restore(self.rewound)


async def rename_branch(guest: Guest, before: str, after: str) -> None:
    """Rename the branch that is checked out in the guest; the agent may be running there. If another branch is checked
    out, or git is too busy, nothing changes: the work is collected from the branch that is checked out."""
    argv = ("bash", "-c", _RENAME, "hv", GUEST_REPO, before, after)
    await guest.run(Command(argv=argv, cwd="/"), timeout=60, limit=64 << 10)
