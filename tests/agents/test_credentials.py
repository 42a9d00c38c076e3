"""The real agent programs find the files of a credential profile, without any other configuration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from hiveyard.core.commands import ProcessSpec
from hiveyard.core.credentials import CredentialProfile
from hiveyard.credentials import profiles
from hiveyard.credentials.claude_oauth import Tokens
from hiveyard.kit.secret import Secret
from hiveyard.testing.script import say
from tests.agents.real import DOOR_PORT, HostYard

pytestmark = [pytest.mark.real, pytest.mark.anyio]
DOOR = f"http://127.0.0.1:{DOOR_PORT}"
KEY = Secret("sk-ant-api03-Zq8TestSecret")
TOKENS = Tokens(access=KEY, refresh=Secret("sk-ant-ort01-Zq8TestSecret"), expires_at=4e9, scopes=("user:inference",))


def put(yard: HostYard, profile: CredentialProfile) -> None:
    """Install files in the home of the yard's user."""
    for file in profile.files:
        path = yard.root / "home" / file.path.removeprefix("~/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file.data())


def without(*names: str) -> Callable[[ProcessSpec], ProcessSpec]:
    """Takes variables away from a process."""

    def tamper(spec: ProcessSpec) -> ProcessSpec:
        env = {name: value for name, value in spec.command.env.items() if not name.startswith(names)}
        return replace(spec, command=replace(spec.command, env=env))

    return tamper


async def test_claude_finds_the_door_and_its_placeholder(yard: HostYard) -> None:
    put(yard, profiles.claude(DOOR, KEY))
    yard.tamper = without("ANTHROPIC_", "CLAUDE_CONFIG_DIR")
    played = await yard.play("claude", [say("Here.")])
    assert played.verdict.ok, played.verdict.reason
    assert played.model.saw_key(KEY.reveal())


@pytest.mark.parametrize(
    "profile",
    [profiles.claude_api_key(KEY), profiles.claude_setup_token(KEY), profiles.claude_sign_in(TOKENS.file())],
    ids=lambda profile: profile.name,
)
async def test_claude_finds_a_real_secret(yard: HostYard, profile: CredentialProfile) -> None:
    put(yard, profile)
    yard.tamper = without("ANTHROPIC_API_KEY", "CLAUDE_CONFIG_DIR")
    played = await yard.play("claude", [say("Here.")])
    assert played.verdict.ok, played.verdict.reason
    assert played.model.saw_key(KEY.reveal())


async def test_opencode_finds_the_door_and_its_placeholder(yard: HostYard) -> None:
    put(yard, profiles.opencode(DOOR, KEY))
    yard.tamper = without("OPENCODE_CONFIG_CONTENT", "XDG_")
    played = await yard.play("opencode", [say("Here.")])
    assert played.verdict.ok, played.verdict.reason
    assert played.model.saw_key(KEY.reveal())


def plainly(*argv: str, **env: str) -> Callable[[ProcessSpec], ProcessSpec]:
    """A process in place of ours: the program with nothing told but how to print."""
    return lambda spec: replace(spec, command=replace(spec.command, argv=argv, env=env))


async def test_codex_finds_the_door_and_its_placeholder(yard: HostYard) -> None:
    put(yard, profiles.codex(DOOR, KEY))
    yard.tamper = plainly("codex", "exec", "--json", "--skip-git-repo-check", "-")
    played = await yard.play("codex", [say("Here.")])
    assert played.verdict.ok, played.verdict.reason
    assert played.model.saw_key(KEY.reveal())


@pytest.mark.parametrize(("provider", "model"), [("anthropic", "claude-sonnet-5"), ("openai", "gpt-5.5")])
async def test_goose_finds_the_door_and_its_placeholder(yard: HostYard, provider: str, model: str) -> None:
    put(yard, profiles.goose(DOOR, KEY, provider=provider, model=model))
    argv = ("goose", "run", "--quiet", "--output-format", "stream-json", "--instructions", "-")
    yard.tamper = plainly(*argv, GOOSE_DISABLE_KEYRING="1")
    played = await yard.play("goose", [say("Here.")])
    assert played.verdict.ok, played.verdict.reason
    assert played.model.saw_key(KEY.reveal())
