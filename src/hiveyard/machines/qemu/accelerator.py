"""Choose the accelerator that works on this host, by booting a kernel under each candidate.

A device that opens proves nothing: on some hosts /dev/kvm makes a VM in which no stock kernel ever starts. So a trial
boots a real kernel without a root file system, with a time limit. The trial succeeds when the kernel reports that the
root file system is missing. The result is kept while host kernel, QEMU and settings stay the same. If a better
candidate exists but failed, the result is kept for an hour only, because the failure may be temporary (another
hypervisor uses the processor, the host was busy).
"""

from __future__ import annotations

import grp
import hashlib
import itertools
import json
import os
import platform
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import anyio

from hiveyard.core.errors import NoAccelerator
from hiveyard.kit import files
from hiveyard.kit.lock import file_lock
from hiveyard.kit.shape import number, record, text
from hiveyard.kit.text import decode, one_line
from hiveyard.machines.qemu.command import MACHINE, Engine
from hiveyard.machines.qemu.launch import Handles, launched
from hiveyard.machines.qemu.user import User

_NO_ROOT = b"Unable to mount root fs"
_CONSOLE_LIMIT = 1 << 20
_RETRY_AFTER = 3600.0
_EMULATION_FACTOR = 4
"""Emulation gets this many times the trial timeout: it never hangs, a busy host makes it slow, and there is no other
candidate after it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Accelerator:
    """A candidate. `device`, if any, must exist and open for writing."""

    name: str
    engine: Engine
    device: str = ""
    hardware: bool = True


# Emulation has no speculative execution, so the guest's mitigations against it would only cost time.
CANDIDATES = (
    Accelerator(name="kvm", engine=Engine("kvm", "host"), device="/dev/kvm"),
    Accelerator(name="tcg", engine=Engine("tcg,thread=multi", "max", "mitigations=off"), hardware=False),
)


class Choice(NamedTuple):
    """The chosen accelerator, and the reason as a sentence for the user."""

    name: str
    engine: Engine
    reason: str


class Accelerators:
    """The candidates in order of preference, and the results of their trials, which are stored in the file `known`."""

    def __init__(
        self,
        candidates: Sequence[Accelerator],
        *,
        requested: str,
        program: str,
        timeout: float,
        user: User,
        known: Path,
        retry_after: float = _RETRY_AFTER,
    ) -> None:
        self._candidates = [each for each in candidates if requested in ("auto", each.name)]
        self._requested = requested
        self._program = program
        self._timeout = timeout
        self._user = user
        self._known = known
        self._retry_after = retry_after

    def known(self, version: str) -> Choice | None:
        """Return the result of an earlier trial under the same circumstances, however old it is."""
        found = self._found(version)
        for each in self._candidates:
            if each.name == found.get("name"):
                return Choice(each.name, each.engine, text(found.get("reason")))
        return None

    def without_hardware(self, choice: Choice) -> list[Choice]:
        """Return the choices that need no hardware. They still run templates that were frozen under them."""
        reason = "its template or snapshot was frozen under it"
        others = [each for each in self._candidates if not each.hardware and each.engine != choice.engine]
        return [Choice(each.name, each.engine, reason) for each in others]

    async def choose(self, kernel: Path, version: str) -> Choice:
        """Return the first candidate that boots `kernel`. Raises NoAccelerator with the problem of each candidate."""
        if (recent := self._recent(version)) is not None:
            return recent
        # Concurrent trials would slow each other down: one caller tries, the others use its result.
        async with file_lock(self._known.with_suffix(".lock")):
            return self._recent(version) or await self._try_all(kernel, version)

    def _recent(self, version: str) -> Choice | None:
        """Return the stored result if no new trial is due."""
        before = self.known(version)
        return None if before is None or self._is_trial_due(version, before) else before

    async def _try_all(self, kernel: Path, version: str) -> Choice:
        before = self.known(version)
        problems: list[str] = []
        for each in self._candidates:
            if before is not None and each.name == before.name:
                # It worked before. A host that is busy now must not change that.
                reason = "; ".join([before.reason.partition("; ")[0], *problems])
                self._store(version, each, reason)
                return before._replace(reason=reason)
            if problem := _unavailable(each):
                problems.append(f"{each.name}: {problem}")
                continue
            problem, seconds = await self._trial(each, kernel)
            if problem:
                # QEMU's later messages follow from its first one, which is the useful one.
                problems.append(f"{each.name}: {problem.partition(f' {Path(self._program).name}: ')[0]}")
                continue
            reason = "; ".join([f"{each.name} booted a kernel in {seconds:.1f}s", *problems])
            self._store(version, each, reason)
            return Choice(each.name, each.engine, reason)
        raise NoAccelerator(
            f"no accelerator works on this host: {'; '.join(problems) or f'{self._requested} does not exist here'}",
            hint='set accelerator = "auto" in section [qemu] of the settings',
        )

    async def _trial(self, each: Accelerator, kernel: Path) -> tuple[str, float]:
        """Try a candidate. Return what is wrong with it ("" for nothing) and the seconds that the trial took."""
        began = time.monotonic()
        timeout = self._timeout * (1 if each.hardware else _EMULATION_FACTOR)
        with Handles() as handles:
            kernel_path = handles.file(kernel)
            prefix = self._user.prefix(kvm=each.hardware, die_with_parent=True)
            argv = [*prefix, *_trial_argv(self._program, each, kernel_path)]
            output = bytearray()
            try:
                with anyio.fail_after(timeout):
                    errors = await _run_trial(argv, handles, output)
            except TimeoutError:
                return f"no kernel booted under it within {timeout:.0f}s", 0.0
        if _NO_ROOT in output:
            return "", time.monotonic() - began
        return errors or one_line(decode(bytes(output[-300:]))) or "QEMU exited and printed nothing", 0.0

    def _found(self, version: str) -> Mapping[str, object]:
        try:
            return record(json.loads(self._known.read_bytes()), self._conditions(version))
        except (OSError, ValueError):
            return {}

    def _is_trial_due(self, version: str, choice: Choice) -> bool:
        """Return whether a candidate that is available and preferred to `choice`, but failed, gets another trial."""
        better = itertools.takewhile(lambda each: each.name != choice.name, self._candidates)
        age = time.time() - (number(self._found(version).get("at")) or 0.0)
        return not 0 <= age < self._retry_after and not all(map(_unavailable, better))

    def _conditions(self, version: str) -> str:
        """Return a digest of all that a trial's result depends on."""
        # Includes which candidates are available, so that a user who joins the group of /dev/kvm gets a new trial.
        usable = [(each, _unavailable(each)) for each in self._candidates]
        parts = [version, platform.release(), platform.machine(), self._requested, *map(repr, usable)]
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]

    def _store(self, version: str, each: Accelerator, reason: str) -> None:
        result = {self._conditions(version): {"name": each.name, "reason": reason, "at": time.time()}}
        files.write_atomic(self._known, json.dumps(result).encode(), durable=False)


async def _run_trial(argv: Sequence[str], handles: Handles, output: bytearray) -> str:
    """Run the trial until the kernel misses its root or QEMU ends. Return QEMU's error messages."""
    async with launched(argv, handles, cwd=Path("/"), outlive=False, stdout=subprocess.PIPE) as trial:
        assert trial.stdout is not None
        async for piece in trial.stdout:
            output += piece
            if _NO_ROOT in output or len(output) > _CONSOLE_LIMIT:
                break
        return trial.read()


def _trial_argv(program: str, each: Accelerator, kernel: str) -> list[str]:
    return [
        program,
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio"),
        *("-machine", MACHINE, "-accel", each.engine.accel, "-cpu", each.engine.cpu, "-smp", "1", "-m", "256M"),
        # panic=-1 with -no-reboot: the kernel's panic over its missing root ends QEMU at once.
        *("-kernel", kernel, "-append", f"console=ttyS0 panic=-1 {each.engine.append}"),
    ]


def _unavailable(each: Accelerator) -> str:
    """Return why a candidate cannot be tried, "" if it can."""
    if each.device and not Path(each.device).exists():
        return f"no {each.device}"
    if each.device and not os.access(each.device, os.R_OK | os.W_OK):
        return f"this user may not open {each.device}: sudo usermod -aG {_group(each.device)} $USER"
    return ""


def _group(device: str) -> str:
    number = Path(device).stat().st_gid
    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return str(number)
