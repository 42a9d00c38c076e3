"""Orchestrators with real bubblewrap machines. After each test, all output is searched for the secret."""

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import anyio
import msgspec
import pytest

from hiveyard.library import RuntimeEvent
from hiveyard.machines.bubblewrap import BubblewrapProvider
from tests.contract.conftest import local_offer
from tests.library.parts import KEY, PLACEHOLDER, Yards
from tests.support.leaks import Said, listening, searched_directory

__all__ = ["local_offer"]


@pytest.fixture(scope="session")
def works() -> None:
    with searched_directory() as scratch:
        readiness = anyio.run(BubblewrapProvider(Path(scratch, "m"), Path(scratch, "c")).readiness)
    if not readiness.ok and not os.environ.get("CI"):
        pytest.skip(f"bubblewrap: {readiness.detail}; {readiness.fix}")
    assert readiness.ok, readiness


@pytest.fixture
def said() -> Iterator[Said]:
    """Collect the output of a test: log lines, events, and errors that it adds."""
    with listening() as said:
        yield said
    said.none_of([KEY, PLACEHOLDER])


@pytest.fixture
async def yards(works: None, said: Said, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Yards]:
    """A place for machines; at the end there is none, and no scratch directory, unless the test says so."""
    with searched_directory() as scratch:
        temporary = Path(scratch, "t")
        temporary.mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(temporary))
        yards = Yards(scratch)

        def hear(event: RuntimeEvent) -> None:
            yards.events.append(event)
            said.add(repr(event) + msgspec.json.encode(event).decode())

        yards.hear = hear
        yield yards
        left = await yards.provider.names()
        for name in left:
            await yards.provider.terminate(name)
        assert left == yards.expected
        if not left:
            assert list(temporary.iterdir()) == []
