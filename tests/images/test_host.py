"""A build takes some of the host's own configuration, and leaves the rest."""

from __future__ import annotations

from pathlib import Path

from hiveyard.images.host import debian_sources

STANZAS = """\
Types: deb deb-src
# where from
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main contrib
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://mirror.example/debian-security
Suites: bookworm-security
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
"""
OTHERS = """\
Types: deb
URIs: https://vendor.example/linux
Suites: bookworm
Components: stable

Types: deb
URIs: https://vendor.example/node
Suites: nodistro
Components: main
"""


def apt(directory: Path, **texts: str) -> Path:
    (directory / "sources.list.d").mkdir()
    for name, text in texts.items():
        file = directory / "sources.list" if name == "list" else directory / "sources.list.d" / f"{name}.sources"
        file.write_text(text)
    return directory


def test_the_mirrors_of_the_same_debian_are_taken(tmp_path: Path) -> None:
    text, deb822 = debian_sources("bookworm", apt(tmp_path, debian=STANZAS))
    assert deb822
    assert "http://mirror.example/debian\nSuites: bookworm bookworm-updates\nComponents: main\n" in text
    assert "http://mirror.example/debian-security" in text
    assert "contrib" not in text


def test_packages_of_others_are_left(tmp_path: Path) -> None:
    text, _ = debian_sources("bookworm", apt(tmp_path, debian=STANZAS, others=OTHERS))
    assert "vendor.example" not in text


def test_the_one_line_form_is_understood(tmp_path: Path) -> None:
    lines = """\
# deb http://old.example/debian bookworm main
deb [signed-by=/k.gpg arch=amd64] http://mirror.example/debian bookworm main contrib
deb http://mirror.example/debian-security bookworm-security main
deb http://vendor.example/x bookworm stable
deb-src http://mirror.example/debian bookworm main
"""
    text, deb822 = debian_sources("bookworm", apt(tmp_path, list=lines))
    assert not deb822
    assert [line.rpartition(" http")[2].split()[1] for line in text.splitlines()] == ["bookworm", "bookworm-security"]


def test_a_host_of_another_release_gives_no_mirror(tmp_path: Path) -> None:
    assert debian_sources("trixie", apt(tmp_path, debian=STANZAS)) == ("", False)
    assert debian_sources("trixie", tmp_path / "nowhere") == ("", False)
