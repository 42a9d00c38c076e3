"""The code that docs/build.md tells people to write, taken from the page and installed as a distribution of its own."""

from __future__ import annotations

import importlib
import re
import sys
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs" / "build.md"
_BLOCK = re.compile(r"```(?:python|toml)\n# (\S+)\n(.*?)```", re.DOTALL)


def files() -> dict[str, str]:
    """The blocks that begin with the name of a file, by that name."""
    return dict(_BLOCK.findall(PAGE.read_text()))


def last() -> str:
    """The script that uses them all."""
    scripts: list[str] = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    return scripts[-1]


def install(site: Path) -> None:
    """Write them below `site`, as an installer does: modules, and the metadata with the entry points."""
    project = tomllib.loads(files()["pyproject.toml"])["project"]
    for name, text in files().items():
        if name.endswith(".py"):
            (site / name).parent.mkdir(parents=True, exist_ok=True)
            (site / name).write_text(text)
    info = site / f"{project['name']}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    groups = [
        f"[{group}]\n" + "".join(f"{name} = {place}\n" for name, place in entries.items())
        for group, entries in project["entry-points"].items()
    ]
    (info / "entry_points.txt").write_text("\n".join(groups))


@contextmanager
def installed(site: Path) -> Iterator[None]:
    """Python finds what is installed there, for as long as the block lasts, and no longer: all tests share one path."""
    sys.path.insert(0, str(site))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(str(site))
        importlib.invalidate_caches()
