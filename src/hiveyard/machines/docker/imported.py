"""Import images from our tar files into the engine's store. No registry is used."""

from __future__ import annotations

import errno
import io
import platform
import struct
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import anyio
import anyio.to_thread
from aiodocker import Docker
from aiodocker.exceptions import DockerError

from hiveyard.core.errors import NoSuchImage, ProviderError
from hiveyard.core.machines import Image, Report, StoredItem
from hiveyard.kit.lock import file_lock
from hiveyard.kit.progress import measured, size
from hiveyard.machines.docker.container import GUEST_UID, REPOSITORY, tag
from hiveyard.machines.docker.engine import engine_errors

_PIECE = 1 << 20
_TRIAL = "trial"
_KERNEL = ("boot/", "lib/modules/", "usr/lib/modules/")
_NEEDED = (
    ("home", 0o755, 0),
    ("home/agent", 0o755, GUEST_UID),
    ("session", 0o755, GUEST_UID),
    ("run", 0o755, 0),
    ("tmp", 0o1777, 0),
    ("var", 0o755, 0),
    ("var/tmp", 0o1777, 0),
)
"""Directories with their mode and owner."""


async def present(client: Docker, image_id: str) -> bool:
    """Whether the engine has an image."""
    with engine_errors(f"looking for the image {image_id}"):
        try:
            await client.images.inspect(tag(image_id))
        except DockerError as error:
            if error.status == 404:
                return False
            raise
    return True


async def import_image(client: Docker, image: Image, locks: Path, report: Report) -> None:
    """Import an image unless the engine has it. Of several tasks and processes one imports, the others wait."""
    if await present(client, image.id):
        return
    async with file_lock(locks / f"import-{image.id}.lock"):
        if await present(client, image.id):
            return
        if not image.rootfs.is_file():
            raise NoSuchImage(
                f"the file of image {image.id} is gone: {image.rootfs}", hint=f"hv image build {image.name}"
            )
        report(f"importing {image.name} into the container engine (once per image)")
        sent = _Sent(image.rootfs.stat().st_size)
        async with measured(report, "importing", sent.text):
            await _import(client, image.id, sent.counted(_root(image.rootfs)))


class _Sent:
    """Counts the bytes of an image that were sent."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._sent = 0

    async def counted(self, pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        async for piece in pieces:
            yield piece
            self._sent += len(piece)

    def text(self) -> str:
        return f"{size(self._sent)} of {size(self._total)}"


async def remove_image(client: Docker, image_id: str) -> None:
    with engine_errors(f"removing the image {image_id}"):
        try:
            await client.images.delete(tag(image_id))
        except DockerError as error:
            if error.status == 409:
                raise ProviderError(
                    f"the image {image_id} is used by containers",
                    hint=f"docker ps -a --filter ancestor={tag(image_id)}",
                ) from error
            if error.status != 404:
                raise


async def stored_items(client: Docker) -> list[StoredItem]:
    """List our images in the engine, with the sizes that it reports."""
    with engine_errors("listing images"):
        listed = await client.images.list(filter=REPOSITORY)
    found = []
    for made in listed:
        for name in made.get("RepoTags") or []:
            repository, _, image = name.rpartition(":")
            if repository == REPOSITORY:
                found.append(StoredItem(kind="made", name=name, image=image, size=int(made["Size"])))
    return found


async def import_trial(client: Docker) -> str:
    """Import an image of one program that exits with 0, unless the engine has it. Returns its tag."""
    if not await present(client, _TRIAL):
        await _import(client, _TRIAL, _single(_trial_tar()))
    return tag(_TRIAL)


async def _import(client: Docker, name: str, content: AsyncIterator[bytes]) -> None:
    query = {"fromSrc": "-", "repo": tag(name)}  # Podman ignores a separate tag parameter
    headers = {"Content-Type": "application/x-tar"}
    # The engine reads the whole archive and answers when the image is complete.
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=10)
    with engine_errors(f"importing the image {name}"):
        url = f"http://engine/{client.api_version}/images/create"
        async with client.session.post(url, params=query, data=content, headers=headers, timeout=timeout) as response:
            answer = await response.text()
        # Once it has begun to answer, the engine can report an error only in the text.
        if response.status >= 400 or '"error"' in answer:
            raise DockerError(response.status, answer[-400:])


async def _root(rootfs: Path) -> AsyncIterator[bytes]:
    """Return the tar of an image without its kernel, after the directories that machines need and the image lacks."""
    present, ranges = await anyio.to_thread.run_sync(_parts, rootfs)
    yield _directories(present)
    async with await anyio.open_file(rootfs, "rb") as file:
        for start, end in ranges:
            await file.seek(start)
            while start < end:
                piece = await file.read(min(_PIECE, end - start))
                if not piece:
                    raise OSError(errno.EIO, "the image was truncated while it was read", str(rootfs))
                start += len(piece)
                yield piece
    yield bytes(2 * tarfile.BLOCKSIZE)


async def _single(data: bytes) -> AsyncIterator[bytes]:
    yield data


def _parts(rootfs: Path) -> tuple[set[str], list[tuple[int, int]]]:
    """Return the directories in a tar, and the byte ranges that a container can use."""
    directories: set[str] = set()
    ranges: list[tuple[int, int]] = []
    with tarfile.open(rootfs, "r:") as tar:
        for member in tar:
            path = member.name.removeprefix("./")
            if member.isdir():
                directories.add(path)
            if not path.startswith(_KERNEL):
                if ranges and ranges[-1][1] == member.offset:
                    ranges[-1] = (ranges[-1][0], tar.offset)
                else:
                    ranges.append((member.offset, tar.offset))
    return directories, ranges


def _directories(present: set[str]) -> bytes:
    """Return the start of a tar without its end: more members follow. No path may occur twice."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for path, mode, uid in _NEEDED:
            if path not in present:
                entry = tarfile.TarInfo(f"./{path}")
                entry.type, entry.mode, entry.uid, entry.gid = tarfile.DIRTYPE, mode, uid, uid
                tar.addfile(entry)
        size = tar.offset
    return data.getvalue()[:size]


def _trial_tar() -> bytes:
    program = _exit_zero()
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        entry = tarfile.TarInfo("./trial")
        entry.mode, entry.size = 0o755, len(program)
        tar.addfile(entry, io.BytesIO(program))
    return data.getvalue()


def _exit_zero() -> bytes:
    """Return a static ELF program of one system call, exit(0): the smallest program that proves that programs run."""
    if platform.machine() == "x86_64":
        machine, code = 62, bytes.fromhex("31ff b83c000000 0f05")
    else:
        machine, code = 183, bytes.fromhex("000080d2 a80b80d2 010000d4")
    base, head = 0x400000, 64 + 56
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    elf = struct.pack("<HHIQQQIHHHHHH", 2, machine, 1, base + head, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, base, base, head + len(code), head + len(code), 0x1000)
    return ident + elf + segment + code
