"""One daemon and one browser for all tests of the page."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from tests.end_to_end.sessions.conftest import Stage, opened
from tests.engine.conftest import repo
from tests.support.browser import Browser, browser
from tests.support.own_ports import own_ports

__all__ = ["repo"]
SETTINGS = """
[engine]
provider = "bubblewrap"
agent = "live-puppet"
image = "host"
disk_reserve_mib = 1
[web]
listen = "127.0.0.1:{port}"
"""


def settings() -> str:
    """Return settings with a port of the page that is free now, and the same for each daemon."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return SETTINGS.format(port=probe.getsockname()[1]) + own_ports()


@pytest.fixture(scope="session")
def web_stage() -> Iterator[Stage]:
    with opened(settings()) as stage:
        yield stage
        said = (stage.home / "data" / "daemon.log").read_text()
        assert "Traceback" not in said, said[said.index("Traceback") - 200 :][:3000]


@pytest.fixture
def stage(web_stage: Stage) -> Iterator[Stage]:
    """The shared installation, without sessions."""
    web_stage.clear()
    yield web_stage


@pytest.fixture(scope="session")
def window(web_stage: Stage) -> Iterator[Browser]:
    """A browser that is signed in, as every test of the page has it."""
    with browser() as window:
        window.open(link(web_stage))
        window.wait("location.pathname === '/' && document.querySelector('#link[data-state=live]') !== null")
        yield window


@pytest.fixture
def page(window: Browser, stage: Stage) -> Iterator[Browser]:
    """The signed-in browser on an empty desk. After the test its console is searched for errors and broken policies."""
    window.resize(1400)
    window.log()
    yield window
    said = window.log()
    assert not said, said


def link(stage: Stage, *words: str) -> str:
    """Return a new link that signs a browser in."""
    return stage("web", "--no-open", *words).stdout.strip()


def place(url: str) -> str:
    """Return the address of the page, of a link to it."""
    return url.partition("/login")[0]
