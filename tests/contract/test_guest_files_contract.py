"""The contract of guests for files."""

from __future__ import annotations

import os
import secrets
from collections.abc import Awaitable, Callable

import anyio
import pytest

from hiveyard.core.commands import Command
from hiveyard.core.errors import (
    BadInput,
    GuestFileError,
    GuestFileNotFound,
    GuestFileTooLarge,
    GuestIsADirectory,
    GuestNoSpace,
    GuestNotADirectory,
    GuestPermissionDenied,
)
from hiveyard.core.files import FileStep, MakeDirectory, Remove, SetMode, WriteFile
from hiveyard.core.ports import Guest
from hiveyard.kit.names import new_id

pytestmark = pytest.mark.anyio

# Each character that means something to a shell or a tool, where it means most.
ODD_NAMES = (
    "-rf",
    "~",
    "...",
    "\n",
    "--help 'a' \"b\" $(touch hacked) `id` * ? a\nb \\ ü😀 \x01 # %s \udcff\udcfe\n",
    "x" * 200,
)
EVERY_BYTE = bytes(range(256))


async def _mode(guest: Guest, path: str) -> str:
    return (await guest.run(Command(argv=("stat", "-c", "%a", "--", path)))).stdout.decode().strip()


@pytest.mark.parametrize("size", [0, 65_537, 5_000_000])
async def test_a_file_of_any_size_comes_back_as_it_was_written(guest: Guest, folder: str, size: int) -> None:
    data = secrets.token_bytes(size)
    await guest.write_atomic(f"{folder}/atomic", data)
    assert await guest.read(f"{folder}/atomic") == data
    await guest.write(f"{folder}/plain", data)
    assert await guest.read(f"{folder}/plain") == data


@pytest.mark.parametrize("name", ODD_NAMES, ids=ascii)
async def test_a_name_may_hold_any_character(guest: Guest, folder: str, name: str) -> None:
    path = f"{folder}/{name}/{name}"
    await guest.mkdir(f"{folder}/{name}")
    await guest.write(path, b"old")
    await guest.write_atomic(path, EVERY_BYTE)
    assert await guest.read(path) == EVERY_BYTE
    assert await guest.exists(path)
    await guest.remove(path)
    assert not await guest.exists(path)
    await guest.remove_tree(f"{folder}/{name}")
    assert (await guest.run(Command(argv=("ls", "-A", folder)))).stdout == b""


async def test_a_tilde_is_the_home_of_the_guest(guest: Guest) -> None:
    await guest.write_atomic("~/a/b/c", b"at home")
    assert (await guest.run(Command(shell='cat "$HOME/a/b/c"'))).stdout == b"at home"
    await guest.remove_tree("~/a")
    assert not await guest.exists("~/a")


@pytest.mark.parametrize("path", ["", "relative", "./x", "~other", "../x", "/a\0b"])
async def test_a_path_that_is_not_absolute_is_bad_input(guest: Guest, path: str) -> None:
    calls: list[Callable[[str], Awaitable[object]]] = [
        guest.read,
        guest.exists,
        guest.remove,
        guest.remove_tree,
        guest.mkdir,
    ]
    for call in calls:
        with pytest.raises(BadInput):
            await call(path)


async def test_reading_begins_at_an_offset(guest: Guest, folder: str) -> None:
    await guest.write(f"{folder}/file", EVERY_BYTE)
    for offset in (0, 1, 255, 256, 1000):
        assert await guest.read(f"{folder}/file", offset=offset) == EVERY_BYTE[offset:]


async def test_more_than_the_limit_is_refused_and_as_much_is_given(guest: Guest, folder: str) -> None:
    await guest.write(f"{folder}/file", b"12345")
    assert await guest.read(f"{folder}/file", limit=5) == b"12345"
    assert await guest.read(f"{folder}/file", limit=3, offset=2) == b"345"
    with pytest.raises(GuestFileTooLarge):
        await guest.read(f"{folder}/file", limit=4)


async def test_files_without_a_size_of_their_own_are_read_too(guest: Guest) -> None:
    assert (await guest.read("/proc/self/status")).startswith(b"Name:")


async def test_a_hole_gives_its_room_back_and_the_rest_keeps_its_place(guest: Guest, folder: str) -> None:
    made = await guest.run(
        Command(
            shell="yes | head -c 1M >file && fallocate --punch-hole --offset 0 --length 512K file && stat -c %b file",
            cwd=folder,
        )
    )
    assert made.status == 0, made
    assert int(made.stdout) * 512 <= 520 << 10
    assert await guest.read(f"{folder}/file") == bytes(512 << 10) + b"y\n" * (256 << 10)


async def test_what_is_missing_is_not_found(guest: Guest, folder: str) -> None:
    for path in (f"{folder}/none", f"{folder}/none/below"):
        with pytest.raises(GuestFileNotFound, match=path):
            await guest.read(path)
        assert not await guest.exists(path)
    with pytest.raises(GuestFileNotFound):
        await guest.write(f"{folder}/none/file", b"x")
    with pytest.raises(GuestFileNotFound):
        await guest.write_atomic(f"{folder}/none/file", b"x", parents=False)
    with pytest.raises(GuestFileNotFound):
        await guest.mkdir(f"{folder}/none/below", parents=False)
    await guest.remove(f"{folder}/none")
    await guest.remove_tree(f"{folder}/none/below")


async def test_a_directory_is_not_a_file(guest: Guest, folder: str) -> None:
    with pytest.raises(GuestIsADirectory):
        await guest.read(folder)
    with pytest.raises(GuestIsADirectory):
        await guest.write(folder, b"x")
    with pytest.raises(GuestIsADirectory):
        await guest.write_atomic(folder, b"x")
    with pytest.raises(GuestIsADirectory):
        await guest.remove(folder)
    assert await guest.exists(folder)


async def test_a_file_is_not_a_directory(guest: Guest, folder: str) -> None:
    await guest.write(f"{folder}/file", b"x")
    below = f"{folder}/file/below"
    with pytest.raises(GuestNotADirectory):
        await guest.read(below)
    with pytest.raises(GuestNotADirectory):
        await guest.write(below, b"x")
    with pytest.raises(GuestNotADirectory):
        await guest.write_atomic(below, b"x")
    for path in (f"{folder}/file", below):
        with pytest.raises(GuestNotADirectory):
            await guest.mkdir(path)
    assert not await guest.exists(below)
    assert await guest.read(f"{folder}/file") == b"x"


async def test_what_may_not_be_touched_is_denied(guest: Guest, folder: str) -> None:
    await guest.write(f"{folder}/closed", b"x", mode=0o000)
    await guest.mkdir(f"{folder}/shut", mode=0o555)
    with pytest.raises(GuestPermissionDenied):
        await guest.read(f"{folder}/closed")
    with pytest.raises(GuestPermissionDenied):
        await guest.write(f"{folder}/closed", b"y")
    for verb in (guest.write, guest.write_atomic):
        with pytest.raises(GuestPermissionDenied):
            await verb(f"{folder}/shut/file", b"y")
    with pytest.raises(GuestPermissionDenied):
        await guest.mkdir(f"{folder}/shut/below")
    with pytest.raises(GuestPermissionDenied):
        await guest.write("/etc/passwd", b"root::0:0::/:/bin/sh\n")


async def test_a_full_disk_is_told_as_such(guest: Guest) -> None:
    with pytest.raises(GuestNoSpace):
        await guest.write("/dev/full", b"x")


@pytest.mark.parametrize("mode", [0o400, 0o755, 0o777])
async def test_a_file_has_the_mode_that_was_asked_for(guest: Guest, folder: str, mode: int) -> None:
    await guest.write(f"{folder}/plain", b"x", mode=mode)
    await guest.write_atomic(f"{folder}/atomic", b"x", mode=mode)
    await guest.mkdir(f"{folder}/directory", mode=mode)
    for name in ("plain", "atomic", "directory"):
        assert await _mode(guest, f"{folder}/{name}") == f"{mode:o}"


async def test_an_atomic_write_replaces_what_is_there_with_its_mode(guest: Guest, folder: str) -> None:
    await guest.write_atomic(f"{folder}/file", b"old and long", mode=0o755)
    await guest.write_atomic(f"{folder}/file", b"new", mode=0o600)
    assert await guest.read(f"{folder}/file") == b"new"
    assert await _mode(guest, f"{folder}/file") == "600"
    assert (await guest.run(Command(argv=("ls", "-A", folder)))).stdout == b"file\n"


async def test_an_atomic_write_that_fails_leaves_the_old_content_and_nothing_else(guest: Guest, folder: str) -> None:
    await guest.write_atomic(f"{folder}/d/file", b"old")
    await guest.run(Command(argv=("chmod", "555", f"{folder}/d")))
    with pytest.raises(GuestPermissionDenied):
        await guest.write_atomic(f"{folder}/d/file", b"new")
    assert await guest.read(f"{folder}/d/file") == b"old"
    assert (await guest.run(Command(argv=("ls", "-A", f"{folder}/d")))).stdout == b"file\n"


async def test_a_file_may_be_given_to_the_user_and_group_that_is_asked_for(guest: Guest, folder: str) -> None:
    me = (await guest.run(Command(shell="id -un; id -g"))).stdout.decode().split()
    await guest.write_atomic(f"{folder}/mine", b"x", mode=0o640, owner=me[0], group=me[1])
    seen = await guest.run(Command(argv=("stat", "-c", "%U %g %a", f"{folder}/mine")))
    assert seen.stdout.decode().split() == [*me, "640"]


@pytest.mark.parametrize(("owner", "group"), [("root", None), (None, "root"), ("0", "0")])
async def test_a_file_is_given_to_nobody_whom_the_guest_may_not_give_it_to(
    guest: Guest, folder: str, owner: str | None, group: str | None
) -> None:
    async def give(owner: str | None, group: str | None) -> None:
        await guest.write_atomic(f"{folder}/theirs", b"x", owner=owner, group=group)

    with pytest.raises(GuestPermissionDenied):
        await give(owner, group)
    with pytest.raises(GuestFileError, match="nobody-of-that-name"):
        await give(owner and "nobody-of-that-name", group and "nobody-of-that-name")
    with pytest.raises(BadInput, match="is not a valid name or number"):
        await give(owner and "agent:agent", group and "")
    assert (await guest.run(Command(argv=("ls", "-A", folder)))).stdout == b""


async def test_many_steps_are_done_in_their_order_as_each_alone_would_be(guest: Guest, folder: str) -> None:
    large, odd = os.urandom(1_100_000), f"{folder}/a b/$(id)'\"\n"
    await guest.write(f"{folder}/old", b"old")
    await guest.batch(
        [
            MakeDirectory(path=f"{folder}/first", mode=0o700),
            MakeDirectory(path=f"{folder}/first"),
            WriteFile(path=f"{folder}/first/none", data=b"", mode=0o600),
            WriteFile(path=odd, data=b"odd\n", mode=0o755),
            WriteFile(path=f"{folder}/first/large", data=large),
            WriteFile(path=f"{folder}/first/larger", data=large + large),
            WriteFile(path=f"{folder}/first/last", data=b"last", mode=0o400),
            SetMode(path=f"{folder}/first", mode=0o750),
            Remove(path=f"{folder}/old"),
            Remove(path=f"{folder}/old"),
        ]
    )
    assert await guest.read(f"{folder}/first/none") == b""
    assert await guest.read(odd) == b"odd\n"
    assert await guest.read(f"{folder}/first/large") == large
    assert await guest.read(f"{folder}/first/larger") == large + large
    assert await guest.read(f"{folder}/first/last") == b"last"
    modes = {"": "750", "/none": "600", "/large": "644", "/last": "400"}
    assert {name: await _mode(guest, f"{folder}/first{name}") for name in modes} == modes
    assert await _mode(guest, odd) == "755"
    assert not await guest.exists(f"{folder}/old")
    await guest.batch([])


async def test_the_first_step_that_fails_is_told_and_ends_them(guest: Guest, folder: str) -> None:
    good = [WriteFile(path=f"{folder}/{number}", data=b"x" * number) for number in range(3)]
    cases: list[tuple[FileStep, type[GuestFileError]]] = [
        (WriteFile(path=folder, data=b"in its place"), GuestIsADirectory),
        (WriteFile(path=f"{folder}/no/file", data=b"lost", parents=False), GuestFileNotFound),
        (MakeDirectory(path=f"{folder}/2"), GuestNotADirectory),
        (SetMode(path=f"{folder}/nothing", mode=0o600), GuestFileNotFound),
        (SetMode(path="/etc/passwd", mode=0o666), GuestPermissionDenied),
        (Remove(path=folder), GuestIsADirectory),
    ]
    for number, (bad, kind) in enumerate(cases):
        # Each second one is the last.
        after = [] if number % 2 else [WriteFile(path=f"{folder}/after", data=b"x"), *good]
        with pytest.raises(kind) as caught:
            await guest.batch([*good, bad, *after])
        assert caught.value.context["step"] == "3"
        assert caught.value.context["path"] == bad.path
        assert (await guest.run(Command(argv=("ls", "-A", folder)))).stdout == b"0\n1\n2\n"
    with pytest.raises(BadInput):
        await guest.batch([*good, Remove(path="relative")])


async def test_a_reader_sees_the_old_content_or_the_new_and_nothing_between(guest: Guest, folder: str) -> None:
    contents = [bytes([digit]) * 300_000 for digit in b"0123456789"]
    path = f"{folder}/file"
    await guest.write_atomic(path, contents[0])
    async with anyio.create_task_group() as group:

        async def write() -> None:
            for content in contents:
                await guest.write_atomic(path, content)

        group.start_soon(write)
        for _ in range(10):
            assert await guest.read(path) in contents
    assert await guest.read(path) == contents[-1]


async def test_of_many_writers_at_once_one_wins_whole(guest: Guest, folder: str) -> None:
    contents = [bytes([digit]) * 100_000 for digit in b"abcdef"]
    async with anyio.create_task_group() as group:
        for content in contents:
            group.start_soon(guest.write_atomic, f"{folder}/file", content)
    assert await guest.read(f"{folder}/file") in contents
    assert (await guest.run(Command(argv=("ls", "-A", folder)))).stdout == b"file\n"


async def test_symlinks_are_followed_for_reading_and_replaced_by_writing(guest: Guest, folder: str) -> None:
    await guest.write(f"{folder}/target", b"target")
    await guest.run(Command(shell="ln -s target link; ln -s nowhere dangling; ln -s loop loop", cwd=folder))
    assert await guest.read(f"{folder}/link") == b"target"
    assert not await guest.exists(f"{folder}/dangling")
    with pytest.raises(GuestFileNotFound):
        await guest.read(f"{folder}/dangling")
    with pytest.raises(GuestFileError):
        await guest.read(f"{folder}/loop")
    await guest.write_atomic(f"{folder}/link", b"new")
    assert await guest.read(f"{folder}/target") == b"target"
    for name in ("link", "dangling", "loop"):
        await guest.remove(f"{folder}/{name}")
    assert (await guest.run(Command(argv=("ls", "-A", folder)))).stdout == b"target\n"


async def test_removing_a_tree_does_not_follow_symlinks(guest: Guest, folder: str) -> None:
    await guest.write_atomic(f"{folder}/kept/file", b"kept")
    await guest.mkdir(f"{folder}/tree")
    await guest.run(Command(shell="ln -s ../kept tree/link; ln -s kept direct", cwd=folder))
    await guest.remove_tree(f"{folder}/tree")
    await guest.remove_tree(f"{folder}/direct/")
    assert await guest.read(f"{folder}/kept/file") == b"kept"
    assert (await guest.run(Command(argv=("ls", "-A", folder)))).stdout == b"kept\n"


async def test_a_tree_that_was_made_read_only_is_removed_too(guest: Guest, folder: str) -> None:
    await guest.write_atomic(f"{folder}/cache/a/b/file", b"x", mode=0o400)
    await guest.run(Command(argv=("chmod", "-R", "a-w", f"{folder}/cache")))
    await guest.remove_tree(f"{folder}/cache")
    assert not await guest.exists(f"{folder}/cache")


@pytest.mark.parametrize(
    "path", ["/", "//", "/.", "~", "~/", "/session", "/session/", "/session/../session", "/home", "~/.."]
)
async def test_what_the_machine_stands_on_is_not_removed(guest: Guest, path: str) -> None:
    with pytest.raises(BadInput):
        await guest.remove_tree(path)


async def test_a_pipe_is_no_file_and_holds_nobody_up(guest: Guest) -> None:
    # Not below /session: a share over 9p carries no pipes.
    pipe = f"/tmp/pipe-{new_id()}"
    assert (await guest.run(Command(argv=("mkfifo", pipe)))).ok
    with anyio.fail_after(30), pytest.raises(GuestFileError):
        await guest.read(pipe)


async def test_making_a_directory_twice_is_making_it_once(guest: Guest, folder: str) -> None:
    for _ in range(2):
        await guest.mkdir(f"{folder}/a/b/c", mode=0o700)
    assert await _mode(guest, f"{folder}/a/b/c") == "700"
    await guest.mkdir(f"{folder}/a/b/d", parents=False)
    assert await guest.exists(f"{folder}/a/b/d")
