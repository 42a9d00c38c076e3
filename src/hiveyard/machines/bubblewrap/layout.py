"""What a machine sees: the bubblewrap command line, as a pure function of what it is made of.

`@stage/NAME` stands for a directory that the launcher brings there; see launcher.py.
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
# What programs need of the host's /etc; the rest of it is nobody's business.
_HOST_ETC = (
    "alternatives bash.bashrc ca-certificates ca-certificates.conf crypto-policies debian_version fonts ld.so.cache"
    " ld.so.conf ld.so.conf.d localtime magic mime.types os-release pki profile profile.d protocols services ssl"
    " terminfo timezone"
)
_TMPFS_SHARE = 4  # of the machine's memory, for each of /tmp, /dev/shm

# Process 1: signals from inside do not reach it, it reaps orphans, and it holds the door's end of the guest open.
# A machine on trial has a fourth argument: the seconds after which it ends, should nobody be left to end it.
# Connections wait up to 5 minutes for a door that is away while the daemon restarts.
# Where the process table is full, socat and this bash end, each over a fork: the bash becomes a new one without a fork
# and tries until the door can be opened again. Bash catches signals while it has a trap on EXIT, so they are ignored.
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
    """All that a program in the machine finds in its environment: nothing of the host's."""
    return {
        "HOME": capabilities.home,
        "USER": capabilities.user,
        "LOGNAME": capabilities.user,
        "SHELL": "/bin/bash",
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "LANG": "C.UTF-8",
    }


def command_line(
    bwrap: str, name: str, ident: str, spec: MachineSpec, root: Sequence[str], shown: Sequence[str], life: str
) -> list[str]:
    """The argv that starts the machine.

    `root` are the options that make its root file system; `shown` are host directories to show in it, read-only;
    `life` is the longest it may last, in seconds, or empty.
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
    for path in shown:
        argv += ["--ro-bind-try", path, path]
    if spec.session is not None:
        argv += ["--bind", "@stage/session", "/session"]
    if spec.door is not None:
        argv += ["--ro-bind", "@stage/door", DOOR]
    door_arguments = [DOOR, str(DOOR_PORT)] if spec.door is not None else ["", ""]
    argv += ["--remount-ro", "/", "--chdir", "/"]
    return [*argv, "--", "/bin/bash", "-c", _INIT, "hiveyard-init", ident, *door_arguments, life]


def image_root() -> list[str]:
    return ["--ro-bind", "@stage/root", "/"]


def host_root() -> list[str]:
    """The host's programs and nothing else of it; `@stage/etc` has the files that name users."""
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
