"""Providers: they make machines, each of its own kind.

Programs of ours that are run with no other package (`python -I -S`) are in here, so this brings in nothing by itself.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hiveyard.machines.named import by_name, names

__all__ = ["by_name", "names"]

if not TYPE_CHECKING:  # else every name would do for a type checker

    def __getattr__(name: str) -> object:
        if name not in __all__:
            raise AttributeError(f"module 'hiveyard.machines' has no attribute {name!r}")
        return getattr(import_module("hiveyard.machines.named"), name)
