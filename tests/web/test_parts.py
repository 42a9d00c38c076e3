"""The parts of the page by themselves: texts of agents, diffs, the form, the settings, the files of others."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest

from hiveyard import config
from hiveyard.cli.verbs import VERBS
from hiveyard.core.errors import BadInput, BadSetting
from hiveyard.core.events import (
    AgentEdited,
    AgentPrompted,
    AgentText,
    AgentToolCalled,
    AgentToolReturned,
    Event,
    Notice,
)
from hiveyard.engine.sessions.request import SpawnRequest
from hiveyard.engine.tasks.request import TaskRequest
from hiveyard.paths import Paths
from hiveyard.web import looks
from hiveyard.web.diff import pairs, parse
from hiveyard.web.new_work import request_of
from hiveyard.web.seen import Seen
from hiveyard.web.settings import WebSettings
from hiveyard.web.transcript_view import items, sections

WEB = Path(looks.__file__).parent
VENDOR = WEB / "static" / "vendor"
DIFF = """diff --git a/a.py b/a.py
index 1..2 100644
--- a/a.py
+++ b/a.py
@@ -1,3 +1,4 @@ def f():
 same
-old
+new
+more
 end
diff --git a/gone b/gone
deleted file mode 100644
--- a/gone
+++ /dev/null
@@ -1 +0,0 @@
--- a line that looks like a heading
diff --git a/x.png b/x.png
new file mode 100644
Binary files /dev/null and b/x.png differ
"""


def test_markup_of_an_agent_is_text() -> None:
    shown = str(looks.prose("<b>x</b> `<i>` **<u>**\n\n```\n<script>\n```\nhttps://example.com/"))
    assert "<b>" not in shown and "<script>" not in shown and "<a" not in shown
    assert "<code>&lt;i&gt;</code>" in shown and "<strong>&lt;u&gt;</strong>" in shown
    assert "<pre>&lt;script&gt;</pre>" in shown


def test_escapes_and_direction_marks_are_removed() -> None:
    assert str(looks.prose("a\x1b[31mb\u202ec")) == "<p>abc</p>"
    assert looks.name("evil\u200b\u202e\x1b]0;title\x07 name") == "evil name"


def test_a_long_text_says_how_much_is_missing() -> None:
    assert "[10 more characters" in looks.block("x\n" * 15 + "y" * 10, limit=30)
    assert looks.block("z" * 5000).endswith("…")


def test_a_diff_has_files_with_numbered_lines() -> None:
    code, gone, picture = parse(DIFF).files
    assert (code.path, code.added, code.removed) == ("a.py", 2, 1)
    assert [(line.kind, line.old, line.new) for line in code.lines[1:]] == [
        ("same", 1, 1),
        ("del", 2, None),
        ("add", None, 2),
        ("add", None, 3),
        ("same", 3, 4),
    ]
    assert gone.path == "gone" and gone.removed == 1 and "deleted" in gone.note
    assert picture.path == "x.png" and "binary" in picture.note and picture.lines == []


def test_a_diff_side_by_side_has_replaced_lines_beside_each_other() -> None:
    shown = [(old and old.text, new and new.text) for old, new in pairs(parse(DIFF).files[0])]
    assert shown[1:] == [("same", "same"), ("old", "new"), (None, "more"), ("end", "end")]


def test_a_huge_diff_is_cut_and_says_so() -> None:
    assert parse("@@ -1 +1 @@\n" + "+x\n" * 10_000, "f").cut > 4000


def event(seq: int, body: object, turn: int | None = 1) -> Event:
    return Event(seq=seq, at=0.0, session="s", turn=turn, body=body)  # type: ignore[arg-type]


def test_a_transcript_has_turns_and_results_inside_their_calls() -> None:
    found = sections(
        items(
            [
                event(1, Notice(code="n", message="before"), turn=None),
                event(2, AgentPrompted(text="do")),
                event(3, AgentToolCalled(call="c", tool="Bash", summary="Bash: ls")),
                event(4, Notice(code="n", message="meanwhile"), turn=None),
                event(5, AgentToolReturned(call="c", output="a.py", is_error=True)),
                event(6, AgentEdited(path="a.py", diff="+x")),
                event(7, AgentText(text="done"), turn=2),
            ]
        )
    )
    assert [section.turn for section in found] == [None, 1, 2]
    kinds = [item.entry.kind for item in found[1].items]
    assert kinds == ["prompt", "call", "warning", "edit"]
    assert found[1].items[1].results[0].body == "a.py" and found[1].items[1].results[0].failed


def test_a_form_makes_the_request_of_the_command_line() -> None:
    task = request_of(
        {"repo": "/r", "prompt": "do\r\nit", "budget": "$0.5", "timeout": "10m", "kind": "task", "model": ""}
    )
    assert task == TaskRequest(repo="/r", prompt="do\nit", budget_usd=0.5, timeout=600.0)
    spawn = request_of({"repo": "/r", "kind": "session", "ask": "1", "name": "ui", "memory": "2g", "network": "open"})
    assert spawn == SpawnRequest(repo="/r", ask=True, name="ui", memory_mib=2048, network="open")
    assert request_of({"repo": "/r", "command": "true"}) == TaskRequest(
        repo="/r", command="true", agent="command", prompt="true"
    )


@pytest.mark.parametrize("form", [{"prompt": "p"}, {"repo": "/r", "prompt": "p", "budget": "much"}])
def test_a_form_that_makes_no_request_is_refused(form: dict[str, str]) -> None:
    with pytest.raises(BadInput):
        request_of(form)


@pytest.mark.parametrize("text", ['listen = "0.0.0.0:80"', 'listen = "here"', 'listen = "127.0.0.1:99999"'])
def test_settings_that_cannot_work_are_refused(text: str, tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text(f"[web]\n{text}\n")
    with pytest.raises(BadSetting, match=r"web\.listen"):
        config.load(Paths(tmp_path, tmp_path, tmp_path, file))


def test_another_address_than_loopback_needs_names() -> None:
    settings = WebSettings(listen="0.0.0.0:80", hosts=("desk.example",))
    assert not settings.is_local and settings.address.port == 80
    assert WebSettings(listen="[::1]:8470").is_local


def test_results_from_before_the_first_look_count_as_seen(tmp_path: Path) -> None:
    seen = Seen(tmp_path / "seen.json", since=10)
    assert seen.has("a", 10) and not seen.has("a", 11)
    seen.mark("a", 11)
    assert Seen(tmp_path / "seen.json", since=99).has("a", 11)
    assert not Seen(tmp_path / "seen.json", since=99).has("a", 12)


def test_the_docs_say_for_every_verb_where_the_page_has_it() -> None:
    page = (Path(__file__).parents[2] / "docs" / "web.md").read_text()
    table = page.partition("## The verbs of `hv`")[2].partition("## Access")[0]
    told = set(re.findall(r"`([a-z -]+)`", table))
    hive = {
        "hive add",
        "hive log",
        "hive ls",
        "hive mail",
        "hive nap",
        "hive rm",
        "hive send",
        "hive show",
        "hive wake",
    }
    assert (set(VERBS) - {"hive"}) | hive <= told


def test_foreign_files_are_those_of_the_list() -> None:
    packages = json.loads((VENDOR / "packages.json").read_text())
    listed = {name: file for package in packages for name, file in package["files"].items()}
    assert {path.name for path in VENDOR.iterdir()} == {*listed, "packages.json"}
    for name, file in listed.items():
        assert hashlib.sha256((VENDOR / name).read_bytes()).hexdigest() == file["sha256"], name
    for package in packages:
        assert package["version"] and package["licence"] and package["integrity"].startswith("sha512-")


def test_templates_have_no_inline_script_or_style_and_no_attribute_that_is_code() -> None:
    for template in (WEB / "templates").glob("*.html"):
        text = template.read_text()
        found = re.findall(r"<style|<script>|\sstyle=|\son\w+=|hx-on|js:|javascript:|hx-vals|hx-trigger=[^>]*\[", text)
        assert not found, f"{template.name}: {found}"
        assert "|safe" not in text and "| safe" not in text and "autoescape" not in text, template.name


def test_own_scripts_make_markup_only_of_what_the_server_rendered() -> None:
    script = (WEB / "static" / "app.js").read_text()
    assert "eval(" not in script and "new Function" not in script
    assert len(re.findall(r"innerHTML|insertAdjacentHTML|outerHTML", script)) <= 6
