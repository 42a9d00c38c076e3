"""Recipes as people write them, well and badly."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from hiveyard.core.errors import BadInput, NoSuchImage
from hiveyard.images.images import Images
from hiveyard.images.recipe import Recipe, debian_arch


def write(directory: Path, text: str, name: str = "mine") -> str:
    file = directory / f"{name}.toml"
    file.write_text(text)
    return str(file)


@pytest.fixture
def images(tmp_path: Path) -> Images:
    return Images(tmp_path / "cache", tmp_path)


def test_the_default_recipe_has_both_agents_and_pm2_pinned(images: Images) -> None:
    recipe = images.recipe()
    assert recipe.name == "default"
    assert {spec.rpartition("@")[0] for spec in recipe.npm} == {"@anthropic-ai/claude-code", "opencode-ai", "pm2"}
    assert set(recipe.programs) >= {"claude", "opencode", "git"}
    assert f"linux-image-{debian_arch()}" in recipe.packages


@pytest.mark.parametrize(("name", "package"), [("codex", "@openai/codex"), ("goose", "@aaif/goose-acp")])
def test_an_agent_that_is_not_in_the_default_image_has_one_of_its_own(images: Images, name: str, package: str) -> None:
    recipe, default = images.recipe(name), images.recipe()
    assert [spec.rpartition("@")[0] for spec in recipe.npm if spec not in default.npm] == [package]
    assert set(recipe.programs) == {*default.programs, name}
    assert (recipe.packages, recipe.run[: len(default.run)]) == (default.packages, default.run)


def test_a_recipe_says_all_it_can_say(images: Images, tmp_path: Path) -> None:
    text = """
    packages = ["git", "curl=7.88.1-10+deb12u15"]
    node = "22.20.0"
    npm = ["left-pad@1.3.0"]
    run = ["echo hello"]
    [debian]
    suite = "trixie"
    [env]
    GREETING = "hello"
    [programs]
    git = "git --version"
    """
    assert images.recipe(write(tmp_path, text)) == Recipe(
        name="mine",
        suite="trixie",
        packages=("curl=7.88.1-10+deb12u15", "git"),
        node="22.20.0",
        npm=("left-pad@1.3.0",),
        run=("echo hello",),
        env={"GREETING": "hello"},
        programs={"git": "git --version"},
    )


def test_a_recipe_adds_to_the_one_it_extends_and_wins_where_both_speak(images: Images, tmp_path: Path) -> None:
    default = images.recipe()
    text = """
    from = "default"
    packages = ["gcc", "git=1:2.39.5-0+deb12u2"]
    npm = ["opencode-ai@1.18.34"]
    run = ["true"]
    [env]
    LANG = "de_DE.UTF-8"
    CC = "gcc"
    """
    recipe = images.recipe(write(tmp_path, text))
    assert set(recipe.packages) == {*default.packages, "gcc", "git=1:2.39.5-0+deb12u2"} - {"git"}
    assert "opencode-ai@1.18.34" in recipe.npm
    assert len(recipe.npm) == len(default.npm)
    assert recipe.run == (*default.run, "true")
    assert recipe.env == {"LANG": "de_DE.UTF-8", "CC": "gcc"}
    assert recipe.node == default.node


def test_an_own_recipe_is_found_by_name_and_extends_its_neighbour_by_path(images: Images, tmp_path: Path) -> None:
    write(tmp_path, 'packages = ["git"]', "base")
    write(tmp_path, 'from = "./base.toml"\npackages = ["curl"]', "tools")
    assert images.recipe("tools").packages == ("curl", "git")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("packages = [", "is not a recipe"),
        ('pakages = ["git"]', "pakages: is not a key of a recipe; the keys are from, debian, packages"),
        ('packages = "git"', "packages: must be a list of strings"),
        ("packages = [1]", "packages: must be a list of strings"),
        ('packages = ["Git"]', "packages: 'Git' is not a Debian package"),
        ('packages = ["git; reboot"]', "packages: 'git; reboot' is not a Debian package"),
        ('packages = ["--force"]', "'--force' is not a Debian package"),
        ('packages = [" "]', "packages: contains an empty string"),
        ('node = "22"', "node: '22' is not an exact version as 22.20.0"),
        ("node = 22", "node: must be a string"),
        ('npm = ["left-pad@1.3.0"]', "npm: npm packages need Node: set `node`"),
        ('node = "22.20.0"\nnpm = ["left-pad"]', "npm: 'left-pad' is not a pinned npm package as name@1.2.3"),
        ('node = "22.20.0"\nnpm = ["left-pad@latest"]', "'left-pad@latest' is not a pinned npm package"),
        ('node = "22.20.0"\nnpm = ["../evil@1.0.0"]', "'../evil@1.0.0' is not a pinned npm package"),
        ('run = ["\\u0000"]', "run: contains an empty string or a NUL character"),
        ('debian = "bookworm"', "debian: must be a table"),
        ('[debian]\nsuit = "bookworm"', "debian.suit: is not a key of a recipe; the keys are suite"),
        ('[debian]\nsuite = "--help"', "debian.suite: '--help' is not a Debian suite"),
        ('[env]\n"A B" = "1"', "env: 'A B' is not a name of an environment variable"),
        ("[env]\nA = 1", "env.A: must be a string"),
        ('[env]\nA = "1\\n2"', "env.A: must be one line"),
        ('[programs]\n"../x" = "x"', "programs: '../x' is not a name of a program"),
    ],
)
def test_a_wrong_recipe_is_told_by_file_and_key(images: Images, tmp_path: Path, text: str, complaint: str) -> None:
    file = write(tmp_path, text)
    with pytest.raises(BadInput) as error:
        images.recipe(file)
    assert complaint in error.value.message
    assert file in error.value.message


def test_recipes_cannot_extend_each_other_in_a_circle(images: Images, tmp_path: Path) -> None:
    write(tmp_path, 'from = "two"', "one")
    write(tmp_path, 'from = "one"', "two")
    with pytest.raises(BadInput, match="in a circle"):
        images.recipe("one")


@pytest.mark.parametrize("ref", ["nowhere", "./nowhere.toml", "", "..", "default.tar/x"])
def test_a_recipe_that_is_not_there_is_told_by_name(images: Images, ref: str) -> None:
    with pytest.raises(NoSuchImage) as error:
        images.recipe(ref)
    assert ref in error.value.message


def test_an_unknown_name_comes_with_those_that_there_are(images: Images) -> None:
    with pytest.raises(NoSuchImage) as error:
        images.resolve("defualt")
    assert "there are codex, default, goose" in error.value.message
    assert error.value.hint == "hv image ls"


def test_the_base_that_a_recipe_names_must_be_there(images: Images, tmp_path: Path) -> None:
    with pytest.raises(NoSuchImage, match="nowhere"):
        images.recipe(write(tmp_path, 'from = "nowhere"'))


FIXED = Recipe(
    name="fixed",
    suite="bookworm",
    packages=("git", "linux-image-amd64"),
    node="22.20.0",
    npm=("opencode-ai@1.18.33",),
    run=("echo hello",),
    env={"LANG": "C.UTF-8"},
    programs={"git": "git --version"},
)


def test_the_key_of_a_recipe_stays_the_same_from_release_to_release() -> None:
    # When this must change, every image of every user is built anew: raise LAYOUT and say so in the changelog.
    assert FIXED.key("amd64") == "5ae2d4d9345eab72"


def test_the_key_is_about_the_content_and_not_about_the_name_or_the_order() -> None:
    assert replace(FIXED, name="other").key("amd64") == FIXED.key("amd64")
    assert replace(FIXED, packages=("linux-image-amd64", "git", "git")).key("amd64") == FIXED.key("amd64")


@pytest.mark.parametrize(
    "other",
    [
        replace(FIXED, suite="trixie"),
        replace(FIXED, packages=("git",)),
        replace(FIXED, node="22.20.1"),
        replace(FIXED, npm=()),
        replace(FIXED, run=("echo goodbye",)),
        replace(FIXED, run=("echo hello", "echo hello")),
        replace(FIXED, env={}),
        replace(FIXED, programs={}),
    ],
)
def test_the_key_changes_with_all_that_decides_the_build(other: Recipe) -> None:
    assert other.key("amd64") != FIXED.key("amd64")
    assert FIXED.key("arm64") != FIXED.key("amd64")
