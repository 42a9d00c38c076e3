"""Build the bubblewrap command line and the files of /etc, which decide what a machine sees.

`@stage/NAME` is replaced by a directory that the launcher mounts; see launcher.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hiveyard.core.machines import Capabilities, MachineSpec, Network

DOOR = "/run/hiveyard"
DOOR_PORT = 8377
UID = 1000

_DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
_HOST_USR = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
# What programs need of the host's /etc. The rest is not shown.
_HOST_ETC = (
    "alternatives bash.bashrc ca-certificates ca-certificates.conf crypto-policies debian_version fonts ld.so.cache"
    " ld.so.conf ld.so.conf.d localtime magic mime.types os-release pki profile profile.d protocols services ssl"
    " terminfo timezone"
)
_TMPFS_SHARE = 4  # of the machine's memory, for each of /tmp, /dev/shm

# Process 1: signals from inside do not reach it. It reaps orphans and forwards connections to the door.
# A trial machine has a fourth argument: the seconds after which it ends, in case its daemon is killed.
# Connections wait up to 5 minutes for the door while the daemon restarts.
# When the process table is full, socat and this bash exit because they cannot fork. The bash then executes a new one,
# which needs no fork, and tries again until socat runs. Bash catches signals while it has a trap on EXIT, so they are
# ignored.
_INIT = r"""
ident=$1 door=$2 port=$3 life=$4 again=$5
rest() { read -r -t "$1" -u 9; }
[[ $again ]] || exec 9<> <(:)
serve() {
  socat "TCP-LISTEN:$port,bind=127.0.0.1,fork,reuseaddr,backlog=128" \
    "UNIX-CONNECT:$door/door.sock,retry=3000,interval=0.1" </dev/null >/dev/null 2>&1 9<&- &
}
listens() { local line; while read -r line; do [[ $line == *$1* ]] && return; done </proc/net/tcp; return 1; }
if [[ $again ]]; then
  :
elif [[ $door ]]; then
  command -v socat >/dev/null || { echo "there is no socat in the image" >&2; exit 1; }
  serve
  printf -v at '0100007F:%04X 00000000:0000 0A' "$port"
  until listens "$at"; do rest 0.003; done
else
  sleep "${life:-infinity}" </dev/null >/dev/null 2>&1 9<&- &
fi
echo ready
exec >/dev/null 2>&1
if [[ ! $life ]]; then
  trap '' HUP INT QUIT ILL TRAP ABRT BUS FPE USR1 SEGV USR2 PIPE ALRM TERM XCPU XFSZ VTALRM PROF SYS
  trap 'exec "$BASH" -c "$BASH_EXECUTION_STRING" "$0" "$ident" "$door" "$port" "" again' EXIT
fi
while :; do
  wait $!
  [[ $life ]] && exit
  rest 0.2
  if [[ $door ]]; then serve; else sleep infinity </dev/null 9<&- & fi
done
"""


def environment(capabilities: Capabilities) -> dict[str, str]:
    """Return the whole environment of a program in the machine. It holds nothing of the host's."""
    return {
        "HOME": capabilities.home,
        "USER": capabilities.user,
        "LOGNAME": capabilities.user,
        "SHELL": "/bin/bash",
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "LANG": "C.UTF-8",
    }


def command_line(
    bwrap: str, name: str, ident: str, spec: MachineSpec, root: Sequence[str], host_paths: Sequence[str], lifetime: str
) -> list[str]:
    """Return the argv that starts the machine.

    `root` are the options for its root file system. `host_paths` are host directories that it can read. `lifetime` is
    the time in seconds after which it ends, or empty.
    """
    tmpfs = str(spec.shape.memory_mib * (1 << 20) // _TMPFS_SHARE)
    argv = [bwrap, "--unshare-user", "--uid", str(UID), "--gid", str(UID)]
    argv += ["--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"]
    argv += ["--as-pid-1", "--hostname", name, *root, "--tmpfs", "/dev"]
    if spec.network is Network.OPEN:
        argv += ["--ro-bind", "@stage/etc/resolv.conf", "/etc/resolv.conf"]
    for device in _DEVICES:
        argv += ["--dev-bind", f"/dev/{device}", f"/dev/{device}"]
    for target, link in (("fd", "fd"), ("fd/0", "stdin"), ("fd/1", "stdout"), ("fd/2", "stderr")):
        argv += ["--symlink", f"/proc/self/{target}", f"/dev/{link}"]
    argv += ["--dev-bind", "@stage/pts", "/dev/pts", "--symlink", "pts/ptmx", "/dev/ptmx"]
    argv += ["--perms", "1777", "--size", tmpfs, "--tmpfs", "/dev/shm"]  # noqa: S108
    argv += ["--remount-ro", "/dev", "--proc", "/proc"]
    argv += ["--perms", "1777", "--size", tmpfs, "--tmpfs", "/tmp"]  # noqa: S108
    argv += ["--perms", "1777", "--size", tmpfs, "--tmpfs", "/var/tmp"]  # noqa: S108
    argv += ["--size", str(64 << 20), "--tmpfs", "/run"]
    argv += ["--size", str(1 << 20), "--tmpfs", "/home"]
    argv += ["--bind", "@stage/home", "/home/agent", "--remount-ro", "/home"]
    for path in host_paths:
        argv += ["--ro-bind-try", path, path]
    if spec.session is not None:
        argv += ["--bind", "@stage/session", "/session"]
    if spec.door is not None:
        argv += ["--ro-bind", "@stage/door", DOOR]
    door_arguments = [DOOR, str(DOOR_PORT)] if spec.door is not None else ["", ""]
    argv += ["--remount-ro", "/", "--chdir", "/"]
    return [*argv, "--", "/bin/bash", "-c", _INIT, "hiveyard-init", ident, *door_arguments, lifetime]


def image_root() -> list[str]:
    """Return the options for a root file system unpacked from an image."""
    return ["--ro-bind", "@stage/root", "/"]


def host_root() -> list[str]:
    """Return the options for a root of the host's programs alone. `@stage/etc` has the files that name users."""
    argv = ["--ro-bind", "/usr", "/usr"]
    for name in _HOST_USR:
        path = Path("/", name)
        if path.is_symlink():
            argv += ["--symlink", str(path.readlink()), str(path)]
        elif path.is_dir():
            argv += ["--ro-bind", str(path), str(path)]
    for name in _HOST_ETC.split():
        argv += ["--ro-bind-try", f"/etc/{name}", f"/etc/{name}"]
    for name in ("passwd", "group", "nsswitch.conf", "hosts"):
        argv += ["--ro-bind", f"@stage/etc/{name}", f"/etc/{name}"]
    return [*argv, "--dir", "/session"]


def write_users(etc: Path, capabilities: Capabilities, network: Network) -> None:
    """Write the files of /etc that name users, for a machine with the host's programs."""
    etc.mkdir()
    user, uid = capabilities.user, UID
    shells = f"{user}:x:{uid}:{uid}::{capabilities.home}:/bin/bash\nnobody:x:65534:65534::/:/usr/sbin/nologin\n"
    (etc / "passwd").write_text(f"root:x:0:0::/root:/usr/sbin/nologin\n{shells}")
    (etc / "group").write_text(f"root:x:0:\n{user}:x:{uid}:\nnogroup:x:65534:\n")
    hosts = "files dns" if network is Network.OPEN else "files"
    (etc / "nsswitch.conf").write_text(f"passwd: files\ngroup: files\nhosts: {hosts}\n")
    (etc / "hosts").write_text("127.0.0.1 localhost\n::1 localhost\n")
