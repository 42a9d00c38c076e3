"""Settings of an external provider."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ExternalSettings:
    """Time limits of an external provider's program, in seconds."""

    silence: float = 30.0
    """Time without a line during a request until the program is pinged; after the same time again it counts as dead."""
    request_timeout: float = 60.0
    """For answers without much work: hello, readiness, get, list, names, the start of a command."""
    boot_timeout: float = 300.0
    """Until a machine is ready, and for stop and terminate."""
    prepare_timeout: float = 3600.0
    """For `prepare`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExternalProgram(ExternalSettings):
    """`[external.NAME]` in the settings file: the provider NAME."""

    command: tuple[str, ...] = ()
    """The absolute path of the program and its arguments, without any secret."""
    env: tuple[str, ...] = ()
    """Names of the daemon's environment variables that the program gets, besides PATH, HOME, LANG and TMPDIR."""

    def __post_init__(self) -> None:
        for what, words in (("command", self.command), ("env", self.env)):
            if not all(isinstance(word, str) and "\0" not in word for word in words):
                raise ValueError(f"{what} is {list(words)!r}: a list of texts")
        if not self.command or not self.command[0].startswith("/"):
            raise ValueError(f"command is {list(self.command)!r}: a program by its absolute path, then its arguments")
