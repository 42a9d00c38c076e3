"""The Agent Client Protocol (agentclientprotocol.com): a driver for every program that speaks it."""

from hiveyard.agents.acp.driver import QUIRKS, Acp

__all__ = ["QUIRKS", "Acp"]
