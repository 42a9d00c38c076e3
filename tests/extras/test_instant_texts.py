"""Texts that cannot be sent to Instant."""

from __future__ import annotations

from uuid import uuid4

import pytest

from hiveyard.core.errors import BadInput
from hiveyard.extras.instant import Instant, InstantSettings
from hiveyard.kit.secret import Secret

pytestmark = pytest.mark.anyio


async def test_half_of_a_surrogate_pair_is_told_before_anything_is_asked() -> None:
    settings = InstantSettings(url="http://127.0.0.1:9", patience=0.01)
    async with Instant(Secret("Zq8TestSecret-token"), settings) as instant:
        with pytest.raises(BadInput, match="is no title"):
            await instant.create_temporary("a\ud800")
        with pytest.raises(BadInput, match="is no title"):
            await instant.rename(uuid4(), "\udc00b")
        for document in ({"a": ["\ud83d"]}, {"\ud83d": 1}):
            with pytest.raises(BadInput, match=r"^perms cannot be JSON"):
                await instant.set_perms(uuid4(), document)
            with pytest.raises(BadInput, match=r"^schema cannot be JSON"):
                await instant.create_temporary("fine", schema=document)
