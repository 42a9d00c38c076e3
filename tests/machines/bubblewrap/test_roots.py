"""Unpack root file systems, and find the remains of older editions."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest

from hiveyard.core.errors import NoSuchImage
from hiveyard.core.machines import Image, quiet
from hiveyard.machines.bubblewrap.rootfs import Roots

pytestmark = pytest.mark.anyio
FILES = ("dev/node", "dev/deep/node", "usr/lib/node_modules/p/dev/index.js", "usr/share/dev/a/b", "home/agent/dev/x")


def archive(place: Path, start: str) -> Image:
    """Return an image whose members' names begin with `start`."""
    with tarfile.open(place / "rootfs.tar", "w") as tar:
        for name in FILES:
            member = tarfile.TarInfo(start + name)
            member.size = 1
            member.uid, member.gid = os.geteuid(), os.getegid()
            tar.addfile(member, io.BytesIO(b"x"))
    return Image(id="abc123", name="x", rootfs=place / "rootfs.tar")


def unpacked_before(cache: Path, image: Image) -> Path:
    old = cache / image.id
    (old / "usr").mkdir(parents=True)
    return old


@pytest.mark.parametrize("start", ["./", ""])
async def test_only_the_devices_of_a_root_are_left_out(tmp_path: Path, start: str) -> None:
    image, roots = archive(tmp_path, start), Roots(tmp_path / "cache")
    await roots.unpack(image, quiet)
    root = roots.find(image)
    assert sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()) == sorted(FILES[2:])
    assert list((root / "dev").iterdir()) == []


async def test_what_a_version_before_unpacked_is_unpacked_anew_and_left_to_be_removed(tmp_path: Path) -> None:
    image, roots = archive(tmp_path, "./"), Roots(tmp_path / "cache")
    old = unpacked_before(tmp_path / "cache", image)
    with pytest.raises(NoSuchImage):
        roots.find(image)
    assert [(found.kind, found.place) for found in roots.stored_items()] == [("made", old)]
    await roots.unpack(image, quiet)
    assert (roots.find(image) / FILES[2]).exists()
    found = {holding.place: (holding.kind, holding.image) for holding in roots.stored_items()}
    assert found == {old: ("left", image.id), roots.find(image): ("made", image.id)}


@pytest.mark.parametrize("anew", [True, False])
async def test_an_image_that_is_let_go_of_leaves_nothing(tmp_path: Path, anew: bool) -> None:
    image, roots = archive(tmp_path, "./"), Roots(tmp_path / "cache")
    unpacked_before(tmp_path / "cache", image)
    if anew:
        await roots.unpack(image, quiet)
    await roots.release(image.id)
    await roots.release(image.id)
    assert roots.stored_items() == []
