"""Start the program of an external provider when it is first needed, and again when it has ended."""

from __future__ import annotations

import os
import shlex
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

import anyio

from hiveyard.core.errors import ProviderBadAnswer, ProviderError, ProviderFailed, ProviderUnavailable
from hiveyard.core.machines import Report, quiet
from hiveyard.kit.mask import Mask
from hiveyard.kit.secret import Secret
from hiveyard.machines.external import wire
from hiveyard.machines.external.settings import ExternalSettings
from hiveyard.machines.external.talk import Talk
from hiveyard.machines.shared.attached import attached

T = TypeVar("T")
PLAIN = ("PATH", "HOME", "LANG", "TMPDIR")
"""Variables of a program that are not secret. The values of all others are masked in its output."""
_STARTS, _WITHIN = 5, 60.0  # so often a program is started within so many seconds, and not more


class Program:
    """`env` is its complete environment. `state` is a directory of its own, which is sent in the hello. `greeted` is
    called with each hello, and raises ProviderError for an invalid one."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        state: Path,
        env: Mapping[str, str],
        settings: ExternalSettings,
        greeted: Callable[[wire.Hello], None],
    ) -> None:
        self._name = name
        self._command = tuple(command)
        self._state = state
        self._env = dict(env)
        self._mask = Mask(Secret(value) for key, value in env.items() if key not in PLAIN)
        self._settings = settings
        self._greeted = greeted
        self._starting = anyio.Lock()
        self._starts: deque[float] = deque(maxlen=_STARTS)
        self._talk: Talk | None = None
        self._hint = f"run it by hand: {shlex.join(self._command)}"

    async def ask(
        self,
        verb: str,
        kind: type[T],
        timeout: float,
        fields: Mapping[str, object] = MappingProxyType({}),
        report: Report = quiet,
    ) -> T:
        """Return the answer to a request. Raises the program's error; ProviderUnavailable if it cannot be started,
        ProviderFailed if it ends before it answers, ProviderTimeout, ProviderBadAnswer."""
        return await (await self.talk()).ask(verb, kind, fields, timeout, report)

    async def talk(self) -> Talk:
        """Return the connection to the running program; start it if necessary. Raises as `ask`."""
        async with self._starting:
            if self._talk is not None and not self._talk.ended:
                return self._talk
            await self._leave()
            self._check_often()
            self._talk = talk = await self._start()
            try:
                self._greet(await self._hello(talk))
            except BaseException:
                await self._leave()
                raise
            return talk

    async def aclose(self) -> None:
        """End the program. It is started again when needed."""
        async with self._starting:
            await self._leave()

    async def _leave(self) -> None:
        talk, self._talk = self._talk, None
        if talk is not None:
            await talk.end(ProviderUnavailable(f"{self._name}: its program was ended"))

    def _check_often(self) -> None:
        now = time.monotonic()
        if len(self._starts) == _STARTS and now - self._starts[0] < _WITHIN:
            raise ProviderFailed(
                f"{self._name}: its program ended {_STARTS} times within {_WITHIN:g}s and is left alone for a while",
                hint=self._hint,
            )
        self._starts.append(now)

    async def _start(self) -> Talk:
        await anyio.to_thread.run_sync(lambda: self._state.mkdir(parents=True, exist_ok=True, mode=0o700))
        stack = AsyncExitStack()
        try:
            stream = await stack.enter_async_context(attached([os.fsencode(word) for word in self._command], self._env))
        except OSError as error:
            raise ProviderUnavailable(
                f"{self._name}: its program {self._command[0]} cannot be started: {error.strerror}",
                hint="its command in the settings names a program by its absolute path",
            ) from error
        return Talk(self._name, stream, stack.aclose, self._settings.silence, self._hint, self._mask)

    async def _hello(self, talk: Talk) -> wire.Hello:
        fields: dict[str, object] = {"protocol": wire.PROTOCOL, "name": self._name, "state": str(self._state)}
        return await talk.ask("hello", wire.Hello, fields, self._settings.request_timeout)

    def _greet(self, hello: wire.Hello) -> None:
        if hello.protocol != wire.PROTOCOL:
            raise self._bad(f"it speaks version {hello.protocol} of the protocol, and not {wire.PROTOCOL}")
        can = hello.capabilities
        for what, path in (("home", can.home), ("session", can.session)):
            if not path.startswith("/") or "\0" in path:
                raise self._bad(f"its {what} is {path[:80]!r}, not an absolute path")
        self._greeted(hello)

    def _bad(self, why: str) -> ProviderError:
        return ProviderBadAnswer(f"{self._name}: {why}", hint=self._hint)
