"""Measure one round trip into a machine, on each provider.

    python -m benchmarks.exec [--json] [--n N] [--image REF] [--provider NAME]...

All machines are of one image and up at the same time; each verb is done in turn with the others and with the floor, a
plain fork and exec of `true` on the host, so that noise hits all. A provider that does not work here is left out.
"""

from __future__ import annotations

import argparse
import secrets
import sys
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path

import anyio

from benchmarks._figures import Figures
from benchmarks._providers import PROVIDERS, opened
from benchmarks._timed import Timed, tell
from hiveyard.core.commands import Command
from hiveyard.core.errors import HiveyardError
from hiveyard.core.machines import Image, MachineSpec, Shape
from hiveyard.core.ports import Guest
from hiveyard.images.images import Images
from hiveyard.kit import process
from hiveyard.kit.names import new_id
from hiveyard.paths import default_paths

TRUE = Command(argv=("true",))
MIB = 1 << 20
FILE = "/session/file"


async def floor() -> None:
    await process.run(["/bin/true"])


def verbs(provider: str, guest: Guest) -> list[Timed]:
    data = secrets.token_bytes(MIB)
    return [
        Timed(f"{provider}: run true", lambda: guest.run(TRUE)),
        Timed(f"{provider}: write 1 MiB, atomic and verified", lambda: guest.write_atomic(FILE, data)),
        Timed(f"{provider}: read 1 MiB", lambda: guest.read(FILE)),
        Timed(f"{provider}: exists", lambda: guest.exists(FILE)),
    ]


async def machine(stack: AsyncExitStack, name: str, image: Image, scratch: Path) -> Guest:
    """A machine of this provider, up for as long as the stack is open."""
    provider = await stack.enter_async_context(opened(name, scratch / name))
    await provider.prepare(image, Shape(), tell)
    session, called = scratch / name / "session", f"b-{new_id()}"
    session.mkdir(parents=True, exist_ok=True)
    stack.push_async_callback(provider.terminate, called)
    await provider.boot(called, MachineSpec(image=image, session=session))
    return await stack.enter_async_context(provider.guest(called))


async def measure(scratch: Path, options: argparse.Namespace) -> Figures:
    image = await Images(default_paths().cache).ensure(options.image, tell)
    figures = Figures("exec")
    least, trips = Timed("fork and exec of true on the host (floor)", floor), dict[str, list[Timed]]()
    async with AsyncExitStack() as stack:
        for name in options.provider or PROVIDERS:
            try:
                trips[name] = verbs(name, await machine(stack, name, image, scratch))
            except HiveyardError as error:
                tell(f"{name} is left out: {error.message}; {error.hint}")
        rounds = [least, *(timed for ours in trips.values() for timed in ours)]
        for number in range(options.n + 5):
            for timed in rounds:
                await timed.once()
                if number < 5:  # the first ones find caches cold
                    timed.seconds.clear()
    under = least.show(figures)
    for name, ours in trips.items():
        run, *_ = [timed.show(figures) for timed in ours]
        figures.ratio(f"{name}: run true / floor", run, under)
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure round trips into machines.")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--n", type=int, default=200, help="how often each verb is done")
    parser.add_argument("--image", default="default", help="recipe or image")
    parser.add_argument("--provider", action="append", choices=PROVIDERS, help="instead of all")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="hv-") as scratch:
        figures = anyio.run(measure, Path(scratch), options)
    figures.show(as_json=options.json)
    return figures.status


if __name__ == "__main__":
    sys.exit(main())
