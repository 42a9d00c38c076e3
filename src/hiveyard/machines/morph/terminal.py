"""Open a terminal in an instance for a user of this host, through the ssh gateway of Morph Cloud.

The gateway takes the instance's id for the user, and the instance's own key: the account's is never shown to it. Which
host key the gateway has is nowhere published, so it is a setting, and without it nobody is sent there.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

import asyncssh

from hiveyard.core.errors import ProviderBadAnswer, ProviderUnavailable
from hiveyard.core.machines import Capabilities
from hiveyard.machines.morph import scripts
from hiveyard.machines.morph.entrance import UID
from hiveyard.machines.morph.settings import MorphSettings
from hiveyard.machines.morph.wire import SshKey
from hiveyard.machines.shared import by_ssh

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}\Z")
_NAME = "morph-gateway"


def check(settings: MorphSettings) -> None:
    """Raise ProviderUnavailable if the gateway's host key is not known."""
    if not settings.ssh_host_key:
        host, port = settings.gateway()
        raise ProviderUnavailable(
            f"the host key of {host}, which leads to terminals of Morph Cloud, is not known",
            hint=f"ssh-keyscan -p {port} {host}, and compare with what Morph says; then [morph] ssh_host_key = ...",
        )


def program(
    settings: MorphSettings,
    instance: str,
    key: SshKey,
    capabilities: Capabilities,
    directory: Path,
    argv: Sequence[str],
) -> list[str]:
    """Return the argv that runs `argv` on a terminal in `instance`, as the commands' user. Raises ProviderBadAnswer."""
    if not _ID.match(instance):
        raise ProviderBadAnswer(f"morph: {instance[:80]!r} cannot be the name of a user of its gateway")
    host, port = settings.gateway()
    far = by_ssh.SshTarget(
        name=_NAME, user=instance, host=host, port=port, key=_opened(key), host_key=settings.ssh_host_key
    )
    who = (str(UID), capabilities.home, capabilities.user)
    return by_ssh.program(far, directory, shlex.join(("bash", "-c", scripts.SIT, "hv", *who, *argv)))


def _opened(key: SshKey) -> str:
    """Return the private key without its password, because no user can be asked for it."""
    try:
        found = asyncssh.import_private_key(key.private_key, key.password or None)
        return found.export_private_key("openssh").decode()
    except (asyncssh.KeyImportError, asyncssh.KeyExportError, asyncssh.KeyEncryptionError) as error:
        raise ProviderBadAnswer("morph: the ssh key of an instance cannot be read") from error
