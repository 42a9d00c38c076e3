"""A template: an image booted once, settled, and frozen with its memory. Machines are forks of it.

    <cache>/templates/<key>-<id>/memory             the guest's memory, a sparse file that forks map copy-on-write
    <cache>/templates/<key>-<id>/state              the state of its devices, half a megabyte
    <cache>/templates/<key>-<id>/disk.qcow2         what the boot changed on the image's disk
    <cache>/templates/<key>-<id>/table.json         what it knew of its session's directory, which was empty
    <cache>/templates/<key>-<id>/blank.qcow2        an empty overlay to copy, which is 10 ms faster than making one
    <cache>/templates/<key>-<id>/template.json      written last: digest, and how each file looked

Machines and their snapshots stand on these very files, so a directory is never filled again: a template that is made
again gets another, and the former one goes when nobody needs it.

A running machine can become a template by the same files: its memory written out, its state, its disk.
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
from hiveyard.machines.qemu.cleanup import remove_unused, use
from hiveyard.machines.qemu.command import LAYOUT, MACHINE, Engine, Layer

PARTS = ("memory", "state", "disk.qcow2", "blank.qcow2", "table.json")


class Origin(NamedTuple):
    """The origin of a machine. `frozen` is a directory with its memory, state and table of files, `kernel` one with
    kernel and initrd where it boots instead; `under` are the disks below its own, lowest first. `again`: it has been
    another machine before."""

    under: Sequence[Layer]
    host_key: str
    frozen: Path | None = None
    kernel: Path | None = None
    again: bool = False


class Corrupt(ProviderError):
    """A template is not what was frozen. It is made again."""


class Key(NamedTuple):
    """All that a frozen state depends on."""

    image: str
    disk: str
    shape: Shape
    engine: Engine
    version: str
    processor: str

    def digest(self) -> str:
        return hashlib.sha256(repr((LAYOUT, MACHINE, *self)).encode()).hexdigest()[:16]


class Template(NamedTuple):
    """One that is made again for the same key has another `root`."""

    root: Path
    host_key: str

    @property
    def state(self) -> Path:
        return self.root / "state"

    def origin(self, base: Layer) -> Origin:
        """For machines of it, whose image's disk is `base`."""
        return Origin((base, Layer(str(self.root / "disk.qcow2"), "qcow2")), self.host_key, frozen=self.root)

    def check(self) -> None:
        """Raises Corrupt when a file is not as it was frozen.

        The memory is too large to be read each time. Its change time is as good: the kernel sets it at every write,
        and no program can set it back. So a QEMU that a guest took over cannot pass anything on to later forks.
        """
        found = _load(self.root)
        if text(found.get("digest")) != _digest(self.state):
            raise Corrupt(f"template {self.root.name}: its state is damaged")
        seen = record(found, "files")
        for name in PARTS:
            if seen.get(name) != (now := _look(self.root / name)):
                raise Corrupt(
                    f"template {self.root.name}: {name} changed after it was frozen: {seen.get(name)} -> {now}"
                )


class Templates:
    """All templates of a cache, each named by its key."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def find(self, key: Key) -> Template | None:
        """The template as it lies there, unchecked."""
        found = (_template(root) for root in self._root.glob(f"{key.digest()}*"))
        template = next((template for template in found if template is not None), None)
        if template is not None:
            use(template.root)
        return template

    def useless(self, version: str) -> list[Path]:
        """Templates that no QEMU of this version and of ours can load."""
        own = {"layout": LAYOUT, "version": version}
        kept = [(root, _load(root)) for root in self._all() if not root.name.startswith(".")]
        return [root for root, marks in kept if {name: marks.get(name) for name in own} != own]

    def place(self, key: Key) -> Path:
        """A new empty directory in which a template can be made; remains of others for the same key are removed.
        Call it under the key's lock."""
        for remains in self._root.glob(f".new-{key.digest()}*"):
            shutil.rmtree(remains)
        fresh = self._root / f".new-{key.digest()}"
        fresh.mkdir(parents=True)
        # Others may pass through to a file they are handed, and not look around.
        fresh.chmod(0o711)
        return fresh

    def keep(self, key: Key, fresh: Path, *, host_key: str, group: int | None, sealed: bool) -> Template:
        """Put a finished template in its place. `group` may map its memory; `sealed` when QEMU can do that without
        the right to write."""
        for name in PARTS:
            hand_over(fresh / name, group, writable=name == "memory" and not sealed)
        marks: dict[str, object] = {
            "host_key": host_key,
            "image": key.image,
            "layout": LAYOUT,
            "version": key.version,
            "digest": _digest(fresh / "state"),
            "files": {name: _look(fresh / name) for name in PARTS},
        }
        files.write_atomic(fresh / "template.json", json.dumps(marks).encode())
        root = self._root / f"{key.digest()}-{new_id()}"
        fresh.replace(root)
        files.sync_dir(self._root)
        return Template(root, host_key)

    def retire(self, template: Template) -> None:
        """No machine begins from it any more; it stays for those that did, and goes with `useless` after them."""
        with contextlib.suppress(FileNotFoundError):
            (template.root / "template.json").rename(template.root / "former.json")
        remove_unused([template.root])

    def remove_image(self, image_id: str) -> None:
        """Remove its templates, but for those that somebody stands on."""
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


def hand_over(path: Path, group: int | None, *, writable: bool) -> None:
    """Make a file ours, open to `group` and nobody else (the guest's host key is in it), and safe from a power cut.
    Raises OSError for what is no file: it may come from a directory that QEMU can write to."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "no regular file", str(path))
        if group is not None:
            os.fchown(fd, 0, group)
        os.fchmod(fd, 0o660 if writable else 0o640)
        os.fsync(fd)
    finally:
        os.close(fd)


def _look(path: Path) -> list[int]:
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
    """An empty qcow2 over `backing`. The name in it is only a note: QEMU is told what lies below it each time."""
    done = await process.run(
        ["qemu-img", "create", "-q", "-u", "-f", "qcow2", "-b", backing, "-F", kind, str(path), f"{disk_gib}G"]
    )
    if not done.ok:
        raise ProviderError(f"making an overlay: {done.command()} said: {done.error_output()}")
