"""Run a daemon with few file descriptors and two doors: `python flooded.py DIRECTORY`. For each line on its standard
input it does the work of a daemon, and prints the outcome."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import anyio

from hiveyard.core.events import DoorEvent, Notice
from hiveyard.door.descriptors import raise_limit
from hiveyard.door.doors import Doors
from hiveyard.door.keys import Keys
from hiveyard.door.settings import DoorSettings
from hiveyard.kit import event_loop
from hiveyard.kit.secret import Secret


async def serve(directory: Path) -> None:
    async def record(_session: str, _turn: int | None, _event: DoorEvent | Notice) -> None: ...

    async with Doors(DoorSettings(head_seconds=60.0), Keys({}), record) as doors:
        one = doors.open(session="s1", directory=directory / "1", placeholder=Secret("hv-1-Zq8TestSecret"))
        other = doors.open(session="s2", directory=directory / "2", placeholder=Secret("hv-2-Zq8TestSecret"))
        async with one, other:
            print("open", resource.getrlimit(resource.RLIMIT_NOFILE)[0], flush=True)
            while await anyio.to_thread.run_sync(sys.stdin.readline):
                print(await work(directory / "file"), flush=True)


async def work(file: Path) -> str:
    try:
        file.write_text("x")
        await anyio.run_process(["true"])
    except OSError as error:
        return str(error)
    return "done"


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, 300))
    raise_limit()
    anyio.run(serve, Path(sys.argv[1]), backend_options=event_loop.OPTIONS)
