"""Profiles of the supported programs. The ones named after a program have a session's door and its placeholder; those
named after a credential (`claude_api_key`, `git`, ...) put a real secret into the guest.

Each function only makes a CredentialProfile. `checked` adds a command of the program that verifies that it finds its
credentials, without network requests. Raises BadInput, CredentialsError.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping
from urllib.parse import quote

import msgspec

from hiveyard.core.commands import Command
from hiveyard.core.credentials import CredentialDirectory, CredentialFile, CredentialProfile
from hiveyard.core.errors import BadInput
from hiveyard.credentials.format import check_key
from hiveyard.kit.secret import Secret
from hiveyard.kit.shape import record, text
from hiveyard.kit.text import one_line

CLAUDE = "~/.claude"
OPENCODE_CONFIG, OPENCODE_DATA = "~/.config/opencode", "~/.local/share/opencode"
CODEX = "~/.codex"
GOOSE = "~/.config/goose"
GIT = "~/.config/git"
GITHUB = "~/.config/gh"

_CLAUDE_STATUS = Command(argv=("claude", "auth", "status"))
_CODEX_STATUS = Command(argv=("codex", "login", "status"))
_CLAUDE_QUIET = {"CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1"}
_HOST = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?(?::[0-9]{1,5})?\Z")
_PROVIDER = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}\Z")


def claude(door_url: str, placeholder: Secret, *, directory: str = CLAUDE, checked: bool = False) -> CredentialProfile:
    """Return a profile for Claude Code through the session's door."""
    env = {"ANTHROPIC_BASE_URL": f"{_door(door_url)}/anthropic", "ANTHROPIC_API_KEY": placeholder.reveal()}
    return _claude("claude", directory, env, placeholder, real=False, checked=checked)


def claude_api_key(key: Secret, *, directory: str = CLAUDE, checked: bool = False) -> CredentialProfile:
    """Return a profile for Claude Code with an API key."""
    check_key("claude", key)
    return _claude("claude-api-key", directory, {"ANTHROPIC_API_KEY": key.reveal()}, key, real=True, checked=checked)


def claude_setup_token(token: Secret, *, directory: str = CLAUDE, checked: bool = False) -> CredentialProfile:
    """Return a profile for Claude Code with the output of `claude setup-token`: a subscription's token for a year,
    which is not refreshed. An ANTHROPIC_API_KEY in the environment takes precedence over it, and is charged."""
    check_key("claude", token)
    env = {"CLAUDE_CODE_OAUTH_TOKEN": token.reveal()}
    return _claude("claude-setup-token", directory, env, token, real=True, checked=checked)


def claude_sign_in(
    credentials: Secret, *, directory: str = CLAUDE, checked: bool = False, secrets: tuple[Secret, ...] = ()
) -> CredentialProfile:
    """Return a profile for Claude Code with the content of a `.credentials.json` (`Tokens.file()`). `secrets` are
    further secrets in it beside its tokens.

    Use it for one guest at a time: Claude Code refreshes the tokens there. Refresh tokens rotate, so every other holder
    of the previous ones is signed out."""
    return CredentialProfile(
        name="claude-sign-in",
        directories=(CredentialDirectory(path=directory),),
        files=(CredentialFile(path=f"{directory}/.credentials.json", content=credentials),),
        secrets=(*secrets, *_tokens_in(credentials)),
        real=True,
        check=_CLAUDE_STATUS if checked else None,
    )


def opencode(door_url: str, placeholder: Secret) -> CredentialProfile:
    """Return a profile for opencode through the session's door, for models of Anthropic and OpenAI."""
    door = _door(door_url)
    providers = {name: {"options": {"baseURL": f"{door}/{name}/v1"}} for name in ("anthropic", "openai")}
    config = {"autoupdate": False, "share": "disabled", "provider": providers}
    keys = dict.fromkeys(providers, placeholder)
    return _opencode("opencode", keys, real=False, config=config)


def opencode_keys(keys: Mapping[str, Secret]) -> CredentialProfile:
    """Return a profile for opencode with API keys by its provider names (`anthropic`, `openai`, `openrouter`, …)."""
    if not keys:
        raise BadInput("the profile opencode-keys needs a key")
    for provider, key in keys.items():
        check_key(_provider(provider), key)
    return _opencode("opencode-keys", keys, real=True)


def codex(door_url: str, placeholder: Secret, *, checked: bool = False) -> CredentialProfile:
    """Return a profile for codex through the session's door."""
    # Not `openai_base_url`: with it codex tries WebSockets for six seconds first.
    lines = (
        'model_provider = "hiveyard"',
        "check_for_update_on_startup = false",
        "[analytics]",
        "enabled = false",
        "[features]",
        "plugins = false",
        "[model_providers.hiveyard]",
        'name = "Hiveyard\'s door"',
        f"base_url = {json.dumps(_door(door_url) + '/openai/v1')}",
        'wire_api = "responses"',
        "requires_openai_auth = true",
    )
    config = CredentialFile(path=f"{CODEX}/config.toml", content=Secret("\n".join((*lines, ""))), secret=False)
    return _codex("codex", placeholder, (config,), real=False, checked=checked)


def codex_api_key(key: Secret, *, checked: bool = False) -> CredentialProfile:
    """Return a profile for codex with an API key, as `codex login --with-api-key` writes it."""
    check_key("codex", key)
    return _codex("codex-api-key", key, (), real=True, checked=checked)


def goose(door_url: str, placeholder: Secret, *, provider: str = "anthropic", model: str) -> CredentialProfile:
    """Return a profile for goose through the session's door; `provider` is `anthropic` or `openai`. goose reads this
    file of secrets if there is no keyring or if GOOSE_DISABLE_KEYRING is in its environment."""
    if provider not in ("anthropic", "openai"):
        raise BadInput(f"through the door goose reaches only anthropic and openai, not {one_line(provider)!r}")
    host = f"{provider.upper()}_HOST"
    config = {"GOOSE_PROVIDER": provider, "GOOSE_MODEL": model, host: f"{_door(door_url)}/{provider}"}
    return _goose("goose", provider, placeholder, config, real=False)


def goose_api_key(provider: str, key: Secret, *, model: str) -> CredentialProfile:
    """Return a profile for goose with an API key for a provider, by goose's name for it."""
    check_key("goose", key)
    config = {"GOOSE_PROVIDER": _provider(provider), "GOOSE_MODEL": model}
    return _goose("goose-api-key", provider, key, config, real=True)


def git(host: str, user: str, token: Secret, *, checked: bool = False) -> CredentialProfile:
    """Return a profile for git over https to one host, with git's `store` helper. Other hosts get nothing."""
    check_key(f"git at {_host(host)}", token)
    if not user or not user.isprintable():
        raise BadInput(f"{one_line(user)!r} is not a valid user for {host}")
    line = Secret(f"https://{quote(user, safe='')}:{quote(token.reveal(), safe='')}@{host}\n")
    config = f'[credential "https://{host}"]\n\thelper = store\n'
    query = f"printf 'protocol=https\\nhost={host}\\n\\n' | GIT_TERMINAL_PROMPT=0 git credential fill >/dev/null"
    return CredentialProfile(
        name="git",
        directories=(CredentialDirectory(path=GIT),),
        files=(
            CredentialFile(path=f"{GIT}/credentials", content=line),
            CredentialFile(path=f"{GIT}/config", content=Secret(config), mode=0o644, secret=False),
        ),
        secrets=(token,),
        real=True,
        check=_sh(query) if checked else None,
    )


def github(token: Secret, *, host: str = "github.com", checked: bool = False) -> CredentialProfile:
    """Return a profile for GitHub's `gh` with a token. For git itself add `git(host, "x-access-token", token)`."""
    check_key(f"gh at {_host(host)}", token)
    hosts = {host: {"oauth_token": token.reveal(), "git_protocol": "https"}}
    return CredentialProfile(
        name="github",
        directories=(CredentialDirectory(path=GITHUB),),
        files=(CredentialFile(path=f"{GITHUB}/hosts.yml", content=_json(hosts)),),
        secrets=(token,),
        real=True,
        check=_sh(f"gh auth token --hostname {host} >/dev/null") if checked else None,
    )


def _claude(
    name: str, directory: str, env: Mapping[str, str], secret: Secret, *, real: bool, checked: bool
) -> CredentialProfile:
    settings = CredentialFile(path=f"{directory}/settings.json", content=_json({"env": {**_CLAUDE_QUIET, **env}}))
    return CredentialProfile(
        name=name,
        directories=(CredentialDirectory(path=directory),),
        files=(settings,),
        secrets=(secret,),
        real=real,
        check=_CLAUDE_STATUS if checked else None,
    )


def _tokens_in(credentials: Secret) -> list[Secret]:
    """Return the tokens of a `.credentials.json`; none if it is invalid."""
    kept: object = None
    with contextlib.suppress(msgspec.DecodeError, UnicodeError, RecursionError):
        kept = msgspec.json.decode(credentials.reveal())
    fields = record(kept, "claudeAiOauth")
    return [Secret(token) for name in ("accessToken", "refreshToken") if (token := text(fields.get(name)))]


def _opencode(
    name: str, keys: Mapping[str, Secret], *, real: bool, config: Mapping[str, object] | None = None
) -> CredentialProfile:
    auth = {provider: {"type": "api", "key": key.reveal()} for provider, key in keys.items()}
    files = [CredentialFile(path=f"{OPENCODE_DATA}/auth.json", content=_json(auth))]
    directories = [CredentialDirectory(path=OPENCODE_DATA)]
    if config is not None:
        directories.append(CredentialDirectory(path=OPENCODE_CONFIG, mode=0o755))
        path = f"{OPENCODE_CONFIG}/opencode.json"
        files.append(CredentialFile(path=path, content=_json(config), mode=0o644, secret=False))
    return CredentialProfile(
        name=name, directories=directories, files=files, secrets=tuple(set(keys.values())), real=real
    )


def _codex(name: str, key: Secret, more: tuple[CredentialFile, ...], *, real: bool, checked: bool) -> CredentialProfile:
    auth = _json({"auth_mode": "apikey", "OPENAI_API_KEY": key.reveal()})
    return CredentialProfile(
        name=name,
        directories=(CredentialDirectory(path=CODEX),),
        files=(CredentialFile(path=f"{CODEX}/auth.json", content=auth), *more),
        secrets=(key,),
        real=real,
        check=_CODEX_STATUS if checked else None,
    )


def _goose(name: str, provider: str, key: Secret, config: Mapping[str, str], *, real: bool) -> CredentialProfile:
    # Both are YAML, which includes JSON.
    variable = f"{provider.upper().replace('-', '_')}_API_KEY"
    return CredentialProfile(
        name=name,
        directories=(CredentialDirectory(path=GOOSE),),
        files=(
            CredentialFile(path=f"{GOOSE}/secrets.yaml", content=_json({variable: key.reveal()})),
            CredentialFile(path=f"{GOOSE}/config.yaml", content=_json(config), secret=False),
        ),
        secrets=(key,),
        real=real,
    )


def _sh(script: str) -> Command:
    return Command(argv=("sh", "-c", script))


def _json(value: object) -> Secret:
    return Secret(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def _door(url: str) -> str:
    if not url.startswith(("http://", "https://")) or not url.isascii() or not url.isprintable() or url.endswith("/"):
        raise BadInput(
            f"{one_line(url)!r} is not the address of a door: it must start with http:// and not end with a slash"
        )
    return url


def _host(host: str) -> str:
    if not _HOST.match(host):
        raise BadInput(f"{one_line(host)!r} is not a host: give a name such as github.com, with an optional port")
    return host


def _provider(name: str) -> str:
    if not _PROVIDER.match(name):
        raise BadInput(f"{one_line(name)!r} is not a provider: lower case letters, digits, - and _ are allowed")
    return name
