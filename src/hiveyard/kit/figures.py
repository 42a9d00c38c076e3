"""Format durations, counts, sizes and money for people."""

from __future__ import annotations


def span(seconds: float) -> str:
    """Return a duration in the largest fitting unit."""
    if seconds < 10:
        return f"{seconds:.2f}s" if seconds < 1 else f"{seconds:.1f}s"
    if seconds < 120:
        return f"{seconds:.0f}s"
    if seconds < 7200:
        return f"{seconds / 60:.0f}m"
    return f"{seconds / 3600:.0f}h" if seconds < 172800 else f"{seconds / 86400:.0f}d"


def dollars(cost: float | None) -> str:
    """Return a cost in dollars, with four decimals below $1."""
    if cost is None:
        return "price unknown"
    return f"${cost:.4f}" if cost < 1 else f"${cost:.2f}"


def count(n: int) -> str:
    """Return a number as `950`, `7.8k` or `1.2M`."""
    if n < 1000:
        return str(n)
    return f"{n / 1000:.1f}k" if n < 1_000_000 else f"{n / 1_000_000:.1f}M"


def counted(number: int, noun: str) -> str:
    """Return `1 line` or `2 lines`."""
    return f"{number} {noun}" + ("" if number == 1 else "s")


def size(bytes: float) -> str:
    """Return a size as `312 B`, `4.2 MB` or `1.3 GB`."""
    for unit in ("B", "kB", "MB"):
        if bytes < 1000:
            return f"{bytes:.0f} {unit}" if bytes >= 100 or unit == "B" else f"{bytes:.1f} {unit}"
        bytes /= 1000
    return f"{bytes:.1f} GB"
