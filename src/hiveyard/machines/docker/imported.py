"""Images in the engine's own store, imported from our tar files: no registry is asked for anything."""

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
from hiveyard.machines.docker.container import GUEST_UID, REPOSITORY, tag
from hiveyard.machines.docker.engine import foreign

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
    with foreign(f"looking for the image {image_id}"):
        try:
            await client.images.inspect(tag(image_id))
        except DockerError as error:
            if error.status == 404:
                return False
            raise
    return True


async def import_image(client: Docker, image: Image, locks: Path, report: Report) -> None:
    """Have the image in the engine. Several tasks and processes may ask at once: one imports, the others wait."""
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
        await _import(client, image.id, _root(image.rootfs))


async def remove_image(client: Docker, image_id: str) -> None:
    with foreign(f"removing the image {image_id}"):
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
    """Images of ours in the engine, with the bytes that it says they take."""
    with foreign("listing images"):
        listed = await client.images.list(filter=REPOSITORY)
    found = []
    for made in listed:
        for name in made.get("RepoTags") or []:
            repository, _, image = name.rpartition(":")
            if repository == REPOSITORY:
                found.append(StoredItem(kind="made", name=name, image=image, size=int(made["Size"])))
    return found


async def import_trial(client: Docker) -> str:
    """An image of one program that does nothing and ends well; returns its tag. Made anew when it is not there."""
    if not await present(client, _TRIAL):
        await _import(client, _TRIAL, _whole(_trial_tar()))
    return tag(_TRIAL)


async def _import(client: Docker, name: str, content: AsyncIterator[bytes]) -> None:
    query = {"fromSrc": "-", "repo": tag(name)}  # Podman does not look at a tag on its own
    headers = {"Content-Type": "application/x-tar"}
    # The engine reads up to the end of the archive and answers when the image is whole.
    patience = aiohttp.ClientTimeout(total=None, sock_connect=10)
    with foreign(f"importing the image {name}"):
        url = f"http://engine/{client.api_version}/images/create"
        async with client.session.post(url, params=query, data=content, headers=headers, timeout=patience) as response:
            said = await response.text()
        # Once it has begun to answer, the engine can tell of an error only in the text.
        if response.status >= 400 or '"error"' in said:
            raise DockerError(response.status, said[-400:])


async def _root(rootfs: Path) -> AsyncIterator[bytes]:
    """The tar of an image, without its kernel, behind the directories that every machine needs and it lacks."""
    present, ranges = await anyio.to_thread.run_sync(_parts, rootfs)
    yield _directories(present)
    async with await anyio.open_file(rootfs, "rb") as file:
        for start, end in ranges:
            await file.seek(start)
            while start < end:
                piece = await file.read(min(_PIECE, end - start))
                if not piece:
                    raise OSError(errno.EIO, "the image was cut while it was read", str(rootfs))
                start += len(piece)
                yield piece
    yield bytes(2 * tarfile.BLOCKSIZE)


async def _whole(data: bytes) -> AsyncIterator[bytes]:
    yield data


def _parts(rootfs: Path) -> tuple[set[str], list[tuple[int, int]]]:
    """The directories of a tar, and the byte ranges of what a container can use of it."""
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
    """The start of a tar, without its end: more members follow. No path may be there twice."""
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
    program = _end_well()
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        entry = tarfile.TarInfo("./trial")
        entry.mode, entry.size = 0o755, len(program)
        tar.addfile(entry, io.BytesIO(program))
    return data.getvalue()


def _end_well() -> bytes:
    """A static ELF program of one system call, exit(0): the smallest thing whose success proves that things run."""
    if platform.machine() == "x86_64":
        machine, code = 62, bytes.fromhex("31ff b83c000000 0f05")
    else:
        machine, code = 183, bytes.fromhex("000080d2 a80b80d2 010000d4")
    base, head = 0x400000, 64 + 56
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    elf = struct.pack("<HHIQQQIHHHHHH", 2, machine, 1, base + head, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, base, base, head + len(code), head + len(code), 0x1000)
    return ident + elf + segment + code
