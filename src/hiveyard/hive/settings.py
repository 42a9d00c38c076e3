"""Settings of the hive."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class HiveSettings:
    """Limits of the hive, and how its members call the operator."""

    asleep_after: float = 900.0
    """Seconds without work after which a member gives its machine back; 0 means never."""
    max_hops: int = 12
    """Messages of members that may follow from each other before the operator is asked."""
    messages_per_minute: int = 10
    """Messages that two members may send each other in a minute before the operator is asked."""
    operator: str = "the operator"
    """Name of the person whom the members work for."""
    pronouns: str = "they/them"
    """Pronouns of that person."""

    def __post_init__(self) -> None:
        if self.asleep_after < 0:
            raise ValueError(f"asleep_after is {self.asleep_after:g}: it must be 0 or more")
        for name in ("max_hops", "messages_per_minute"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be more than 0")
