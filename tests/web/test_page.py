"""The page in a real browser: what a person does there, on a desk screen and on a phone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.end_to_end.sessions.conftest import Stage
from tests.support.browser import Browser
from tests.web.conftest import link, place

NASTY = (
    "<img src=x onerror=document.title='hacked'><script>document.title='hacked'</script>\u202eevil\u200b \x1b[31mred"
)
WIDTHS = [1400, 360]


def go(page: Browser, path: str) -> None:
    page.script("location.assign(arguments[0])", path)
    page.wait("location.pathname === arguments[0].split('#')[0] && document.readyState === 'complete'", path)
    page.wait("document.querySelector('#link[data-state=live]') !== null")


def no_overflow(page: Browser) -> bool:
    return bool(page.script("return document.documentElement.scrollWidth <= innerWidth"))


def test_a_task_is_started_on_the_page_and_seen_to_its_end(page: Browser, stage: Stage, repo: Path) -> None:
    go(page, "/new")
    page.fill("[name=repo]", str(repo))
    page.fill("[name=prompt]", "add a file")
    page.click(".new details summary")
    page.fill("[name=command]", "echo hello > added.txt; echo it is there")
    page.click("#start")
    page.see("completed", "#head")
    page.see("it is there", "#transcript")
    page.see("add a file", "#transcript .prompt")
    go(page, f"/s/{page.url.rpartition('/')[2]}/changes")
    page.see("added.txt", ".file")
    page.see("hello", ".diff .add")
    page.click(".switch a:last-child")
    page.see("hello", ".diff.split .add")
    go(page, "/overview")
    page.see("completed", "tr[data-item]")
    page.see("+1", "tr[data-item]")


@pytest.mark.parametrize("width", WIDTHS)
def test_a_session_takes_prompts_is_interrupted_and_stopped(
    page: Browser, stage: Stage, repo: Path, width: int
) -> None:
    page.resize(width)
    go(page, "/new")
    page.click(".segments label:last-child")
    page.fill("[name=repo]", str(repo))
    page.fill("[name=prompt]", "remember plums")
    page.click("#start")
    page.see("remember plums", "#transcript")
    page.see("ready", "#head")
    page.fill("#prompt", "wait")
    page.press("Control", "Enter")
    page.see("executing", "#head")
    page.fill("#prompt", "say 2 20")
    page.click("#send")
    page.see("queued, turn 3", "#foot")
    page.click("#interrupt")
    page.see("thing 1", "#transcript")
    page.wait("document.querySelectorAll('section.turn[data-turn]').length === 4")
    assert page.count("[data-head='2']") == 1 and "cancelled" in page.text("[data-head='2']")
    assert no_overflow(page)
    page.click("#stop")
    page.see("stopped", "#head")


def test_a_change_elsewhere_appears_on_the_overview_by_itself(page: Browser, stage: Stage, repo: Path) -> None:
    go(page, "/overview")
    page.see("There is no work yet")
    id = stage.spawn(repo, "--name", "from-afar", "-m", "wait")
    page.see("executing", f"#row-{id}")
    page.fill("#search", "no such name")
    page.see("Nothing matches")
    page.click("[data-clear]")
    page.see("from-afar")
    page.click(f"#row-{id} .menu summary")
    page.click(f"#row-{id} .menu-list button")
    page.see("ready", f"#row-{id}")
    assert page.count("tr[data-item]") == 1


@pytest.mark.parametrize("width", WIDTHS)
def test_a_question_is_answered_on_the_desk(page: Browser, stage: Stage, repo: Path, width: int) -> None:
    page.resize(width)
    go(page, "/")
    page.see("Nothing waits for you")
    id = stage.spawn(repo, "--name", "asking", "-m", "ask", "--ask")
    page.see("may it?", ".ask")
    page.wait("document.title.startsWith('(1)')")
    assert no_overflow(page)
    page.fill(".ask [name=message]", "go on")
    page.click(".ask .primary")
    page.wait("document.querySelector('.ask') === null")
    stage.until(id, lambda body: body["type"] == "turn.ended")
    assert stage.said(id) == ["answered: once go on"]
    page.see("asking", ".result")
    page.click(".result [data-key=a]")
    page.see("Nothing waits for you")


def test_a_question_is_answered_by_keys_alone(page: Browser, stage: Stage, repo: Path) -> None:
    go(page, "/overview")
    id = stage.spawn(repo, "--name", "asking", "-m", "ask", "--ask")
    page.see("waits for you", f"#row-{id}")
    page.press("n")
    page.wait("location.pathname === '/' && document.querySelector('.ask.selected') !== null")
    page.press("d")
    page.wait("document.querySelector('.ask') === null")
    stage.until(id, lambda body: body["type"] == "turn.ended")
    assert stage.said(id) == ["answered: never"]
    page.press("?")
    page.wait("document.querySelector('#keys').open")
    page.press("Escape")


def test_two_answers_and_the_first_one_counts(page: Browser, stage: Stage, repo: Path) -> None:
    stage.spawn(repo, "--name", "asking", "-m", "ask", "--ask")
    go(page, "/")
    page.see("may it?", ".ask")
    ask = stage.json("inbox")[0]["id"]
    assert stage("answer", ask, "deny").returncode == 0
    page.wait("document.querySelector('.ask') === null")
    page.wait("document.querySelector('.past').textContent.includes('denied')")


def test_a_daemon_that_is_killed_is_found_again_and_nothing_is_lost_or_shown_twice(
    page: Browser, stage: Stage, repo: Path
) -> None:
    id = stage.spawn(repo, "--name", "lasting", "-m", "say 3 20")
    go(page, f"/s/{id}")
    page.see("thing 2", "#transcript")
    stage.kill_daemon()
    page.wait("document.querySelector('#link[data-state=away]') !== null")
    stage.wake()
    assert stage("send", id, "say 5 20", "--wait").returncode == 0
    page.see("thing 4", "#transcript")
    page.wait("document.querySelector('#link[data-state=live]') !== null")
    assert page.text("#transcript").count("thing 2") == 2 and page.text("#transcript").count("thing 4") == 1
    assert [line for line in page.log() if "ERR_CONNECTION_REFUSED" not in line and "ERR_INCOMPLETE" not in line] == []


def test_a_member_asks_and_writes_and_is_answered(page: Browser, stage: Stage, repo: Path) -> None:
    assert stage("hive", "add", "ada", str(repo)).returncode == 0
    go(page, "/")
    stage("hive", "send", "ada", 'tool ask {"question": "which color?"}')
    page.see("which color?", ".ask")
    page.fill(".ask [name=answer]", "green, please")
    page.click(".ask .primary")
    page.wait("document.querySelector('.ask') === null")
    stage("hive", "send", "ada", 'tool send {"to": ["operator"], "text": "it is green now"}')
    page.see("it is green now", ".mail")
    page.fill(".mail [name=text]", "say 1 5")
    page.click(".mail .primary")
    page.wait("document.querySelector('.mail') === null")
    sent = [(one["sender"], one["text"]) for one in stage.json("hive", "mail", "ada")]
    assert ("operator", "green, please") in sent and ("operator", "say 1 5") in sent
    go(page, "/overview")
    page.see("member", "tr[data-item] .tag")
    assert stage("hive", "rm", "--force", "ada").returncode == 0
    page.wait("document.querySelectorAll('tr[data-item]').length === 0")


def test_hostile_text_runs_nothing_and_breaks_no_layout(page: Browser, stage: Stage, repo: Path) -> None:
    events = [
        {"kind": "text", "text": f"{NASTY}\n```\n{NASTY}\n```\n`{NASTY}` **{NASTY}**"},
        {"kind": "thinking", "text": NASTY},
        {"kind": "tool_called", "call": '"]<b>', "tool": NASTY, "summary": NASTY},
        {"kind": "tool_returned", "call": '"]<b>', "output": NASTY * 50},
        {"kind": "edited", "path": NASTY, "diff": f"@@ -1 +1 @@\n-{NASTY}\n+{NASTY}"},
        {"kind": "error", "message": NASTY},
        {"kind": "text", "text": "x" * 60_000},
    ]
    id = stage.spawn(repo, "--name", "hostile", "-m", f"tell {json.dumps(events)}")
    stage.until(id, lambda body: body["type"] == "turn.ended")
    go(page, f"/s/{id}")
    assert stage("send", id, f"tell {json.dumps(events)}", "--wait").returncode == 0
    page.wait("document.querySelectorAll('.item.text').length >= 4")
    for path in (f"/s/{id}/events", f"/s/{id}/console", "/overview", "/", f"/s/{id}"):
        for width in WIDTHS:
            page.resize(width)
            go(page, path)
            assert no_overflow(page), (path, width)
            assert page.count("#main img") == 0 and page.count("#main script") == 0
            assert "hacked" not in page.title
            assert "\u202e" not in page.text("#main") and "\x1b" not in page.text("#main")


def test_a_removal_needs_the_name(page: Browser, stage: Stage, repo: Path) -> None:
    id = stage.spawn(repo, "--name", "doomed")
    go(page, f"/s/{id}")
    page.click(".head .menu summary")
    page.click(".head .menu-list .danger")
    page.wait("document.querySelector('#dialog').open")
    assert page.script("return document.querySelector('#dialog .solid').disabled")
    page.fill("#dialog [name=name]", "doomed")
    page.click("#dialog .solid")
    page.wait("location.pathname === '/overview'")
    assert stage.json("list", "-a") == []


def test_a_snapshot_is_taken_and_forked(page: Browser, stage: Stage, repo: Path) -> None:
    id = stage.prompted(repo)
    go(page, f"/s/{id}/snapshots")
    page.see("There is no snapshot")
    page.click(".sub-bar .primary")
    page.fill("#dialog [name=name]", "early")
    page.click("#dialog .primary")
    page.see("early", ".works")
    page.click(".works button")
    page.fill("#dialog textarea", "recall")
    page.click("#dialog .primary")
    page.see("forked into 1", "#toasts")
    assert len(stage.json("list")) == 2


def test_a_long_transcript_begins_with_its_end_and_shows_older_parts_on_demand(
    page: Browser, stage: Stage, repo: Path
) -> None:
    id = stage.spawn(repo, "--name", "long", "-m", "say 900 20")
    stage.until(id, lambda body: body["type"] == "turn.ended")
    go(page, f"/s/{id}")
    page.see("thing 899", "#transcript")
    assert "thing 10 " not in page.text("#transcript")
    page.script("scrollTo(0, 0)")
    assert stage("send", id, "say 1 20", "--wait").returncode == 0
    page.see("new", "#new-items")
    page.click(".older")
    page.see("thing 10 ", "#transcript")
    page.wait("document.querySelector('.older') === null")
    page.click("#new-items")
    page.wait("document.querySelector('#new-items').hidden")


def test_the_current_work_of_a_session_is_collected_and_shown(page: Browser, stage: Stage, repo: Path) -> None:
    id = stage.prompted(repo)
    assert stage("exec", "-T", id, "--", "sh", "-c", "echo fresh > fresh.txt").returncode == 0
    go(page, f"/s/{id}/changes")
    page.see("No changes are collected")
    page.click("#collect")
    page.see("fresh.txt", ".file")


def test_a_draft_survives_a_reload(page: Browser, stage: Stage, repo: Path) -> None:
    id = stage.prompted(repo)
    go(page, f"/s/{id}")
    page.fill("#prompt", "half a thought")
    go(page, "/overview")
    go(page, f"/s/{id}")
    assert page.script("return document.querySelector('#prompt').value") == "half a thought"
    page.script("localStorage.clear()")


def test_a_mistake_is_told_with_a_hint(page: Browser, stage: Stage) -> None:
    go(page, "/new")
    page.fill("[name=repo]", "/no/such/place")
    page.fill("[name=prompt]", "do it")
    page.click("#start")
    page.see("/no/such/place", ".toast.bad")
    page.script("localStorage.clear()")
    assert [line for line in page.log() if "400" not in line] == []


def test_a_read_only_browser_has_no_buttons_to_press(page: Browser, stage: Stage, repo: Path) -> None:
    id = stage.prompted(repo)
    url = link(stage, "--read-only")
    page.open(url)
    page.wait("location.pathname === '/'")
    go(page, f"/s/{id}")
    assert page.script("return document.querySelector('#prompt').disabled && document.querySelector('#stop').disabled")
    page.open(link(stage))
    page.wait("location.pathname === '/'")
    assert place(url) in page.url
