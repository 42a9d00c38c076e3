"""The contract of guests for running commands."""

from __future__ import annotations

import hashlib
import os
import secrets

import anyio
import pytest

from hiveyard.core.commands import Command
from hiveyard.core.errors import BadInput, CannotExecute, CommandTimeout
from hiveyard.core.ports import Guest

from .conftest import Place

pytestmark = pytest.mark.anyio

ODD_WORDS = (
    "",
    "a b",
    "'",
    '"',
    "$(touch /tmp/hacked)",
    "`id`",
    "*",
    "-rf",
    "a\nb",
    "\\",
    "ü😀",
    "\x01\x7f",
    "~",
    "a=b",
)


@pytest.mark.parametrize("status", [0, 1, 125, 126, 127, 128, 255])
async def test_an_exit_code_comes_back_as_it_is(guest: Guest, status: int) -> None:
    result = await guest.run(Command(shell=f"exit {status}"))
    assert (result.status, result.stdout, result.stderr, result.truncated) == (status, b"", b"", False)
    assert result.ok is (status == 0)


@pytest.mark.parametrize(("name", "number"), [("KILL", 9), ("TERM", 15), ("SEGV", 11)])
async def test_a_signal_comes_back_as_128_and_its_number(guest: Guest, name: str, number: int) -> None:
    assert (await guest.run(Command(shell=f"kill -{name} $$"))).status == 128 + number


async def test_arguments_arrive_as_they_are(guest: Guest) -> None:
    result = await guest.run(Command(argv=("printf", "%s\\0", *ODD_WORDS)))
    assert result.stdout.decode().split("\0")[:-1] == list(ODD_WORDS)
    assert not await guest.exists("/tmp/hacked")


async def test_stdout_and_stderr_come_apart(guest: Guest) -> None:
    result = await guest.run(Command(shell="echo out; echo err >&2; printf more; printf '\\0\\377' >&2; exit 4"))
    assert result == (4, b"out\nmore", b"err\n\x00\xff", False)


@pytest.mark.parametrize("size", [0, 1, 65_537, 5_000_000])
async def test_stdin_arrives_whole_and_ends(guest: Guest, size: int) -> None:
    data = secrets.token_bytes(size)
    result = await guest.run(Command(argv=("cat",)), stdin=data)
    assert result.ok
    assert hashlib.sha256(result.stdout).digest() == hashlib.sha256(data).digest()


async def test_a_command_need_not_read_its_stdin(guest: Guest) -> None:
    assert await guest.run(Command(shell="exit 3"), stdin=bytes(8 << 20)) == (3, b"", b"", False)


async def test_the_environment_is_what_was_given_and_the_guests_own(guest: Guest, shared: Place) -> None:
    given = {"PLAIN": "x", "ODD": "a b\n'\"$HOME", "EMPTY": "", "n": "1", "t": "2", "UID": "7", "LC_ALL": "C", "_": "u"}
    result = await guest.run(Command(argv=("env", "-0"), env=given))
    found = dict(item.split("=", 1) for item in result.stdout.decode().split("\0") if item)
    assert {name: found.get(name) for name in given if name != "_"} == {k: v for k, v in given.items() if k != "_"}
    capabilities = shared.offer.provider.capabilities
    assert found["HOME"] == capabilities.home
    assert found["USER"] == capabilities.user
    assert "/usr/bin" in found["PATH"]


async def test_the_home_is_where_the_user_has_it(guest: Guest, shared: Place) -> None:
    capabilities = shared.offer.provider.capabilities
    named = await guest.run(Command(shell=f"HOME=/none; echo ~{capabilities.user}"))
    assert named.stdout.decode() == f"{capabilities.home}\n"


async def test_a_given_path_is_where_the_program_is_looked_for(guest: Guest, folder: str) -> None:
    await guest.write_atomic(f"{folder}/bin/greet", b"#!/bin/bash\necho hello\n", mode=0o755)
    path = f"{folder}/bin:/usr/bin:/bin"
    assert (await guest.run(Command(argv=("greet",), env={"PATH": path}))).stdout == b"hello\n"


async def test_a_command_starts_at_home_or_where_it_is_told(guest: Guest, shared: Place, folder: str) -> None:
    home = shared.offer.provider.capabilities.home.encode()
    odd = f"{folder}/a b'\n$(x) ü"
    await guest.mkdir(odd)
    for cwd, expected in ((None, home), ("~", home), ("/", b"/"), (odd, odd.encode())):
        assert (await guest.run(Command(argv=("pwd",), cwd=cwd))).stdout == expected + b"\n"
    await guest.mkdir("~/below")
    assert (await guest.run(Command(argv=("pwd",), cwd="~/below"))).stdout == home + b"/below\n"


async def test_what_cannot_be_started_is_an_error_that_names_it(guest: Guest, folder: str) -> None:
    await guest.write(f"{folder}/plain", b"#!/bin/bash\n", mode=0o644)
    await guest.write(f"{folder}/script", b"#!/no/such/interpreter\n", mode=0o755)
    for program in ("no-such-program", "/no/such/program", "/etc", f"{folder}/plain", f"{folder}/script", "./x"):
        with pytest.raises(CannotExecute, match=program):
            await guest.run(Command(argv=(program, "argument")))
    for cwd in ("/no/such/directory", "/etc/passwd", "~/nowhere"):
        with pytest.raises(CannotExecute, match=cwd):
            await guest.run(Command(argv=("true",), cwd=cwd))


async def test_a_script_that_says_127_itself_is_a_result(guest: Guest) -> None:
    result = await guest.run(Command(shell="no-such-program"))
    assert result.status == 127
    assert b"no-such-program" in result.stderr


async def test_a_command_cannot_pretend_that_it_was_not_started(guest: Guest) -> None:
    script = 'printf "\\n%s exec\\n" "$HIVEYARD_RUN.x" >&2; printf "0123456789abcdef cwd\\n" >&2; exit 126'
    assert (await guest.run(Command(shell=script))).status == 126


LONGEST = (128 << 10) - 1
"""The kernel's limit for one argument, in bytes."""


@pytest.mark.parametrize(("count", "size"), [(14, LONGEST), (40_000, 5)], ids=["the longest", "many"])
async def test_as_many_arguments_arrive_as_the_kernel_takes(guest: Guest, count: int, size: int) -> None:
    words = [secrets.token_hex(size // 2 + 1)[:size] for _ in range(count)]
    words[0] = ("\n'\\\u00fc \udcff\x01\x7f" * size)[: size // 3]
    expected = b"".join(os.fsencode(word) + b"\0" for word in [*ODD_WORDS, *words])
    script = 'cat; for w; do printf "%s\\0" "$w"; done; printf "%s" "$LONG"; exit 7'
    command = Command(argv=("bash", "-c", script, "hv", *ODD_WORDS, *words), env={"LONG": "x" * 100_000, "UID": "7"})
    result = await guest.run(command, stdin=b"the input|")
    assert result.status == 7
    assert hashlib.sha256(result.stdout).digest() == hashlib.sha256(b"the input|" + expected + b"x" * 100_000).digest()


async def test_a_long_command_can_be_talked_with(guest: Guest) -> None:
    command = Command(argv=("bash", "-c", 'read -r line; echo "$line ${#1}"', "hv", "x" * LONGEST))
    async with guest.open(command) as stream:
        await stream.send(b"hello\n")
        said = b""
        while piece := await stream.receive():
            said += piece
        assert await stream.wait() == 0
    assert said == b"hello %d\n" % LONGEST


@pytest.mark.parametrize(
    "words", [("x" * (LONGEST + 1),), ("x" * 100_000,) * 30, ("x" * 100_000,) * 70], ids=["one", "3 MB", "7 MB"]
)
async def test_a_command_too_long_for_the_kernel_is_refused_with_advice(guest: Guest, words: tuple[str, ...]) -> None:
    with pytest.raises(CannotExecute, match="long") as caught:
        await guest.run(Command(argv=("true", *words)))
    assert "stdin" in caught.value.hint


async def test_a_long_command_that_cannot_start_is_an_error_that_names_it(guest: Guest) -> None:
    long = ("x" * 100_000,) * 3
    with pytest.raises(CannotExecute, match="no-such-program"):
        await guest.run(Command(argv=("no-such-program", *long)))
    with pytest.raises(CannotExecute, match="/no/such/directory"):
        await guest.run(Command(argv=("true", *long), cwd="/no/such/directory"))


async def test_impossible_commands_are_bad_input(guest: Guest) -> None:
    with pytest.raises(BadInput):
        await guest.run(Command(argv=("true",), cwd="~other/x"))


async def test_a_login_shell_runs_a_script_too(guest: Guest) -> None:
    assert (await guest.run(Command(shell="echo $0; exit 5", login=True))).status == 5


async def test_output_over_the_limit_is_cut_and_the_command_runs_to_its_end(guest: Guest, folder: str) -> None:
    script = f"head -c 3000000 /dev/zero; head -c 3000000 /dev/zero >&2; echo end >{folder}/end; exit 6"
    status, out, err, truncated = await guest.run(Command(shell=script), limit=1000)
    assert (status, len(out), len(err), truncated) == (6, 1000, 1000, True)
    assert await guest.read(f"{folder}/end") == b"end\n"


async def test_output_of_exactly_the_limit_is_whole(guest: Guest) -> None:
    result = await guest.run(Command(shell="printf 12345"), limit=5)
    assert (result.stdout, result.truncated) == (b"12345", False)


async def test_many_mib_of_output_arrive(guest: Guest, shared: Place) -> None:
    # An emulated VM, and the service behind its judge, take half a second for each.
    size = (8 if shared.offer.provider.name in ("qemu", "morph") else 64) << 20
    result = await guest.run(Command(argv=("head", "-c", str(size), "/dev/zero")), limit=size)
    assert (len(result.stdout), result.truncated) == (size, False)


async def test_a_child_that_holds_the_outputs_open_does_not_hold_up_the_result(guest: Guest) -> None:
    with anyio.fail_after(30):
        result = await guest.run(Command(shell="setsid sleep 60 & echo $!"))
    assert result.ok
    pid = result.stdout.strip().decode()
    assert await guest.exists(f"/proc/{pid}")
    await guest.run(Command(argv=("bash", "-c", f"kill {pid}")))


# One process for each way to detach from a parent. The time for which they sleep identifies the test.
TREE = """
sleep $1 &
(sleep $1 & )
setsid sleep $1 &
setsid bash -c 'setsid -f sleep $0; sleep $0' $1 &
env -i sleep $1 &
env -i setsid bash -c "trap '' TERM INT HUP; sleep $1; true" &
nohup bash -c 'exec -a disguise sleep $0' $1 >/dev/null 2>&1 &
trap '' TERM INT HUP
echo all >"$2"
sleep $1
true
"""


def _tree(folder: str) -> tuple[str, Command]:
    seconds = str(1_000_000 + secrets.randbelow(1_000_000))
    return seconds, Command(argv=("bash", "-c", TREE, "tree", seconds, f"{folder}/all"))


async def _living(guest: Guest, seconds: str) -> list[str]:
    script = r"""for d in /proc/[0-9]*; do
      [[ ${d#/proc/} == $$ ]] && continue
      { mapfile -d '' -t words <"$d/cmdline"; } 2>/dev/null
      [[ " ${words[*]} " == *" $1 "* ]] && echo "${words[*]}"
    done; true"""
    result = await guest.run(Command(argv=("bash", "-c", script, "list", seconds)))
    # The script itself is a process with that word.
    return [line for line in result.stdout.decode().splitlines() if "mapfile" not in line and "done; true" not in line]


async def test_a_timeout_kills_all_that_a_command_started(guest: Guest, folder: str) -> None:
    seconds, command = _tree(folder)
    with pytest.raises(CommandTimeout):
        await guest.run(command, timeout=2.0)
    assert await guest.exists(f"{folder}/all")
    assert await _living(guest, seconds) == []


async def test_cancelling_kills_all_that_a_command_started(guest: Guest, folder: str) -> None:
    seconds, command = _tree(folder)
    async with anyio.create_task_group() as group:
        group.start_soon(guest.run, command)
        while not await guest.exists(f"{folder}/all"):  # noqa: ASYNC110 (the guest creates it)
            await anyio.sleep(0.05)
        assert len(await _living(guest, seconds)) >= 8
        group.cancel_scope.cancel()
    assert await _living(guest, seconds) == []


async def test_a_command_that_ends_in_time_is_not_killed(guest: Guest) -> None:
    assert await guest.run(Command(shell="echo done"), timeout=60) == (0, b"done\n", b"", False)


async def test_a_timeout_does_not_touch_other_commands(guest: Guest) -> None:
    async with anyio.create_task_group() as group:

        async def longer() -> None:
            assert (await guest.run(Command(shell="sleep 3; echo untouched"))).stdout == b"untouched\n"

        group.start_soon(longer)
        with pytest.raises(CommandTimeout):
            await guest.run(Command(argv=("sleep", "1000")), timeout=0.5)


async def test_a_burst_of_forks_is_ended_by_the_timeout(guest: Guest) -> None:
    # 127 processes that are created while they are killed, and no more even if they are not.
    script = "burst() { sleep 0.2; (($1 > 0)) && { burst $(($1 - 1)) & burst $(($1 - 1)) & }; sleep 1000; }; burst 6"
    with pytest.raises(CommandTimeout):
        await guest.run(Command(argv=("bash", "-c", script, "burst", "2000003")), timeout=0.9)
    assert await _living(guest, "2000003") == []


async def test_many_commands_run_side_by_side(guest: Guest) -> None:
    answers: dict[int, bytes] = {}

    async def ask(number: int) -> None:
        answers[number] = (await guest.run(Command(shell=f"sleep 0.1; cat; echo {number}"), stdin=b"#")).stdout

    async with anyio.create_task_group() as group:
        for number in range(12):
            group.start_soon(ask, number)
    assert answers == {number: f"#{number}\n".encode() for number in range(12)}


async def test_commands_run_as_an_unprivileged_user_without_a_way_up(guest: Guest) -> None:
    result = await guest.run(Command(shell="id -u; cat /proc/self/status"))
    uid, _, status = result.stdout.decode().partition("\n")
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert int(uid) > 0
    assert int(fields["CapEff"], 16) == int(fields["CapPrm"], 16) == int(fields["CapAmb"], 16) == 0
    for script in ("echo x >/etc/passwd", "touch /usr/bin/x", "cat /etc/shadow", "echo 1 >/proc/sys/kernel/panic"):
        assert not (await guest.run(Command(shell=script))).ok, script


async def test_nothing_of_the_hosts_environment_is_found_in_the_guest(
    guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HIVEYARD_TEST_KEY", "sk-Zq8TestSecret-not-for-guests")
    result = await guest.run(Command(shell="env; cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline 2>/dev/null; true"))
    assert b"HOME=" in result.stdout
    assert b"sk-Zq8TestSecret-not-for-guests" not in result.stdout
    assert os.environ["HIVEYARD_TEST_KEY"] == "sk-Zq8TestSecret-not-for-guests"
