"""What all errors that Hiveyard raises on purpose have in common; `core/errors.py` is the tree of them."""

from __future__ import annotations

from typing import ClassVar


class HiveyardError(Exception):
    """What failed, on which thing, with the real values."""

    code: ClassVar[str] = "internal"
    retry: ClassVar[bool] = False

    def __init__(self, message: str, *, hint: str = "", **context: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.context = context

    @property
    def advice(self) -> str:
        """The message and what to type, in one line: for whoever reads of it later."""
        return f"{self.message}: {self.hint}" if self.hint else self.message


class ComeBack(HiveyardError):
    """One of a service that may say when to come back: `retry_after`, in seconds from now; None when it did not."""

    def __init__(self, message: str, *, hint: str = "", retry_after: float | None = None, **context: str) -> None:
        super().__init__(message, hint=hint, **context)
        self.retry_after = retry_after
