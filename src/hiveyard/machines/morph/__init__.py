"""Machines of tier `vm` on the hosts of Morph Cloud.

Everything that is created carries a unique label: when an answer is lost, the label is searched for before anything is
created again. Terminals go by ssh through the service's gateway, with the instance's own key, to a host key that has to
be configured.
"""

from hiveyard.machines.morph.provider import MorphProvider, morph_image
from hiveyard.machines.morph.settings import MorphSettings

__all__ = ["MorphProvider", "MorphSettings", "morph_image"]
