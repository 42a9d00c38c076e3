"""Run machines of tier `namespace` with bubblewrap."""

from hiveyard.machines.bubblewrap.provider import BubblewrapProvider
from hiveyard.machines.bubblewrap.settings import BubblewrapSettings

__all__ = ["BubblewrapProvider", "BubblewrapSettings"]
