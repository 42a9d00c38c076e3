"""Errors of keys, credentials in guests and sign-ins: a branch of the tree in `core/errors.py`."""

from __future__ import annotations

from hiveyard.core.error import HasRetryAfter, HiveyardError


class CredentialsError(HiveyardError):
    code = "credentials"


class KeyMissing(CredentialsError):
    code = "credentials.key_missing"


class KeyRefused(CredentialsError):
    code = "credentials.key_refused"


class RealSecretRefused(CredentialsError):
    """A profile would install a real secret in a guest, and it was not requested by name."""

    code = "credentials.real_secret"


class CredentialsNotInstalled(CredentialsError):
    """A directory or file of a profile could not be made, or differs from what was written. The previous state is
    restored."""

    code = "credentials.not_installed"


class CredentialsCheckFailed(CredentialsError):
    """The check command of a profile failed. The previous state is restored."""

    code = "credentials.check_failed"


class SignInRefused(CredentialsError):
    """The sign-in service answered 400 or another 4xx: the code or refresh token is used up, revoked or unknown."""

    code = "credentials.sign_in_refused"


class SignInUnauthorized(SignInRefused):
    """The service answered 401 or 403: it does not accept this client or account."""

    code = "credentials.sign_in_unauthorized"


class SignInNotFound(SignInRefused):
    """The service answered 404: there is no such endpoint."""

    code = "credentials.sign_in_not_found"


class SignInRateLimited(HasRetryAfter, CredentialsError):
    """The service answered 429."""

    code, retry = "credentials.sign_in_rate_limited", True


class SignInUnavailable(CredentialsError):
    """The service answered 5xx."""

    code, retry = "credentials.sign_in_unavailable", True


class SignInUnreachable(CredentialsError):
    """There is no connection to the service, or the connection broke."""

    code, retry = "credentials.sign_in_unreachable", True


class SignInTimeout(CredentialsError):
    """The service did not answer in time."""

    code, retry = "credentials.sign_in_timeout", True


class BadSignInAnswer(CredentialsError):
    """The service's answer is invalid: cut in half, HTML, far too large, or without a token."""

    code, retry = "credentials.sign_in_bad_answer", True
