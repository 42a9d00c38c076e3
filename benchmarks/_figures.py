"""How measurements are kept and printed: percentiles, rates and ratios, each with its number and its failures.

figures = Figures("journal")
figures.times("append to acknowledged", seconds)
rate = figures.rate("appends, 50 writers", count, elapsed)
floor = figures.rate("appends, plain sqlite3", count, elapsed)
figures.ratio("plain sqlite3 / journal", floor, rate)
figures.show(as_json=False)
"""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field


def percentile(values: Sequence[float], share: float) -> float:
    """The nearest-rank percentile: a value that was measured. `share` is 0 to 1; NaN when there are no values."""
    if not values:
        return math.nan
    ranked = sorted(values)
    return ranked[max(0, math.ceil(share * len(ranked)) - 1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One line of the table. `aim` is what it should be, in words."""

    name: str
    n: int
    failures: int
    values: dict[str, float]
    unit: str
    aim: str = ""

    def text(self) -> str:
        return "  ".join(f"{name} {_short(value)}" if name else _short(value) for name, value in self.values.items())


@dataclass(slots=True)
class Figures:
    """The results of one benchmark."""

    title: str
    lines: list[Figure] = field(default_factory=list)

    def times(self, name: str, seconds: Sequence[float], *, failures: int = 0, aim: str = "") -> Figure:
        """Durations, shown in milliseconds (in seconds from 10 s on)."""
        unit, scale = ("s", 1.0) if percentile(seconds, 0.5) >= 10 else ("ms", 1000.0)
        shares = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
        values = {label: scale * percentile(seconds, share) for label, share in shares.items()}
        return self._add(Figure(name=name, n=len(seconds), failures=failures, values=values, unit=unit, aim=aim))

    def rate(
        self, name: str, count: int, elapsed: float, *, failures: int = 0, unit: str = "/s", aim: str = ""
    ) -> Figure:
        """So many in so many seconds."""
        return self._add(
            Figure(name=name, n=count, failures=failures, values={"": count / elapsed}, unit=unit, aim=aim)
        )

    def mib(self, name: str, mib: float, *, n: int = 1, failures: int = 0) -> Figure:
        """A size, of so many things together."""
        return self._add(Figure(name=name, n=n, failures=failures, values={"": mib}, unit="MiB"))

    def ratio(self, name: str, over: Figure, under: Figure, *, aim: str = "") -> Figure:
        """One figure divided by another, by their rates or by their medians."""
        key = "" if "" in over.values else "p50"
        scale = {"s": 1000.0, "ms": 1.0}
        value = over.values[key] * scale.get(over.unit, 1.0) / (under.values[key] * scale.get(under.unit, 1.0))
        n, failures = min(over.n, under.n), over.failures + under.failures
        return self._add(Figure(name=name, n=n, failures=failures, values={"": value}, unit="x", aim=aim))

    @property
    def status(self) -> int:
        """The exit code of a benchmark: 1 when something of it failed."""
        return int(any(one.failures for one in self.lines))

    def show(self, *, as_json: bool = False) -> None:
        if as_json:
            figures = [
                {"name": one.name, "n": one.n, "failures": one.failures, "unit": one.unit, "aim": one.aim}
                | {name or "value": None if math.isnan(value) else value for name, value in one.values.items()}
                for one in self.lines
            ]
            print(json.dumps({"benchmark": self.title, "host": host(), "figures": figures}, indent=2))
            return
        print(f"{self.title}   ({host()})")
        width = max((len(one.name) for one in self.lines), default=0)
        wide = max((len(one.text()) for one in self.lines), default=0)
        for one in self.lines:
            aim = f"   aim: {one.aim}" if one.aim else ""
            print(
                f"  {one.name:<{width}}  {one.text():>{wide}} {one.unit:<3} n={one.n:<6} failures={one.failures}{aim}"
            )

    def _add(self, figure: Figure) -> Figure:
        self.lines.append(figure)
        return figure


def host() -> str:
    """The machine, in a few words; figures of two machines do not compare."""
    load = os.getloadavg()[0]
    return f"{platform.machine()}, {os.cpu_count()} cpus, load {load:.1f}, Python {platform.python_version()}"


def _short(value: float) -> str:
    if math.isnan(value):
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
