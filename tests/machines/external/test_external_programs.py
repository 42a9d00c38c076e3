"""Programs of external providers that do not do as they should. They are real, and each is a few lines of Python."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import anyio
import pytest

from hiveyard.core.errors import (
    BadInput,
    BootTimeout,
    GuestDisconnected,
    MachineLost,
    NoSpace,
    ProviderBadAnswer,
    ProviderError,
    ProviderFailed,
    ProviderRateLimited,
    ProviderTimeout,
    ProviderUnavailable,
)
from hiveyard.core.machines import Image, MachineSpec, Network, Shape, Tier
from hiveyard.machines.external import ExternalProvider, ExternalSettings

pytestmark = pytest.mark.anyio

HEAD = r"""
import json, os, signal, sys, time
def say(id, type, **more): print(json.dumps({"id": id, "type": type, **more}), flush=True)
HELLO = {"protocol": 1, "tier": "container", "capabilities": {"home": "/root", "user": "me"}}
READY = {"name": "m", "status": "ready"}
WORKS = {"ok": True, "detail": "works"}
def lines():
    for line in sys.stdin:
        ask = json.loads(line)
        if ask["type"] == "hello":
            say(ask["id"], "result", value=HELLO)
        else:
            yield ask["id"], ask["type"], ask
"""
PATIENT = ExternalSettings()
IMPATIENT = ExternalSettings(silence=0.3)
IMAGE = Image(id="5ma11", name="small", rootfs=Path("/none"))
Made = Callable[..., ExternalProvider]


@pytest.fixture
async def made(tmp_path: Path) -> AsyncIterator[Made]:
    async with AsyncExitStack() as stack:

        def make(body: str, settings: ExternalSettings = PATIENT, **env: str) -> ExternalProvider:
            program = tmp_path / "program.py"
            program.write_text(HEAD + body)
            provider = ExternalProvider("puppet", (sys.executable, str(program)), tmp_path, env=env, settings=settings)
            stack.push_async_callback(provider.aclose)
            return provider

        yield make


GARBAGE = {
    "html": "print('<html>Bad gateway</html>', flush=True)",
    "half a line": 'os.write(1, b\'{"id": 1, "ty\')',
    "no utf-8": "os.write(1, b'\\xff\\xfe\\n')",
    "another type": "say(1, 'welcome')",
    "a number nobody asked": "say(99, 'result', value=HELLO)",
    "a list": "print('[1]', flush=True)",
    "very deep": "print('[' * 100000, flush=True)",
    "a result that is no hello": "say(1, 'result', value=[1, 2])",
    "another version": "say(1, 'result', value={**HELLO, 'protocol': 2})",
    "no such tier": "say(1, 'result', value={**HELLO, 'tier': 'cloud'})",
    "a home that is no path": "say(1, 'result', value={**HELLO, 'capabilities': {'home': 'x'}})",
    "output of no command": "say(1, 'output', stream='stdout', data='')",
    "a line without end": "os.write(1, b'x' * (3 << 20)); os.write(1, b'\\n')",
}


@pytest.mark.parametrize("what", GARBAGE)
async def test_what_is_none_of_the_protocol_is_an_error_that_shows_it(made: Made, what: str) -> None:
    provider = made(f"{GARBAGE[what]}\nsys.stdin.read()" if what != "half a line" else GARBAGE[what])
    with pytest.raises((ProviderBadAnswer, ProviderFailed)) as caught:
        await provider.names()
    assert caught.value.message.startswith("puppet: ")
    assert len(caught.value.message) < 600
    assert "program.py" in caught.value.hint


async def test_a_program_that_is_not_there_is_told_by_name(tmp_path: Path) -> None:
    provider = ExternalProvider("none", ("/no/such/program", "x"), tmp_path, env={})
    with pytest.raises(ProviderUnavailable, match="/no/such/program"):
        await provider.list()
    readiness = await provider.readiness()
    assert not readiness.ok
    assert "/no/such/program" in readiness.detail


async def test_the_last_words_of_a_program_are_told_without_what_a_terminal_would_obey(made: Made) -> None:
    provider = made("sys.stderr.write('\\x1b[31mno \\x1b]0;title\\x07credit\\n' + 'x' * 10); sys.exit(7)")
    with pytest.raises(ProviderFailed, match=r"exit code 7: no credit x{10}$"):
        await provider.names()


@pytest.mark.parametrize("body", ["time.sleep(1000)", "sys.stdin.read()", "for _ in lines(): pass"])
async def test_a_silent_program_is_ended(made: Made, body: str, tmp_path: Path) -> None:
    provider = made(f"open(sys.argv[0] + '.pid', 'w').write(str(os.getpid()))\n{body}", IMPATIENT)
    with pytest.raises(ProviderTimeout, match="silent"):
        await provider.names()
    await provider.aclose()
    pid = int((tmp_path / "program.py.pid").read_text())
    assert not Path(f"/proc/{pid}").exists()


async def test_what_a_program_does_not_answer_in_time_is_cancelled(made: Made) -> None:
    body = """
seen = []
for id, type, ask in lines():
    seen.append(type)
    if type == "cancel": say(id, "error", code="cancelled", message="")
    elif type == "names": say(id, "result", value=seen)
"""
    provider = made(body, ExternalSettings(boot_timeout=0.2))
    with pytest.raises(ProviderTimeout, match="stop"):
        await provider.stop("m")
    assert await provider.names() == {"stop", "cancel", "names"}


async def test_answers_may_come_in_any_order(made: Made) -> None:
    body = """
held = []
for id, type, ask in lines():
    held.append((id, ask["name"]))
    if len(held) == 5:
        for id, name in reversed(held): say(id, "result", value={**READY, "name": name})
"""
    provider = made(body)
    found: dict[str, str] = {}

    async def get(name: str) -> None:
        found[name] = (await provider.get(name)).name

    async with anyio.create_task_group() as group:
        for number in range(5):
            group.start_soon(get, f"m{number}")
    assert found == {f"m{number}": f"m{number}" for number in range(5)}


async def test_what_it_says_on_stderr_holds_nobody_up(made: Made) -> None:
    body = """
for id, type, ask in lines():
    for _ in range(100): sys.stderr.write("x" * 100000)
    say(id, "result", value=["m"])
"""
    assert await made(body).names() == {"m"}


async def test_the_codes_of_errors_are_ours_and_their_texts_are_cleaned(made: Made) -> None:
    body = """
for id, type, ask in lines():
    code = {"get": "provider.no_space", "list": "no_such_code", "names": "provider.rate_limited"}[type]
    say(id, "error", code=code, message="full\\x1b[2J" + "y" * 9000, hint="df -h\\n/", retry_after=3.5)
"""
    provider = made(body)
    with pytest.raises(NoSpace) as told:
        await provider.get("m")
    assert told.value.message.startswith("puppet: fully")
    assert (len(told.value.message) < 500, told.value.hint) == (True, "df -h /")
    with pytest.raises(ProviderError, match="no_such_code"):
        await provider.list()
    with pytest.raises(ProviderRateLimited) as limited:
        await provider.names()
    assert limited.value.retry_after == 3.5


ODD_TIMES = ("-1", "253402300800", "1.76e15", "'now'")


@pytest.mark.parametrize(
    "value",
    [
        *("READY", "{}", "{**READY, 'status': 'fine'}", "'ready'", "None"),
        *(f"{{**READY, 'name': 'other', 'created_at': {time}}}" for time in ODD_TIMES),
        *(f"{{**READY, 'name': 'other', 'ends_at': {time}}}" for time in ODD_TIMES),
        "{**READY, 'name': 'other', 'ttl_action': 'burn'}",
    ],
)
async def test_an_answer_about_another_machine_or_none_is_not_believed(made: Made, value: str) -> None:
    provider = made(f"for id, type, ask in lines(): say(id, 'result', value={value})")
    with pytest.raises(ProviderBadAnswer):
        await provider.get("other")


async def test_a_program_tells_when_a_machine_ends(made: Made) -> None:
    machine = await made(
        "for id, type, ask in lines(): say(id, 'result', value={**READY, 'ends_at': 1.5e9, 'ttl_action': 'stop'})"
    ).get("m")
    assert (machine.ends_at, machine.ttl_action) == (1.5e9, "stop")


async def test_names_that_are_none_are_not_believed(made: Made) -> None:
    provider = made("for id, type, ask in lines(): say(id, 'result', value=['../../etc'])")
    with pytest.raises(ProviderBadAnswer, match="etc"):
        await provider.names()


async def test_a_program_that_died_is_started_again(made: Made) -> None:
    body = """
for id, type, ask in lines():
    if type == "list": os.kill(os.getpid(), signal.SIGKILL)
    say(id, "result", value=[])
"""
    provider = made(body)
    for _ in range(2):
        with pytest.raises(ProviderFailed, match="137"):
            await provider.list()
        assert await provider.names() == set()


async def test_a_program_that_dies_again_and_again_is_left_alone(made: Made) -> None:
    provider = made("sys.exit(3)")
    said = set()
    for _ in range(8):
        with pytest.raises(ProviderFailed) as caught:
            await provider.names()
        said.add("left alone" in caught.value.message)
    assert said == {False, True}


async def test_all_that_waits_is_told_of_a_programs_end(made: Made) -> None:
    provider = made("for number, _ in enumerate(lines()):\n    if number == 9: sys.exit('out of credit')")
    failed = []

    async def ask() -> None:
        try:
            await provider.names()
        except ProviderFailed as error:
            failed.append(error.message)

    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            for _ in range(10):
                group.start_soon(ask)
    assert len(failed) == 10
    assert all("out of credit" in message for message in failed)


async def test_only_what_it_was_given_is_in_its_environment(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HIVEYARD_TEST_KEY", "sk-Zq8TestSecret-not-for-programs")
    names = "[name.lower() for name in os.environ if not name.startswith('LC_')]"
    provider = made(f"for id, type, ask in lines(): say(id, 'result', value={names})", TOKEN="Zq8TestSecret")
    assert await provider.names() == {"token"}
    assert "HIVEYARD_TEST_KEY" in os.environ


@pytest.mark.parametrize(
    "say",
    [
        "say(id, 'error', code='x', message=token, hint=token)",
        "say(id, 'error', code=token, message='')",
        "sys.exit(token)",
        "print('<' + token + '>', flush=True)",
        "print(json.dumps(token.encode().hex()), flush=True)",
    ],
)
async def test_a_key_of_the_program_is_in_no_error(made: Made, say: str) -> None:
    token = "sk-Zq8TestSecret-of-a-cloud"
    provider = made(f"token = os.environ['TOKEN']\nfor id, type, ask in lines(): {say}", TOKEN=token)
    with pytest.raises(ProviderError) as caught:
        await provider.names()
    shown = caught.value.message + caught.value.hint
    assert "****" in shown
    assert token not in shown
    assert token.encode().hex() not in shown
    assert "****" in (await provider.readiness()).detail


async def test_what_comes_out_of_a_machine_is_as_it_is(made: Made) -> None:
    body = """
for id, type, ask in lines():
    if type == "get": say(id, "result", value=READY)
    if type == "exec":
        say(id, "started")
        say(id, "output", stream="stdout", data=base64.b64encode(os.environ['TOKEN'].encode()).decode())
        for stream in ("stdout", "stderr"): say(id, "end", stream=stream)
        say(id, "exit", status=0)
"""
    async with made("import base64\n" + body, TOKEN="my-own-Zq8TestSecret").guest("m") as guest:
        assert await guest.read("/x") == b"my-own-Zq8TestSecret"


async def test_a_hello_tells_what_it_can_do(made: Made) -> None:
    provider = made("for id, type, ask in lines(): say(id, 'result', value=WORKS)")
    with pytest.raises(BadInput, match="has not been asked"):
        _ = provider.capabilities
    assert (await provider.readiness()).ok
    assert (provider.tier, provider.capabilities.home, provider.capabilities.user) == (Tier.CONTAINER, "/root", "me")
    for network, place in ((Network.DOOR, None), (Network.OPEN, Path("/session"))):
        with pytest.raises(BadInput):
            await provider.boot("m", MachineSpec(image=IMAGE, network=network, session=place))


async def test_a_boot_that_takes_too_long_is_cancelled_and_ended(made: Made) -> None:
    body = """
seen = []
for id, type, ask in lines():
    seen.append(type)
    if type == "get": say(id, "error", code="machine.unknown", message="no machine m")
    elif type == "names": say(id, "result", value=[word for word in seen if word in ("cancel", "terminate")])
    elif type in ("cancel", "terminate", "ping"): say(id, "result")
"""
    provider = made(body, ExternalSettings(boot_timeout=0.3))
    with pytest.raises(BootTimeout):
        await provider.boot("m", MachineSpec(image=IMAGE, network=Network.OPEN))
    assert await provider.names() == {"cancel", "terminate"}


async def test_the_reports_of_a_long_step_arrive(made: Made) -> None:
    body = """
for id, type, ask in lines():
    for word in ("unpacking", "\\x1b[1mbooting"): say(id, "report", line=word)
    say(id, "result")
"""
    reported: list[str] = []
    await made(body).prepare(IMAGE, Shape(), reported.append)
    assert reported == ["unpacking", "booting"]


COMMANDS = {
    "it dies under it": "os.kill(os.getpid(), signal.SIGKILL)",
    "more than there was credit for": "say(id, 'started'); output(id, 300000)",
    "an exit code that is none": "say(id, 'started'); say(id, 'exit', status=4711)",
    "output before it started": "output(id, 5)",
    "no base64": "say(id, 'started'); say(id, 'output', stream='stdout', data='***')",
    "credit for more than a window": "say(id, 'started'); say(id, 'credit', bytes=1 << 40)",
    "it is refused": "say(id, 'error', code='provider.refused', message='no')",
    "the machine is lost": "say(id, 'started'); say(id, 'error', code='machine.lost', message='gone')",
}


@pytest.mark.parametrize("what", COMMANDS)
async def test_a_command_on_a_way_in_that_fails_is_lost_and_no_result(made: Made, what: str) -> None:
    body = f"""
def output(id, size): say(id, "output", stream="stdout", data="A" * (size // 3 * 4))
for id, type, ask in lines():
    if type == "exec": {COMMANDS[what]}
    elif type == "get": say(id, "result", value=READY)
"""
    provider = made(body)
    async with provider.guest("m") as guest:
        with anyio.fail_after(60), pytest.raises(MachineLost) as caught:
            await guest.read("/etc/passwd")
    lives = what not in ("it is refused", "the machine is lost")
    assert isinstance(caught.value, GuestDisconnected) is lives, caught.value


async def test_a_follower_of_a_program_that_always_dies_is_not_held_for_ever(made: Made) -> None:
    body = """
for id, type, ask in lines():
    if type == "get": say(id, "result", value=READY)
    else: sys.exit(1)
"""
    async with made(body).guest("m") as guest:
        with anyio.fail_after(60), pytest.raises(MachineLost, match="left alone"):
            async for _ in guest.follow("/some/file"):
                pass


async def test_a_command_whose_stdin_nobody_takes_waits_and_can_be_left(made: Made) -> None:
    body = """
for id, type, ask in lines():
    if type == "exec": say(id, "started")
    elif type == "get": say(id, "result", value=READY)
    elif type == "ping": say(id, "result")
"""
    async with made(body).guest("m") as guest:
        with anyio.move_on_after(1) as scope:
            await guest.write("/some/file", bytes(1 << 20))
        assert scope.cancelled_caught


@pytest.mark.parametrize("name", ["", "A", "a b", "../x", "a" * 40, "1x"])
def test_what_cannot_be_a_name_is_no_provider(name: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput):
        ExternalProvider(name, ("true",), tmp_path, env={})


async def test_a_command_is_not_empty(tmp_path: Path) -> None:
    with pytest.raises(BadInput):
        ExternalProvider("x", (), tmp_path, env={})
