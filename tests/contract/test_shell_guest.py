"""Test the shared guest on transports that fail: truncated, corrupted, silent and hostile ones. The programs are real
and run on this host."""

from __future__ import annotations

import os
import shlex
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from hiveyard.core.commands import Command
from hiveyard.core.errors import (
    CannotExecute,
    CommandTimeout,
    CredentialsNotInstalled,
    GuestFileError,
    GuestPermissionDenied,
    GuestWriteUnverified,
    MachineLost,
)
from hiveyard.core.files import MakeDirectory
from hiveyard.core.machines import Capabilities
from hiveyard.core.ports import Stream
from hiveyard.credentials.inspection import contents, look
from hiveyard.kit import cmdline
from hiveyard.machines.shared.attached import AttachedStream, attached
from hiveyard.machines.shared.shell import ShellGuest
from tests.support.leaks import searched_directory

pytestmark = pytest.mark.anyio


class Way:
    """A transport that starts programs on this host. The tests make it fail."""

    def __init__(self, home: Path) -> None:
        self.env = {"HOME": str(home), "USER": "agent", "PATH": os.environ["PATH"], "LANG": "C.UTF-8"}
        self.opened = 0

    @asynccontextmanager
    async def open(self, argv: Sequence[str]) -> AsyncIterator[Stream]:
        self.opened += 1
        async with attached([os.fsencode(word) for word in self.words(argv)], self.env) as stream:
            yield self.spoiled(stream)

    def words(self, argv: Sequence[str]) -> Sequence[str]:
        return argv

    def spoiled(self, stream: AttachedStream) -> Stream:
        return stream


@pytest.fixture
def home() -> Iterator[Path]:
    with searched_directory() as path:
        yield Path(path)


def _guest(way: Way) -> ShellGuest:
    return ShellGuest(way, Capabilities(home=way.env["HOME"]))


class Garbling(Way):
    """A transport that changes one byte of the input."""

    def spoiled(self, stream: AttachedStream) -> Stream:
        class Spoiled(AttachedStream):
            async def send(self, data: bytes) -> None:
                await stream.send(data.replace(b"w", b"v", 1))

        return _like(stream, Spoiled)


class Cutting(Way):
    """A transport that loses the second half of the input without an error."""

    def spoiled(self, stream: AttachedStream) -> Stream:
        class Spoiled(AttachedStream):
            async def send(self, data: bytes) -> None:
                await stream.send(data[: len(data) // 2])

        return _like(stream, Spoiled)


class Dying(Way):
    """A transport whose machine is lost while a program runs."""

    def spoiled(self, stream: AttachedStream) -> Stream:
        class Spoiled(AttachedStream):
            async def wait(self) -> int:
                await anyio.sleep(0.2)
                raise MachineLost("the machine died")

        return _like(stream, Spoiled)


def _like(stream: AttachedStream, kind: type[AttachedStream]) -> AttachedStream:
    spoiled = kind.__new__(kind)
    spoiled.__dict__.update(stream.__dict__)
    return spoiled


@pytest.mark.parametrize("kind", [Garbling, Cutting])
async def test_a_write_that_was_changed_on_its_way_is_not_taken(home: Path, kind: type[Way]) -> None:
    (home / "file").write_bytes(b"old")
    with pytest.raises(GuestWriteUnverified):
        await _guest(kind(home)).write_atomic("~/file", b"the new content")
    assert (home / "file").read_bytes() == b"old"
    assert [path.name for path in home.iterdir()] == ["file"]


async def test_a_mode_that_a_file_system_does_not_keep_is_not_taken(home: Path) -> None:
    # The mode is also checked if the umask alone sets it: here by a `stat` that prints another one.
    (home / "bin").mkdir()
    (home / "bin/stat").write_text("#!/bin/sh\necho 3 777\n")
    (home / "bin/stat").chmod(0o755)
    way = Way(home)
    way.env["PATH"] = f"{home}/bin:{way.env['PATH']}"
    with pytest.raises(GuestWriteUnverified):
        await _guest(way).write_atomic("~/file", b"new", mode=0o600)
    assert not (home / "file").exists()


async def test_a_machine_that_is_lost_is_that_one_error(home: Path) -> None:
    with pytest.raises(MachineLost):
        await _guest(Dying(home)).run(Command(argv=("sleep", "5")))
    with pytest.raises(MachineLost):
        await _guest(Dying(home)).read("~")


async def test_a_machine_that_is_lost_during_a_timeout_is_lost_and_not_late(home: Path) -> None:
    with pytest.raises(MachineLost):
        await _guest(Dying(home)).run(Command(argv=("sleep", "5")), timeout=0.05)


class Still(Way):
    """A transport to a frozen machine: requests wait until it continues."""

    def __init__(self, home: Path) -> None:
        super().__init__(home)
        self.goes_on = anyio.Event()

    @asynccontextmanager
    async def open(self, argv: Sequence[str]) -> AsyncIterator[Stream]:
        await self.goes_on.wait()
        async with super().open(argv) as stream:
            yield stream


async def test_a_command_that_waits_for_its_machine_to_go_on_is_late_or_cancelled_and_never_begins(home: Path) -> None:
    way = Still(home)
    guest = _guest(way)
    with anyio.fail_after(60):
        with pytest.raises(CommandTimeout):
            await guest.run(Command(shell="touch ~/late"), timeout=0.05)
        with anyio.move_on_after(0.05) as scope:
            await guest.run(Command(shell="touch ~/cancelled"), timeout=60)
        assert scope.cancelled_caught
        async with anyio.create_task_group() as group:
            group.start_soon(guest.write, "~/file", b"x")
            await anyio.sleep(0.05)
            assert list(home.iterdir()) == []
            way.goes_on.set()
    assert [path.name for path in home.iterdir()] == ["file"]


class Starting(Way):
    """A transport that never reports the start of the first program. `pid` is a file of that program."""

    def __init__(self, home: Path) -> None:
        super().__init__(home)
        self.pid = home / "pid"

    @asynccontextmanager
    async def open(self, argv: Sequence[str]) -> AsyncIterator[Stream]:
        async with super().open(argv) as stream:
            if self.opened == 1:
                await anyio.sleep_forever()
            yield stream


async def test_what_began_although_nobody_heard_of_it_is_killed(home: Path) -> None:
    way = Starting(home)
    script = "setsid -f bash -c 'echo $$ >~/half; mv ~/half ~/pid; exec sleep 1000'"
    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            group.start_soon(_guest(way).run, Command(shell=script))
            while not way.pid.exists():  # noqa: ASYNC110 (another program creates it)
                await anyio.sleep(0.02)
            group.cancel_scope.cancel()
    assert way.opened == 2
    assert not list(cmdline.words([int(way.pid.read_text())]))


class Chattering(Way):
    """A guest whose bash prints a warning first."""

    def words(self, argv: Sequence[str]) -> Sequence[str]:
        script = 'echo "bash: warning: setlocale: LC_ALL: cannot change locale" >&2; exec "$@"'
        return ("bash", "-c", script, "way", *argv)


async def test_what_a_shell_says_before_the_command_is_not_the_commands(home: Path) -> None:
    result = await _guest(Chattering(home)).run(Command(shell="echo out; echo err >&2; exit 3"))
    assert result == (3, b"out\n", b"err\n", False)
    with pytest.raises(CannotExecute, match="nothing-there"):
        await _guest(Chattering(home)).run(Command(argv=("nothing-there",)))


class Empty(Way):
    """A guest without bash."""

    def words(self, argv: Sequence[str]) -> Sequence[str]:
        return ("sh", "-c", "echo 'sh: bash: not found' >&2; exit 127")


async def test_a_guest_without_bash_says_so(home: Path) -> None:
    with pytest.raises(CannotExecute, match="bash: not found"):
        await _guest(Empty(home)).run(Command(argv=("true",)))


class Flooding(Way):
    """A guest that prints without end instead of starting the command."""

    def words(self, argv: Sequence[str]) -> Sequence[str]:
        return ("bash", "-c", "head -c 50000000 /dev/zero >&2; exit 0")


async def test_a_guest_that_floods_instead_of_answering_is_bounded(home: Path) -> None:
    with pytest.raises(CannotExecute):
        await _guest(Flooding(home)).run(Command(argv=("true",)))


async def test_each_verb_is_one_round_trip(home: Path) -> None:
    way = Way(home)
    guest = _guest(way)
    await guest.run(Command(argv=("true",)))
    await guest.mkdir("~/a/b")
    await guest.write("~/a/b/c", b"x")
    await guest.write_atomic("~/a/d/e", b"x", mode=0o755)
    await guest.read("~/a/b/c", offset=1)
    await guest.exists("~/a")
    await guest.remove("~/a/b/c")
    await guest.remove_tree("~/a")
    assert way.opened == 8


_SPOKEN = "printf '%s %d\\n' \"$1\" $$ >&2; "
"""The output of the RUN script before that of the command."""


class Answering(Way):
    """A transport that runs one given program instead of every other."""

    def __init__(self, home: Path, script: str) -> None:
        super().__init__(home)
        self._script = script

    def words(self, argv: Sequence[str]) -> Sequence[str]:
        return ("bash", "-c", self._script, *argv[3:5])


@pytest.mark.parametrize("number", ["", "99999999999999999999", "-1", "²", "1 2", "x" * 5000])
async def test_a_batch_believes_no_number_of_a_step(home: Path, number: str) -> None:
    steps = [MakeDirectory(path="/a"), MakeDirectory(path="/b"), MakeDirectory(path="/c")]
    with pytest.raises(GuestPermissionDenied) as caught:
        await _guest(Answering(home, f"echo {shlex.quote(number)}; exit 43")).batch(steps)
    assert caught.value.context == {"operation": "batch", "path": "/c", "step": "2"}


async def test_a_batch_that_was_killed_blames_no_step(home: Path) -> None:
    guest = _guest(Answering(home, "kill -KILL $$"))
    with pytest.raises(GuestFileError, match="killed the script for 2 steps") as caught:
        await guest.batch([MakeDirectory(path="/a"), MakeDirectory(path="/b")])
    assert caught.value.context == {"operation": "batch"}


@pytest.mark.parametrize("said", ["f 600 ²", "f ² 0", "f 600 " + "9" * 5000, "f 600", "q 600 0", ""])
async def test_what_a_guest_says_of_its_files_is_not_believed(home: Path, said: str) -> None:
    with pytest.raises(CredentialsNotInstalled, match="does not report"):
        await look(_guest(Answering(home, _SPOKEN + f"echo 0; echo {shlex.quote(said)}")), ["/a"])


@pytest.mark.parametrize("said", ["²\nx", "5\nabc", "-1\nx", "9" * 50 + "\nx", "nothing", ""])
async def test_what_a_guest_says_is_in_its_files_is_not_believed(home: Path, said: str) -> None:
    with pytest.raises(CredentialsNotInstalled, match="cannot be read"):
        await contents(_guest(Answering(home, _SPOKEN + f"printf %s {shlex.quote(said)}")), ["/a"])


async def test_a_file_that_is_too_large_for_a_credential_is_told_as_such(home: Path) -> None:
    with pytest.raises(CredentialsNotInstalled, match="/a has 2000000 bytes"):
        await contents(_guest(Answering(home, _SPOKEN + "echo 2000000; head -c 2000000 /dev/zero")), ["/a"])
