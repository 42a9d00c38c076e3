"""`make demo`: the main job with the embedded defaults. No key, no cloud, no KVM.

The agent is the real one; what its model answers comes from demo/tape.jsonl.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import anyio
import click

from demo.record import HERE, PROMPT, sample
from hiveyard.cli.problems import report_errors
from hiveyard.cli.show import money, span, tokens
from hiveyard.core.commands import Command
from hiveyard.core.machines import Image, MachineSpec, Shape
from hiveyard.core.ports import Provider
from hiveyard.images.images import Images
from hiveyard.kit.files import write_atomic
from hiveyard.machines.docker.provider import DockerProvider
from hiveyard.machines.docker.settings import DockerSettings
from hiveyard.machines.qemu.host import version
from hiveyard.machines.qemu.provider import QemuProvider
from hiveyard.machines.qemu.settings import QemuSettings
from hiveyard.paths import default_paths

TESTS = [
    "-m",
    "Run the tests.",
    "--provider",
    "qemu",
    "--command",
    "python3 -m unittest 2>&1 | tail -n 3; exit ${PIPESTATUS[0]}",
]


class Start(NamedTuple):
    """Seconds from asking for a machine to having it, and to the end of its first command."""

    ready: float
    first: float


def main() -> int:
    started = time.monotonic()
    # Before the image, which takes minutes.
    anyio.run(version, QemuSettings().program)
    cache = default_paths().cache
    with tempfile.TemporaryDirectory(prefix="hv-demo-") as scratch, _yard(Path(scratch), cache) as env:
        image, fork, cold, docker = anyio.run(_machines, Path(scratch), cache)
        repo = sample(Path(scratch))

        _title("A repository whose test fails, in a fork of that VM")
        failing = _hv(env, "run", str(repo), *TESTS) != 0

        _title(f'hv run shop -m "{PROMPT}"   (the real {image.programs["claude"]}, its model on a tape)')
        tape = str(HERE / "tape.jsonl")
        mended = (
            _hv(env, "run", str(repo), "-m", PROMPT, "--provider", "qemu", "--agent", "claude", "--tape", tape) == 0
        )
        if not mended:
            return 1
        report = json.loads(_answer(env, "show", "make-the-failing-test-pass-and"))
        _title("hv diff, hv apply")
        _hv(env, "diff", report["id"])
        _hv(env, "apply", report["id"])
        subprocess.run(["git", "-C", str(repo), "log", "--oneline", "--graph", "--all"], check=True)

        _title("The same test on the new branch, in another fork")
        passing = _hv(env, "run", str(repo), *TESTS, "--base", report["branch"]) == 0
        _table(cold, fork, docker, report, time.monotonic() - started)
    return 0 if failing and passing else 1


async def _machines(scratch: Path, cache: Path) -> tuple[Image, Start, Start, Start | None]:
    """Make the image and the template; measure a fork, a cold boot and, where there is an engine, a container."""
    _title("An image, and a VM booted once and frozen with its memory (cached for the next time)")
    image = await Images(cache).ensure("default", _say)
    qemu = QemuProvider(state=scratch / "fork", cache=cache / "qemu", settings=QemuSettings())
    await qemu.prepare(image, Shape(), _say)
    _say((await qemu.readiness()).detail)
    fork = await _start(qemu, image)
    _say(f"a fork of it ran its first command {span(fork.first)} after it was asked for")
    return image, fork, await _cold(scratch, cache, image), await _container(scratch, image)


async def _start(provider: Provider, image: Image) -> Start:
    name = "hv-demo"
    begun = time.monotonic()
    try:
        await provider.boot(name, MachineSpec(image=image))
        ready = time.monotonic() - begun
        async with provider.guest(name) as guest:
            await guest.run(Command(argv=("true",)))
        return Start(ready, time.monotonic() - begun)
    finally:
        await provider.terminate(name)


async def _cold(scratch: Path, cache: Path, image: Image) -> Start:
    """How long the same image takes to boot from the start: measured once, and remembered in the cache."""
    file = cache / "demo" / f"{image.id}.json"
    if file.exists():
        return Start(*json.loads(file.read_text()))
    _say("booting the same image from the start, to compare (once)")
    whole = QemuProvider(state=scratch / "cold", cache=cache / "qemu", settings=QemuSettings(templates=False))
    await whole.prepare(image, Shape())
    start = await _start(whole, image)
    write_atomic(file, json.dumps(start).encode())
    return start


async def _container(scratch: Path, image: Image) -> Start | None:
    docker = DockerProvider(state=scratch / "docker", settings=DockerSettings())
    if not (await docker.readiness()).ok:
        return None
    _say("importing the image into the container engine, to compare")
    await docker.prepare(image, Shape(), _say)
    return await _start(docker, image)


@contextmanager
def _yard(scratch: Path, cache: Path) -> Iterator[dict[str, str]]:
    """The environment of an installation of the demo's own; its daemon and machines end with the block."""
    env = {**os.environ, "HIVEYARD_HOME": str(scratch / "home"), "HIVEYARD_CACHE": str(cache)}
    try:
        yield env
    finally:
        for task in json.loads(_answer(env, "ps", "-a") or "[]"):
            _answer(env, "rm", "-f", task["id"])
        _answer(env, "stop-daemon")


def _hv(env: dict[str, str], *words: str) -> int:
    return subprocess.run([sys.executable, "-m", "hiveyard.cli.main", *words], env=env).returncode


def _answer(env: dict[str, str], *words: str) -> str:
    argv = [sys.executable, "-m", "hiveyard.cli.main", *words, "--json"]
    return subprocess.run(argv, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout


def _table(cold: Start, fork: Start, docker: Start | None, report: dict[str, Any], total: float) -> None:
    timings = report["timings"]
    rows = [
        ("cold boot to the first command", span(cold.first), "the same image and size, from the start"),
        ("fork to the machine", span(fork.ready), ""),
        ("fork to the first command", span(fork.first), f"{cold.first / fork.first:.0f} times faster than a cold boot"),
        (
            "docker run to the first command",
            span(docker.first) if docker else "-",
            "the same image" if docker else "no container engine runs here",
        ),
        ("the agent's turn", span(timings["agent"]), f"{tokens(report['usage'])}, {money(report['usage'])}"),
        ("hv run, from request to result", span(timings["total"]), ""),
        ("this demo", span(total), ""),
    ]
    _title("What it took")
    for name, value, note in rows:
        click.echo(f"  {name:<32} {value:>8}   {note}".rstrip())


def _title(text: str) -> None:
    click.secho(f"\n== {text}", bold=True)


def _say(line: str) -> None:
    click.secho(f"· {line}", dim=True)


if __name__ == "__main__":
    sys.exit(report_errors(main))
