"""Providers that are more than their machines: they have something in the process that uses them."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import Protocol, runtime_checkable


@runtime_checkable
class Openable(Protocol):
    """A provider with a program of its own, or connections. Whatever is asked of it opens what it needs, and leaves it
    open."""

    def opened(self) -> AbstractAsyncContextManager[object]:
        """Its `capabilities` are known in the block. Blocks may nest and run side by side: at the end of the last one
        nothing of it is open here; machines stay, and it can be used again. Raises ProviderError."""
