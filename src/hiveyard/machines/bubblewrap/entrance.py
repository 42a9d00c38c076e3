"""Run programs in a machine: nsenter joins all of its namespaces, as its user, without a way to more privileges."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from hiveyard.core.errors import MachineLost
from hiveyard.core.ports import Stream
from hiveyard.machines.bubblewrap import terminal
from hiveyard.machines.bubblewrap.pause import MachinePause
from hiveyard.machines.bubblewrap.record import Manifest
from hiveyard.machines.shared.attached import AttachedStream, attached

_ENV = "/usr/bin/env"
_JOIN = 'while [ "$1" != -- ]; do echo 0 >"$1/cgroup.procs" || exit 125; shift; done; shift; exec "$@"'


class Entrance:
    """An Exec for one machine.

    `env` is the whole environment of a program, except for the variables that the image sets. `confine` is the program
    that applies the machine's filter of system calls, if there is one."""

    def __init__(
        self,
        name: str,
        pause: MachinePause,
        uid: int | None,
        manifest: Manifest,
        env: Mapping[str, str],
        confine: Path | None,
    ) -> None:
        self._name = name
        self._init = pause.init
        self._pause = pause
        self._uid = uid
        joined = _join([group for group in manifest.cgroups if Path(group).is_dir()])
        # Before the program enters the machine: then nothing in the machine can use it to get around the filter.
        confined = [] if confine is None else [str(confine.absolute()), _ENV, "--"]
        self._prefix = [*joined, *confined, *_enter(self._init.pid, uid), *_with_env(manifest.env)]
        self._env = dict(env)

    @asynccontextmanager
    async def open(self, argv: Sequence[str]) -> AsyncIterator[Stream]:
        words = [word.encode("utf-8", "surrogateescape") for word in (*self._prefix, *argv)]
        async with AsyncExitStack() as stack:
            async with self._pause.running():
                self.check_alive()
                stream = await stack.enter_async_context(attached(words, self._env))
            yield _MachineStream(stream, self)

    async def terminal(self, argv: Sequence[str]) -> list[str]:
        """Return the argv of a host program that runs `argv` on a terminal of the machine."""
        async with self._pause.running():
            self.check_alive()
        entering = (*self._prefix, "setsid", "--ctty", "--wait", *argv)
        return terminal.program(self._init.pid, self._uid, self._env, entering)

    def check_alive(self) -> None:
        """Raise MachineLost if the machine has ended."""
        if not self._init.is_running():
            raise MachineLost(f"machine {self._name} died", machine=self._name)


class _MachineStream:
    """The Stream of a program in the machine. The end of the machine raises MachineLost instead of an exit code."""

    def __init__(self, stream: AttachedStream, entrance: Entrance) -> None:
        self._stream = stream
        self._entrance = entrance
        self.send = stream.send
        self.send_eof = stream.send_eof
        self.receive = stream.receive
        self.receive_error = stream.receive_error

    async def wait(self) -> int:
        status = await self._stream.wait()
        if status != 0:
            # A failure or a kill may be the end of the machine.
            self._entrance.check_alive()
        return status


def _join(cgroups: Sequence[str]) -> list[str]:
    return ["/bin/sh", "-c", _JOIN, "hiveyard-enter", *cgroups, "--"] if cgroups else []


def _enter(pid: int, uid: int | None) -> list[str]:
    prefix = ["setpriv", "--inh-caps=-all", "--no-new-privs"]
    if uid is not None:
        prefix += [f"--reuid={uid}", f"--regid={uid}", "--clear-groups"]
    prefix += ["nsenter", "--target", str(pid), "--user", "--mount", "--pid", "--net", "--ipc", "--uts"]
    return [*prefix, "--preserve-credentials", "--"]


def _with_env(env: Mapping[str, str]) -> list[str]:
    """Return the words that set an image's variables in the machine. The host programs before them must not use the
    image's PATH or LD_PRELOAD."""
    return ["env", "--", *(f"{name}={value}" for name, value in env.items())] if env else []
