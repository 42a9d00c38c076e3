"""Providers by their names."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import hiveyard
from hiveyard import machines
from hiveyard.core.errors import BadInput
from hiveyard.kit.secret import Secret
from hiveyard.machines.docker import DockerSettings
from hiveyard.machines.qemu import QemuSettings


def key() -> Secret:
    return Secret("morph_Zq8TestSecret")


@pytest.mark.parametrize("name", machines.names())
def test_each_of_ours_is_made_and_makes_nothing_yet(name: str, tmp_path: Path) -> None:
    assert machines.by_name(name, tmp_path / "state", tmp_path / "cache", key=key).name == name
    assert list(tmp_path.iterdir()) == []


def test_settings_are_its_own(tmp_path: Path) -> None:
    assert machines.by_name("qemu", tmp_path, tmp_path, settings=QemuSettings()).name == "qemu"
    with pytest.raises(BadInput, match="DockerSettings, not QemuSettings"):
        machines.by_name("qemu", tmp_path, tmp_path, settings=DockerSettings())


def test_a_cloud_needs_a_key(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="morph needs a key"):
        machines.by_name("morph", tmp_path, tmp_path)


def test_none_is_imported_that_was_not_asked_for() -> None:
    asked = (
        "import sys; from hiveyard.machines import by_name;"
        "print([name for name in sys.modules if name.startswith('hiveyard.machines.')])"
    )
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)
    assert done.stdout == "['hiveyard.machines.named']\n"


def test_programs_of_ours_need_no_other_package() -> None:
    asked = f"import sys; sys.path.insert(0, {str(Path(hiveyard.__file__).parents[1])!r}); import hiveyard.machines"
    subprocess.run([sys.executable, "-I", "-S", "-c", asked], check=True)
