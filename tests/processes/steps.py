"""Steps that the tests of process managers share."""

from __future__ import annotations

from contextlib import aclosing

import anyio

from hiveyard.core.commands import Command, ProcessInfo, ProcessSpec
from hiveyard.core.ports import Guest, ProcessManager

PATIENCE = 60.0


def spec(name: str, script: str, **options: object) -> ProcessSpec:
    return ProcessSpec(name=name, command=Command(shell=script), **options)  # type: ignore[arg-type]


async def ended(manager: ProcessManager, guest: Guest, name: str) -> ProcessInfo:
    """Wait for its end by following it, as the engine does."""
    with anyio.fail_after(PATIENCE):
        async for _ in manager.follow(guest, name):
            pass
    return await manager.get(guest, name)


async def output(manager: ProcessManager, guest: Guest, name: str, stream: str = "stdout", offset: int = 0) -> bytes:
    with anyio.fail_after(PATIENCE):
        return b"".join([piece async for piece in manager.follow(guest, name, stream=stream, offset=offset)])


async def processes_with(guest: Guest, word: str) -> int:
    """How many processes of the guest have `word` in their command line."""
    # The word reaches the guest in two pieces, so that the one who counts is not counted.
    count = 'n=0; for c in /proc/[0-9]*/cmdline; do [[ $(tr "\\0" " " <$c) == *"$1$2"* ]] && ((n++)); done; echo $n'
    argv = ("bash", "-c", count, "count", word[:3], word[3:])
    said = await guest.run(Command(argv=argv), timeout=PATIENCE)
    return int(said.stdout)


async def until_gone(guest: Guest, word: str) -> None:
    with anyio.fail_after(PATIENCE):
        while await processes_with(guest, word):  # noqa: ASYNC110 - what is waited for is in another machine
            await anyio.sleep(0.1)


async def until_output(manager: ProcessManager, guest: Guest, name: str, wanted: bytes) -> None:
    """Wait until the process has written this, and no more than this."""
    got = b""
    with anyio.fail_after(PATIENCE):
        async with aclosing(manager.follow(guest, name)) as pieces:  # type: ignore[type-var]
            while len(got) < len(wanted):
                got += await anext(pieces)
    assert got == wanted
