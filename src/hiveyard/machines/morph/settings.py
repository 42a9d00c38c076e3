"""What may be set about the Morph Cloud provider."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class MorphSettings:
    """`[morph]` in the settings file."""

    url: str = "https://cloud.morph.so/api"
    """Address of the service."""
    streaming: bool = True
    """Whether a command's output is streamed; false asks for it again and again, where a proxy holds streams back."""
    request_timeout: float = 30.0
    """Longest time in seconds that one request may take."""
    patience: float = 60.0
    """Longest time in seconds that a request which failed for a reason that may pass is made again."""
    boot_timeout: float = 180.0
    """Seconds a machine may take until a command can be run in it."""
    answer_mib: int = 16
    """Largest answer that is read, in MiB."""

    def __post_init__(self) -> None:
        local = self.url.startswith(("http://127.0.0.1", "http://localhost"))
        if not self.url.startswith("https://") and not local:
            raise ValueError(f"url is {self.url!r}: a key is sent there, so it begins with https://")
