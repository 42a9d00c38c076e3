"""Find providers by name. A provider is imported only when it is requested."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple, TypeVar, cast

from hiveyard import plugins
from hiveyard.core.errors import BadInput
from hiveyard.core.ports import Provider
from hiveyard.kit.secret import Secret

T = TypeVar("T")


class _Request(NamedTuple):
    state: Path
    cache: Path
    settings: object
    key: Callable[[], Secret] | None


def names() -> tuple[str, ...]:
    """Return the names of the providers in Hiveyard, without external programs (`hiveyard.machines.external`)."""
    return tuple(_MAKERS)


def by_name(
    name: str,
    state: Path,
    cache: Path,
    *,
    settings: object = None,
    key: Callable[[], Secret] | None = None,
) -> Provider:
    """Return the provider called `name`, one of Hiveyard's or a plugin's.

    `state` is its directory for machines and `cache` the one for files that it derives from images; neither has to
    exist. `settings` are an object of its own class (`hiveyard.machines.qemu.QemuSettings`, ...), by default with
    default values; a plugin takes none. A cloud calls `key` whenever it needs its key. Raises BadInput for an unknown
    name, other settings, and a cloud without `key`; BadPlugin."""
    request = _Request(state, cache, settings, key)
    if name in _MAKERS:
        return _MAKERS[name](request)
    if settings is not None:
        raise BadInput(f"{name[:80]!r} is not one of Hiveyard's providers, and only those take settings")
    own = ("auto", *_MAKERS)
    made = plugins.make("hiveyard.providers", name, own, state, cache)
    if made is None:
        known = ", ".join([*_MAKERS, *plugins.names("hiveyard.providers", own)])
        raise BadInput(f"no provider is called {name[:80]!r}", hint=f"one of: {known}")
    return cast(Provider, made)


def _qemu(request: _Request) -> Provider:
    from hiveyard.machines.qemu import QemuProvider, QemuSettings

    return QemuProvider(request.state, request.cache, _settings(QemuSettings, request))


def _docker(request: _Request) -> Provider:
    from hiveyard.machines.docker import DockerProvider, DockerSettings

    return DockerProvider(request.state, _settings(DockerSettings, request))


def _bubblewrap(request: _Request) -> Provider:
    from hiveyard.machines.bubblewrap import BubblewrapProvider, BubblewrapSettings

    return BubblewrapProvider(request.state, request.cache, _settings(BubblewrapSettings, request))


def _morph(request: _Request) -> Provider:
    from hiveyard.machines.morph import MorphProvider, MorphSettings

    if request.key is None:
        raise BadInput("morph needs a key", hint="key=lambda: Secret(os.environ['MORPH_API_KEY'])")
    return MorphProvider(request.state, request.key, _settings(MorphSettings, request))


_MAKERS: Mapping[str, Callable[[_Request], Provider]] = {
    "qemu": _qemu,
    "docker": _docker,
    "bubblewrap": _bubblewrap,
    "morph": _morph,
}


def _settings(kind: type[T], request: _Request) -> T:
    if request.settings is None:
        return kind()
    if not isinstance(request.settings, kind):
        raise BadInput(f"the settings are {type(request.settings).__name__}, not {kind.__name__}")
    return request.settings
