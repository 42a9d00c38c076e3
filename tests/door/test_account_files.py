"""The files of accounts: what is kept in them, and what is said of them to whom."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hiveyard.credentials.claude_oauth import begin, exchange
from hiveyard.door.broker import Broker
from hiveyard.door.keys import Keys
from hiveyard.door.settings import DoorSettings
from hiveyard.kit.clock import SystemClock
from hiveyard.kit.files import write_atomic
from tests.credentials.oauth_server import CLIENT, oauth_server

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
