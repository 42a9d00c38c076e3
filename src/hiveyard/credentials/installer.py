"""Profiles put into a guest by the Guest's own verbs, all or nothing, with no secret in anything that is said.

A secret travels by stdin only. Errors are made anew from what failed, with secrets masked and without the errors they
come from: a guest knows the secrets it was given, and can put them into any text it answers.
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
from hiveyard.credentials.inspection import Seen, contents, look
from hiveyard.credentials.rollback import PreviousFiles
from hiveyard.kit.mask import Mask
from hiveyard.kit.text import decode, one_line

_log = logging.getLogger(__name__)
_OUTPUT_LIMIT = 64 << 10
_UNDO_BUDGET = 60.0


class DefaultCredentialsInstaller:
    """See CredentialsInstaller. `announce` is told, before anything is written, of each profile that brings a real
    secret; without one it is a warning in the log."""

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
    """What can be said before there is a guest. Raises BadInput, RealSecretRefused."""
    _check_apart(profiles)
    _check_allowed(profiles, real)


def announcement(profile: CredentialProfile) -> str:
    """That a real secret goes into a guest, and where it will lie."""
    places = ", ".join(one_line(file.path, 80) for file in profile.files if file.secret)
    return f"the profile {profile.name} puts a real secret into the guest, where all that runs can read it: {places}"


async def _attempt(guest: Guest, profiles: Sequence[CredentialProfile], mask: Mask) -> CredentialsError | None:
    """Install them; or put back what was there and return why. It is returned, not raised, so that no error hangs on
    to the one it came from."""
    former = PreviousFiles(guest)
    whole = False
    failure: CredentialsError | None = None
    try:
        for profile in profiles:
            await _install(guest, profile, former, mask)
        whole = True
    except MachineLost as error:
        whole = not isinstance(error, GuestDisconnected)  # else there is nothing left to put anything back into
        raise
    except CredentialsError as error:
        failure = error
    finally:
        if not whole:
            with anyio.CancelScope(shield=True), anyio.move_on_after(_UNDO_BUDGET) as scope:
                left = await former.put_back()
    if failure is None:
        return None
    if scope.cancelled_caught:
        left = ["the guest did not answer in time"]
    if left:
        failure.context["left"] = mask.text("; ".join(left))
        failure.hint = "not all could be put back as it was: remove the machine"
    return failure


async def _install(guest: Guest, profile: CredentialProfile, former: PreviousFiles, mask: Mask) -> None:
    told: CredentialsError
    try:
        before = await former.remember(profile)
        await guest.batch(_steps(profile, before))
        await _read_back(guest, profile)
        await _check(guest, profile, mask)
    except MachineLost:
        raise
    except CredentialsError as error:
        told = _masked(error, mask, profile)
    except HiveyardError as error:
        at = {"path": error.context["path"]} if "path" in error.context else {}
        told = _masked(CredentialsNotInstalled(error.message, cause=error.code, **at), mask, profile)
    else:
        return
    raise told


def _masked(error: CredentialsError, mask: Mask, profile: CredentialProfile) -> CredentialsError:
    """The same again, with nothing secret in it and none of the errors that led to it."""
    context = {**error.context, "profile": profile.name, "operation": "install"}
    return type(error)(
        mask.text(f"the profile {profile.name} is not installed: {error.message}"),
        hint=mask.text(error.hint),
        **{name: mask.text(value) for name, value in context.items()},
    )


def _steps(profile: CredentialProfile, before: Mapping[str, Seen]) -> list[FileStep]:
    """What is to be done, in order: directories first, as the profile has them, then files."""
    steps: list[FileStep] = []
    for directory in profile.directories:
        if before[directory.path].kind == "-":
            steps.append(MakeDirectory(path=directory.path, mode=directory.mode))
        elif before[directory.path].mode != directory.mode:
            steps.append(SetMode(path=directory.path, mode=directory.mode))
    return steps + [WriteFile(path=file.path, data=file.data(), mode=file.mode) for file in profile.files]


async def _read_back(guest: Guest, profile: CredentialProfile) -> None:
    wanted = [(one.path, one.mode, "d") for one in profile.directories]
    wanted += [(one.path, one.mode, "f") for one in profile.files]
    found = await look(guest, [path for path, _, _ in wanted])
    for (path, mode, kind), seen in zip(wanted, found, strict=True):
        _check_kind(path, seen, kind)
        if seen.mode != mode:
            raise CredentialsNotInstalled(f"{path} has mode {seen.mode:04o} and not {mode:04o}", path=path)
    held = await contents(guest, [file.path for file in profile.files])
    for file, data in zip(profile.files, held, strict=True):
        if not hmac.compare_digest(data, file.data()):
            raise CredentialsNotInstalled(
                f"what was read back from {file.path} is not what was written", path=file.path
            )


def _check_kind(path: str, seen: Seen, kind: str) -> None:
    if seen.kind != kind:
        raise CredentialsNotInstalled(f"there is {seen.words} at {path}", path=path)
    if not seen.own:
        raise CredentialsNotInstalled(f"{path} belongs to another user of the guest", path=path)


async def _check(guest: Guest, profile: CredentialProfile, mask: Mask) -> None:
    if profile.check is None:
        return
    try:
        result = await guest.run(profile.check, timeout=profile.check_seconds, limit=_OUTPUT_LIMIT)
    except (CannotExecute, CommandTimeout) as error:
        raise CredentialsCheckFailed(f"its check: {error.message}", cause=error.code) from error
    if not result.ok:
        # Masked before it is cut short, and without what may be the beginning of a secret that was cut already.
        said = decode(mask.stream().feed(result.stderr or result.stdout))
        raise CredentialsCheckFailed(f"its check ended with {result.status}: {one_line(said, 400)}")


def _check_allowed(profiles: Sequence[CredentialProfile], real: Collection[str]) -> None:
    for profile in profiles:
        if profile.real and profile.name not in real:
            raise RealSecretRefused(
                f"the profile {profile.name} puts a real secret into the guest, and was not asked for by name",
                hint=f"install(..., real=[{profile.name!r}]), or a profile with the door's placeholder",
                profile=profile.name,
            )


def _check_apart(profiles: Sequence[CredentialProfile]) -> None:
    owners: dict[str, str] = {}
    for profile in profiles:
        for path in [file.path for file in profile.files]:
            other = owners.setdefault(path, profile.name)
            if other != profile.name or sum(file.path == path for file in profile.files) > 1:
                raise BadInput(f"{one_line(path)!r} is written twice: by the profiles {other} and {profile.name}")


def _installed(profile: CredentialProfile) -> Installed:
    paths = [one.path for one in profile.directories] + [one.path for one in profile.files]
    return Installed(profile.name, tuple(paths), profile.real, profile.check is not None)
