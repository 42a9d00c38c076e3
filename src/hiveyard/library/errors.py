"""Errors of an orchestrator: what it was doing with which machine, why that failed, and no secret in any of it.

A guest knows the secrets it was given, and can put them into any text it answers. So the cause is a copy with the
secrets masked, and the error it was made from is not held on to.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from hiveyard.core.errors import (
    Cancelled,
    HiveyardError,
    NotPrepared,
    OperationFailed,
    OrchestrationError,
    SessionNotStarted,
)
from hiveyard.kit.mask import Mask
from hiveyard.kit.text import one_line

T = TypeVar("T")
_log = logging.getLogger("hiveyard.library")
_KEEP = "keep_on_error=True leaves the machine to look at"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One operation on a machine, or on a snapshot of one. `words` begin the message when it fails; `hint` is for a
    cause that has none."""

    kind: type[OrchestrationError]
    operation: str
    words: str
    machine: str = ""
    process: str = ""
    snapshot: str = ""
    hint: str = ""

    async def of(self, work: Awaitable[T], mask: Mask) -> T:
        """What `work` gives. Raises `kind` for a HiveyardError; all else that is raised goes through."""
        try:
            return await work
        except HiveyardError as error:
            failure = self.failure(error, mask)
        # Outside of the handler, else Python would hang the error as it was to this one.
        raise failure

    def failure(self, error: HiveyardError, mask: Mask) -> OrchestrationError:
        """The error to raise, with the masked `error` as its cause."""
        cause = masked(error, mask)
        about = {"machine": self.machine, "process": self.process, "snapshot": self.snapshot}
        context = {**cause.context, "operation": self.operation, "cause": cause.code}
        context |= {what: name for what, name in about.items() if name}
        failure = self.kind(f"{self.words}: {cause.message}", hint=cause.hint or self.hint, **context)
        failure.__cause__ = cause
        return failure


def preparing(operation: str, machine: str) -> Step:
    """A step on the way to a machine that is of use."""
    words = f"the machine {machine} was not prepared ({operation})"
    hint = "hv doctor" if operation == "boot" else _KEEP
    return Step(kind=NotPrepared, operation=operation, machine=machine, words=words, hint=hint)


def starting(machine: str, process: str, *, programs: str) -> Step:
    """The start of an agent's process, which needs these programs in the image."""
    return Step(
        kind=SessionNotStarted,
        operation="start_session",
        machine=machine,
        process=process,
        words=f"the session {one_line(process)} was not started in the machine {machine}",
        hint=f"{programs} need their programs in the image; {_KEEP}",
    )


def operating(operation: str, machine: str, process: str = "") -> Step:
    """Anything else that is done with a machine, or a process in it."""
    about = f"{operation} of {one_line(process)} in" if process else f"{operation} of"
    words = f"{about} the machine {machine} failed"
    return Step(kind=OperationFailed, operation=operation, machine=machine, process=process, words=words)


def removing(snapshot: str) -> Step:
    """The removal of a snapshot."""
    words = f"the snapshot {one_line(snapshot)} was not removed"
    return Step(kind=OperationFailed, operation="remove_snapshot", snapshot=snapshot, words=words)


def masked(error: HiveyardError, mask: Mask) -> HiveyardError:
    """The same again with the secrets masked, whatever its class asks for to be made."""
    message = mask.text(error.message)
    same = type(error).__new__(type(error), message)
    vars(same).update(vars(error))
    same.message = message
    same.hint = mask.text(error.hint)
    same.context = {name: mask.text(value) for name, value in error.context.items()}
    return same


@contextmanager
def logged(machine: str, operation: str, mask: Mask) -> Iterator[None]:
    """Work that has no caller to fail to: whatever it raises goes to the log `hiveyard.library`, masked."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - the top of a task
        _log.error("%s of the machine %s failed: %s", operation, machine, mask.text(_trace(error)))


def _trace(error: Exception) -> str:
    return "".join(traceback.format_exception(error))


def why(error: BaseException) -> tuple[str, str, str]:
    """The operation, code and reason of what ended a piece of work."""
    if isinstance(error, OrchestrationError):
        return error.context.get("operation", ""), error.context.get("cause", error.code), error.message
    if isinstance(error, Exception):
        return "", HiveyardError.code, f"a {type(error).__name__}, which is no error of Hiveyard"
    return "", Cancelled.code, "it was cancelled"
