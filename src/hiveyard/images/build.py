"""Build one image: make a tar of a root filesystem from a recipe, in a directory that the caller provides.

mmdebstrap installs the Debian packages and runs our steps inside by its hooks. It works in namespaces of its own, which
end with this process. So a killed build leaves no process and no mount, only files, which `sweep` removes.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import stat
import subprocess
import tarfile
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import IO, NamedTuple

import anyio
import anyio.to_thread
from anyio.abc import Process

from hiveyard.core.errors import ImageBuildFailed, NoSpace, ProviderUnavailable
from hiveyard.core.machines import Report
from hiveyard.images import node, script
from hiveyard.images.host import HostNetwork, host_network
from hiveyard.images.recipe import Recipe
from hiveyard.kit import files, process
from hiveyard.kit.lines import LineSplitter
from hiveyard.kit.text import decode, one_line

REQUIRED = 4 << 30
"""Bytes that a build may need at most: the files, the tar and the downloads together."""

_SILENCE = 10.0  # seconds without a report before a report says that the step still runs
_ELSEWHERE = "elsewhere"  # a file in a build's directory with the path of its other directory
_REMOVAL = 300.0  # time limit in seconds for a program that removes files of a namespace
_BOUND = 'exec 3<&0; (cat; kill -KILL 0) <&3 >/dev/null 2>&1 & exec "$@" </dev/null 3<&-'
"""Runs a program whose process group ends when its stdin is closed. The kernel reports a parent's death to the first
process only, but a user may kill the processes in their own namespaces."""

_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_VERSION = re.compile(r"\d+(?:\.\d+)+[0-9A-Za-z.+-]*")


class Built(NamedTuple):
    """The result of a build: the tar, the versions of the recipe's programs, and those of all packages."""

    rootfs: Path
    programs: dict[str, str]
    resolved: dict[str, str]


async def build(recipe: Recipe, directory: Path, log: Path, report: Report) -> Built:
    """Make `directory/rootfs.tar`. The output of all programs is written to `log`. Afterwards the caller removes files
    in other places with `sweep`.

    Raises ProviderUnavailable if the host lacks a tool, NoSpace, ImageBuildFailed."""
    check_tools()
    check_space(directory)
    network = await host_network(recipe.suite)
    work = _work(directory)
    await _prepare(recipe, network, work, report)
    rootfs = directory / "rootfs.tar"
    progress = _Progress(report)
    with log.open("wb") as lines:
        argv = _mmdebstrap(recipe, network, work)
        report(f"fetching Debian {recipe.suite}")
        status = await _run(argv, _environment(network, work), rootfs, lines, progress)
    if status != 0:
        raise _failure(progress, log, work)
    await anyio.to_thread.run_sync(_add_dev, rootfs)
    return Built(rootfs, progress.programs, progress.resolved)


def check_tools() -> None:
    """Raise ProviderUnavailable with the packages to install if a tool is missing."""
    required = {"mmdebstrap": "mmdebstrap", "bwrap": "bubblewrap", "tar": "tar", "unshare": "util-linux"}
    if os.geteuid() != 0:
        required["newuidmap"] = "uidmap"
    missing = [package for tool, package in required.items() if not shutil.which(tool)]
    if not _KEYRING.exists():
        missing.append("debian-archive-keyring")
    if missing:
        raise ProviderUnavailable(
            f"building an image needs {', '.join(missing)}", hint=f"sudo apt-get install -y {' '.join(missing)}"
        )


def check_space(directory: Path) -> None:
    """Raise NoSpace if there is too little space for a build."""
    free = shutil.disk_usage(directory).free
    if free < REQUIRED:
        raise NoSpace(
            f"building an image needs {REQUIRED >> 30} GiB under {directory}, {free / (1 << 30):.1f} GiB are free",
            hint=f"df -h {directory}",
        )


def _work(directory: Path) -> Path:
    """Return the directory for the build's own files. Without root, mmdebstrap runs as another user, who needs access
    to it."""
    if os.geteuid() == 0:
        return directory
    place = Path(tempfile.gettempdir(), _name(directory))
    # The record is written first: if this process is killed here, a directory without a record would never be found.
    files.write_atomic(directory / _ELSEWHERE, bytes(place))
    place.mkdir(mode=0o700)
    check_space(place)
    place.chmod(0o755)
    return place


def _name(directory: Path) -> str:
    return "hiveyard-build-" + directory.name.rpartition("-")[2]


async def sweep(directory: Path) -> None:
    """Remove the files in other places of the build that used `directory`, which has the only record of them.

    Raises ImageBuildFailed if something cannot be removed."""
    place = _elsewhere(directory)
    if place is None:
        return
    remove = partial(shutil.rmtree, place, ignore_errors=True)
    await anyio.to_thread.run_sync(remove)
    errors = [await _remove_within(root) for root in place.glob("mmdebstrap.*")]
    await anyio.to_thread.run_sync(remove)
    if place.exists():
        raise ImageBuildFailed(
            f"the remains of a build in {place} cannot be removed: {'; '.join(filter(None, errors)) or 'in use'}",
            hint=f"mmdebstrap --unshare-helper rm -rf {shlex.quote(str(place))}/mmdebstrap.*",
        )


def _elsewhere(directory: Path) -> Path | None:
    record = directory / _ELSEWHERE
    try:
        place = Path(os.fsdecode(record.read_bytes()))
        if not place.is_absolute() or place.name != _name(directory):
            raise ImageBuildFailed(f"{record} does not name the directory of a build: {place}", hint=f"cat {record}")
        about = place.lstat()
    except FileNotFoundError:
        return None
    # Every user may write to its parent directory: use only a directory of this user, and follow no link.
    return place if stat.S_ISDIR(about.st_mode) and about.st_uid == os.geteuid() else None


async def _remove_within(root: Path) -> str:
    """Remove files that belong to users of a namespace, as one of them. Return the error, if any."""
    try:
        done = await process.run(["mmdebstrap", "--unshare-helper", "rm", "-rf", str(root)], timeout=_REMOVAL)
    except OSError as error:
        return repr(error)
    return one_line(done.error_output(), 600)


async def _prepare(recipe: Recipe, network: HostNetwork, work: Path, report: Report) -> None:
    if recipe.node:
        report(f"fetching Node {recipe.node}")
        await node.fetch(recipe.node, work)
    steps = work / "files" / "steps"
    steps.mkdir(parents=True)
    for number, step in enumerate(script.steps(recipe)):
        (steps / f"{number:03}").write_text(script.text_of(step, recipe))
    if network.certificates:
        shutil.copyfile(network.certificates, work / "files" / "certificates.pem")
    hook = script.after_packages(str(work), dict(network.proxies), certificates=network.certificates is not None)
    for name, text in (("before", script.before_packages()), ("after", hook)):
        (work / name).write_text(text)
        (work / name).chmod(0o755)
    if network.sources:
        (work / _sources_name(network)).write_text(network.sources)


def _sources_name(network: HostNetwork) -> str:
    return "host.sources" if network.deb822 else "host.list"


def _mmdebstrap(recipe: Recipe, network: HostNetwork, work: Path) -> list[str]:
    root = os.geteuid() == 0
    apart = ["unshare", "--mount", "--propagation=private", "--pid", "--fork", "--kill-child", "--mount-proc"]
    bound = ["setpriv", "--pdeathsig=KILL", "--", *apart] if root else ["sh", "-c", _BOUND, "sh"]
    argv = [*bound, "mmdebstrap", f"--mode={'root' if root else 'unshare'}", "--verbose"]
    argv += ["--format=tar", "--variant=minbase", "--skip=output/dev", "--aptopt=APT::Install-Recommends false"]
    argv += [f"--aptopt={option}" for option in network.apt]
    # An interrupted build is removed completely, so nothing needs to be synced to disk.
    argv += [f"--dpkgopt={option}" for option in ("force-unsafe-io", *script.dpkg_options())]
    if recipe.packages:
        argv.append(f"--include={','.join(recipe.packages)}")
    argv += [f"--essential-hook={work / 'before'}", f"--customize-hook={work / 'after'}", recipe.suite, "-"]
    if network.sources:
        argv.append(str(work / _sources_name(network)))
    return argv


def _add_dev(rootfs: Path) -> None:
    """Add the directory /dev. Its device nodes are left out, because only root may create them."""
    with tarfile.open(rootfs, "a") as tar:
        entry = tarfile.TarInfo("./dev")
        entry.type, entry.mode, entry.mtime = tarfile.DIRTYPE, 0o755, int(script.EPOCH)
        tar.addfile(entry)


def _environment(network: HostNetwork, work: Path) -> dict[str, str]:
    names = ("PATH", "HOME", "LANG", "USER", "SSL_CERT_FILE", "SSL_CERT_DIR")
    inherited = {name: os.environ[name] for name in names if name in os.environ}
    # mmdebstrap unpacks below TMPDIR, where the space was checked and `sweep` removes the files.
    return {
        **inherited,
        **network.proxies,
        "LC_ALL": "C.UTF-8",
        "TMPDIR": str(work),
        "SOURCE_DATE_EPOCH": script.EPOCH,
        "HIVEYARD_NPMRC": network.npmrc,
    }


async def _run(argv: list[str], env: dict[str, str], rootfs: Path, log: IO[bytes], progress: _Progress) -> int:
    with rootfs.open("wb") as tar:
        async with (
            process.running(argv, stdin=subprocess.PIPE, stdout=tar, env=env, cwd="/", grace=15.0) as child,
            progress.alive(),
        ):
            splitter = LineSplitter(limit=4096)
            async for chunk in _chunks(child):
                log.write(chunk)
                for line in splitter.feed(chunk):
                    progress.line(decode(line.data))
            return await child.wait()


def _chunks(child: Process) -> AsyncIterator[bytes]:
    assert child.stderr is not None
    return aiter(child.stderr)


class _Progress:
    """Reads a build's output: reports its current step, and stores the versions that the steps print."""

    def __init__(self, report: Report) -> None:
        self.programs: dict[str, str] = {}
        self.resolved: dict[str, str] = {}
        self.tail: list[str] = []
        self.step = "fetching Debian"
        self._report = report
        self._since = self._reported = time.monotonic()
        self._unpacked = self._set_up = 0

    @asynccontextmanager
    async def alive(self) -> AsyncIterator[None]:
        """Report again and again for the block how long the current step takes."""
        async with anyio.create_task_group() as group:
            group.start_soon(self._tick, name="image build progress")
            yield
            group.cancel_scope.cancel()

    def line(self, text: str) -> None:
        if text.startswith(script.MARK):
            self._marked(text.removeprefix(script.MARK).split(maxsplit=2))
            return
        self.tail = [*self.tail[-39:], text]
        self._unpacked += text.startswith("Unpacking ")
        self._set_up += text.startswith("Setting up ")
        if text.startswith("I: "):
            self._mmdebstrap(text)

    def _marked(self, words: list[str]) -> None:
        match words:
            case ["step", *rest]:
                self._begin(" ".join(rest))
            case ["program", name, printed]:
                found = _VERSION.search(printed)
                self.programs[name] = found.group() if found else one_line(printed, 80)
            case ["resolved", name, version]:
                self.resolved[name] = version
            case _:
                pass  # a script of the recipe may print anything

    def _mmdebstrap(self, text: str) -> None:
        known = {
            "I: downloading packages": "downloading packages",
            "I: extracting archives": "unpacking the base system",
            "I: installing essential": "installing the base system",
            "I: installing remaining": "installing packages",
            "I: creating tarball": "packing the image",
        }
        for start, title in known.items():
            if text.startswith(start):
                self._begin(title)

    def _begin(self, step: str) -> None:
        self.step = step
        self._since = self._reported = time.monotonic()
        self._report(step)

    async def _tick(self) -> None:
        while True:
            await anyio.sleep(1)
            now = time.monotonic()
            if now - self._reported >= _SILENCE:
                self._reported = now
                self._report(f"{self.step} ({now - self._since:.0f}s{self._counted()})")

    def _counted(self) -> str:
        if self.step != "installing packages":
            return ""
        return f", {self._unpacked} unpacked, {self._set_up} set up"


def _failure(progress: _Progress, log: Path, directory: Path) -> NoSpace | ImageBuildFailed:
    if any("No space left on device" in line for line in progress.tail):
        return NoSpace(f"no space left under {directory} while {progress.step}", hint=f"df -h {directory}")
    last = "\n".join(line for line in progress.tail[-12:] if line.strip())
    return ImageBuildFailed(
        f"the build failed while {progress.step}:\n{last}\nall of its output: {log}", hint=f"less {log}"
    )
