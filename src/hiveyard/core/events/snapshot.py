"""Facts about snapshots: points of a session to go back to and to fork from."""

from __future__ import annotations

from hiveyard.core.events.body import Body
from hiveyard.core.machines import Shape


class SnapshotTaken(Body, frozen=True, kw_only=True, tag="snapshot.taken"):
    """The session as it stood can be gone back to and forked from. `live` has memory and processes, else it is the
    files alone. `seconds` is how long the machine stood still, `size` the bytes it took on disk, `after_turn` the
    number of the last turn that had ended, `turn` of the one at work. `conversation` is the agent's own name of what it
    remembers. `image` is the machine's, and `shape`, where that is known.
    The feed counts from byte `feed_offset`; None: from where it has been read to. `passing`: it was made for
    a fork alone, and goes when its children have begun. `by_itself`: at the end of a turn, and goes when there are
    enough later ones."""

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
    """A snapshot and what only it needed are gone."""

    snapshot: str


SnapshotEvent = SnapshotTaken | SnapshotRemoved
