"""What an error is about: the operation that failed, and the machine, process or file that it was done to."""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, aclosing, contextmanager
from functools import wraps
from types import TracebackType
from typing import Any, Protocol, TypeVar, runtime_checkable

from hiveyard.core.error import HiveyardError

T = TypeVar("T")
MACHINE_VERBS = (
    "boot",
    "boot_from",
    "discard",
    "fork",
    "get",
    "guest",
    "holdings",
    "list",
    "make_ready",
    "names",
    "pause",
    "prepare",
    "readiness",
    "release_image",
    "remove_snapshot",
    "resume",
    "snapshot",
    "snapshots",
    "stop",
    "terminal",
    "terminate",
)
PROCESS_VERBS = ("close_inbox", "follow", "get", "list", "logs", "remove", "send", "start", "stop")
GUEST_VERBS = (
    "batch",
    "exists",
    "follow",
    "mkdir",
    "open",
    "read",
    "remove",
    "remove_tree",
    "run",
    "write",
    "write_atomic",
)
# What the parameters of verbs are called in a context. Of what is no text, its name is meant.
_OF_MACHINES = {"name": "machine", "snapshot": "snapshot", "image": "image", "image_id": "image"}
_OF_PROCESSES = {"name": "process", "spec": "process"}
_OF_GUESTS = {"command": "command", "path": "path"}


@runtime_checkable
class Located(Protocol):
    """The inside of a machine that can be told whose it is; a provider that is `of_machines` does so."""

    machine: str


def of_machines(cls: type[T]) -> type[T]:
    """A provider whose verbs name in the context of each HiveyardError they raise the operation that was called, and
    the machine (snapshot, image) where nobody nearer to the failure did. Its guests that are Located know theirs."""
    return _telling(cls, MACHINE_VERBS, _OF_MACHINES)


def of_processes(cls: type[T]) -> type[T]:
    """The same for a process manager: the operation, the process, and the machine of a guest that is Located."""
    return _telling(cls, PROCESS_VERBS, _OF_PROCESSES)


def of_guests(cls: type[T]) -> type[T]:
    """The same for a guest: the operation, the machine where it is Located, the path, and the name of a command."""
    return _telling(cls, GUEST_VERBS, _OF_GUESTS)


@contextmanager
def about(operation: str, named: Callable[[], Mapping[str, str]]) -> Iterator[None]:
    """Errors of the block are of this operation, and about what is `named`, unless they are about another already."""
    try:
        yield
    except HiveyardError as error:
        error.context["operation"] = operation
        for what, name in named().items():
            error.context.setdefault(what, name)
        raise


def _telling(cls: type[T], verbs: Sequence[str], kinds: Mapping[str, str]) -> type[T]:
    for verb in verbs:
        if (method := vars(cls).get(verb)) is not None:
            setattr(cls, verb, _told(method, kinds))
    return cls


def _told(method: Callable[..., Any], kinds: Mapping[str, str]) -> Callable[..., Any]:
    """The method, of whichever form: a coroutine, a generator, or what gives a context manager."""
    signature = inspect.signature(method)

    def telling(args: Sequence[Any], kwargs: Mapping[str, Any]) -> AbstractContextManager[None]:
        return about(method.__name__, lambda: _named(signature.bind(*args, **kwargs).arguments, kinds))

    async def coroutine(*args: Any, **kwargs: Any) -> Any:
        with telling(args, kwargs):
            return await method(*args, **kwargs)

    async def generator(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, None]:
        with telling(args, kwargs):
            async with aclosing(method(*args, **kwargs)) as pieces:
                async for piece in pieces:
                    yield piece

    def plain(*args: Any, **kwargs: Any) -> Any:
        with telling(args, kwargs):
            made = method(*args, **kwargs)
        if not isinstance(made, AbstractAsyncContextManager):
            return made
        return _Entered(made, telling(args, kwargs), _named(signature.bind(*args, **kwargs).arguments, kinds))

    if inspect.iscoroutinefunction(method):
        return wraps(method)(coroutine)
    return wraps(method)(generator if inspect.isasyncgenfunction(method) else plain)


class _Entered(AbstractAsyncContextManager[T]):
    """Only errors of its beginning are told: what comes out of the block is the caller's own."""

    def __init__(
        self, made: AbstractAsyncContextManager[T], telling: AbstractContextManager[None], named: Mapping[str, str]
    ) -> None:
        self._made = made
        self._telling = telling
        self._named = named

    async def __aenter__(self) -> T:
        with self._telling:
            thing = await self._made.__aenter__()
        if isinstance(thing, Located) and "machine" in self._named:
            thing.machine = self._named["machine"]
        return thing

    async def __aexit__(
        self, kind: type[BaseException] | None, raised: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        return await self._made.__aexit__(kind, raised, trace)


def _named(given: Mapping[str, Any], kinds: Mapping[str, str]) -> Mapping[str, str]:
    """What a method was given, its object included, as it is called in a context. A guest knows whose inside it is."""
    named = {
        kinds[name]: value if isinstance(value, str) else value.name for name, value in given.items() if name in kinds
    }
    for inside in given.values():
        if isinstance(inside, Located):
            named.setdefault("machine", inside.machine)
    return {what: name for what, name in named.items() if name}
