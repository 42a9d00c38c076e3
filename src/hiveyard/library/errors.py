"""Errors of an orchestrator: the failed operation, the machine, the cause, and no secret.

A guest knows its secrets, and can put them into any of its answers. The cause is therefore a masked copy, and the
original error is not kept."""

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
_KEEP_HINT = "keep_on_error=True keeps the machine for inspection"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One operation on a machine or a snapshot.

    `words` begin the message if it fails; `hint` is for a cause that has none."""

    kind: type[OrchestrationError]
    operation: str
    words: str
    machine: str = ""
    process: str = ""
    snapshot: str = ""
    hint: str = ""

    async def run(self, work: Awaitable[T], mask: Mask) -> T:
        """Return the result of `work`. Raises `kind` for a HiveyardError; other exceptions pass through."""
        try:
            return await work
        except HiveyardError as error:
            failure = self.failure(error, mask)
        # Outside of the handler, otherwise Python would attach the original error as the context.
        raise failure

    def failure(self, error: HiveyardError, mask: Mask) -> OrchestrationError:
        """Return the error to raise, with the masked `error` as its cause."""
        cause = masked(error, mask)
        subject = {"machine": self.machine, "process": self.process, "snapshot": self.snapshot}
        context = {**cause.context, "operation": self.operation, "cause": cause.code}
        context |= {key: name for key, name in subject.items() if name}
        failure = self.kind(f"{self.words}: {cause.message}", hint=cause.hint or self.hint, **context)
        failure.__cause__ = cause
        return failure


def preparing(operation: str, machine: str) -> Step:
    """Return a step in the preparation of a machine."""
    words = f"the machine {machine} was not prepared ({operation})"
    hint = "hv doctor" if operation == "boot" else _KEEP_HINT
    return Step(kind=NotPrepared, operation=operation, machine=machine, words=words, hint=hint)


def starting(machine: str, process: str, *, programs: str) -> Step:
    """Return the start of an agent's process. `programs` must be installed in the image."""
    return Step(
        kind=SessionNotStarted,
        operation="start_session",
        machine=machine,
        process=process,
        words=f"the session {one_line(process)} was not started in the machine {machine}",
        hint=f"the image must contain the programs of {programs}; {_KEEP_HINT}",
    )


def operating(operation: str, machine: str, process: str = "") -> Step:
    """Return any other operation on a machine, or on a process in it."""
    subject = f"{operation} of {one_line(process)} in" if process else f"{operation} of"
    words = f"{subject} the machine {machine} failed"
    return Step(kind=OperationFailed, operation=operation, machine=machine, process=process, words=words)


def removing(snapshot: str) -> Step:
    """Return the removal of a snapshot."""
    words = f"the snapshot {one_line(snapshot)} was not removed"
    return Step(kind=OperationFailed, operation="remove_snapshot", snapshot=snapshot, words=words)


def masked(error: HiveyardError, mask: Mask) -> HiveyardError:
    """Return a copy of an error with the secrets masked, without calling its constructor."""
    message = mask.text(error.message)
    copy = type(error).__new__(type(error), message)
    vars(copy).update(vars(error))
    copy.message = message
    copy.hint = mask.text(error.hint)
    copy.context = {name: mask.text(value) for name, value in error.context.items()}
    return copy


@contextmanager
def log_errors(machine: str, operation: str, mask: Mask) -> Iterator[None]:
    """Log any error of the block, masked, to `hiveyard.library`. For work without a caller."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - the top of a task
        _log.error("%s of the machine %s failed: %s", operation, machine, mask.text(_trace(error)))


def _trace(error: Exception) -> str:
    return "".join(traceback.format_exception(error))


def failure_details(error: BaseException) -> tuple[str, str, str]:
    """Return the operation, code and reason of an exception."""
    if isinstance(error, OrchestrationError):
        return error.context.get("operation", ""), error.context.get("cause", error.code), error.message
    if isinstance(error, Exception):
        return "", HiveyardError.code, f"an unexpected {type(error).__name__}"
    return "", Cancelled.code, "it was cancelled"
