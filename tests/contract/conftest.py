"""Run the contract on each provider. The tests of guests share one machine of it."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from _pytest.mark.structures import ParameterSet

from hiveyard.core.ports import Guest
from hiveyard.kit.names import new_id
from tests.support.leaks import searched_directory

from .door import serve_door
from .providers import CASES, LOCAL, Case, Offer


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A ready machine with the directories that its host shares with it."""

    offer: Offer
    name: str
    session: Path
    door: Path

    @asynccontextmanager
    async def guest(self) -> AsyncIterator[Guest]:
        async with self.offer.provider.guest(self.name) as guest:
            yield guest


def parameters(cases: Mapping[str, Case]) -> list[ParameterSet]:
    return [
        pytest.param(name, marks=[getattr(pytest.mark, case.mark)] if case.mark else [], id=name)
        for name, case in cases.items()
    ]


@pytest.fixture(scope="session", params=parameters(CASES))
async def offer(request: pytest.FixtureRequest) -> AsyncIterator[Offer]:
    async with offered(request.param) as offer:
        yield offer


@pytest.fixture(scope="session", name="offer", params=parameters(LOCAL))
async def local_offer(request: pytest.FixtureRequest) -> AsyncIterator[Offer]:
    """The local providers, for features that use only guests: the contract of guests covers the clouds."""
    async with offered(request.param) as offer:
        yield offer


@asynccontextmanager
async def offered(name: str) -> AsyncIterator[Offer]:
    # There may be sockets in a machine's state directory, so its path must be short.
    with searched_directory() as scratch:
        async with CASES[name].open(scratch) as offer:
            readiness = await offer.provider.readiness()
            if not readiness.ok and not os.environ.get("CI"):
                pytest.skip(f"{offer.provider.name}: {readiness.detail}; {readiness.fix}")
            assert readiness.ok, readiness
            await offer.provider.prepare(offer.image, offer.shape)
            yield offer
            left = await offer.provider.names()
            assert not left, f"the tests left machines: {left}"


def only_local(offer: Offer) -> None:
    """Skip a test of features that only machines on this host have."""
    if not offer.local:
        pytest.skip(f"{offer.provider.name} has its machines elsewhere: no shared directory, no door, an open network")


@asynccontextmanager
async def machine(offer: Offer, fill: Callable[[Path], None] = lambda session: None) -> AsyncIterator[Place]:
    """Boot a machine for one test; `fill` puts files into its session directory before."""
    name = f"t-{new_id()}"
    with searched_directory() as scratch:
        session, door = Path(scratch, "session"), Path(scratch, "door")
        session.mkdir()
        door.mkdir()
        fill(session)
        spec = replace(offer.spec(), metadata={"why": "a test's own"})
        if offer.local:
            spec = replace(spec, session=session, door=door)
        try:
            await offer.provider.boot(name, spec)
            yield Place(offer=offer, name=name, session=session, door=door)
        finally:
            await offer.provider.terminate(name)


@pytest.fixture
async def place(offer: Offer) -> AsyncIterator[Place]:
    async with machine(offer) as place:
        yield place


@pytest.fixture(scope="session")
async def shared(offer: Offer) -> AsyncIterator[Place]:
    """The machine that all tests use which leave it unchanged."""
    async with machine(offer) as place:
        with serve_door(place.door, "the door of the shared machine"):
            yield place


@pytest.fixture
async def guest(shared: Place) -> AsyncIterator[Guest]:
    async with shared.guest() as guest:
        yield guest


@pytest.fixture
async def folder(guest: Guest) -> AsyncIterator[str]:
    """Create an empty directory in the guest for one test."""
    path = f"/session/{new_id()}"
    await guest.mkdir(path)
    yield path  # it goes with its machine
