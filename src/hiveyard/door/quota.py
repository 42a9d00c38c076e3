"""What all doors of one process have together: so much of it, and whoever takes more than is left gets none."""

from __future__ import annotations


class Quota:
    """`most` of something, of which `taken` are in use."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.taken = 0

    def take(self, number: int = 1) -> bool:
        if self.taken + number > self.most:
            return False
        self.taken += number
        return True

    def leave(self, number: int = 1) -> None:
        self.taken -= number
