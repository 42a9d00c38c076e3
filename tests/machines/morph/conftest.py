"""Machines of the fake Morph Cloud, for suites that others pass on this host."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.contract.conftest import guest, offered, shared
from tests.contract.providers import Offer

__all__ = ["guest", "shared"]


@pytest.fixture(scope="session")
async def offer() -> AsyncIterator[Offer]:
    async with offered("morph") as offer:
        yield offer
