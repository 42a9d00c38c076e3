"""The format of an exported session: one gzipped tar with a directory `session/` that contains

    manifest.json     the session's identity, and the position of its journal
    events.jsonl      its events, as in the journal
    heard.jsonl       the agent's raw output that still counts, for a parser that needs it
    origin.bundle     the base and the collected work; submodules/<copy>.bundle the same for each submodule
    prompts/ result/ tape.jsonl
    shared/           the guest's /session

It contains no key, neither the door's nor a vendor's, and no snapshots. The importer trusts nothing in it.
"""

from __future__ import annotations

import re
from typing import Annotated

import msgspec

from hiveyard.core.errors import BadArchive
from hiveyard.repository.submodules import Submodule

VERSION = 1
TOP = "session"
MANIFEST, EVENTS, HEARD, BUNDLE, SUBMODULES = (
    "manifest.json",
    "events.jsonl",
    "heard.jsonl",
    "origin.bundle",
    "submodules",
)
FILES = frozenset((MANIFEST, EVENTS, HEARD, BUNDLE, "shallow", "tape.jsonl"))
DIRECTORIES = frozenset((SUBMODULES, "prompts", "result", "shared"))
_COPY = re.compile(r"[0-9]{3}\Z")

Short = Annotated[str, msgspec.Meta(max_length=4096)]
Offset = Annotated[int, msgspec.Meta(ge=0, le=1 << 53)]


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """The contents of manifest.json."""

    version: int = VERSION
    id: Short
    name: Short
    agent: Short
    provider: Short = ""
    base: Short
    base_ref: Short = ""
    branch: Short
    identity: tuple[Short, Short]
    object_format: str = "sha1"
    conversation: Short = ""
    feed_offset: Offset = 0
    exported_at: Annotated[float, msgspec.Meta(ge=0, le=1e12)]
    submodules: Annotated[list[Submodule], msgspec.Meta(max_length=256)] = []


class _Version(msgspec.Struct):
    version: int


def read_manifest(data: bytes) -> Manifest:
    """Parse a manifest. Raises BadArchive for one that is not valid, is of a newer Hiveyard, or contains paths outside
    of the repository."""
    try:
        version = msgspec.json.decode(data, type=_Version).version
        if version != VERSION:
            raise BadArchive(f"the archive has version {version}; this Hiveyard reads version {VERSION}")
        manifest = msgspec.json.decode(data, type=Manifest)
    except msgspec.MsgspecError as error:
        raise BadArchive(f"the archive's manifest is not valid: {error}") from None
    for one in manifest.submodules:
        if not _COPY.match(one.copy) or not all(map(_inside, (one.path, one.module, one.outer or "x"))):
            raise BadArchive(f"the archive contains a path outside of its repository: {one.path[:200]!r}")
    if manifest.object_format not in ("sha1", "sha256"):
        raise BadArchive(
            f"the archive's repository has an object format that git does not have: {manifest.object_format[:80]!r}"
        )
    return manifest


def _inside(path: str) -> bool:
    parts = path.split("/")
    return not any(part in ("", ".", "..") or part.lower() == ".git" or "\0" in part for part in parts)
