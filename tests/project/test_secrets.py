"""No test prints a secret: each secret in the tests has the mark, and output is searched for it after each test."""

from __future__ import annotations

import base64
import os
import re
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from hiveyard.core.errors import BadInput
from tests.support.leaks import MARK, has_mark, marked_files, searched_directory, told

ROOT = Path(__file__).resolve().parents[2]
KEY = f"sk-{MARK}/+?&=planted"

# Text that looks like a key, or is used as one.
LIKE_A_KEY = re.compile(
    r"""\b(sk-|gh[pousr]_|github_pat_|AIza|xai-)\w
    | ["']morph_\w
    | \bSecret\((?!f["'][^"']*\{KEY)f?["'][^"']
    | (_KEY|\b(TOKEN|PASSWORD|PLACEHOLDER|KEY))\b["']?\ ?[:=]\ ?f?["'][^"']
    | ://\w+:\w+@""",
    re.VERBOSE,
)
# Lines that match and need no mark: a part of the line, and why.
WITHOUT = {
    'MORPH_KEY = "MORPH_API_KEY"': "the name of a variable",
    'Secret("open\\n")': "the content of a file that anybody may read",
    'Secret("new")': "the content of a file that is not written in the end",
    "Secret('{\"claudeAiOauth\": {}}')": "nothing is in it",
    'Secret("\\udc00")': "cannot be a secret, as no bytes can be made of it",
    "sk-with space": "cannot be a key; that no error shows it the test looks for itself",
    "sk with space": "cannot be a key; that no error shows it the test looks for itself",
    'b"sk-rea" * 1000': "the beginning of a key, which is none",
    'content=Secret("x" * ': "too large",
}


def lines() -> Iterator[tuple[str, str]]:
    for path in sorted((ROOT / "tests").rglob("*.py")):
        for number, line in enumerate(path.read_text().splitlines(), start=1):
            if path != Path(__file__):
                yield f"{path.relative_to(ROOT)}:{number}", line


def test_every_secret_of_the_tests_has_the_mark() -> None:
    alike = [
        (where, line) for where, line in lines() if LIKE_A_KEY.search(line) and not re.search(f"{MARK}|MARK", line)
    ]
    found = [f"{where}: {line.strip()}" for where, line in alike if not any(part in line for part in WITHOUT)]
    assert found == [], f"a secret of a test has {MARK} in it (tests/support/leaks.py)"


def test_every_exception_is_still_needed() -> None:
    everything = "\n".join(line for _, line in lines())
    assert [part for part in WITHOUT if part not in everything] == []


FORMS: dict[str, Callable[[str], str]] = {
    "raw": str,
    "URL-encoded": lambda text: quote(text, safe=""),
    "base64": lambda text: base64.b64encode(text.encode()).decode(),
    "base64, one byte on": lambda text: base64.b64encode(b"x" + text.encode()).decode(),
    "base64, two bytes on": lambda text: base64.b64encode(b"xx" + text.encode()).decode(),
    "base64 for URLs": lambda text: base64.urlsafe_b64encode(b"\xff\xfe" + text.encode()).decode(),
    "hex digits": lambda text: text.encode().hex(),
}


@pytest.fixture
def place() -> Iterator[Path]:
    """Yield a directory that is not searched when the test ends."""
    with tempfile.TemporaryDirectory(prefix="hv-") as place:
        yield Path(place)


@pytest.mark.parametrize("form", FORMS)
def test_a_planted_secret_is_found_in_files(place: Path, form: str) -> None:
    file = place / "home" / "data" / "sessions" / "abc" / "events.jsonl"
    file.parent.mkdir(parents=True)
    file.write_text('{"type": "agent.output", "text": "nothing"}\n')
    assert marked_files(place) == []
    with file.open("a") as journal:
        journal.write(f'{{"type": "agent.output", "text": "it said {FORMS[form](KEY)} and went on"}}\n')
    assert marked_files(place) == [str(file)]


@pytest.mark.parametrize("written", ["in the file", "beside it"])
def test_a_planted_secret_is_found_in_a_journal(place: Path, written: str) -> None:
    with sqlite3.connect(place / "hiveyard.db") as journal:
        if written == "beside it":
            journal.execute("PRAGMA journal_mode = wal")
        journal.execute("CREATE TABLE events (body BLOB)")
        journal.execute("INSERT INTO events VALUES (?)", [KEY.encode()])
        journal.commit()
        names = ["hiveyard.db"] if written == "in the file" else ["hiveyard.db-wal"]
        assert marked_files(place) == [str(place / name) for name in names]
    journal.close()


def test_a_secret_in_an_allowed_place_is_not_reported(place: Path) -> None:
    (place / "keys.toml").write_text(f"openai = '{KEY}'\n")
    guest = place / "machines" / "bubblewrap" / "m"
    (guest / "home").mkdir(parents=True)
    (guest / "machine.json").write_text("{}")
    (guest / "home" / "key").write_text(KEY)
    assert marked_files(place) == []
    (guest / "console.log").write_text(KEY)
    assert marked_files(place) == [str(guest / "console.log")]


def test_a_directory_of_a_fixture_is_searched_before_it_is_removed() -> None:
    with pytest.raises(AssertionError, match="written down"), searched_directory() as place:
        (place / "daemon.log").write_text(KEY)


TESTS = """
import logging, sys
import pytest
from hiveyard.core.errors import BadInput
from tests.support.leaks import MARK

def test_quiet(tmp_path):
    logging.getLogger("hiveyard.x").info("nothing")
    (tmp_path / "events.jsonl").write_text("nothing")

def test_logged():
    logging.getLogger("hiveyard.x").debug("with %s", MARK)

def test_traced():
    try:
        raise BadInput(MARK)
    except BadInput:
        logging.getLogger("hiveyard.x").exception("it failed")

def test_printed():
    print(MARK)

@pytest.fixture
def closing():
    yield
    print(MARK, file=sys.stderr)

def test_printed_at_its_end(closing):
    pass

def test_written(tmp_path):
    (tmp_path / "hiveyard.db-wal").write_text(MARK)

def test_caught():
    with pytest.raises(BadInput):
        raise BadInput("no", hint="say " + MARK)
"""


def test_a_test_that_prints_a_secret_fails(place: Path) -> None:
    (place / "conftest.py").write_text("from tests.conftest import pytest_configure\n")
    (place / "test_planted.py").write_text(TESTS)
    argv = [sys.executable, "-m", "pytest", "-q", "-c", "/dev/null", "--rootdir", str(place), "-p", "no:cacheprovider"]
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    argv += [f"--basetemp={place}/t", str(place)]
    done = subprocess.run(argv, cwd=ROOT, env=env, capture_output=True, text=True)
    failed = sorted(
        line.rpartition("::")[2].split()[0]
        for line in done.stdout.splitlines()
        if line.startswith("ERROR ") and "::" in line
    )
    assert failed == sorted(
        f"test_{how}" for how in ("caught", "logged", "printed", "printed_at_its_end", "traced", "written")
    ), done.stdout
    assert "7 passed, 6 errors" in done.stdout


def test_the_mark_is_not_found_in_other_text() -> None:
    assert not has_mark("sk-ant-of-nobody " + base64.b64encode(b"sk-ant-of-nobody").decode())


def test_all_messages_of_errors_that_refer_to_each_other_are_found() -> None:
    try:
        raise BadInput("no", hint=f"say {KEY}")
    except BadInput as error:
        group = ExceptionGroup("several", [error])
        error.__context__ = group
        assert has_mark(told(group))
