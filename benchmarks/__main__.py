"""All measurements in one run on one machine, one after the other: `make bench`.

    python -m benchmarks [--json] [--quick] [NAME]...

A benchmark that fails is told, and the others go on; the exit code is 1 then. Figures go to stdout, progress to stderr.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import anyio

from benchmarks._providers import PROVIDERS, opened
from benchmarks._timed import tell
from hiveyard.core.errors import HiveyardError


class Benchmark(NamedTuple):
    """A benchmark: its subject, and the options that make it short."""

    about: str
    quick: tuple[str, ...]


BENCHMARKS = {
    "machines": Benchmark("from nothing to the first command", ("--cold", "1", "--forks", "5")),
    "forks": Benchmark("forking a VM that is in the middle of something", ("--children", "2")),
    "live": Benchmark("forking a real agent in the middle of a turn", ("--children", "1")),
    "exec": Benchmark("one round trip into a machine", ("--n", "30")),
    "journal": Benchmark("events to disk and to readers", ()),
    "line": Benchmark("a thousand tasks that wait for a place", ("--tasks", "100")),
    "door": Benchmark("what the way to a model adds", ("--requests", "200")),
    "cli": Benchmark("calls of hv as whole processes", ("--n", "10")),
    "disk": Benchmark("what sessions of one image take on a disk", ("--sessions", "3")),
    "work": Benchmark("work on a repository of 20,000 files", ("--n", "1", "--files", "2000")),
    "job": Benchmark("the main job by phases", ("--n", "3")),
}


def run(name: str, options: argparse.Namespace) -> tuple[int, dict[str, Any] | None]:
    """One benchmark in a process of its own: its exit code, and its figures when JSON was asked for."""
    argv = [sys.executable, "-m", f"benchmarks.{name}"]
    argv += BENCHMARKS[name].quick if options.quick else ()
    if not options.json:
        print(f"\n-- {BENCHMARKS[name].about}", flush=True)
        return subprocess.run(argv, stdin=subprocess.DEVNULL).returncode, None
    done = subprocess.run([*argv, "--json"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    return done.returncode, json.loads(done.stdout) if done.stdout.strip() else None


async def about(scratch: Path) -> dict[str, Any]:
    """The host. Figures of two hosts, or of one under two loads, do not compare."""
    found: dict[str, Any] = {
        "processor": _processor(),
        "cpus": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30), 1),
        "load": round(os.getloadavg()[0], 1),
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }
    for name in PROVIDERS:
        if name == "docker" and not shutil.which("docker"):
            continue
        try:
            async with opened(name, scratch / name) as provider:
                found[name] = (await provider.readiness()).detail
        except (HiveyardError, OSError) as error:
            found[name] = str(error)
    return found


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"some of: {', '.join(BENCHMARKS)}")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help="few repetitions: a look, not a measurement")
    options = parser.parse_args()
    if unknown := set(options.names) - set(BENCHMARKS):
        parser.error(f"there is no benchmark {', '.join(sorted(unknown))}; there are {', '.join(BENCHMARKS)}")
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="hv-") as scratch:
        host = anyio.run(about, Path(scratch))
    if not options.json:
        for name, value in host.items():
            print(f"{name:<12} {value}")
    figures, failed = [], []
    for name in options.names or BENCHMARKS:
        status, found = run(name, options)
        figures += [found] if found else []
        if status:
            failed.append(name)
            tell(f"{name} failed with exit code {status}")
    seconds = round(time.monotonic() - begun, 1)
    if options.json:
        print(json.dumps({"host": host, "seconds": seconds, "failed": failed, "benchmarks": figures}, indent=2))
    else:
        print(f"\n{seconds:.0f} s" + (f"; failed: {', '.join(failed)}" if failed else ""))
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
