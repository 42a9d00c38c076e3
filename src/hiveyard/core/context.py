"""Add context to errors: the operation that failed, and the machine, process or file that it concerns."""

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
    "stored_items",
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
# Keys in a context, by parameter. A value that is not a text is represented by its `name`.
_OF_MACHINES = {"name": "machine", "snapshot": "snapshot", "image": "image", "image_id": "image"}
_OF_PROCESSES = {"name": "process", "spec": "process"}
_OF_GUESTS = {"command": "command", "path": "path"}


@runtime_checkable
class Located(Protocol):
    """The inside of a machine, with the machine's name. `of_machines` sets it on the guests that a provider returns."""

    machine: str


def of_machines(cls: type[T]) -> type[T]:
    """Decorate a provider so that its methods add the operation and the machine, snapshot or image to each
    HiveyardError.

    Keys that were set closer to the failure are kept. Guests that are Located get the name of their machine."""
    return _decorate(cls, MACHINE_VERBS, _OF_MACHINES)


def of_processes(cls: type[T]) -> type[T]:
    """Decorate a process manager in the same way: the operation, the process, and the machine of a Located guest."""
    return _decorate(cls, PROCESS_VERBS, _OF_PROCESSES)


def of_guests(cls: type[T]) -> type[T]:
    """Decorate a guest in the same way: the operation, the machine if it is Located, the path, the command's name."""
    return _decorate(cls, GUEST_VERBS, _OF_GUESTS)


@contextmanager
def error_context(operation: str, named: Callable[[], Mapping[str, str]]) -> Iterator[None]:
    """Set the operation of each HiveyardError that the block raises, and add what `named` returns unless it is set."""
    try:
        yield
    except HiveyardError as error:
        error.context["operation"] = operation
        for what, name in named().items():
            error.context.setdefault(what, name)
        raise


def _decorate(cls: type[T], verbs: Sequence[str], kinds: Mapping[str, str]) -> type[T]:
    for verb in verbs:
        if (method := vars(cls).get(verb)) is not None:
            setattr(cls, verb, _with_context(method, kinds))
    return cls


def _with_context(method: Callable[..., Any], kinds: Mapping[str, str]) -> Callable[..., Any]:
    """Wrap a method of any form: a coroutine, a generator, or a function that returns a context manager."""
    signature = inspect.signature(method)

    def context(args: Sequence[Any], kwargs: Mapping[str, Any]) -> AbstractContextManager[None]:
        return error_context(method.__name__, lambda: _named(signature.bind(*args, **kwargs).arguments, kinds))

    async def coroutine(*args: Any, **kwargs: Any) -> Any:
        with context(args, kwargs):
            return await method(*args, **kwargs)

    async def generator(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, None]:
        with context(args, kwargs):
            async with aclosing(method(*args, **kwargs)) as pieces:
                async for piece in pieces:
                    yield piece

    def plain(*args: Any, **kwargs: Any) -> Any:
        with context(args, kwargs):
            result = method(*args, **kwargs)
        if not isinstance(result, AbstractAsyncContextManager):
            return result
        return _EnterContext(result, context(args, kwargs), _named(signature.bind(*args, **kwargs).arguments, kinds))

    if inspect.iscoroutinefunction(method):
        return wraps(method)(coroutine)
    return wraps(method)(generator if inspect.isasyncgenfunction(method) else plain)


class _EnterContext(AbstractAsyncContextManager[T]):
    """A context manager that adds context to errors of its entry only: errors of the block are the caller's own."""

    def __init__(
        self, inner: AbstractAsyncContextManager[T], context: AbstractContextManager[None], named: Mapping[str, str]
    ) -> None:
        self._inner = inner
        self._context = context
        self._named = named

    async def __aenter__(self) -> T:
        with self._context:
            thing = await self._inner.__aenter__()
        if isinstance(thing, Located) and "machine" in self._named:
            thing.machine = self._named["machine"]
        return thing

    async def __aexit__(
        self, kind: type[BaseException] | None, raised: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        return await self._inner.__aexit__(kind, raised, trace)


def _named(given: Mapping[str, Any], kinds: Mapping[str, str]) -> Mapping[str, str]:
    """Return the context of a call from its arguments, including `self`. The machine comes from a Located guest."""
    named = {
        kinds[name]: value if isinstance(value, str) else value.name for name, value in given.items() if name in kinds
    }
    for inside in given.values():
        if isinstance(inside, Located):
            named.setdefault("machine", inside.machine)
    return {what: name for what, name in named.items() if name}
