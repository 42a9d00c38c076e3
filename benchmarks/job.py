"""The whole main job by phases: `hv run` with an agent that is one command, from request to branch and patch.

    python -m benchmarks.job [--json] [--n N] [--image REF] [--provider NAME]...

The agent takes no time of its own, so what is measured is what Hiveyard adds to an agent's work. The floor is the same
work by hand on the host: clone, one command, commit, patch. The first run of each provider, which may have to make a
template, does not count.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

from benchmarks._figures import Figure, Figures
from benchmarks._timed import Timed, tell
from benchmarks._yard import Yard, yard

PROVIDERS = ("bubblewrap", "qemu")
EDIT = "sed -i s/return/yield/ module_000.py && echo new > new.txt"


class Jobs:
    """The runs on one provider: each phase's times, and those of the whole process."""

    def __init__(self, provider: str, image: str) -> None:
        self.provider = provider
        self.whole = Timed(f"{provider}: hv run, whole process")
        self._image = image
        self._phases: dict[str, Timed] = {}

    def once(self, home: Yard, repo: Path, *, counts: bool) -> None:
        asked = ("run", str(repo), "-m", "bench", "--command", EDIT)
        begun = time.perf_counter()
        task = home.json(*asked, "--provider", self.provider, "--image", self._image)
        took = time.perf_counter() - begun
        if "id" in task:
            home.hv("rm", task["id"])
        if task.get("commits") != 1:
            error = task.get("error") or {}
            tell(f"{self.provider}: {error.get('code')}: {error.get('message', 'no commit')}")
            self.whole.failures += 1
        elif counts:
            self.whole.seconds.append(took)
            for phase, seconds in task["timings"].items():
                self._phases.setdefault(phase, Timed(f"  {phase}")).seconds.append(seconds)

    def show(self, figures: Figures) -> Figure:
        whole = self.whole.show(figures)
        for timed in self._phases.values():
            timed.show(figures)
        return whole


def by_hand(home: Yard, repo: Path, into: Timed) -> None:
    copy = home.root / "copy"
    who = ("-c", "user.name=Bench", "-c", "user.email=bench@localhost")
    begun = time.perf_counter()
    for argv in (
        ("git", "clone", "--quiet", str(repo), str(copy)),
        ("git", "-C", str(copy), "switch", "--quiet", "--create", "work"),
        ("sh", "-c", f"cd '{copy}' && {EDIT}"),
        ("git", "-C", str(copy), "add", "--all"),
        ("git", "-C", str(copy), *who, "commit", "--quiet", "--message", "work"),
        ("git", "-C", str(copy), "diff", "--binary", f"--output={home.root / 'patch'}", "HEAD^", "HEAD"),
    ):
        subprocess.run(argv, check=True, stdin=subprocess.DEVNULL)
    into.seconds.append(time.perf_counter() - begun)
    subprocess.run(["rm", "-rf", str(copy)], check=True)


def measure(home: Yard, providers: list[str], image: str, n: int) -> Figures:
    repo = home.repository()
    floor = Timed("the same by hand on the host (floor)")
    every = [Jobs(provider, image) for provider in providers]
    for jobs in every:
        tell(f"a first run on {jobs.provider}, not counted")
        jobs.once(home, repo, counts=False)
    for _ in range(n):
        by_hand(home, repo, floor)
        for jobs in every:
            jobs.once(home, repo, counts=True)
    figures = Figures("job")
    least = floor.show(figures)
    for jobs in every:
        whole = jobs.show(figures)
        figures.ratio(f"{jobs.provider} / floor", whole, least)
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure the whole main job.")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--n", type=int, default=10, help="how often it is done on each provider")
    parser.add_argument("--image", default="default", help="recipe or image")
    parser.add_argument("--provider", action="append", help=f"instead of {' and '.join(PROVIDERS)}")
    options = parser.parse_args()
    with yard() as home:
        figures = measure(home, options.provider or list(PROVIDERS), options.image, options.n)
    figures.show(as_json=options.json)
    return figures.status


if __name__ == "__main__":
    sys.exit(main())
