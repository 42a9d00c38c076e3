"""Install profiles in a guest through the methods of `Guest`: all or nothing, and without a secret in any output.

A secret is passed only through stdin. Errors are created anew, with secrets masked and without the original errors: a
guest knows its secrets, and can put them into any text that it returns.
"""

from __future__ import annotations

import hmac
import logging
from collections.abc import Collection, Mapping, Sequence

import anyio

from hiveyard.core.credentials import CredentialProfile, Installed
from hiveyard.core.errors import (
    BadInput,
    CannotExecute,
    CommandTimeout,
    CredentialsCheckFailed,
    CredentialsError,
    CredentialsNotInstalled,
    GuestDisconnected,
    HiveyardError,
    MachineLost,
    RealSecretRefused,
)
from hiveyard.core.files import FileStep, MakeDirectory, SetMode, WriteFile
from hiveyard.core.machines import Report
from hiveyard.core.ports import Guest
from hiveyard.credentials.inspection import PathState, contents, look
from hiveyard.credentials.rollback import PreviousFiles
from hiveyard.kit.mask import Mask
from hiveyard.kit.text import decode, one_line

_log = logging.getLogger(__name__)
_OUTPUT_LIMIT = 64 << 10
_UNDO_BUDGET = 60.0


class DefaultCredentialsInstaller:
    """The implementation of CredentialsInstaller. Before anything is written, `announce` is called for each profile
    with a real secret; its default logs a warning."""

    def __init__(self, announce: Report = _log.warning) -> None:
        self._announce = announce

    async def install(
        self, guest: Guest, profiles: Sequence[CredentialProfile], *, real: Collection[str] = ()
    ) -> list[Installed]:
        check(profiles, real)
        for profile in profiles:
            if profile.real:
                self._announce(announcement(profile))
        mask = Mask(secret for profile in profiles for secret in profile.masked())
        failure = await _attempt(guest, profiles, mask)
        if failure is not None:
            raise failure
        return [_installed(profile) for profile in profiles]


def check(profiles: Sequence[CredentialProfile], real: Collection[str]) -> None:
    """Validate profiles before there is a guest. Raises BadInput, RealSecretRefused."""
    _check_disjoint(profiles)
    _check_allowed(profiles, real)


def announcement(profile: CredentialProfile) -> str:
    """Return a warning that a real secret is installed in a guest, with its paths."""
    places = ", ".join(one_line(file.path, 80) for file in profile.files if file.secret)
    return f"the profile {profile.name} puts a real secret into the guest, where every program can read it: {places}"


async def _attempt(guest: Guest, profiles: Sequence[CredentialProfile], mask: Mask) -> CredentialsError | None:
    """Install the profiles, or restore the previous files and return the failure. It is returned, not raised, so that
    it has no reference to the original error."""
    previous = PreviousFiles(guest)
    keep = False
    failure: CredentialsError | None = None
    try:
        for profile in profiles:
            await _install(guest, profile, previous, mask)
        keep = True
    except MachineLost as error:
        keep = not isinstance(error, GuestDisconnected)  # without a machine there is nothing to restore
        raise
    except CredentialsError as error:
        failure = error
    finally:
        if not keep:
            with anyio.CancelScope(shield=True), anyio.move_on_after(_UNDO_BUDGET) as scope:
                left = await previous.restore()
    if failure is None:
        return None
    if scope.cancelled_caught:
        left = ["the guest did not answer in time"]
    if left:
        failure.context["left"] = mask.text("; ".join(left))
        failure.hint = "not all files could be restored: remove the machine"
    return failure


async def _install(guest: Guest, profile: CredentialProfile, previous: PreviousFiles, mask: Mask) -> None:
    failure: CredentialsError
    try:
        before = await previous.remember(profile)
        await guest.batch(_steps(profile, before))
        await _read_back(guest, profile)
        await _check(guest, profile, mask)
    except MachineLost:
        raise
    except CredentialsError as error:
        failure = _masked(error, mask, profile)
    except HiveyardError as error:
        at = {"path": error.context["path"]} if "path" in error.context else {}
        failure = _masked(CredentialsNotInstalled(error.message, cause=error.code, **at), mask, profile)
    else:
        return
    raise failure


def _masked(error: CredentialsError, mask: Mask, profile: CredentialProfile) -> CredentialsError:
    """Return a copy of an error, with secrets masked and without its cause."""
    context = {**error.context, "profile": profile.name, "operation": "install"}
    return type(error)(
        mask.text(f"the profile {profile.name} is not installed: {error.message}"),
        hint=mask.text(error.hint),
        **{name: mask.text(value) for name, value in context.items()},
    )


def _steps(profile: CredentialProfile, before: Mapping[str, PathState]) -> list[FileStep]:
    """Return the steps in order: the directories of the profile, then its files."""
    steps: list[FileStep] = []
    for directory in profile.directories:
        if before[directory.path].kind == "-":
            steps.append(MakeDirectory(path=directory.path, mode=directory.mode))
        elif before[directory.path].mode != directory.mode:
            steps.append(SetMode(path=directory.path, mode=directory.mode))
    return steps + [WriteFile(path=file.path, data=file.data(), mode=file.mode) for file in profile.files]


async def _read_back(guest: Guest, profile: CredentialProfile) -> None:
    expected = [(one.path, one.mode, "d") for one in profile.directories]
    expected += [(one.path, one.mode, "f") for one in profile.files]
    found = await look(guest, [path for path, _, _ in expected])
    for (path, mode, kind), seen in zip(expected, found, strict=True):
        _check_kind(path, seen, kind)
        if seen.mode != mode:
            raise CredentialsNotInstalled(f"{path} has mode {seen.mode:04o}, not {mode:04o}", path=path)
    held = await contents(guest, [file.path for file in profile.files])
    for file, data in zip(profile.files, held, strict=True):
        if not hmac.compare_digest(data, file.data()):
            raise CredentialsNotInstalled(
                f"the content read back from {file.path} differs from the written one", path=file.path
            )


def _check_kind(path: str, seen: PathState, kind: str) -> None:
    if seen.kind != kind:
        raise CredentialsNotInstalled(f"{path} is {seen.words}", path=path)
    if not seen.own:
        raise CredentialsNotInstalled(f"{path} belongs to another user of the guest", path=path)


async def _check(guest: Guest, profile: CredentialProfile, mask: Mask) -> None:
    if profile.check is None:
        return
    try:
        result = await guest.run(profile.check, timeout=profile.check_seconds, limit=_OUTPUT_LIMIT)
    except (CannotExecute, CommandTimeout) as error:
        raise CredentialsCheckFailed(f"its check failed: {error.message}", cause=error.code) from error
    if not result.ok:
        # Masked before it is shortened, and without what may be the beginning of a secret that was cut.
        output = decode(mask.stream().feed(result.stderr or result.stdout))
        raise CredentialsCheckFailed(f"its check exited with {result.status}: {one_line(output, 400)}")


def _check_allowed(profiles: Sequence[CredentialProfile], real: Collection[str]) -> None:
    for profile in profiles:
        if profile.real and profile.name not in real:
            raise RealSecretRefused(
                f"the profile {profile.name} puts a real secret into the guest, and was not requested by name",
                hint=f"install(..., real=[{profile.name!r}]), or a profile with the door's placeholder",
                profile=profile.name,
            )


def _check_disjoint(profiles: Sequence[CredentialProfile]) -> None:
    owners: dict[str, str] = {}
    for profile in profiles:
        for path in [file.path for file in profile.files]:
            other = owners.setdefault(path, profile.name)
            if other != profile.name or sum(file.path == path for file in profile.files) > 1:
                raise BadInput(f"{one_line(path)!r} is written twice: by the profiles {other} and {profile.name}")


def _installed(profile: CredentialProfile) -> Installed:
    paths = [one.path for one in profile.directories] + [one.path for one in profile.files]
    return Installed(profile.name, tuple(paths), profile.real, profile.check is not None)
