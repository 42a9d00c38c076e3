"""The contents of the profiles of known programs."""

from __future__ import annotations

import json
import os
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from hiveyard.core.credentials import CredentialFile, CredentialProfile
from hiveyard.core.errors import BadInput, CredentialsError
from hiveyard.credentials import profiles
from hiveyard.kit.secret import Secret

DOOR = "http://127.0.0.1:8377"
KEY = Secret("sk-real-Zq8TestSecret/+7vXy@0123456789")
PLAIN = [
    profiles.claude(DOOR, KEY),
    profiles.opencode(DOOR, KEY),
    profiles.codex(DOOR, KEY),
    profiles.goose(DOOR, KEY, model="claude-sonnet-5"),
]
REAL = [
    profiles.claude_api_key(KEY),
    profiles.claude_setup_token(KEY),
    profiles.claude_sign_in(Secret('{"claudeAiOauth": {}}')),
    profiles.opencode_keys({"anthropic": KEY, "openrouter": KEY}),
    profiles.codex_api_key(KEY),
    profiles.goose_api_key("openrouter", KEY, model="x"),
    profiles.git("git.example.org:8443", "me@example.org", KEY),
    profiles.github(KEY),
]


def put(profile: CredentialProfile, home: Path) -> None:
    for file in profile.files:
        path = home / file.path.removeprefix("~/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file.data())
        path.chmod(file.mode)


def content(profile: CredentialProfile, name: str) -> str:
    return next(file.data().decode() for file in profile.files if file.path.endswith(name))


def test_only_profiles_with_a_real_secret_are_named_after_it() -> None:
    names = [profile.name for profile in (*PLAIN, *REAL)]
    assert len(set(names)) == len(names)
    assert [profile.name for profile in PLAIN] == ["claude", "opencode", "codex", "goose"]
    assert not any(profile.real for profile in PLAIN)
    assert all(profile.real for profile in REAL)


@pytest.mark.parametrize("profile", [*PLAIN, *REAL], ids=lambda profile: profile.name)
def test_secrets_are_only_in_private_files_and_never_shown(profile: CredentialProfile) -> None:
    for file in profile.files:
        if file.secret:
            assert file.mode == 0o600
        else:
            assert KEY.reveal() not in file.data().decode()
    assert KEY.reveal() not in repr(profile)
    assert profile.check is None


@pytest.mark.parametrize("profile", PLAIN, ids=lambda profile: profile.name)
def test_a_plain_profile_uses_the_door(profile: CredentialProfile) -> None:
    assert DOOR in "".join(file.data().decode() for file in profile.files)


def test_codex_is_configured_in_toml_and_json() -> None:
    made = profiles.codex(DOOR, KEY)
    config = tomllib.loads(content(made, "config.toml"))
    assert config["model_providers"][config["model_provider"]]["base_url"] == f"{DOOR}/openai/v1"
    assert json.loads(content(made, "auth.json")) == {"auth_mode": "apikey", "OPENAI_API_KEY": KEY.reveal()}


def test_git_itself_finds_the_token_for_that_host_and_for_no_other(tmp_path: Path) -> None:
    put(profiles.git("git.example.org:8443", "me@example.org", KEY), tmp_path)
    env = {"HOME": str(tmp_path), "PATH": os.environ["PATH"], "GIT_TERMINAL_PROMPT": "0", "GIT_CONFIG_NOSYSTEM": "1"}

    def fill(host: str) -> subprocess.CompletedProcess[str]:
        asked = f"protocol=https\nhost={host}\n\n"
        return subprocess.run(["git", "credential", "fill"], env=env, input=asked, capture_output=True, text=True)

    assert f"username=me@example.org\npassword={KEY.reveal()}\n" in fill("git.example.org:8443").stdout
    assert fill("other.example.org").returncode != 0


def test_the_check_of_git_reports_whether_there_is_a_token_and_prints_none(tmp_path: Path) -> None:
    made = profiles.git("git.example.org", "me", KEY, checked=True)
    assert made.check is not None
    env = {"HOME": str(tmp_path), "PATH": os.environ["PATH"], "GIT_CONFIG_NOSYSTEM": "1"}
    assert subprocess.run(made.check.words(), env=env, capture_output=True).returncode != 0
    put(made, tmp_path)
    done = subprocess.run(made.check.words(), env=env, capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


BAD: dict[str, Callable[[], object]] = {
    "a door that is none": lambda: profiles.claude("127.0.0.1:8377", KEY),
    "a door with a slash": lambda: profiles.claude(f"{DOOR}/", KEY),
    "a host with a path": lambda: profiles.git("github.com/evil", "me", KEY),
    "a host with a quote": lambda: profiles.github(KEY, host='x";y'),
    "a user with a line break": lambda: profiles.git("github.com", "me\nhost=evil", KEY),
    "a provider with a quote": lambda: profiles.opencode_keys({'x"': KEY}),
    "no key": lambda: profiles.opencode_keys({}),
    "another provider at the door": lambda: profiles.goose(DOOR, KEY, provider="ollama", model="x"),
    "a secret that others can read": lambda: CredentialFile(path="/x", content=KEY, mode=0o640),
    "a mode that is none": lambda: CredentialFile(path="/x", content=KEY, mode=0o4600),
    "a file that nobody can read": lambda: CredentialFile(path="/x", content=KEY, mode=0o200),
    "no base64": lambda: CredentialFile(path="/x", content=KEY, encoding="base64"),
    "half a character": lambda: CredentialFile(path="/x", content=Secret("\udc00")),
    "too large": lambda: CredentialFile(path="/x", content=Secret("x" * ((1 << 20) + 1))),
    "nothing in it": lambda: CredentialProfile(name="x"),
    "a name that is none": lambda: CredentialProfile(name="A b", files=[CredentialFile(path="/x", content=KEY)]),
    "no time": lambda: CredentialProfile(name="x", files=[CredentialFile(path="/x", content=KEY)], check_seconds=0),
}


@pytest.mark.parametrize("what", BAD)
def test_an_invalid_profile_is_reported_in_one_line_without_the_secret(what: str) -> None:
    with pytest.raises(BadInput) as caught:
        BAD[what]()
    assert "\n" not in caught.value.message
    assert KEY.reveal() not in f"{caught.value.message}{caught.value.hint}"
    assert caught.value.__context__ is None


@pytest.mark.parametrize("key", ["", "short", "sk-with space", "sk-line\nbreak", "sk-ключ-ключ"])
def test_an_invalid_key_is_refused(key: str) -> None:
    for make in (profiles.claude_api_key, profiles.claude_setup_token, profiles.codex_api_key, profiles.github):
        with pytest.raises(CredentialsError) as caught:
            make(Secret(key))
        assert not key or key not in caught.value.message
