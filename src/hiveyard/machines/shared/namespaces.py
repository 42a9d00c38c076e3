"""Whether a user without rights may make user namespaces here, and what to type when not."""

from __future__ import annotations

from pathlib import Path

from hiveyard.core.errors import ProviderUnavailable
from hiveyard.kit import process

# Ubuntu 24.04 lets anybody make one and takes all capabilities in it away, so one of them is used.
_TRIAL = "unshare --map-root-user --map-auto -- setpriv --reuid=1 --regid=1 --clear-groups true"
_SETTINGS = (
    ("kernel/apparmor_restrict_unprivileged_userns", "1", "0"),
    ("kernel/unprivileged_userns_clone", "0", "1"),
    ("user/max_user_namespaces", "0", "15000"),
)


async def check_user_namespaces(otherwise: str) -> None:
    """Raises ProviderUnavailable when this user gets none with all ids of theirs (/etc/subuid); the hint is
    `otherwise` when no setting of the kernel is the reason."""
    done = await process.run(_TRIAL.split(), timeout=20)
    if not done.ok:
        said = f"this user gets no user namespace: {done.error_output(200)}"
        raise ProviderUnavailable(said, hint=what_to_allow(otherwise))


def what_to_allow(otherwise: str, proc: Path = Path("/proc/sys")) -> str:
    """The usual reason why a host has user namespaces and nobody may use them, as the command that changes it until the
    next start of the host, and where the same lasts."""
    for name, refusal, wanted in _SETTINGS:
        setting = proc / name
        if setting.is_file() and setting.read_text().strip() == refusal:
            return f"sudo sysctl -w {name.replace('/', '.')}={wanted}  # to last: in /etc/sysctl.d/60-hiveyard.conf"
    return otherwise
