"""The disk of a session: an ext4 file system in a chain of files, which the host makes and never mounts.

    <disk>/0.raw      the file system as it was made, a sparse file
    <disk>/N.qcow2    the changes since; only the last file of the chain is ever written to
    <disk>/unclean    exists unless the file system was unmounted or frozen: it is checked before it is used again

The files below the last one may be hard links that other disks and snapshots have, too. So a copy of a disk costs one
empty file, and each copy can be removed without the others.
"""

from __future__ import annotations

import os
import re
import shutil
import struct
from collections.abc import Sequence
from pathlib import Path

import anyio.to_thread

from hiveyard.core.errors import NoSpace, ProviderError, SessionDamaged
from hiveyard.kit import files, process
from hiveyard.machines.qemu.command import Layer
from hiveyard.machines.qemu.template import finish_file
from hiveyard.machines.qemu.user import GUEST_UID, User

_LAYER = re.compile(r"(\d{1,9})\.(raw|qcow2)\Z")
_QCOW2_SIZE = struct.Struct(">4s20xQ")  # magic and virtual size, from docs/interop/qcow2.txt of QEMU
# Named one by one, so that no configuration of the host adds a feature that the kernel of an image does not know.
_FEATURES = (
    "none,has_journal,ext_attr,dir_index,filetype,extent,64bit,flex_bg,sparse_super,large_file,huge_file,dir_nlink,"
    "extra_isize,metadata_csum"
)
_JOURNAL_MIB = 32
_BYTES_PER_INODE = 32768
_UNCLEAN = "unclean"


class SessionDisk:
    """A disk's directory. Creating the object creates no file."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def exists(self) -> bool:
        return self.root.is_dir()

    def numbers(self) -> dict[int, str]:
        """Return the numbers and formats of the files, lowest first. Raises SessionDamaged if there are none."""
        found = (_LAYER.match(path.name) for path in self.root.iterdir()) if self.exists else ()
        layers = {int(match[1]): match[2] for match in found if match}
        if not layers:
            raise SessionDamaged(f"{self.root} has no files of a disk: the session's files are missing")
        return dict(sorted(layers.items()))

    def layers(self) -> list[Layer]:
        return [Layer(str(self.path(number)), kind) for number, kind in self.numbers().items()]

    def path(self, number: int) -> Path:
        return self.root / f"{number}.{self.numbers()[number]}"

    @property
    def top(self) -> int:
        return max(self.numbers())

    @property
    def size(self) -> int:
        """The virtual size in bytes."""
        return virtual_size(self.path(self.top))

    @property
    def clean(self) -> bool:
        return not (self.root / _UNCLEAN).exists()

    def mark_unclean(self) -> None:
        (self.root / _UNCLEAN).touch()

    def mark_clean(self) -> None:
        (self.root / _UNCLEAN).unlink(missing_ok=True)

    def usage(self) -> int:
        """Return the bytes that its files take on the host's disk, the shared ones included."""
        return sum(path.stat().st_blocks * 512 for path in map(self.path, self.numbers()))

    def give(self, user: User) -> None:
        """Let `user` find the files by name and write to the last one."""
        self.root.chmod(0o711)
        user.give(self.path(self.top))


def virtual_size(path: Path) -> int:
    """Return the size in bytes of the disk that a raw or qcow2 file is the top of. Raises SessionDamaged."""
    if path.suffix == ".raw":
        return path.stat().st_size
    with path.open("rb") as file:
        head = file.read(_QCOW2_SIZE.size)
    if len(head) < _QCOW2_SIZE.size or not head.startswith(b"QFI\xfb"):
        raise SessionDamaged(f"{path} is not a qcow2 file")
    size: int = _QCOW2_SIZE.unpack(head)[1]
    return size


async def make(disk: SessionDisk, tree: Path, size: int) -> None:
    """Make a disk of `size` bytes with a copy of the directory `tree`, whose files belong to the guest's user in it.
    It is complete or does not exist. Raises NoSpace, ProviderError."""
    half = _half(disk)
    await anyio.to_thread.run_sync(_clear, half)
    try:
        await make_file(half / "0.raw", tree, size)
        half.rename(disk.root)
    except BaseException:
        await anyio.to_thread.run_sync(shutil.rmtree, half, True)
        raise
    files.sync_dir(disk.root.parent)


async def make_file(path: Path, tree: Path, size: int) -> None:
    """Make an ext4 file system in a file, without root and without a mount."""
    with path.open("xb") as file:
        file.truncate(size)
    extended = f"lazy_itable_init=1,lazy_journal_init=1,nodiscard,root_owner={GUEST_UID}:{GUEST_UID}"
    program = process.find("mkfs.ext4") or "mkfs.ext4"
    # In the namespace the daemon's user is the guest's. It keeps the capabilities that read files without permissions.
    # Nobody writes to the tree meanwhile, and mkfs follows no symlink.
    done = await process.run(
        [
            *("unshare", "--user", f"--map-user={GUEST_UID}", f"--map-group={GUEST_UID}", "--keep-caps", "--"),
            *(program, "-q", "-F", "-O", _FEATURES, "-I", "256", "-b", "4096", "-i", str(_BYTES_PER_INODE)),
            *("-m", "0", "-e", "remount-ro", "-J", f"size={_JOURNAL_MIB}", "-E", extended),
            *("-d", str(tree), str(path)),
        ]
    )
    if done.ok:
        return
    if "No space left" in (errors := done.error_output()) or "Could not allocate" in errors:
        raise NoSpace(f"the session's disk could not be made: {errors}", hint="df -h")
    raise ProviderError(f"the session's disk could not be made: {done.command()} failed: {errors}")


async def derive(sources: Sequence[Path], disk: SessionDisk, *, unclean: bool) -> None:
    """Make a disk that starts with the content of the files `sources`, lowest first, which nobody writes to any more.
    It is complete or does not exist. Raises SessionDamaged, ProviderError, OSError."""
    half = _half(disk)
    await anyio.to_thread.run_sync(_clear, half)
    try:
        for number, source in enumerate(sources):
            os.link(source, half / f"{number}{source.suffix}")
        await overlay(half / f"{len(sources)}.qcow2", virtual_size(sources[-1]))
        if unclean:
            SessionDisk(half).mark_unclean()
        half.rename(disk.root)
    except BaseException:
        await anyio.to_thread.run_sync(shutil.rmtree, half, True)
        raise
    files.sync_dir(disk.root.parent)


async def overlay(path: Path, size: int) -> None:
    """Create an empty file of changes for a disk of `size` bytes. QEMU gets the files below it on its command line."""
    done = await process.run(["qemu-img", "create", "-q", "-f", "qcow2", str(path), str(size)])
    if not done.ok:
        raise ProviderError(f"making an overlay: {done.command()} failed: {done.error_output()}")


def link_sealed(path: Path, target: Path, group: int | None) -> None:
    """Link a file that QEMU does not write to any more, readable for `group`."""
    os.link(path, target, follow_symlinks=False)
    finish_file(target, group, writable=False)


def _half(disk: SessionDisk) -> Path:
    return disk.root.with_name(f"{disk.root.name}.half")


def _clear(half: Path) -> None:
    shutil.rmtree(half, ignore_errors=True)
    half.mkdir(parents=True)
