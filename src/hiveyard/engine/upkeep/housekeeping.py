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
_MAX_BUILD_SECONDS = 3600.0
"""Seconds after which a half-made file counts as left over, because no build takes so long."""
_RESUMABLE = (*AT_WORK, Phase.STOPPED)
_OPEN = (TaskState.PENDING, TaskState.ASSIGNED, TaskState.RUNNING)
When = Literal["", "prune", "prune --all"]


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    """An item with its size in bytes; shared bytes count for the first item that uses them. `freed_by` is the command
    that frees it: none, `prune`, or `prune --all`; `why` says why nothing needs it, or what needs it."""

    kind: str
    name: str
    size: int
    freed_by: When = ""
    why: str = ""


class Costs(msgspec.Struct, frozen=True, kw_only=True):
    """The sizes of all items in bytes; `free` is the free space on the disk of the sessions."""

    costs: list[Cost]
    total: int
    reclaimable: int
    reclaimable_all: int
    free: int


class Pruned(msgspec.Struct, frozen=True, kw_only=True):
    """The items that were freed, or would be. `failed` lists what could not be freed."""

    removed: list[Cost]
    freed: int
    dry_run: bool
    failed: list[str] = []


class _Item(NamedTuple):
    """An item on disk that is not measured yet."""

    kind: str
    name: str
    place: Path | None
    size: int = 0
    without: frozenset[str] = frozenset()
    freed_by: When = ""
    why: str = ""
    provider: Provider | None = None
    stored: StoredItem | None = None
    image: str = ""


class Housekeeping:
    """The service that reports disk usage and frees space."""

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
        """Free the items that nothing needs; with `all` also images that no session uses."""
        wanted = ("prune", "prune --all") if all else ("prune",)
        removable = [(item, cost) for item, cost in await self._measured() if cost.freed_by in wanted]
        removed, failed = [], []
        for item, cost in removable:
            try:
                if not dry_run:
                    await self._free(item)
                removed.append(cost)
            except (HiveyardError, OSError) as error:
                log.warning("%s %s could not be freed: %s", cost.kind, cost.name, error)
                failed.append(f"{cost.kind} {cost.name}: {error}")
        return Pruned(removed=removed, freed=sum(cost.size for cost in removed), dry_run=dry_run, failed=failed)

    async def _free(self, item: _Item) -> None:
        """Free an item, unless it is needed by now: it may have come into use since it was measured."""
        if item.image and item.image in await self._needed():
            return
        if item.kind == "image":
            await self._r.images.remove(item.image)
        elif item.kind == "left" and item.place is not None:
            await self._r.images.discard(item.place)
        elif item.stored is not None and item.stored.kind == "left":
            assert isinstance(item.provider, HasStorage)
            await item.provider.discard(item.stored)
        elif item.provider is not None:
            await item.provider.release_image(item.image)
        elif item.kind == "database":
            await self._r.event_log.store.shrink()
        elif item.place is not None:
            await anyio.to_thread.run_sync(remove_tree, item.place)

    # --- items -------------------------------------------------------------------------------------------------------

    async def _measured(self) -> list[tuple[_Item, Cost]]:
        items = [*self._images(await self._needed()), *await self._provider_items(), *await self._sessions()]
        items += await self._database()

        def measure() -> list[tuple[_Item, Cost]]:
            measure, used = Measure(), _paths_in_use()
            found = []
            for item in items:
                size = item.size
                if item.place is not None:
                    size = measure.tree(item.place, without=item.without)
                freed_by, why = item.freed_by, item.why
                if freed_by and item.place is not None and any(path.is_relative_to(item.place) for path in used):
                    freed_by, why = "", "a process of this host uses it"
                found.append((item, Cost(kind=item.kind, name=item.name, size=size, freed_by=freed_by, why=why)))
            return found

        return await anyio.to_thread.run_sync(measure)

    def _images(self, needed: set[str]) -> Iterator[_Item]:
        current = {image.name: image.id for image in reversed(self._r.images.list())}
        for image in self._r.images.list():
            freed_by, why = _image_status(image, needed, current)
            place = image.rootfs.parent
            yield _Item("image", f"{image.name} {image.id}", place, freed_by=freed_by, why=why, image=image.id)
        for left in self._r.images.remains():
            yield _Item("left", left.name, left, freed_by="prune" if _old(left) else "", why="an interrupted build")

    async def _provider_items(self) -> list[_Item]:
        needed, built = await self._needed(), {image.id for image in self._r.images.list()}
        found = []
        for provider in self._r.providers.values():
            for stored in await _stored_items(provider):
                freed_by, why = _stored_status(stored, needed, built)
                kind = f"{provider.name} {stored.kind}"
                place = {"place": stored.place, "size": stored.size}
                status = {"freed_by": freed_by, "why": why, "image": stored.image if stored.kind == "made" else ""}
                found.append(_Item(kind, stored.name, **place, **status, provider=provider, stored=stored))  # type: ignore[arg-type]
        return found

    async def _sessions(self) -> list[_Item]:
        known = {row.id: row.slug for row in await self._r.event_log.read(views.sessions)}
        found = []
        for root in sorted(self._r.sessions.iterdir()):
            name = known.get(root.name, "not in the journal")
            found.append(_Item("session", f"{root.name} {name}", root, without=frozenset(["snapshots"])))
            if (root / "snapshots").is_dir():
                found += [
                    _Item("snapshot", f"{path.name} of {name}", path) for path in sorted((root / "snapshots").iterdir())
                ]
        return found

    async def _database(self) -> list[_Item]:
        """Return the journal's file and, as an item of its own, the free pages in it that can be released."""
        space = await self._r.event_log.store.space()
        if space is None:
            return []
        found = [_Item("database", space.path.name, None, size=space.size - space.free)]
        if space.free:
            why = "they contained events of removed sessions"
            free = _Item("database", f"{space.path.name}, free pages", None, space.free, freed_by="prune", why=why)
            found.append(free)
        return found

    async def _needed(self) -> set[str]:
        """Return the ids and names of images that a machine uses, or that a task, session or snapshot will use."""
        ids = {
            machine.image
            for provider in self._r.providers.values()
            if (await provider.readiness()).ok
            for machine in await provider.list()
        }
        names = await self._r.event_log.read(self._referenced_images)
        for name in names:
            with suppress(HiveyardError):
                found = self._r.images.find(name)
                ids |= {found.id} if found is not None else set()
        return ids | names

    def _referenced_images(self, conn: Connection) -> set[str]:
        default = self._r.settings.image
        images = {str(task.request.get("image") or default) for task in views.tasks(conn, states=_OPEN)}
        for row in views.sessions(conn, phases=_RESUMABLE, own=True):
            images.add(str(row.request.get("image") or default))
            begin = lineage.pending_start(conn, row.id) if row.phase in AT_WORK else None
            if isinstance(begin, SessionForked):
                images.add(begin.image)
        for snapshot in views.snapshots(conn):
            images.add(lineage.point(conn, snapshot.session, snapshot.id).taken.image)
        return images


def _image_status(image: Image, needed: set[str], current: dict[str, str]) -> tuple[When, str]:
    if image.id in needed:
        return "", "sessions use it"
    if current.get(image.name) != image.id:
        return "prune", "a newer image with its name was built"
    return "prune --all", "no session uses it"


def _stored_status(stored: StoredItem, needed: set[str], built: set[str]) -> tuple[When, str]:
    if stored.kind == "left":
        old = stored.place is not None and _old(stored.place)
        return ("prune", "half made") if old else ("", "being made")
    if stored.kind != "made" or stored.image in needed:
        return "", ""
    if stored.image not in built and stored.place is not None:
        return "prune", "its image no longer exists"
    return "prune --all", "no session uses its image"


def _old(path: Path) -> bool:
    try:
        return time.time() - max(path.stat().st_mtime, path.stat().st_ctime) > _MAX_BUILD_SECONDS
    except FileNotFoundError:
        return False


async def _stored_items(provider: Provider) -> list[StoredItem]:
    if not isinstance(provider, HasStorage):
        return []
    try:
        return await provider.stored_items()
    except HiveyardError as error:
        log.info("the provider %s cannot list its files: %s", provider.name, error.message)
        return []


def _paths_in_use() -> set[Path]:
    """Return the paths that a process of this host has open or mounted."""
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
