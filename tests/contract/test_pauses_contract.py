"""The contract of providers that can freeze a machine."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import anyio
import pytest
from anyio.abc import ByteStream, Listener
from anyio.streams.buffered import BufferedByteReceiveStream

from hiveyard.core.commands import Command
from hiveyard.core.errors import MachineNotReady, NoSuchMachine
from hiveyard.core.machines import MachineSpec, MachineStatus
from hiveyard.core.ports import Pauses
from hiveyard.kit.names import new_id

from .conftest import Place, only_local
from .providers import Offer

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def _local(offer: Offer) -> None:
    # The tests see through the door what runs in a machine.
    only_local(offer)


# One counts by itself, one in a job of a shell that would see it stop (147 = 128 + SIGSTOP), the third stops itself.
COUNTERS = r"""
exec 3<>/dev/tcp/HOST/PORT
count() { while :; do echo $1 >&3; sleep 0.02; done; }
count alone & set -m
bash -c "$(declare -f count); count child" & own=$!
bash -c 'kill -STOP $BASHPID; echo woken >&3' &
while kill -0 $own; do wait $own; [[ $? == 147 ]] && echo seen >&3; done
"""
FORKS = r"""
exec 3<>/dev/tcp/HOST/PORT
forks() { while :; do (echo alone >&3; /bin/true | /bin/true) & wait; done; }
forks & forks & forks
"""


class Ticks(Counter[str]):
    """Lines that the processes of a machine have sent through its door."""

    async def serve(self, listener: Listener[ByteStream]) -> None:
        await listener.serve(self._count)

    async def _count(self, stream: ByteStream) -> None:
        async with stream:
            lines = BufferedByteReceiveStream(stream)
            with contextlib.suppress(anyio.IncompleteRead, anyio.EndOfStream, anyio.BrokenResourceError):
                while True:
                    self[(await lines.receive_until(b"\n", 64)).decode()] += 1

    async def go_on(self, *names: str) -> None:
        """Wait until each of the processes has sent another line."""
        before = Counter(self)
        with anyio.fail_after(60):
            while any(self[name] <= before[name] for name in names):  # noqa: ASYNC110 (a guest sends them)
                await anyio.sleep(0.02)

    async def stand_still(self) -> None:
        await anyio.sleep(0.3)  # until what was under way has arrived
        before = Counter(self)
        await anyio.sleep(0.5)
        assert self == before


@pytest.fixture
async def ticks(place: Place) -> AsyncIterator[Ticks]:
    async with served_ticks(place) as ticks:
        yield ticks


@asynccontextmanager
async def served_ticks(place: Place) -> AsyncIterator[Ticks]:
    ticks = Ticks()
    listener = await anyio.create_unix_listener(place.door / "door.sock", mode=0o666)
    async with listener, anyio.create_task_group() as group:
        group.start_soon(ticks.serve, listener)
        yield ticks
        group.cancel_scope.cancel()


def pauses(provider: object) -> Pauses:
    assert isinstance(provider, Pauses)
    return provider


async def start(place: Place, script: str) -> None:
    """Start a script in the background."""
    door = urlsplit(place.offer.provider.capabilities.door_url)
    script = script.replace("HOST", door.hostname or "").replace("PORT", str(door.port or 80))
    async with place.guest() as guest:
        argv = ("setsid", "-f", "bash", "-c", f"exec </dev/null >/dev/null 2>&1; {script}")
        assert (await guest.run(Command(argv=argv))).ok


async def counting(place: Place, ticks: Ticks) -> None:
    """Start the counters, and wait until they count and the third process has stopped."""
    await start(place, COUNTERS)
    async with place.guest() as guest:
        asleep = "grep -ls '^State:.T' /proc/[0-9]*/status"
        with anyio.fail_after(60):
            while not (await guest.run(Command(shell=asleep))).stdout:  # noqa: ASYNC110 (a guest sends no event)
                await anyio.sleep(0.05)
    await ticks.go_on("alone", "child")


async def test_a_paused_machine_stands_still_and_goes_on(place: Place, ticks: Ticks) -> None:
    provider = place.offer.provider
    await counting(place, ticks)
    for _ in range(3):
        for _ in range(2):
            await pauses(provider).pause(place.name)
        await ticks.stand_still()
        assert (await provider.get(place.name)).status is MachineStatus.READY
        assert place.name in await provider.names()
        for _ in range(2):
            await pauses(provider).resume(place.name)
        await ticks.go_on("alone", "child")
    assert not ticks["woken"], "what had stopped itself stays stopped"
    assert not ticks["seen"], "nobody in the machine sees a child stop"


async def test_what_is_asked_of_a_paused_machine_waits_until_it_goes_on(place: Place) -> None:
    provider = place.offer.provider
    answered = anyio.Event()

    async def ask() -> None:
        async with provider.guest(place.name) as guest:
            assert (await guest.run(Command(shell="echo here; exit 3"))).status == 3
        answered.set()

    async with place.guest() as guest, anyio.create_task_group() as group:
        assert (await guest.run(Command(argv=("true",)))).ok
        await pauses(provider).pause(place.name)
        group.start_soon(ask)
        await anyio.sleep(1)
        assert not answered.is_set()
        await pauses(provider).resume(place.name)
        with anyio.fail_after(60):
            await answered.wait()


async def test_what_runs_while_its_machine_is_paused_ends_as_it_would_have(place: Place) -> None:
    provider = place.offer.provider
    said = []

    async def run() -> None:
        async with provider.guest(place.name) as guest:
            script = "touch /tmp/begun; for i in {1..60}; do echo $i; sleep 0.02; done; exit 5"
            said.append(await guest.run(Command(shell=script), timeout=120))

    async with anyio.create_task_group() as group:
        group.start_soon(run)
        async with place.guest() as guest:
            wait = "until [[ -e /tmp/begun ]]; do sleep 0.02; done"
            assert (await guest.run(Command(shell=wait), timeout=60)).ok
        for _ in range(3):
            await pauses(provider).pause(place.name)
            await pauses(provider).resume(place.name)
    assert said[0].status == 5
    assert said[0].stdout.split() == [b"%d" % number for number in range(1, 61)]


async def test_a_restarted_daemon_lets_a_paused_machine_go_on(place: Place, ticks: Ticks) -> None:
    await counting(place, ticks)
    await pauses(place.offer.provider).pause(place.name)
    again = place.offer.again()
    assert (await again.get(place.name)).status is MachineStatus.READY
    await ticks.stand_still()
    await pauses(again).resume(place.name)
    await ticks.go_on("alone", "child")
    assert not ticks["woken"]


async def test_a_paused_machine_is_stopped_and_booted_again(place: Place) -> None:
    provider = place.offer.provider
    await pauses(provider).pause(place.name)
    await provider.stop(place.name)
    assert (await provider.get(place.name)).status is MachineStatus.STOPPED
    for verb in (pauses(provider).pause, pauses(provider).resume):
        with pytest.raises(MachineNotReady, match=place.name):
            await verb(place.name)
    spec = MachineSpec(image=place.offer.image, shape=place.offer.shape, session=place.session, door=place.door)
    await provider.boot(place.name, spec)
    async with place.guest() as guest:
        assert (await guest.run(Command(argv=("true",)))).ok


async def test_a_paused_machine_is_terminated(place: Place, ticks: Ticks) -> None:
    provider = place.offer.provider
    await counting(place, ticks)
    await pauses(provider).pause(place.name)
    with anyio.fail_after(60):
        await provider.terminate(place.name)
    assert place.name not in await provider.names()
    await ticks.stand_still()


async def test_pausing_under_load_is_sudden_and_may_be_cancelled(place: Place, ticks: Ticks) -> None:
    """Processes that start and exit all the time are all stopped."""
    provider = place.offer.provider
    await start(place, FORKS)
    await ticks.go_on("alone")
    for patience in (0.0, 0.001, 0.005, 0.02):
        with anyio.move_on_after(patience):
            await pauses(provider).pause(place.name)
        await pauses(provider).resume(place.name)
        await ticks.go_on("alone")
    for _ in range(5):
        await pauses(provider).pause(place.name)
        await ticks.stand_still()
        await pauses(provider).resume(place.name)
        await ticks.go_on("alone")


async def test_a_machine_that_does_not_exist_cannot_be_paused(offer: Offer) -> None:
    name = f"t-{new_id()}"
    for verb in (pauses(offer.provider).pause, pauses(offer.provider).resume):
        with pytest.raises(NoSuchMachine, match=name):
            await verb(name)
