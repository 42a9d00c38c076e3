"""Guarantees of the qemu provider only, with real VMs that are forked."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import signal
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import anyio
import asyncssh
import pytest

from hiveyard.core.commands import Command
from hiveyard.core.errors import GuestDisconnected, MachineLost, NoMemory
from hiveyard.core.machines import Image, MachineSpec, MachineStatus, Network, Shape
from hiveyard.core.ports import Guest
from hiveyard.kit.names import new_id
from hiveyard.machines.qemu import QemuProvider, QemuSettings
from hiveyard.machines.qemu.command import LAYOUT
from hiveyard.machines.qemu.record import QemuDirectory, read
from hiveyard.machines.qemu.serial_shell import open_shell
from hiveyard.machines.qemu.session_disk import SessionDisk, make
from hiveyard.machines.qemu.user import allow_reading
from hiveyard.machines.qemu.vm import find_process, labels
from hiveyard.machines.qemu.wire import connected
from hiveyard.paths import default_paths
from tests.contract.door import ask, get, serve_door
from tests.support.leaks import searched_directory
from tests.support.vm import vm_image, vm_pid, vm_provider

pytestmark = [pytest.mark.anyio, pytest.mark.real]

SHAPE = Shape(memory_mib=512)


@dataclass(frozen=True)
class Yard:
    """A provider with its own state directory, and an image that it has prepared."""

    provider: QemuProvider
    image: Image
    state: Path
    scratch: Path

    @asynccontextmanager
    async def machine(self, **more: object) -> AsyncIterator[str]:
        name = f"t-{new_id()}"
        try:
            await self.provider.boot(name, replace(MachineSpec(image=self.image, shape=SHAPE), **more))  # type: ignore[arg-type]
            yield name
        finally:
            await self.provider.terminate(name)

    async def output(self, name: str, script: str) -> str:
        async with self.provider.guest(name) as guest:
            return await output(guest, script)


async def output(guest: Guest, script: str) -> str:
    result = await guest.run(Command(shell=script), timeout=60)
    assert result.ok, result
    return result.stdout.decode().strip()


@pytest.fixture(scope="module")
async def yard() -> AsyncIterator[Yard]:
    with searched_directory() as scratch:
        state = Path(scratch, "state")
        provider = vm_provider(state)
        readiness = await provider.readiness()
        if not readiness.ok and not os.environ.get("CI"):
            pytest.skip(f"{readiness.detail}; {readiness.fix}")
        assert readiness.ok, readiness
        image = await vm_image()
        await provider.prepare(image, SHAPE, print)
        yield Yard(provider, image, state, scratch)
        assert not await provider.names()
        await provider.aclose()


@pytest.mark.long("storms")
async def test_qemu_does_not_get_the_daemons_environment(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-ant-Zq8TestSecret-of-nobody")
    async with yard.machine() as name:
        own = Path(f"/proc/{vm_pid(yard.state, name)}/environ").read_bytes()
        assert b"PATH=" in own
        assert b"ANTHROPIC_API_KEY" not in own


async def test_two_forks_of_a_template_have_their_own_identities(yard: Yard) -> None:
    script = "cat /proc/sys/kernel/hostname /etc/machine-id; head -c 16 /dev/urandom | sha256sum; date +%s"
    async with yard.machine() as one, yard.machine() as two:
        first = (await yard.output(one, script)).splitlines()
        second = (await yard.output(two, script)).splitlines()
    assert (first[0], second[0]) == (one, two)
    assert first[1] != second[1]
    assert first[2] != second[2]
    for clock in (first[3], second[3]):
        assert abs(int(clock) - time.time()) < 30


async def test_a_fork_accepts_its_own_key_and_no_other(yard: Yard) -> None:
    async with yard.machine() as one, yard.machine() as two:
        records = [json.loads((yard.state / name / "machine.json").read_bytes()) for name in (one, two)]
        assert records[0]["key"] != records[1]["key"]
        foreign = asyncssh.import_private_key(records[1]["key"])
        with pytest.raises(asyncssh.PermissionDenied):
            await asyncssh.connect(
                "127.0.0.1", records[0]["port"], username="agent", client_keys=[foreign], known_hosts=None, config=None
            )


async def test_a_guest_with_another_host_key_is_refused(yard: Yard) -> None:
    async with yard.machine() as name:
        path = yard.state / name / "machine.json"
        record = json.loads(path.read_bytes())
        other = asyncssh.generate_private_key("ssh-ed25519").export_public_key().decode()
        path.write_text(json.dumps({**record, "host_key": other}))
        again = vm_provider(yard.state)
        async with again.guest(name) as guest:
            with pytest.raises(MachineLost, match="Host key is not trusted"):
                await guest.run(Command(argv=("true",)))
        path.write_text(json.dumps(record))


async def test_a_guest_reaches_its_door_and_nothing_else(yard: Yard) -> None:
    door = yard.scratch / "door, with a comma"
    door.mkdir()
    async with yard.machine(door=door) as name, yard.provider.guest(name) as guest:
        with serve_door(door, "the door"):
            answer = await guest.run(ask(yard.provider.capabilities, "/there"), timeout=60)
            assert answer.stdout.endswith(b"the door /there"), answer
        for host, port in (("10.0.2.2", 22), ("10.0.2.100", 81), ("1.1.1.1", 80)):
            refused = await guest.run(Command(argv=("timeout", "3", *get(host, port).words())), timeout=60)
            assert refused.status != 0, (host, port)
            assert not refused.stdout


async def test_a_connection_waits_for_a_door_that_is_created_later(yard: Yard) -> None:
    door = yard.scratch / "late"
    door.mkdir()
    async with yard.machine(door=door) as name, yard.provider.guest(name) as guest, anyio.create_task_group() as group:
        answers: list[bytes] = []

        async def knock() -> None:
            answers.append((await guest.run(ask(yard.provider.capabilities, "/"), timeout=60)).stdout)

        group.start_soon(knock)
        await anyio.sleep(1.5)
        assert not answers
        with serve_door(door, "late"):
            with anyio.fail_after(60):
                while not answers:  # noqa: ASYNC110 (a thread serves, another task asks)
                    await anyio.sleep(0.05)
        assert answers[0].endswith(b"late /")


async def test_an_open_network_is_given_on_request(yard: Yard) -> None:
    # A listener on the host's loopback is the one outside address that every test host has.
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port = listener.extra(anyio.abc.SocketAttribute.local_port)

    async def greet(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            await stream.send(b"outside")

    async with listener, anyio.create_task_group() as group:
        group.start_soon(listener.serve, greet)
        for network, seen in ((Network.OPEN, "outside"), (Network.DOOR, "")):
            async with yard.machine(network=network) as name:
                script = f"timeout 5 bash -c 'cat </dev/tcp/10.0.2.2/{port}' 2>/dev/null || true"
                assert await yard.output(name, script) == seen
        group.cancel_scope.cancel()


async def test_the_session_looks_the_same_from_both_sides(yard: Yard) -> None:
    session = yard.scratch / "session"
    (session / "repo").mkdir(parents=True)
    (session / "repo" / "tool").write_text("#!/bin/sh\necho ran\n")
    (session / "repo" / "tool").chmod(0o755)
    (session / "repo" / "link").symlink_to("tool")
    async with yard.machine(session=session) as name:
        made = "cd /session/repo; ./link; mkdir made; echo hi >made/file; chmod 700 made/file; ln -s file made/link"
        assert await yard.output(name, made) == "ran"
        assert (
            await yard.output(name, "stat -c %U /session /session/repo/tool /session/repo/made/file | uniq") == "agent"
        )
    assert os.readlink(session / "repo/made/link") == "file"
    assert (session / "repo/made/file").read_text() == "hi\n"
    assert (session / "repo/made/file").stat().st_mode & 0o777 == 0o700


async def test_the_files_of_a_killed_vm_come_back_to_the_session_directory(yard: Yard) -> None:
    session = yard.scratch / "killed"
    session.mkdir()
    async with yard.machine(session=session) as name:
        await yard.output(name, "echo kept >/session/file; sync")
        os.kill(vm_pid(yard.state, name), signal.SIGKILL)
    assert (session / "file").read_text() == "kept\n"


# Writes a line of 64 KiB every 60 ms, and one line to a file that it syncs each time.
WRITER = """
line=$(head -c 65500 /dev/zero | tr '\\0' x)
while :; do now=$(date +%s.%N); echo "$now $line" >>/session/stream
echo $now >>/session/synced; sync /session/synced; echo $now >/tmp/synced; sleep 0.06; done
"""


@pytest.mark.parametrize("rounds", [3, pytest.param(20, marks=pytest.mark.long("storms"))])
async def test_a_killed_vm_loses_nothing_synced_and_at_most_its_last_seconds(yard: Yard, rounds: int) -> None:
    disk = yard.scratch / f"killed-{rounds}-times"
    synced = written = 0.0
    for number in range(rounds + 1):
        async with yard.machine(disk=disk) as name:
            if number:
                assert float(await yard.output(name, "tail -n 1 /session/synced")) >= synced
                last = "tail -c 200000 /session/stream | grep -ao '^[0-9.]* x' | tail -n 1 | tr -d ' x'"
                assert written - float(await yard.output(name, last)) < 5
                assert await yard.output(name, "echo usable >/session/new; cat /session/new") == "usable"
            await yard.output(name, f"({WRITER}) </dev/null >/dev/null 2>&1 & echo on")
            await anyio.sleep(6)
            words = (await yard.output(name, "cat /tmp/synced; date +%s.%N")).split()
            synced, written = map(float, words)
            os.kill(vm_pid(yard.state, name), signal.SIGKILL)


async def test_a_full_disk_is_an_error_in_the_guest(yard: Yard) -> None:
    disk, tree = yard.scratch / "small", yard.scratch / "tree"
    tree.mkdir()
    await make(SessionDisk(disk), tree, QemuSettings().session_gib << 30)
    async with yard.machine(disk=disk) as name:
        script = "fallocate -l 70G /session/large 2>&1; echo $?; rm -f /session/large; echo x >/session/small; echo ok"
        said = await yard.output(name, script)
        assert "No space left on device" in said and said.endswith("ok")
    assert SessionDisk(disk).usage() < 64 << 20, "what is only reserved in the guest takes nothing here"


async def test_removed_files_free_space_on_the_host(yard: Yard) -> None:
    disk = SessionDisk(yard.scratch / "freed")
    async with yard.machine(disk=disk.root) as name:
        await yard.output(name, "head -c 64M /dev/urandom >/session/large; sync")
        assert disk.usage() > 60 << 20
        await yard.output(name, "rm /session/large; sync")
        with anyio.fail_after(30):
            while disk.usage() > 40 << 20:  # noqa: ASYNC110 (a guest discards blocks some time after)
                await anyio.sleep(0.2)


async def test_a_killed_vm_is_an_error_at_once_for_a_command_that_runs(yard: Yard) -> None:
    async with yard.machine() as name, yard.provider.guest(name) as guest, anyio.create_task_group() as group:

        async def kill() -> None:
            await anyio.sleep(1)
            os.kill(vm_pid(yard.state, name), signal.SIGKILL)

        group.start_soon(kill)
        with anyio.fail_after(30), pytest.raises(MachineLost, match="QEMU process has ended"):
            await guest.run(Command(argv=("sleep", "1000")))
        found = await yard.provider.get(name)
        assert found.status is MachineStatus.ERROR
        assert "ended" in found.reason


async def test_a_lost_connection_to_a_living_machine_is_made_again(yard: Yard) -> None:
    async with yard.machine() as name, yard.provider.guest(name) as guest:
        assert await output(guest, "echo one") == "one"
        await yard.provider.aclose()
        assert await output(guest, "echo two") == "two"


async def test_a_guest_that_kills_its_ssh_server_is_connected_again(yard: Yard) -> None:
    async with yard.machine() as name, yard.provider.guest(name) as guest:
        await output(guest, "echo one >/tmp/log")
        seen = b""
        with anyio.fail_after(60):
            async with aclosing(guest.follow("/tmp/log")) as pieces:  # type: ignore[type-var]
                async for piece in pieces:
                    seen += piece
                    if seen == b"one\n":
                        with pytest.raises(GuestDisconnected):
                            await output(guest, "echo two >>/tmp/log; kill -9 -1; sleep 1000")
                    if seen.endswith(b"two\n"):
                        break
        assert seen == b"one\ntwo\n"
        assert await output(guest, "echo alive; cat /proc/self/oom_score_adj") == "alive\n0"


@pytest.mark.long("storms")
async def test_a_guest_whose_ssh_server_stays_dead_is_lost(yard: Yard) -> None:
    async with yard.machine() as name:
        async with connected(QemuDirectory(yard.state / name).agent) as agent:
            await agent.synchronize()
            await agent.script("systemctl stop hiveyard-ssh; pkill -9 sshd || true")
        again = vm_provider(yard.state)  # the one that made it has a serial port that needs no ssh
        async with again.guest(name) as guest:
            with pytest.raises(MachineLost, match=f"machine {name} accepted no ssh connection within 60s"):
                await guest.run(Command(shell="echo hello"), timeout=300)
        await again.aclose()


async def test_a_command_that_arrives_before_the_signal_of_the_host_runs(yard: Yard) -> None:
    """The data of a host and the signal that it has connected are separate, and a busy guest gets them in any order."""
    busy = "for _ in 1 2 3 4; do (while :; do :; done) </dev/null >/dev/null 2>&1 & done; exit 0"
    async with yard.machine() as name:
        await yard.output(name, "true")
        directory = QemuDirectory(yard.state / name)
        record = read(directory.record)
        assert record is not None and record.vm is not None
        other = vm_provider(yard.state)
        async with other.guest(name) as guest:  # over ssh: only the provider that booted it has the serial port
            await guest.run(Command(shell=busy))
        await yard.provider.aclose()
        for number in range(20):
            await other.pause(name)
            shell = await open_shell(name, record.vm, directory.commands)
            size = number % 2 * 100_000
            async with shell.run(["bash", "-c", "exit ${#2}", "hv", "x" * size, "x" * number]) as command:
                await other.resume(name)
                with anyio.fail_after(30):
                    assert await command.wait() == number
            await shell.aclose()
        await other.aclose()


async def test_another_provider_on_the_same_state_can_use_its_machines(yard: Yard) -> None:
    async with yard.machine() as name:
        await yard.output(name, "echo kept >/tmp/kept")
        again = vm_provider(yard.state)
        assert name in await again.names()
        async with again.guest(name) as guest:
            assert await output(guest, "cat /tmp/kept") == "kept"
        await again.aclose()


async def test_terminate_leaves_no_process_and_no_file(yard: Yard) -> None:
    async with yard.machine() as name:
        pid = vm_pid(yard.state, name)
        assert find_process(pid) is not None
    assert not (yard.state / name).exists()
    assert find_process(pid) is None
    assert not [label for label, _ in labels() if label.endswith(f":{name}")]


async def test_a_vm_without_a_record_is_found_and_killed(yard: Yard) -> None:
    async with yard.machine() as name:
        pid = vm_pid(yard.state, name)
        (yard.state / name / "machine.json").unlink()
        again = vm_provider(yard.state)
        assert name in await again.names()
        assert (await again.get(name)).status is MachineStatus.ERROR
        await again.terminate(name)
        assert find_process(pid) is None


@pytest.mark.skipif(os.geteuid() != 0, reason="without root QEMU runs as the daemon's user")
async def test_qemu_runs_as_a_user_of_its_own_without_privileges(yard: Yard) -> None:
    session = yard.scratch / "own"
    session.mkdir()
    async with yard.machine(session=session) as one, yard.machine() as two:
        status = [Path(f"/proc/{vm_pid(yard.state, name)}/status").read_text() for name in (one, two)]
        lines = [dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line) for text in status]
        users = [set(line["Uid"].split()) for line in lines]
        assert all(len(user) == 1 and user != {"0"} for user in users)
        assert users[0] != users[1]
        for line in lines:
            assert int(line["CapEff"], 16) == 0
            assert line["NoNewPrivs"] == "1"
            assert line["Seccomp"] == "2"
            assert "0" not in line["Groups"].split()


async def test_memory_can_be_read_for_a_snapshot_under_yama(yard: Yard) -> None:
    """The guest's kernel has Yama, which the host's may not have. Three processes are tried: one without the prefix,
    one with it, and one in a user namespace of its own."""
    allow = shlex.join(allow_reading(os.uname().machine))
    script = f"""
    cat /proc/sys/kernel/yama/ptrace_scope
    for words in '' {shlex.quote(allow)} 'unshare --user --map-user=1000 --'; do
        eval "nohup $words prlimit --core=0 setpriv --no-new-privs -- sleep 60 >/dev/null 2>&1 &"
        pids="$pids $!"
    done
    sleep 2
    setsid --wait bash -c 'for pid; do (exec 3</proc/$pid/mem) 2>/dev/null && echo yes || echo no; done' - $pids
    kill $pids
    """
    async with yard.machine() as name:
        assert (await yard.output(name, script)).split() == ["1", "no", "yes", "yes"]


@pytest.mark.long("storms")
async def test_a_template_that_was_written_to_is_made_again_and_reported(yard: Yard) -> None:
    template = newest_template(yard)
    with (template / "memory").open("r+b") as memory:
        memory.seek(64 << 20)
        memory.write(b"overwritten")
    reported: list[str] = []
    await yard.provider.prepare(yard.image, SHAPE, reported.append)
    assert any("memory changed after it was frozen" in line for line in reported), reported
    async with yard.machine() as name:
        assert await yard.output(name, "echo alive") == "alive"


async def test_a_state_that_does_not_load_is_replaced_while_machines_boot(yard: Yard) -> None:
    template = newest_template(yard)
    (template / "state").write_bytes(b"no state at all")

    async def boot() -> None:
        async with yard.machine() as name:
            assert await yard.output(name, "echo alive") == "alive"

    async with anyio.create_task_group() as group:
        group.start_soon(boot)
        while (template / "template.json").exists():  # noqa: ASYNC110
            await anyio.sleep(0.01)
        group.start_soon(boot)


@pytest.mark.long("storms")
async def test_a_state_that_passes_its_check_and_does_not_load_is_replaced(yard: Yard) -> None:
    template = newest_template(yard)
    (template / "state").write_bytes(b"no state at all")
    marks = json.loads((template / "template.json").read_bytes())
    status = (template / "state").stat()
    marks["digest"] = hashlib.sha256(b"no state at all").hexdigest()
    marks["files"]["state"] = [status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]
    (template / "template.json").write_text(json.dumps(marks))
    async with yard.machine() as name:
        assert await yard.output(name, "echo alive") == "alive"
    assert newest_template(yard) != template
    assert not (template / "template.json").exists()


def newest_template(yard: Yard) -> Path:
    """Return the newest template of the image for machines of the tests' size, made by this version."""
    found = [
        marks.parent
        for marks in (default_paths().cache / "qemu").glob("templates/*/template.json")
        if {"image": yard.image.id, "layout": LAYOUT}.items() <= json.loads(marks.read_bytes()).items()
        and (marks.parent / "memory").stat().st_size == SHAPE.memory_mib << 20
    ]
    return max(found, key=lambda root: root.stat().st_mtime)


async def test_a_machine_larger_than_the_host_is_refused(yard: Yard) -> None:
    with pytest.raises(NoMemory, match="free"):
        await yard.provider.prepare(yard.image, Shape(memory_mib=1 << 30))


async def test_a_machine_boots_from_its_disk_if_templates_are_off(yard: Yard) -> None:
    provider = QemuProvider(
        state=yard.scratch / "booted", cache=default_paths().cache / "qemu", settings=QemuSettings(templates=False)
    )
    await provider.prepare(yard.image, SHAPE)
    try:
        await provider.boot("booted", MachineSpec(image=yard.image, shape=SHAPE))
        async with provider.guest("booted") as guest:
            assert await output(guest, "cat /proc/sys/kernel/hostname") == "booted"
    finally:
        await provider.terminate("booted")
        await provider.aclose()


async def test_a_command_line_of_many_words_and_quotes_arrives_as_it_was(yard: Yard) -> None:
    word = 'it\'s "all" $HOME `here`\n' * 2000
    async with yard.machine() as name, yard.provider.guest(name) as guest:
        result = await guest.run(Command(argv=("printf", "%s|%s", word, word)), timeout=60)
        assert result.stdout.decode() == f"{word}|{word}"
