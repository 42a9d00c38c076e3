"""Check whether an unprivileged user may create user namespaces, and say which command allows it."""

from __future__ import annotations

from pathlib import Path

from hiveyard.core.errors import ProviderUnavailable
from hiveyard.kit import process

# Ubuntu 24.04 lets any user create one, but without capabilities. So the trial uses a capability.
_TRIAL = "unshare --map-root-user --map-auto -- setpriv --reuid=1 --regid=1 --clear-groups true"
_SETTINGS = (
    ("kernel/apparmor_restrict_unprivileged_userns", "1", "0"),
    ("kernel/unprivileged_userns_clone", "0", "1"),
    ("user/max_user_namespaces", "0", "15000"),
)


async def check_user_namespaces(otherwise: str) -> None:
    """Raise ProviderUnavailable if this user cannot create one with all their ids (/etc/subuid).

    The hint is `otherwise` if no setting of the kernel is the reason."""
    done = await process.run(_TRIAL.split(), timeout=20)
    if not done.ok:
        message = f"this user gets no user namespace: {done.error_output(200)}"
        raise ProviderUnavailable(message, hint=what_to_allow(otherwise))


def what_to_allow(otherwise: str, proc: Path = Path("/proc/sys")) -> str:
    """Return the command that allows user namespaces until the next reboot, and where to set it for good, if one of the
    usual kernel settings forbids them."""
    for name, refusal, wanted in _SETTINGS:
        setting = proc / name
        if setting.is_file() and setting.read_text().strip() == refusal:
            return f"sudo sysctl -w {name.replace('/', '.')}={wanted}  # to last: in /etc/sysctl.d/60-hiveyard.conf"
    return otherwise
