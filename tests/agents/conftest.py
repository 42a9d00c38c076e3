"""Fixtures that run the real agent programs on this host."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest

from hiveyard.images.images import Images
from hiveyard.paths import default_paths
from tests.agents.real import REAL, HostYard, find_programs, host_yard
from tests.support.leaks import searched_directory

_MODULES = "usr/local/lib/node_modules"
_CODEX = f"{_MODULES}/@openai/codex/node_modules/@openai/codex-linux-*/vendor/*/bin"
# Image and place. The second program of codex is looked for beside the first.
_IN_IMAGE = {
    "claude": ("default", f"{_MODULES}/@anthropic-ai/claude-code/bin/claude.exe"),
    "opencode": ("default", f"{_MODULES}/opencode-ai/bin/opencode.exe"),
    "codex": ("codex", f"{_CODEX}/codex"),
    "codex-code-mode-host": ("codex", f"{_CODEX}/codex-code-mode-host"),
    "goose": ("goose", f"{_MODULES}/@aaif/goose-acp/node_modules/@aaif/goose-binary-linux-*/bin/goose"),
}


@pytest.fixture(scope="session")
async def programs() -> AsyncIterator[Mapping[str, Path]]:
    """The agent programs: those of `$HIVEYARD_AGENT_PROGRAMS` (directories) or PATH, else those of the images."""
    found = find_programs()
    if set(found) >= set(REAL):
        yield found
        return
    images = Images(default_paths().cache)
    # Not below pytest's own directory, which is closed to the user that the agents run as.
    with searched_directory(prefix="hv-programs-", dir="/tmp") as scratch:
        Path(scratch).chmod(0o755)
        for name, (image, member) in _IN_IMAGE.items():
            _take_out((await images.ensure(image)).rootfs, member, Path(scratch) / name)
        yield {name: Path(scratch) / name for name in _IN_IMAGE}


def _take_out(rootfs: Path, member: str, into: Path) -> None:
    with into.open("wb") as file:
        argv = ["tar", "-xOf", str(rootfs), "--wildcards", f"./{member}"]
        subprocess.run(argv, stdout=file, check=True)
    into.chmod(0o755)


@pytest.fixture
async def yard(programs: Mapping[str, Path], request: pytest.FixtureRequest) -> AsyncIterator[HostYard]:
    """Where real programs run: a network namespace of their own on this host, as a user who owns nothing."""
    if os.geteuid() != 0 or not all(shutil.which(tool) for tool in ("unshare", "setpriv", "ip", "git")):
        _give_up("needs root, unshare, setpriv and ip")
    root = Path("/tmp") / f"hv-yard-{os.getpid()}-{abs(hash(request.node.name)) % 10**8}"
    try:
        async with host_yard(root, programs) as place:
            yield place
    finally:
        shutil.rmtree(root, ignore_errors=True)


def _give_up(reason: str) -> None:
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)
