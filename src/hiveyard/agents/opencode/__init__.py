"""opencode: headless, in a live conversation, and in its own terminal."""

from hiveyard.agents.opencode.adapter import Opencode

__all__ = ["Opencode"]
