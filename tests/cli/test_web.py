"""`hv web` and `hv web devices`."""

from __future__ import annotations

import socket

import requests

from tests.cli.conftest import CONFIG, Hv


def test_a_link_signs_in_one_browser_which_is_listed_and_signed_out(own_hv: Hv) -> None:
    url = own_hv("web", "--no-open", "--read-only").stdout.strip()
    assert url.startswith("http://127.0.0.1:")
    agent = {"User-Agent": "Mozilla/5.0 (X11; Linux x86_64; rv:150.0) Gecko/20100101 Firefox/150.0"}
    assert requests.get(url, headers=agent, timeout=30).status_code == 200
    (device,) = own_hv.json("web", "devices")
    assert (device["name"], device["read_only"]) == ("Firefox on Linux", True)
    assert "Firefox on Linux" in own_hv("web", "devices").stdout
    assert own_hv("web", "devices", "--revoke", device["id"][:4]).returncode == 0
    assert own_hv.json("web", "devices") == []
    missing = own_hv("web", "devices", "--revoke", "nobody")
    assert missing.returncode == 2 and "there is no device 'nobody'" in missing.stderr


def test_a_port_that_is_taken_is_told_with_what_to_write(own_hv: Hv) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        (own_hv.home / "config.toml").write_text(CONFIG.replace("127.0.0.1:0", f"127.0.0.1:{port}"))
        done = own_hv("web", "--no-open")
    assert done.returncode != 0
    assert f"cannot listen on 127.0.0.1:{port}" in done.stderr and "listen =" in done.stderr
