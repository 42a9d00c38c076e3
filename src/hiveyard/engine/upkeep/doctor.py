"""Check what Hiveyard needs on this host, by trying each thing."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import anyio
import msgspec

from hiveyard.core.errors import CredentialsError, ProviderUnavailable
from hiveyard.core.machines import HOST
from hiveyard.door.keys import VARIABLES
from hiveyard.engine.placement.provider_choice import automatic
from hiveyard.engine.resources import Resources
from hiveyard.images.build import REQUIRED, check_tools
from hiveyard.kit.process import run
from hiveyard.kit.text import decode, one_line

TIMEOUT = 10.0
"""Seconds that a program may take to print its version."""


class Check(msgspec.Struct, frozen=True):
    """A requirement of Hiveyard on this host: whether it is met, what was found, and how to fix it. If `needed` is
    false, Hiveyard works without it."""

    name: str
    ok: bool
    needed: bool
    detail: str
    fix: str = ""


async def run_checks(resources: Resources) -> list[Check]:
    """Run all checks: the host first, then each provider, then keys. At least one provider is needed."""
    reserve = 2 * resources.settings.disk_reserve_mib
    images = resources.images
    wants_images = resources.settings.image != HOST.name
    host = [
        _python(),
        await _git(),
        await _identity(),
        await _directory("sessions", resources.sessions, reserve, needed=True, variable="HIVEYARD_HOME"),
        await _directory("cache", images.directory, REQUIRED >> 20, needed=wants_images, variable="HIVEYARD_CACHE"),
        _builder(needed=wants_images and not images.list()),
    ]
    found = {name: await provider.readiness() for name, provider in resources.providers.items()}
    # Remote providers and providers by third parties are never needed.
    remote = {name for name, provider in resources.providers.items() if not automatic(provider)}
    some = any(readiness.ok for name, readiness in found.items() if name not in remote)
    for name, readiness in found.items():
        tier = resources.providers[name].tier.value
        needed = not some and name not in remote
        host.append(Check(name, readiness.ok, needed, f"tier {tier}: {readiness.detail}", readiness.fix))
    checks = [*host, *(_key(resources, vendor) for vendor in VARIABLES)]
    return [msgspec.structs.replace(check, fix="") if check.ok else check for check in checks]


def _python() -> Check:
    version = ".".join(str(part) for part in sys.version_info[:3])
    return Check("python", sys.version_info >= (3, 11), True, version, "install Python 3.11 or newer")


async def _git() -> Check:
    """Check that git runs: it copies repositories and collects the work."""
    fix = "sudo apt-get install -y git"
    try:
        done = await run(["git", "--version"], timeout=TIMEOUT)
    except (OSError, TimeoutError) as error:
        reason = "it is not in the daemon's PATH" if isinstance(error, FileNotFoundError) else str(error)
        return Check("git", False, True, f"git does not start: {reason}", fix)
    if not done.ok:
        detail = f"git --version exited with {done.status}: {one_line(done.error_output())}"
        return Check("git", False, True, detail, fix)
    return Check("git", True, True, one_line(decode(done.stdout)))


async def _identity() -> Check:
    """Check the name on commits that Hiveyard makes of an agent's uncommitted work."""
    fix = "git config --global user.name NAME; git config --global user.email ADDRESS"
    try:
        done = [await run(["git", "config", "--global", f"user.{part}"], timeout=TIMEOUT) for part in ("name", "email")]
    except (OSError, TimeoutError):
        return Check("identity", False, False, "git does not answer when asked for your name", fix)
    name, email = (one_line(decode(part.stdout)) for part in done)
    if name and email:
        return Check("identity", True, False, f"{name} <{email}>")
    detail = "git has no name and address for you: Hiveyard is the author of commits, unless the repository sets one"
    return Check("identity", False, False, detail, fix)


async def _directory(name: str, directory: Path, mib: int, *, needed: bool, variable: str) -> Check:
    """Check that files can be created in a directory, and that it has enough space."""
    try:
        free = await anyio.to_thread.run_sync(_free, directory)
    except OSError as error:
        fix = f"chown it to yourself, or set {variable} to a directory that you can write to"
        return Check(name, False, needed, f"no file can be created in {directory}: {error.strerror}", fix)
    detail = f"{free / 1024:.1f} GiB free at {directory}"
    if free < mib:
        return Check(
            name, False, needed, f"{detail}, {mib / 1024:.1f} GiB are needed", "hv ps -a; hv rm TASK; hv image ls"
        )
    return Check(name, True, needed, detail)


def _free(directory: Path) -> int:
    """Create a file in a directory, and return the free space there in MiB. Raises OSError."""
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=directory) as file:
        file.write(b"x")
    free = os.statvfs(directory)
    return free.f_bavail * free.f_frsize >> 20


def _builder(*, needed: bool) -> Check:
    """Check the tools that build images."""
    try:
        check_tools()
    except ProviderUnavailable as error:
        return Check("image build", False, needed, error.message, error.hint)
    return Check("image build", True, needed, "mmdebstrap and the programs that it uses are installed")


def _key(resources: Resources, vendor: str) -> Check:
    """Check for a vendor's key, which is needed only for that vendor's models."""
    account = resources.settings.account
    try:
        if vendor != "anthropic" or resources.keys.account(account).sign_in is None:
            resources.keys.find(vendor, account)
    except CredentialsError as error:
        return Check(f"{vendor} key", False, False, error.message, error.hint)
    return Check(f"{vendor} key", True, False, "it is set, and it stays on the host")
