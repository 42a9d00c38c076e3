"""Finding a container engine, and its errors as ours. No engine is needed here."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from aiodocker.exceptions import DockerError

from hiveyard.core.errors import NoMemory, NoSpace, ProviderError, ProviderUnavailable
from hiveyard.core.machines import Image, MachineSpec, Network, Shape
from hiveyard.machines.docker import DockerProvider, DockerSettings
from hiveyard.machines.docker.container import Owner, Shared, config
from hiveyard.machines.docker.engine import find_socket, translated
from hiveyard.machines.docker.ownership import give


@pytest.fixture
def listening(tmp_path: Path) -> Path:
    path = tmp_path / "engine.sock"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
    return path


def test_the_setting_wins_over_the_environment(listening: Path) -> None:
    assert find_socket(str(listening), {"DOCKER_HOST": "unix:///nowhere"}) == listening


def test_docker_host_names_the_socket(listening: Path) -> None:
    assert find_socket("", {"DOCKER_HOST": f"unix://{listening}"}) == listening


def test_the_socket_of_the_users_podman_is_found(tmp_path: Path) -> None:
    if Path("/var/run/docker.sock").exists():
        pytest.skip("Docker's own socket is there, and comes first")
    (tmp_path / "podman").mkdir()
    path = tmp_path / "podman" / "podman.sock"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
    assert find_socket("", {"XDG_RUNTIME_DIR": str(tmp_path)}) == path


def test_an_engine_on_another_host_is_refused(listening: Path) -> None:
    with pytest.raises(ProviderUnavailable, match="DOCKER_HOST is tcp://elsewhere:2375"):
        find_socket("", {"DOCKER_HOST": "tcp://elsewhere:2375"})


def test_a_socket_that_is_not_there_is_told_by_its_path(tmp_path: Path) -> None:
    with pytest.raises(ProviderUnavailable, match=f"no container engine at {tmp_path}/none.sock"):
        find_socket(f"{tmp_path}/none.sock", {})


def test_a_file_is_no_engine(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ProviderUnavailable, match="is no socket"):
        find_socket(str(tmp_path / "file"), {})


@pytest.mark.anyio
@pytest.mark.parametrize("bound", [True, False])
async def test_without_an_engine_the_provider_is_not_ready_and_says_what_to_do(tmp_path: Path, bound: bool) -> None:
    path = tmp_path / "engine.sock"
    if bound:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))  # nobody listens
    provider = DockerProvider(tmp_path / "state", DockerSettings(socket=str(path)))
    readiness = await provider.readiness()
    assert not readiness.ok
    assert readiness.detail
    assert readiness.fix
    with pytest.raises(ProviderUnavailable):
        await provider.boot("m1", MachineSpec(image=Image(id="x", name="x", rootfs=tmp_path)))
    with pytest.raises(ProviderUnavailable):
        await provider.names()


@pytest.mark.parametrize(
    ("status", "said", "kind"),
    [
        (500, "write /var/lib/docker/x: no space left on device", NoSpace),
        (500, "fork/exec /usr/bin/runc: cannot allocate memory", NoMemory),
        (900, "Cannot connect to Docker Engine", ProviderUnavailable),
        (500, "something else", ProviderError),
    ],
)
def test_what_the_engine_says_becomes_an_error_of_ours(status: int, said: str, kind: type[ProviderError]) -> None:
    error = translated(DockerError(status, said), "making a container")
    assert type(error) is kind
    assert said in error.message
    assert "making a container" in error.message


def test_only_an_open_network_is_more_than_a_loopback(tmp_path: Path) -> None:
    def mode(network: Network) -> object:
        spec = MachineSpec(image=Image(id="x", name="x", rootfs=tmp_path), network=network)
        host = config("m", spec, Shared(None, None), "i", Owner(uid=1000, gid=1000), 8)["HostConfig"]
        assert isinstance(host, dict)
        return host["NetworkMode"]

    assert mode(Network.DOOR) == "none"
    assert mode(Network.OPEN) == "default"


def test_no_more_processors_are_asked_for_than_the_engine_has(tmp_path: Path) -> None:
    spec = MachineSpec(image=Image(id="x", name="x", rootfs=tmp_path), shape=Shape(cpus=64))
    host = config("m", spec, Shared(None, None), "i", Owner(uid=1000, gid=1000), 4)["HostConfig"]
    assert isinstance(host, dict)
    assert host["NanoCpus"] == 4_000_000_000


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_tree_is_given_away_without_following_what_a_guest_put_there(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").touch()
    tree = tmp_path / "tree"
    (tree / "below").mkdir(parents=True)
    (tree / "below" / "file").touch()
    (tree / "link").symlink_to(outside / "file")
    (tree / "way").symlink_to(outside)
    give(tree, Owner(uid=1234, gid=1235))
    assert (tree / "below" / "file").stat().st_uid == 1234
    assert (tree / "below").stat().st_gid == 1235
    assert (tree / "link").lstat().st_uid == 1234
    assert outside.stat().st_uid == (outside / "file").stat().st_uid == 0
