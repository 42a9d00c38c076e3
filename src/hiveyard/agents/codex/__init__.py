"""codex: headless and in a live conversation."""

from hiveyard.agents.codex.adapter import Codex

__all__ = ["Codex"]
