"""Use machines of an external program, in any language, that speaks JSON lines on its stdin and stdout."""

from hiveyard.machines.external.provider import ExternalProvider
from hiveyard.machines.external.settings import ExternalSettings

__all__ = ["ExternalProvider", "ExternalSettings"]
