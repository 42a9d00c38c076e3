"""Ways from this host into machines, tried with a machine of every provider."""

from tests.contract.conftest import folder, guest, offer, place, shared

__all__ = ["folder", "guest", "offer", "place", "shared"]
