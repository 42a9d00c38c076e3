"""goose: headless and in a live conversation."""

from hiveyard.agents.goose.adapter import Goose

__all__ = ["Goose"]
