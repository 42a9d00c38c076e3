"""Test the properties that only containers have; the contract suite tests the rest."""

from __future__ import annotations

import os
import tarfile
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiodocker import Docker
from aiodocker.exceptions import DockerError
from aiodocker.types import JSONObject

from hiveyard.core.commands import Command
from hiveyard.core.errors import BootFailed, CommandTimeout, NoSuchImage, ProviderError
from hiveyard.core.machines import Image, MachineSpec, MachineStatus, Shape
from hiveyard.kit import process
from hiveyard.kit.names import new_id
from hiveyard.machines.docker import DockerProvider
from hiveyard.machines.docker.container import tag
from tests.contract.conftest import Place, machine
from tests.contract.door import outlive_a_full_table, serve_door
from tests.contract.providers import Offer, container_name
from tests.contract.providers import docker as docker_offer
from tests.support.leaks import searched_directory

pytestmark = [pytest.mark.anyio, pytest.mark.real]


@pytest.fixture(scope="module")
async def offer() -> AsyncIterator[Offer]:
    with searched_directory() as scratch:
        async with docker_offer(scratch) as offer:
            readiness = await offer.provider.readiness()
            if not readiness.ok and not os.environ.get("CI"):
                pytest.skip(readiness.detail)
            assert readiness.ok, readiness
            await offer.provider.prepare(offer.image, offer.shape)
            yield offer


@pytest.fixture
async def place(offer: Offer) -> AsyncIterator[Place]:
    async with machine(offer) as place:
        yield place


def provider(offer: Offer) -> DockerProvider:
    assert isinstance(offer.provider, DockerProvider)
    return offer.provider


def client(offer: Offer) -> Docker:
    return Docker(url=f"unix://{provider(offer)._engine.socket}")


async def inspect(place: Place) -> dict[str, Any]:
    async with client(place.offer) as docker:
        name = container_name(provider(place.offer)._state, place.name)
        return await docker.containers.container(name).show()


async def test_readiness_tells_the_engine_and_what_it_limits(offer: Offer) -> None:
    readiness = await offer.provider.readiness()
    assert readiness.ok
    assert readiness.detail.startswith(("Docker Engine ", "Podman Engine "))
    assert "limited: memory" in readiness.detail


async def test_a_trial_that_nobody_ended_is_removed_by_the_next(offer: Offer) -> None:
    def trial(age: float | None) -> JSONObject:
        created = {} if age is None else {"hiveyard.created": repr(time.time() - age)}
        labels = {"hiveyard.installation": "trial", **created}
        return {"Image": tag(offer.image.id), "Cmd": ["bash"], "Labels": labels}

    names = [f"hiveyard-trial-{new_id()}" for _ in range(3)]
    async with client(offer) as docker:
        made = [
            await docker.containers.create(trial(age), name=name)
            for age, name in zip((90.0, None, 5.0), names, strict=True)
        ]
        try:
            assert (await offer.provider.readiness()).ok
            there = {path for one in await docker.containers.list(all=True) for path in one["Names"]}
            assert {f"/{name}" for name in names} & there == {f"/{names[2]}"}
        finally:
            for one in made:
                with suppress(DockerError):
                    await one.delete(force=True)


async def test_a_container_is_confined(place: Place) -> None:
    host = (await inspect(place))["HostConfig"]
    assert host["CapDrop"] == ["ALL"]
    assert not host["CapAdd"]
    assert host["SecurityOpt"] == ["no-new-privileges"]
    assert host["Privileged"] is False
    assert host["ReadonlyRootfs"] is True
    assert host["NetworkMode"] == "none"
    assert host["Memory"] == host["MemorySwap"] == 512 << 20
    assert host["PidsLimit"] == place.offer.shape.pids


async def test_no_process_of_a_container_is_root_or_can_become_it(place: Place) -> None:
    script = 'while read -r k v; do case $k in Uid:|CapBnd:|NoNewPrivs:|Seccomp:) echo "$k $v";; esac; done <"$1"'
    async with place.guest() as guest:
        for status in ("/proc/self/status", "/proc/1/status"):
            seen = (await guest.run(Command(argv=("bash", "-c", script, "x", status)))).stdout.decode()
            facts = dict(line.split(": ", 1) for line in seen.splitlines())
            assert "0" not in facts["Uid"].split()
            assert int(facts["CapBnd"], 16) == 0
            assert facts["NoNewPrivs"] == "1"
            assert facts["Seccomp"] == "2"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's files need to be mapped")
async def test_what_the_guest_writes_belongs_to_the_daemon(place: Place) -> None:
    async with place.guest() as guest:
        await guest.write("/session/file", b"mine")
        assert (await guest.run(Command(shell="stat -c %u /session/file"))).stdout == b"1000\n"
    assert (place.session / "file").stat().st_uid == 0


async def test_a_boot_leaves_no_mount_behind(place: Place) -> None:
    shown = provider(place.offer)._state / "shown"
    assert str(shown) not in Path("/proc/self/mountinfo").read_text()
    assert not shown.exists() or list(shown.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts")
async def test_mounts_that_a_killed_daemon_left_are_taken_away(offer: Offer) -> None:
    name = f"t-{new_id()}"
    left = provider(offer)._state / "shown" / f"{name}.session"
    left.mkdir(parents=True)
    await process.run(["mount", "--bind", "/usr", str(left)])
    assert str(left) in Path("/proc/self/mountinfo").read_text()
    await offer.provider.terminate(name)
    assert not left.exists()
    assert str(left) not in Path("/proc/self/mountinfo").read_text()
    assert Path("/usr/bin").is_dir()


async def test_a_fork_bomb_stays_inside_and_is_ended(offer: Offer) -> None:
    async with machine(replace(offer, shape=Shape(memory_mib=512, pids=200))) as place, place.guest() as guest:
        with pytest.raises(CommandTimeout):
            await guest.run(Command(shell="b() { b | b & }; b; wait; sleep 1000"), timeout=2)
        assert (await guest.run(Command(shell="echo alive"))).stdout == b"alive\n"


async def test_a_command_that_takes_too_much_memory_is_killed_alone(offer: Offer) -> None:
    async with machine(replace(offer, shape=Shape(memory_mib=128))) as place, place.guest() as guest:
        result = await guest.run(Command(shell="x=$(dd if=/dev/zero bs=1M count=500 status=none | tr '\\0' x)"))
        assert result.status == 137
        assert (await guest.run(Command(shell="echo alive"))).stdout == b"alive\n"


async def test_an_image_without_socat_is_told_when_a_door_is_wanted(offer: Offer, tmp_path: Path) -> None:
    image = Image(id="n0s0ca7", name="bare", rootfs=tmp_path / "bare.tar")
    with tarfile.open(offer.image.rootfs) as source, tarfile.open(image.rootfs, "w") as target:
        for member in source:
            if not member.name.endswith("/socat"):
                target.addfile(member, source.extractfile(member) if member.isreg() else None)
    await offer.provider.prepare(image, offer.shape)
    try:
        with pytest.raises(BootFailed, match="the image has no socat"):
            await offer.provider.boot("t-bare", MachineSpec(image=image, shape=offer.shape, door=tmp_path / "door"))
        assert "t-bare" not in await offer.provider.names()
    finally:
        await offer.provider.release_image(image.id)


async def test_an_image_is_imported_without_its_kernel(offer: Offer, tmp_path: Path) -> None:
    image = Image(id="k3rn31", name="kernel", rootfs=tmp_path / "kernel.tar")
    image.rootfs.write_bytes(offer.image.rootfs.read_bytes())
    with tarfile.open(image.rootfs, "a") as tar:
        for name in ("./boot/vmlinuz", "./usr/lib/modules/6.1/kernel.ko", "./usr/lib/marker"):
            tar.addfile(tarfile.TarInfo(name))
    await offer.provider.prepare(image, offer.shape)
    try:
        async with machine(replace(offer, image=image)) as place, place.guest() as guest:
            assert await guest.exists("/usr/lib/marker")
            assert not await guest.exists("/boot/vmlinuz")
            assert not await guest.exists("/usr/lib/modules/6.1")
    finally:
        await offer.provider.release_image(image.id)


async def test_an_image_in_use_is_not_released(place: Place) -> None:
    with pytest.raises(ProviderError, match="is used by containers"):
        await place.offer.provider.release_image(place.offer.image.id)


async def test_an_image_whose_file_is_gone_is_told_by_its_path(offer: Offer, tmp_path: Path) -> None:
    image = Image(id="90ne", name="gone", rootfs=tmp_path / "gone.tar")
    with pytest.raises(NoSuchImage, match=str(image.rootfs)):
        await offer.provider.prepare(image, offer.shape)


async def test_a_damaged_image_is_an_error_and_not_half_there(offer: Offer, tmp_path: Path) -> None:
    image = Image(id="da3a9ed", name="damaged", rootfs=tmp_path / "damaged.tar")
    data = offer.image.rootfs.read_bytes()
    image.rootfs.write_bytes(data[: len(data) // 2])
    with pytest.raises(ProviderError, match="da3a9ed"):
        await offer.provider.prepare(image, offer.shape)
    with pytest.raises(NoSuchImage):
        await offer.provider.boot("t-none", MachineSpec(image=image, shape=offer.shape))


async def test_the_machines_of_another_installation_are_not_ours(place: Place) -> None:
    with searched_directory() as scratch:
        other = DockerProvider(scratch, provider(place.offer)._settings)
        assert await other.names() == set()
        await other.terminate(place.name)
    assert (await place.offer.provider.get(place.name)).status is MachineStatus.READY


async def test_a_foreign_container_of_our_name_is_told_and_left_alone(offer: Offer) -> None:
    name = f"t-{new_id()}"
    body: JSONObject = {"Image": tag(offer.image.id), "Cmd": ["bash"]}
    async with client(offer) as docker:
        foreign = await docker.containers.create(body, name=container_name(provider(offer)._state, name))
        try:
            with pytest.raises(BootFailed, match="is used by a container that is not of this installation"):
                await offer.provider.boot(name, MachineSpec(image=offer.image, shape=offer.shape))
            assert name not in await offer.provider.names()
            await foreign.show()
        finally:
            await foreign.delete(force=True)


async def test_an_agent_may_kill_the_doors_forwarder_and_it_comes_back(place: Place) -> None:
    kill = "for d in /proc/[0-9]*; do [[ $(<$d/comm) == socat ]] && kill -9 ${d#/proc/}; done; true"
    knock = "for i in {1..200}; do : 3<>/dev/tcp/127.0.0.1/8377 && exit; sleep 0.05; done 2>/dev/null; exit 1"
    async with place.guest() as guest:
        assert (await guest.run(Command(shell=kill))).ok
        assert (await guest.run(Command(shell=knock))).ok


async def test_a_connection_to_the_door_while_no_process_can_begin_is_all_that_fails(offer: Offer) -> None:
    async with machine(replace(offer, shape=Shape(memory_mib=512, pids=64))) as place, place.guest() as guest:
        with serve_door(place.door, "the door"):
            await outlive_a_full_table(guest, offer.provider.capabilities, b"the door")
        assert (await offer.provider.get(place.name)).status is MachineStatus.READY
