"""Find a container engine, and translate its errors. No engine is needed here."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from aiodocker.exceptions import DockerError

from hiveyard.core.errors import NoMemory, NoSpace, ProviderError, ProviderUnavailable
from hiveyard.core.machines import Image, MachineSpec, Network, Shape
from hiveyard.machines.docker import DockerProvider, DockerSettings
from hiveyard.machines.docker.container import Owner, Shared, config
from hiveyard.machines.docker.engine import find_socket, first_usable, translate
from hiveyard.machines.docker.ownership import give_ownership
from tests.support.leaks import searched_directory


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


def socket_at(path: Path, mode: int = 0o777) -> Path:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
    path.chmod(mode)
    return path


@contextmanager
def somebody() -> Iterator[None]:
    """Inside the block this process is an unprivileged user."""
    if os.geteuid() != 0:
        yield
        return
    os.setresuid(65534, 65534, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)


def test_an_engine_that_this_user_may_not_use_does_not_hide_one_that_it_may() -> None:
    with searched_directory() as name:
        place = Path(name)
        place.chmod(0o755)
        closed, usable = socket_at(place / "docker.sock", 0o000), socket_at(place / "podman.sock")
        other = socket_at(place / "other.sock", 0o000)
        with somebody():
            assert first_usable([place / "none.sock", closed, usable]) == usable
            with pytest.raises(ProviderUnavailable, match=f"may not use the container engine at {closed}"):
                first_usable([closed, other])


def test_a_place_that_cannot_be_looked_at_has_no_engine(tmp_path: Path, listening: Path) -> None:
    too_long = Path("/" + "x" * 300) / "podman.sock"
    assert first_usable([too_long, listening]) == listening
    with pytest.raises(ProviderUnavailable, match="no container engine"):
        first_usable([too_long, tmp_path])


def test_a_directory_of_somebody_else_has_no_engine() -> None:
    with searched_directory() as name:
        place = Path(name)
        place.chmod(0o755)
        usable = socket_at(place / "podman.sock")
        (place / "theirs").mkdir()
        hidden = socket_at(place / "theirs" / "podman.sock")
        hidden.parent.chmod(0o000)
        with somebody():
            assert first_usable([hidden, usable]) == usable
        hidden.parent.chmod(0o700)


def test_a_runtime_directory_that_cannot_be_is_no_accident() -> None:
    try:
        find_socket("", {"XDG_RUNTIME_DIR": "/" + "x" * 300})
    except ProviderUnavailable as error:
        assert error.hint


def test_an_engine_on_another_host_is_refused(listening: Path) -> None:
    with pytest.raises(ProviderUnavailable, match="DOCKER_HOST is tcp://elsewhere:2375"):
        find_socket("", {"DOCKER_HOST": "tcp://elsewhere:2375"})


def test_a_socket_that_is_not_there_is_told_by_its_path(tmp_path: Path) -> None:
    with pytest.raises(ProviderUnavailable, match=f"no container engine at {tmp_path}/none.sock"):
        find_socket(f"{tmp_path}/none.sock", {})


def test_a_file_is_no_engine(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ProviderUnavailable, match="is not a socket"):
        find_socket(str(tmp_path / "file"), {})


@pytest.mark.anyio
@pytest.mark.parametrize("bound", [True, False])
async def test_without_an_engine_the_provider_is_not_ready_and_says_what_to_do(tmp_path: Path, bound: bool) -> None:
    path = tmp_path / "engine.sock"
    if bound:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))  # no process listens
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
    error = translate(DockerError(status, said), "making a container")
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
    give_ownership(tree, Owner(uid=1234, gid=1235))
    assert (tree / "below" / "file").stat().st_uid == 1234
    assert (tree / "below").stat().st_gid == 1235
    assert (tree / "link").lstat().st_uid == 1234
    assert outside.stat().st_uid == (outside / "file").stat().st_uid == 0
