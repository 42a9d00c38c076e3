"""Run the real agent programs: on this host, cut off from every network but the scripted model, as a nobody; or in
any guest by any process manager.

    programs = find_programs()                       # $HIVEYARD_AGENT_PROGRAMS, else PATH
    async with host_yard(directory, programs) as yard:
        played = await yard.play("claude", script, prompt)
    assert played.verdict.ok
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import anyio

from hiveyard import agents
from hiveyard.core.commands import ProcessSpec
from hiveyard.core.events import AgentEvent
from hiveyard.core.ports import Agent, Guest, ProcessManager, Turn, Verdict
from hiveyard.kit import process
from hiveyard.testing.model import ScriptedModel, scripted_model
from hiveyard.testing.script import Script

REAL = ("claude", "opencode", "codex", "goose")
NOBODY = 65534
AS_NOBODY = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--")
DOOR_PORT = 8377

# Forwards loopback inside a network namespace to a unix socket outside it, and replaces the host's name servers: each
# requested name is written to a file and does not exist. argv: socket, port, that file, then the program.
_BRIDGE = """
import os, re, signal, socket, subprocess, sys, threading
signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background job inherits an ignored SIGINT
subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
for server in re.findall(r"^nameserver ([0-9.]+)$", open("/etc/resolv.conf").read(), re.MULTILINE):
    subprocess.run(["ip", "address", "add", server, "dev", "lo"], stderr=subprocess.DEVNULL)
names = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
names.bind(("", 53))
def answer():
    while True:
        asked, who = names.recvfrom(4096)
        with open(sys.argv[3], "ab") as told: told.write(re.sub(rb"[^a-z0-9-]+", b".", asked[13:-4]) + b"\\n")
        names.sendto(asked[:2] + b"\\x81\\x83" + asked[4:6] + bytes(6) + asked[12:], who)
threading.Thread(target=answer, daemon=True).start()
listener = socket.create_server(("127.0.0.1", int(sys.argv[2])))
def copy(a, b):
    try:
        while data := a.recv(65536): b.sendall(data)
    except OSError: pass
    for end in (a, b):
        try: end.shutdown(socket.SHUT_RDWR)
        except OSError: pass
def accept():
    while True:
        inside, _ = listener.accept()
        outside = socket.socket(socket.AF_UNIX)
        outside.connect(sys.argv[1])
        for pair in ((inside, outside), (outside, inside)):
            threading.Thread(target=copy, args=pair, daemon=True).start()
threading.Thread(target=accept, daemon=True).start()
child = subprocess.Popen(sys.argv[4:])
code = child.wait()
os._exit(code if code >= 0 else 128 - code)
"""


def find_programs() -> Mapping[str, Path]:
    """The agent programs of this host by name, those that are there."""
    places = os.environ.get("HIVEYARD_AGENT_PROGRAMS", "").split(os.pathsep)
    path = os.pathsep.join([place for place in places if place] or os.environ.get("PATH", "").split(os.pathsep))
    found = {name: shutil.which(name, path=path) for name in REAL}
    return {name: Path(where) for name, where in found.items() if where}


class Finished(NamedTuple):
    """A process that ended."""

    stdout: bytes
    stderr: bytes
    exit_code: int | None


@dataclass(frozen=True, kw_only=True)
class Played:
    """A turn that was run, with its events and verdict."""

    finished: Finished
    events: Sequence[AgentEvent]
    verdict: Verdict
    model: ScriptedModel


def understand(agent: Agent, finished: Finished) -> tuple[Sequence[AgentEvent], Verdict]:
    """Return the events and the verdict for a process's output."""
    parser = agent.parser()
    events = [event for line in finished.stdout.split(b"\n") if line for event in parser.feed(line)]
    return events, parser.verdict(finished.exit_code, finished.stderr.decode("utf-8", "replace"))


async def in_guest(guest: Guest, manager: ProcessManager, spec: ProcessSpec) -> Finished:
    """Run a turn's process in a guest to its end; its prompt must be there."""
    await manager.start(guest, spec)
    stdout = bytearray()
    async with aclosing(manager.follow(guest, spec.name)) as chunks:  # type: ignore[type-var]
        async for chunk in chunks:
            stdout += chunk
    info = await manager.get(guest, spec.name)
    return Finished(bytes(stdout), await manager.logs(guest, spec.name, stream="stderr"), info.exit_code)


@dataclass(kw_only=True)
class HostYard:
    """A place on this host for turns: a repository to work in, a home, and a state directory.

    `tamper` changes a process before it starts, for cases such as a missing key; `env` is added to what it gets. A
    signal can be sent when its output holds some bytes (`signal_at`), or `stop_after` some seconds, or
    when a file is there.
    """

    root: Path
    programs: Mapping[str, Path]
    tamper: Callable[[ProcessSpec], ProcessSpec] = lambda spec: spec
    env: dict[str, str] = field(default_factory=dict)
    limit: float = 120.0

    @property
    def repo(self) -> Path:
        return self.root / "repo"

    @property
    def lookups(self) -> list[str]:
        """The names of hosts that programs here asked for."""
        return self._lookups.read_text().splitlines() if self._lookups.exists() else []

    @property
    def _lookups(self) -> Path:
        return self.root / "lookups"

    def apart(self, socket: Path) -> list[str]:
        """Return the command that runs a program as nobody, in a network namespace with only a socket."""
        bridge = [sys.executable, "-c", _BRIDGE, str(socket), str(DOOR_PORT), str(self._lookups)]
        return ["unshare", "-n", "--", *bridge, *AS_NOBODY]

    def turn(self, *, prompt: str, name: str = "turn-1", **rest: Any) -> Turn:
        """A turn in this place, whose prompt is written to its file."""
        file = self.root / "prompt.txt"
        file.write_text(prompt, encoding="utf-8")
        file.chmod(0o644)
        parts: dict[str, Any] = {
            "name": name,
            "prompt": str(file),
            "workdir": str(self.repo),
            "state": str(self.root / "state"),
            "door_url": f"http://127.0.0.1:{DOOR_PORT}",
            "placeholder": "hv-placeholder",
        }
        return Turn(**parts, **rest)

    async def play(
        self,
        program: str,
        script: Script,
        prompt: str = "do it",
        *,
        key: str | None = None,
        signal_at: tuple[bytes, signal.Signals] | None = None,
        stop_after: float | Path | None = None,
        stop_with: signal.Signals = signal.SIGINT,
        **turn: Any,
    ) -> Played:
        """Let an agent do a turn against a script."""
        agent = agents.by_name(program)
        spec = self.tamper(agent.process(self.turn(prompt=prompt, **turn)))
        socket = self.root / "model.sock"
        socket.unlink(missing_ok=True)
        async with scripted_model(script, key=key, socket=socket) as model:
            finished = await self.run(spec, socket, signal_at, (stop_after, stop_with))
        events, verdict = understand(agent, finished)
        return Played(finished=finished, events=events, verdict=verdict, model=model)

    async def run(
        self,
        spec: ProcessSpec,
        socket: Path,
        signal_at: tuple[bytes, signal.Signals] | None = None,
        stop: tuple[float | Path | None, signal.Signals] = (None, signal.SIGINT),
    ) -> Finished:
        """Run a process in a network of its own that holds nothing but the model's socket, as nobody."""
        _give_away(self.root)
        prefix = self.apart(socket)
        path = os.pathsep.join([*(str(program.parent) for program in self.programs.values()), "/usr/bin", "/bin"])
        env = {"HOME": str(self.root / "home"), "PATH": path, "LANG": "C.UTF-8", "TMPDIR": str(self.root / "tmp")}
        env |= {**spec.command.env, **self.env}
        out, err = bytearray(), bytearray()
        assert spec.stdin is not None
        argv = [*prefix, *spec.command.words()]
        with open(spec.stdin, "rb") as prompt, anyio.fail_after(self.limit):  # noqa: ASYNC230 - the child reads it
            async with (
                process.running(argv, stdin=prompt, env=env, cwd=spec.command.cwd, grace=2.0) as child,
                anyio.create_task_group() as group,
            ):
                group.start_soon(_gather, child, child.stdout, out, signal_at)
                group.start_soon(_gather, child, child.stderr, err, None)
                code = await _wait(child, *stop)
        return Finished(bytes(out), bytes(err), code if code >= 0 else 128 - code)


async def _gather(
    child: anyio.abc.Process,
    stream: anyio.abc.ByteReceiveStream | None,
    into: bytearray,
    signal_at: tuple[bytes, signal.Signals] | None,
) -> None:
    assert stream is not None
    async for chunk in stream:
        into += chunk
        if signal_at is not None and signal_at[0] in into:
            # All but the bridge, as a process manager would: the bridge stands for the machine.
            _signal_below(child.pid, signal_at[1])
            signal_at = None


async def _wait(child: anyio.abc.Process, after: float | Path | None, number: signal.Signals) -> int:
    if after is not None:
        with anyio.move_on_after(after if isinstance(after, float | int) else None):
            async with anyio.create_task_group() as group:
                if isinstance(after, Path):
                    group.start_soon(_there, after, group.cancel_scope)
                await child.wait()
                group.cancel_scope.cancel()
        if child.returncode is None:
            _signal_below(child.pid, number)
    return await child.wait()


async def _there(path: Path, waiting: anyio.CancelScope) -> None:
    while not path.exists():  # noqa: ASYNC110 (another program makes it)
        await anyio.sleep(0.05)
    waiting.cancel()


def _signal_below(pid: int, number: signal.Signals) -> None:
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    for below in listed.stdout.split():
        _signal_below(int(below), number)
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(below), number)


@asynccontextmanager
async def host_yard(root: Path, programs: Mapping[str, Path]) -> AsyncIterator[HostYard]:
    """A fresh place below `root`, with a repository of one commit."""
    for name in ("repo", "home", "state", "tmp"):
        (root / name).mkdir(parents=True, exist_ok=True)
    (root / "repo" / "README.md").write_text("A sample.\n")
    for words in (("init", "-q", "-b", "main"), ("add", "-A"), ("commit", "-qm", "start")):
        await process.run(["git", *words], cwd=root / "repo", env=GIT_ENV)
    yield HostYard(root=root, programs=programs)


GIT_ENV = {
    "PATH": "/usr/bin:/bin",
    "HOME": "/nonexistent",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_SYSTEM": "/dev/null",
    **{f"GIT_{who}_{what}": "a@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
}


def _give_away(root: Path) -> None:
    """Make all of it nobody's, and its parents passable."""
    subprocess.run(["chown", "-R", f"{NOBODY}:{NOBODY}", str(root)], check=True)
    for parent in root.parents:
        if parent.stat().st_mode & 0o001 == 0 and parent.stat().st_uid == os.getuid():
            parent.chmod(parent.stat().st_mode | 0o011)
