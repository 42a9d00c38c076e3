"""Plugins of other distributions. The distributions are real: a module and its metadata."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hiveyard import agents, machines, processes
from hiveyard.core.errors import BadInput, BadPlugin, BadSetting, UnknownAgent
from hiveyard.discovery import with_external
from hiveyard.engine.placement.provider_choice import automatic, choose, named
from hiveyard.machines.external.settings import ExternalProgram
from hiveyard.paths import Paths
from tests.contract.providers import SAMPLE

MODULE = """
from hiveyard.agents.command import CommandLine
from hiveyard.processes.detached import Detached
from hiveyard.machines.bubblewrap import BubblewrapProvider
class Agent(CommandLine): name = "robot"
class Manager(Detached): name = "keeper"
class Machines(BubblewrapProvider): name = "mine"
def fails(*_): raise RuntimeError("no \\x1b[31mlicence\\nat all")
"""
Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Install a distribution with one entry point."""
    site = tmp_path / "site"
    monkeypatch.syspath_prepend(str(site))

    def install(group: str, name: str, place: str, distribution: str = "brought") -> None:
        info = site / f"{distribution}-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[{group}]\n{name} = {place}\n")
        (site / "brought_by_a_test.py").write_text(MODULE)
        monkeypatch.delitem(sys.modules, "brought_by_a_test", raising=False)

    return install


def here(tmp_path: Path) -> Paths:
    return Paths(tmp_path / "data", tmp_path / "cache", tmp_path / "run", tmp_path / "config.toml")


def test_an_agent_of_another_distribution_is_found_by_its_name(install: Install) -> None:
    with pytest.raises(UnknownAgent):
        agents.by_name("robot")
    install("hiveyard.agents", "robot", "brought_by_a_test:Agent")
    assert agents.by_name("robot").name == "robot"
    with pytest.raises(UnknownAgent) as caught:
        agents.by_name("robots")
    assert "robot" in caught.value.hint.split(", ")


def test_a_process_manager_of_another_distribution_is_found_by_its_name(install: Install) -> None:
    assert processes.by_name("detached").name == "detached"
    with pytest.raises(BadInput, match="keeper"):
        processes.by_name("keeper")
    install("hiveyard.process_managers", "keeper", "brought_by_a_test:Manager")
    assert processes.by_name("keeper").name == "keeper"


def test_a_provider_of_another_distribution_is_found_by_its_name(install: Install, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no provider is called 'mine'"):
        machines.by_name("mine", tmp_path / "s", tmp_path / "c")
    install("hiveyard.providers", "mine", "brought_by_a_test:Machines")
    assert machines.by_name("mine", tmp_path / "s", tmp_path / "c").name == "mine"
    with pytest.raises(BadInput) as caught:
        machines.by_name("min", tmp_path / "s", tmp_path / "c")
    assert caught.value.hint == "one of: qemu, docker, bubblewrap, morph, mine"


@pytest.mark.parametrize(
    ("place", "why"),
    [
        ("no_such_module:Agent", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("brought_by_a_test:Nothing", "AttributeError"),
        ("brought_by_a_test:fails", "RuntimeError: no licence at all"),
        ("brought_by_a_test:Manager", "returned an object whose name is 'keeper'"),
    ],
)
def test_an_unusable_plugin_is_reported_in_one_line_with_its_distribution(
    install: Install, place: str, why: str
) -> None:
    install("hiveyard.agents", "robot", place)
    with pytest.raises(BadPlugin) as caught:
        agents.by_name("robot")
    assert "'robot' (hiveyard.agents) of brought " in caught.value.message
    assert why in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.hint == "pip uninstall brought"
    assert agents.by_name("claude").name == "claude"


def test_a_plugin_cannot_take_the_name_of_a_built_in(install: Install) -> None:
    install("hiveyard.agents", "claude", "brought_by_a_test:Agent")
    with pytest.raises(BadPlugin, match=r"'claude' .*one of Hiveyard's own"):
        agents.by_name("robot")


def test_two_plugins_with_one_name_are_reported(install: Install) -> None:
    install("hiveyard.agents", "robot", "brought_by_a_test:Agent")
    install("hiveyard.agents", "robot", "brought_by_a_test:fails", "twin")
    with pytest.raises(BadPlugin, match="another one"):
        agents.by_name("robot")


@pytest.mark.parametrize("name", ["../up", "A", "x" * 40])
def test_an_invalid_name_is_reported(install: Install, name: str) -> None:
    install("hiveyard.agents", name, "brought_by_a_test:Agent")
    with pytest.raises(BadPlugin, match="invalid name"):
        agents.by_name("robot")


@pytest.mark.anyio
async def test_a_provider_of_another_distribution_is_known_and_no_default(install: Install, tmp_path: Path) -> None:
    install("hiveyard.providers", "mine", "brought_by_a_test:Machines")
    async with with_external({}, here(tmp_path), {}, {}) as providers:
        assert named("mine", providers).name == "mine"
        assert not automatic(providers["mine"])


@pytest.mark.anyio
async def test_a_broken_provider_fails_only_when_it_is_used(install: Install, tmp_path: Path) -> None:
    install("hiveyard.providers", "mine", "brought_by_a_test:fails")
    async with with_external({}, here(tmp_path), {}, {}) as providers:
        assert dict(providers) == {}
        for _ in range(2):
            with pytest.raises(BadPlugin, match="licence"):
                await choose("mine", providers)
        with pytest.raises(BadInput, match="other"):
            await choose("other", providers)
        with pytest.raises(BadInput, match="other"):
            providers["other"]


@pytest.mark.anyio
async def test_a_program_of_the_settings_is_a_provider(tmp_path: Path) -> None:
    program = ExternalProgram(command=SAMPLE)
    environment = {"PATH": "/usr/bin:/bin", "ANTHROPIC_API_KEY": "sk-Zq8TestSecret"}
    async with with_external({}, here(tmp_path), {"sample": program}, environment) as providers:
        assert (await providers["sample"].readiness()).ok
        assert not automatic(providers["sample"])
        with pytest.raises(BadInput, match="sample cannot run agents"):
            await choose("sample", providers)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("name", "env", "why"),
    [("auto", (), "already"), ("qemu", (), "already"), ("mine", ("OPENAI_API_KEY",), "stay with the door")],
)
async def test_an_invalid_section_is_reported(tmp_path: Path, name: str, env: tuple[str, ...], why: str) -> None:
    program = ExternalProgram(command=("/bin/true",), env=env)
    with pytest.raises(BadSetting, match=why):
        async with with_external({"qemu": None}, here(tmp_path), {name: program}, {}):  # type: ignore[dict-item]
            raise AssertionError("it was made")


def test_help_looks_for_no_plugins() -> None:
    script = (
        "import sys; from hiveyard.cli.main import cli; cli(['--help'], standalone_mode=False); print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "hiveyard.plugins" not in done.stdout.split()
