"""Machines of Morph Cloud beyond the contract: directly, and judged by the service's own description."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import anyio
import pytest

from hiveyard.agents.command import CommandLine
from hiveyard.core.commands import Command
from hiveyard.core.errors import (
    BadInput,
    BootFailed,
    CommandTimeout,
    MachineLost,
    NoSuchImage,
    NoSuchMachine,
    NoSuchSnapshot,
    NotPrepared,
    ProviderTimeout,
)
from hiveyard.core.machines import MachineSpec, MachineStatus, Network, Shape
from hiveyard.core.ports import Forks, Pauses, Provider, Snapshots
from hiveyard.kit.names import new_id
from hiveyard.kit.secret import Secret
from hiveyard.library import Orchestrator, RuntimeEvent
from hiveyard.library.events import BootReady, BootStarted
from hiveyard.machines.morph import MorphProvider, MorphSettings, morph_image
from hiveyard.processes.detached import Detached
from tests.support.leaks import searched_directory
from tests.support.morph_cloud import Cloud, served
from tests.support.prism import SPEC_VARIABLE, faults, morph_spec, proxied

pytestmark = [pytest.mark.anyio, pytest.mark.real]
KEY = "morph_Zq8TestSecret"
IMAGE = morph_image("morphvm-minimal")
SPEC = MachineSpec(image=IMAGE, shape=Shape(memory_mib=512), network=Network.OPEN)


@asynccontextmanager
async def clouded(way: str) -> AsyncIterator[tuple[MorphProvider, Cloud]]:
    """A provider and the fake that it talks with; `prism` stands between them, and holds streams back."""
    if os.geteuid() != 0:
        pytest.skip("the fake Morph Cloud makes its machines as root")
    spec = morph_spec()
    if way == "prism" and spec is None:
        pytest.skip(
            f"Prism judges by the service's own description, which is not here: set {SPEC_VARIABLE} to its file"
        )
    with searched_directory() as scratch:
        cloud = Cloud(Path(scratch, "cloud"), KEY, (IMAGE.id,))
        try:
            with served(cloud.app()) as url:
                if spec is None or way == "direct":
                    async with _provider(scratch, url, streaming=True) as provider:
                        yield provider, cloud
                    return
                with proxied(spec, url) as (judge, log):
                    async with _provider(scratch, judge, streaming=False) as provider:
                        yield provider, cloud
                    assert not (wrong := faults(log)), wrong
        finally:
            cloud.close()


@asynccontextmanager
async def _provider(scratch: Path, url: str, *, streaming: bool) -> AsyncIterator[MorphProvider]:
    settings = MorphSettings(url=url, streaming=streaming, patience=10)
    provider = MorphProvider(scratch / "state", lambda: Secret(KEY), settings)
    try:
        await provider.prepare(IMAGE, SPEC.shape)
        yield provider
    finally:
        await provider.aclose()


@pytest.fixture(params=["direct", "prism"])
async def cloudy(request: pytest.FixtureRequest) -> AsyncIterator[tuple[MorphProvider, Cloud]]:
    async with clouded(request.param) as both:
        yield both


@pytest.fixture
async def direct() -> AsyncIterator[tuple[MorphProvider, Cloud]]:
    async with clouded("direct") as both:
        yield both


async def said(provider: Provider, name: str, script: str) -> bytes:
    async with provider.guest(name) as guest:
        result = await guest.run(Command(shell=script))
    assert result.ok, result
    return result.stdout


async def test_the_whole_life_of_machines(cloudy: tuple[MorphProvider, Cloud]) -> None:
    provider, cloud = cloudy
    assert isinstance(provider, Pauses) and isinstance(provider, Snapshots) and isinstance(provider, Forks)
    assert (await provider.readiness()).ok
    await provider.boot("one", replace(SPEC, ttl=3600, ttl_action="pause", metadata={"why": "a test"}))
    assert cloud.machine("one").ttl["ttl_action"] == "pause"
    async with provider.guest("one") as guest:
        await guest.write_atomic("~/kept", bytes(range(256)) * 5000)
        async with guest.open(Command(shell='while read -r w; do echo "<$w>"; done; exit 7')) as stream:
            for word in (b"a", b"b"):
                await stream.send(word + b"\n")
                assert await stream.receive() == b"<" + word + b">\n"
            await stream.send_eof()
            assert await stream.wait() == 7

    for _ in range(2):
        await provider.pause("one")
    assert (await provider.get("one")).status is MachineStatus.READY
    for _ in range(2):
        await provider.resume("one")
    assert await said(provider, "one", "id -un; hostname 2>/dev/null; wc -c <kept") == b"agent\n1280000\n"

    children = await provider.fork("one", ["two", "three"], replace(SPEC, ttl=60, ttl_action="stop"))
    assert [child.name for child in children] == ["two", "three"]
    assert dict(children[0].metadata) == {"why": "a test"}
    assert (cloud.machine("three").ttl["ttl_seconds"], cloud.machine("three").ttl["ttl_action"]) == (60, "pause")
    assert await said(provider, "three", "cat /proc/sys/kernel/hostname; wc -c <kept") == b"three\n1280000\n"
    await provider.snapshot("two", "point")
    seen: list[str] = []

    async def look() -> None:
        seen.append(cloud.machine("two").status)

    await provider.snapshot("two", "point", look)
    assert (seen, cloud.machine("two").status) == (["paused"], "ready")
    assert await provider.snapshots() == {"point"}
    await provider.boot_from("point", "four", SPEC)
    assert await said(provider, "four", "cat /proc/sys/kernel/hostname") == b"four\n"
    await provider.remove_snapshot("point")
    with pytest.raises(NoSuchSnapshot):
        await provider.boot_from("point", "five", SPEC)

    assert (await provider.expose("one", "web", 8000)).startswith("https://web-")
    for _ in range(2):
        await provider.conceal("one", "web")
    assert cloud.machine("one").services == []

    await provider.stop("one")
    assert {machine.name: machine.status.value for machine in await provider.list()} == {
        "one": "stopped", "two": "ready", "three": "ready", "four": "ready",
    }  # fmt: skip
    for name in await provider.names():
        await provider.terminate(name)
    await provider.release_image(IMAGE.id)
    assert not cloud.instances and not cloud.snapshots


async def test_a_made_thing_whose_answer_is_lost_is_found_and_not_made_twice(
    direct: tuple[MorphProvider, Cloud],
) -> None:
    provider, cloud = direct
    cloud.lost += ["POST /instance", "POST /instance"]
    await provider.boot("one", SPEC)
    assert len(cloud.instances) == 1
    assert not cloud.lost
    await provider.terminate("one")


async def test_another_home_is_made_and_is_what_the_tilde_means(direct: tuple[MorphProvider, Cloud]) -> None:
    provider, _ = direct
    other = MorphProvider(provider._state, lambda: Secret(KEY), replace(provider._settings, home="/srv/work-1"))
    assert other.capabilities.home == "/srv/work-1"
    with pytest.raises(NoSuchImage):
        await other.boot("one", SPEC)
    await other.prepare(IMAGE, SPEC.shape)
    await other.boot("one", SPEC)
    async with other.guest("one") as guest:
        await guest.write_atomic("~/deep/kept", b"kept")
        assert await guest.read("/srv/work-1/deep/kept") == b"kept"
    assert (
        await said(other, "one", "pwd; echo $HOME ~agent; stat -c %u ~")
        == b"/srv/work-1\n/srv/work-1 /srv/work-1\n1000\n"
    )
    await other.aclose()


@pytest.mark.parametrize("home", ["", "work", "/", "~", "/home/", "/a/../b", "/a b", "/a:b", "/a\n"])
def test_a_home_is_a_plain_path(home: str) -> None:
    with pytest.raises(ValueError, match="/home/agent"):
        MorphSettings(home=home)


async def test_answers_that_are_lost_lose_nothing_of_a_command(direct: tuple[MorphProvider, Cloud]) -> None:
    provider, cloud = direct
    await provider.boot("one", SPEC)
    id = cloud.machine("one").id
    async with provider.guest("one") as guest:
        cloud.lost += [f"POST /instance/{id}/exec"] * 4
        result = await guest.run(Command(argv=("cat",)), stdin=b"0123456789" * 300_000)
        assert result.stdout == b"0123456789" * 300_000
        assert not cloud.lost


async def test_an_orchestrator_forks_in_the_one_step_of_the_service(direct: tuple[MorphProvider, Cloud]) -> None:
    provider, cloud = direct
    events: list[RuntimeEvent] = []
    yard = Orchestrator(provider, Detached(), CommandLine(), on_event=events.append)
    ready = await yard.boot_and_prepare(replace(SPEC, ttl=3600, ttl_action="stop"))
    parent = cloud.machine(ready.machine.name)
    async with provider.guest(ready.machine.name) as guest:
        await guest.write_atomic("~/kept", b"kept")
    snapshots, before, told = set(cloud.snapshots), len(cloud.asked), len(events)
    children = [one.machine.name for one in await yard.fork(ready, 2)]
    making = [asked for asked in cloud.asked[before:] if asked.endswith(("/instance", "/branch", "/snapshot", "/boot"))]
    assert [asked for asked in making if asked.startswith("POST")] == [f"POST /instance/{parent.id}/branch"]
    assert [await said(provider, name, "cat kept") for name in children] == [b"kept", b"kept"]
    assert [cloud.machine(name).ttl["ttl_seconds"] for name in children] == [3600, 3600]
    started = [event for event in events[told:] if isinstance(event, BootStarted)]
    assert [(event.machine, event.parent) for event in started] == [(name, ready.machine.name) for name in children]
    assert sum(isinstance(event, BootReady) for event in events[told:]) == 2

    cloud.lost.append(f"POST /instance/{parent.id}/branch")
    with pytest.raises(NotPrepared, match="fork"):
        await yard.fork(ready, 2)
    assert await provider.names() == {ready.machine.name, *children}
    assert set(cloud.snapshots) == snapshots


async def test_nobody_of_another_installation_is_seen_or_touched(direct: tuple[MorphProvider, Cloud]) -> None:
    provider, _ = direct
    await provider.boot("one", SPEC)
    with searched_directory() as scratch:
        other = MorphProvider(scratch, lambda: Secret(KEY), provider._settings)
        assert await other.names() == set()
        await other.terminate("one")
        with pytest.raises(NoSuchMachine):
            await other.get("one")
        await other.aclose()
    assert await provider.names() == {"one"}


@pytest.mark.parametrize("action", ["stop", "pause", "terminate"])
async def test_the_service_itself_ends_what_has_lived_long_enough(
    direct: tuple[MorphProvider, Cloud], action: str
) -> None:
    provider, cloud = direct
    spec = replace(SPEC, ttl=3600, ttl_action=action)  # type: ignore[arg-type]
    booted = await provider.boot("one", spec)
    assert (booted.ends_at, booted.ttl_action) == (cloud.machine("one").ttl["ttl_expire_at"], action)
    cloud.machine("one").ttl["ttl_expire_at"] = 0
    await provider.list()
    if action == "terminate":
        assert await provider.names() == set()
        return
    wanted = MachineStatus.STOPPED if action == "stop" else MachineStatus.READY
    ended = await provider.get("one")
    assert (ended.status, ended.ends_at, ended.ttl_action) == (wanted, None, None)


async def test_what_is_asked_of_a_paused_machine_waits(direct: tuple[MorphProvider, Cloud]) -> None:
    provider, _ = direct
    await provider.boot("one", SPEC)
    async with provider.guest("one") as guest, anyio.create_task_group() as group:
        seen: list[bytes] = []

        async def ask() -> None:
            seen.append(
                (await guest.run(Command(shell="echo begun >&2; read -r line; echo over"), stdin=b"x\n")).stdout
            )

        async with guest.open(Command(shell="echo here; read -r word; echo $word")) as stream:
            assert await stream.receive() == b"here\n"
            await provider.pause("one")
            with anyio.move_on_after(1.0) as scope:
                await stream.send(b"word\n")
            assert scope.cancelled_caught
            await provider.resume("one")
            await stream.send(b"word\n")
            assert b"word\n" in await stream.receive()
        group.start_soon(ask)
    assert seen == [b"over\n"]


async def test_a_command_that_is_begun_in_a_paused_machine_waits(direct: tuple[MorphProvider, Cloud]) -> None:
    provider, _ = direct
    await provider.boot("one", SPEC)
    answers: list[bytes] = []

    async def ask() -> None:
        answers.append(await said(provider, "one", "echo here"))

    async with provider.guest("one") as guest, anyio.create_task_group() as group:
        await provider.pause("one")
        group.start_soon(ask)
        with pytest.raises(CommandTimeout):
            await guest.run(Command(shell="touch ~/late"), timeout=0.2)
        with anyio.move_on_after(0.2) as scope:
            async with guest.open(Command(shell="touch ~/cancelled")):
                pass
        assert scope.cancelled_caught
        assert answers == []
        await provider.resume("one")
        with anyio.fail_after(60):
            while not answers:  # noqa: ASYNC110 (it comes from a machine)
                await anyio.sleep(0.05)
        assert (await guest.run(Command(shell="ls ~"))).stdout == b""
    assert answers == [b"here\n"]


async def test_a_command_under_which_its_machine_is_paused_and_terminated_is_lost(
    direct: tuple[MorphProvider, Cloud],
) -> None:
    provider, _ = direct
    await provider.boot("one", SPEC)
    async with provider.guest("one") as guest, anyio.create_task_group() as group:
        await provider.pause("one")

        async def end() -> None:
            await anyio.sleep(0.5)
            await provider.terminate("one")

        group.start_soon(end)
        with anyio.fail_after(60), pytest.raises(MachineLost):
            await guest.run(Command(shell="true"))


async def test_what_cannot_be_had_of_a_cloud_is_refused(direct: tuple[MorphProvider, Cloud], tmp_path: Path) -> None:
    provider, cloud = direct
    before = list(cloud.asked)
    for wrong in (replace(SPEC, network=Network.DOOR), replace(SPEC, door=tmp_path), replace(SPEC, session=tmp_path)):
        with pytest.raises(BadInput):
            await provider.boot("one", wrong)
    assert cloud.asked == before
    with pytest.raises(NoSuchImage, match="no base image 'nonsense'") as raised:
        await provider.prepare(morph_image("nonsense"), SPEC.shape)
    assert IMAGE.id in raised.value.hint
    with pytest.raises(NoSuchImage):
        await provider.boot("one", replace(SPEC, shape=Shape(memory_mib=1024)))


async def test_a_machine_that_never_stands_still_is_an_error_of_the_service(
    direct: tuple[MorphProvider, Cloud],
) -> None:
    provider, cloud = direct
    await provider.boot("one", SPEC)
    provider._settings = replace(provider._settings, pause_timeout=0.5)
    cloud.never_still = True
    for verb in (provider.pause, provider.stop):
        with anyio.fail_after(30), pytest.raises(ProviderTimeout, match="saving and did not stand still"):
            await verb("one")
    cloud.machine("one").status = "ready"
    await provider.terminate("one")


async def test_an_image_in_which_nothing_works_says_why_and_leaves_nothing(direct: tuple[MorphProvider, Cloud]) -> None:
    provider, cloud = direct
    (cloud._directory / "base/usr/bin/setpriv").unlink()
    with pytest.raises(BootFailed, match="no setpriv in the image"):
        await provider.prepare(IMAGE, Shape(memory_mib=1024))
    assert not cloud.instances


@pytest.mark.parametrize("user", ["", "agent:x:1000:1000::/home/agent:/bin/bash\n"], ids=["no user", "the user"])
async def test_users_of_an_image_are_kept_though_the_last_line_has_no_end(
    direct: tuple[MorphProvider, Cloud], user: str
) -> None:
    provider, cloud = direct
    (cloud._directory / "base/etc/group").write_text("root:x:0:\nlast:x:7:")
    (cloud._directory / "base/etc/passwd").write_text(f"{user}root:x:0:0::/root:/bin/bash\nlast:x:7:7::/:/bin/sh")
    spec = replace(SPEC, shape=Shape(memory_mib=1024))
    await provider.prepare(IMAGE, spec.shape)
    await provider.boot("one", spec)
    assert await said(provider, "one", "cat /etc/group") == b"root:x:0:\nlast:x:7:\nagent:x:1000:\n"
    assert sorted((await said(provider, "one", "cat /etc/passwd")).splitlines()) == [
        b"agent:x:1000:1000::/home/agent:/bin/bash",
        b"last:x:7:7::/:/bin/sh",
        b"root:x:0:0::/root:/bin/bash",
    ]
    await provider.terminate("one")


@pytest.mark.cloud
async def test_the_real_service_does_what_the_fake_does() -> None:
    key = os.environ.get("MORPH_API_KEY", "")
    if not key:
        pytest.skip("MORPH_API_KEY is not set: nothing is asked of the real service")
    with searched_directory() as scratch:
        provider = MorphProvider(scratch, lambda: Secret(key))
        name = f"hv-test-{new_id()}"
        spec = replace(SPEC, shape=Shape(memory_mib=512, cpus=1, disk_gib=4), ttl=900)
        try:
            await provider.prepare(IMAGE, spec.shape)
            await provider.boot(name, spec)
            assert await said(provider, name, "id -un; cat /proc/sys/kernel/hostname") == f"agent\n{name}\n".encode()
            async with provider.guest(name) as guest:
                await guest.write_atomic("~/kept", b"kept", mode=0o600)
            await provider.pause(name)
            await provider.resume(name)
            (child,) = await provider.fork(name, [f"{name}-2"], spec)
            assert await said(provider, child.name, "cat kept") == b"kept"
        finally:
            with anyio.CancelScope(shield=True):
                for left in await provider.names():
                    await provider.terminate(left)
                await provider.release_image(IMAGE.id)
                await provider.aclose()
