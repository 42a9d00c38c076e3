"""The context of errors: every form that a verb can have says it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from pathlib import Path

import pytest

from hiveyard.core import context
from hiveyard.core.errors import HiveyardError, ProviderError
from hiveyard.core.machines import Image
from hiveyard.core.ports import Guest, ProcessManager, Provider

pytestmark = pytest.mark.anyio


class _Inner:
    """The inside of a machine, which can be told whose it is."""

    machine = ""


@context.of_machines
class _Machines:
    def __init__(self) -> None:
        self.left = False

    async def prepare(self, image: Image) -> None:
        raise ProviderError("no")

    async def names(self) -> set[str]:
        raise ProviderError("no")

    async def boot_from(self, snapshot: str, name: str) -> None:
        raise ProviderError("no", machine="another")

    @asynccontextmanager
    async def guest(self, name: str) -> AsyncIterator[_Inner]:
        if name == "absent":
            raise ProviderError("no")
        try:
            yield _Inner()
        finally:
            self.left = True


@context.of_machines
class _Around:
    """Gives what another gives, and refuses before there is anything."""

    def __init__(self) -> None:
        self.inner = _Machines()

    def guest(self, name: str) -> AbstractAsyncContextManager[_Inner]:
        if name == "refused":
            raise ProviderError("no")
        return self.inner.guest(name)


@context.of_processes
class _Processes:
    async def follow(self, guest: object, name: str) -> AsyncGenerator[bytes, None]:
        yield b"one"
        raise ProviderError("no")


async def _follow() -> None:
    async with aclosing(_Processes().follow(None, "work")) as pieces:
        assert [piece async for piece in pieces] == [b"one"]


async def _enter(machines: _Machines | _Around, name: str) -> None:
    async with machines.guest(name):
        pass


@pytest.mark.parametrize(
    ("act", "about"),
    [
        (lambda: _Machines().prepare(Image(id="1", name="small", rootfs=Path())), {"image": "small"}),
        (lambda: _Machines().names(), {}),
        (lambda: _Machines().boot_from("then", name="now"), {"snapshot": "then", "machine": "another"}),
        (lambda: _enter(_Machines(), "absent"), {"machine": "absent"}),
        (lambda: _enter(_Around(), "absent"), {"machine": "absent"}),
        (lambda: _enter(_Around(), "refused"), {"machine": "refused"}),
        (_follow, {"process": "work"}),
    ],
    ids=["prepare", "names", "boot_from", "guest", "guest", "guest", "follow"],
)
async def test_each_form_of_a_verb_says_what_it_was_about(
    act: Callable[[], AsyncIterator[None]], about: dict[str, str], request: pytest.FixtureRequest
) -> None:
    with pytest.raises(HiveyardError) as caught:
        await act()  # type: ignore[misc]
    verb = request.node.callspec.id.rstrip("0123456789")
    assert caught.value.context == {"operation": verb, **about}


async def test_a_guest_knows_whose_it_is_and_what_comes_out_of_its_block_is_the_callers_own() -> None:
    machines = _Around()
    with pytest.raises(HiveyardError) as caught:
        async with machines.guest("mine") as guest:
            assert guest.machine == "mine"
            raise HiveyardError("mine")
    assert caught.value.context == {}
    assert machines.inner.left


@pytest.mark.parametrize(
    ("port", "verbs"),
    [
        (Provider, context.MACHINE_VERBS),
        (ProcessManager, context.PROCESS_VERBS),
        (Guest, context.GUEST_VERBS),
    ],
)
def test_no_verb_of_a_port_is_left_out(port: type, verbs: tuple[str, ...]) -> None:
    own = {name for name, value in vars(port).items() if not name.startswith("_") and callable(value)}
    assert own <= set(verbs)
