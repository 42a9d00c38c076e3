"""Start one machine and leave it running: `python -I -S launcher.py ID`, with a plan as JSON on stdin.

It is a separate program because only a process with one thread can change its namespaces and user ids. It imports
nothing of the package. It exits with 0 when the machine is ready, with 1 when the start failed (the log says why) and
with 2 after a timeout. The machine is then nobody's child and keeps running when its daemon is killed. ID is in the
command line of everything that is started, so that leftover processes can be found.

Bubblewrap is started in these namespaces:
  as root   a private mount namespace in which the session's files, which root owns on disk, belong to an unprivileged
            user id (id-mapped mounts). Bubblewrap runs as that user id: a machine is never root, in no namespace.
            With a network, slirp4netns runs beside the machine as the same user. It ends with the machine.
  always    a user namespace A, in which devpts is mounted (that needs user 0) and which allows only one more user
            namespace. That is B, bubblewrap's own. It owns all namespaces of the machine, so that one nsenter can
            join them.
"""

# ruff: noqa: PTH101, PTH102, PTH105, PTH110, PTH112, PTH116, PTH123, S103, S104, S108, S606, BLE001
# Importing pathlib would take longer than everything else. Every error becomes a line of the log and an exit code.
import contextlib
import ctypes
import errno
import fcntl
import json
import os
import resource
import select
import socket
import stat
import struct
import sys
import time
from typing import Any

_NEWNS, _NEWUSER = 0x00020000, 0x10000000
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_BIND, _MS_REC, _MS_PRIVATE = 2, 4, 8, 0x1000, 0x4000, 0x40000
_PR_SET_DUMPABLE = 4
# These numbers are the same on every architecture.
_OPEN_TREE, _MOVE_MOUNT, _MOUNT_SETATTR = 428, 429, 442
_AT_FDCWD, _AT_EMPTY_PATH, _AT_RECURSIVE, _OPEN_TREE_CLONE = -100, 0x1000, 0x8000, 1
_MOVE_MOUNT_F_EMPTY_PATH = 4
_MOUNT_ATTR_IDMAP = 0x00100000
_SIOCADDRT, _RTF_UP, _RTF_REJECT = 0x890B, 0x0001, 0x0200
# These routes are more specific than that of slirp4netns's own network, 10.0.2.0/24. Packets still leave through its
# gateway, which needs no route to the gateway itself.
_ALIASES = (("10.0.2.0", "255.255.255.128"), ("10.0.2.128", "255.255.255.128"))
_STAGES = ("/mnt", "/media", "/srv", "/opt", "/tmp")

_libc = ctypes.CDLL(None, use_errno=True)


class _MountAttr(ctypes.Structure):
    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


def main() -> int:
    plan = json.load(sys.stdin)
    info, info_child = os.pipe()
    ready, ready_child = os.pipe()
    life, life_child = os.pipe()
    if os.fork() == 0:
        os.close(info)
        os.close(ready)
        os.set_inheritable(life_child, True)
        _become_machine(plan, info_child, ready_child)
    os.close(info_child)
    os.close(ready_child)
    os.close(life_child)
    deadline = time.monotonic() + plan["timeout"]
    child = json.loads(_read(info, deadline, b"}\n") or b"{}").get("child-pid")
    if child is not None:
        _record(plan["pid_file"], f"{child} {_start_time(child)}\n")
        # The network comes last: bubblewrap would mistake a message about another device for the answer about its
        # loopback.
        up = _read(ready, deadline, b"ready\n") and (plan["network"] is None or _connect(plan, child, life, deadline))
        if up:
            return 0
    return 1 if time.monotonic() < deadline else 2


def _become_machine(plan: dict[str, Any], info: int, ready: int) -> None:
    try:
        os.setsid()
        _outputs(plan["log"], ready)
        _enter(plan["cgroups"])
        _protect_from_oom()
        stage = _namespace(plan)
        _mount("devpts", f"{stage}/pts", "devpts", _MS_NOSUID | _MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620")
        _write("/proc/sys/user/max_user_namespaces", "1")
        resource.setrlimit(resource.RLIMIT_NPROC, (plan["pids"], plan["pids"]))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.set_inheritable(info, True)
        argv = [word.replace("@stage", stage) for word in plan["argv"]]
        argv[1:1] = ["--info-fd", str(info), *_filter(plan["seccomp"])]
        os.chdir("/")
        os.execve(argv[0], argv, plan["env"])
    except BaseException as error:
        os.write(2, f"{error}\n".encode(errors="replace"))
        os._exit(1)


def _filter(program: str) -> list[str]:
    """Return the options for process 1 to start under a seccomp filter, which comes as hexadecimal digits."""
    if not program:
        return []
    fd = os.memfd_create("seccomp", 0)
    os.write(fd, bytes.fromhex(program))
    os.lseek(fd, 0, os.SEEK_SET)
    return ["--seccomp", str(fd)]


def _connect(plan: dict[str, Any], child: int, life: int, deadline: float) -> bool:
    """Run slirp4netns for the machine's network for as long as a process has the other end of `life` open."""
    up, up_child = os.pipe()
    if os.fork() == 0:
        _become_network(plan, child, life, up_child)
    os.close(up_child)
    if not _read(up, deadline, b"1"):
        return False
    blocker = os.fork()
    if blocker == 0:
        _block_aliases(plan, child)
    return os.waitstatus_to_exitcode(os.waitpid(blocker, 0)[1]) == 0


def _become_network(plan: dict[str, Any], child: int, life: int, up: int) -> None:
    try:
        os.setsid()
        _outputs(plan["log"], None)
        _enter(plan["cgroups"])
        _become_user(plan["uid"], device="/dev/net/tun")
        for fd in (life, up):
            os.set_inheritable(fd, True)
        argv = [plan["network"]["ident"], "--configure", "--mtu=65520", "--disable-host-loopback", "--enable-seccomp"]
        argv += [f"--exit-fd={life}", f"--ready-fd={up}", f"--userns-path=/proc/{child}/ns/user"]
        argv += ["--netns-type=path", f"/proc/{child}/ns/net", "tap0"]
        os.execve(plan["network"]["program"], argv, plan["env"])
    except BaseException as error:
        os.write(2, f"slirp4netns: {error}\n".encode(errors="replace"))
        os._exit(1)


def _become_user(uid: int | None, device: str = "") -> None:
    """Become an unprivileged user for good. `device` is one that only root can open here: it is made accessible first,
    in a mount namespace of this process."""
    if uid is None:
        return
    if device and os.path.exists(device):
        _unshare(_NEWNS)
        _mount("none", "/", "", _MS_REC | _MS_PRIVATE, "")
        stage = next(path for path in _STAGES if os.path.isdir(path))
        number = os.stat(device).st_rdev
        _mount("tmpfs", stage, "tmpfs", _MS_NOSUID, "mode=0755,size=64k")
        os.mknod(f"{stage}/device", stat.S_IFCHR, number)
        os.chmod(f"{stage}/device", 0o666)
        _mount(f"{stage}/device", device, "", _MS_BIND, "")
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    # A process that changed its user is not "dumpable", and may not write its own id map.
    _libc.prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0)


def _block_aliases(plan: dict[str, Any], child: int) -> None:
    """Block the addresses of slirp4netns itself for the machine. One of them leads to the address of the host's
    resolver, on any port, which may be the host's loopback."""
    try:
        _outputs(plan["log"], None)
        _become_user(plan["uid"])
        for kind in ("user", "net"):
            _check(_libc.setns(os.open(f"/proc/{child}/ns/{kind}", os.O_RDONLY), 0), f"enter {kind}")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
            for network, mask in _ALIASES:
                words = (_address(network), _address("0.0.0.0"), _address(mask), _RTF_UP | _RTF_REJECT)
                fcntl.ioctl(control, _SIOCADDRT, struct.pack("8x16s16s16sH62x", *words))
    except BaseException as error:
        os.write(2, f"routes: {error}\n".encode(errors="replace"))
        os._exit(1)
    os._exit(0)


def _address(text: str) -> bytes:
    return struct.pack("=HH4s8x", socket.AF_INET, 0, socket.inet_aton(text))


def _outputs(log: str, ready: int | None) -> None:
    nothing = os.open("/dev/null", os.O_RDONLY)
    console = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for fd, place in ((nothing, 0), (console if ready is None else ready, 1), (console, 2)):
        os.dup2(fd, place)


def _enter(cgroups: list[str]) -> None:
    for directory in cgroups:
        _write(f"{directory}/cgroup.procs", "0")


def _protect_from_oom() -> None:
    """Keep the kernel from killing process 1 first when the machine's memory is full, if that is permitted. Commands do
    not inherit this."""
    with contextlib.suppress(PermissionError):
        _write("/proc/self/oom_score_adj", "-900")


def _namespace(plan: dict[str, Any]) -> str:
    """Enter namespace A, mount all of the plan's directories under one stage, and return the stage."""
    if plan["uid"] is not None:
        _unshare(_NEWNS)
        stage = _stage(plan)
        _become_user(plan["uid"])
        _new_user(plan["uid"], plan["uid"])
    else:
        _new_user(os.geteuid(), os.getegid())
        stage = _stage(plan)
    return stage


def _new_user(uid: int, gid: int) -> None:
    _unshare(_NEWUSER | _NEWNS)
    _write("/proc/self/setgroups", "deny")
    _write("/proc/self/uid_map", f"0 {uid} 1")
    _write("/proc/self/gid_map", f"0 {gid} 1")


def _stage(plan: dict[str, Any]) -> str:
    """Mount the directories at paths that an unprivileged user can reach."""
    _mount("none", "/", "", _MS_REC | _MS_PRIVATE, "")
    owner = _id_map(plan["uid"]) if plan["uid"] is not None else -1
    trees = {name: _tree(entry["path"], owner if entry["own"] else -1) for name, entry in plan["stage"].items()}
    stage = next(path for path in _STAGES if os.path.isdir(path))
    _mount("tmpfs", stage, "tmpfs", _MS_NOSUID | _MS_NODEV, "mode=0755,size=64k")
    os.mkdir(f"{stage}/pts")
    for name, tree in trees.items():
        os.mkdir(f"{stage}/{name}")
        target = f"{stage}/{name}".encode()
        _check(_libc.syscall(_MOVE_MOUNT, tree, b"", _AT_FDCWD, target, _MOVE_MOUNT_F_EMPTY_PATH), f"mount {name}")
    return stage


def _tree(path: str, owner: int) -> int:
    """Return a detached copy of the mount at `path`. With `owner`, root's files belong to that namespace's user."""
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC | _AT_RECURSIVE
    tree = _check(_libc.syscall(_OPEN_TREE, _AT_FDCWD, os.fsencode(path), flags), f"open {path}")
    if owner >= 0:
        attributes = _MountAttr(_MOUNT_ATTR_IDMAP, 0, 0, owner)
        done = _libc.syscall(
            _MOUNT_SETATTR,
            tree,
            b"",
            _AT_EMPTY_PATH | _AT_RECURSIVE,
            ctypes.byref(attributes),
            ctypes.sizeof(attributes),
        )
        _check(done, f"id-mapped mount of {path}")
    return tree


def _id_map(uid: int) -> int:
    """Return a user namespace in which user 0 is `uid`, for id-mapped mounts."""
    wait, go = os.pipe()
    done, finish = os.pipe()
    child = os.fork()
    if child == 0:
        if _libc.unshare(_NEWUSER) < 0:
            os.write(go, str(ctypes.get_errno()).encode())
            os._exit(1)
        os.write(go, b"0")
        os.close(finish)
        os.read(done, 1)
        os._exit(0)
    os.close(done)
    os.close(go)
    if number := int(os.read(wait, 8) or errno.EPERM):
        raise OSError(number, f"a user namespace for id-mapped mounts: {os.strerror(number)}")
    for kind in ("uid_map", "gid_map"):
        _write(f"/proc/{child}/{kind}", f"0 {uid} 1")
    fd = os.open(f"/proc/{child}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    os.close(finish)
    os.waitpid(child, 0)
    os.close(wait)
    return fd


def _unshare(flags: int) -> None:
    _check(_libc.unshare(flags), "new namespaces")


def _mount(source: str, target: str, kind: str, flags: int, options: str) -> None:
    words = (source.encode(), os.fsencode(target), kind.encode() or None)
    _check(_libc.mount(*words, flags, options.encode() or None), f"mount {kind or 'private'} on {target}")


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY)
    try:
        os.write(fd, text.encode())
    except OSError as error:
        raise OSError(error.errno, f"{path}: {error.strerror}") from None
    finally:
        os.close(fd)


def _record(path: str, text: str) -> None:
    fresh = f"{path}.new"
    with open(fresh, "w") as file:
        file.write(text)
    os.replace(fresh, path)


def _start_time(pid: int) -> str:
    with open(f"/proc/{pid}/stat", "rb") as file:
        return file.read().rpartition(b") ")[2].split()[19].decode()


def _read(fd: int, deadline: float, until: bytes) -> bytes:
    """Read up to `until`. Return nothing if the other side closes, or the time ends, before."""
    data = b""
    while not data.endswith(until):
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([fd], [], [], left)[0]:
            return b""
        piece = os.read(fd, 4096)
        if not piece:
            return b""
        data += piece
    return data


if __name__ == "__main__":
    sys.exit(main())
