"""How the code reads: sizes, names and the first words of docstrings. The rules are in AGENTS.md."""

from __future__ import annotations

import ast
import re
import statistics
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src" / "hiveyard"

LINES = 450
FUNCTION = 60
MEDIAN = 8
METHODS = 25
IN_THE_ENGINE = 6
RIDDLES = 20

# Names that this code once had, and that a newcomer could not guess.
DIALECT = re.compile(
    r"""(?x) (Stay | Stint | Sitting | Course | Berth | Ground | Seat | Seated | Wish | Ways | Reach | Books | Roster
    | Ledger | Hushed | Told | Happenings | Harvest | Failing | Wanted | Wishing | Making | Whole | Metas | Points
    | Served | Others | Places | Alone)\Z""",
    re.IGNORECASE,
)


def modules() -> Iterator[tuple[Path, ast.Module]]:
    for path in sorted(SOURCE.rglob("*.py")):
        yield path.relative_to(SOURCE), ast.parse(path.read_text())


def test_modules_are_small() -> None:
    sizes = {path: len((SOURCE / path).read_text().splitlines()) for path, _ in modules()}
    assert {path: size for path, size in sizes.items() if size > LINES} == {}


def test_functions_are_short() -> None:
    sizes = {
        f"{path}:{node.name}": (node.end_lineno or node.lineno) - node.lineno + 1
        for path, tree in modules()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert {name: size for name, size in sizes.items() if size > FUNCTION} == {}
    assert statistics.median(sizes.values()) <= MEDIAN


def test_a_large_class_of_the_engine_says_why_it_is_large() -> None:
    for path, tree in modules():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and path.parts[0] == "engine":
                methods = [one for one in node.body if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)]
                assert len(methods) <= METHODS or "methods" in (ast.get_docstring(node) or ""), f"{path}: {node.name}"


def test_few_modules_lie_directly_in_the_engine() -> None:
    assert len([path for path in (SOURCE / "engine").glob("*.py") if path.name != "__init__.py"]) <= IN_THE_ENGINE


def test_modules_and_classes_have_names_of_the_field() -> None:
    names = {path.stem for path, _ in modules()}
    names |= {node.name for _, tree in modules() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
    assert [name for name in sorted(names) if DIALECT.match(name)] == []


def test_docstrings_begin_with_a_verb_or_a_noun() -> None:
    found = [
        f"{path}: {text.splitlines()[0]}"
        for path, tree in modules()
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and re.match(r"(Who|What|Whose|Whoever|Whatever)\b", text := ast.get_docstring(node) or "")
    ]
    assert len(found) <= RIDDLES, "\n".join(found)
