"""Store templates. A template is an image that was booted once and frozen with its memory; machines are forks of it.

    <cache>/templates/<key>-<id>/memory             the guest's memory, a sparse file that forks map copy-on-write
    <cache>/templates/<key>-<id>/state              the state of its devices, half a megabyte
    <cache>/templates/<key>-<id>/disk.qcow2         the changes of the boot to the image's disk
    <cache>/templates/<key>-<id>/session.raw        an empty disk for a session
    <cache>/templates/<key>-<id>/blank.qcow2        an empty overlay to copy, which is 10 ms faster than making one
    <cache>/templates/<key>-<id>/template.json      written last: a digest, and size and times of each file

Machines and their snapshots use these files directly, so a directory is never filled again: a template that is made
again gets a new directory, and the old one is removed when nothing needs it.

A snapshot of a running machine has the same files, so machines can be forked from it in the same way.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from hiveyard.core.errors import ProviderError
from hiveyard.core.machines import Shape
from hiveyard.kit import files, process
from hiveyard.kit.names import new_id
from hiveyard.kit.shape import record, text
from hiveyard.machines.qemu.cleanup import mark_used, remove_unused
from hiveyard.machines.qemu.command import LAYOUT, MACHINE, Engine, Layer

PARTS = ("memory", "state", "disk.qcow2", "blank.qcow2", "session.raw")


class Origin(NamedTuple):
    """The origin of a machine. `frozen` is a directory with its memory and state, `kernel` one with kernel and initrd
    if it boots instead; `under` are the disks below its own, lowest first. `session` are the files of the session's
    disk, lowest first, of a frozen guest that was a machine (`cloned`), not a template."""

    under: Sequence[Layer]
    host_key: str
    frozen: Path | None = None
    kernel: Path | None = None
    cloned: bool = False
    session: Sequence[Path] = ()


class CorruptTemplate(ProviderError):
    """A template has changed since it was frozen. It is made again."""


class Key(NamedTuple):
    """Everything that a frozen state depends on."""

    image: str
    disk: str
    shape: Shape
    session_size: int
    engine: Engine
    version: str
    processor: str

    def digest(self) -> str:
        return hashlib.sha256(repr((LAYOUT, MACHINE, *self)).encode()).hexdigest()[:16]


class Template(NamedTuple):
    """A template. One that is made again for the same key gets another `root`."""

    root: Path
    host_key: str

    @property
    def state(self) -> Path:
        return self.root / "state"

    def origin(self, base: Layer) -> Origin:
        """Return the origin of its machines; `base` is the disk of the image."""
        return Origin((base, Layer(str(self.root / "disk.qcow2"), "qcow2")), self.host_key, frozen=self.root)

    def check(self) -> None:
        """Raise CorruptTemplate if a file has changed since it was frozen.

        The memory is too large to be read each time. Its change time is sufficient: the kernel updates it at every
        write, and no program can set it back. So a guest that took over its QEMU cannot affect later forks.
        """
        found = _load(self.root)
        if text(found.get("digest")) != _digest(self.state):
            raise CorruptTemplate(f"template {self.root.name}: its state is damaged")
        before = record(found, "files")
        for name in PARTS:
            if before.get(name) != (now := _file_identity(self.root / name)):
                raise CorruptTemplate(
                    f"template {self.root.name}: {name} changed after it was frozen: {before.get(name)} -> {now}"
                )


class Templates:
    """The templates of a cache, named by their keys."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def find(self, key: Key) -> Template | None:
        """Return the template for `key`, unchecked."""
        found = (_template(root) for root in self._root.glob(f"{key.digest()}*"))
        template = next((template for template in found if template is not None), None)
        if template is not None:
            mark_used(template.root)
        return template

    def obsolete(self, version: str) -> list[Path]:
        """Return the templates that were not made by QEMU `version` with the current layout."""
        current = {"layout": LAYOUT, "version": version}
        existing = [(root, _load(root)) for root in self._all() if not root.name.startswith(".")]
        return [root for root, marks in existing if {name: marks.get(name) for name in current} != current]

    def new_directory(self, key: Key) -> Path:
        """Create an empty directory to make a template in; leftovers for the same key are removed. The caller holds the
        key's lock."""
        for remains in self._root.glob(f".new-{key.digest()}*"):
            shutil.rmtree(remains)
        fresh = self._root / f".new-{key.digest()}"
        fresh.mkdir(parents=True)
        # Other users may open a file in it by name, but not list it.
        fresh.chmod(0o711)
        return fresh

    def publish(self, key: Key, fresh: Path, *, host_key: str, group: int | None, sealed: bool) -> Template:
        """Move a finished template to its place. `group` may map its memory; with `sealed`, QEMU does that without
        write permission."""
        for name in PARTS:
            finish_file(fresh / name, group, writable=name == "memory" and not sealed)
        marks: dict[str, object] = {
            "host_key": host_key,
            "image": key.image,
            "layout": LAYOUT,
            "version": key.version,
            "digest": _digest(fresh / "state"),
            "files": {name: _file_identity(fresh / name) for name in PARTS},
        }
        files.write_atomic(fresh / "template.json", json.dumps(marks).encode())
        root = self._root / f"{key.digest()}-{new_id()}"
        fresh.replace(root)
        files.sync_dir(self._root)
        return Template(root, host_key)

    def retire(self, template: Template) -> None:
        """Let no more machines start from a template. Its files stay for those that did, and are `obsolete` then."""
        with contextlib.suppress(FileNotFoundError):
            (template.root / "template.json").rename(template.root / "former.json")
        remove_unused([template.root])

    def remove_image(self, image_id: str) -> None:
        """Remove the image's templates that are not in use."""
        remove_unused(root for root in self._all() if _load(root).get("image") == image_id)

    def _all(self) -> Iterable[Path]:
        return list(self._root.iterdir()) if self._root.is_dir() else []


def _template(root: Path) -> Template | None:
    found = _load(root)
    return Template(root, text(found.get("host_key"))) if found else None


def _load(root: Path) -> dict[str, object]:
    try:
        return dict(record(json.loads((root / "template.json").read_bytes())))
    except (OSError, ValueError):
        return {}


def finish_file(path: Path, group: int | None, *, writable: bool) -> None:
    """Take ownership of a file, give access to `group` only (the guest's host key is in it), and sync it to disk.

    Raises OSError if it is not a regular file: it may come from a directory that QEMU can write to."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        if group is not None:
            os.fchown(fd, 0, group)
        os.fchmod(fd, 0o660 if writable else 0o640)
        os.fsync(fd)
    finally:
        os.close(fd)


def _file_identity(path: Path) -> list[int]:
    try:
        status = path.stat()
    except OSError:
        return []
    return [status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def _digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return ""


async def overlay(path: Path, backing: str, kind: str, disk_gib: int) -> None:
    """Create an empty qcow2 over `backing`. The name is only a note: QEMU gets the lower layers on its command line."""
    done = await process.run(
        ["qemu-img", "create", "-q", "-u", "-f", "qcow2", "-b", backing, "-F", kind, str(path), f"{disk_gib}G"]
    )
    if not done.ok:
        raise ProviderError(f"making an overlay: {done.command()} failed: {done.error_output()}")
