"""Failures leave no machine unless it is to be kept, and are reported."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import anyio
import pytest

from hiveyard.agents.claude.adapter import Claude
from hiveyard.agents.command import CommandLine
from hiveyard.core.commands import ProcessInfo, ProcessSpec, ProcessStatus
from hiveyard.core.credentials import CredentialProfile, Installed
from hiveyard.core.errors import BadInput, NotPrepared, OrchestrationError, ProviderError, SessionNotStarted
from hiveyard.core.machines import HOST, Image, MachineSpec, MachineStatus
from hiveyard.core.ports import Agent, Guest
from hiveyard.credentials import DefaultCredentialsInstaller
from hiveyard.library import RuntimeEvent, events
from hiveyard.machines.bubblewrap import BubblewrapProvider
from hiveyard.processes.detached import Detached
from hiveyard.processes.tmux import Tmux
from tests.library.parts import KEY, PLACEHOLDER, QUOTING, Quoting, Yards, image_without, in_the_way, profile
from tests.support.leaks import Said

pytestmark = pytest.mark.anyio


def check(said: Said, error: OrchestrationError, operation: str, cause: str) -> None:
    """Check that an error has its context, cause and hint, and keeps no unmasked error."""
    said.add_error(error)
    assert error.context["operation"] == operation
    assert error.context["cause"] == cause
    assert error.context["machine"]
    assert error.hint
    assert isinstance(error.__cause__, Exception)
    assert error.__cause__.code == cause  # type: ignore[attr-defined]
    assert error.__context__ is None
    assert error.__cause__.__context__ is None


async def not_prepared(yards: Yards, said: Said, operation: str, cause: str, **wishes: object) -> NotPrepared:
    with pytest.raises(NotPrepared) as caught:
        await yards.yard().boot_and_prepare(**{"source": HOST, **wishes})  # type: ignore[arg-type]
    check(said, caught.value, operation, cause)
    failed = next(event for event in yards.events if isinstance(event, events.PreparationFailed))
    assert (failed.operation, failed.code, failed.machine) == (operation, cause, caught.value.context["machine"])
    return caught.value


async def test_a_boot_that_fails_leaves_nothing(yards: Yards, said: Said) -> None:
    (yards.scratch / "file").write_text("")
    spec = MachineSpec(image=HOST, session=yards.scratch / "file")
    await not_prepared(yards, said, "boot", "machine.boot_failed", source=spec)
    assert yards.told() == ["boot_started", "preparation_failed", "machine_terminated"]


async def test_a_missing_image_leaves_nothing(yards: Yards, said: Said) -> None:
    absent = Image(id="ab5e47", name="absent", rootfs=yards.scratch / "absent.tar")
    with pytest.raises(NotPrepared) as caught:
        await yards.yard().boot_and_prepare(absent)
    check(said, caught.value, "boot", caught.value.context["cause"])


async def test_a_failed_check_leaves_no_machine_and_shows_no_secret(yards: Yards, said: Said) -> None:
    error = await not_prepared(
        yards, said, "install_credentials", "credentials.check_failed", credential_profiles=[profile(check=QUOTING)]
    )
    assert "its check exited with 3" in error.message
    assert error.context["profile"] == "probe"
    assert yards.told() == ["boot_started", "boot_ready", "preparation_failed", "machine_terminated"]


async def test_an_unrequested_real_secret_is_refused_before_the_boot(yards: Yards, said: Said) -> None:
    with pytest.raises(NotPrepared, match="was not requested by name") as refused:
        await yards.yard().boot_and_prepare(HOST, credential_profiles=[profile(real=True)])
    check(said, refused.value, "install_credentials", "credentials.real_secret")
    assert yards.told() == []


async def test_conflicting_profiles_are_refused_before_the_boot(yards: Yards) -> None:
    with pytest.raises(BadInput, match="written twice"):
        await yards.yard().boot_and_prepare(HOST, credential_profiles=[profile("one"), profile("two")])
    assert yards.told() == []


async def test_information_that_cannot_be_written_leaves_no_machine(yards: Yards, said: Said) -> None:
    await not_prepared(
        yards, said, "write_machine_info", "guest.is_a_directory", credential_profiles=[profile(), in_the_way()]
    )
    assert yards.told()[-2:] == ["preparation_failed", "machine_terminated"]


async def test_a_process_manager_that_is_not_in_the_image_leaves_no_machine(yards: Yards, said: Said) -> None:
    yard = yards.yard(Tmux())
    ready = await yard.boot_and_prepare(image_without("tmux", yards.scratch))
    with pytest.raises(SessionNotStarted, match="no tmux in the machine's image") as caught:
        await yard.start_session(ready.machine, ready.turn("hello", command="true"), prompt="")
    check(said, caught.value, "start_session", "process.not_started")
    assert caught.value.context["process"] == "hello"
    assert "image" in caught.value.hint
    assert yards.told()[-2:] == ["session_failed", "machine_terminated"]


@pytest.mark.parametrize(
    ("agent", "wishes", "says"),
    [
        (CommandLine(), {"name": "hello"}, "needs a command line"),
        (CommandLine(), {"name": "x" * 300, "command": "true"}, "is not a valid process name"),
        (CommandLine(), {"name": "hello", "command": "true", "system": "x"}, "takes no system prompt"),
        (Claude(), {"name": "hello", "model": "--yolo"}, "is not a valid model name"),
        (Claude(), {"name": "hello", "system": "x\0"}, "system prompt has control characters"),
        (Claude(), {"name": "hello", "conversation": "../x"}, "is not a valid id of a conversation"),
    ],
)
async def test_an_invalid_turn_is_refused_and_the_machine_stays(
    yards: Yards, agent: Agent, wishes: dict[str, Any], says: str
) -> None:
    yard = yards.yard()
    ready = await yard.boot_and_prepare(HOST)
    await yard.start_session(ready.machine, ready.turn("first", command="sleep 1000"), prompt="")
    told = yards.told()
    yard.agent = agent
    with pytest.raises(BadInput, match=says):
        await yard.start_session(ready.machine, ready.turn(**wishes), prompt="")
    assert yards.told() == told
    (first,) = await yard.processes(ready.machine)
    assert (first.name, first.status) == ("first", ProcessStatus.RUNNING)
    await yard.terminate(ready.machine)


async def test_a_text_that_cannot_be_encoded_removes_no_machine(yards: Yards) -> None:
    yard = yards.yard()
    ready = await yard.boot_and_prepare(HOST)
    await yard.start_session(ready.machine, ready.turn("first", command="sleep 1000"), prompt="")
    told = yards.told()
    with pytest.raises(BadInput, match="unpaired surrogate"):
        await yard.start_session(ready.machine, ready.turn("second", command="true"), prompt="a\ud800")
    assert yards.told() == told
    with pytest.raises(SessionNotStarted, match="lone surrogate"):
        await yard.start_session(ready.machine, ready.turn("third", command="echo \ud800"), prompt="")
    assert yards.told()[len(told) :] == ["session_failed", "machine_kept"]
    (first,) = await yard.processes(ready.machine)
    assert (first.name, first.status) == ("first", ProcessStatus.RUNNING)
    await yard.terminate(ready.machine)


async def test_secrets_in_answers_of_a_guest_are_masked(yards: Yards, said: Said) -> None:
    yard = yards.yard(Quoting())
    ready = await yard.boot_and_prepare(HOST, credential_profiles=[profile()])
    turn = ready.turn("hello", command="true", placeholder=PLACEHOLDER)
    with pytest.raises(SessionNotStarted) as caught:
        await yard.start_session(ready.machine, turn, prompt="")
    check(said, caught.value, "start_session", "process.not_started")
    assert "no: ****" in caught.value.message
    assert "say ****" in caught.value.hint


async def test_the_log_contains_no_secret(yards: Yards, said: Said) -> None:
    yards.hear = events.log
    yard = yards.yard(Quoting())
    ready = await yard.boot_and_prepare(HOST, credential_profiles=[profile()])
    with pytest.raises(SessionNotStarted):
        await yard.start_session(ready.machine, ready.turn("hello", command="true", placeholder=PLACEHOLDER), prompt="")
    lines = [line for line in said.lines if "hiveyard.library" in line]
    assert any("event='session_failed'" in line and "WARNING" in line for line in lines)
    assert any("event='credentials_installed'" in line and "INFO" in line for line in lines)


@pytest.mark.parametrize("profiles", [[profile(check=QUOTING)], [in_the_way()]])
async def test_keep_on_error_keeps_the_machine(yards: Yards, said: Said, profiles: list[CredentialProfile]) -> None:
    with pytest.raises(NotPrepared):
        await yards.yard().boot_and_prepare(HOST, credential_profiles=profiles, keep_on_error=True)
    assert yards.told()[-2:] == ["preparation_failed", "machine_kept"]
    yards.expected = {yards.events[-1].machine}
    assert (await yards.provider.get(yards.events[-1].machine)).status is MachineStatus.READY


async def test_a_machine_is_kept_when_its_session_fails_and_another_may_be_started(yards: Yards) -> None:
    yard = yards.yard(Tmux())
    ready = await yard.boot_and_prepare(image_without("tmux", yards.scratch))
    turn = ready.turn("hello", command="true")
    with pytest.raises(SessionNotStarted):
        await yard.start_session(ready.machine, turn, prompt="", keep_on_error=True)
    assert yards.told()[-2:] == ["session_failed", "machine_kept"]
    yard.manager = Detached()
    await yard.start_session(ready.machine, turn, prompt="")
    await yard.terminate(ready.machine)


class Cancelling(DefaultCredentialsInstaller):
    """An installer that cancels the caller after the credentials were installed."""

    def __init__(self, patience: anyio.CancelScope) -> None:
        super().__init__()
        self._patience = patience

    async def install(
        self, guest: Guest, profiles: Sequence[CredentialProfile], *, real: Collection[str] = ()
    ) -> list[Installed]:
        installed = await super().install(guest, profiles, real=real)
        self._patience.cancel()
        await anyio.sleep_forever()
        return installed


@pytest.mark.parametrize("keep", [False, True])
async def test_cancelling_the_preparation_leaves_no_machine(yards: Yards, keep: bool) -> None:
    with anyio.CancelScope() as patience:
        yard = yards.yard(installer=Cancelling(patience))
        await yard.boot_and_prepare(HOST, credential_profiles=[profile()], keep_on_error=keep)
    assert patience.cancelled_caught
    assert yards.told() == ["boot_started", "boot_ready", "preparation_failed", "machine_terminated"]


async def test_cancelling_the_boot_leaves_no_machine(yards: Yards) -> None:
    with anyio.CancelScope() as patience:

        def hear(event: RuntimeEvent) -> None:
            yards.events.append(event)
            patience.cancel()

        await yards.yard(on_event=hear).boot_and_prepare(HOST)
    assert yards.told() == ["boot_started", "preparation_failed", "machine_terminated"]


class Abandoned(Detached):
    """A process manager that cancels the caller after the process was started."""

    def __init__(self, patience: anyio.CancelScope) -> None:
        super().__init__()
        self._patience = patience

    async def start(self, guest: Guest, spec: ProcessSpec) -> ProcessInfo:
        info = await super().start(guest, spec)
        self._patience.cancel()
        await anyio.sleep_forever()
        return info


@pytest.mark.parametrize("keep", [False, True])
async def test_cancelling_a_session_removes_its_machine(yards: Yards, keep: bool) -> None:
    with anyio.CancelScope() as patience:
        yard = yards.yard(Abandoned(patience))
        ready = await yard.boot_and_prepare(HOST)
        turn = ready.turn("hello", command="sleep 1000")
        await yard.start_session(ready.machine, turn, prompt="", keep_on_error=keep)
    assert yards.told()[-1] == ("machine_kept" if keep else "machine_terminated")
    yards.expected = {ready.machine.name} if keep else set()


async def test_an_error_of_a_listener_leaves_no_machine(yards: Yards) -> None:
    def hear(event: RuntimeEvent) -> None:
        raise RuntimeError("deaf")

    with pytest.raises(RuntimeError, match="deaf"):
        await yards.yard(on_event=hear).boot_and_prepare(HOST)


class Stubborn(BubblewrapProvider):
    """A provider whose machines cannot be removed."""

    async def terminate(self, name: str) -> None:
        raise ProviderError(f"{name} cannot be killed, says {KEY}")


async def test_a_machine_that_cannot_be_removed_is_named(yards: Yards, said: Said) -> None:
    removing = yards.provider
    yards.provider = Stubborn(yards.scratch / "m", yards.scratch / "c")
    error = await not_prepared(
        yards, said, "write_machine_info", "guest.is_a_directory", credential_profiles=[profile(), in_the_way()]
    )
    yards.provider = removing
    assert "cannot be killed, says ****" in error.context["left"]
    assert "still exists" in error.hint
    assert yards.told()[-2:] == ["preparation_failed", "operation_failed"]
    yards.expected = {error.context["machine"]}
