"""Signing in with a Claude account: PKCE sign-in, code exchange, refresh. It keeps nothing.

**Anthropic's terms allow the tokens of a Claude subscription only in Anthropic's own programs.** Others may not offer
this sign-in to their users, nor send their requests with such a token. So the ways we recommend are an API key, and
`claude setup-token`, whose token is used by the real `claude` program (`profiles.claude_setup_token`). What is here is
for whoever runs that very program with their own account and has to keep a sign-in fresh; nothing uses it unasked.

    sign_in = begin(settings)                       # show sign_in.url to the person
    tokens = await exchange(settings, sign_in, what_they_pasted)
    refresher = Refresher(settings, load, save, lock=path)
    tokens = await refresher.tokens()               # refreshed when they are about to expire

Refresh tokens rotate: each is good once. So there must be one writer, and `Refresher` is it.
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
    """Where to sign in, and as which program. The defaults are those of Claude Code."""

    authorize_url: str = "https://claude.com/cai/oauth/authorize"
    """Page that the person opens; for accounts of the Console it is https://platform.claude.com/oauth/authorize."""
    token_url: str = "https://platform.claude.com/v1/oauth/token"  # noqa: S105
    """Endpoint that gives tokens for a code or a refresh token."""
    redirect_url: str = "https://platform.claude.com/oauth/code/callback"
    """Page that shows the code to the person."""
    client_id: str = "9d1c250a-e61b-44d9-88ed-5944d1962f5e"
    """Public name of the program that signs in."""
    scopes: tuple[str, ...] = ("user:inference", "user:profile")
    """What the tokens are to be good for."""
    seconds: float = 30.0
    """Longest time in seconds that the endpoint may take to answer."""
    proxy: str = ""
    """Address of an HTTP proxy on the way there; empty means a direct way."""
    ca_file: str = ""
    """File of certificate authorities to trust in place of the usual ones, in PEM form."""

    def __post_init__(self) -> None:
        for name in ("authorize_url", "token_url", "redirect_url"):
            _check_address(name, getattr(self, name))
        if not self.seconds > 0:
            raise BadSetting(f"seconds is {self.seconds}: it must be more than 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class SignIn:
    """A sign-in that was begun: the person opens `url`; the rest is kept until they come back with a code."""

    url: str
    state: Secret
    verifier: Secret


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """What a sign-in gives. `expires_at` is of the access token, in seconds since the epoch. A token from elsewhere,
    that cannot be refreshed, has no `refresh`. `more` is what else Claude Code keeps with them in its file."""

    access: Secret
    refresh: Secret | None
    expires_at: float
    scopes: tuple[str, ...] = ()
    account: str = ""
    more: Mapping[str, object] = field(default_factory=dict)

    def expired(self, now: float, *, margin: float = 0.0) -> bool:
        """Whether the access token is over, or will be within `margin` seconds."""
        return now + margin >= self.expires_at

    @property
    def secrets(self) -> tuple[Secret, ...]:
        return (self.access,) if self.refresh is None else (self.access, self.refresh)

    def file(self, before: Secret | None = None) -> Secret:
        """The content of Claude Code's `.credentials.json` for them, with all else that it had `before`."""
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
    """The tokens in a `.credentials.json`. Raises CredentialsError, which shows nothing of it."""
    fields = dict(record(_decoded(content), "claudeAiOauth"))
    access, refresh = text(fields.pop("accessToken", "")), text(fields.pop("refreshToken", ""))
    expires, scopes = number(fields.pop("expiresAt", None)), items(fields.pop("scopes", ()))
    if not access or expires is None:
        raise CredentialsError("the content is none of a .credentials.json: it needs accessToken and expiresAt")
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
    """Begin a sign-in: the address that the person has to open, and what only we know of it (PKCE, S256)."""
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
    """Tokens for what the person brought back: `code#state`, or the address of the page that showed it.

    Raises BadInput for an answer that is none or belongs to another sign-in; else as `refresh`."""
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
    """New tokens for a refresh token, which is used up by it: nobody else may refresh with the same one (`Refresher`).

    Raises SignInRefused (400 and other 4xx; SignInUnauthorized, SignInNotFound of it), SignInRateLimited,
    SignInUnavailable, SignInUnreachable, SignInTimeout, BadSignInAnswer. After the last three nobody knows whether
    the refresh token is used up."""
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
    """The code in an answer. What the person typed is not shown: it may be anything from their clipboard."""
    hint = "paste the whole text that the page shows, with the # in it"
    answer = answer.strip()[:_LONGEST_ANSWER]
    if answer.startswith(("https://", "http://")):
        query = parse_qs(answer.partition("#")[0].partition("?")[2])
        code, state = (query.get(name, [""])[0] for name in ("code", "state"))
    else:
        code, _, state = answer.partition("#")
    if not state or flaw(Secret(code)):
        raise BadInput("this is no answer of a sign-in: it needs a code and a state", hint=hint)
    if not hmac.compare_digest(state.encode(), sign_in.state.reveal().encode()):
        raise BadInput("this answer belongs to another sign-in", hint="begin anew, and use the newest page")
    return Secret(code)


def _tokens(answered: Mapping[str, object], now: float, *, before: Tokens | None = None) -> Tokens:
    access, rotated = text(answered.get("access_token")), text(answered.get("refresh_token"))
    life = number(answered.get("expires_in"))
    if not access or life is None or not 0 < life <= _LONGEST_LIFE:
        raise BadSignInAnswer(f"the token endpoint's answer has no sound {'expires_in' if access else 'access_token'}")
    for token in filter(None, (access, rotated)):
        if wrong := flaw(Secret(token)):
            raise BadSignInAnswer(f"the token endpoint's answer has a token that {wrong}")
    told = text(answered.get("scope")).split()
    email = text(record(answered, "account").get("email_address"))
    kept = before.refresh if before else None
    return Tokens(
        access=Secret(access),
        refresh=Secret(rotated) if rotated else kept,
        expires_at=now + life,
        scopes=tuple(told) or (before.scopes if before else ()),
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
        raise BadSetting(f"{name} is no plain address: it starts with https:// and has no user, query or fragment")
    if parts.scheme == "http" and not loopback(parts.hostname):
        raise BadSetting(f"{name} is an http address at {parts.hostname}: a token would travel in the clear")


def _parts(address: str) -> SplitResult | None:
    """None for what is no address, also by the client that is to go there, which else would say so then."""
    with contextlib.suppress(ValueError, httpx2.InvalidURL):  # their words have the address
        httpx2.URL(address)
        return urlsplit(address)
    return None
