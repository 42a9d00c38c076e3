"""Ways from this host into machines, tried with a machine of every provider."""

from tests.contract.conftest import guest, offer, place, shared

__all__ = ["guest", "offer", "place", "shared"]
