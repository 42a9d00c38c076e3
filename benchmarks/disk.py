"""Measure the disk space of sessions of one image: the first with its image, and many more that stand on the same.

    python -m benchmarks.disk [--json] [--sessions N] [--image REF] [--provider NAME]...

Each is a run that is kept, with its machine, its clone and what it wrote. The floor of one is its clone made by hand.
Holes take nothing, and blocks that files share count once.
"""

from __future__ import annotations

import argparse
import subprocess
import sys

import anyio

from benchmarks._figures import Figure, Figures
from benchmarks._providers import opened
from benchmarks._timed import tell
from benchmarks._yard import Yard, yard
from hiveyard.core.ports import HasStorage
from hiveyard.images.images import Images
from hiveyard.kit.disk_usage import Measure
from hiveyard.paths import default_paths

PROVIDERS = ("bubblewrap", "qemu")
WRITTEN = 1 << 20
WRITE = f"head -c {WRITTEN} /dev/urandom > written"
# Kept machines count with the memory that they are promised; these do nothing, and use little of it.
CONFIG = "[engine]\nmemory_total_mib = 1048576\n"


class Sessions:
    """Runs of one installation on one provider, all kept."""

    def __init__(self, home: Yard, provider: str, image: str) -> None:
        self.home = home
        self.provider = provider
        self.failures = 0
        self._image = image
        self._repo = home.repository()
        self.clone = self._cloned()

    def add(self) -> None:
        where = ("--provider", self.provider, "--image", self._image, "--keep")
        task = self.home.json("run", str(self._repo), "-m", "bench", "--command", WRITE, *where)
        if task.get("status") != "completed":
            error = task.get("error") or {}
            tell(f"{self.provider}: {error.get('code')}: {error.get('message', task.get('status'))}")
            self.failures += 1

    def taken(self) -> float:
        """MiB of all of them, with their machines and the journal."""
        return Measure().tree(self.home.home) / (1 << 20)

    async def stand_on(self) -> float:
        """MiB of the image, and of what the provider made of it."""
        image = await Images(default_paths().cache).ensure(self._image, tell)
        measure = Measure()
        taken = measure.tree(image.rootfs.parent)
        async with opened(self.provider, self.home.root / "state") as provider:
            if isinstance(provider, HasStorage):
                for held in await provider.stored_items():
                    if held.kind == "made" and held.image == image.id and held.place is not None:
                        taken += measure.tree(held.place)
        return taken / (1 << 20)

    def _cloned(self) -> float:
        copy = self.home.root / "copy"
        subprocess.run(["git", "clone", "--quiet", "--no-local", str(self._repo), str(copy)], check=True)
        (copy / "written").write_bytes(bytes(WRITTEN))
        return Measure().tree(copy) / (1 << 20)


def measure(figures: Figures, provider: str, image: str, count: int) -> None:
    with yard(CONFIG) as home:
        sessions = Sessions(home, provider, image)
        sessions.add()
        shared, first = anyio.run(sessions.stand_on), sessions.taken()
        for _ in range(count - 1):
            sessions.add()
        every = sessions.taken()

        def mib(name: str, n: int, value: float) -> Figure:
            return figures.mib(f"{provider}: {name}", value, n=n, failures=sessions.failures)

        mib("the image, and what was made of it", 1, shared)
        one = mib("one session and the image", 1, shared + first)
        many = mib(f"{count} sessions and the image", count, shared + every)
        figures.ratio(f"{provider}: {count} / one", many, one, aim="3 or less")
        own = mib("one session more", count - 1, (every - first) / (count - 1))
        floor = mib("its clone and what it wrote (floor)", 1, sessions.clone)
        figures.ratio(f"{provider}: one session more / floor", own, floor)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--sessions", type=int, default=20)
    parser.add_argument("--image", default="default", help="recipe or image")
    parser.add_argument("--provider", action="append", help=f"instead of {' and '.join(PROVIDERS)}")
    options = parser.parse_args()
    if options.sessions < 2:
        parser.error(f"--sessions is {options.sessions}: it takes two to share something")
    figures = Figures("disk")
    for provider in options.provider or PROVIDERS:
        measure(figures, provider, options.image, options.sessions)
    figures.show(as_json=options.json)
    return figures.status


if __name__ == "__main__":
    sys.exit(main())
