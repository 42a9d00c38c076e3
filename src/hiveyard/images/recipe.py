"""Parse and validate recipes, which describe the content of an image."""

from __future__ import annotations

import hashlib
import json
import platform
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from hiveyard.core.errors import BadInput

LAYOUT = 1
"""Part of every key: count it up when the builder makes another image from the same recipe."""

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "arm64": "arm64"}
_SUITE = re.compile(r"[a-z][a-z0-9-]{0,39}\Z")
_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]+(=[A-Za-z0-9.+:~-]+)?\Z")
_NPM = re.compile(r"(?P<package>(@[a-z0-9~-][a-z0-9._~-]*/)?[a-z0-9~-][a-z0-9._~-]*)@\d+\.\d+\.\d+[0-9A-Za-z.+-]*\Z")
_NODE = re.compile(r"(\d+\.\d+\.\d+)?\Z")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_PROGRAM = re.compile(r"[a-z0-9][a-z0-9._-]{0,39}\Z")
_KEYS = ("from", "debian", "packages", "node", "npm", "run", "env", "programs")

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """The recipe of an image.

    `packages` are Debian packages (`name` or `name=version`). `npm` are pinned programs (`name@1.2.3`) that are
    installed globally with Node `node` ("": without Node). `run` are scripts for `sh` that run as root inside, at the
    end of the build. `env` is set for them and for every command in a machine. `programs` maps a name to the command
    line that prints its version."""

    name: str
    suite: str = "bookworm"
    packages: tuple[str, ...] = ()
    node: str = ""
    npm: tuple[str, ...] = ()
    run: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    programs: Mapping[str, str] = field(default_factory=dict)

    def key(self, arch: str | None = None) -> str:
        """Return 16 hex digits that depend on everything that decides the build, and on nothing else (not the name)."""
        content = {
            "layout": LAYOUT,
            "arch": arch or debian_arch(),
            "suite": self.suite,
            "packages": sorted(set(self.packages)),
            "node": self.node,
            "npm": sorted(self.npm),
            "run": list(self.run),
            "env": dict(self.env),
            "programs": dict(self.programs),
        }
        return digest(content)


def digest(content: object) -> str:
    """Return the first 16 hex digits of the SHA-256 of `content` as canonical JSON."""
    text = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def debian_arch() -> str:
    """Return Debian's name for this machine's architecture. Raises BadInput if no image can be built on it."""
    machine = platform.machine()
    try:
        return _ARCHITECTURES[machine]
    except KeyError:
        raise BadInput(f"images can be built on x86_64 and aarch64, this machine is {machine}") from None


def load(path: Path, name: str, base: Callable[[str], Recipe]) -> Recipe:
    """Read a recipe file; `base` finds the recipe that `from` names. Raises BadInput, naming the file and the key."""
    try:
        table = tomllib.loads(path.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"{path} is not a recipe: {error}") from None
    except OSError as error:
        raise BadInput(f"the recipe {path} cannot be read: {error.strerror}") from None
    return _Reader(path, table).recipe(name, base)


class _Reader:
    """A parsed recipe file. Each error names the file and the key."""

    def __init__(self, path: Path, table: dict[str, object]) -> None:
        self._path = path
        self._table = table

    def recipe(self, name: str, base: Callable[[str], Recipe]) -> Recipe:
        self._known(self._table, _KEYS, "")
        debian = self._mapping("debian")
        self._known(debian, ("suite",), "debian.")
        parent = self._text(self._table, "from", "")
        root = base(parent) if parent else Recipe(name=name)
        node = self._checked("node", self._text(self._table, "node", root.node), _NODE, "an exact version as 22.20.0")
        npm = self._checked_list("npm", _NPM, "a pinned npm package as name@1.2.3")
        if (npm or root.npm) and not node:
            raise self._wrong("npm", "npm packages need Node: set `node`")
        return Recipe(
            name=name,
            suite=self._checked(
                "debian.suite", self._text(debian, "suite", root.suite, "debian."), _SUITE, "a Debian suite"
            ),
            packages=_merged(root.packages, tuple(self._packages())),
            node=node,
            npm=_repinned(root.npm, npm),
            run=root.run + self._list("run"),
            env={**root.env, **self._strings("env", _VARIABLE, "a name of an environment variable")},
            programs={**root.programs, **self._strings("programs", _PROGRAM, "a name of a program")},
        )

    def _packages(self) -> list[str]:
        named = [text.replace("{arch}", debian_arch()) for text in self._list("packages")]
        return [self._checked("packages", text, _PACKAGE, "a Debian package") for text in named]

    def _checked_list(self, key: str, pattern: re.Pattern[str], what: str) -> tuple[str, ...]:
        return tuple(self._checked(key, text, pattern, what) for text in self._list(key))

    def _strings(self, key: str, pattern: re.Pattern[str], what: str) -> dict[str, str]:
        table = self._mapping(key)
        return {self._checked(key, name, pattern, what): self._line(table, key, name) for name in table}

    def _line(self, table: Mapping[str, object], key: str, name: str) -> str:
        text = self._text(table, name, "", f"{key}.")
        if any(ord(character) < 32 for character in text):
            raise self._wrong(f"{key}.{name}", "must be one line without control characters")
        return text

    def _checked(self, key: str, text: str, pattern: re.Pattern[str], what: str) -> str:
        if not pattern.match(text):
            raise self._wrong(key, f"{text[:80]!r} is not {what}")
        return text

    def _list(self, key: str) -> tuple[str, ...]:
        value = self._table.get(key, [])
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self._wrong(key, "must be a list of strings")
        if any("\0" in item or not item.strip() for item in value):
            raise self._wrong(key, "contains an empty string or a NUL character")
        return tuple(value)

    def _mapping(self, key: str) -> dict[str, object]:
        value = self._table.get(key, {})
        if not isinstance(value, dict):
            raise self._wrong(key, f"must be a table: [{key}]")
        return value

    def _text(self, table: Mapping[str, object], key: str, default: str, prefix: str = "") -> str:
        value = table.get(key, default)
        if not isinstance(value, str):
            raise self._wrong(prefix + key, "must be a string")
        return value

    def _known(self, table: Mapping[str, object], keys: tuple[str, ...], prefix: str) -> None:
        for key in table:
            if key not in keys:
                raise self._wrong(prefix + key, f"is not a key of a recipe; the keys are {', '.join(keys)}")

    def _wrong(self, key: str, complaint: str) -> BadInput:
        return BadInput(f"{self._path}: {key}: {complaint}")


def _merged(first: tuple[str, ...], second: tuple[str, ...]) -> tuple[str, ...]:
    """Return the packages of both without duplicates. A version in the second replaces that of the first."""
    named = {text.partition("=")[0]: text for text in (*first, *second)}
    return tuple(sorted(named.values()))


def _repinned(first: tuple[str, ...], second: tuple[str, ...]) -> tuple[str, ...]:
    """Return the packages of both. A version in the second replaces that of the first."""
    return tuple(sorted({text.rpartition("@")[0]: text for text in (*first, *second)}.values()))
