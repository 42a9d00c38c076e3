"""Durations and sizes with their units: on the command line, in the settings and in requests."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from hiveyard import config
from hiveyard.cli.main import cli
from hiveyard.core import units
from hiveyard.core.errors import BadInput, BadSetting
from hiveyard.engine.sessions.request import spawn_from_json
from hiveyard.engine.tasks.request import from_json
from hiveyard.paths import default_paths


@pytest.mark.parametrize(
    ("text", "expected"),
    [("90", 90), ("1.5", 1.5), ("90s", 90), ("10m", 600), ("1h30m", 5400), ("250ms", 0.25), (" 2D ", 172_800)],
)
def test_a_duration_has_a_unit_or_is_seconds(text: str, expected: float) -> None:
    assert units.seconds(text) == expected


@pytest.mark.parametrize("text", ["", "soon", "10 m", "10x", "-5s", "m10", "1h30", "inf", "nan", "1e3"])
def test_any_other_duration_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(BadInput, match=r"is not a duration: use seconds, or .* 1h30m"):
        units.seconds(text)


@pytest.mark.parametrize(
    ("text", "kibibytes", "mebibytes", "gibibytes"),
    [
        ("512", 512, 512, 512),
        ("512m", 512 << 10, 512, 1),
        ("2g", 2 << 20, 2048, 2),
        ("1.5GiB", 1536 << 10, 1536, 2),
        ("1t", 1 << 30, 1 << 20, 1024),
        ("1k", 1, 1, 1),
    ],
)
def test_a_size_has_a_unit_or_that_of_its_field(text: str, kibibytes: int, mebibytes: int, gibibytes: int) -> None:
    assert (units.kibibytes(text), units.mebibytes(text), units.gibibytes(text)) == (kibibytes, mebibytes, gibibytes)


def test_any_other_size_is_refused_with_its_unit() -> None:
    with pytest.raises(BadInput, match=r"'2x' is not a size: use a number of MiB, or one with .* 512m or 2g"):
        units.mebibytes("2x")
    with pytest.raises(BadInput, match="number of GiB"):
        units.gibibytes("big")


def test_requests_take_units_and_name_the_field_that_is_wrong() -> None:
    sizes = {"memory_mib": "2g", "disk_gib": "30g", "cpus": 1.5}
    task = from_json({"repo": "/r", "prompt": "p", "timeout": "10m", **sizes})
    assert (task.timeout, task.memory_mib, task.disk_gib, task.cpus) == (600.0, 2048, 30, 1.5)
    assert spawn_from_json({"repo": "/r", "memory_mib": 512}).memory_mib == 512
    with pytest.raises(BadInput, match="memory_mib 'much' is not a size"):
        spawn_from_json({"repo": "/r", "memory_mib": "much"})


def test_settings_take_units_and_name_the_setting_that_is_wrong(tmp_path: Path) -> None:
    paths = default_paths({"HIVEYARD_HOME": str(tmp_path)})
    paths.config.write_text(
        '[engine]\ntimeout = "2h"\nmemory_mib = "4g"\ncpus = 1.5\n[door]\nstall_seconds = "3m"\nheader_kib = "64k"\n'
    )
    settings = config.load(paths)
    assert (settings.engine.timeout, settings.engine.memory_mib, settings.engine.cpus) == (7200.0, 4096, 1.5)
    assert (settings.door.stall_seconds, settings.door.header_kib) == (180.0, 64)
    paths.config.write_text('[engine]\ntimeout = "later"\n')
    with pytest.raises(BadSetting, match=r"engine: timeout 'later' is not a duration"):
        config.load(paths)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("run", "-m", "x", "--timeout", "soon"), "'soon' is not a duration"),
        (("spawn", "--memory", "lots"), "'lots' is not a size: use a number of MiB"),
        (("run", "-m", "x", "--disk", "1x"), "use a number of GiB"),
        (("rm", "--finished", "--older-than", "long"), "'long' is not a duration"),
    ],
)
def test_options_refuse_what_has_no_unit_that_they_know(words: tuple[str, ...], complaint: str) -> None:
    done = CliRunner().invoke(cli, words)
    assert done.exit_code == 2
    assert complaint in done.output.replace("\n", " ")
