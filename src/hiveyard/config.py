"""Read the settings: one TOML file, with one frozen Settings class beside each part that it configures.

Only the daemon and the CLI use this module. They give every other part its own Settings.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import tomllib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from hiveyard.core import units
from hiveyard.core.errors import BadInput, BadSetting
from hiveyard.door.keys import VARIABLES
from hiveyard.door.settings import DoorSettings
from hiveyard.engine.settings import AgentSettings, EngineSettings, PortSettings
from hiveyard.hive.settings import HiveSettings
from hiveyard.machines.bubblewrap.settings import BubblewrapSettings
from hiveyard.machines.docker.settings import DockerSettings
from hiveyard.machines.external.settings import ExternalProgram
from hiveyard.machines.morph.settings import MorphSettings
from hiveyard.machines.qemu.settings import QemuSettings
from hiveyard.paths import Paths
from hiveyard.store.settings import StoreSettings
from hiveyard.web.settings import WebSettings

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """One field per section of the file; see docs/settings.md."""

    engine: EngineSettings = field(default_factory=EngineSettings)
    agents: Mapping[str, AgentSettings] = field(default_factory=dict)
    hive: HiveSettings = field(default_factory=HiveSettings)
    door: DoorSettings = field(default_factory=DoorSettings)
    ports: PortSettings = field(default_factory=PortSettings)
    store: StoreSettings = field(default_factory=StoreSettings)
    web: WebSettings = field(default_factory=WebSettings)
    qemu: QemuSettings = field(default_factory=QemuSettings)
    docker: DockerSettings = field(default_factory=DockerSettings)
    bubblewrap: BubblewrapSettings = field(default_factory=BubblewrapSettings)
    morph: MorphSettings = field(default_factory=MorphSettings)
    external: Mapping[str, ExternalProgram] = field(default_factory=dict)


def load(paths: Paths) -> Settings:
    """Return the settings of `paths.config`, or the defaults when there is no such file.

    Raises BadSetting, naming the file and the key, for an unknown key or a value of the wrong kind.
    """
    try:
        text = paths.config.read_text(encoding="utf-8")
    except FileNotFoundError:
        return Settings()
    except (OSError, UnicodeDecodeError) as error:
        raise BadSetting(f"{paths.config} cannot be read: {error}") from error
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise BadSetting(f"{paths.config} is not TOML: {error}") from error
    return parse(Settings, table, str(paths.config))


def parse(kind: type[T], table: Mapping[str, object], where: str) -> T:
    """Return a settings dataclass made from a TOML table. Raises BadSetting."""
    hints = typing.get_type_hints(kind)
    for key in table:
        if key not in hints:
            close = difflib.get_close_matches(key, hints, n=1)
            raise BadSetting(
                f"{where}: there is no setting {key!r}",
                hint=f"did you mean {close[0]!r}?" if close else "known here: " + ", ".join(sorted(hints)),
            )
    values: dict[str, Any] = {}
    for key, value in table.items():
        try:
            number = _number(hints[key], key, value)
        except BadInput as error:
            raise BadSetting(f"{where}: {key} {error.message}") from None
        values[key] = _value(hints[key], number, f"{where}: {key}")
    try:
        return kind(**values)
    except ValueError as error:
        raise BadSetting(f"{where}: {error}") from error


def _number(hint: Any, key: str, value: object) -> object:
    """Return a duration or a size with a unit (`"10m"`, `"2g"`) as a number. Raises BadInput."""
    if not isinstance(value, str):
        return value
    if hint is float and key != "cpus":  # every other number with a fraction is a time
        return units.seconds(value)
    parse = units.of_field(key) if hint is int else None
    return value if parse is None else parse(value)


def _value(hint: Any, value: object, where: str) -> Any:
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if not isinstance(value, dict):
            raise BadSetting(f"{where} is a section, not {value!r}")
        return parse(hint, value, where)
    if typing.get_origin(hint) is Mapping:
        if not isinstance(value, dict):
            raise BadSetting(f"{where} is a section of sections, not {value!r}")
        return {key: _value(typing.get_args(hint)[1], part, f"{where}.{key}") for key, part in value.items()}
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    for option in options:
        if option is Path and isinstance(value, str):
            return Path(value).expanduser()
        if option is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        if typing.get_origin(option) is typing.Literal and value in typing.get_args(option):
            return value
        if typing.get_origin(option) is tuple and isinstance(value, list):
            return tuple(value)
        if isinstance(option, type) and isinstance(value, option) and isinstance(value, bool) == (option is bool):
            return value
    raise BadSetting(f"{where} cannot be {value!r}", hint=f"it is {_describe(hint)}")


def _describe(hint: Any) -> str:
    if typing.get_origin(hint) is typing.Literal:
        return "one of " + ", ".join(repr(choice) for choice in typing.get_args(hint))
    if isinstance(hint, types.UnionType):
        return " or ".join(_describe(option) for option in typing.get_args(hint) if option is not type(None))
    names = {int: "a whole number", float: "a number", str: "a string", bool: "true or false", Path: "a path"}
    return names.get(hint, str(hint))


def environment() -> Mapping[str, str]:
    """Return the process environment. Nothing else in the daemon reads it."""
    return dict(os.environ)


def forget_secrets() -> None:
    """Remove the keys from the process environment, so that no program that is started inherits them."""
    for name in VARIABLES.values():
        os.environ.pop(name, None)
