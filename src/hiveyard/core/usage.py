"""Counts of tokens and money."""

from __future__ import annotations

import msgspec


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """The usage of calls to a model.

    `input_tokens` excludes tokens read from a cache. `cost_usd` is None if the price is unknown; money budgets then
    count it as 0, and the event says so."""

    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    cost_usd: float | None = 0.0
    requests: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            input_tokens=self.input_tokens + other.input_tokens,
            output_tokens=self.output_tokens + other.output_tokens,
            cache_read_tokens=self.cache_read_tokens + other.cache_read_tokens,
            cache_write_tokens=self.cache_write_tokens + other.cache_write_tokens,
            cost_usd=_sum(self.cost_usd, other.cost_usd),
            requests=self.requests + other.requests,
        )


def _sum(a: float | None, b: float | None) -> float | None:
    """Add two costs. An unknown cost does not erase a known one."""
    if a is None or b is None:
        return a if b is None else b
    return a + b
