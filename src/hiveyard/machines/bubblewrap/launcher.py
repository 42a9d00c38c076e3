"""Starts one machine and lets go of it: `python -I -S launcher.py ID`, a plan as JSON on stdin.

It is a program of its own, because namespaces and user ids can be changed only by a process that has one thread; it
imports nothing of the package. It ends with 0 when the machine is ready, with 1 when it failed (the log says why), with
2 when the time was over. The machine is no child of anybody then, and goes on when its daemon is killed. ID is in the
command line of all that is started, so that remains can be found.

What bubblewrap is started in:
  as root   a private mount namespace in which the session's files, owned by root on disk, belong to an unprivileged
            user id (id-mapped mounts), and then that user id: a machine is never root, not even as "nobody else's".
  always    a user namespace A, in which devpts is mounted (that needs a user 0) and no more user namespaces than
            bubblewrap's own can be made. Bubblewrap's, B, is a child of A and owns all the machine's namespaces, so
            that one nsenter can enter them.
"""

# ruff: noqa: PTH102, PTH105, PTH112, PTH123, S108, S606, BLE001
# pathlib would cost more time than all the rest, and every error becomes a line of the log and an exit code.
import contextlib
import ctypes
import json
import os
import resource
import select
import sys
import time
from typing import Any

_NEWNS, _NEWUSER = 0x00020000, 0x10000000
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_REC, _MS_PRIVATE = 2, 4, 8, 0x4000, 0x40000
_PR_SET_DUMPABLE = 4
# These numbers are the same on every architecture.
_OPEN_TREE, _MOVE_MOUNT, _MOUNT_SETATTR = 428, 429, 442
_AT_FDCWD, _AT_EMPTY_PATH, _AT_RECURSIVE, _OPEN_TREE_CLONE = -100, 0x1000, 0x8000, 1
_MOVE_MOUNT_F_EMPTY_PATH = 4
_MOUNT_ATTR_IDMAP = 0x00100000
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
    if os.fork() == 0:
        os.close(info)
        os.close(ready)
        _become_machine(plan, info_child, ready_child)
    os.close(info_child)
    os.close(ready_child)
    deadline = time.monotonic() + plan["timeout"]
    child = json.loads(_read(info, deadline, b"}\n") or b"{}").get("child-pid")
    if child is not None:
        _record(plan["pid_file"], f"{child} {_start_time(child)}\n")
        if _read(ready, deadline, b"ready\n"):
            return 0
    return 1 if time.monotonic() < deadline else 2


def _become_machine(plan: dict[str, Any], info: int, ready: int) -> None:
    try:
        os.setsid()
        _outputs(plan["log"], ready)
        _enter(plan["cgroups"])
        _spare()
        stage = _namespace(plan)
        _mount("devpts", f"{stage}/pts", "devpts", _MS_NOSUID | _MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620")
        _write("/proc/sys/user/max_user_namespaces", "1")
        resource.setrlimit(resource.RLIMIT_NPROC, (plan["pids"], plan["pids"]))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.set_inheritable(info, True)
        argv = [word.replace("@stage", stage) for word in plan["argv"]]
        argv[1:1] = ["--info-fd", str(info)]
        os.chdir("/")
        os.execve(argv[0], argv, plan["env"])
    except BaseException as error:
        os.write(2, f"{error}\n".encode(errors="replace"))
        os._exit(1)


def _outputs(log: str, ready: int) -> None:
    nothing = os.open("/dev/null", os.O_RDONLY)
    console = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for fd, place in ((nothing, 0), (ready, 1), (console, 2)):
        os.dup2(fd, place)


def _enter(cgroups: list[str]) -> None:
    for directory in cgroups:
        _write(f"{directory}/cgroup.procs", "0")


def _spare() -> None:
    """When a machine's memory is full, its process 1 is not what goes, where we may say so. Commands do not
    inherit this."""
    with contextlib.suppress(PermissionError):
        _write("/proc/self/oom_score_adj", "-900")


def _namespace(plan: dict[str, Any]) -> str:
    """Namespace A with all of the plan's directories under one stage; gives the stage."""
    if plan["uid"] is not None:
        _unshare(_NEWNS)
        stage = _stage(plan)
        uid = gid = plan["uid"]
        os.setgroups([])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
        # A process that changed its user is not "dumpable", and may not write its own id map.
        _libc.prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0)
        _new_user(uid, gid)
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
    """Bring the directories to where an unprivileged user can reach them, wherever they are."""
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
    """A detached copy of the mount at `path`; with `owner`, root's files in it belong to that namespace's user."""
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
    """A user namespace in which user 0 is `uid`: what an id-mapped mount takes its map from."""
    wait, go = os.pipe()
    asked, ask = os.pipe()
    child = os.fork()
    if child == 0:
        _unshare(_NEWUSER)
        os.write(go, b"1")
        os.close(ask)
        os.read(asked, 1)
        os._exit(0)
    os.close(asked)
    os.read(wait, 1)
    for kind in ("uid_map", "gid_map"):
        _write(f"/proc/{child}/{kind}", f"0 {uid} 1")
    fd = os.open(f"/proc/{child}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    os.close(ask)
    os.waitpid(child, 0)
    os.close(wait)
    os.close(go)
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
    """What comes up to `until`; nothing when the other side ends or the time is over before."""
    said = b""
    while not said.endswith(until):
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([fd], [], [], left)[0]:
            return b""
        piece = os.read(fd, 4096)
        if not piece:
            return b""
        said += piece
    return said


if __name__ == "__main__":
    sys.exit(main())
