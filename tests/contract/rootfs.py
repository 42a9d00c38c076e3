"""Build a root file system from the host's bash, coreutils and socat with their libraries. It takes a second, needs no
network, and is enough for every test of the contract."""

from __future__ import annotations

import re
import shutil
import subprocess
import tarfile
from pathlib import Path

from hiveyard.core.machines import Image

ROOT = Path(__file__).parents[2]
_PROGRAMS = (
    "bash cat chmod cp cut dd env false find flock grep head id ln ls mkdir mkfifo mv nohup printf pwd readlink rm"
    " rmdir seq setsid sha256sum sleep socat sort stat stty sync tail tar tee timeout tmux touch tr true truncate tty"
    " uname wc yes fallocate base64 chown setpriv"
)
_TERMINALS = ("tmux-256color", "xterm-256color", "xterm")
_PASSWD = "root:x:0:0::/root:/usr/sbin/nologin\nagent:x:1000:1000::/home/agent:/bin/bash\n"
_GROUP = "root:x:0:\nagent:x:1000:\n"


def small_image(scratch: Path, *, npm: Path | None = None) -> Image:
    """Build the image. `npm` is the directory of an npm installation whose programs are added with this host's Node."""
    tree = scratch / "small"
    _fill(tree)
    if npm is not None:
        _add_node(tree, npm)
    archive = scratch / "small.tar"
    with tarfile.open(archive, "w", format=tarfile.GNU_FORMAT) as tar:
        tar.add(tree, arcname=".", filter=_owned_by_root)
    shutil.rmtree(tree)
    return Image(id="5ma11", name="small", rootfs=archive)


def _fill(tree: Path) -> None:
    programs = [Path(found) for name in _PROGRAMS.split() if (found := shutil.which(name))]
    for program in programs:
        _copy(program, tree / "usr/bin" / program.name)
    for library in _libraries(programs):
        _copy(library, tree / str(library).lstrip("/"))
    for name in ("bin", "sbin"):
        (tree / name).symlink_to("usr/bin")
    (tree / "usr/bin/sh").symlink_to("bash")
    for name in _TERMINALS:
        kept = [Path(place, name[0], name) for place in ("/lib/terminfo", "/usr/share/terminfo")]
        _copy(next(path for path in kept if path.exists()), tree / "lib/terminfo" / name[0] / name)
    shutil.copytree("/usr/lib/locale/C.utf8", tree / "usr/lib/locale/C.utf8")
    (tree / "etc").mkdir()
    (tree / "etc/passwd").write_text(_PASSWD)
    (tree / "etc/group").write_text(_GROUP)


def _add_node(tree: Path, npm: Path) -> None:
    place = subprocess.run([ROOT / "scripts/node"], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    node = Path(place, "bin/node")
    _copy(node, tree / "usr/bin/node")
    for library in _libraries([node]):
        _copy(library, tree / str(library).lstrip("/"))
    shutil.copytree(npm / "node_modules", tree / "usr/lib/node_modules", symlinks=True)
    for program in (npm / "node_modules/.bin").iterdir():
        (tree / "usr/bin" / program.name).symlink_to(f"../lib/node_modules/.bin/{program.name}")


def _libraries(programs: list[Path]) -> set[Path]:
    said = subprocess.run(["ldd", *map(str, programs)], capture_output=True, text=True, check=True).stdout
    return {Path(path) for path in re.findall(r"(?:=> |^\t)(/\S+) \(", said, re.MULTILINE)}


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(source, target)


def _owned_by_root(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member
