"""Errors of internet services other than machines: a branch of the tree in `core/errors.py`."""

from __future__ import annotations

from hiveyard.core.error import HasRetryAfter, HiveyardError


class ServiceError(HiveyardError):
    code = "service"


class ServiceRefused(ServiceError):
    """The service refused the request as invalid (400, 409, 422). It would refuse it again."""

    code = "service.refused"


class ServiceUnauthorized(ServiceError):
    """The service refused the token, or the token has no permission for this (401, 403)."""

    code = "service.unauthorized"


class ServiceNotFound(ServiceError):
    """The service does not know the thing that the request names (404)."""

    code = "service.not_found"


class ServiceRateLimited(HasRetryAfter, ServiceError):
    """The service received too many requests (429)."""

    code, retry = "service.rate_limited", True


class ServiceFailed(HasRetryAfter, ServiceError):
    """The service answered with a server error (5xx)."""

    code, retry = "service.failed", True


class ServiceUnreachable(ServiceError):
    """There is no connection to the service, or it broke in the middle of an answer."""

    code, retry = "service.unreachable", True


class ServiceTimeout(ServiceError):
    """The service did not answer in time."""

    code, retry = "service.timeout", True


class ServiceBadAnswer(ServiceError):
    """The service's answer is invalid: HTML, too large, or against its own schema."""

    code = "service.bad_answer"
