"""Machines of tier `vm` on somebody else's host, by Morph Cloud."""

from hiveyard.machines.morph.provider import MorphProvider, morph_image
from hiveyard.machines.morph.settings import MorphSettings

__all__ = ["MorphProvider", "MorphSettings", "morph_image"]
