"""The base of all errors that Hiveyard raises on purpose. `core/errors.py` has the tree."""

from __future__ import annotations

from typing import ClassVar


class HiveyardError(Exception):
    """An error whose message says what failed, on which thing, with the actual values."""

    code: ClassVar[str] = "internal"
    retry: ClassVar[bool] = False

    def __init__(self, message: str, *, hint: str = "", **context: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.context = context

    @property
    def advice(self) -> str:
        """The message and the hint in one line, for logs and events."""
        return f"{self.message}: {self.hint}" if self.hint else self.message


class HasRetryAfter(HiveyardError):
    """An error of a service that may report when to try again: `retry_after`, in seconds from now, or None."""

    def __init__(self, message: str, *, hint: str = "", retry_after: float | None = None, **context: str) -> None:
        super().__init__(message, hint=hint, **context)
        self.retry_after = retry_after
