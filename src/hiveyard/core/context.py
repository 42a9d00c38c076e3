"""What an error is about: the operation that failed, and the machine or the process it was done to."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Sequence
from functools import wraps
from typing import Any, TypeVar

from hiveyard.core.error import HiveyardError

T = TypeVar("T")
MACHINE_VERBS = (
    "boot",
    "boot_from",
    "fork",
    "get",
    "pause",
    "resume",
    "snapshot",
    "stop",
    "terminal",
    "terminate",
)
PROCESS_VERBS = ("close_inbox", "get", "logs", "remove", "send", "start", "stop")


def of_machines(cls: type[T]) -> type[T]:
    """A provider whose verbs name the operation and the machine in the context of each HiveyardError they raise: the
    operation that was called, and the machine where nobody nearer to the failure did."""
    return _telling(cls, "machine", MACHINE_VERBS)


def of_processes(cls: type[T]) -> type[T]:
    """The same for a process manager: the operation and the process."""
    return _telling(cls, "process", PROCESS_VERBS)


def _telling(cls: type[T], what: str, verbs: Sequence[str]) -> type[T]:
    for verb in verbs:
        if (method := vars(cls).get(verb)) is not None:
            setattr(cls, verb, _told(method, what))
    return cls


def _told(method: Callable[..., Awaitable[Any]], what: str) -> Callable[..., Awaitable[Any]]:
    signature = inspect.signature(method)

    @wraps(method)
    async def told(*args: Any, **kwargs: Any) -> Any:
        try:
            return await method(*args, **kwargs)
        except HiveyardError as error:
            given = signature.bind(*args, **kwargs).arguments
            named = given["name"] if "name" in given else given["spec"].name
            error.context["operation"] = method.__name__
            error.context.setdefault(what, named)
            raise

    return told
