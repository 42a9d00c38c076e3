"""Hiveyard runs coding agents in isolated machines."""

__version__ = "0.1.0"
