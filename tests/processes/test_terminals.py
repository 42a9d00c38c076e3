"""People at the terminals of processes, in a machine of every provider: real terminals, real tmux, a real screen."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, aclosing

import anyio
import pytest

from hiveyard.core.commands import Command, ProcessSpec, ProcessStatus
from hiveyard.core.errors import BadInput, MachineNotReady, NoSuchMachine
from hiveyard.core.ports import Guest, Terminals
from hiveyard.kit.names import new_id
from hiveyard.processes.detached import Detached
from hiveyard.processes.terminal import attaching, shown
from hiveyard.processes.tmux import Tmux
from tests.contract.conftest import Place, machine
from tests.contract.providers import Offer
from tests.processes.steps import output, spec
from tests.support.person import PATIENCE, Person, person

pytestmark = pytest.mark.anyio
RUN_ON_TERMINAL = "import sys; from hiveyard.cli.attach import run_on_terminal; sys.exit(run_on_terminal(sys.argv[1:]))"
# Repeats lines, tells its size when that changes, and what Ctrl-C and Ctrl-Z do to it. It starts other programs only to
# look at its size: bash takes a Ctrl-C while another program runs for that program's, and forgets it. A `read` whose
# time is over may have had a part of a line.
PROGRAM = r"""
trap 'echo interrupted' INT
trap changed=1 WINCH
echo "colours ${COLORTERM:-none}"; printf '\u00fcnic\u00f6de \u25c6\n'
changed=1 line=
while true; do
  if [[ $changed ]]; then changed=; echo "size $(stty size)"; fi
  read -r -t 0.2 piece || { line+=$piece; continue; }
  line+=$piece
  [[ $line == quit ]] && exit 7
  echo "<$line>"
  line=
done
"""


@pytest.fixture
def manager() -> Tmux:
    return Tmux()


@pytest.fixture
async def name(guest: Guest, manager: Tmux) -> AsyncIterator[str]:
    """A program that runs on a terminal."""
    name = new_id()
    await manager.start(guest, ProcessSpec(name=name, command=Command(shell=PROGRAM), terminal=True))
    yield name
    await manager.stop(guest, name, grace=0)


async def argv_of(place: Place, command: Command) -> list[str]:
    provider = place.offer.provider
    assert isinstance(provider, Terminals)
    return [sys.executable, "-c", RUN_ON_TERMINAL, *await provider.terminal(place.name, command)]


async def attached(
    place: Place, name: str, *, rows: int = 24, columns: int = 80, **options: object
) -> AbstractAsyncContextManager[Person]:
    argv = await argv_of(place, attaching(name, term="xterm-256color", **options))  # type: ignore[arg-type]
    return person(argv, rows=rows, columns=columns)


def leave(somebody: Person) -> None:
    somebody.type("\x02d")


async def test_type_see_leave_come_back(shared: Place, guest: Guest, manager: Tmux, name: str) -> None:
    async with await attached(shared, name) as somebody:
        before = somebody.modes()
        await somebody.sees("ünicöde ◆")
        somebody.type("hello\r")
        await somebody.sees("<hello>")
        leave(somebody)
        assert await somebody.leaves() == 0
        assert somebody.modes() == before
        await somebody.gets(b"\x1b[?1049l")
    assert (await manager.get(guest, name)).status is ProcessStatus.RUNNING
    async with await attached(shared, name) as somebody:
        await somebody.sees("<hello>")
        somebody.type("again\r")
        await somebody.sees("<again>")


async def test_the_programs_own_end_ends_the_visit(shared: Place, guest: Guest, manager: Tmux, name: str) -> None:
    async with await attached(shared, name) as somebody:
        await somebody.sees("colours")
        somebody.type("quit\r")
        assert await somebody.leaves() == 0
    with anyio.fail_after(PATIENCE):
        async with aclosing(manager.follow(guest, name)) as pieces:
            async for _ in pieces:
                pass
    info = await manager.get(guest, name)
    assert (info.status, info.exit_code) == (ProcessStatus.EXITED, 7)
    assert b"colours" in await manager.logs(guest, name)


async def test_the_end_is_told_when_all_that_was_shown_is_written(guest: Guest, manager: Tmux) -> None:
    """Also when who writes it down is late, as on a machine that has much else to do."""
    name, go = new_id(), f"/session/{new_id()}"
    info = await manager.start(
        guest, spec(name, f"until [ -e {go} ]; do sleep 0.05; done; echo the end", terminal=True)
    )
    writer = await holder_of(guest, f"/session/processes/{name}/out")
    said: list[bytes] = []

    async def listen() -> None:
        said.append(await output(manager, guest, name))

    async with anyio.create_task_group() as group:
        group.start_soon(listen)
        try:
            assert (await guest.run(Command(argv=("bash", "-c", "kill -STOP $1", "x", writer)))).ok
            await guest.write(go, b"")
            with anyio.fail_after(PATIENCE):
                while await guest.exists(f"/proc/{info.pid}"):  # noqa: ASYNC110
                    await anyio.sleep(0.05)
            await anyio.sleep(0.5)
        finally:
            await guest.run(Command(argv=("bash", "-c", "kill -CONT $1", "x", writer)))
    assert said == [b"the end\r\n"]
    assert (await manager.get(guest, name)).exit_code == 0


async def holder_of(guest: Guest, path: str) -> str:
    """The process whose stdout is that file."""
    look = 'for p in /proc/[0-9]*; do [[ $(readlink $p/fd/1) == "$1" ]] && echo ${p#/proc/}; done; :'
    with anyio.fail_after(PATIENCE):
        while True:
            found = (await guest.run(Command(argv=("bash", "-c", look, "x", path)))).stdout.decode().split()
            if found:
                return found[0]
            await anyio.sleep(0.05)


async def test_keys_that_mean_signals_go_to_the_program(shared: Place, name: str) -> None:
    async with await attached(shared, name) as somebody:
        await somebody.sees("size 24 80")
        somebody.type("\x03")
        await somebody.sees("interrupted")
        somebody.type("\x1a")
        somebody.type("still here\r")
        await somebody.sees("<still here>")


async def test_the_size_follows_and_two_may_look_at_once(shared: Place, name: str) -> None:
    async with await attached(shared, name, rows=30, columns=100) as one:
        await one.sees("colours")
        await one.sees("size 30 100")
        one.resize(40, 90)
        await one.sees("size 40 90")
        async with await attached(shared, name, rows=20, columns=60) as two:
            await two.sees("size 20 60")
            two.type("from two\r")
            await one.sees("<from two>")
            await two.sees("<from two>")
            one.type("from one\r")
            await two.sees("<from one>")
            leave(two)
            assert await two.leaves() == 0
        one.type("alone\r")
        await one.sees("<alone>")


async def test_a_reader_sees_and_changes_nothing(shared: Place, name: str) -> None:
    async with await attached(shared, name, rows=30, columns=100) as one:
        await one.sees("size 30 100")
        async with await attached(shared, name, rows=10, columns=40, read_only=True) as reader:
            await reader.sees("size 30 100")
            reader.type("typed by the reader\r\x03")
            one.type("by the writer\r")
            await reader.sees("<by the writer>")
            assert "reader" not in one.screen and "interrupted" not in one.screen
            leave(reader)
            assert await reader.leaves() == 0


@pytest.mark.parametrize("term", ["xterm-kitty", "no-such-terminal", "", "../../etc/passwd"])
async def test_a_terminal_that_the_guest_does_not_know_is_taken_for_one_it_does(
    shared: Place, name: str, term: str
) -> None:
    argv = await argv_of(shared, attaching(name, term=term))
    async with person(argv) as somebody:
        await somebody.sees("colours")
        somebody.type("works\r")
        await somebody.sees("<works>")


@pytest.mark.parametrize("term", ["xterm-kitty", "xterm-ghostty", "foot", "../../etc/passwd"])
async def test_a_program_is_told_of_a_terminal_that_the_guest_knows(shared: Place, term: str) -> None:
    program = shown(["sh", "-c", 'echo "it is <$TERM $COLORTERM> in $PWD"; exit 5'], cwd="/", term=term, colors="24bit")
    async with person(await argv_of(shared, program)) as somebody:
        await somebody.sees("it is <xterm-256color 24bit> in /")
        assert await somebody.leaves() == 5


async def test_true_colour_arrives_where_the_terminal_has_it(shared: Place, guest: Guest, manager: Tmux) -> None:
    name = new_id()
    shown = Command(shell=r"printf '\e[38;2;1;22;133mblue\e[0m\n'; sleep 1000")
    await manager.start(guest, ProcessSpec(name=name, command=shown, terminal=True))
    async with await attached(shared, name, colors="truecolor") as somebody:
        await somebody.sees("blue")
        await somebody.gets(b"38;2;1;22;133m")
    async with await attached(shared, name) as somebody:
        await somebody.sees("blue")
        assert b"38;2;1;22;133m" not in somebody.raw
    await manager.stop(guest, name, grace=0)


async def test_a_program_cannot_set_the_clipboard_or_the_title(shared: Place, guest: Guest, manager: Tmux) -> None:
    name = new_id()
    evil = Command(
        shell=r"while true; do printf '\e]52;c;ZXZpbA==\a\e]2;evil title\a\ePtmux;\e\e]52;c;ZXZpbA==\a\e\\';"
        " echo done; sleep 0.3; done"
    )
    await manager.start(guest, ProcessSpec(name=name, command=evil, terminal=True))
    async with await attached(shared, name) as somebody:
        await somebody.sees("done")
        await anyio.sleep(1)
        assert b"ZXZpbA" not in somebody.raw and b"evil title" not in somebody.raw
    await manager.stop(guest, name, grace=0)


async def test_who_loses_their_terminal_leaves_no_ghost(shared: Place, guest: Guest, name: str) -> None:
    async with await attached(shared, name) as somebody:
        await somebody.sees("colours")
    # The terminal is gone, as when its window was closed.
    with anyio.fail_after(PATIENCE):
        while (await guest.run(Command(argv=("tmux", "list-clients", "-t", f"={name}")))).stdout:  # noqa: ASYNC110
            await anyio.sleep(0.1)


async def test_who_loses_their_terminal_while_much_is_shown_leaves_no_ghost(shared: Place, guest: Guest) -> None:
    mark = new_id()
    async with person(await argv_of(shared, Command(shell=f"yes {mark}"))) as somebody:
        await somebody.sees(mark)
    count = f"cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' ' | grep -c 'yes {mark[:-1]}[{mark[-1]}]'"
    with anyio.fail_after(PATIENCE):
        while (await guest.run(Command(shell=count))).stdout.strip() != b"0":  # noqa: ASYNC110
            await anyio.sleep(0.1)


async def test_a_process_without_a_terminal_can_be_looked_at(shared: Place, guest: Guest, manager: Tmux) -> None:
    name = new_id()
    await manager.start(guest, ProcessSpec(name=name, command=Command(shell="echo out; echo err >&2; sleep 1000")))
    async with await attached(shared, name) as somebody:
        await somebody.sees("out")
        await somebody.sees("err")
        somebody.type("\x03")
    assert (await manager.get(guest, name)).status is ProcessStatus.RUNNING
    assert (await manager.logs(guest, name), await manager.logs(guest, name, stream="stderr")) == (b"out\n", b"err\n")
    await manager.stop(guest, name, grace=0)


async def test_the_process_called_agent_is_the_tmux_session_agent(shared: Place, guest: Guest, manager: Tmux) -> None:
    await manager.start(guest, ProcessSpec(name="agent", command=Command(argv=("sleep", "1000")), terminal=True))
    assert (await guest.run(Command(argv=("tmux", "has-session", "-t", "agent")))).ok
    info = await manager.stop(guest, "agent", grace=5)
    assert (info.status, info.exit_code) == (ProcessStatus.EXITED, 130)
    await manager.remove(guest, "agent")
    await manager.start(guest, ProcessSpec(name="agent", command=Command(argv=("sleep", "1000")), terminal=True))
    await manager.stop(guest, "agent")
    await manager.remove(guest, "agent")


async def test_stopping_ends_all_that_a_program_on_a_terminal_started(guest: Guest, manager: Tmux) -> None:
    name = new_id()
    script = "trap '' INT TERM HUP; (sleep 1000.5 & setsid sleep 1000.5 &); env -i setsid sleep 1000.5 & sleep 1000.5"
    await manager.start(guest, ProcessSpec(name=name, command=Command(shell=script), terminal=True))
    assert (await manager.stop(guest, name, grace=0.5)).exit_code == 137
    count = "cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' ' | grep -c 'sleep 1000[.]5'"
    assert (await guest.run(Command(shell=count))).stdout.strip() == b"0"


async def test_what_is_shown_is_kept_up_to_the_limit(guest: Guest, manager: Tmux) -> None:
    name = new_id()
    command = Command(shell="yes 0123456789 | head -n 100000; exit 3")
    await manager.start(guest, ProcessSpec(name=name, command=command, terminal=True, output_limit=64 << 10))
    size = 0
    with anyio.fail_after(PATIENCE):
        async with aclosing(manager.follow(guest, name)) as pieces:
            async for piece in pieces:
                size += len(piece)
    assert 0 < size <= 64 << 10
    assert (await manager.get(guest, name)).exit_code == 3


async def test_a_manager_without_terminals_says_so(guest: Guest) -> None:
    with pytest.raises(BadInput, match="no terminal"):
        await Detached().start(guest, ProcessSpec(name=new_id(), command=Command(argv=("true",)), terminal=True))


# --- terminals for commands ------------------------------------------------------------------------------------------


async def test_a_command_has_a_terminal_of_the_guest_and_its_exit_code_comes_back(shared: Place, guest: Guest) -> None:
    script = 'tty; stty size; echo "$PWD $WORD"; id -un; test -w "$(tty)" && echo mine; echo also >/dev/tty; exit 42'
    argv = await argv_of(shared, Command(argv=("bash", "-c", script), cwd="/tmp", env={"WORD": "a 'b'"}))
    async with person(argv, rows=33, columns=111) as somebody:
        before = somebody.modes()
        assert await somebody.leaves() == 42
        for text in ("/dev/pts/", "33 111", "/tmp a 'b'", "agent", "mine", "also"):
            await somebody.sees(text)
        assert somebody.modes() == before


async def test_an_interactive_shell_has_job_control(shared: Place) -> None:
    async with person(
        await argv_of(shared, Command(argv=("bash", "--norc", "-i"), env={"PS1": "ready> "}))
    ) as somebody:
        await somebody.sees("ready>")
        somebody.type("bash -c 'echo begun-$((1)); exec sleep 1000'\r")
        await somebody.sees("begun-1")
        somebody.type("\x1a")
        await somebody.sees("Stopped")
        somebody.type("kill %1; stty size\r")
        await somebody.sees("24 80")
        somebody.resize(50, 120)
        somebody.type("stty size\r")
        await somebody.sees("50 120")
        somebody.type("exit 5\r")
        assert await somebody.leaves() == 5


async def test_a_lot_of_output_arrives_whole(shared: Place) -> None:
    argv = await argv_of(shared, Command(shell="stty -onlcr; seq 1 200000; echo end"))
    async with person(argv) as somebody:
        assert await somebody.leaves() == 0
        await somebody.sees("end")
        await somebody.gets(b"".join(b"%d\n" % number for number in range(1, 200001)))


@pytest.mark.parametrize("argv", [("no-such-program",), ("/tmp",)])
async def test_what_cannot_be_started_says_why_on_the_terminal(shared: Place, argv: tuple[str, ...]) -> None:
    async with person(await argv_of(shared, Command(argv=argv))) as somebody:
        assert await somebody.leaves() == 126
        await somebody.sees(argv[0])


async def test_the_terminal_comes_back_when_the_machine_dies(offer: Offer, manager: Tmux) -> None:
    async with machine(offer) as place:
        async with place.guest() as guest:
            await manager.start(guest, ProcessSpec(name="agent", command=Command(shell=PROGRAM), terminal=True))
        async with await attached(place, "agent") as somebody:
            before = somebody.modes()
            await somebody.sees("colours")
            assert somebody.modes() != before
            await offer.crash(place.name)
            assert await somebody.leaves() > 128
            assert somebody.modes() == before
            for codes in (b"\x1b[?1049l", b"\x1b[?25h"):
                await somebody.gets(codes)


async def test_the_terminal_comes_back_when_what_leads_there_is_killed(shared: Place, name: str) -> None:
    async with await attached(shared, name) as somebody:
        before = somebody.modes()
        await somebody.sees("colours")
        # setsid, hv, what it runs
        [hv] = _children(somebody.process.pid)
        for pid in _children(hv):
            os.kill(pid, signal.SIGKILL)
        assert await somebody.leaves() == 137
        assert somebody.modes() == before


async def test_there_is_no_terminal_in_what_does_not_run(offer: Offer) -> None:
    provider = offer.provider
    assert isinstance(provider, Terminals)
    with pytest.raises(NoSuchMachine):
        await provider.terminal("t-absent", Command(argv=("true",)))
    async with machine(offer) as place:
        await provider.stop(place.name)
        with pytest.raises(MachineNotReady):
            await provider.terminal(place.name, Command(argv=("true",)))


async def test_a_program_that_ended_cannot_be_attached_to(shared: Place) -> None:
    async with await attached(shared, "never-was") as somebody:
        assert await somebody.leaves() == 40
        await somebody.sees("does not run")


def _children(pid: int) -> list[int]:
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat") as file:
                    if int(file.read().rpartition(")")[2].split()[1]) == pid:
                        found.append(int(entry))
            except OSError:
                continue
    return found
