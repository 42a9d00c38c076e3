"""The few files of /etc that name users, for a machine that lives on the host's programs."""

from __future__ import annotations

from pathlib import Path

from hiveyard.core.machines import Capabilities, Network
from hiveyard.machines.bubblewrap import layout


def write_users(etc: Path, capabilities: Capabilities, network: Network) -> None:
    etc.mkdir()
    user, uid = capabilities.user, layout.UID
    shells = f"{user}:x:{uid}:{uid}::{capabilities.home}:/bin/bash\nnobody:x:65534:65534::/:/usr/sbin/nologin\n"
    (etc / "passwd").write_text(f"root:x:0:0::/root:/usr/sbin/nologin\n{shells}")
    (etc / "group").write_text(f"root:x:0:\n{user}:x:{uid}:\nnogroup:x:65534:\n")
    hosts = "files dns" if network is Network.OPEN else "files"
    (etc / "nsswitch.conf").write_text(f"passwd: files\ngroup: files\nhosts: {hosts}\n")
    (etc / "hosts").write_text("127.0.0.1 localhost\n::1 localhost\n")
