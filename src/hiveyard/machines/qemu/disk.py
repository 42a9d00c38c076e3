"""Make a bootable disk from an image's rootfs tar: an ext4 file with the programs that a VM needs, and its kernel.

No mount, loop device or boot loader is needed: the tree is unpacked, `mkfs.ext4 -d` makes a file of it, and QEMU gets
kernel and initrd directly. One disk serves all machines of an image. It is never written to again.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import shutil
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import asyncssh

from hiveyard.core.errors import BadInput, NoSpace, NoSuchImage, ProviderError
from hiveyard.core.machines import Image, Report
from hiveyard.kit import files, process
from hiveyard.kit.names import new_id
from hiveyard.kit.progress import disk_usage, measured
from hiveyard.machines.qemu.cleanup import mark_used, remove_unused
from hiveyard.machines.qemu.command import Layer
from hiveyard.machines.qemu.user import GUEST_UID

# The programs that every guest needs, with the packages that contain them.
_NEEDED: Mapping[str, str] = {
    "usr/lib/systemd/systemd": "systemd-sysv",
    "usr/sbin/sshd": "openssh-server",
    "usr/sbin/qemu-ga": "qemu-guest-agent",
    "usr/bin/perl": "perl-base",
    "usr/sbin/e2fsck": "e2fsprogs",
    "usr/bin/bash": "bash",
}

# sshd starts every command with the user's shell. bash takes 27 ms longer than dash to reach `exec`; $SHELL stays bash.
_SHELL = b"/bin/sh"
_UNITS_ON = (
    "hiveyard-ssh.service",
    "hiveyard-become.service",
    "hiveyard-commands.service",
    "systemd-networkd.service",
)


class Disk(NamedTuple):
    """A finished disk: `disk.raw`, `vmlinuz` and `initrd` in its directory, and the guest's public host key."""

    root: Path
    host_key: str

    @property
    def kernel(self) -> Path:
        return self.root / "vmlinuz"

    @property
    def layer(self) -> Layer:
        return Layer(str(self.root / "disk.raw"), "raw")


class Disks:
    """The disks of a cache, named by image, size and a digest of the files that are added. `group` may read them."""

    def __init__(self, root: Path, group: int | None) -> None:
        self._root = root
        self._group = group

    def find(self, image_id: str, disk_gib: int) -> Disk | None:
        root = self._root / f"{image_id}-{disk_gib}g-{_guest_files_digest()}"
        mark_used(root)
        try:
            # This file is written last: a disk that has it is complete.
            return Disk(root, (root / "host_key.pub").read_text())
        except OSError:
            return None

    def obsolete(self) -> list[Path]:
        """Return the disks whose added files are from another version of Hiveyard."""
        return [
            path.parent
            for path in self._root.glob("[!.]*/host_key.pub")
            if not path.parent.name.endswith(_guest_files_digest())
        ]

    def kernels(self) -> list[Path]:
        """Return the kernels that a trial boot can use."""
        return sorted(self._root.glob("*/vmlinuz"))

    def remove(self, image_id: str) -> None:
        """Remove the image's disks that are not in use."""
        remove_unused(self._root.glob(f"{image_id}-*"))

    async def ensure(self, image: Image, disk_gib: int, report: Report) -> Disk:
        """Return the disk of an image, and make it if it does not exist. The caller holds the image's lock.

        Raises NoSuchImage if the rootfs is gone, BadInput if it cannot be a VM, NoSpace, ProviderError."""
        if found := self.find(image.id, disk_gib):
            return found
        report("making a disk from the image (once per image)")
        for remains in self._root.glob(f".new-{image.id}-*"):
            await remove_tree(remains)
        root = self._root / f"{image.id}-{disk_gib}g-{_guest_files_digest()}"
        fresh = self._root / f".new-{image.id}-{new_id()}"
        fresh.mkdir(parents=True)
        fresh.chmod(0o755)
        try:
            async with measured(report, "making the disk", partial(disk_usage, fresh)):
                disk = await _make(image, disk_gib, fresh, self._group)
            shutil.rmtree(root, ignore_errors=True)
            fresh.replace(root)
            return disk._replace(root=root)
        finally:
            if fresh.exists():
                await remove_tree(fresh)


async def _make(image: Image, disk_gib: int, root: Path, group: int | None) -> Disk:
    tree = root / "tree"
    tree.mkdir()
    await _unpack(image, tree)
    _check(image, tree)
    _copy_kernel(image, tree, root)
    key = asyncssh.generate_private_key("ssh-ed25519")
    await _tool(
        "tar",
        "-x",
        "-C",
        str(tree),
        "--numeric-owner",
        stdin=_guest_files(image, key.export_private_key(), _passwd(image, tree)),
    )
    raw = root / "disk.raw"
    with raw.open("wb") as file:
        file.truncate(disk_gib << 30)
    # The guest's private host key is in it.
    raw.chmod(0o640)
    if group is not None:
        os.chown(raw, -1, group)
    lazy = "lazy_itable_init=1,lazy_journal_init=1"
    await _tool("mkfs.ext4", "-q", "-F", "-E", lazy, "-m", "0", "-d", str(tree), str(raw))
    await remove_tree(tree)
    host_key = key.export_public_key().decode().strip()
    files.write_atomic(root / "host_key.pub", host_key.encode())
    return Disk(root, host_key)


async def _unpack(image: Image, tree: Path) -> None:
    if not image.rootfs.is_file():
        raise NoSuchImage(f"image {image.name}: {image.rootfs} does not exist", hint=f"hv image build {image.name}")
    free = shutil.disk_usage(tree).free
    needed = 2 * image.rootfs.stat().st_size + (512 << 20)
    if free < needed:
        raise NoSpace(
            f"a disk from image {image.name} needs {needed >> 20} MiB in {tree.parent}, {free >> 20} MiB are free"
        )
    await _tool(
        *("tar", "-x", "-p", "-f", str(image.rootfs), "-C", str(tree), "--numeric-owner"),
        *("--xattrs", "--xattrs-include=*", "--exclude=./dev/*"),
    )


def _check(image: Image, tree: Path) -> None:
    for path, package in _NEEDED.items():
        if not os.path.lexists(tree / path):
            raise BadInput(
                f"image {image.name} cannot be a VM: it has no /{path}", hint=f"add {package} to its packages"
            )


def _copy_kernel(image: Image, tree: Path, root: Path) -> None:
    for name, pattern in (("vmlinuz", "vmlinuz-*"), ("initrd", "initrd.img-*")):
        found = sorted((tree / "boot").glob(pattern), key=lambda path: path.stat().st_mtime)
        if not found:
            raise BadInput(
                f"image {image.name} cannot be a VM: it has no /boot/{pattern}",
                hint="add linux-image-amd64 to its packages",
            )
        # The name comes from the image. A symlink could lead to a file of the host, so it is not followed.
        with _opened(tree / "boot", found[-1].name) as source, (root / name).open("wb") as target:
            shutil.copyfileobj(source, target)
        (root / name).chmod(0o644)


@contextlib.contextmanager
def _opened(root: Path, name: str) -> Iterator[io.BufferedReader]:
    with os.fdopen(files.open_beneath(root, name), "rb") as file:
        yield file


def _guest_files(image: Image, host_key: bytes, passwd: bytes) -> bytes:
    """Return a tar of the files that a VM has in addition to its image. Unpacking it replaces existing files and
    follows no symlink."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        _add_directory(tar, "session")
        for path, data in _files():
            _add_file(tar, path, _with_env(data, image.env) if path.name == "sshd_config" else data)
        _add_file(tar, PurePosixPath("etc/hiveyard/host_key"), host_key, mode=0o600)
        _add_file(tar, PurePosixPath("etc/passwd"), passwd)
        _add_file(tar, PurePosixPath("etc/hiveyard/environment"), _environment(image.env))
        units = PurePosixPath("etc/systemd/system")
        for unit in _units_off():
            _add_link(tar, units / unit, "/dev/null")
        for unit in _UNITS_ON:
            at = "/etc" if unit.startswith("hiveyard") else "/usr/lib"
            _add_link(tar, units / "multi-user.target.wants" / unit, f"{at}/systemd/system/{unit}")
        _add_link(tar, units / "default.target", "/usr/lib/systemd/system/multi-user.target")
    return out.getvalue()


def _passwd(image: Image, tree: Path) -> bytes:
    """Return the image's /etc/passwd with /bin/sh as the shell of user agent."""
    with _opened(tree, "etc/passwd") as file:
        lines = [line.split(b":") for line in file.read().splitlines()]
    agents = [fields for fields in lines if fields[0] == b"agent" and len(fields) == 7]
    if len(agents) != 1 or agents[0][2] != str(GUEST_UID).encode():
        raise BadInput(f"image {image.name} cannot be a VM: it has no user agent with uid {GUEST_UID}")
    agents[0][6] = _SHELL
    return b"".join(b":".join(fields) + b"\n" for fields in lines)


def _with_env(config: bytes, env: Mapping[str, str]) -> bytes:
    # sshd uses only the first SetEnv line, and the first value of a name.
    words = [f'{name}="{value}"' for name, value in env.items() if '"' not in value and "\n" not in value]
    return config.replace(b"SetEnv ", f"SetEnv {' '.join(words)} ".encode(), 1) if words else config


def _environment(env: Mapping[str, str]) -> bytes:
    """Return the content of /etc/hiveyard/environment, for commands that do not come by ssh."""
    return "".join(f"{name}={value}\n" for name, value in env.items() if "\n" not in value).encode()


def _files() -> Iterator[tuple[PurePosixPath, bytes]]:
    def below(directory: Traversable, path: PurePosixPath) -> Iterator[tuple[PurePosixPath, bytes]]:
        for entry in sorted(directory.iterdir(), key=lambda entry: entry.name):
            if entry.is_dir():
                yield from below(entry, path / entry.name)
            else:
                yield path / entry.name, entry.read_bytes()

    yield from below(resources.files(__package__) / "inside", PurePosixPath())


def _units_off() -> Sequence[str]:
    lines = (resources.files(__package__) / "units-off").read_text().splitlines()
    return [line for line in lines if not line.startswith("#")]


def _guest_files_digest() -> str:
    digest = hashlib.sha256(repr((_units_off(), _UNITS_ON, _SHELL)).encode())
    for path, data in _files():
        digest.update(repr((str(path), data)).encode())
    return digest.hexdigest()[:8]


def _add_file(tar: tarfile.TarFile, path: PurePosixPath, data: bytes, mode: int = 0o644) -> None:
    info = tarfile.TarInfo(str(path))
    info.size, info.mode = len(data), mode
    tar.addfile(info, io.BytesIO(data))


def _add_directory(tar: tarfile.TarFile, path: str) -> None:
    info = tarfile.TarInfo(path)
    info.type, info.mode, info.uid, info.gid = tarfile.DIRTYPE, 0o755, GUEST_UID, GUEST_UID
    tar.addfile(info)


def _add_link(tar: tarfile.TarFile, path: PurePosixPath, target: str) -> None:
    info = tarfile.TarInfo(str(path))
    info.type, info.linkname = tarfile.SYMTYPE, target
    tar.addfile(info)


def _as_root() -> Sequence[str]:
    """Return the prefix of a command that must write files of any owner: empty for root."""
    return () if os.geteuid() == 0 else ("unshare", "--map-root-user", "--map-auto", "--")


async def _tool(*argv: str, stdin: bytes = b"") -> None:
    program = process.find(argv[0])
    if program is None:
        raise ProviderError(f"{argv[0]} is not installed", hint="make setup")
    done = await process.run((*_as_root(), program, *argv[1:]), stdin=stdin)
    if done.ok:
        return
    errors = done.error_output()
    if "No space left" in errors:
        raise NoSpace(f"making a disk: {errors}", hint="df -h")
    raise ProviderError(f"making a disk: {done.command()} failed: {errors}")


async def remove_tree(path: Path) -> None:
    """Remove a directory with everything in it. An absent directory is a success."""
    # shutil cannot: without root, the directory has files of other users.
    await _tool("rm", "-rf", "--", str(path))
