"""The way into a running machine: nsenter into all of its namespaces, as its user, with no way to more rights."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from hiveyard.core.errors import MachineLost
from hiveyard.core.ports import Stream
from hiveyard.machines.bubblewrap import terminal
from hiveyard.machines.bubblewrap.pause import MachinePause
from hiveyard.machines.bubblewrap.record import Made
from hiveyard.machines.shared.attached import AttachedStream, attached

_ENV = "/usr/bin/env"
_JOIN = 'while [ "$1" != -- ]; do echo 0 >"$1/cgroup.procs" || exit 125; shift; done; shift; exec "$@"'


class Entrance:
    """An Exec for one machine. `env` is all that a program finds in its environment beside what its image sets;
    `confine` is the program that puts it under the machine's filter of system calls, where there is one."""

    def __init__(
        self,
        name: str,
        standing: MachinePause,
        uid: int | None,
        made: Made,
        env: Mapping[str, str],
        confine: Path | None,
    ) -> None:
        self._name = name
        self._init = standing.init
        self._standing = standing
        self._uid = uid
        joined = _join([group for group in made.cgroups if Path(group).is_dir()])
        # Before anything of the machine's can see the program: then nothing can use it to get around the filter.
        confined = [] if confine is None else [str(confine), _ENV, "--"]
        self._prefix = [*joined, *confined, *_enter(self._init.pid, uid), *_setting(made.env)]
        self._env = dict(env)

    @asynccontextmanager
    async def open(self, argv: Sequence[str]) -> AsyncIterator[Stream]:
        words = [word.encode("utf-8", "surrogateescape") for word in (*self._prefix, *argv)]
        async with AsyncExitStack() as stack:
            async with self._standing.goes_on():
                self.check_alive()
                stream = await stack.enter_async_context(attached(words, self._env))
            yield _MachineStream(stream, self)

    async def terminal(self, argv: Sequence[str]) -> list[str]:
        """A program of the host that runs `argv` on a terminal of the machine."""
        async with self._standing.goes_on():
            self.check_alive()
        entering = (*self._prefix, "setsid", "--ctty", "--wait", *argv)
        return terminal.program(self._init.pid, self._uid, self._env, entering)

    def check_alive(self) -> None:
        """Raises MachineLost when the machine is gone."""
        if not self._init.lives():
            raise MachineLost(f"machine {self._name} died", machine=self._name)


class _MachineStream:
    """A program in the machine, of which the machine's own end is told apart."""

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
            # What looks like a failure, or a kill, may be the end of the machine under the command.
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


def _setting(env: Mapping[str, str]) -> list[str]:
    """Sets what an image sets, in the machine: the programs that lead there are the host's, and no image's PATH or
    LD_PRELOAD is for them."""
    return ["env", "--", *(f"{name}={value}" for name, value in env.items())] if env else []
