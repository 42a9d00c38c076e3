"""A quota shared by all doors of this process."""

from __future__ import annotations


class Quota:
    """A quota of `most` units, of which `taken` are in use."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.taken = 0

    def take(self, number: int = 1) -> bool:
        """Take units. Return False, and take none, if fewer are left."""
        if self.taken + number > self.most:
            return False
        self.taken += number
        return True

    def release(self, number: int = 1) -> None:
        self.taken -= number
