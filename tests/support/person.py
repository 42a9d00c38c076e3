"""A person at a terminal: a real pseudo-terminal with a program on it, and a screen that shows what it shows."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import signal
import struct
import subprocess
import termios
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pyte

PATIENCE = 60.0


class _Screen(pyte.Screen):
    """pyte does not know that some sequences come in a private form, too."""

    def select_graphic_rendition(self, *attrs: int, **_: Any) -> None:
        super().select_graphic_rendition(*attrs)

    def report_device_status(self, mode: int, **_: Any) -> None:
        super().report_device_status(mode)


class Person:
    """`raw` is all that was ever shown, `screen` what stands there now."""

    def __init__(self, master: int, process: subprocess.Popen[bytes], rows: int, columns: int) -> None:
        self.raw = b""
        self.process = process
        self._master = master
        self._screen = _Screen(columns, rows)
        self._stream = pyte.ByteStream(self._screen)
        self._news = anyio.Event()

    @property
    def screen(self) -> str:
        return "\n".join(line.rstrip() for line in self._screen.display)

    def type(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def resize(self, rows: int, columns: int) -> None:
        self._screen.resize(rows, columns)
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def modes(self) -> list[Any]:
        """The terminal's settings."""
        return termios.tcgetattr(self._master)[:4]

    async def sees(self, text: str) -> None:
        """Wait until `text` stands on the screen."""
        await self._until(lambda: text in self.screen, f"{text!r} to be seen")

    async def sees_no(self, text: str) -> None:
        await self._until(lambda: text not in self.screen, f"{text!r} to go away")

    async def gets(self, codes: bytes) -> None:
        """Wait until the terminal was sent these, which need not be seen."""
        await self._until(lambda: codes in self.raw, f"{codes[:80]!r}")

    async def _until(self, true: Any, what: str) -> None:
        with anyio.move_on_after(PATIENCE):
            while not true():
                await self._news.wait()
            return
        raise AssertionError(f"waited for {what}; the screen is\n{self.screen}")

    async def leaves(self) -> int:
        """Wait for the program's end; its exit code."""
        with anyio.fail_after(PATIENCE):
            while self.process.poll() is None:  # noqa: ASYNC110
                await anyio.sleep(0.02)
        return int(self.process.returncode)

    async def _watch(self) -> None:
        while True:
            await anyio.wait_readable(self._master)
            try:
                piece = os.read(self._master, 1 << 16)
            except OSError:
                piece = b""
            if not piece:
                return
            self.raw += piece
            self._stream.feed(piece)
            self._news.set()
            self._news = anyio.Event()


@asynccontextmanager
async def person(
    argv: Sequence[str], *, rows: int = 24, columns: int = 80, env: Mapping[str, str] | None = None
) -> AsyncIterator[Person]:
    """Somebody who runs `argv`; at the end of the block their terminal goes away."""
    master, slave = pty.openpty()
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    process = subprocess.Popen(  # noqa: ASYNC220
        ["setsid", "--ctty", "--wait", *argv], stdin=slave, stdout=slave, stderr=slave, env=env, start_new_session=True
    )
    try:
        async with anyio.create_task_group() as group:
            somebody = Person(master, process, rows, columns)
            group.start_soon(somebody._watch)
            yield somebody
            group.cancel_scope.cancel()
    finally:
        os.close(slave)
        anyio.notify_closing(master)
        os.close(master)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
