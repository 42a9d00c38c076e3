"""A person's terminal in a machine of Morph Cloud passes what is said of every terminal, through the ssh gateway; and
whom it believes."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import asyncssh
import pytest

from hiveyard.core.commands import Command
from hiveyard.core.errors import MachineNotReady, ProviderBadAnswer, ProviderUnavailable
from hiveyard.core.machines import Capabilities
from hiveyard.kit.secret import Secret
from hiveyard.machines.morph import MorphProvider, MorphSettings, terminal
from hiveyard.machines.morph.wire import SshKey
from tests.contract.conftest import Place, machine
from tests.contract.providers import Offer
from tests.processes.test_terminals import *  # noqa: F403
from tests.support.person import person

HELLO = Command(argv=("echo", "hello"))
OTHER_KEY = asyncssh.generate_private_key("ssh-ed25519").export_public_key("openssh").decode().strip()


def believing(place: Place, host_key: str) -> MorphProvider:
    """Another provider for the machine."""
    ours = place.offer.provider
    assert isinstance(ours, MorphProvider)
    settings = replace(ours._settings, ssh_host_key=host_key)
    return MorphProvider(ours._state, lambda: Secret("morph_Zq8TestSecret"), settings)


async def test_without_a_host_key_nobody_is_sent_to_the_gateway(shared: Place) -> None:
    provider = believing(shared, "")
    with pytest.raises(ProviderUnavailable, match=r"the host key of 127\.0\.0\.1") as raised:
        await provider.terminal(shared.name, HELLO)
    assert "ssh_host_key" in raised.value.hint
    await provider.aclose()


async def test_a_gateway_with_another_host_key_is_not_believed(shared: Place) -> None:
    provider = believing(shared, OTHER_KEY)
    async with person(await provider.terminal(shared.name, HELLO)) as somebody:
        assert await somebody.leaves() == 255
        await somebody.sees("Host key verification failed")
        assert "hello" not in somebody.screen
    await provider.aclose()


async def test_the_accounts_key_is_nowhere_in_it_and_the_machines_own_goes_with_the_machine(offer: Offer) -> None:
    provider = offer.provider
    assert isinstance(provider, MorphProvider)
    async with machine(offer) as place:
        argv = await provider.terminal(place.name, HELLO)
        assert "morph_Zq8TestSecret" not in " ".join(argv)
        files = sorted(path for path in provider._state.rglob("*") if path.is_file() and path.name != "installation")
        kept = {path.name: path.read_text() for path in files if place.name in path.parts}
        assert sorted(kept) == ["known_hosts", "terminal_key"]
        assert "morph_Zq8TestSecret" not in "".join(kept.values())
        assert all(path.stat().st_mode & 0o077 == 0 for path in files if place.name in path.parts)
        await provider.pause(place.name)
        with pytest.raises(MachineNotReady, match="paused"):
            await provider.terminal(place.name, HELLO)
    assert not [path for path in provider._state.rglob("*") if path.name == place.name]


@pytest.mark.parametrize(
    ("id", "key"),
    [("-oProxyCommand=id", None), ("a b", None), ("", None), ("morphvm_1", "nonsense"), ("morphvm_1", "")],
)
async def test_what_the_service_says_of_ssh_is_looked_at(id: str, key: str | None, tmp_path: Path) -> None:
    good = asyncssh.generate_private_key("ssh-ed25519").export_private_key("openssh").decode()
    said = SshKey(private_key=good if key is None else key)
    assert good not in repr(said)
    with pytest.raises(ProviderBadAnswer):
        terminal.program(MorphSettings(), id, said, Capabilities(), tmp_path, ("true",))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("gateway", ["", "host", "host:", "host:0", "host:70000", "-oProxyCommand=id:22", "a b:22"])
def test_a_gateway_is_a_host_and_a_port(gateway: str) -> None:
    with pytest.raises(ValueError, match="HOST:PORT"):
        MorphSettings(ssh_gateway=gateway)


@pytest.mark.parametrize("key", ["AAAA", "ssh-ed25519", "ssh-ed25519 AAAA\n* ssh-rsa BBBB", "ssh-ed25519 AA AA"])
def test_a_host_key_is_one_line_of_type_and_key(key: str) -> None:
    with pytest.raises(ValueError, match="TYPE KEY"):
        MorphSettings(ssh_host_key=key)
