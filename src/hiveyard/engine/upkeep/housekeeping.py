"""Report disk usage, and free what nothing needs.

Files that a session, a task or a snapshot needs, or that a process of this host has open or mounted, are never freed.
Installations that share a cache share images: an installation rebuilds what another one made of an image.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Literal, NamedTuple

import anyio.to_thread
import msgspec
from sqlalchemy import Connection

from hiveyard.core.errors import HiveyardError
from hiveyard.core.events import SessionForked
from hiveyard.core.machines import Image, StoredItem
from hiveyard.core.ports import HasStorage, Provider
from hiveyard.core.states import AT_WORK, Phase, TaskState
from hiveyard.engine.resources import Resources
from hiveyard.kit.disk_usage import Measure
from hiveyard.kit.trees import remove_tree
from hiveyard.store import lineage, views

log = logging.getLogger(__name__)
_SETTLED = 3600.0
"""Seconds after which what is half made is of nobody who still works on it."""
_CAN_GO_ON = (*AT_WORK, Phase.STOPPED)
_OPEN = (TaskState.PENDING, TaskState.ASSIGNED, TaskState.RUNNING)
When = Literal["", "prune", "prune --all"]


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    """Something with the bytes that it alone takes, or that it was the first to take of what is shared. `freed_by` is
    what would free it: nothing, `prune`, or `prune --all`; `why` says why nothing needs it, or who does."""

    kind: str
    name: str
    size: int
    freed_by: When = ""
    why: str = ""


class Costs(msgspec.Struct, frozen=True, kw_only=True):
    """All of it. Sizes are bytes; `free` is what the disk of the sessions has left."""

    costs: list[Cost]
    total: int
    reclaimable: int
    reclaimable_all: int
    free: int


class Pruned(msgspec.Struct, frozen=True, kw_only=True):
    """The things that were freed, or would be. `failed` lists what could not be freed."""

    removed: list[Cost]
    freed: int
    dry_run: bool
    failed: list[str] = []


class _Thing(NamedTuple):
    """Something on disk, not yet measured."""

    kind: str
    name: str
    place: Path | None
    size: int = 0
    without: frozenset[str] = frozenset()
    freed_by: When = ""
    why: str = ""
    provider: Provider | None = None
    holding: StoredItem | None = None
    image: str = ""


class Housekeeping:
    """Counts and frees."""

    def __init__(self, resources: Resources) -> None:
        self._r = resources

    async def costs(self) -> Costs:
        costs = [cost for _, cost in await self._measured()]
        return Costs(
            costs=costs,
            total=sum(cost.size for cost in costs),
            reclaimable=sum(cost.size for cost in costs if cost.freed_by == "prune"),
            reclaimable_all=sum(cost.size for cost in costs if cost.freed_by),
            free=shutil.disk_usage(self._r.sessions).free,
        )

    async def prune(self, *, all: bool = False, dry_run: bool = False) -> Pruned:
        """Free what nothing needs; with `all` also images that no session uses."""
        wanted = ("prune", "prune --all") if all else ("prune",)
        doomed = [(thing, cost) for thing, cost in await self._measured() if cost.freed_by in wanted]
        removed, failed = [], []
        for thing, cost in doomed:
            try:
                if not dry_run:
                    await self._free(thing)
                removed.append(cost)
            except (HiveyardError, OSError) as error:
                log.warning("%s %s could not be freed: %s", cost.kind, cost.name, error)
                failed.append(f"{cost.kind} {cost.name}: {error}")
        return Pruned(removed=removed, freed=sum(cost.size for cost in removed), dry_run=dry_run, failed=failed)

    async def _free(self, thing: _Thing) -> None:
        """Look once more: what was of no use when it was counted may be used by now."""
        if thing.image and thing.image in await self._needed():
            return
        if thing.kind == "image":
            await self._r.images.remove(thing.image)
        elif thing.kind == "left" and thing.place is not None:
            await self._r.images.discard(thing.place)
        elif thing.holding is not None and thing.holding.kind == "left":
            assert isinstance(thing.provider, HasStorage)
            await thing.provider.discard(thing.holding)
        elif thing.provider is not None:
            await thing.provider.release_image(thing.image)
        elif thing.kind == "database":
            await self._r.event_log.store.shrink()
        elif thing.place is not None:
            await anyio.to_thread.run_sync(remove_tree, thing.place)

    # --- what there is -----------------------------------------------------------------------------------------------

    async def _measured(self) -> list[tuple[_Thing, Cost]]:
        things = [*self._images(await self._needed()), *await self._held(), *await self._sessions()]
        things += await self._database()

        def measure() -> list[tuple[_Thing, Cost]]:
            measure, used = Measure(), _used()
            found = []
            for thing in things:
                size = thing.size
                if thing.place is not None:
                    size = measure.tree(thing.place, without=thing.without)
                freed_by, why = thing.freed_by, thing.why
                if freed_by and thing.place is not None and any(path.is_relative_to(thing.place) for path in used):
                    freed_by, why = "", "a process of this host uses it"
                found.append((thing, Cost(kind=thing.kind, name=thing.name, size=size, freed_by=freed_by, why=why)))
            return found

        return await anyio.to_thread.run_sync(measure)

    def _images(self, needed: set[str]) -> Iterator[_Thing]:
        current = {image.name: image.id for image in reversed(self._r.images.list())}
        for image in self._r.images.list():
            freed_by, why = _fate(image, needed, current)
            place = image.rootfs.parent
            yield _Thing("image", f"{image.name} {image.id}", place, freed_by=freed_by, why=why, image=image.id)
        for left in self._r.images.remains():
            yield _Thing(
                "left", left.name, left, freed_by="prune" if _old(left) else "", why="a build that was cut off"
            )

    async def _held(self) -> list[_Thing]:
        needed, built = await self._needed(), {image.id for image in self._r.images.list()}
        found = []
        for provider in self._r.providers.values():
            for holding in await _holdings(provider):
                freed_by, why = _fate_of(holding, needed, built)
                kind = f"{provider.name} {holding.kind}"
                place = {"place": holding.place, "size": holding.size}
                fate = {"freed_by": freed_by, "why": why, "image": holding.image if holding.kind == "made" else ""}
                found.append(_Thing(kind, holding.name, **place, **fate, provider=provider, holding=holding))  # type: ignore[arg-type]
        return found

    async def _sessions(self) -> list[_Thing]:
        known = {row.id: row.slug for row in await self._r.event_log.read(views.sessions)}
        found = []
        for root in sorted(self._r.sessions.iterdir()):
            name = known.get(root.name, "not in the journal")
            found.append(_Thing("session", f"{root.name} {name}", root, without=frozenset(["snapshots"])))
            if (root / "snapshots").is_dir():
                found += [
                    _Thing("snapshot", f"{path.name} of {name}", path)
                    for path in sorted((root / "snapshots").iterdir())
                ]
        return found

    async def _database(self) -> list[_Thing]:
        """The journal's file, and apart from it the free pages that it could do without."""
        space = await self._r.event_log.store.space()
        if space is None:
            return []
        found = [_Thing("database", space.path.name, None, size=space.size - space.free)]
        if space.free:
            why = "events of removed sessions were there"
            free = _Thing("database", f"{space.path.name}, free pages", None, space.free, freed_by="prune", why=why)
            found.append(free)
        return found

    async def _needed(self) -> set[str]:
        """Ids of images that something stands on, or will be made of when it goes on."""
        ids = {
            machine.image
            for provider in self._r.providers.values()
            if (await provider.readiness()).ok
            for machine in await provider.list()
        }
        names = await self._r.event_log.read(self._wished)
        for name in names:
            with suppress(HiveyardError):
                found = self._r.images.find(name)
                ids |= {found.id} if found is not None else set()
        return ids | names

    def _wished(self, conn: Connection) -> set[str]:
        default = self._r.settings.image
        wished = {str(task.request.get("image") or default) for task in views.tasks(conn, states=_OPEN)}
        for row in views.sessions(conn, phases=_CAN_GO_ON, own=True):
            wished.add(str((row.request or {}).get("image") or default))
            begin = lineage.pending_start(conn, row.id) if row.phase in AT_WORK else None
            if isinstance(begin, SessionForked):
                wished.add(begin.image)
        for snapshot in views.snapshots(conn):
            wished.add(lineage.point(conn, snapshot.session, snapshot.id).taken.image)
        return wished


def _fate(image: Image, needed: set[str], current: dict[str, str]) -> tuple[When, str]:
    if image.id in needed:
        return "", "sessions use it"
    if current.get(image.name) != image.id:
        return "prune", "a newer one of its name was built"
    return "prune --all", "no session uses it"


def _fate_of(holding: StoredItem, needed: set[str], built: set[str]) -> tuple[When, str]:
    if holding.kind == "left":
        old = holding.place is not None and _old(holding.place)
        return ("prune", "half made") if old else ("", "being made")
    if holding.kind != "made" or holding.image in needed:
        return "", ""
    if holding.image not in built and holding.place is not None:
        return "prune", "its image is not there any more"
    return "prune --all", "no session uses its image"


def _old(path: Path) -> bool:
    try:
        return time.time() - max(path.stat().st_mtime, path.stat().st_ctime) > _SETTLED
    except FileNotFoundError:
        return False


async def _holdings(provider: Provider) -> list[StoredItem]:
    if not isinstance(provider, HasStorage):
        return []
    try:
        return await provider.stored_items()
    except HiveyardError as error:
        log.info("%s cannot tell what it holds: %s", provider.name, error.message)
        return []


def _used() -> set[Path]:
    """Places that some process has open, or mounted in a world of its own."""
    found: set[Path] = set()
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            for entry in os.scandir(process / "fd"):
                with suppress(OSError):
                    found.add(Path(entry.path).readlink())
        with suppress(OSError):
            for line in (process / "mountinfo").read_text().splitlines():
                fields = line.split()
                found |= {Path(fields[3]), Path(fields[4])}
    return {path for path in found if path.is_absolute() and len(path.parts) > 2}
