"""Ports of the host for one row of tests: what is stopped in one finds its port free when it goes on."""

from __future__ import annotations

import os

_ROW = 100


def own_ports() -> str:
    """The setting."""
    row = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    first = 3000 + _ROW * row
    return f"\n[ports]\nfirst = {first}\nlast = {first + _ROW - 1}\n"
