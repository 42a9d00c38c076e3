"""Conventions of docker, gh and git: aliases, suggestions, help, waiting, ids only, the only candidate."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from hiveyard import __version__
from hiveyard.cli.main import cli
from hiveyard.cli.verbs import GROUPS, INNER, VERBS
from tests.cli.conftest import Hv

EXAMPLES = [example for verb in VERBS.values() for example in verb.examples] + [
    example for examples in INNER.values() for example in examples
]


def printed(*words: str) -> str:
    return CliRunner().invoke(cli, words, prog_name="hv").output


def test_the_version_and_the_help_are_where_other_programs_have_them() -> None:
    assert printed("--version") == f"hv {__version__}\n"
    assert printed("help", "run") == printed("run", "--help")
    assert printed("help", "image", "build") == printed("image", "build", "--help")
    assert all(f"{title}:" in printed("help") for title in GROUPS)


@pytest.mark.parametrize("words", [[name] for name in VERBS] + [["image", "build"], ["system", "prune"]])
def test_the_help_of_each_verb_ends_with_two_examples(words: list[str]) -> None:
    examples = printed(*words, "--help").partition("Examples:\n")[2].splitlines()
    assert len(examples) == 2
    assert all(line.strip().startswith(f"hv {' '.join(words)}") for line in examples)


@pytest.mark.parametrize(("alias", "verb"), [("ls", "list"), ("inspect", "show")])
def test_an_alias_is_the_verb_itself(alias: str, verb: str) -> None:
    assert printed(alias, "--help").partition("\n")[2] == printed(verb, "--help").partition("\n")[2]


@pytest.mark.parametrize(
    ("verb", "hint"),
    [
        ("kill", "hv cancel TASK, or hv stop SESSION"),
        ("lsit", "did you mean hv list?"),
        ("snapshoot", "did you mean hv snapshot or hv snapshots?"),
        ("dance", "hv --help"),
    ],
)
def test_an_unknown_verb_is_refused_with_a_suggestion(hv: Hv, verb: str, hint: str) -> None:
    done = hv(verb)
    assert (done.returncode, done.stderr) == (2, f"error: hv has no verb {verb!r}\n  try: {hint}\n")


@pytest.mark.parametrize("example", EXAMPLES)
def test_each_example_is_a_valid_command_line(example: str) -> None:
    name, *words = shlex.split(re.split(r" [|<>&]", example)[0])
    context = click.Context(cli, info_name="hv")
    command: click.Command = cli
    for word in (name, *words):
        if not isinstance(command, click.Group):
            break
        found = command.get_command(context, word)
        assert found is not None, word
        command, context = found, click.Context(found, parent=context, info_name=word)
        words = words[1:] if word != name else words
    command.make_context(context.info_name, words, context.parent)


@pytest.mark.skipif(shutil.which("groff") is None, reason="groff is not installed")
def test_groff_accepts_the_manual_page() -> None:
    words = ["groff", "-man", "-ww", "-Tutf8", "-P-c"]
    done = subprocess.run(words, input=printed("man"), capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert "hv wait [OPTIONS] ID..." in re.sub(".\b", "", done.stdout)


def test_the_manual_page_has_every_verb_and_only_known_macros() -> None:
    page = printed("man")
    assert all(f'.SS "hv {name.replace("-", chr(92) + "-")} ' in page for name in VERBS)
    assert r"\fB\-\-memory SIZE\fR" in page
    requests = {line.split()[0] for line in page.splitlines() if line.startswith(".")}
    assert requests == {".TH", ".SH", ".SS", ".TP", ".B", ".PP", ".nf", ".fi"}


def test_the_prompt_is_an_argument_or_stdin_and_a_command_needs_none(hv: Hv, repo: Path) -> None:
    assert hv("run", str(repo), "say hello", "--command", "echo hello", "-d").returncode == 0
    assert hv("run", str(repo), "--command", "echo bare", "-d").returncode == 0
    words = hv.argv("run", str(repo), "-m", "-", "--command", "cat {{prompt_file}}", "-d")
    assert subprocess.run(words, env=hv.env, input=b"from stdin", timeout=60, capture_output=True).returncode == 0
    assert {task["prompt"] for task in hv.json("ps", "-a")} == {"say hello", "echo bare", "from stdin"}
    refused = hv("run", str(repo), "--command", "x {{prompt}}")
    assert (refused.returncode, "the prompt is missing" in refused.stderr) == (2, True)


def test_waiting_ends_with_the_tasks_and_has_their_exit_code(hv: Hv, repo: Path) -> None:
    ids = [
        hv("run", str(repo), name, "--command", command, "-d").stdout.strip()
        for name, command in (("good", "true"), ("bad", "exit 3"), ("long", "sleep 600"))
    ]
    assert hv("ps", "-a", "-q").stdout.split() == ids[::-1]
    waited = hv("wait", "good", "bad")
    assert waited.returncode == 1
    assert {line.split()[1:][0] for line in waited.stdout.splitlines()} == {"good:", "bad:"}
    first = hv("wait", "--any", *ids)
    assert (first.returncode in (0, 1), len(first.stdout.splitlines())) == (True, 1)
    late = hv("wait", "good", "long", "--timeout", "2s", "--json")
    assert (late.returncode, late.stderr) == (124, "1 of 2 are not done yet\n")
    assert [task["id"] for task in json.loads(late.stdout)] == ids[:1]
    assert hv.json("ps", "--format", "json") == hv.json("ps")


def test_the_last_lines_of_a_log(hv: Hv, repo: Path) -> None:
    hv("run", str(repo), "count", "--command", "echo one; echo two")
    lines = hv("logs", "count").stdout.splitlines()
    assert hv("logs", "--tail", "2", "count").stdout.splitlines() == lines[-2:]
    assert hv("logs", "--tail", "0", "count").stdout == ""


def test_without_an_id_the_only_candidate_is_taken_and_named(hv: Hv, repo: Path) -> None:
    missing = hv("show")
    assert (missing.returncode, "there is no task or session yet" in missing.stderr) == (2, True)
    id = hv.json("run", str(repo), "first", "--command", "echo x > x.txt")["id"]
    for words in (("show",), ("logs",), ("diff", "--stat"), ("apply",)):
        done = hv(*words)
        assert done.returncode == 0, done.stderr
        assert done.stderr.splitlines()[0] == f"first  ({id})"
    hv("run", str(repo), "second", "--command", "true")
    several = hv("diff")
    assert several.returncode == 2
    assert re.search(r"hv diff needs an ID, one of: (first, second|second, first)\n", several.stderr)
    assert hv("attach").stderr.startswith("error: there is no running session yet")
    assert json.loads(hv("show", "--json").stdout)["error"]["code"] == "bad_input"


@pytest.mark.parametrize("words", [("--format", "json"), ("--format=json",)])
def test_an_error_of_a_verb_that_prints_json_is_json(hv: Hv, words: tuple[str, ...]) -> None:
    done = hv("ps", "--limit", "0", *words)
    assert (done.returncode, json.loads(done.stdout)["error"]["code"]) == (2, "bad_input")
