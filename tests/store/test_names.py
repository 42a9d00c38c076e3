"""Slugs and ids that users type."""

from __future__ import annotations

import pytest

from hiveyard.core.errors import Ambiguous, NotFound
from hiveyard.store import views
from hiveyard.store.database import Store
from hiveyard.store.names import free_slug, resolve

from .stories import beginning

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
async def four(store: Store) -> None:
    await store.append("gamma1", *beginning("fix-it"))
    await store.append("gamma2", *beginning("fix-it-2"))
    await store.append("k", *beginning("gamma2"))
    await store.append("z", *beginning("gam"))


@pytest.mark.parametrize(
    ("ref", "key"),
    [("gamma1", "gamma1"), ("fix-it", "gamma1"), ("gam", "z"), ("gamma2", "gamma2"), ("k", "k")],
)
async def test_a_reference_is_an_id_or_a_slug_or_the_start_of_an_id(store: Store, ref: str, key: str) -> None:
    assert await store.read(lambda conn: resolve(conn, ref)) == key


async def test_an_ambiguous_start_is_reported_with_the_candidates(store: Store) -> None:
    with pytest.raises(Ambiguous, match=r"gamma1 \(fix-it\), gamma2 \(fix-it-2\)") as caught:
        await store.read(lambda conn: resolve(conn, "ga"))
    assert caught.value.hint == "hv list -a, or hv ps -a"


@pytest.mark.parametrize("ref", ["", "nothing", "%", "_", "fix-i", "GAMMA1"])
async def test_an_unknown_reference_is_not_found(store: Store, ref: str) -> None:
    with pytest.raises(NotFound) as caught:
        await store.read(lambda conn: resolve(conn, ref))
    assert caught.value.code == "not_found" and caught.value.hint == "hv list -a, or hv ps -a"


@pytest.mark.parametrize(("wanted", "free"), [("new", "new"), ("fix-it", "fix-it-3"), ("fix", "fix")])
async def test_a_slug_that_is_taken_gets_a_number(store: Store, wanted: str, free: str) -> None:
    assert await store.read(lambda conn: free_slug(conn, wanted)) == free


async def test_lists_are_newest_first_and_can_be_cut(store: Store) -> None:
    assert [row.id for row in await store.read(lambda conn: views.tasks(conn, limit=2))] == ["z", "k"]
    assert [row.id for row in await store.read(views.sessions)] == ["z", "k", "gamma2", "gamma1"]
    assert await store.read(lambda conn: views.tasks(conn, states=[])) == []
