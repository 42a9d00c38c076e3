"""Which accelerator works on this host, found out by booting a kernel under it.

A device that opens proves nothing: on some hosts /dev/kvm makes a VM in which no stock kernel ever starts. So a trial
boots a real kernel with no root file system, against the clock; it has worked when the kernel came so far as to miss
one. The answer is kept for as long as host kernel, QEMU and settings are the same; where a better candidate is there
and failed, which may pass (another hypervisor holds the processor, the host was busy), for an hour.
"""

from __future__ import annotations

import grp
import hashlib
import itertools
import json
import os
import platform
import subprocess
import sys
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

_MISSES_ROOT = b"Unable to mount root fs"
_CONSOLE_LIMIT = 1 << 20
_AGAIN = 3600.0
_EMULATED = 4
"""Times as long has one that needs no hardware: it never hangs, a host with much to do makes it slow, and nothing
comes after it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Accelerator:
    """A candidate. `device` must exist and open for writing; `system` is the host it exists on, "" is any."""

    name: str
    engine: Engine
    device: str = ""
    system: str = ""
    hardware: bool = True


# Under emulation the guest's defences against its own processor only cost: there is no such processor.
CANDIDATES = (
    Accelerator(name="kvm", engine=Engine("kvm", "host"), device="/dev/kvm", system="linux"),
    Accelerator(name="hvf", engine=Engine("hvf", "host"), system="darwin"),
    Accelerator(name="tcg", engine=Engine("tcg,thread=multi", "max", "mitigations=off"), hardware=False),
)


class Choice(NamedTuple):
    """The accelerator to use and why, as a sentence for a person."""

    name: str
    engine: Engine
    reason: str


class Accelerators:
    """The candidates in the order of preference, and what is known about them."""

    def __init__(
        self,
        candidates: Sequence[Accelerator],
        *,
        wanted: str,
        program: str,
        timeout: float,
        user: User,
        known: Path,
        again: float = _AGAIN,
    ) -> None:
        self._candidates = [each for each in candidates if wanted in ("auto", each.name)]
        self._wanted = wanted
        self._program = program
        self._timeout = timeout
        self._user = user
        self._known = known
        self._again = again

    def known(self, version: str) -> Choice | None:
        """Return the result of an earlier trial under the same circumstances, however old it is."""
        found = self._found(version)
        for each in self._candidates:
            if each.name == found.get("name"):
                return Choice(each.name, each.engine, text(found.get("reason")))
        return None

    def beside(self, choice: Choice) -> list[Choice]:
        """Return the choice that needs nothing from the host, and so still runs templates that were frozen under it."""
        reason = "what it begins from was frozen under it"
        others = [each for each in self._candidates if not each.hardware and each.engine != choice.engine]
        return [Choice(each.name, each.engine, reason) for each in others]

    async def choose(self, kernel: Path, version: str) -> Choice:
        """The first candidate that boots `kernel`. Raises NoAccelerator with what was wrong with each."""
        if (settled := self._settled(version)) is not None:
            return settled
        # Many that begin at once make each other late: one tries, the others have its answer.
        async with file_lock(self._known.with_suffix(".lock")):
            return self._settled(version) or await self._tried(kernel, version)

    def _settled(self, version: str) -> Choice | None:
        """Return the known results that need no new trial yet."""
        before = self.known(version)
        return None if before is None or self._due(version, before) else before

    async def _tried(self, kernel: Path, version: str) -> Choice:
        before = self.known(version)
        wrong: list[str] = []
        for each in self._candidates:
            if before is not None and each.name == before.name:
                # It worked before; a host that is busy just now does not take it away.
                reason = "; ".join([before.reason.partition("; ")[0], *wrong])
                self._keep(version, each, reason)
                return before._replace(reason=reason)
            if problem := _absent(each):
                wrong.append(f"{each.name}: {problem}")
                continue
            problem, seconds = await self._trial(each, kernel)
            if problem:
                # QEMU says what follows from its first complaint as well; the first is the one that tells.
                wrong.append(f"{each.name}: {problem.partition(f' {Path(self._program).name}: ')[0]}")
                continue
            reason = "; ".join([f"{each.name} booted a kernel in {seconds:.1f}s", *wrong])
            self._keep(version, each, reason)
            return Choice(each.name, each.engine, reason)
        raise NoAccelerator(
            f"no accelerator works on this host: {'; '.join(wrong) or f'{self._wanted} does not exist here'}",
            hint='set accelerator = "auto" in section [qemu] of the settings',
        )

    async def _trial(self, each: Accelerator, kernel: Path) -> tuple[str, float]:
        """Try a candidate. Return what is wrong with it ("" for nothing) and the seconds that the trial took."""
        began = time.monotonic()
        patience = self._timeout * (1 if each.hardware else _EMULATED)
        with Handles() as handles:
            kernel_path = handles.file(kernel)
            argv = [*self._user.prefix(kvm=each.hardware, bound=True), *_trial_argv(self._program, each, kernel_path)]
            said = bytearray()
            try:
                with anyio.fail_after(patience):
                    complaint = await _watched(argv, handles, said)
            except TimeoutError:
                return f"no kernel came up under it within {patience:.0f}s", 0.0
        if _MISSES_ROOT in said:
            return "", time.monotonic() - began
        return complaint or one_line(decode(bytes(said[-300:]))) or "QEMU ended and said nothing", 0.0

    def _found(self, version: str) -> Mapping[str, object]:
        try:
            return record(json.loads(self._known.read_bytes()), self._circumstances(version))
        except (OSError, ValueError):
            return {}

    def _due(self, version: str, choice: Choice) -> bool:
        """Whether a candidate that was passed over for `choice`, though it is there, gets another trial."""
        better = itertools.takewhile(lambda each: each.name != choice.name, self._candidates)
        age = time.time() - (number(self._found(version).get("at")) or 0.0)
        return not 0 <= age < self._again and not all(map(_absent, better))

    def _circumstances(self, version: str) -> str:
        # What may be used is one of them: a person who joins the group of /dev/kvm is not left with emulation.
        usable = [(each, _absent(each)) for each in self._candidates]
        parts = [version, platform.release(), platform.machine(), self._wanted, *map(repr, usable)]
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]

    def _keep(self, version: str, each: Accelerator, reason: str) -> None:
        answer = {self._circumstances(version): {"name": each.name, "reason": reason, "at": time.time()}}
        files.write_atomic(self._known, json.dumps(answer).encode(), durable=False)


async def _watched(argv: Sequence[str], handles: Handles, said: bytearray) -> str:
    """Run the trial until the kernel misses its root or QEMU ends; what QEMU complained about."""
    async with launched(argv, handles, cwd=Path("/"), outlive=False, stdout=subprocess.PIPE) as trial:
        assert trial.stdout is not None
        async for piece in trial.stdout:
            said += piece
            if _MISSES_ROOT in said or len(said) > _CONSOLE_LIMIT:
                break
        return trial.read()


def _trial_argv(program: str, each: Accelerator, kernel: str) -> list[str]:
    return [
        program,
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio"),
        *("-machine", MACHINE, "-accel", each.engine.accel, "-cpu", each.engine.cpu, "-smp", "1", "-m", "256M"),
        # panic=-1 with -no-reboot: missing its root, the kernel ends QEMU at once.
        *("-kernel", kernel, "-append", f"console=ttyS0 panic=-1 {each.engine.append}"),
    ]


def _absent(each: Accelerator) -> str:
    if each.system and each.system != sys.platform:
        return f"only on {each.system}"
    if each.device and not Path(each.device).exists():
        return f"no {each.device}"
    if each.device and not os.access(each.device, os.R_OK | os.W_OK):
        return f"{each.device} may not be opened by this user: sudo usermod -aG {_group(each.device)} $USER"
    return ""


def _group(device: str) -> str:
    number = Path(device).stat().st_gid
    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return str(number)
