"""Fixtures for access to machines: a machine of every provider."""

from tests.contract.conftest import folder, guest, local_offer, place, shared

__all__ = ["folder", "guest", "local_offer", "place", "shared"]
