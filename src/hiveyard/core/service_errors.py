"""Errors of services on the internet beside machines: a branch of the tree in `core/errors.py`, which gives them
out."""

from __future__ import annotations

from hiveyard.core.error import ComeBack, HiveyardError


class ServiceError(HiveyardError):
    code = "service"


class ServiceRefused(ServiceError):
    """It found something wrong with the request itself (400, 409, 422): it would refuse it again."""

    code = "service.refused"


class ServiceUnauthorized(ServiceError):
    """It does not take the token, or that may not do this (401, 403)."""

    code = "service.unauthorized"


class ServiceNotFound(ServiceError):
    """It does not know what it was asked about (404)."""

    code = "service.not_found"


class ServiceRateLimited(ComeBack, ServiceError):
    """It was asked too much (429)."""

    code, retry = "service.rate_limited", True


class ServiceFailed(ComeBack, ServiceError):
    """It failed in a way of its own (5xx)."""

    code, retry = "service.failed", True


class ServiceUnreachable(ServiceError):
    """There is no connection to it, or it broke in the middle of an answer."""

    code, retry = "service.unreachable", True


class ServiceTimeout(ServiceError):
    """It did not answer in time."""

    code, retry = "service.timeout", True


class ServiceBadAnswer(ServiceError):
    """What it answered is none: HTML, too large, or not of its own schema."""

    code = "service.bad_answer"
