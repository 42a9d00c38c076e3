"""The accounts of keys.toml that an orchestrator's agent may use."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hiveyard.agents.claude.adapter import Claude
from hiveyard.core.errors import BadInput
from hiveyard.core.machines import HOST
from hiveyard.door.local_doors import LocalDoors
from hiveyard.kit.files import write_atomic
from hiveyard.library import Orchestrator
from hiveyard.processes.detached import Detached
from tests.library.parts import Yards

pytestmark = pytest.mark.anyio


def signed_in(scratch: Path) -> LocalDoors:
    """Doors whose account is a sign-in of Claude Code."""
    tokens = {"accessToken": "sk-ant-oat-Zq8TestSecret", "expiresAt": 4_000_000_000_000, "scopes": []}
    write_atomic(scratch / "mine.json", json.dumps({"claudeAiOauth": tokens}).encode(), mode=0o600)
    write_atomic(scratch / "keys.toml", b'[accounts.mine]\nclaude_sign_in = "mine.json"\n', mode=0o600)
    return LocalDoors({}, keys=scratch / "keys.toml", account="mine")


async def test_a_sign_in_account_is_for_claude_code_only(tmp_path: Path, yards: Yards) -> None:
    """`tmp_path` comes first: `yards` moves the place for what is temporary."""
    doors = signed_in(tmp_path)
    async with yards.yard(doors=doors) as yard:
        with pytest.raises(BadInput, match="the account mine is a sign-in for Anthropic's own programs only"):
            await yard.boot_and_prepare(HOST)
    assert yards.told() == []
    async with Orchestrator(yards.provider, Detached(), Claude(), on_event=yards.hear, doors=doors) as yard:
        ready = await yard.boot_and_prepare(HOST)
        await yard.terminate(ready.machine)
