"""Create machines. Each provider makes machines of one kind.

This package also contains programs that run without other packages (`python -I -S`), so importing it imports nothing
else.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hiveyard.machines.named import by_name, names

__all__ = ["by_name", "names"]

if not TYPE_CHECKING:  # otherwise a type checker would accept every name

    def __getattr__(name: str) -> object:
        if name not in __all__:
            raise AttributeError(f"module 'hiveyard.machines' has no attribute {name!r}")
        return getattr(import_module("hiveyard.machines.named"), name)
