"""Freeze machines on hosts without a freezer: run the contract again with every process stopped by signals."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import anyio
import pytest

from hiveyard.core.commands import Command
from hiveyard.core.machines import HOST
from hiveyard.machines.bubblewrap import BubblewrapProvider
from hiveyard.machines.bubblewrap.cgroups import Cgroups
from hiveyard.machines.bubblewrap.signal_pause import SignalPause
from tests.contract.conftest import Place, machine, place
from tests.contract.providers import Offer
from tests.contract.providers import bubblewrap as bubblewrap_offer
from tests.contract.test_pauses_contract import (
    Ticks,
    counting,
    pauses,
    served_ticks,
    test_a_paused_machine_is_stopped_and_booted_again,
    test_a_paused_machine_is_terminated,
    test_a_paused_machine_stands_still_and_goes_on,
    test_a_restarted_daemon_lets_a_paused_machine_go_on,
    test_pausing_under_load_is_sudden_and_may_be_cancelled,
    test_what_is_asked_of_a_paused_machine_waits_until_it_goes_on,
    test_what_runs_while_its_machine_is_paused_ends_as_it_would_have,
    ticks,
)
from tests.machines.bubblewrap.test_bubblewrap import hiding
from tests.support.leaks import searched_directory

__all__ = [
    "place",
    "test_a_paused_machine_is_stopped_and_booted_again",
    "test_a_paused_machine_is_terminated",
    "test_a_paused_machine_stands_still_and_goes_on",
    "test_a_restarted_daemon_lets_a_paused_machine_go_on",
    "test_pausing_under_load_is_sudden_and_may_be_cancelled",
    "test_what_is_asked_of_a_paused_machine_waits_until_it_goes_on",
    "test_what_runs_while_its_machine_is_paused_ends_as_it_would_have",
    "ticks",
]
pytestmark = pytest.mark.anyio


def without_groups(provider: object) -> BubblewrapProvider:
    assert isinstance(provider, BubblewrapProvider)
    provider._cgroups = Cgroups(Path("/nonexistent"))
    return provider


@pytest.fixture(scope="module")
async def offer() -> AsyncIterator[Offer]:
    with searched_directory() as scratch:
        async with bubblewrap_offer(scratch) as found:
            made = found.again

            def again() -> BubblewrapProvider:
                return without_groups(made())

            offer = Offer(
                provider=again(),
                image=found.image,
                again=again,
                litter=found.litter,
                killed=found.killed,
                shape=found.shape,
            )
            await offer.provider.prepare(offer.image, offer.shape)
            yield offer
            assert not await offer.provider.names()


@pytest.fixture
async def on_host(offer: Offer) -> AsyncIterator[Place]:
    """Boot a machine with the host's programs."""
    async with machine(replace(offer, image=HOST)) as place:
        yield place


# A parent that waits in the kernel until its child has opened a pipe that no process writes to.
STUCK = """
import os
os.mkfifo("/tmp/fifo")
actions = [(os.POSIX_SPAWN_OPEN, 3, "/tmp/fifo", os.O_RDONLY, 0)]
print("x", file=open("/session/stuck", "w"), flush=True)
os.posix_spawn("/bin/true", ["true"], {}, file_actions=actions)
"""


async def test_what_cannot_be_stopped_is_too_late_and_the_machine_goes_on(on_host: Place, tmp_path: Path) -> None:
    async with served_ticks(on_host) as seen:
        await _check_what_cannot_be_stopped(on_host, seen, tmp_path)


async def _check_what_cannot_be_stopped(on_host: Place, seen: Ticks, tmp_path: Path) -> None:
    await counting(on_host, seen)
    async with on_host.guest() as guest:
        await guest.run(Command(argv=("setsid", "-f", "python3", "-c", STUCK)))
    with anyio.fail_after(60):
        while not (on_host.session / "stuck").exists():  # noqa: ASYNC110 (a guest creates it)
            await anyio.sleep(0.02)
    await anyio.sleep(0.3)
    provider = on_host.offer.provider
    assert isinstance(provider, BubblewrapProvider)
    init = provider._directory(on_host.name).recorded()
    assert init is not None
    halt = SignalPause(init.pid, tmp_path / "halted", timeout=0.5)
    with pytest.raises(TimeoutError):
        await halt.begin()
    assert not halt.paused
    await seen.go_on("alone", "child")
    assert not seen["woken"]


async def test_processes_without_a_command_line_in_one_machine_do_not_hold_up_another(
    on_host: Place, place: Place, ticks: Ticks
) -> None:
    await counting(place, ticks)
    async with on_host.guest() as guest, hiding(guest):
        with anyio.fail_after(60):  # two seconds for each would be 80, for each look
            await pauses(place.offer.provider).pause(place.name)
            await ticks.stand_still()
            await pauses(place.offer.provider).resume(place.name)
    await ticks.go_on("alone", "child")


# A daemon that is killed when the machine is partly or completely stopped.
DAEMON = """
import sys, anyio
from pathlib import Path
from hiveyard.machines.bubblewrap import BubblewrapProvider
async def main():
    provider = BubblewrapProvider(Path(sys.argv[1]), Path(sys.argv[1]) / "none")
    print("begin", flush=True)
    while True:
        await provider.pause(sys.argv[2])
        await provider.resume(sys.argv[2])
anyio.run(main)
"""


async def test_a_machine_that_a_killed_daemon_left_half_stopped_goes_on(place: Place, ticks: Ticks) -> None:
    await counting(place, ticks)
    provider = place.offer.provider
    assert isinstance(provider, BubblewrapProvider)
    for after in (0.0, 0.01, 0.02, 0.05, 0.1, 0.15):
        daemon = await anyio.open_process([sys.executable, "-c", DAEMON, str(provider._state), place.name])
        assert daemon.stdout is not None
        assert (await daemon.stdout.receive()).startswith(b"begin")
        await anyio.sleep(after)
        daemon.kill()
        await daemon.aclose()
        again = place.offer.again()
        await pauses(again).pause(place.name)
        await ticks.stand_still()
        await pauses(again).resume(place.name)
        await ticks.go_on("alone", "child")
    assert not ticks["woken"]
    assert not ticks["seen"]
