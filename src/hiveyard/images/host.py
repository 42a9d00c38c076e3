"""The host's network configuration for a build: Debian mirrors, certificates, proxies, npm registries.

The build's sandbox gets it, the image does not. Only the keys that decide where and how to download are used, never a
complete configuration file.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from hiveyard.kit import process

_APT = re.compile(
    r"Acquire::(?:https?::(?:Proxy(?:::\S+)?|CaInfo)|Check-Valid-Until|Check-Date|Retries)\Z", re.IGNORECASE
)
_NPM = re.compile(r"\s*(?:(?:@[^:=\s]+:)?registry|//[^=\s]+:[A-Za-z_-]+|(?:https-)?proxy|noproxy|strict-ssl)\s*=")
_PROXIES = ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY", "all_proxy")
_CERTIFICATES = ("SSL_CERT_FILE", "NODE_EXTRA_CA_CERTS", "CURL_CA_BUNDLE")
_CERTIFICATE_FILES = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem")


@dataclass(frozen=True, slots=True, kw_only=True)
class HostNetwork:
    """The configuration of this host for downloads.

    `sources` is a file in apt's deb822 or one-line form, "" for the builder's default. `apt` are apt options.
    `npmrc` may contain credentials: the build gets it by a pipe, and it is never written to disk.
    """

    sources: str = ""
    deb822: bool = False
    apt: tuple[str, ...] = ()
    certificates: Path | None = None
    proxies: Mapping[str, str] = field(default_factory=dict)
    npmrc: str = field(default="", repr=False)


async def host_network(suite: str, etc: Path = Path("/etc")) -> HostNetwork:
    """Return this host's configuration for downloads."""
    sources, deb822 = debian_sources(suite, etc / "apt")
    return HostNetwork(
        sources=sources,
        deb822=deb822,
        apt=await _apt_options(),
        certificates=_certificates(),
        proxies={name: value for name in _PROXIES if (value := os.environ.get(name))},
        npmrc=await _npmrc(),
    )


def debian_sources(suite: str, apt: Path) -> tuple[str, bool]:
    """Return the host's own entries for Debian's main archive of `suite`, and whether they have the deb822 format.

    Returns ("", False) if the host has another suite, because its mirrors may not have this one.
    """
    suites = {suite, f"{suite}-updates", f"{suite}-security", f"{suite}/updates"}
    stanzas = [kept for file in sorted(apt.glob("sources.list.d/*.sources")) for kept in _stanzas(_text(file), suites)]
    if any(re.search(rf"^Suites:.*\b{re.escape(suite)}(\s|$)", stanza, re.MULTILINE) for stanza in stanzas):
        return "\n\n".join(stanzas) + "\n", True
    files = [apt / "sources.list", *sorted(apt.glob("sources.list.d/*.list"))]
    lines = [line for file in files for line in _text(file).splitlines() if _wanted(line, suites)]
    if any(suite in line.split() for line in lines):
        return "\n".join(lines) + "\n", False
    return "", False


def _stanzas(text: str, suites: set[str]) -> Iterator[str]:
    """Return the stanzas for Debian's main archive, with only the fields that name its location."""
    for stanza in re.split(r"\n\s*\n", text):
        lines = [line for line in stanza.splitlines() if line.strip() and not line.startswith("#")]
        fields = {name.strip().lower(): value.split() for name, _, value in (line.partition(":") for line in lines)}
        found = [name for name in fields.get("suites", []) if name in suites]
        if not found or "main" not in fields.get("components", []) or fields.get("enabled") == ["no"]:
            continue
        kept = ["Types: deb", f"URIs: {' '.join(fields.get('uris', []))}", f"Suites: {' '.join(found)}"]
        kept.append("Components: main")
        if key := next((word for word in fields.get("signed-by", []) if word.startswith("/")), ""):
            kept.append(f"Signed-By: {key}")
        yield "\n".join(kept)


def _wanted(line: str, suites: set[str]) -> bool:
    words = re.sub(r"\[.*?\]", "", line).split()
    return len(words) >= 4 and words[0] == "deb" and words[2] in suites and "main" in words[3:]


async def _apt_options() -> tuple[str, ...]:
    if not shutil.which("apt-config"):
        return ()
    done = await process.run(["apt-config", "dump", "--format", "%f\t%v\n", "Acquire"], timeout=30)
    pairs = [line.split("\t", 1) for line in done.stdout.decode("utf-8", "replace").splitlines() if "\t" in line]
    return tuple(f'{name} "{value}"' for name, value in pairs if _APT.match(name) and value and '"' not in value)


def _certificates() -> Path | None:
    named = [os.environ.get(variable, "") for variable in _CERTIFICATES]
    return next((Path(file) for file in (*named, *_CERTIFICATE_FILES) if file and Path(file).is_file()), None)


async def _npmrc() -> str:
    """Return the lines of npm's configuration that name the source of packages: the global ones, then the user's."""
    files = [Path("/etc/npmrc"), Path("/usr/etc/npmrc"), Path("/usr/local/etc/npmrc")]
    files.append(Path(_npm_variable("userconfig") or Path.home() / ".npmrc"))
    lines = [os.path.expandvars(line) for file in files for line in _text(file).splitlines() if _NPM.match(line)]
    if registry := _npm_variable("registry"):
        lines.append(f"registry={registry}")
    return "\n".join(lines) + "\n" if lines else ""


def _npm_variable(name: str) -> str:
    """Return npm's setting from an environment variable, whose name may be in upper or lower case."""
    return next((value for key, value in os.environ.items() if key.lower() == f"npm_config_{name}"), "")


def _text(file: Path) -> str:
    try:
        return file.read_text("utf-8", "replace")
    except OSError:
        return ""  # absent or not readable: the same as not configured
