"""Properties of PM2 alone: the names that people see there, its daemon's death, and what it is told."""

from __future__ import annotations

import json
from dataclasses import replace

import anyio
import pytest

from hiveyard.core.commands import Command, ProcessSpec, ProcessStatus
from hiveyard.core.errors import ProcessNotStarted
from hiveyard.core.ports import Guest
from hiveyard.extras.pm2 import Pm2
from hiveyard.kit.names import new_id
from tests.contract.conftest import machine
from tests.contract.providers import Offer
from tests.processes.steps import PATIENCE, ended, output, spec

pytestmark = pytest.mark.anyio


@pytest.fixture
def manager() -> Pm2:
    return Pm2()


async def pm2(guest: Guest, *words: str) -> str:
    """Return the output of PM2 for a user in the guest."""
    done = await guest.run(Command(argv=("pm2", *words)), timeout=PATIENCE)
    assert done.ok, done
    return done.stdout.decode()


async def listed(guest: Guest) -> dict[str, str]:
    said = await pm2(guest, "jlist")
    return {one["name"]: one["pm2_env"]["status"] for one in json.loads(said[said.index("[") :])}


async def until_listed(guest: Guest, name: str, status: str) -> None:
    with anyio.fail_after(PATIENCE):
        while (await listed(guest)).get(name) != status:  # noqa: ASYNC110
            await anyio.sleep(0.1)


@pytest.mark.parametrize("name", ["all", "0", "12", "a.b", "x" * 100])
async def test_names_that_mean_something_to_pm2_are_names_like_others(guest: Guest, manager: Pm2, name: str) -> None:
    other = new_id()
    await manager.start(guest, spec(other, "sleep 1000"))
    await manager.start(guest, spec(name, "sleep 1000"))
    await until_listed(guest, f"hv-{name}", "online")
    await manager.stop(guest, name, grace=0)
    await manager.remove(guest, name)
    assert f"hv-{name}" not in await listed(guest)
    assert (await manager.get(guest, other)).status is ProcessStatus.RUNNING
    await manager.stop(guest, other, grace=0)
    await until_listed(guest, f"hv-{other}", "stopped")


async def test_a_person_sees_and_stops_it_in_pm2(guest: Guest, manager: Pm2) -> None:
    name = new_id()
    await manager.start(guest, spec(name, "trap 'echo saved; exit 5' INT; echo said; while :; do sleep 0.05; done"))
    with anyio.fail_after(PATIENCE):
        while "said" not in await pm2(guest, "logs", f"hv-{name}", "--nostream"):  # noqa: ASYNC110
            await anyio.sleep(0.1)
    await pm2(guest, "stop", f"hv-{name}")
    info = await ended(manager, guest, name)
    assert (info.status, info.exit_code) == (ProcessStatus.EXITED, 5)
    assert await output(manager, guest, name) == b"said\nsaved\n"


async def test_what_a_person_starts_again_stays_ended(guest: Guest, manager: Pm2) -> None:
    name = new_id()
    await manager.start(guest, spec(name, "echo ran; exit 3"))
    await ended(manager, guest, name)
    await pm2(guest, "restart", f"hv-{name}")
    await until_listed(guest, f"hv-{name}", "stopped")
    assert (await manager.get(guest, name)).exit_code == 3
    assert await output(manager, guest, name) == b"ran\n"


async def test_pm2_is_told_no_secret_and_the_process_nothing_of_pm2(guest: Guest, manager: Pm2) -> None:
    name = new_id()
    command = Command(argv=("env", "-0"), env={"TOKEN": "Zq8TestSecret-value"})
    await manager.start(guest, ProcessSpec(name=name, command=command))
    variables = [word.partition(b"=")[0].decode() for word in (await output(manager, guest, name)).split(b"\0")]
    assert "TOKEN" in variables
    assert not [word for word in variables if word.islower() or word.startswith(("PM2", "NODE_", "pm"))]
    await pm2(guest, "save", "--force")
    dump = await guest.run(Command(shell="cat ~/.pm2/dump.pm2 ~/.pm2/pm2.log; pm2 jlist"), timeout=PATIENCE)
    assert f"hv-{name}".encode() in dump.stdout and b"Zq8TestSecret" not in dump.stdout
    modes = await guest.run(Command(argv=("stat", "-c", "%a", f"/session/processes/{name}/env")))
    assert modes.stdout == b"600\n"
    await manager.remove(guest, name)  # and with it what it was given and printed


async def test_a_dead_daemon_takes_no_process_along_and_is_started_again(guest: Guest, manager: Pm2) -> None:
    before, name, after = new_id(), new_id(), new_id()
    await manager.start(guest, spec(before, "exit 7"))
    await ended(manager, guest, before)
    await manager.start(guest, spec(name, f"until [ -e /session/{name}.go ]; do sleep 0.05; done; exit 6"))
    killed = await guest.run(Command(shell="kill -KILL $(<~/.pm2/pm2.pid)"))
    assert killed.ok
    assert (await manager.get(guest, name)).status is ProcessStatus.RUNNING
    assert (await manager.get(guest, before)).exit_code == 7
    await manager.remove(guest, before)
    await manager.start(guest, spec(after, "exit 8"))
    assert (await ended(manager, guest, after)).exit_code == 8
    await guest.write(f"/session/{name}.go", b"")
    assert (await ended(manager, guest, name)).exit_code == 6
    for one in (name, after):
        await manager.remove(guest, one)


async def test_first_calls_at_once_make_one_daemon(guest: Guest, manager: Pm2) -> None:
    await guest.run(Command(argv=("pm2", "kill")), timeout=PATIENCE)
    await guest.remove_tree("~/.pm2")
    names = [new_id() for _ in range(6)]
    async with anyio.create_task_group() as group:
        for name in names:
            group.start_soon(manager.start, guest, spec(name, "sleep 1000"))
    assert {f"hv-{name}" for name in names} <= set(await listed(guest))
    count = (
        "n=0; for c in /proc/[0-9]*/cmdline; do [[ $(tr '\\0' ' ' <$c) == *'God Daem'on* ]] && ((n++)); done; echo $n"
    )
    assert (await guest.run(Command(argv=("bash", "-c", count)))).stdout == b"1\n"
    for name in names:
        await manager.stop(guest, name, grace=0)


async def test_two_hundred_processes_start_at_once(offer: Offer, manager: Pm2) -> None:
    many = {f"{new_id()}-{number}": number for number in range(200)}
    # All of them wait for one file, and start no other program for that.
    script = "exec 5<> <(:); until [[ -e /session/go ]]; do read -r -t 0.5 -u 5; done; exit "
    offer = replace(offer, shape=replace(offer.shape, memory_mib=4096, pids=4096))
    async with machine(offer) as place, place.guest() as guest:
        async with anyio.create_task_group() as group:
            for name, number in many.items():
                group.start_soon(manager.start, guest, spec(name, f"{script} {number}"))
        alive = {info.name for info in await manager.list(guest) if info.status is ProcessStatus.RUNNING}
        assert alive == set(many)
        assert {name for name, status in (await listed(guest)).items() if status == "online"} == {
            f"hv-{name}" for name in many
        }
        await guest.write("/session/go", b"")
        with anyio.fail_after(PATIENCE):
            while any(info.status is ProcessStatus.RUNNING for info in await manager.list(guest)):  # noqa: ASYNC110
                await anyio.sleep(0.5)
        assert {info.name: info.exit_code for info in await manager.list(guest)} == many
        async with anyio.create_task_group() as group:
            for name in many:
                group.start_soon(manager.remove, guest, name)
        assert await listed(guest) == {}


async def test_what_pm2_still_lists_by_that_name_makes_way(guest: Guest, manager: Pm2, name: str) -> None:
    """As when somebody removed the directory of a process, and PM2 was not told."""
    await manager.start(guest, spec(name, "exit 3"))
    await until_listed(guest, f"hv-{name}", "stopped")
    await guest.remove_tree(f"/session/processes/{name}")
    await manager.start(guest, spec(name, "echo new; exit 4"))
    assert (await ended(manager, guest, name)).exit_code == 4
    assert await output(manager, guest, name) == b"new\n"
    said = await pm2(guest, "jlist")
    names = [one["name"] for one in json.loads(said[said.index("[") :])]
    assert names.count(f"hv-{name}") == 1
    await manager.remove(guest, name)


async def test_who_gets_no_turn_is_told_so(guest: Guest, manager: Pm2) -> None:
    name = new_id()
    impatient = type("Impatient", (Pm2,), {"_launch": Pm2._launch.replace("265", "1")})
    holder = Command(shell="mkdir -p ~/.pm2; flock ~/.pm2/hiveyard.lock -c 'echo held; cat'")
    async with guest.open(holder) as stream:
        assert await stream.receive() == b"held\n"
        with pytest.raises(ProcessNotStarted, match="no turn"):
            await impatient().start(guest, spec(name, "exit 3"))
    assert (await manager.start(guest, spec(name, "exit 3"))).name == name
    assert (await ended(manager, guest, name)).exit_code == 3


async def test_an_image_without_pm2_is_an_error_that_says_so(guest: Guest, manager: Pm2) -> None:
    name = new_id()
    class_without = type("Without", (Pm2,), {"_launch": Pm2._launch.replace("type -P pm2", "type -P no-pm2")})
    with pytest.raises(ProcessNotStarted, match="no pm2"):
        await class_without().start(guest, spec(name, "exit 0"))
