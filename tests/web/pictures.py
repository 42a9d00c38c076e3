"""Take pictures of every page, with a seeded demo, on a desk screen and on a phone, light and dark.

`make pictures` writes them to build/pictures.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import anyio

from hiveyard.core.events import ModelCalled
from hiveyard.core.usage import Usage
from hiveyard.kit.clock import SystemClock
from hiveyard.store.database import open_store
from tests.end_to_end.sessions.conftest import Stage, opened
from tests.support.browser import Browser, browser
from tests.web.conftest import link, place, settings

WHERE = Path(__file__).parents[2] / "build" / "pictures"
DIFF = """@@ -1,6 +1,9 @@
 def total(items):
-    return sum(item.price for item in items)
+    \"\"\"Return the sum of all prices, without the items that are free.\"\"\"
+    paid = [item for item in items if item.price]
+    return sum(item.price * item.count for item in paid)


 def names(items):
"""
TALK = [
    {"kind": "thinking", "text": "The test multiplies prices by counts, and total() ignores the count."},
    {"kind": "text", "text": "I will run the tests first, to see **what fails** and where."},
    {"kind": "tool_called", "call": "1", "tool": "Bash", "summary": "Bash: pytest -q tests/test_cart.py"},
    {
        "kind": "tool_returned",
        "call": "1",
        "tool": "Bash",
        "output": "F.\n____ test_total_counts ____\nE  assert 3 == 7\n1 failed, 1 passed in 0.12s",
        "is_error": True,
    },
    {"kind": "tool_called", "call": "2", "tool": "Read", "summary": "Read: shop/cart.py"},
    {"kind": "tool_returned", "call": "2", "tool": "Read", "output": "def total(items): ..."},
    {"kind": "edited", "path": "shop/cart.py", "diff": DIFF, "call": "3"},
    {"kind": "tool_called", "call": "4", "tool": "Bash", "summary": "Bash: pytest -q"},
    {"kind": "tool_returned", "call": "4", "tool": "Bash", "output": "24 passed in 1.90s"},
    {
        "kind": "text",
        "text": "All 24 tests pass now. `total()` multiplied nothing; it does now:\n\n"
        "```python\nreturn sum(item.price * item.count for item in paid)\n```\n\n"
        "The free items were counted before, too. Say so if that was intended.",
    },
]


FIRST, SECOND = "Make the failing test pass: total() must count the pieces.", "Say it in the readme, too."
TALKS = {FIRST: TALK, SECOND: [{"kind": "text", "text": "The readme says it now, too."}]}


def make_repository(where: Path) -> Path:
    where.mkdir()
    (where / "cart.py").write_text("def total(items):\n    return sum(item.price for item in items)\n\n\nX = 1\n")
    (where / "readme.md").write_text("# Shop\n\nA small shop.\n")
    for words in (("init", "-q", "-b", "main"), ("add", "."), ("commit", "-qm", "first")):
        subprocess.run(
            ["git", "-c", "user.name=Ada", "-c", "user.email=ada@example.com", *words], cwd=where, check=True
        )
    return where


def seed(stage: Stage, scratch: Path) -> str:
    """Make the demo; return the id of the session whose page is shown."""
    shop, site = make_repository(scratch / "shop"), make_repository(scratch / "website")
    edit = (
        "sed -i 's/item.price for/item.price * item.count for/' cart.py && "
        "printf '%s\n' '' 'Prices are per piece.' >> readme.md && echo 'done: 2 files'"
    )
    for words in (
        ["-m", "count the pieces, too", "--command", edit],
        ["-m", "bump the version", "--command", "echo 'no version file' >&2; exit 1"],
        ["-m", "translate the readme", "--command", "sleep 600"],
    ):
        assert stage("run", str(shop), "-d", *words).returncode == 0
    first = stage.spawn(
        shop, "--name", "cart-totals", "-m", FIRST, "--budget", "5", "--env", f"PUPPET_TALKS={json.dumps(TALKS)}"
    )
    stage.until(first, lambda body: body["type"] == "turn.ended")
    asking = stage.spawn(site, "--name", "dark-mode", "-m", "ask", "--ask")
    stage.until(asking, lambda body: body["type"] == "agent.asked")
    busy = stage.spawn(site, "--name", "search-index", "-m", "wait")
    stage.until(busy, lambda body: body["type"] == "agent.tool_called")
    stopped = stage.spawn(site, "--name", "old-idea", "-m", "say 2 40")
    stage.until(stopped, lambda body: body["type"] == "turn.ended")
    stage("stop", stopped)
    stage("snapshot", first, "--name", "green")
    stage("send", first, SECOND, "--wait")
    return first


async def bill(stage: Stage, session: str) -> None:
    """Record calls of a model in the journal of a daemon that does not run."""
    async with open_store(stage.home / "data" / "hiveyard.db", clock=SystemClock()) as store:
        for turn, tokens, cost in ((1, 24_600, 0.0731), (2, 9_100, 0.0204)):
            usage = Usage(input_tokens=tokens // 4, cache_read_tokens=3 * tokens // 4, output_tokens=812, cost_usd=cost)
            called = ModelCalled(protocol="anthropic", model="opus", status=200, seconds=4.1, usage=usage)
            await store.append(session, called, turn=turn)


def main() -> int:
    WHERE.mkdir(parents=True, exist_ok=True)
    with opened(settings()) as stage, browser() as window:
        first_link = link(stage)
        window.open(first_link)
        base = place(first_link)
        window.wait("location.pathname === '/'")
        shoot(window, base, {"empty-desk": "/", "empty-overview": "/overview"})
        session = seed(stage, stage.home.parent)
        window.open("about:blank")
        assert stage("stop-daemon").returncode == 0
        anyio.run(bill, stage, session)
        stage.wake()
        stage("hive", "add", "reviewer", str(stage.home.parent / "shop"))
        task = next(one["id"] for one in stage.json("ps", "-a") if one["status"] == "completed")
        pages = {"desk": "/", "overview": "/overview", "overview-by-repo": "/overview#group=repo", "new": "/new"}
        pages |= {"session": f"/s/{session}", "snapshots": f"/s/{session}/snapshots", "events": f"/s/{session}/events"}
        pages |= {"task": f"/s/{task}", "changes": f"/s/{task}/changes", "split": f"/s/{task}/changes?view=split"}
        shoot(window, base, pages | {"console": f"/s/{task}/console", "styleguide": "/styleguide"})
        shoot(window, base, {"remove": f"/s/{session}"}, before=open_dialog)
        said = window.log()
        assert not said, said
    return 0


def open_dialog(window: Browser) -> None:
    window.click(".head .menu summary")
    window.click(".head .menu-list .danger")
    window.wait("document.querySelector('#dialog').open")


def shoot(window: Browser, base: str, pages: dict[str, str], before: object = None) -> None:
    for name, path in pages.items():
        for width in (1400, 360):
            for dark in (False, True):
                window.resize(width, 900 if width > 500 else 760, dark=dark)
                window.open("about:blank")
                window.open(base + path)
                window.wait("document.querySelector('#link[data-state=live]') !== null")
                if callable(before):
                    before(window)
                time.sleep(0.2)
                window.picture(WHERE / f"{name}-{width}-{'dark' if dark else 'light'}.png")
    print(f"{len(pages)} pages in {WHERE}")


if __name__ == "__main__":
    sys.exit(main())
