"""Make untrusted text safe to show."""

from __future__ import annotations

import re

# ECMA-48 control strings (OSC, DCS, PM, APC, SOS), then CSI sequences, then other escapes, then lone controls.
_CONTROL = re.compile(
    r"\x1b[\]PX^_].*?(?:\x07|\x1b\\|$)"
    r"|(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]?"
    r"|\x1b[ -/]*[0-~]?"
    r"|[\x00-\x08\x0b-\x1f\x7f-\x9f]",
    re.DOTALL,
)
# Bidirectional overrides make text look different from its content (Trojan Source, CVE-2021-42574).
_BIDI = re.compile("[\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    """Return `text` without terminal escapes, control characters (except tab and newline) and bidirectional
    overrides."""
    return _BIDI.sub("", _CONTROL.sub("", text))


def one_line(text: str, limit: int = 200) -> str:
    """Return the beginning of `text` as one printable line of at most `limit` characters, with `…` where it was cut."""
    flat = " ".join(printable(text[: 4 * limit]).split())
    return flat if len(flat) <= limit else flat[: limit - 1] + "…"


def decode(data: bytes) -> str:
    """Decode UTF-8. Invalid bytes and NUL become the replacement character."""
    return data.decode("utf-8", "replace").replace("\x00", "\ufffd")


def without_nul(text: str) -> str:
    """Replace NUL in a guest's text: a text column of PostgreSQL cannot hold it."""
    return text.replace("\0", "\ufffd")
