"""The contract of guests for interacting with a command while it runs."""

from __future__ import annotations

import hashlib
import os
import secrets

import anyio
import pytest

from hiveyard.core.commands import Command
from hiveyard.core.errors import CannotExecute, MachineLost
from hiveyard.core.ports import Guest, Stream

from .conftest import Place

pytestmark = pytest.mark.anyio
PATIENCE = 60.0


async def everything(receive: object) -> bytes:
    pieces = []
    while piece := await receive():  # type: ignore[operator]
        pieces.append(piece)
    return b"".join(pieces)


async def line(stream: Stream) -> bytes:
    said = b""
    with anyio.fail_after(PATIENCE):
        while not said.endswith(b"\n"):
            piece = await stream.receive()
            assert piece, said
            said += piece
    return said


async def gone(guest: Guest, pid: bytes) -> None:
    with anyio.fail_after(PATIENCE):
        while await guest.exists(f"/proc/{int(pid)}"):  # noqa: ASYNC110 - the process is in another machine
            await anyio.sleep(0.05)


async def test_question_and_answer_go_back_and_forth(guest: Guest) -> None:
    async with guest.open(Command(shell='while read -r w; do echo "<$w>"; done; echo bye; exit 7')) as stream:
        for word in (b"one", b"two", b"three"):
            await stream.send(word + b"\n")
            assert await line(stream) == b"<" + word + b">\n"
        await stream.send_eof()
        await stream.send_eof()
        assert await everything(stream.receive) == b"bye\n"
        assert await stream.wait() == 7


async def test_the_outputs_come_apart_and_nothing_is_added_to_them(guest: Guest) -> None:
    async with guest.open(Command(shell="printf out; printf '\\0err' >&2; exit 126")) as stream:
        await stream.send_eof()
        assert await everything(stream.receive) == b"out"
        assert await everything(stream.receive_error) == b"\0err"
        assert await stream.wait() == 126


async def test_the_command_has_its_directory_and_environment(guest: Guest) -> None:
    command = Command(argv=("bash", "-c", 'printf "%s %s" "$PWD" "$WORD"'), cwd="/tmp", env={"WORD": "a b"})
    async with guest.open(command) as stream:
        assert await everything(stream.receive) == b"/tmp a b"


async def test_much_goes_through_in_both_directions_at_once(guest: Guest) -> None:
    data = secrets.token_bytes(1 << 20) * 8
    got = hashlib.sha256()
    async with guest.open(Command(argv=("cat",))) as stream:

        async def feed() -> None:
            for start in range(0, len(data), 100_000):
                await stream.send(data[start : start + 100_000])
            await stream.send_eof()

        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as group:
                group.start_soon(feed)
                while piece := await stream.receive():
                    got.update(piece)
        assert await stream.wait() == 0
    assert got.digest() == hashlib.sha256(data).digest()


async def test_a_program_that_nobody_reads_waits(guest: Guest, folder: str) -> None:
    script = 'head -c 20000000 /dev/zero; echo done >"$1"'
    async with guest.open(Command(argv=("bash", "-c", script, "x", f"{folder}/done"))) as stream:
        await anyio.sleep(1)
        assert not await guest.exists(f"{folder}/done")
        size = 0
        with anyio.fail_after(PATIENCE):
            while piece := await stream.receive():
                size += len(piece)
        assert (size, await stream.wait()) == (20_000_000, 0)


async def test_leaving_kills_it_and_what_it_started(guest: Guest) -> None:
    script = "trap '' HUP PIPE TERM; (setsid bash -c 'echo $$; exec sleep 1000') & exec sleep 1000"
    async with guest.open(Command(shell=script)) as stream:
        pid = await line(stream)
    await gone(guest, pid)


async def test_cancelling_kills_it(guest: Guest) -> None:
    pid = b""
    with anyio.CancelScope() as scope:
        async with guest.open(Command(shell="echo $$; exec sleep 1000")) as stream:
            pid = await line(stream)
            scope.cancel()
            await stream.receive()
    await gone(guest, pid)


async def test_what_it_left_in_the_background_lives_when_it_ended_by_itself(guest: Guest) -> None:
    async with guest.open(Command(shell="sleep 1000 >/dev/null 2>&1 & echo $!")) as stream:
        pid = await line(stream)
        assert await stream.wait() == 0
    assert await guest.exists(f"/proc/{int(pid)}")
    await guest.run(Command(argv=("bash", "-c", 'kill "$1"', "x", str(int(pid)))))


async def test_its_end_is_told_while_its_children_hold_the_outputs(guest: Guest) -> None:
    async with guest.open(Command(shell="sleep 1000 & exit 3")) as stream:
        with anyio.fail_after(PATIENCE):
            assert await stream.wait() == 3


@pytest.mark.parametrize("argv", [("/no/such",), ("no-such-program",), ("/tmp",)])
async def test_what_cannot_be_started_is_an_error(guest: Guest, argv: tuple[str, ...]) -> None:
    with pytest.raises(CannotExecute, match=argv[0]):
        async with guest.open(Command(argv=argv)) as stream:
            await everything(stream.receive)
            await stream.wait()


async def test_a_directory_that_is_not_there_is_an_error_at_once(guest: Guest) -> None:
    with pytest.raises(CannotExecute, match="/no/such"):
        async with guest.open(Command(argv=("true",), cwd="/no/such")):
            raise AssertionError("it was opened")


async def test_a_machine_that_dies_under_it_is_lost(place: Place) -> None:
    crash = place.offer.crash
    async with place.guest() as guest:
        with pytest.raises(MachineLost), anyio.fail_after(PATIENCE):
            async with guest.open(Command(argv=("sleep", "1000"))) as stream:
                await crash(place.name)
                assert await everything(stream.receive) == b""
                await stream.wait()


async def test_many_at_once_do_not_mix(guest: Guest) -> None:
    async def one(number: int) -> None:
        word = os.urandom(8).hex().encode()
        async with guest.open(Command(argv=("cat",))) as stream:
            await stream.send(word)
            await stream.send_eof()
            assert await everything(stream.receive) == word
            assert await stream.wait() == 0

    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as group:
            for number in range(40):
                group.start_soon(one, number)


async def test_nothing_is_lost_when_one_output_is_read_slowly_and_the_other_is_waited_for(guest: Guest) -> None:
    size = 8 << 20
    async with guest.open(Command(shell=f"head -c {size} /dev/zero; echo end >&2")) as stream:
        got = 0

        async def listen() -> None:
            assert await everything(stream.receive_error) == b"end\n"

        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as group:
                group.start_soon(listen)
                while piece := await stream.receive():
                    got += len(piece)
                    await anyio.sleep(0.01)
        assert (got, await stream.wait()) == (size, 0)
