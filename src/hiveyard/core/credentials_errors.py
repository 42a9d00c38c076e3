"""Errors of keys, of credentials in guests and of sign-ins: a branch of the tree in `core/errors.py`, which gives them
out."""

from __future__ import annotations

from hiveyard.core.error import ComeBack, HiveyardError


class CredentialsError(HiveyardError):
    code = "credentials"


class KeyMissing(CredentialsError):
    code = "credentials.key_missing"


class KeyRefused(CredentialsError):
    code = "credentials.key_refused"


class RealSecretRefused(CredentialsError):
    """A profile would put a real secret into a guest, and nobody asked for it by name."""

    code = "credentials.real_secret"


class CredentialsNotInstalled(CredentialsError):
    """A directory or file of a profile could not be made, or is not what was written. What was there before is back."""

    code = "credentials.not_installed"


class CredentialsCheckFailed(CredentialsError):
    """A profile's own check says that its credentials do not work. What was there before is back."""

    code = "credentials.check_failed"


class SignInRefused(CredentialsError):
    """The sign-in service answered 400 or another 4xx: a code or a refresh token that is used, revoked or unknown."""

    code = "credentials.sign_in_refused"


class SignInUnauthorized(SignInRefused):
    """It answered 401 or 403: the client itself, or the account, is not let in."""

    code = "credentials.sign_in_unauthorized"


class SignInNotFound(SignInRefused):
    """It answered 404: there is no such endpoint."""

    code = "credentials.sign_in_not_found"


class SignInRateLimited(ComeBack, CredentialsError):
    """It answered 429."""

    code, retry = "credentials.sign_in_rate_limited", True


class SignInUnavailable(CredentialsError):
    """It answered 5xx."""

    code, retry = "credentials.sign_in_unavailable", True


class SignInUnreachable(CredentialsError):
    """There is no connection to it, or the connection broke."""

    code, retry = "credentials.sign_in_unreachable", True


class SignInTimeout(CredentialsError):
    """It did not answer in time."""

    code, retry = "credentials.sign_in_timeout", True


class BadSignInAnswer(CredentialsError):
    """It answered something that is no answer: cut in half, HTML, far too large, without a token."""

    code, retry = "credentials.sign_in_bad_answer", True
