"""Keys for ssh into a session, and the configuration lines with which a user's own ssh uses them.

The keys stay on the host, outside of guests and of session directories, and are the same over all machines of a
session.

    <root>/<session>/key           the private key that lets the user in (0600)
    <root>/<session>/host_key      the private key that identifies the session's port (0600)
    <root>/<session>/known_hosts   the public half of host_key, for ssh
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

import asyncssh

from hiveyard.kit.files import write_atomic

_TYPE = "ssh-ed25519"


class Keys(NamedTuple):
    """The keys of one session. The server uses `user` and `host`; `key` and `known_hosts` are the files for the user's
    ssh."""

    user: asyncssh.SSHKey
    host: asyncssh.SSHKey
    key: Path
    known_hosts: Path


class SshKeys:
    """The keys of all sessions, below one directory of the daemon."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def of(self, session: str) -> Keys:
        """Return the keys of a session; create them if they do not exist."""
        directory = self._root / session
        self._root.mkdir(parents=True, exist_ok=True, mode=0o700)
        directory.mkdir(exist_ok=True, mode=0o700)
        user, host = _load_or_create(directory / "key"), _load_or_create(directory / "host_key")
        public = host.export_public_key().decode().strip()
        known = directory / "known_hosts"
        line = f"{alias(session)} {public}\n".encode()
        if not known.exists() or known.read_bytes() != line:
            write_atomic(known, line, mode=0o600)
        return Keys(user, host, directory / "key", known)

    def forget(self, session: str) -> None:
        """Remove a session's keys; succeeds if there are none."""
        shutil.rmtree(self._root / session, ignore_errors=True)


def alias(session: str) -> str:
    """Return the host name that ssh uses for a session's port, whichever port that is."""
    return f"hiveyard-{session}"


def config(name: str, session: str, port: int, user: str, keys: Keys) -> str:
    """Return an ssh configuration with which `ssh hv-NAME` connects to the session."""
    return f"""Host hv-{name}
  HostName 127.0.0.1
  Port {port}
  User {user}
  IdentityFile {_quoted(keys.key)}
  IdentitiesOnly yes
  IdentityAgent none
  UserKnownHostsFile {_quoted(keys.known_hosts)}
  GlobalKnownHostsFile /dev/null
  HostKeyAlias {alias(session)}
  StrictHostKeyChecking yes
  CheckHostIP no
  ForwardAgent no
"""


def _load_or_create(file: Path) -> asyncssh.SSHKey:
    try:
        return asyncssh.import_private_key(file.read_bytes())
    except FileNotFoundError:
        key = asyncssh.generate_private_key(_TYPE)
        write_atomic(file, key.export_private_key(), mode=0o600)
        return key


def _quoted(path: Path) -> str:
    """Return a path as one word of ssh's configuration, in which % begins a token."""
    return '"' + str(path).replace("%", "%%") + '"'
