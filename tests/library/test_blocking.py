"""Scripts without `await`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from hiveyard.library import Conversation, Orchestrator, SyncOrchestrator
from hiveyard.library.sync import SyncConversation
from tests.library.parts import Yards

BEGINNING = """
from pathlib import Path
from hiveyard import HOST, Orchestrator, SyncOrchestrator
from hiveyard.agents.command import CommandLine
from hiveyard.core.commands import Command
from hiveyard.core.credentials import CredentialDirectory, CredentialProfile
from hiveyard.core.errors import OrchestrationError
from hiveyard.machines.bubblewrap import BubblewrapProvider
from hiveyard.processes.detached import Detached

def hear(event):
    print(type(event).__name__, flush=True)

orchestrator = Orchestrator(
    BubblewrapProvider(Path("machines"), Path("images")), Detached(), CommandLine(), on_event=hear
)
"""


def script(place: Path, text: str) -> list[str]:
    (place / "script.py").write_text(BEGINNING + textwrap.dedent(text))
    return [sys.executable, "script.py"]


def machines(place: Path) -> list[str]:
    return [entry.name for entry in (place / "machines").iterdir() if not entry.name.startswith(".")]


def test_a_plain_script_does_all_of_it(works: None, tmp_path: Path) -> None:
    text = """
    with SyncOrchestrator(orchestrator) as yard:
        ready = yard.boot_and_prepare(HOST, ttl_seconds=1000)
        turn = ready.turn("work", command="cat; for i in 1 2 3; do echo $i; sleep 0.1; done; sleep 1000")
        yard.start_session(ready.machine, turn, prompt="begin\\n")
        heard = b""
        for piece in yard.follow(ready.machine, "work"):
            heard += piece
            if heard.endswith(b"3\\n"):
                break
        print(heard.split(), yard.logs(ready.machine, "work", lines=1))
        print(yard.stop(ready.machine, "work", grace=1).status)
        print([one.name for one in yard.processes(ready.machine)])
        try:
            list(yard.follow(ready.machine, "nobody"))
        except OrchestrationError as error:
            print(error.context["operation"], error.context["cause"])
        yard.terminate(ready.machine)
    """
    done = subprocess.run(script(tmp_path, text), cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines() == [
        "BootStarted",
        "BootReady",
        "MachineInfoWritten",
        "SessionStarted",
        "[b'begin', b'1', b'2', b'3'] b'3\\n'",
        "ProcessStopped",
        "exited",
        "['work']",
        "follow process.unknown",
        "MachineTerminated",
    ]
    assert (done.returncode, done.stderr, machines(tmp_path)) == (0, "", [])


def test_an_interrupt_in_the_middle_leaves_no_machine_and_the_next_call_works(works: None, tmp_path: Path) -> None:
    text = """
    waits = CredentialProfile(
        name="waits", directories=(CredentialDirectory(path="~/p"),), check=Command(argv=("sleep", "1000")),
        check_seconds=1000.0,
    )
    with SyncOrchestrator(orchestrator) as yard:
        try:
            yard.boot_and_prepare(HOST, credential_profiles=[waits])
        except KeyboardInterrupt:
            # As in a notebook, where the orchestrator stays open.
            yard.terminate(yard.boot_and_prepare(HOST, name="next").machine)
    """
    with subprocess.Popen(
        script(tmp_path, text), cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        assert running.stdout is not None
        while running.stdout.readline() != "BootReady\n":
            assert running.poll() is None
        os.kill(running.pid, signal.SIGINT)
        try:
            told, complaint = running.communicate(timeout=120)
        finally:
            running.kill()
    assert sorted(told.splitlines()) == [
        "BootReady",
        "BootStarted",
        "MachineInfoWritten",
        "MachineTerminated",
        "MachineTerminated",
        "PreparationFailed",
    ]
    assert (running.returncode, complaint, machines(tmp_path)) == (0, "", [])


SLOW_TO_END = """
import anyio

class Slow(BubblewrapProvider):
    async def terminate(self, name):
        await anyio.sleep(3)
        await super().terminate(name)

class Told(Orchestrator):
    async def __aexit__(self, *raised):
        print("Closed", flush=True)
        await super().__aexit__(*raised)

waits = CredentialProfile(
    name="waits", directories=(CredentialDirectory(path="~/p"),), check=Command(argv=("sleep", "1000")),
    check_seconds=1000.0,
)
told = Told(Slow(Path("machines"), Path("images")), Detached(), CommandLine(), on_event=hear)
with SyncOrchestrator(told) as yard:
    yard.boot_and_prepare(HOST, credential_profiles=[waits])
"""


@pytest.mark.parametrize("interrupts", [1, 2])
def test_the_orchestrator_closes_after_the_interrupted_call_has_ended(
    works: None, tmp_path: Path, interrupts: int
) -> None:
    with subprocess.Popen(
        script(tmp_path, SLOW_TO_END), cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as running:
        assert running.stdout is not None
        for line in ("BootReady\n", "PreparationFailed\n")[:interrupts]:
            while running.stdout.readline() != line:
                assert running.poll() is None
            os.kill(running.pid, signal.SIGINT)
        try:
            told, _ = running.communicate(timeout=120)
        finally:
            running.kill()
    closed, gone = told.split().index("Closed"), told.split().index("MachineTerminated")
    assert (closed > gone) is (interrupts == 1)
    assert (running.returncode, machines(tmp_path)) == (-signal.SIGINT, [])


def test_it_has_every_call_of_the_asynchronous_one() -> None:
    def calls(kind: type) -> set[str]:
        return {name for name in vars(kind) if not name.startswith("_")}

    assert calls(SyncOrchestrator) - {"wait", "iterate"} == calls(Orchestrator)
    # What a conversation has for each object stands in its instances.
    assert calls(SyncConversation) - {"offset"} == calls(Conversation)


@pytest.mark.anyio
async def test_use_outside_of_its_block_is_an_error(yards: Yards) -> None:
    with pytest.raises(RuntimeError, match="`with` block"):
        SyncOrchestrator(yards.yard()).wait(yards.provider.names)
