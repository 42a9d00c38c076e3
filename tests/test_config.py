"""Settings and paths."""

from __future__ import annotations

from pathlib import Path

import pytest

from hiveyard import config
from hiveyard.core.errors import BadSetting
from hiveyard.paths import default_paths, host_ports_directory, resolved_environment


def load(tmp_path: Path, text: str) -> config.Settings:
    here = default_paths({"HIVEYARD_HOME": str(tmp_path), "HOME": str(tmp_path)})
    here.config.write_text(text)
    return config.load(here)


def test_no_file_means_the_defaults(tmp_path: Path) -> None:
    here = default_paths({"HIVEYARD_HOME": str(tmp_path), "HOME": str(tmp_path)})
    assert config.load(here) == config.Settings()


def test_each_section_sets_its_own_part(tmp_path: Path) -> None:
    settings = load(tmp_path, '[engine]\nmemory_mib = 4096\nsilence = 60\nagent = "opencode"\n[door]\nrequests = 4\n')
    assert (settings.engine.memory_mib, settings.engine.silence, settings.engine.agent) == (4096, 60.0, "opencode")
    assert settings.door.requests == 4


def test_each_agent_has_a_section(tmp_path: Path) -> None:
    found = load(tmp_path, '[agents.codex]\nimage = "mine"\n[agents.claude]\nmodel = "m"\n').agents
    assert (found["codex"].image, found["claude"].model, found["claude"].account) == ("mine", "m", "")


def test_each_external_provider_has_a_section(tmp_path: Path) -> None:
    text = '[external.one]\ncommand = ["/a", "b"]\nsilence = 5\n[external.two]\ncommand = ["/c"]\nenv = ["X"]\n'
    found = load(tmp_path, text).external
    assert (found["one"].command, found["one"].silence, found["two"].env) == (("/a", "b"), 5.0, ("X",))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[engine\n", "not TOML"),
        ("[motor]\nx = 1\n", "no setting 'motor'"),
        ("[engine]\nmemory = 1\n", "no setting 'memory'"),
        ('[engine]\nmemory_mib = "big"\n', "memory_mib 'big' is not a size"),
        ("[engine]\nmemory_mib = true\n", "memory_mib cannot be True"),
        ("engine = 3\n", "engine is a section"),
        ("external = 3\n", "external is a section of sections"),
        ("[external]\nmine = 3\n", "external.mine is a section"),
        ("[external.mine]\n", "command is .*absolute"),
        ('[external.mine]\ncommand = ["provider"]\n', "absolute"),
        ('[external.mine]\ncommand = ["/x", 3]\n', "a list of texts"),
        ('[external.mine]\ncommand = ["/x"]\ntoken = "x"\n', "no setting 'token'"),
        ('[agents.claude]\nmodell = "m"\n', "no setting 'modell'"),
        ("[engine]\nmax_tasks = 0\n", "max_tasks is 0"),
        ('[door]\nanthropic_upstream = "ftp://x"\n', "https://"),
    ],
)
def test_a_wrong_setting_is_reported_with_its_value(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(BadSetting, match=complaint) as raised:
        load(tmp_path, text)
    assert "\n" not in raised.value.message


def test_a_misspelt_setting_gets_a_suggestion(tmp_path: Path) -> None:
    with pytest.raises(BadSetting) as raised:
        load(tmp_path, "[engine]\nmemory_mb = 1\n")
    assert "memory_mib" in raised.value.hint


def test_a_home_holds_everything_and_the_cache_can_be_moved(tmp_path: Path) -> None:
    here = default_paths({"HIVEYARD_HOME": "/h", "HIVEYARD_CACHE": "/c", "HOME": "/home/me"})
    assert (here.data, here.run, here.cache) == (Path("/h/data"), Path("/h/run"), Path("/c"))
    default = default_paths({"HOME": "/home/me"})
    assert default.database == Path("/home/me/.local/share/hiveyard/hiveyard.db")
    assert default.cache == Path("/home/me/.cache/hiveyard")
    assert default_paths({"HOME": "/home/me", "XDG_RUNTIME_DIR": "/run/user/1000"}) == default, (
        "cron finds the same daemon"
    )


@pytest.mark.parametrize(
    "env",
    [
        {"HOME": "/home/me", "HIVEYARD_HOME": "h"},
        {"HOME": "/home/me", "HIVEYARD_HOME": "~/h"},
        {"HOME": "/home/me", "HIVEYARD_HOME": "/h", "HIVEYARD_CACHE": "../c"},
        {"HOME": "home", "XDG_DATA_HOME": "d", "XDG_CONFIG_HOME": "c", "XDG_RUNTIME_DIR": "r"},
    ],
)
def test_paths_do_not_depend_on_the_working_directory(
    env: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    here, ports, passed_on = default_paths(env), host_ports_directory(env), resolved_environment(env)
    assert all(path.is_absolute() for path in (*here, ports))
    monkeypatch.chdir("/")
    assert (default_paths(passed_on), host_ports_directory(passed_on)) == (here, ports)
