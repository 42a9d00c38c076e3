"""Access to the page: only a browser that is signed in, and only from the page itself."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import requests

from hiveyard.web.devices import COOKIE_DAYS, LINK_SECONDS, Devices
from tests.end_to_end.sessions.conftest import Stage
from tests.support.clocks import ManualClock
from tests.web.conftest import link, place

PAGE = {"Hiveyard-Page": "1"}


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def devices(tmp_path: Path, clock: ManualClock) -> Devices:
    return Devices(tmp_path / "devices.json", clock)


def signed_in(stage: Stage, *words: str) -> tuple[requests.Session, str]:
    """Return a client that is signed in, and the address of the page."""
    url = link(stage, *words)
    client = requests.Session()
    client.trust_env = False
    assert client.get(url).status_code == 200
    return client, place(url)


def test_a_link_works_once(devices: Devices) -> None:
    code = devices.make_link(read_only=False)
    assert devices.sign_in(code, "Firefox") is not None
    assert devices.sign_in(code, "Firefox") is None


def test_a_link_that_is_late_does_not_work(devices: Devices, clock: ManualClock) -> None:
    code = devices.make_link(read_only=False)
    clock.time += LINK_SECONDS
    assert devices.sign_in(code, "Firefox") is None


def test_a_cookie_is_valid_for_thirty_days_and_for_the_next_daemon(
    devices: Devices, clock: ManualClock, tmp_path: Path
) -> None:
    cookie = devices.sign_in(devices.make_link(read_only=False), "Firefox")
    assert cookie is not None
    assert cookie not in (tmp_path / "devices.json").read_text()
    clock.time += COOKIE_DAYS * 86400 - 1
    later = Devices(tmp_path / "devices.json", clock)
    found = later.find(cookie)
    assert found is not None and found.name == "Firefox"
    clock.time += 2
    assert later.find(cookie) is None and later.list() == []


def test_a_device_that_was_revoked_is_unknown(devices: Devices) -> None:
    cookie = devices.sign_in(devices.make_link(read_only=True), "Firefox")
    assert cookie is not None
    devices.revoke(devices.list()[0].id[:4])
    assert devices.find(cookie) is None


def test_a_damaged_list_of_devices_signs_everybody_out(tmp_path: Path, clock: ManualClock) -> None:
    (tmp_path / "devices.json").write_text("[{")
    assert Devices(tmp_path / "devices.json", clock).list() == []


def test_a_used_link_shows_the_login_page(web_stage: Stage) -> None:
    url = link(web_stage)
    assert requests.get(url, timeout=30).status_code == 200
    again = requests.get(url, timeout=30)
    assert again.status_code == 401 and "hv web" in again.text and "Set-Cookie" not in again.headers


def test_the_cookie_is_closed_to_scripts_and_to_other_sites(web_stage: Stage) -> None:
    header = requests.get(link(web_stage), timeout=30).headers["Set-Cookie"]
    assert "HttpOnly" in header and "SameSite=strict" in header and "Path=/" in header


def routes() -> list[tuple[str, str]]:
    return [
        ("GET", "/"),
        ("GET", "/overview"),
        ("GET", "/new"),
        ("GET", "/live"),
        ("GET", "/live/ping"),
        ("GET", "/styleguide"),
        ("GET", "/static/app.js"),
        ("GET", "/static/app.css"),
        ("GET", "/s/x"),
        *[
            ("GET", f"/s/x/{tab}")
            for tab in ("older", "live", "changes", "events", "console", "snapshots", "dialog/rm")
        ],
        ("GET", "/nothing"),
        ("POST", "/login"),
        ("POST", "/new"),
        ("POST", "/s/x/act/stop"),
        ("POST", "/s/x/seen"),
        ("POST", "/asks/x/answer"),
        ("PUT", "/"),
    ]


def test_without_a_cookie_every_route_shows_the_login_page(web_stage: Stage) -> None:
    base = place(link(web_stage))
    for method, path in routes():
        answer = requests.request(method, base + path, headers=PAGE, timeout=30)
        assert answer.status_code == 401, path
        assert "Sign in to Hiveyard" in answer.text and "app.css" not in answer.text


def test_a_cookie_of_another_installation_is_no_cookie(web_stage: Stage) -> None:
    client, base = signed_in(web_stage)
    name = next(iter(client.cookies)).name
    assert requests.get(base, cookies={name: "x" * 43}, timeout=30).status_code == 401


@pytest.mark.parametrize("host", ["example.com", "localhost", "127.0.0.1.nip.example:8470"])
def test_another_host_name_is_refused_even_with_a_cookie(web_stage: Stage, host: str) -> None:
    client, base = signed_in(web_stage)
    assert client.get(base, headers={"Host": host}).status_code == 421


@pytest.mark.parametrize("origin", ["http://example.com", "null", "https://127.0.0.1", "http://localhost:1"])
def test_another_origin_is_refused(web_stage: Stage, origin: str) -> None:
    client, base = signed_in(web_stage)
    assert client.get(base, headers={"Origin": origin}).status_code == 403
    assert client.post(f"{base}/new", headers={"Origin": origin, **PAGE}).status_code == 403


def test_a_form_of_another_site_changes_nothing(web_stage: Stage, repo: Path) -> None:
    client, base = signed_in(web_stage)
    form = {"repo": str(repo), "prompt": "say 1 1"}
    assert client.post(f"{base}/new", data=form).status_code == 403
    assert web_stage.json("ps", "-a") == []


def test_a_websocket_is_refused(web_stage: Stage) -> None:
    client, base = signed_in(web_stage)
    host = base.removeprefix("http://")
    cookie = next(iter(client.cookies))
    with socket.create_connection(("127.0.0.1", int(host.rpartition(":")[2])), 30) as connection:
        connection.sendall(
            f"GET /live/ping HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
            f"Cookie: {cookie.name}={cookie.value}\r\n\r\n".encode()
        )
        assert not connection.recv(100).startswith(b"HTTP/1.1 101")


def test_a_read_only_browser_looks_and_changes_nothing(web_stage: Stage, repo: Path) -> None:
    client, base = signed_in(web_stage, "--read-only")
    assert client.get(f"{base}/overview").status_code == 200
    assert client.post(f"{base}/new", data={"repo": str(repo), "prompt": "p"}, headers=PAGE).status_code == 403
    assert web_stage.json("ps", "-a") == []


def test_a_revoked_browser_is_signed_out_at_once(web_stage: Stage) -> None:
    client, base = signed_in(web_stage)
    id = web_stage.json("web", "devices")[0]["id"]
    assert web_stage("web", "devices", "--revoke", id).returncode == 0
    assert client.get(base).status_code == 401


def test_the_policy_allows_own_files_and_nothing_else(web_stage: Stage) -> None:
    client, base = signed_in(web_stage)
    for path in ("/", "/overview", "/new", "/styleguide", "/nothing"):
        answer = client.get(base + path)
        policy = answer.headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; script-src 'self';") and "unsafe" not in policy
        assert "style=" not in answer.text and "onclick" not in answer.text and "hx-on" not in answer.text
        assert answer.headers["Referrer-Policy"] == "no-referrer"


@pytest.mark.parametrize("path", ["../app.py", "%2e%2e/app.py", "..%2fapp.py", "vendor/packages.json", "/etc/passwd"])
def test_static_files_are_those_of_their_directory(web_stage: Stage, path: str) -> None:
    client, base = signed_in(web_stage)
    request = requests.Request("GET", base).prepare()
    request.url = f"{base}/static/{path}"
    request.prepare_cookies(client.cookies)
    assert client.send(request).status_code == 404
