"""Test the properties that only bubblewrap machines have; the contract suite tests the rest."""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import anyio
import pytest
from anyio.abc import TaskGroup
from anyio.streams.buffered import BufferedByteReceiveStream

from hiveyard.core.commands import Command
from hiveyard.core.errors import BadInput, BootFailed, BootTimeout, CommandTimeout, MachineLost, NoSpace
from hiveyard.core.machines import HOST, MachineSpec, MachineStatus, Shape
from hiveyard.core.ports import Guest
from hiveyard.kit import process
from hiveyard.machines.bubblewrap import BubblewrapProvider, BubblewrapSettings
from hiveyard.machines.bubblewrap.cgroups import Cgroups
from hiveyard.machines.bubblewrap.provider import _disk_error
from tests.contract.door import outlive_a_full_table, serve_door
from tests.contract.rootfs import small_image
from tests.support import hidden
from tests.support.leaks import searched_directory

pytestmark = pytest.mark.anyio


@pytest.fixture
def scratch() -> Iterator[Path]:
    with searched_directory() as path:
        yield Path(path)


@pytest.fixture
def host(scratch: Path) -> BubblewrapProvider:
    """A provider for machines with the host's programs, which need no preparation."""
    return BubblewrapProvider(scratch / "state", scratch / "cache", BubblewrapSettings())


@asynccontextmanager
async def _guest(provider: BubblewrapProvider, spec: MachineSpec) -> AsyncIterator[Guest]:
    """Return a guest in a machine `t`, which is terminated after the block."""
    await provider.boot("t", spec)
    try:
        async with provider.guest("t") as guest:
            yield guest
    finally:
        await provider.terminate("t")


def _mentioning(word: str) -> list[int]:
    """Return the processes of this host with `word` in their command line."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if word.encode() in command:
                found.append(int(entry.name))
    return found


async def test_readiness_is_found_out_by_a_machine_that_leaves_nothing(host: BubblewrapProvider, scratch: Path) -> None:
    readiness = await host.readiness()
    assert readiness.ok, readiness
    assert "bubblewrap" in readiness.detail
    assert "processes limited" in readiness.detail
    assert "memory" in readiness.detail
    assert await host.names() == set()
    assert list((scratch / "state").iterdir()) == []


class Late(BubblewrapProvider):
    """A provider whose list of names contains a machine that was removed since."""

    async def names(self) -> set[str]:
        return {"removed", *await super().names()}


async def test_a_machine_that_is_removed_while_they_are_listed_is_left_out(scratch: Path) -> None:
    (scratch / "state" / "half").mkdir(parents=True)
    provider = Late(scratch / "state", scratch / "cache", BubblewrapSettings())
    assert [machine.name for machine in await provider.list()] == ["half"]


async def test_a_missing_program_is_told_with_the_command_that_installs_it(
    host: BubblewrapProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    readiness = await host.readiness()
    assert not readiness.ok
    assert "bwrap" in readiness.detail
    assert "apt-get install" in readiness.fix


async def test_on_the_hosts_root_only_programs_are_seen(host: BubblewrapProvider, scratch: Path) -> None:
    async with _guest(host, MachineSpec(image=HOST)) as guest:
        result = await guest.run(Command(shell="ls -A /; ls -A /home /run /tmp; ls /etc; id -un"))
        seen = set(result.stdout.decode().split())
        assert {"usr", "agent"} <= seen
        assert not seen & {"root", "srv", "shadow", "ssh", "sudoers", "hostname", "docker.sock", scratch.name}
        for path in ("/root", "/var/run", "/var/lib", "/etc/shadow", "/sys", str(scratch)):
            assert not await guest.exists(path), path
        for path in ("/usr/x", "/etc/x", "/x", "/dev/x"):
            assert not (await guest.run(Command(argv=("touch", path)))).ok, path
        for path in ("~/x", "/tmp/x", "/run/x", "/var/tmp/x", "/dev/shm/x"):
            await guest.write(path, b"x")


async def test_a_host_directory_is_shown_when_the_settings_say_so(scratch: Path) -> None:
    shown = scratch / "shown"
    shown.mkdir()
    (shown / "tool").write_bytes(b"for machines")
    (shown / "tool").chmod(0o644)
    scratch.chmod(0o755)
    settings = BubblewrapSettings(host_paths=(str(shown),))
    provider = BubblewrapProvider(scratch / "state", scratch / "cache", settings)
    async with _guest(provider, MachineSpec(image=HOST)) as guest:
        assert await guest.read(f"{shown}/tool") == b"for machines"
        assert not (await guest.run(Command(argv=("touch", f"{shown}/tool")))).ok


async def test_the_daemon_owns_what_a_machine_writes(host: BubblewrapProvider, scratch: Path) -> None:
    session = scratch / "session"
    async with _guest(host, MachineSpec(image=HOST, session=session)) as guest:
        await guest.write_atomic("/session/a/secret", b"x", mode=0o600)
        assert (await guest.run(Command(shell="stat -c %u:%g /session/a"))).stdout == b"1000:1000\n"
    for path in (session / "a", session / "a/secret"):
        assert (path.stat().st_uid, path.stat().st_gid) == (os.geteuid(), os.getegid())


async def test_a_machine_is_no_root_on_the_host(host: BubblewrapProvider, scratch: Path) -> None:
    async with _guest(host, MachineSpec(image=HOST)) as guest, anyio.create_task_group() as group:
        group.start_soon(guest.run, Command(argv=("sleep", "1234567")))
        while not (pids := [pid for pid in _mentioning("1234567") if _program(pid) == b"sleep"]):  # noqa: ASYNC110
            await anyio.sleep(0.02)
        status = Path(f"/proc/{pids[0]}/status").read_text()
        group.cancel_scope.cancel()
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    expected = BubblewrapSettings().uid if os.geteuid() == 0 else os.geteuid()
    assert set(fields["Uid"].split()) == {str(expected)}
    assert fields["NoNewPrivs"] == "1"
    assert int(fields["CapEff"], 16) == int(fields["CapPrm"], 16) == int(fields["CapInh"], 16) == 0


def _program(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0]
    except OSError:
        return b""


async def test_a_machine_cannot_make_namespaces_of_its_own(host: BubblewrapProvider) -> None:
    async with _guest(host, MachineSpec(image=HOST)) as guest:
        assert not (await guest.run(Command(argv=("unshare", "--user", "true")))).ok
        assert not (await guest.run(Command(argv=("unshare", "--user", "--map-root-user", "--mount", "true")))).ok


async def test_terminals_work(host: BubblewrapProvider) -> None:
    async with _guest(host, MachineSpec(image=HOST)) as guest:
        result = await guest.run(Command(argv=("script", "-qec", "tty", "/dev/null")))
        assert result.stdout.startswith(b"/dev/pts/"), result


async def test_a_fork_bomb_ends_with_its_machine_and_the_host_goes_on(host: BubblewrapProvider) -> None:
    await host.boot("m1", MachineSpec(image=HOST, shape=Shape(memory_mib=256)))
    async with host.guest("m1") as guest:
        with pytest.raises((MachineLost, CommandTimeout)):
            await guest.run(Command(shell="b() { b | b & }; b; sleep 60"), timeout=5)
    await host.terminate("m1")
    assert await host.names() == set()


async def _stop_a_command(host: BubblewrapProvider, group: TaskGroup) -> None:
    """Run a command in machine `t` that stops itself, and wait until the host program that runs it has stopped, too."""

    async def run() -> None:
        with pytest.raises(MachineLost):
            async with host.guest("t") as guest:
                await guest.run(Command(shell="kill -STOP $$ # 7654322"))

    group.start_soon(run)
    with anyio.fail_after(20):
        while not any(_program(pid) == b"nsenter" and _stopped(pid) for pid in _mentioning("7654322")):  # noqa: ASYNC110
            await anyio.sleep(0.02)


def _stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].startswith("T")


@pytest.mark.parametrize("delegated", [True, False], ids=["with control groups", "without"])
async def test_a_machine_in_which_a_command_stopped_itself_is_stopped_and_removed(
    host: BubblewrapProvider, scratch: Path, *, delegated: bool
) -> None:
    if not delegated:
        host._cgroups = Cgroups(scratch / "none")
    await host.boot("t", MachineSpec(image=HOST))
    async with anyio.create_task_group() as group:
        await _stop_a_command(host, group)
        with anyio.fail_after(10):
            await host.stop("t")
    assert (await host.get("t")).status is MachineStatus.STOPPED
    await host.terminate("t")
    assert await host.names() == set()


async def test_a_command_that_stopped_itself_does_not_outlive_its_machine_and_a_killed_daemon(
    host: BubblewrapProvider, scratch: Path
) -> None:
    async with _daemon(scratch, STOPPING) as lines:
        assert await lines.receive_until(b"\n", 100) == b"up"
        with anyio.fail_after(20):
            while not any(_program(pid) == b"nsenter" and _stopped(pid) for pid in _mentioning("7654323")):  # noqa: ASYNC110
                await anyio.sleep(0.02)
    with anyio.fail_after(10):
        await host.terminate("t")
    await _nobody_mentions("7654323")


async def test_processes_are_limited(host: BubblewrapProvider) -> None:
    script = "for i in {1..200}; do sleep 7654321 & done"
    async with (
        _guest(host, MachineSpec(image=HOST, shape=Shape(pids=64))) as guest,
        anyio.create_task_group() as group,
    ):

        async def burst() -> None:
            with pytest.raises(MachineLost):
                await guest.run(Command(shell=script))

        group.start_soon(burst)
        most = 0
        for _ in range(10):
            await anyio.sleep(0.1)
            most = max(most, len([pid for pid in _mentioning("7654321") if _program(pid) == b"sleep"]))
        await host.stop("t")
    assert 32 < most < 64


@pytest.mark.real
async def test_a_connection_to_the_door_while_no_process_can_begin_is_all_that_fails(
    host: BubblewrapProvider, scratch: Path
) -> None:
    door = scratch / "door"
    door.mkdir()
    spec = MachineSpec(image=HOST, shape=Shape(pids=64), door=door)
    with serve_door(door, "the door"):
        async with _guest(host, spec) as guest:
            await outlive_a_full_table(guest, host.capabilities, b"the door")
        assert await host.names() == set()


async def test_no_signal_from_inside_reaches_process_1(host: BubblewrapProvider) -> None:
    async with _guest(host, MachineSpec(image=HOST)) as guest:
        await guest.run(Command(shell="for number in {1..64}; do kill -s $number 1; done 2>/dev/null; sleep 0.5"))
        command = await guest.run(Command(argv=("cat", "/proc/1/cmdline")))
        assert command.stdout.endswith(b"\0\0\0\0"), "it became a new one"


async def test_root_is_no_user_for_machines(scratch: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root chooses a user for its machines")
    with pytest.raises(BadInput):
        BubblewrapProvider(scratch, scratch, BubblewrapSettings(uid=0))


async def test_an_image_without_socat_is_told_as_such(scratch: Path) -> None:
    provider = BubblewrapProvider(scratch / "state", scratch / "cache")
    image = small_image(scratch)
    await provider.prepare(image, Shape())
    (provider._roots.find(image) / "usr/bin/socat").unlink()
    with pytest.raises(BootFailed, match="socat"):
        await provider.boot("t", MachineSpec(image=image, door=scratch / "door"))
    assert await provider.names() == set()


async def test_the_number_of_a_process_that_is_gone_is_not_taken_for_the_machine(
    host: BubblewrapProvider, scratch: Path
) -> None:
    async with _guest(host, MachineSpec(image=HOST)):
        ident = (scratch / "state/t/machine.json").read_text().split('"ident":"')[1].split('"')[0]
        assert len(_mentioning(ident)) >= 2  # bubblewrap, process 1, and perhaps a new child of it
        (scratch / "state/t/pid").write_text(f"{os.getpid()} 1\n")
        assert (await host.get("t")).status is MachineStatus.ERROR
        await host.terminate("t")
        assert _mentioning(ident) == []


DAEMON = """
import sys, anyio
from pathlib import Path
from hiveyard.core.commands import Command
from hiveyard.core.machines import HOST, MachineSpec
from hiveyard.machines.bubblewrap import BubblewrapProvider, BubblewrapSettings
scratch = Path(sys.argv[1])
async def main():
    provider = BubblewrapProvider(scratch / "state", scratch / "cache", BubblewrapSettings())
    print("begin", flush=True)
    image = HOST
    await provider.boot("t", MachineSpec(image=image, session=scratch / "session", door=scratch / "door"))
    async with provider.guest("t") as guest:
        count = "for i in {1..40}; do echo $i; sleep 0.05; done >/session/log"
        await guest.run(Command(shell=f"setsid bash -c '{count}' &"))
    print("up", flush=True)
    await anyio.sleep(1000)
anyio.run(main)
"""


STOPPING = DAEMON.replace(
    "await anyio.sleep(1000)",
    """
    async with provider.guest("t") as guest:
        await guest.run(Command(shell="kill -STOP $$ # 7654323"))
""".strip(),
)


@asynccontextmanager
async def _daemon(scratch: Path, code: str = DAEMON) -> AsyncIterator[BufferedByteReceiveStream]:
    """Start a daemon that boots machine `t`, and kill it with SIGKILL at the end of the block."""
    process = await anyio.open_process([sys.executable, "-c", code, str(scratch)])
    assert process.stdout is not None
    lines = BufferedByteReceiveStream(process.stdout)
    assert await lines.receive_until(b"\n", 100) == b"begin"
    yield lines
    process.kill()
    await process.aclose()


async def test_a_machine_and_its_processes_go_on_when_the_daemon_is_killed(
    host: BubblewrapProvider, scratch: Path
) -> None:
    async with _daemon(scratch) as lines:
        assert await lines.receive_until(b"\n", 100) == b"up"
    try:
        assert (await host.get("t")).status is MachineStatus.READY
        with anyio.fail_after(30):
            while not (scratch / "session/log").read_text().endswith("\n40\n"):  # noqa: ASYNC110 (it is in a machine)
                await anyio.sleep(0.05)
    finally:
        await host.terminate("t")


async def test_a_daemon_killed_while_it_boots_leaves_nothing_that_is_not_found(
    host: BubblewrapProvider, scratch: Path
) -> None:
    for _ in range(10):
        async with _daemon(scratch):
            await anyio.sleep(random.uniform(0, 0.15))
        idents = [path.read_text() for path in (scratch / "state").glob("*/machine.json")]
        assert await host.names() <= {"t"}
        await host.terminate("t")
        assert await host.names() == set()
        for ident in idents:
            await _nobody_mentions(ident.split('"ident":"')[1].split('"')[0])
        await _nobody_mentions(str(scratch))


async def _nobody_mentions(text: str) -> None:
    """Wait until no process has `text` in its command line.

    A child that the killed daemon had just forked has the daemon's, until it finds its plan incomplete."""
    with anyio.fail_after(30):
        while _mentioning(text):  # noqa: ASYNC110 (they are not our children)
            await anyio.sleep(0.05)


async def test_a_machine_that_does_not_become_ready_is_too_late(scratch: Path) -> None:
    provider = BubblewrapProvider(scratch / "state", scratch / "cache", BubblewrapSettings(boot_timeout=1.0))
    image = small_image(scratch)
    await provider.prepare(image, Shape())
    mute = provider._roots.find(image) / "usr/bin/socat"
    mute.write_text("#!/bin/bash\nexec sleep 1000\n")
    with pytest.raises(BootTimeout):
        await provider.boot("t", MachineSpec(image=image, door=scratch / "door"))
    assert await provider.names() == set()


@pytest.mark.skipif(os.geteuid() != 0, reason="without root there are no id-mapped mounts")
async def test_where_no_namespace_can_be_made_that_is_said_at_once(scratch: Path) -> None:
    """As in a container without the privilege; here because a chroot forbids it."""
    code = "import anyio; from tests.machines.bubblewrap.test_bubblewrap import tell; anyio.run(tell)"
    outside = f'mount --rbind / "$1"; cd {Path.cwd()}; exec chroot "$1" env --chdir={Path.cwd()} "$2" -c "$3"'
    (scratch / "root").mkdir()
    argv = ["unshare", "--mount", "--propagation=private", "bash", "-ec", outside, "-"]
    with anyio.fail_after(25):
        said = await process.run([*argv, str(scratch / "root"), sys.executable, code])
    assert "user namespace" in said.stdout.decode(), said


async def tell() -> None:
    with searched_directory() as scratch:
        readiness = await BubblewrapProvider(Path(scratch, "s"), Path(scratch, "c"), BubblewrapSettings()).readiness()
        print(readiness)


async def test_a_damaged_record_is_half_made_remains(host: BubblewrapProvider, scratch: Path) -> None:
    (scratch / "state/t").mkdir(parents=True)
    (scratch / "state/t/machine.json").write_bytes(b"")
    assert (await host.get("t")).status is MachineStatus.ERROR
    async with _guest(host, MachineSpec(image=HOST)) as guest:
        assert (await guest.run(Command(argv=("true",)))).ok
    assert await host.names() == set()


async def test_what_a_daemon_left_that_was_killed_while_it_tried_is_removed_by_the_next(
    host: BubblewrapProvider, scratch: Path
) -> None:
    left = BubblewrapProvider(scratch / "state/.trial", scratch / "cache", BubblewrapSettings())
    await left.boot("trial-1", MachineSpec(image=HOST))
    record = scratch / "state/.trial/trial-1/machine.json"
    made = record.read_text()
    record.write_text(re.sub(r'"created_at":[0-9.]+', '"created_at":1.5', made))
    assert (await host.readiness()).ok
    assert await left.names() == set()
    assert _mentioning(made.split('"ident":"')[1].split('"')[0]) == []


async def test_what_an_image_sets_is_not_for_the_programs_of_the_host(host: BubblewrapProvider, scratch: Path) -> None:
    image = replace(small_image(scratch), env={"GREETING": "hello", "LD_PRELOAD": "/session/theirs.so"})
    await host.prepare(image, Shape())
    command = Command(shell="echo $GREETING; read -r")
    async with _guest(host, MachineSpec(image=image)) as guest, guest.open(command) as stream:
        assert await stream.receive() == b"hello\n"
        setting = _mentioning("GREETING=hello")
        entering = [pid for pid in setting if b"nsenter" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        assert entering
        for pid in entering:
            assert b"LD_PRELOAD" not in Path(f"/proc/{pid}/environ").read_bytes()


# Processes that erase their command lines.
@asynccontextmanager
async def hiding(guest: Guest) -> AsyncIterator[None]:
    """Run forty of them during the block."""
    async with guest.open(Command(argv=("python3", "-c", hidden.PROGRAM, "40"))) as stream:
        lines = 0
        while lines < 40:
            lines += (await stream.receive()).count(b"\n")
        yield


async def test_processes_without_a_command_line_do_not_delay_the_end_of_their_machine(host: BubblewrapProvider) -> None:
    async with _guest(host, MachineSpec(image=HOST)) as guest, hiding(guest):
        with anyio.fail_after(60):  # two seconds for each would be 80, at each look
            await host.terminate("t")
    assert await host.names() == set()


@pytest.fixture
def small(scratch: Path) -> Iterator[Path]:
    """Mount a file system of 1 MiB."""
    place = scratch / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]).returncode:
        pytest.skip("mounting needs root")
    yield place
    subprocess.run(["umount", str(place)], check=True)


async def test_a_disk_that_is_full_before_the_machines_home_is_whole_is_told_as_such(
    scratch: Path, small: Path
) -> None:
    provider = BubblewrapProvider(small / "state", scratch / "cache")
    image = small_image(scratch)
    await provider.prepare(image, Shape())
    skeleton = provider._roots.find(image) / "home/agent"
    (skeleton / "large").write_bytes(os.urandom(2 << 20))
    with pytest.raises(NoSpace, match="no space for a machine"):
        await provider.boot("t", MachineSpec(image=image))
    assert await provider.names() == set()


def test_why_a_home_cannot_be_copied_is_told(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/link").symlink_to("nowhere")
    with pytest.raises(shutil.Error) as caught:
        shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert "No such file" in _disk_error(caught.value, tmp_path).message
