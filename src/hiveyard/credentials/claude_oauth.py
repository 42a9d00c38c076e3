"""Sign in with a Claude account: PKCE sign-in, code exchange, refresh. This module stores nothing.

**Anthropic's terms allow the tokens of a Claude subscription only in Anthropic's own programs.** Other programs may not
offer this sign-in to their users, nor send requests with such a token. So we recommend an API key, or `claude
setup-token`, whose token is used by the real `claude` program (`profiles.claude_setup_token`). This module is for users
who run that program with their own account and must keep a sign-in fresh. Nothing uses it unless requested.

    sign_in = begin(settings)                       # show sign_in.url to the user
    tokens = await exchange(settings, sign_in, pasted_answer)
    refresher = Refresher(settings, load, save, lock=path)
    tokens = await refresher.tokens()               # refreshed when they are about to expire

Refresh tokens rotate: each is valid once. So there must be only one writer: the `Refresher`.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import SplitResult, parse_qs, urlencode, urlsplit

import httpx2
import msgspec

from hiveyard.core.errors import BadInput, BadSetting, BadSignInAnswer, CredentialsError, SignInRefused
from hiveyard.credentials.format import check_key, flaw
from hiveyard.credentials.token_endpoint import ask
from hiveyard.kit.address import loopback
from hiveyard.kit.clock import Clock, SystemClock
from hiveyard.kit.secret import Secret
from hiveyard.kit.shape import items, number, record, text

_LONGEST_LIFE = 10 * 366 * 86_400.0
_LONGEST_ANSWER = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class OAuthSettings:
    """The endpoints and the program of a sign-in. The defaults are those of Claude Code."""

    authorize_url: str = "https://claude.com/cai/oauth/authorize"
    """Page that the user opens; for accounts of the Console it is https://platform.claude.com/oauth/authorize."""
    token_url: str = "https://platform.claude.com/v1/oauth/token"  # noqa: S105
    """Endpoint that returns tokens for a code or a refresh token."""
    redirect_url: str = "https://platform.claude.com/oauth/code/callback"
    """Page that shows the code to the user."""
    client_id: str = "9d1c250a-e61b-44d9-88ed-5944d1962f5e"
    """Public name of the program that signs in."""
    scopes: tuple[str, ...] = ("user:inference", "user:profile")
    """Permissions of the tokens."""
    seconds: float = 30.0
    """Longest time in seconds that the endpoint may take to answer."""
    proxy: str = ""
    """Address of an HTTP proxy for the endpoint; empty means a direct connection."""
    ca_file: str = ""
    """File of certificate authorities to trust instead of the usual ones, in PEM format."""

    def __post_init__(self) -> None:
        for name in ("authorize_url", "token_url", "redirect_url"):
            _check_address(name, getattr(self, name))
        if not self.seconds > 0:
            raise BadSetting(f"seconds is {self.seconds}: it must be more than 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class SignIn:
    """A started sign-in. The user opens `url`; the other fields are needed for the code that the user brings back."""

    url: str
    state: Secret
    verifier: Secret


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """The tokens of a sign-in. `expires_at` is the end of the access token, in seconds since the epoch. `refresh` is
    None for a token that cannot be refreshed. `more` are other fields that Claude Code keeps in its file."""

    access: Secret
    refresh: Secret | None
    expires_at: float
    scopes: tuple[str, ...] = ()
    account: str = ""
    more: Mapping[str, object] = field(default_factory=dict)

    def expired(self, now: float, *, margin: float = 0.0) -> bool:
        """Whether the access token has expired, or will within `margin` seconds."""
        return now + margin >= self.expires_at

    @property
    def secrets(self) -> tuple[Secret, ...]:
        return (self.access,) if self.refresh is None else (self.access, self.refresh)

    def file(self, before: Secret | None = None) -> Secret:
        """Return the content of Claude Code's `.credentials.json` with these tokens and the other fields of
        `before`."""
        fields: dict[str, object] = {
            **self.more,
            "accessToken": self.access.reveal(),
            "expiresAt": int(self.expires_at * 1000),
            "scopes": list(self.scopes),
        }
        if self.refresh is not None:
            fields["refreshToken"] = self.refresh.reveal()
        kept = record(_decoded(before)) if before is not None else {}
        return Secret(msgspec.json.encode({**kept, "claudeAiOauth": fields}).decode())


def tokens_of_file(content: Secret) -> Tokens:
    """Return the tokens in a `.credentials.json`. Raises CredentialsError, which shows nothing of the content."""
    fields = dict(record(_decoded(content), "claudeAiOauth"))
    access, refresh = text(fields.pop("accessToken", "")), text(fields.pop("refreshToken", ""))
    expires, scopes = number(fields.pop("expiresAt", None)), items(fields.pop("scopes", ()))
    if not access or expires is None:
        raise CredentialsError("this is not a .credentials.json: accessToken or expiresAt is missing")
    return Tokens(
        access=check_key("the account", Secret(access)),
        refresh=check_key("the account", Secret(refresh)) if refresh else None,
        expires_at=expires / 1000,
        scopes=tuple(filter(None, map(text, scopes))),
        more=fields,
    )


def _decoded(content: Secret) -> object:
    try:
        return msgspec.json.decode(content.reveal())
    except (msgspec.DecodeError, UnicodeError):
        return None


def begin(settings: OAuthSettings) -> SignIn:
    """Start a sign-in: return the address that the user opens, and our secrets for it (PKCE, S256)."""
    verifier, state = secrets.token_urlsafe(64), secrets.token_urlsafe(32)
    challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()
    query = {
        "code": "true",
        "client_id": settings.client_id,
        "response_type": "code",
        "redirect_uri": settings.redirect_url,
        "scope": " ".join(settings.scopes),
        "code_challenge": challenge,
        "code_challenge_method": "S256",
        "state": state,
    }
    return SignIn(url=f"{settings.authorize_url}?{urlencode(query)}", state=Secret(state), verifier=Secret(verifier))


async def exchange(settings: OAuthSettings, sign_in: SignIn, answer: str, *, clock: Clock | None = None) -> Tokens:
    """Return the tokens for the user's answer: `code#state`, or the address of the page that showed it.

    Raises BadInput for an invalid answer or one of another sign-in; otherwise as `refresh`."""
    code = _code(sign_in, answer)
    body = {
        "grant_type": "authorization_code",
        "code": code.reveal(),
        "state": sign_in.state.reveal(),
        "client_id": settings.client_id,
        "redirect_uri": settings.redirect_url,
        "code_verifier": sign_in.verifier.reveal(),
    }
    answered = await ask(settings, body, (code, sign_in.state, sign_in.verifier))
    return _tokens(answered, (clock or SystemClock()).now())


async def refresh(settings: OAuthSettings, tokens: Tokens, *, clock: Clock | None = None) -> Tokens:
    """Return new tokens for a refresh token, which is valid only once: use a `Refresher` to share it.

    Raises SignInRefused (400 and other 4xx; SignInUnauthorized, SignInNotFound of it), SignInRateLimited,
    SignInUnavailable, SignInUnreachable, SignInTimeout, BadSignInAnswer. After the last three it is unknown whether the
    refresh token is still valid."""
    if tokens.refresh is None:
        raise SignInRefused("there is no refresh token", hint="sign in again")
    body = {
        "grant_type": "refresh_token",
        "refresh_token": tokens.refresh.reveal(),
        "client_id": settings.client_id,
    }
    answered = await ask(settings, body, tokens.secrets)
    return _tokens(answered, (clock or SystemClock()).now(), before=tokens)


def _code(sign_in: SignIn, answer: str) -> Secret:
    """Return the code in an answer. Errors do not show the answer: it may be anything from the clipboard."""
    hint = "paste the complete text that the page shows, including the #"
    answer = answer.strip()[:_LONGEST_ANSWER]
    if answer.startswith(("https://", "http://")):
        query = parse_qs(answer.partition("#")[0].partition("?")[2])
        code, state = (query.get(name, [""])[0] for name in ("code", "state"))
    else:
        code, _, state = answer.partition("#")
    if not state or flaw(Secret(code)):
        raise BadInput("this is not the answer of a sign-in: the code or the state is missing", hint=hint)
    if not hmac.compare_digest(state.encode(), sign_in.state.reveal().encode()):
        raise BadInput("this answer belongs to another sign-in", hint="start again, and use the newest page")
    return Secret(code)


def _tokens(answered: Mapping[str, object], now: float, *, before: Tokens | None = None) -> Tokens:
    access, rotated = text(answered.get("access_token")), text(answered.get("refresh_token"))
    life = number(answered.get("expires_in"))
    if not access or life is None or not 0 < life <= _LONGEST_LIFE:
        raise BadSignInAnswer(f"the token endpoint's answer has no valid {'expires_in' if access else 'access_token'}")
    for token in filter(None, (access, rotated)):
        if wrong := flaw(Secret(token)):
            raise BadSignInAnswer(f"the token endpoint's answer has a token that {wrong}")
    scopes = text(answered.get("scope")).split()
    email = text(record(answered, "account").get("email_address"))
    kept = before.refresh if before else None
    return Tokens(
        access=Secret(access),
        refresh=Secret(rotated) if rotated else kept,
        expires_at=now + life,
        scopes=tuple(scopes) or (before.scopes if before else ()),
        account=email or (before.account if before else ""),
        more=before.more if before else {},
    )


def _check_address(name: str, address: str) -> None:
    parts = _parts(address)
    if (
        parts is None
        or parts.scheme not in ("https", "http")
        or not parts.hostname
        or parts.query
        or parts.fragment
        or parts.username
    ):
        raise BadSetting(
            f"{name} is not a valid address: it must start with https:// and have no user, query or fragment"
        )
    if parts.scheme == "http" and not loopback(parts.hostname):
        raise BadSetting(f"{name} is an http address at {parts.hostname}: a token would be sent unencrypted")


def _parts(address: str) -> SplitResult | None:
    """Parse an address; None if it is invalid for urllib or for the HTTP client."""
    with contextlib.suppress(ValueError, httpx2.InvalidURL):  # their messages contain the address
        httpx2.URL(address)
        return urlsplit(address)
    return None
