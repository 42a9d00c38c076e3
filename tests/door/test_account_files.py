"""The files of accounts: their content, and the errors that the guest and the user see."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from hiveyard.core.errors import CredentialsError
from hiveyard.core.events import ModelFailed
from hiveyard.credentials.claude_oauth import begin, exchange
from hiveyard.door.broker import Broker
from hiveyard.door.keys import Keys
from hiveyard.door.settings import DoorSettings
from hiveyard.door.tape import Tape
from hiveyard.kit.clock import SystemClock
from hiveyard.kit.files import write_atomic
from tests.credentials.oauth_server import CLIENT, oauth_server

from .house import MemoryJournal, door, guest, message

pytestmark = pytest.mark.anyio


def private(file: Path, content: str) -> Path:
    write_atomic(file, content.encode(), mode=0o600)
    return file


async def test_a_refresh_changes_nothing_else_in_a_file_of_claude_code(tmp_path: Path) -> None:
    with oauth_server() as server:
        begun = begin(server.settings())
        tokens = await exchange(server.settings(), begun, server.approve(begun.url))
        more = {"mcpOAuth": {"one": {"expiresAt": 1790000000123, "scopes": []}}, "organizationUuid": "u", "x": 1.0}
        file = private(tmp_path / "mine.json", json.dumps({**more, **json.loads(tokens.file().reveal()), "z": None}))
        mine = f'claude_sign_in = "mine.json"\ntoken_url = "{server.url}/token"\nclient_id = "{CLIENT}"\n'
        keys = Keys({}, private(tmp_path / "keys.toml", f"[accounts.mine]\n{mine}"))
        broker = Broker(keys, DoorSettings(), SystemClock())
        fresh = await broker.credential("anthropic", "mine", refused=tokens.access)
        kept = json.loads(file.read_text())
        assert fresh.secret != tokens.access and kept["claudeAiOauth"]["accessToken"] == fresh.secret.reveal()
        del kept["claudeAiOauth"]
        assert kept == {**more, "z": None}
        assert file.stat().st_mode & 0o077 == 0


def broken(file: Path) -> None:
    file.write_text("anthropic: 5")


def loose(file: Path) -> None:
    file.chmod(0o644)


def absent(file: Path) -> None:
    file.unlink()


def folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


@pytest.mark.parametrize("spoil", [broken, loose, folder, absent])
async def test_an_error_of_the_keys_does_not_show_the_guest_their_path(
    tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    here = tmp_path / "of-the-host"
    here.mkdir()
    spoil(private(here / "keys.toml", 'anthropic = "sk-Zq8TestSecret-in-the-file"\n'))
    (tmp_path / "d").mkdir()
    journal = MemoryJournal()
    keys = Keys({}, here / "keys.toml")
    async with door("http://127.0.0.1:9", journal, tmp_path / "d", of=keys) as opened, guest(opened) as client:
        answered = await client.post("/anthropic/v1/messages", json=message())
    assert answered.status_code == 401 and "keys.toml" in answered.text
    assert "of-the-host" not in answered.text and str(tmp_path) not in answered.text
    [failed] = journal.of(ModelFailed)
    assert spoil is absent or str(here) in failed.failure.hint


async def test_an_error_of_the_settings_does_not_show_the_guest_a_path(tmp_path: Path) -> None:
    settings = DoorSettings(ca_file=str(tmp_path / "of-the-host.pem"))
    async with door("", MemoryJournal(), tmp_path, settings=settings) as opened, guest(opened) as client:
        answered = await client.post("/anthropic/v1/messages", json=message())
    assert "door.ca_file" in answered.text and "of-the-host" not in answered.text


async def test_an_error_of_a_tape_does_not_show_the_guest_its_path(tmp_path: Path) -> None:
    here = tmp_path / "of-the-host"
    here.mkdir()
    (here / "demo.jsonl").write_text('{"tape":1}\n')
    tape = Tape.load(here / "demo.jsonl")
    async with (
        door("", MemoryJournal(), tmp_path, tape=tape, settings=DoorSettings()) as opened,
        guest(opened) as client,
    ):
        answered = await client.post("/anthropic/v1/messages", json=message())
    assert "demo.jsonl has no answer" in answered.text and "of-the-host" not in answered.text


@pytest.mark.parametrize("spoil", [broken, loose, folder])
async def test_a_key_of_the_environment_works_even_if_the_file_is_broken(
    tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    spoil(private(tmp_path / "keys.toml", ""))
    keys = Keys({"ANTHROPIC_API_KEY": "sk-Zq8TestSecret-of-the-environment"}, tmp_path / "keys.toml")
    keys.find_any(["anthropic"])
    found = await Broker(keys, DoorSettings(), SystemClock()).credential("anthropic", "")
    assert found.secret.reveal() == "sk-Zq8TestSecret-of-the-environment"
    with pytest.raises(CredentialsError):
        keys.find("openai")
