"""Events of snapshots: states of a session to rewind to and to fork from."""

from __future__ import annotations

from hiveyard.core.events.body import Body
from hiveyard.core.machines import Shape


class SnapshotTaken(Body, frozen=True, kw_only=True, tag="snapshot.taken"):
    """A snapshot of the session was taken.

    With `live` it contains memory and processes, otherwise only the files. `seconds` is how long the machine was
    paused, `size` the bytes on disk, `after_turn` the last turn that had ended, `turn` the turn in progress.
    `conversation` is the agent's own id of its conversation. `image` and `shape` are the machine's, if known. The feed
    is read from byte `feed_offset`; None means from the position that was reached. `passing`: it was made for a fork
    only, and is removed when the children have started. `by_itself`: it was made at the end of a turn, and is removed
    when there are enough later ones."""

    snapshot: str
    name: str
    live: bool
    seconds: float = 0.0
    size: int = 0
    after_turn: int = 0
    turn: int | None = None
    conversation: str = ""
    image: str = ""
    shape: Shape | None = None
    feed_offset: int | None = None
    passing: bool = False
    by_itself: bool = False


class SnapshotRemoved(Body, frozen=True, kw_only=True, tag="snapshot.removed"):
    """A snapshot, and everything that only it needed, was removed."""

    snapshot: str


SnapshotEvent = SnapshotTaken | SnapshotRemoved
