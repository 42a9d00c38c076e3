"""The images of a host. What needs no build is tested on images put there by hand; the rest builds one for real."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import pytest

from hiveyard.core.errors import (
    Ambiguous,
    HiveyardError,
    ImageBuildFailed,
    NoSpace,
    NoSuchImage,
    ProviderUnavailable,
)
from hiveyard.core.machines import Image
from hiveyard.images import build
from hiveyard.images.images import Images
from hiveyard.images.recipe import Recipe
from hiveyard.images.script import EPOCH

pytestmark = pytest.mark.anyio


def put(images: Images, id: str, recipe: Recipe, created_at: float = 1.0) -> Path:
    directory = images.directory / id
    directory.mkdir(parents=True)
    (directory / "rootfs.tar").write_bytes(b"tar")
    record = {
        "id": id,
        "name": recipe.name,
        "recipe": recipe.key(),
        "programs": {"git": "2.39.5"},
        "env": {},
        "size": 3,
        "created_at": created_at,
    }
    (directory / "image.json").write_text(json.dumps(record))
    return directory


@pytest.fixture
def images(tmp_path: Path) -> Images:
    (tmp_path / "tiny.toml").write_text('packages = ["git"]')
    return Images(tmp_path / "cache", tmp_path)


async def test_a_built_image_is_found_by_name_by_file_by_id_and_by_the_start_of_it(
    images: Images, tmp_path: Path
) -> None:
    place = put(images, "0123456789abcdef", images.recipe("tiny"))
    expected = Image(
        id="0123456789abcdef",
        name="tiny",
        rootfs=place / "rootfs.tar",
        programs={"git": "2.39.5"},
        size=3,
        created_at=1.0,
    )
    for ref in ("tiny", str(tmp_path / "tiny.toml"), "0123456789abcdef", "0123"):
        assert images.get(ref) == expected
        assert images.resolve(ref) == expected
        assert await images.ensure(ref) == expected
    assert images.list() == [expected]


async def test_a_built_image_is_returned_without_a_build(images: Images) -> None:
    put(images, "0123456789abcdef", images.recipe("tiny"))
    said: list[str] = []
    image = await images.build(images.recipe("tiny"), said.append)
    assert image.id == "0123456789abcdef"
    assert said == []


def test_a_recipe_that_changed_is_not_built(images: Images, tmp_path: Path) -> None:
    put(images, "0123456789abcdef", images.recipe("tiny"))
    (tmp_path / "tiny.toml").write_text('packages = ["git", "curl"]')
    with pytest.raises(NoSuchImage) as error:
        images.get("tiny")
    assert error.value.hint == "hv image build tiny"
    assert images.resolve("tiny") == images.recipe("tiny")


def test_the_newest_of_two_images_of_a_recipe_is_the_one(images: Images) -> None:
    put(images, "0123456789abcdef", images.recipe("tiny"), created_at=1.0)
    put(images, "fedcba9876543210", images.recipe("tiny"), created_at=2.0)
    assert images.get("tiny").id == "fedcba9876543210"
    assert [image.id for image in images.list()] == ["fedcba9876543210", "0123456789abcdef"]


def test_the_start_of_two_ids_is_ambiguous(images: Images) -> None:
    for id in ("0123456789abcdef", "0123fedcba987654"):
        put(images, id, images.recipe("tiny"))
    with pytest.raises(Ambiguous, match="0123456789abcdef"):
        images.get("0123")


def test_what_is_damaged_or_half_there_is_no_image(images: Images) -> None:
    (put(images, "0123456789abcdef", images.recipe("tiny")) / "image.json").write_text("{")
    (put(images, "1123456789abcdef", images.recipe("tiny")) / "image.json").write_text('{"id": 1}')
    (put(images, "2123456789abcdef", images.recipe("tiny")) / "rootfs.tar").unlink()
    assert images.list() == []
    with pytest.raises(NoSuchImage):
        images.get("tiny")


def test_a_removed_image_is_gone(images: Images) -> None:
    put(images, "0123456789abcdef", images.recipe("tiny"))
    assert images.remove("tiny").id == "0123456789abcdef"
    assert list(images.directory.iterdir()) == []
    with pytest.raises(NoSuchImage):
        images.remove("tiny")


@contextmanager
def small(place: Path) -> Iterator[Path]:
    """A file system of one MiB."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small file system")
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(place)], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Path]:
    with small(tmp_path / "small") as place:
        yield place


async def test_a_build_without_room_ends_before_it_begins(full: Path) -> None:
    need_tools()
    images = Images(full)
    with pytest.raises(NoSpace, match="needs 4 GiB"):
        await images.build(Recipe(name="tiny"))
    assert list(images.directory.glob(".building-*")) == []


def killed(images: Images, elsewhere: Path) -> Path:
    """Return the leftovers of a killed build: its directory, and in that the name of a place it has elsewhere."""
    elsewhere.mkdir(parents=True)
    (elsewhere / "data").write_bytes(b"half")
    left = images.directory / ".building-killed"
    left.mkdir(parents=True)
    (left / "elsewhere").write_bytes(bytes(elsewhere))
    return left


async def test_what_a_killed_build_has_elsewhere_goes_with_its_record(images: Images, tmp_path: Path) -> None:
    elsewhere = tmp_path / "former" / "hiveyard-build-killed"
    left = killed(images, elsewhere)
    await images.discard(left)
    assert not left.exists()
    assert list(elsewhere.parent.iterdir()) == []


async def test_only_the_place_of_a_build_is_removed(images: Images, tmp_path: Path) -> None:
    elsewhere = tmp_path / "hiveyard-build-of-another"
    left = killed(images, elsewhere)
    with pytest.raises(ImageBuildFailed, match="hiveyard-build-of-another"):
        await images.discard(left)
    assert left.exists()
    assert elsewhere.exists()


async def test_a_link_in_the_place_of_a_build_is_not_followed(images: Images, tmp_path: Path) -> None:
    left = killed(images, tmp_path / "mine")
    link = tmp_path / "hiveyard-build-killed"
    link.symlink_to(tmp_path / "mine")
    (left / "elsewhere").write_bytes(bytes(link))
    await images.discard(left)
    assert not left.exists()
    assert (tmp_path / "mine" / "data").exists()


async def test_what_cannot_be_removed_keeps_its_record_and_hinders_no_build(full: Path, tmp_path: Path) -> None:
    need_tools()
    images = Images(full)
    elsewhere = tmp_path / "hiveyard-build-killed"
    left = killed(images, elsewhere)
    with small(elsewhere / "mounted"):
        with pytest.raises(ImageBuildFailed, match=str(elsewhere)):
            await images.discard(left)
        with pytest.raises(NoSpace, match="needs 4 GiB"):
            await images.build(Recipe(name="tiny"))
        assert images.remains() == [left]
    with pytest.raises(NoSpace, match="needs 4 GiB"):
        await images.build(Recipe(name="tiny"))
    assert images.remains() == []
    assert not elsewhere.exists()


async def test_a_directory_that_cannot_be_written_is_an_error_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "images").write_text("in the way")
    with pytest.raises((HiveyardError, OSError)) as error:
        await Images(tmp_path).build(Recipe(name="tiny"))
    assert str(tmp_path) in str(error.value) or getattr(error.value, "errno", 0) == errno.EEXIST


# --- for real -------------------------------------------------------------------------------------------------------

TINY = """
packages = ["file"]
run = ["echo hello > /etc/greeting", "test \\"$GREETING\\" = 'it is \\"me\\"'"]
[env]
GREETING = 'it is "me"'
[programs]
bash = "bash --version"
"""


def need_tools() -> None:
    try:
        build.check_tools()
    except ProviderUnavailable as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(error.message)


def mounts_below(directory: Path) -> list[str]:
    return [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if f" {directory}/" in line]


def processes_of(directory: Path) -> list[str]:
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = file.read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
        except OSError:
            continue
        if str(directory) in line:
            found.append(line)
    return found


@pytest.mark.real
async def test_a_tiny_recipe_becomes_a_root_filesystem(tmp_path: Path) -> None:
    need_tools()
    (tmp_path / "tiny.toml").write_text(TINY)
    images = Images(tmp_path / "cache", tmp_path)
    said: list[str] = []
    image = await images.build(images.recipe("tiny"), said.append)
    assert said[0] == "fetching Debian bookworm"
    assert "running the recipe's script 2 of 2" in said
    assert image.programs["bash"].startswith("5.")
    assert image.env == {"GREETING": 'it is "me"'}
    assert image.size == image.rootfs.stat().st_size
    assert images.list() == [image]
    resolved = json.loads((image.rootfs.parent / "resolved.json").read_text())
    assert "file" in resolved
    _check_content(image.rootfs)
    assert sorted(path.name for path in images.directory.iterdir()) == [image.id, "lock"]

    def unheard(line: str) -> None:
        raise AssertionError(f"the second build did something: {line}")

    assert await images.build(images.recipe("tiny"), unheard) == image


def _check_content(rootfs: Path) -> None:
    with tarfile.open(rootfs) as tar:
        members = {member.name.removeprefix("./"): member for member in tar}

        def text(name: str) -> str:
            file = tar.extractfile(members[name])
            assert file is not None
            return file.read().decode()

        assert text("etc/greeting") == "hello\n"
        assert text("etc/environment") == 'GREETING="it is \\"me\\""\n'
        assert "agent:x:1000:1000::/home/agent:/bin/bash\n" in text("etc/passwd")
        assert "agent:*:" in text("etc/shadow")
        assert text("etc/resolv.conf") == text("etc/machine-id") == text("home/agent/.bashrc") == ""
    for name, owner, mode in (("home/agent", 1000, 0o755), ("session", 1000, 0o755), ("dev", 0, 0o755)):
        assert (members[name].isdir(), members[name].uid, members[name].mode) == (True, owner, mode)
    assert {member.uname for member in members.values()} == {""}
    assert not any(member.ischr() or member.isblk() for member in members.values())
    assert max(member.mtime for member in members.values()) <= int(EPOCH), "the day of the build is in the image"
    for trace in ("etc/apt/sources.list", "etc/apt/apt.conf.d/99mmdebstrap", "run/hiveyard-build", "root/.npmrc"):
        assert trace not in members
    assert not [name for name in members if name.startswith("etc/ssh/ssh_host_") or name.endswith(".deb")]


@pytest.mark.real
async def test_a_step_that_fails_is_told_with_its_last_words_and_leaves_only_the_log(tmp_path: Path) -> None:
    need_tools()
    images = Images(tmp_path)
    recipe = Recipe(name="broken", run=("echo these are the last words; exit 3",))
    with pytest.raises(ImageBuildFailed) as error:
        await images.build(recipe)
    assert "while running the recipe's script 1 of 1" in error.value.message
    assert "these are the last words" in error.value.message
    log = images.directory / "last-build.log"
    assert str(log) in error.value.message
    assert "these are the last words" in log.read_text()
    assert sorted(path.name for path in images.directory.iterdir()) == ["last-build.log", "lock"]


@pytest.mark.real
async def test_a_cancelled_build_leaves_no_file_no_mount_and_no_process(tmp_path: Path) -> None:
    need_tools()
    images = Images(tmp_path)
    recipe = Recipe(name="slow", run=("sleep 3617",))
    async with anyio.create_task_group() as group:

        def cancel_in_the_script(line: str) -> None:
            if line.startswith("running the recipe's script"):
                group.cancel_scope.cancel()

        await images.build(recipe, cancel_in_the_script)
    assert group.cancel_scope.cancelled_caught
    left = [path.name for path in images.directory.iterdir() if path.name != "last-build.log"]
    assert left == ["lock"]
    assert mounts_below(tmp_path) == []
    assert processes_of(tmp_path) == []
    assert not [line for line in processes_of(Path("sleep 3617")) if line.startswith("sleep")]


@pytest.mark.real
async def test_what_a_killed_build_left_is_swept_by_the_next(tmp_path: Path) -> None:
    need_tools()
    images = Images(tmp_path)
    left = images.directory / ".building-killed"
    left.mkdir(parents=True)
    (left / "rootfs.tar").write_bytes(b"half")
    with pytest.raises(ImageBuildFailed):
        await images.build(Recipe(name="broken", packages=("no-such-package-at-all",)))
    assert not left.exists()
