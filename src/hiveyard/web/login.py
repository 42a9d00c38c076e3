"""The page for a browser that is not signed in. It needs no other file: those are for signed-in browsers."""

from __future__ import annotations

import base64
import hashlib
from html import escape

_STYLE = """
:root { color-scheme: light dark; --ink: #1d1d28; --soft: #63636f; --ground: #f7f7f9; --card: #fff; --line: #e2e2e8; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #ececf1; --soft: #a0a0ad; --ground: #121217; --card: #1b1b22; --line: #2e2e38; }
}
body { margin: 0; min-height: 100vh; display: grid; place-items: center; background: var(--ground); color: var(--ink);
  font: 15px/1.55 system-ui, sans-serif; }
main { width: min(25rem, calc(100vw - 4rem)); padding: 2rem; background: var(--card); border: 1px solid var(--line);
  border-radius: 12px; }
h1 { margin: 0 0 .75rem; font-size: 20px; letter-spacing: -.01em; }
p { margin: 0 0 .75rem; }
small { color: var(--soft); font-size: 13px; }
code { display: block; padding: .6rem .75rem; border: 1px solid var(--line); border-radius: 8px;
  background: var(--ground); font: 14px ui-monospace, monospace; }
a { color: inherit; }
"""
_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
LOGIN_POLICY = f"default-src 'none'; style-src 'sha256-{_HASH}'; base-uri 'none'; frame-ancestors 'none'"


def login_page(problem: str = "This browser is not signed in.") -> str:
    """Return the page that says how to sign in."""
    return _page(
        "Sign in to Hiveyard",
        f"<p>{escape(problem)}</p><p>On the host that runs Hiveyard, type</p><p><code>hv web</code></p>"
        "<p><small>It opens a link that works once, within a minute. <b>hv web devices</b> lists the browsers that are "
        "signed in.</small></p>",
    )


def welcome_page() -> str:
    """Return the page behind a link that was good. It leads on by itself: a redirect would count as the other site's
    if the link was clicked there, and the browser would keep the cookie back."""
    return _page("Signed in", '<p><a href="/">Open Hiveyard</a></p>', '<meta http-equiv="refresh" content="0; url=/">')


def _page(title: str, body: str, head: str = "") -> str:
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width">{head}<style>{_STYLE}</style></head>'
        f"<body><main><h1>{title}</h1>{body}</main></body></html>"
    )
