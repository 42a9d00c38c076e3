"""Settings of an external provider."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ExternalSettings:
    """How long an external provider's program may take for what; all in seconds."""

    silence: float = 30.0
    """Longest time without a line while something is under way, then a ping, then as long again: it is dead then."""
    request_timeout: float = 60.0
    """Longest time for an answer that needs no work: hello, readiness, get, list, names, the start of a command."""
    boot_timeout: float = 300.0
    """Longest time until a machine is ready; stop and terminate may take as long."""
    prepare_timeout: float = 3600.0
    """Longest time to make all that booting an image needs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExternalProgram(ExternalSettings):
    """`[external.NAME]` in the settings file: the provider NAME."""

    command: tuple[str, ...] = ()
    """The program, by its absolute path, with its arguments; no secret is among them."""
    env: tuple[str, ...] = ()
    """Names of the daemon's environment variables that the program gets, besides PATH, HOME, LANG and TMPDIR."""

    def __post_init__(self) -> None:
        for what, words in (("command", self.command), ("env", self.env)):
            if not all(isinstance(word, str) and "\0" not in word for word in words):
                raise ValueError(f"{what} is {list(words)!r}: a list of texts")
        if not self.command or not self.command[0].startswith("/"):
            raise ValueError(f"command is {list(self.command)!r}: a program by its absolute path, then its arguments")
