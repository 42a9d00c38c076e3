"""Claude Code: headless, in a live conversation, and in its own terminal."""

from hiveyard.agents.claude.adapter import Claude

__all__ = ["Claude"]
