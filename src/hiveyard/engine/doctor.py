"""What Hiveyard needs on this host, each thing found out by trying it."""

from __future__ import annotations

import os
import shutil
import sys

import msgspec

from hiveyard.core.errors import CredentialsError
from hiveyard.door.keys import VARIABLES
from hiveyard.engine.resources import Resources


class Check(msgspec.Struct, frozen=True):
    """One need of Hiveyard on this host: whether it is met, what was found, and what to do. `needed` false: Hiveyard
    works without it."""

    name: str
    ok: bool
    needed: bool
    detail: str
    fix: str = ""


async def examine(resources: Resources) -> list[Check]:
    """All checks, the host first, then each provider, then keys. At least one provider is needed."""
    checks = [_python(), _program("git", "copies repositories"), _disk(resources)]
    found = {name: await provider.readiness() for name, provider in resources.providers.items()}
    some = any(readiness.ok for readiness in found.values())
    for name, readiness in found.items():
        tier = resources.providers[name].tier.value
        checks.append(Check(name, readiness.ok, not some, f"tier {tier}: {readiness.detail}", readiness.fix))
    return [*checks, *(_key(resources, vendor) for vendor in VARIABLES)]


def _python() -> Check:
    version = ".".join(str(part) for part in sys.version_info[:3])
    return Check("python", sys.version_info >= (3, 11), True, version, "install Python 3.11 or newer")


def _program(name: str, use: str) -> Check:
    path = shutil.which(name)
    return Check(name, path is not None, True, path or f"not found ({use})", f"apt-get install {name}")


def _disk(resources: Resources) -> Check:
    free = os.statvfs(resources.sessions)
    mib = free.f_bavail * free.f_frsize >> 20
    enough = mib > 2 * resources.settings.disk_reserve_mib
    return Check("disk", enough, True, f"{mib / 1024:.1f} GiB free at {resources.sessions}", "free some space")


def _key(resources: Resources, vendor: str) -> Check:
    """A key is needed for a vendor's models only."""
    try:
        resources.keys.find(vendor)
    except CredentialsError as error:
        return Check(f"{vendor} key", False, False, error.message, error.hint)
    return Check(f"{vendor} key", True, False, "there is one, and it stays on the host")
