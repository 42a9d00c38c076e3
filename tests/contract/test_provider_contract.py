"""The contract of providers."""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import anyio
import pytest

from hiveyard.core.commands import Command
from hiveyard.core.errors import (
    BadInput,
    CannotExecute,
    CommandTimeout,
    GuestFileNotFound,
    GuestIsADirectory,
    MachineLost,
    MachineNotReady,
    NoSuchImage,
    NoSuchMachine,
)
from hiveyard.core.machines import MachineStatus
from hiveyard.core.ports import Terminals
from hiveyard.kit.names import new_id
from tests.support.person import person

from .conftest import Place, machine
from .providers import Offer
from .test_guest_open_contract import everything

pytestmark = pytest.mark.anyio


async def test_a_booted_machine_is_ready_and_found_with_what_it_was_made_of(place: Place) -> None:
    provider = place.offer.provider
    found = await provider.get(place.name)
    assert found.name == place.name
    assert found.status is MachineStatus.READY
    assert found.provider == provider.name
    assert found.image == place.offer.image.id
    assert dict(found.metadata) == {"why": "a test's own"}
    assert found.created_at > 1_700_000_000
    assert found in await provider.list()
    assert place.name in await provider.names()


async def test_the_host_name_is_the_name_of_the_machine(place: Place) -> None:
    async with place.guest() as guest:
        assert await guest.read("/proc/sys/kernel/hostname") == place.name.encode() + b"\n"


async def test_booting_a_ready_machine_gives_it_back_as_it_is(place: Place) -> None:
    provider, spec = place.offer.provider, place.offer.spec()
    async with place.guest() as guest:
        await guest.write("/tmp/here", b"still")
    again = await provider.boot(place.name, spec)
    assert again == await provider.get(place.name)
    async with place.guest() as guest:
        assert await guest.read("/tmp/here") == b"still"


async def test_an_image_that_was_not_prepared_cannot_be_booted(offer: Offer) -> None:
    name = f"t-{new_id()}"
    image = replace(offer.image, id="0123456789abcdef")
    with pytest.raises(NoSuchImage):
        await offer.provider.boot(name, offer.spec(image))
    assert name not in await offer.provider.names()


async def test_an_image_is_prepared_by_several_tasks_at_once_and_again_after_its_release(offer: Offer) -> None:
    if offer.twin is None:
        pytest.skip(f"one more image takes {offer.provider.name} minutes or money; its own tests do this")
    image = replace(offer.image, id=offer.twin, name="twin")
    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(offer.provider.prepare, image, offer.shape)
    async with machine(replace(offer, image=image)) as place:
        assert (await offer.provider.get(place.name)).image == image.id
    for _ in range(2):
        await offer.provider.release_image(image.id)
    with pytest.raises(NoSuchImage):
        await offer.provider.boot("t-none", offer.spec(image))


async def test_a_stopped_machine_keeps_its_name_and_metadata_and_can_be_booted_again(place: Place) -> None:
    provider = place.offer.provider
    for _ in range(2):
        await provider.stop(place.name)
        found = await provider.get(place.name)
        assert found.status is MachineStatus.STOPPED
        assert dict(found.metadata) == {"why": "a test's own"}
    assert place.name in await provider.names()
    with pytest.raises(MachineNotReady):
        async with place.guest():
            pass
    await provider.boot(place.name, place.offer.spec())
    async with place.guest() as guest:
        assert (await guest.run(Command(argv=("true",)))).ok


async def test_terminate_leaves_nothing_but_the_session_and_may_be_repeated(place: Place) -> None:
    provider = place.offer.provider
    async with place.guest() as guest:
        await guest.write_atomic("/session/result/kept", b"for the host")
    for _ in range(2):
        await provider.terminate(place.name)
        assert place.name not in await provider.names()
    if place.offer.local:
        assert Path(place.session, "result/kept").read_bytes() == b"for the host"


async def test_a_machine_that_does_not_exist_is_told_by_name(offer: Offer) -> None:
    name = f"t-{new_id()}"
    await offer.provider.terminate(name)
    for call in (offer.provider.get, offer.provider.stop):
        with pytest.raises(NoSuchMachine, match=name) as caught:
            await call(name)
        assert (caught.value.context["machine"], caught.value.context["operation"]) == (name, call.__name__)
    with pytest.raises(NoSuchMachine, match=name) as caught:
        async with offer.provider.guest(name):
            pass
    assert caught.value.context == {"machine": name, "operation": "guest"}


async def test_what_goes_wrong_inside_says_in_which_machine_and_what_was_being_done(place: Place) -> None:
    async with place.guest() as guest:
        sleeping = Command(argv=("sleep", "1000"), name="sleeper")
        with pytest.raises(CommandTimeout) as late:
            await guest.run(sleeping, timeout=0.3)
        with pytest.raises(CannotExecute) as missing:
            async with guest.open(Command(argv=("no-such-program",), name="nothing")) as stream:
                await stream.wait()
        with pytest.raises(GuestFileNotFound) as absent:
            await guest.read("/no/such/file")
        with pytest.raises(GuestIsADirectory) as followed:
            async with aclosing(guest.follow("/session")) as pieces:  # type: ignore[type-var]
                async for _ in pieces:
                    pass
    about = {"machine": place.name}
    assert late.value.context == {**about, "operation": "run", "command": "sleeper"}
    assert missing.value.context == {**about, "operation": "open", "command": "nothing"}
    assert absent.value.context == {**about, "operation": "read", "path": "/no/such/file"}
    assert followed.value.context == {**about, "operation": "follow", "path": "/session"}


@pytest.mark.parametrize(
    "name", ["", "A", "a/b", "..", "../etc", "-a", "a-", "a" * 64, "$(reboot)", "a b", "a\nb", ".a", "ä"]
)
async def test_what_cannot_be_a_host_name_cannot_be_a_machine(offer: Offer, name: str) -> None:
    spec = offer.spec()
    with pytest.raises(BadInput):
        await offer.provider.boot(name, spec)
    with pytest.raises(BadInput):
        await offer.provider.terminate(name)


async def test_a_restarted_daemon_finds_its_machines_and_goes_on_with_them(place: Place) -> None:
    provider = place.offer.again()
    assert place.name in await provider.names()
    assert await provider.get(place.name) == await place.offer.provider.get(place.name)
    async with provider.guest(place.name) as guest:
        assert (await guest.run(Command(shell="exit 3"))).status == 3
    await provider.terminate(place.name)
    with pytest.raises(NoSuchMachine):
        await place.offer.provider.get(place.name)


async def test_half_made_remains_have_a_name_and_are_replaced_by_a_machine(offer: Offer) -> None:
    name = f"t-{new_id()}"
    await offer.litter(name)
    assert name in await offer.again().names()
    try:
        await offer.again().boot(name, offer.spec())
        async with offer.provider.guest(name) as guest:
            assert (await guest.run(Command(argv=("true",)))).ok
    finally:
        await offer.provider.terminate(name)
    assert name not in await offer.provider.names()


async def test_half_made_remains_are_stopped_and_terminated_without_a_trace(offer: Offer) -> None:
    name = f"t-{new_id()}"
    await offer.litter(name)
    assert (await offer.provider.get(name)).status in (MachineStatus.ERROR, MachineStatus.STOPPED)
    for _ in range(2):
        await offer.provider.stop(name)
        assert (await offer.provider.get(name)).status is MachineStatus.STOPPED
    await offer.provider.terminate(name)
    assert name not in await offer.again().names()


@pytest.mark.parametrize("patience", [0.0, 0.01, 0.05])
async def test_a_boot_that_is_cancelled_leaves_nothing(offer: Offer, patience: float) -> None:
    name = f"t-{new_id()}"
    spec = offer.spec()
    with anyio.move_on_after(patience) as scope:
        await offer.provider.boot(name, spec)
    if not scope.cancelled_caught:
        await offer.provider.terminate(name)
    assert name not in await offer.again().names()


async def test_machines_side_by_side_do_not_see_each_other(offer: Offer) -> None:
    async with machine(offer) as one, machine(offer) as other, one.guest() as first, other.guest() as second:
        await first.write("/tmp/mine", b"1")
        await first.write("~/mine", b"1")
        await first.write("/session/mine", b"1")
        for path in ("/tmp/mine", "~/mine", "/session/mine"):
            assert not await second.exists(path)
        await first.run(Command(argv=("bash", "-c", 'setsid sleep "$1" >/dev/null 2>&1 </dev/null &', "x", "3611")))
        seen = await second.run(Command(shell="cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' '"))
        assert b"sleep 3611" not in seen.stdout


async def test_machines_boot_in_parallel(offer: Offer) -> None:
    names = [f"t-{new_id()}" for _ in range(3)]
    spec = offer.spec()
    try:
        async with anyio.create_task_group() as group:
            for name in names:
                group.start_soon(offer.provider.boot, name, spec)
        assert set(names) <= await offer.provider.names()
    finally:
        for name in names:
            await offer.provider.terminate(name)


async def test_a_machine_that_dies_under_a_command_is_an_error_and_not_an_exit_code(place: Place) -> None:
    end = place.offer.crash
    async with place.guest() as guest, anyio.create_task_group() as group:

        async def crash() -> None:
            await _appears(place, "/session/running")
            await end(place.name)

        group.start_soon(crash)
        with anyio.fail_after(60), pytest.raises(MachineLost):
            await guest.run(Command(shell="touch /session/running; sleep 1000"))
        with pytest.raises(MachineLost):
            await guest.read("/etc/passwd")
    assert (await place.offer.provider.get(place.name)).status in (MachineStatus.ERROR, MachineStatus.STOPPED)
    assert place.name in await place.offer.provider.names()


async def test_a_machine_that_is_stopped_under_a_command_is_an_error_and_not_an_exit_code(place: Place) -> None:
    async with place.guest() as guest, anyio.create_task_group() as group:

        async def stop() -> None:
            await _appears(place, "/session/running")
            await place.offer.provider.stop(place.name)

        group.start_soon(stop)
        with anyio.fail_after(60), pytest.raises(MachineLost):
            await guest.run(Command(shell="touch /session/running; sleep 1000"))


async def _appears(place: Place, path: str) -> None:
    async with place.guest() as guest:
        while not await guest.exists(path):  # noqa: ASYNC110 (a guest creates it)
            await anyio.sleep(0.02)


async def test_the_environment_of_an_image_is_that_of_every_command(offer: Offer) -> None:
    if not offer.sets:
        pytest.skip(f"the environment of an image is in the disks of {offer.provider.name}, or it knows none")
    env = {"GREETING": "hello world", "LANG": "C", "ODD": "a=b\n'\"$HOME"}
    command = Command(shell='echo "$GREETING $LANG $HOME $USER $ODD"')
    expected = b"hello world C /home/agent agent a=b\n'\"$HOME\n"
    async with machine(replace(offer, image=replace(offer.image, env=env))) as place:
        # As after a restart of the daemon.
        for provider in (offer.provider, offer.again()):
            async with provider.guest(place.name) as guest:
                assert (await guest.run(command)).stdout == expected
                async with guest.open(command) as stream:
                    assert await everything(stream.receive) == expected
                own = replace(command, env={"GREETING": "its own"})
                assert (await guest.run(own)).stdout.startswith(b"its own C ")
        if isinstance(offer.provider, Terminals):
            async with person(await offer.provider.terminal(place.name, command)) as somebody:
                await somebody.sees("hello world C /home/agent agent a=b")
