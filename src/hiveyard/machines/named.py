"""Providers by their names. None is imported before it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple, TypeVar, cast

from hiveyard import plugins
from hiveyard.core.errors import BadInput
from hiveyard.core.ports import Provider
from hiveyard.kit.secret import Secret

T = TypeVar("T")


class _Asked(NamedTuple):
    state: Path
    cache: Path
    settings: object
    key: Callable[[], Secret] | None


def names() -> tuple[str, ...]:
    """The providers that come with Hiveyard, but for programs (`hiveyard.machines.external`)."""
    return tuple(_MAKERS)


def by_name(
    name: str,
    state: Path,
    cache: Path,
    *,
    settings: object = None,
    key: Callable[[], Secret] | None = None,
) -> Provider:
    """The provider called `name`, ours or a plugin's, with a directory of its own for its machines and one for what it
    makes of images; neither has to be there.

    `settings` are its own (`hiveyard.machines.qemu.QemuSettings`, ...), the defaults unless given, and none for a
    plugin's; a cloud asks `key` for its key whenever it needs it. Raises BadInput for an unknown name, other settings
    and a cloud without `key`; BadPlugin."""
    asked = _Asked(state, cache, settings, key)
    if name in _MAKERS:
        return _MAKERS[name](asked)
    if settings is not None:
        raise BadInput(f"{name[:80]!r} is none of Hiveyard's own, and only those take settings")
    own = ("auto", *_MAKERS)
    made = plugins.make("hiveyard.providers", name, own, state, cache)
    if made is None:
        known = ", ".join([*_MAKERS, *plugins.names("hiveyard.providers", own)])
        raise BadInput(f"no provider is called {name[:80]!r}", hint=f"one of: {known}")
    return cast(Provider, made)


def _qemu(asked: _Asked) -> Provider:
    from hiveyard.machines.qemu import QemuProvider, QemuSettings

    return QemuProvider(asked.state, asked.cache, _settings(QemuSettings, asked))


def _docker(asked: _Asked) -> Provider:
    from hiveyard.machines.docker import DockerProvider, DockerSettings

    return DockerProvider(asked.state, _settings(DockerSettings, asked))


def _bubblewrap(asked: _Asked) -> Provider:
    from hiveyard.machines.bubblewrap import BubblewrapProvider, BubblewrapSettings

    return BubblewrapProvider(asked.state, asked.cache, _settings(BubblewrapSettings, asked))


def _morph(asked: _Asked) -> Provider:
    from hiveyard.machines.morph import MorphProvider, MorphSettings

    if asked.key is None:
        raise BadInput("morph needs a key", hint="key=lambda: Secret(os.environ['MORPH_API_KEY'])")
    return MorphProvider(asked.state, asked.key, _settings(MorphSettings, asked))


_MAKERS: Mapping[str, Callable[[_Asked], Provider]] = {
    "qemu": _qemu,
    "docker": _docker,
    "bubblewrap": _bubblewrap,
    "morph": _morph,
}


def _settings(kind: type[T], asked: _Asked) -> T:
    if asked.settings is None:
        return kind()
    if not isinstance(asked.settings, kind):
        raise BadInput(f"the settings are {type(asked.settings).__name__}, not {kind.__name__}")
    return asked.settings
