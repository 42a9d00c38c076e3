"""From an image's rootfs tar to a disk that boots: an ext4 file, the kernel beside it, and what a VM needs inside.

No mount, no loop device and no boot loader: the tree is unpacked, `mkfs.ext4 -d` makes a file of it, and QEMU is
given kernel and initrd directly. One disk serves all machines of an image; nobody ever writes to it again.
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
from hiveyard.machines.qemu.cleanup import remove_unused, use
from hiveyard.machines.qemu.command import Layer
from hiveyard.machines.qemu.user import GUEST_UID

# Programs without which a guest cannot serve us, by the package that brings them.
_NEEDED: Mapping[str, str] = {
    "usr/lib/systemd/systemd": "systemd-sysv",
    "usr/sbin/sshd": "openssh-server",
    "usr/sbin/qemu-ga": "qemu-guest-agent",
    "usr/bin/perl": "perl-base",
    "usr/bin/bash": "bash",
}

# sshd starts every command by the user's shell. bash takes 27 ms longer than dash to say `exec`; $SHELL stays bash.
_SHELL = b"/bin/sh"
_ON = (
    "hiveyard-ssh.service",
    "hiveyard-become.service",
    "hiveyard-commands.service",
    "hiveyard-session.service",
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
    """All disks of a cache, each named by its image, its size and by what is put inside. `group` may read them."""

    def __init__(self, root: Path, group: int | None) -> None:
        self._root = root
        self._group = group

    def find(self, image_id: str, disk_gib: int) -> Disk | None:
        root = self._root / f"{image_id}-{disk_gib}g-{_digest_of_inside()}"
        use(root)
        try:
            # Written last: a disk that has it is whole.
            return Disk(root, (root / "host_key.pub").read_text())
        except OSError:
            return None

    def useless(self) -> list[Path]:
        """Disks with another inside than ours."""
        return [
            path.parent
            for path in self._root.glob("[!.]*/host_key.pub")
            if not path.parent.name.endswith(_digest_of_inside())
        ]

    def kernels(self) -> list[Path]:
        """Kernels that are at hand for a trial boot."""
        return sorted(self._root.glob("*/vmlinuz"))

    def remove(self, image_id: str) -> None:
        """Remove its disks, but for those that somebody stands on."""
        remove_unused(self._root.glob(f"{image_id}-*"))

    async def ensure(self, image: Image, disk_gib: int, report: Report) -> Disk:
        """The disk of an image, made when it is not there. Call it under the image's lock.

        Raises NoSuchImage when the rootfs is gone, BadInput when it cannot be a VM, NoSpace, ProviderError."""
        if found := self.find(image.id, disk_gib):
            return found
        report("making a disk from the image (once per image)")
        for remains in self._root.glob(f".new-{image.id}-*"):
            await remove_tree(remains)
        root = self._root / f"{image.id}-{disk_gib}g-{_digest_of_inside()}"
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
    _take_kernel(image, tree, root)
    key = asyncssh.generate_private_key("ssh-ed25519")
    await _tool(
        "tar",
        "-x",
        "-C",
        str(tree),
        "--numeric-owner",
        stdin=_inside(image, key.export_private_key(), _passwd(image, tree)),
    )
    raw = root / "disk.raw"
    with raw.open("wb") as file:
        file.truncate(disk_gib << 30)
    # Its host key is nobody else's business.
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
        raise NoSuchImage(f"image {image.name}: {image.rootfs} is not there", hint=f"hv image build {image.name}")
    free = shutil.disk_usage(tree).free
    needed = 2 * image.rootfs.stat().st_size + (512 << 20)
    if free < needed:
        raise NoSpace(
            f"a disk from image {image.name} needs {needed >> 20} MiB in {tree.parent}, {free >> 20} are free"
        )
    await _tool(
        *("tar", "-x", "-p", "-f", str(image.rootfs), "-C", str(tree), "--numeric-owner"),
        *("--xattrs", "--xattrs-include=*", "--exclude=./dev/*"),
    )


def _check(image: Image, tree: Path) -> None:
    for path, package in _NEEDED.items():
        if not os.path.lexists(tree / path):
            raise BadInput(
                f"image {image.name} cannot be a VM: it lacks /{path}", hint=f"add {package} to its packages"
            )


def _take_kernel(image: Image, tree: Path, root: Path) -> None:
    for name, pattern in (("vmlinuz", "vmlinuz-*"), ("initrd", "initrd.img-*")):
        found = sorted((tree / "boot").glob(pattern), key=lambda path: path.stat().st_mtime)
        if not found:
            raise BadInput(
                f"image {image.name} cannot be a VM: it has no /boot/{pattern}",
                hint="add linux-image-amd64 to its packages",
            )
        # The name comes from the image: a link there would make us read a file of the host.
        with _opened(tree / "boot", found[-1].name) as source, (root / name).open("wb") as target:
            shutil.copyfileobj(source, target)
        (root / name).chmod(0o644)


@contextlib.contextmanager
def _opened(root: Path, name: str) -> Iterator[io.BufferedReader]:
    with os.fdopen(files.open_beneath(root, name), "rb") as file:
        yield file


def _inside(image: Image, host_key: bytes, passwd: bytes) -> bytes:
    """A tar of what a VM of ours has beyond its image. Unpacking replaces what is there and follows no link."""
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
        for unit in _ON:
            at = "/etc" if unit.startswith("hiveyard") else "/usr/lib"
            _add_link(tar, units / "multi-user.target.wants" / unit, f"{at}/systemd/system/{unit}")
        _add_link(tar, units / "default.target", "/usr/lib/systemd/system/multi-user.target")
    return out.getvalue()


def _passwd(image: Image, tree: Path) -> bytes:
    """The image's /etc/passwd with the shell that commands are started by."""
    with _opened(tree, "etc/passwd") as file:
        lines = [line.split(b":") for line in file.read().splitlines()]
    agents = [fields for fields in lines if fields[0] == b"agent" and len(fields) == 7]
    if len(agents) != 1 or agents[0][2] != str(GUEST_UID).encode():
        raise BadInput(f"image {image.name} cannot be a VM: it has no user agent with uid {GUEST_UID}")
    agents[0][6] = _SHELL
    return b"".join(b":".join(fields) + b"\n" for fields in lines)


def _with_env(config: bytes, env: Mapping[str, str]) -> bytes:
    # sshd takes the first SetEnv line only, and of two values for a name the first.
    words = [f'{name}="{value}"' for name, value in env.items() if '"' not in value and "\n" not in value]
    return config.replace(b"SetEnv ", f"SetEnv {' '.join(words)} ".encode(), 1) if words else config


def _environment(env: Mapping[str, str]) -> bytes:
    """For commands that do not come by ssh."""
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


def _digest_of_inside() -> str:
    digest = hashlib.sha256(repr((_units_off(), _ON, _SHELL)).encode())
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
    """The words that give a program all user ids to write files with, when we are not root."""
    return () if os.geteuid() == 0 else ("unshare", "--map-root-user", "--map-auto", "--")


async def _tool(*argv: str, stdin: bytes = b"") -> None:
    program = process.find(argv[0])
    if program is None:
        raise ProviderError(f"{argv[0]} is not installed", hint="make setup")
    done = await process.run((*_as_root(), program, *argv[1:]), stdin=stdin)
    if done.ok:
        return
    said = done.error_output()
    if "No space left" in said:
        raise NoSpace(f"making a disk: {said}", hint="df -h")
    raise ProviderError(f"making a disk: {done.command()} said: {said}")


async def remove_tree(path: Path) -> None:
    """Remove a directory and all below it; absent is a success."""
    # Not shutil: without root, files of other users are inside.
    await _tool("rm", "-rf", "--", str(path))
