"""The contract of providers that can freeze a machine."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

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
    # The tests read what a machine writes to its shared directory.
    only_local(offer)


# One counts by itself, one in a job of a shell that would see it stop (147 = 128 + SIGSTOP), the third stops itself.
COUNTERS = r"""
count() { i=0; while :; do i=$((i+1)); echo $i >>/session/$1; sleep 0.02; done; }
count alone & set -m
bash -c "$(declare -f count); count child" & own=$!
bash -c 'kill -STOP $BASHPID; echo woken >/session/woken' &
while kill -0 $own; do wait $own; [[ $? == 147 ]] && echo seen >>/session/seen; done
"""


def pauses(provider: object) -> Pauses:
    assert isinstance(provider, Pauses)
    return provider


async def counting(place: Place) -> None:
    """Start the counters, and wait until they count and the third process has stopped."""
    async with place.guest() as guest:
        argv = ("setsid", "-f", "bash", "-c", f"exec </dev/null >/dev/null 2>&1; {COUNTERS}")
        assert (await guest.run(Command(argv=argv))).ok
        asleep = "grep -ls '^State:.T' /proc/[0-9]*/status"
        with anyio.fail_after(60):
            while not (await guest.run(Command(shell=asleep))).stdout:  # noqa: ASYNC110 (a guest sends no event)
                await anyio.sleep(0.05)
    for name in ("alone", "child"):
        await goes_on(place.session / name)


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


async def goes_on(path: Path) -> None:
    await reaches(path, lines(path) + 1)


async def reaches(path: Path, count: int) -> None:
    with anyio.fail_after(60):
        while lines(path) < count:  # noqa: ASYNC110 (a guest writes it)
            await anyio.sleep(0.02)


def counts(place: Place) -> list[int]:
    return [lines(place.session / name) for name in ("alone", "child")]


async def stands_still(place: Place) -> None:
    before = counts(place)
    await anyio.sleep(0.5)
    assert counts(place) == before


async def test_a_paused_machine_stands_still_and_goes_on(place: Place) -> None:
    provider = place.offer.provider
    await counting(place)
    for _ in range(3):
        for _ in range(2):
            await pauses(provider).pause(place.name)
        await stands_still(place)
        assert (await provider.get(place.name)).status is MachineStatus.READY
        assert place.name in await provider.names()
        for _ in range(2):
            await pauses(provider).resume(place.name)
        for name in ("alone", "child"):
            await goes_on(place.session / name)
    assert not (place.session / "woken").exists(), "what had stopped itself stays stopped"
    assert not (place.session / "seen").exists(), "nobody in the machine sees a child stop"


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
            script = "touch /session/running; for i in {1..60}; do echo $i; sleep 0.02; done; exit 5"
            said.append(await guest.run(Command(shell=script), timeout=120))

    async with anyio.create_task_group() as group:
        group.start_soon(run)
        with anyio.fail_after(60):
            while not (place.session / "running").exists():  # noqa: ASYNC110 (a guest creates it)
                await anyio.sleep(0.02)
        for _ in range(3):
            await pauses(provider).pause(place.name)
            await pauses(provider).resume(place.name)
    assert said[0].status == 5
    assert said[0].stdout.split() == [b"%d" % number for number in range(1, 61)]


async def test_a_restarted_daemon_lets_a_paused_machine_go_on(place: Place) -> None:
    await counting(place)
    await pauses(place.offer.provider).pause(place.name)
    again = place.offer.again()
    assert (await again.get(place.name)).status is MachineStatus.READY
    await stands_still(place)
    await pauses(again).resume(place.name)
    for name in ("alone", "child"):
        await goes_on(place.session / name)
    assert not (place.session / "woken").exists()


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


async def test_a_paused_machine_is_terminated(place: Place) -> None:
    provider = place.offer.provider
    await counting(place)
    await pauses(provider).pause(place.name)
    with anyio.fail_after(60):
        await provider.terminate(place.name)
    assert place.name not in await provider.names()
    await stands_still(place)


async def test_pausing_under_load_is_sudden_and_may_be_cancelled(place: Place) -> None:
    """Processes that start and exit all the time are all stopped."""
    provider = place.offer.provider
    forks = "while :; do (echo x >>/session/alone; /bin/true | /bin/true) & wait; done"
    async with place.guest() as guest:
        argv = ("setsid", "-f", "bash", "-c", f"exec </dev/null >/dev/null 2>&1; ({forks}) & ({forks}) & {forks}")
        assert (await guest.run(Command(argv=argv))).ok
    await goes_on(place.session / "alone")
    for patience in (0.0, 0.001, 0.005, 0.02):
        with anyio.move_on_after(patience):
            await pauses(provider).pause(place.name)
        await pauses(provider).resume(place.name)
        await goes_on(place.session / "alone")
    for _ in range(5):
        await pauses(provider).pause(place.name)
        await stands_still(place)
        await pauses(provider).resume(place.name)
        await goes_on(place.session / "alone")


async def test_a_machine_that_does_not_exist_cannot_be_paused(offer: Offer) -> None:
    name = f"t-{new_id()}"
    for verb in (pauses(offer.provider).pause, pauses(offer.provider).resume):
        with pytest.raises(NoSuchMachine, match=name):
            await verb(name)
