"""The contract of a specification's numbers, for every process manager: instances, memory, output."""

from __future__ import annotations

from contextlib import aclosing

import anyio
import pytest

from hiveyard.core.commands import Command, ProcessSpec, ProcessStatus, Restart
from hiveyard.core.errors import BadInput, NoSuchProcess, OutputDropped, ProcessError, ProcessNotStarted
from hiveyard.core.ports import Guest, ProcessManager
from hiveyard.processes import by_name
from tests.processes.steps import PATIENCE, ended, output, spec, until_gone, until_output

pytestmark = pytest.mark.anyio
# Bash that grows by 64 MiB. (Its last program would take its place.)
FAT = "x=0123456789abcdef; for i in {1..22}; do x=$x$x; done; echo fat; sleep 1000; true"


@pytest.mark.parametrize(
    "options",
    [
        {"name": "x" * 300},
        {"instances": 0},
        {"instances": 101},
        {"memory_mib": 0},
        {"restart": Restart(max_restarts=-1)},
        {"rotate": True, "terminal": True},
        {"rotate": True, "output_limit": 1000},
        {"stdout": "relative"},
        {"stderr": "/nul\0"},
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, object]) -> None:
    with pytest.raises(BadInput) as caught:
        ProcessSpec(**{"name": "x", "command": Command(argv=("true",)), **options})  # type: ignore[arg-type]
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize("words", [{}, {"argv": ("true",), "shell": "true"}, {"argv": ()}, {"argv": ("",)}])
def test_a_command_is_one_program_or_one_script(words: dict[str, object]) -> None:
    with pytest.raises(BadInput):
        Command(**words)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "options",
    [
        {"stdin": "relative"},
        {"stdin": "/nul\0"},
        {"output_limit": -1},
        {"memory_mib": 1 << 60},
        {"restart": Restart(max_restarts=1, min_uptime=float("nan"))},
        {"restart": Restart(max_restarts=1, min_uptime=float("inf"))},
        {"restart": Restart(max_restarts=1 << 70)},
    ],
)
async def test_what_cannot_be_kept_is_refused_before_anything_is_done(
    manager: ProcessManager, guest: Guest, name: str, options: dict[str, object]
) -> None:
    with pytest.raises(BadInput):
        await manager.start(guest, spec(name, "true", **options))
    assert not await guest.exists(f"/session/processes/{name}")


async def test_a_grace_is_a_number_of_seconds(manager: ProcessManager, guest: Guest, name: str) -> None:
    await manager.start(guest, spec(name, "sleep 1000"))
    for never in (float("inf"), float("nan")):
        with pytest.raises(BadInput, match="grace"):
            await manager.stop(guest, name, grace=never)
    assert (await manager.stop(guest, name, grace=-1)).status is ProcessStatus.EXITED


# --- measuring -------------------------------------------------------------------------------------------------------


async def test_memory_processor_and_uptime_are_measured(manager: ProcessManager, guest: Guest, name: str) -> None:
    idle, busy = f"{name}-idle", f"{name}-busy"
    await manager.start(guest, spec(idle, FAT))
    await manager.start(guest, spec(busy, "(while :; do :; done) & while :; do :; done"))
    await until_output(manager, guest, idle, b"fat\n")
    with anyio.fail_after(PATIENCE):
        while ((await manager.get(guest, busy)).uptime or 0) < 0.5:  # noqa: ASYNC110
            await anyio.sleep(0.1)
    infos = {info.name: info for info in await manager.list(guest)}
    one, other = infos[idle], infos[busy]
    assert one.memory_mib is not None and other.memory_mib is not None and one.cpu_percent is not None
    assert one.memory_mib > 60 > other.memory_mib > 0
    assert other.cpu_percent is not None and other.cpu_percent > one.cpu_percent >= 0
    assert one.uptime is not None and other.uptime is not None and one.uptime > 0
    await manager.stop(guest, idle, grace=0)
    info = await manager.stop(guest, busy, grace=0)
    assert info.uptime is not None and info.uptime >= other.uptime
    assert (info.memory_mib, info.cpu_percent) == (None, None)


# --- memory ----------------------------------------------------------------------------------------------------------


async def test_a_process_past_its_memory_is_killed_and_that_is_told(
    manager: ProcessManager, guest: Guest, name: str
) -> None:
    await manager.start(guest, spec(name, f"bash -c '{FAT} 7531' & sleep 1000.125", memory_mib=40))
    info = await ended(manager, guest, name)
    assert (info.status, info.exit_code, info.memory_kills, info.restarts) == (ProcessStatus.EXITED, 137, 1, 0)
    await until_gone(guest, "true 7531")
    await until_gone(guest, "sleep 1000.125")


async def test_a_process_below_its_memory_is_left_alone(manager: ProcessManager, guest: Guest, name: str) -> None:
    await manager.start(guest, spec(name, f"{FAT.replace('1000', '2')}; exit 4", memory_mib=400))
    info = await ended(manager, guest, name)
    assert (info.exit_code, info.memory_kills) == (4, 0)


async def test_who_left_the_session_counts_too(manager: ProcessManager, guest: Guest, name: str) -> None:
    """A grandchild whose parent is gone, in a session of its own."""
    script = f"(setsid bash -c 'sleep 1; {FAT} 8642' & sleep 0.5); sleep 1000"
    await manager.start(guest, spec(name, script, memory_mib=40))
    assert (await ended(manager, guest, name)).memory_kills == 1
    await until_gone(guest, "true 8642")


async def test_being_killed_for_memory_counts_as_an_end_for_the_restart(
    manager: ProcessManager, guest: Guest, name: str
) -> None:
    policy = Restart(max_restarts=2, min_uptime=1000)
    await manager.start(guest, spec(name, f"echo run >&2; {FAT}", memory_mib=40, restart=policy))
    info = await ended(manager, guest, name)
    assert (info.exit_code, info.restarts, info.memory_kills) == (137, 2, 3)
    assert await output(manager, guest, name, "stderr") == b"run\n" * 3


# --- instances -------------------------------------------------------------------------------------------------------


async def test_instances_run_side_by_side_each_with_its_own(manager: ProcessManager, guest: Guest, name: str) -> None:
    names = [name, f"{name}@2", f"{name}@3"]
    three = spec(
        name, 'echo "I am $HIVEYARD_INSTANCE"; read -r line; echo "$line"; sleep 1000', instances=3, inbox=True
    )
    assert (await manager.start(guest, three)).name == name
    assert (await manager.start(guest, three)).name == name
    infos = {info.name: info for info in await manager.list(guest) if info.name.startswith(name)}
    assert set(infos) == set(names) and len({info.pid for info in infos.values()}) == 3
    for number, one in enumerate(names, 1):
        await manager.send(guest, one, "key", b"for %d\n" % number)
    for number, one in enumerate(names, 1):
        await until_output(manager, guest, one, b"I am %d\nfor %d\n" % (number, number))
        assert await manager.logs(guest, one, lines=1) == b"for %d\n" % number

    assert (await manager.stop(guest, names[1], grace=0)).status is ProcessStatus.EXITED
    assert [(await manager.get(guest, one)).status for one in (names[0], names[2])] == [ProcessStatus.RUNNING] * 2
    with pytest.raises(ProcessError):
        await manager.remove(guest, name)
    assert (await manager.stop(guest, name, grace=0)).name == name
    assert (await manager.get(guest, names[2])).status is ProcessStatus.EXITED
    await manager.remove(guest, name)
    for one in names:
        with pytest.raises(NoSuchProcess):
            await manager.get(guest, one)


async def test_one_instance_is_not_told_so(manager: ProcessManager, guest: Guest, name: str) -> None:
    await manager.start(guest, spec(name, "echo ${HIVEYARD_INSTANCE-none}"))
    assert await output(manager, guest, name) == b"none\n"


# --- outputs ---------------------------------------------------------------------------------------------------------


async def test_outputs_are_kept_in_files_of_ones_own(manager: ProcessManager, guest: Guest, name: str) -> None:
    out, err = f"/session/{name} out", f"~/{name} err"
    await guest.write(out, b"what was there")
    two = spec(name, "echo said; echo wrong >&2", stdout=out, stderr=err, instances=2)
    await manager.start(guest, two)
    for at, one in (("", name), ("@2", f"{name}@2")):
        assert await output(manager, guest, one) == b"said\n"
        assert await output(manager, guest, one, "stderr") == b"wrong\n"
        assert (await guest.read(out + at), await guest.read(err + at)) == (b"said\n", b"wrong\n")
        await ended(manager, guest, one)
    await manager.remove(guest, name)
    assert await guest.read(out) == b"said\n"


async def test_paths_with_newlines_are_paths(manager: ProcessManager, guest: Guest, name: str) -> None:
    odd = f"/session/{name}\n'and\"more\\"
    await guest.mkdir(odd)
    await guest.write(f"{odd}/in\nput", b"given\n")
    command = Command(shell='cat; printf "%s" "$PWD" >&2', cwd=odd)
    out, err = f"{odd}/out\nput", f"{odd}/err\nput"
    await manager.start(
        guest, ProcessSpec(name=name, command=command, stdin=f"{odd}/in\nput", stdout=out, stderr=err, instances=2)
    )
    for one in (name, f"{name}@2"):
        assert await output(manager, guest, one) == b"given\n"
        assert await output(manager, guest, one, "stderr") == odd.encode()
    assert await guest.read(f"{out}@2") == b"given\n"


async def test_a_file_for_output_that_cannot_be_written_is_an_error(
    manager: ProcessManager, guest: Guest, name: str
) -> None:
    for bad in ("/session", "/no/such/place", "/proc/version"):
        with pytest.raises(ProcessNotStarted, match="output"):
            await manager.start(guest, spec(name, "true", stdout=bad))
    with pytest.raises(NoSuchProcess):
        await manager.get(guest, name)


async def test_a_rotated_output_keeps_its_end_and_its_offsets(manager: ProcessManager, guest: Guest, name: str) -> None:
    """Every line tells where it begins, so what is at an offset can be told from the offset."""
    limit = 1 << 20
    lines = 400_000
    script = f"seq -f 'line %011.0f' 0 {lines - 1}; until [ -e /session/{name}.go ]; do sleep 0.05; done; echo the end"
    await manager.start(guest, spec(name, script, output_limit=limit, rotate=True))
    whole = b"".join(b"line %011d\n" % number for number in range(lines)) + b"the end\n"
    with anyio.fail_after(5 * PATIENCE):  # an emulated machine writes a hundred kilobytes in a second
        while b"%011d" % (lines - 1) not in await manager.logs(guest, name, lines=1):  # noqa: ASYNC110
            await anyio.sleep(0.1)
    info = await manager.get(guest, name)
    kept = len(whole) - 8 - info.dropped
    assert limit // 2 <= kept <= limit
    used = await guest.run(Command(argv=("stat", "-c", "%b", f"/session/processes/{name}/out")))
    assert int(used.stdout) * 512 <= limit + 8192
    await guest.write(f"/session/{name}.go", b"")
    assert await output(manager, guest, name) == whole[info.dropped :]
    assert await output(manager, guest, name, offset=len(whole) - 100) == whole[-100:]
    assert await manager.logs(guest, name, lines=10_000_000) == whole[info.dropped :]
    with pytest.raises(OutputDropped, match=str(info.dropped)):
        await output(manager, guest, name, offset=1)


async def test_lines_of_a_rotated_output_arrive_at_once(manager: ProcessManager, guest: Guest, name: str) -> None:
    script = f"for i in 1 2 3; do echo line $i; until [ -e /session/{name}.go$i ]; do sleep 0.05; done; done"
    await manager.start(guest, spec(name, script, rotate=True))
    got = b""
    with anyio.fail_after(PATIENCE):
        async with aclosing(manager.follow(guest, name)) as pieces:  # type: ignore[type-var]
            async for piece in pieces:
                got += piece
                if got.endswith(b"\n") and (number := got.count(b"\n")) <= 3:
                    await guest.write(f"/session/{name}.go{number}", b"")
    assert got == b"line 1\nline 2\nline 3\n"


# --- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["detached", "tmux", "pm2", "shell"])
def test_every_process_manager_is_found_by_its_name(kind: str) -> None:
    assert by_name(kind).name == kind


def test_an_unknown_process_manager_is_told_what_there_is() -> None:
    with pytest.raises(BadInput, match="systemd") as caught:
        by_name("systemd")
    assert caught.value.hint == "one of: detached, tmux, shell, pm2"
