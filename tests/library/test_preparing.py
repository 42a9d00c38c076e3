"""A machine that is booted and prepared."""

from __future__ import annotations

import json
import math
import tempfile
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import anyio
import pytest

from hiveyard import machines
from hiveyard.agents.command import CommandLine
from hiveyard.core.commands import Command
from hiveyard.core.credentials import CredentialDirectory, CredentialFile, CredentialProfile
from hiveyard.core.errors import BadInput, NotPrepared, OperationFailed, ProviderError
from hiveyard.core.machines import HOST, Machine, MachineSpec, MachineStatus, TtlAction
from hiveyard.core.ports import Meanwhile, SnapshotStats
from hiveyard.kit.secret import Secret
from hiveyard.library import Orchestrator, Prepared, RuntimeEvent, Snapshot, events
from hiveyard.machines.bubblewrap import BubblewrapProvider
from hiveyard.processes.detached import Detached
from tests.library.parts import KEY, QUOTING, HeldClock, Yards, in_the_way, profile
from tests.support.leaks import Said

pytestmark = pytest.mark.anyio


async def said_in(yards: Yards, machine: Machine, *argv: str) -> str:
    async with yards.provider.guest(machine.name) as guest:
        return (await guest.run(Command(argv=("bash", "-c", " ".join(argv))))).stdout.decode()


async def test_a_machine_is_booted_with_its_profiles_and_information(yards: Yards) -> None:
    yard = yards.yard()
    ready = await yard.boot_and_prepare(
        HOST, credential_profiles=[profile()], machine_info={"project": "ü 'x'\n", "deep": [1, {"a": None}]}
    )
    assert ready.machine.status is MachineStatus.READY
    assert ready.capabilities == yards.provider.capabilities
    assert [one.profile for one in ready.installed] == ["probe"]
    assert await said_in(yards, ready.machine, "stat -c '%a %U' ~/p ~/p/key ~/.machine.json") == (
        "700 agent\n600 agent\n640 agent\n"
    )
    told = json.loads(await said_in(yards, ready.machine, "cat ~/.machine.json"))
    created = datetime.fromisoformat(told.pop("createdAt"))
    assert abs(created.timestamp() - ready.machine.created_at) < 0.001
    assert told == {"project": "ü 'x'\n", "deep": [1, {"a": None}]}
    await yard.terminate(ready.machine)


async def test_profiles_are_installed_in_order_with_events(yards: Yards) -> None:
    first = profile("first", check=Command(shell="test ! -e ~/second"))
    second = CredentialProfile(
        name="second",
        files=(CredentialFile(path="~/second", content=Secret(KEY)),),
        check=Command(shell="test -e ~/p/key"),
    )
    yard = yards.yard()
    ready = await yard.boot_and_prepare(HOST, credential_profiles=[first, second])
    await yard.terminate(ready.machine)
    assert yards.told() == [
        "boot_started",
        "boot_ready",
        "credentials_installed",
        "credentials_installed",
        "machine_info_written",
        "machine_terminated",
    ]
    installed = [event for event in yards.events if isinstance(event, events.CredentialsInstalled)]
    assert [(one.profile, one.paths, one.checked) for one in installed] == [
        ("first", ("~/p", "~/p/key"), True),
        ("second", ("~/second",), True),
    ]
    assert {event.machine for event in yards.events} == {ready.machine.name}


async def test_machine_info_has_the_requested_mode_and_defaults_to_the_metadata(yards: Yards) -> None:
    yard = yards.yard()
    session = yards.scratch / "session"
    spec = MachineSpec(image=HOST, session=session, metadata={"of": "the spec"})
    ready = await yard.boot_and_prepare(spec, name="mine", machine_info_mode=0o600)
    assert ready.machine.name == "mine"
    assert await said_in(yards, ready.machine, "stat -c %a ~/.machine.json") == "600\n"
    assert json.loads(await said_in(yards, ready.machine, "cat ~/.machine.json"))["of"] == "the spec"
    await said_in(yards, ready.machine, "echo kept > /session/file")
    await yard.terminate(ready.machine)
    assert (session / "file").read_text() == "kept\n", "a session directory of the caller's own outlives the machine"


async def test_a_second_attempt_removes_the_files_of_a_machine(yards: Yards) -> None:
    yard = yards.yard()
    ready = await yard.boot_and_prepare(HOST)
    place = Path(tempfile.gettempdir())
    place.rename(yards.scratch / "away")
    place.write_text("in the way")
    with pytest.raises(OperationFailed, match="was not removed"):
        await yard.terminate(ready.machine)
    place.unlink()
    (yards.scratch / "away").rename(place)
    await yard.terminate(ready.machine)
    assert not list(place.iterdir())


async def test_a_real_secret_is_announced_before_it_is_installed(yards: Yards) -> None:
    yard = yards.yard()
    ready = await yard.boot_and_prepare(HOST, credential_profiles=[profile(real=True)], real=["probe"])
    await yard.terminate(ready.machine)
    assert yards.told().index("real_secret_announced") < yards.told().index("credentials_installed")


@pytest.mark.parametrize("action", ["terminate", "stop", "pause"])
async def test_an_open_orchestrator_enforces_the_time_limit(yards: Yards, action: TtlAction) -> None:
    clock = HeldClock()
    paused: list[str] = []

    class Provider(BubblewrapProvider):
        async def pause(self, name: str) -> None:
            await super().pause(name)
            paused.append(name)

    yards.provider = Provider(yards.scratch / "m", yards.scratch / "c")
    async with yards.yard(clock=clock) as yard:
        ready = await yard.boot_and_prepare(HOST, ttl_seconds=77, ttl_action=action)
        assert (ready.machine.ends_at, ready.machine.ttl_action) == (clock.now() + 77, action)
        await anyio.wait_all_tasks_blocked()
        assert clock.asked == [77]
        assert "lifetime_over" not in yards.told()
        clock.rings.set()
        await anyio.wait_all_tasks_blocked()
    # Leaving the block waits for what has begun.
    name = ready.machine.name
    assert "lifetime_over" in yards.told()
    assert await yards.provider.names() == (set() if action == "terminate" else {name})
    if action == "stop":
        assert (await yards.provider.get(name)).status is MachineStatus.STOPPED
    if action == "pause":
        assert paused == [name]
    await yard.terminate(ready.machine)


async def test_a_failure_at_the_end_of_a_time_limit_is_reported(yards: Yards) -> None:
    clock = HeldClock()
    async with yards.yard(clock=clock) as yard:
        ready = await yard.boot_and_prepare(HOST, ttl_seconds=77, ttl_action="stop")
        await anyio.wait_all_tasks_blocked()
        await yards.provider.terminate(ready.machine.name)
        clock.rings.set()
        await anyio.wait_all_tasks_blocked()
    failed = yards.events[-1]
    assert isinstance(failed, events.OperationFailed)
    assert (failed.machine, failed.operation, failed.code) == (ready.machine.name, "stop", "machine.unknown")
    await yard.terminate(ready.machine)


async def gone(yards: Yards) -> None:
    with anyio.fail_after(60):
        while await yards.provider.names():  # noqa: ASYNC110 - a provider has no event for it
            await anyio.sleep(0.05)


async def test_a_machine_that_could_not_be_terminated_keeps_its_time_limit(yards: Yards) -> None:
    clock = HeldClock()
    tries: list[str] = []

    class Provider(BubblewrapProvider):
        async def terminate(self, name: str) -> None:
            tries.append(name)
            if len(tries) == 1:
                raise ProviderError("not now")
            await super().terminate(name)

    yards.provider = Provider(yards.scratch / "m", yards.scratch / "c")
    async with yards.yard(clock=clock) as yard:
        ready = await yard.boot_and_prepare(HOST, ttl_seconds=77)
        with pytest.raises(OperationFailed, match="not now"):
            await yard.terminate(ready.machine)
        clock.rings.set()
        await gone(yards)
    assert yards.told()[-2:] == ["lifetime_over", "machine_terminated"]


async def test_a_machine_kept_on_error_has_a_time_limit(yards: Yards) -> None:
    clock = HeldClock()
    async with yards.yard(clock=clock) as yard:
        with pytest.raises(NotPrepared):
            await yard.boot_and_prepare(
                HOST, ttl_seconds=77, credential_profiles=[profile(check=QUOTING)], keep_on_error=True
            )
        await anyio.wait_all_tasks_blocked()
        assert clock.asked == [77] and yards.told()[-1] == "machine_kept"
        clock.rings.set()
        await gone(yards)
    assert yards.told()[-2:] == ["lifetime_over", "machine_terminated"]


@pytest.mark.parametrize("deaf_to", [events.LifetimeOver, events.MachineTerminated, events.OperationFailed])
async def test_an_error_of_a_listener_does_not_disturb_time_limits(
    yards: Yards, said: Said, deaf_to: type[RuntimeEvent]
) -> None:
    clock = HeldClock()

    def hear(event: RuntimeEvent) -> None:
        if isinstance(event, deaf_to):
            raise RuntimeError(f"deaf, and says {KEY}")

    class Provider(BubblewrapProvider):
        async def stop(self, name: str) -> None:
            raise ProviderError("not stopped")

    yards.provider = Provider(yards.scratch / "m", yards.scratch / "c")
    action: TtlAction = "stop" if deaf_to is events.OperationFailed else "terminate"
    async with yards.yard(clock=clock, on_event=hear) as yard:
        ready = await yard.boot_and_prepare(HOST, ttl_seconds=77, ttl_action=action, credential_profiles=[profile()])
        clock.rings.set()
        await anyio.wait_all_tasks_blocked()
        if action == "stop":
            yards.expected = {ready.machine.name}
        else:
            await gone(yards)
    assert any("RuntimeError: deaf, and says ****" in line for line in said.lines)


@pytest.mark.parametrize("told", [math.nan, math.inf, 1e300, -1e300, 0.0])
async def test_a_missing_creation_time_is_replaced_by_the_current_time(yards: Yards, told: float) -> None:
    class Provider(BubblewrapProvider):
        async def boot(self, name: str, spec: MachineSpec) -> Machine:
            return replace(await super().boot(name, spec), created_at=told)

    yards.provider = Provider(yards.scratch / "m", yards.scratch / "c")
    yard = yards.yard(clock=HeldClock())
    ready = await yard.boot_and_prepare(HOST)
    async with yards.provider.guest(ready.machine.name) as guest:
        info = json.loads(await guest.read("~/.machine.json"))
    assert info == {"createdAt": "2023-11-14T22:13:20.000Z"}
    await yard.terminate(ready.machine)


class Keeping(BubblewrapProvider):
    """Has a snapshot of a machine that is as its image."""

    def __init__(self, state: Path, cache: Path) -> None:
        super().__init__(state, cache)
        self.asked: list[tuple[str, str]] = []

    async def snapshot(
        self, name: str, snapshot: str, meanwhile: Meanwhile | None = None, *, temporary: bool = False
    ) -> SnapshotStats:
        return SnapshotStats(0.0, 0)

    async def make_ready(self, snapshot: str) -> None:
        pass

    async def boot_from(self, snapshot: str, name: str, spec: MachineSpec) -> Machine:
        self.asked.append((snapshot, name))
        return await self.boot(name, spec)

    async def snapshots(self) -> set[str]:
        return {"before"}

    async def remove_snapshot(self, snapshot: str) -> None:
        pass


async def test_a_machine_is_booted_from_a_snapshot(yards: Yards) -> None:
    yards.provider = provider = Keeping(yards.scratch / "m", yards.scratch / "c")
    (yards.scratch / "then").mkdir()
    yard = yards.yard()
    ready = await yard.boot_and_prepare(
        HOST, snapshot=Snapshot(name="before", session=yards.scratch / "then"), credential_profiles=[profile()]
    )
    assert provider.asked == [("before", ready.machine.name)]
    assert await said_in(yards, ready.machine, "cat ~/p/key") == KEY
    begun = yards.events[0]
    assert isinstance(begun, events.BootStarted)
    assert (begun.snapshot, begun.image) == ("before", "host")
    await yard.terminate(ready.machine)


async def test_a_removed_machine_has_no_time_limit(yards: Yards) -> None:
    clock = HeldClock()
    async with yards.yard(clock=clock) as yard:
        ready = await yard.boot_and_prepare(HOST, ttl_seconds=77)
        await yard.terminate(ready.machine)
        clock.rings.set()
    assert "lifetime_over" not in yards.told()


async def test_a_time_limit_without_an_open_orchestrator_is_refused(yards: Yards) -> None:
    with pytest.raises(BadInput, match="not open"):
        await yards.yard().boot_and_prepare(HOST, ttl_seconds=1)
    assert yards.events == []


async def test_a_taken_name_is_refused_and_its_machine_stays(yards: Yards) -> None:
    yard = yards.yard()
    ready = await yard.boot_and_prepare(HOST, name="taken")
    with pytest.raises(BadInput, match="a machine taken already"):
        await yard.boot_and_prepare(HOST, name="taken")
    assert (await yards.provider.get("taken")).status is MachineStatus.READY
    await yard.terminate(ready.machine)


async def test_of_two_concurrent_boots_with_one_name_only_one_succeeds(yards: Yards) -> None:
    yard = yards.yard()
    made: list[Prepared] = []
    refused: list[BadInput] = []

    async def boot() -> None:
        try:
            made.append(await yard.boot_and_prepare(HOST, name="wanted", credential_profiles=[profile()]))
        except BadInput as error:
            refused.append(error)

    async with anyio.create_task_group() as group:
        group.start_soon(boot)
        group.start_soon(boot)
    assert (len(made), len(refused)) == (1, 1)
    assert "already being made" in refused[0].message
    assert (await yards.provider.get("wanted")).status is MachineStatus.READY
    assert await said_in(yards, made[0].machine, "cat ~/p/key; echo left > /session/file; cat /session/file") == (
        f"{KEY}left\n"
    )
    await yard.terminate(made[0].machine)
    again = await yard.boot_and_prepare(HOST, name="wanted")
    await yard.terminate(again.machine)


async def test_the_name_of_a_failed_machine_can_be_used_again(yards: Yards) -> None:
    yard = yards.yard()
    with pytest.raises(NotPrepared):
        await yard.boot_and_prepare(HOST, name="wanted", credential_profiles=[in_the_way()])
    ready = await yard.boot_and_prepare(HOST, name="wanted")
    await yard.terminate(ready.machine)


@pytest.mark.parametrize(
    ("wishes", "says"),
    [
        ({"machine_info": {"createdAt": 1}}, "createdAt"),
        ({"machine_info": {"at": object()}}, "cannot be encoded as JSON"),
        ({"machine_info": {"key": Secret(KEY)}}, "cannot be encoded as JSON"),
        ({"machine_info": {"nan": float("nan")}}, "cannot be encoded as JSON"),
        ({"machine_info": {"much": "x" * (2 << 20)}}, "larger than"),
        ({"machine_info_mode": 0o644}, "0640 or 0600, not 0644"),
        ({"snapshot": "before"}, "has no snapshots"),
        ({"ttl_seconds": 0}, "at least 1 second, not 0"),
        ({"name": "Not A Name"}, "not a valid machine name"),
    ],
)
async def test_an_invalid_request_is_refused_before_anything_is_made(
    yards: Yards, wishes: dict[str, object], says: str
) -> None:
    with pytest.raises(BadInput, match=says):
        await yards.yard().boot_and_prepare(HOST, **wishes)  # type: ignore[arg-type]
    assert yards.events == []


@pytest.mark.parametrize("name", ["qemu", "docker", "morph"])
async def test_providers_other_than_bubblewrap_refuse_HOST_with_a_hint(yards: Yards, name: str) -> None:
    provider = machines.by_name(name, yards.scratch / "s", yards.scratch / "c", key=lambda: Secret(KEY))
    yard = Orchestrator(provider, Detached(), CommandLine(), on_event=yards.hear)
    with pytest.raises(BadInput, match=f"machines of {name} need an image") as caught:
        await yard.boot_and_prepare(HOST)
    assert "Images(default_paths().cache).ensure" in caught.value.hint
    assert yards.events == []


def test_paths_of_credentials_are_validated() -> None:
    with pytest.raises(BadInput):
        CredentialDirectory(path="~/../other")
