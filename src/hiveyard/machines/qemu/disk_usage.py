"""Disk usage of VMs: disks and templates of images, machines and their snapshots, and leftovers of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from hiveyard.core.machines import StoredItem
from hiveyard.kit.shape import record, text
from hiveyard.machines.qemu.sparse_memory import BASES


def stored_items(state: Path, cache: Path) -> list[StoredItem]:
    """List the items in `state`, which belongs to this installation, and in `cache`, which others may share."""
    return [*_disks(cache / "disks"), *_templates(cache / "templates"), *_machines(state)]


def _disks(root: Path) -> Iterator[StoredItem]:
    for path in _directories(root):
        kind: Literal["left", "made"] = "left" if path.name.startswith(".") else "made"
        image = path.name.removeprefix(".new-").partition("-")[0]
        yield StoredItem(kind=kind, name=f"disk {path.name}", image=image, place=path)


def _templates(root: Path) -> Iterator[StoredItem]:
    for path in _directories(root):
        kind: Literal["left", "made"] = "left" if path.name.startswith(".") else "made"
        yield StoredItem(kind=kind, name=f"template {path.name}", image=_image(path), place=path)


def _image(template: Path) -> str:
    try:
        return text(record(json.loads((template / "template.json").read_bytes())).get("image"))
    except (OSError, ValueError):
        return ""


def _machines(state: Path) -> Iterator[StoredItem]:
    for path in _directories(state):
        if not path.name.startswith("."):
            yield StoredItem(kind="machine", name=path.name, place=path)
    if (bases := state / ".snapshots" / BASES).is_dir():
        yield StoredItem(kind="snapshot", name="memory that snapshots share", place=bases)
    for path in _directories(state / ".snapshots"):
        if path.name not in (".locks", BASES):
            yield StoredItem(kind="snapshot", name=path.name.rpartition("+")[2], place=path)


def _directories(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
