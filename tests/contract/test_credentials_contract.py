"""The contract of installing credentials, in every kind of machine."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Any

import anyio
import pytest

from hiveyard.core.commands import Command
from hiveyard.core.credentials import CredentialDirectory, CredentialFile, CredentialProfile
from hiveyard.core.errors import (
    BadInput,
    CredentialsCheckFailed,
    CredentialsError,
    CredentialsNotInstalled,
    RealSecretRefused,
)
from hiveyard.core.ports import Guest
from hiveyard.credentials import DefaultCredentialsInstaller, profiles
from hiveyard.credentials.claude_oauth import Tokens
from hiveyard.kit.names import new_id
from hiveyard.kit.secret import Secret
from tests.support.leaks import Said, listening

pytestmark = pytest.mark.anyio

KEY = "sk-real-Zq8TestSecret/+7vXy0123456789?&=abcdef"
DOOR = "http://127.0.0.1:8377"
PLACEHOLDER = Secret("hv-placeholder-Zq8TestSecret")
ODD = ("-rf", "...", "a b 'c' \"d\" $(touch hacked) * ü😀\ne")


@pytest.fixture(name="folder")
async def removed_folder(guest: Guest, folder: str) -> AsyncIterator[str]:
    """The directory of a test, which does not stay with the secrets in it."""
    yield folder
    await guest.remove_tree(folder)


@pytest.fixture
def said() -> Iterator[Said]:
    """Collect the output of a test. At its end it must contain no secret."""
    with listening() as said:
        yield said
    said.none_of([KEY])


@pytest.fixture
def installer(said: Said) -> DefaultCredentialsInstaller:
    return DefaultCredentialsInstaller(said.add)


@pytest.fixture
async def home(guest: Guest) -> AsyncIterator[None]:
    """Restore the home directory of the shared machine."""
    yield
    for name in (".claude", ".codex", ".config", ".local"):
        await guest.remove_tree(f"~/{name}")


def profile(folder: str, content: str = KEY, **more: object) -> CredentialProfile:
    """Return a profile of one directory and one file in it with a secret."""
    parts: dict[str, object] = {
        "name": "probe",
        "directories": (CredentialDirectory(path=f"{folder}/d"),),
        "files": (CredentialFile(path=f"{folder}/d/key", content=Secret(content)),),
        "secrets": (Secret(KEY),),
        **more,
    }
    return CredentialProfile(**parts)  # type: ignore[arg-type]


async def stat(guest: Guest, path: str) -> str:
    """Return the mode of a path, and whether it belongs to the user."""
    script = 'stat -c "%a $([[ -O $1 ]] && printf own)" -- "$1"'
    return (await guest.run(Command(argv=("bash", "-c", script, "stat", path)))).stdout.decode().strip()


async def below(guest: Guest, folder: str) -> list[str]:
    found = await guest.run(Command(argv=("find", folder, "-mindepth", "1")))
    return sorted(found.stdout.decode().splitlines())


async def failing(
    said: Said, installer: DefaultCredentialsInstaller, guest: Guest, *which: CredentialProfile
) -> CredentialsError:
    """Return the error of an installation that must fail."""
    with pytest.raises(CredentialsError) as caught:
        await installer.install(guest, which)
    said.add_error(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    return caught.value


# --- what is installed -----------------------------------------------------------------------------------------------


async def test_directories_and_files_are_there_with_their_modes_and_owner(
    guest: Guest, folder: str, installer: DefaultCredentialsInstaller
) -> None:
    directories = [
        CredentialDirectory(path=f"{folder}/{name}", mode=mode) for name, mode in (("a", 0o700), ("a/b", 0o755))
    ]
    files = [
        CredentialFile(path=f"{folder}/a/secret", content=Secret(KEY)),
        CredentialFile(path=f"{folder}/a/b/open", content=Secret("open\n"), mode=0o644, secret=False),
        CredentialFile(path=f"{folder}/a/b/closed", content=Secret(""), mode=0o400),
    ]
    made = CredentialProfile(name="probe", directories=directories, files=files)
    (installed,) = await installer.install(guest, [made])
    assert installed.paths == tuple(f"{folder}/{name}" for name in ("a", "a/b", "a/secret", "a/b/open", "a/b/closed"))
    expected = {"a": "700", "a/b": "755", "a/secret": "600", "a/b/open": "644", "a/b/closed": "400"}
    assert {name: await stat(guest, f"{folder}/{name}") for name in expected} == {
        name: f"{mode} own" for name, mode in expected.items()
    }
    assert await guest.read(f"{folder}/a/secret") == KEY.encode()
    assert await guest.read(f"{folder}/a/b/closed") == b""


async def test_a_directory_that_was_there_gets_the_mode_that_it_is_to_have(
    guest: Guest, folder: str, installer: DefaultCredentialsInstaller
) -> None:
    await guest.mkdir(f"{folder}/d", mode=0o755)
    await guest.write(f"{folder}/d/other", b"kept")
    await installer.install(guest, [profile(folder)])
    assert await stat(guest, f"{folder}/d") == "700 own"
    assert await guest.read(f"{folder}/d/other") == b"kept"


async def test_of_two_profiles_with_the_same_directory_the_later_one_sets_its_mode(
    guest: Guest, folder: str, installer: DefaultCredentialsInstaller
) -> None:
    files = [CredentialFile(path=f"{folder}/d/other", content=Secret(KEY))]
    directories = [CredentialDirectory(path=f"{folder}/d", mode=0o750)]
    second = CredentialProfile(name="second", directories=directories, files=files)
    await installer.install(guest, [profile(folder), second])
    assert await stat(guest, f"{folder}/d") == "750 own"


async def test_bytes_of_any_kind_come_by_base64(
    guest: Guest, folder: str, installer: DefaultCredentialsInstaller
) -> None:
    data = bytes(range(256))
    file = CredentialFile(path=f"{folder}/bytes", content=Secret(base64.b64encode(data).decode()), encoding="base64")
    await installer.install(guest, [CredentialProfile(name="probe", files=[file])])
    assert await guest.read(f"{folder}/bytes") == data


@pytest.mark.parametrize("name", ODD, ids=ascii)
async def test_a_path_may_hold_spaces_quotes_and_newlines(
    guest: Guest, folder: str, installer: DefaultCredentialsInstaller, name: str
) -> None:
    await installer.install(guest, [profile(f"{folder}/{name}/{name}")])
    assert await guest.read(f"{folder}/{name}/{name}/d/key") == KEY.encode()
    assert await stat(guest, f"{folder}/{name}/{name}/d/key") == "600 own"
    assert (await guest.run(Command(argv=("ls", "-A", folder)))).stdout.decode() == f"{name}\n"


async def test_a_second_installation_replaces_the_first(
    guest: Guest, folder: str, installer: DefaultCredentialsInstaller
) -> None:
    await installer.install(guest, [profile(folder, "old and long")])
    await installer.install(guest, [profile(folder, "new")])
    assert await guest.read(f"{folder}/d/key") == b"new"
    assert await below(guest, folder) == [f"{folder}/d", f"{folder}/d/key"]


async def test_a_check_sees_all_that_was_installed(
    guest: Guest, folder: str, installer: DefaultCredentialsInstaller
) -> None:
    second = CredentialFile(path=f"{folder}/second", content=Secret(KEY))
    check = Command(shell='[[ $(cat d/key) == "$(cat second)" ]] && wc -c <second >checked', cwd=folder)
    files = (*profile(folder).files, second)
    (installed,) = await installer.install(guest, [profile(folder, files=files, check=check)])
    assert installed.checked
    assert await guest.read(f"{folder}/checked") == f"{len(KEY)}\n".encode()


async def test_profiles_are_installed_in_their_order(
    guest: Guest, folder: str, installer: DefaultCredentialsInstaller
) -> None:
    def step(number: int) -> CredentialProfile:
        # Passes only if what the previous one installs exists, and what the next one installs does not.
        check = Command(shell=f"set -- *; [[ $# == {number + 1} && -e {number} ]]", cwd=folder)
        file = CredentialFile(path=f"{folder}/{number}", content=Secret(KEY))
        return CredentialProfile(name=f"step-{number}", files=[file], check=check)

    done = await installer.install(guest, [step(number) for number in range(3)])
    assert [one.profile for one in done] == ["step-0", "step-1", "step-2"]


# --- real secrets ----------------------------------------------------------------------------------------------------


async def test_a_real_secret_is_refused_unless_its_profile_is_asked_for_by_name(
    guest: Guest, said: Said, installer: DefaultCredentialsInstaller, home: None
) -> None:
    real = profiles.claude_api_key(Secret(KEY))
    for allowed in ((), ("claude",), ("probe",)):
        with pytest.raises(RealSecretRefused, match="claude-api-key") as caught:
            await installer.install(guest, [real], real=allowed)
        said.add_error(caught.value)
    assert not await guest.exists("~/.claude")


async def test_a_real_secret_that_was_asked_for_is_announced(
    guest: Guest, said: Said, installer: DefaultCredentialsInstaller, home: None
) -> None:
    real = profiles.claude_api_key(Secret(KEY))
    plain = profiles.codex(DOOR, PLACEHOLDER)
    done = await installer.install(guest, [plain, real], real=["claude-api-key"])
    assert [one.real for one in done] == [False, True]
    assert [line for line in said.lines if "a real secret into the guest" in line] == [
        "the profile claude-api-key puts a real secret into the guest, where every program can read it:"
        " ~/.claude/settings.json"
    ]
    settings = json.loads(await guest.read("~/.claude/settings.json"))
    assert settings["env"]["ANTHROPIC_API_KEY"] == KEY
    mode = await guest.run(Command(argv=("stat", "-c", "%a", ".claude", ".claude/settings.json")))
    assert mode.stdout == b"700\n600\n"


# --- what cannot be installed ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", ["/tmp/../etc/key", "~/..", "~/a/../b", "relative", "~other/key", "/a//b", "/a/", "/a\0b"]
)
def test_a_path_that_leads_astray_is_refused(path: str) -> None:
    for kind in (CredentialDirectory, CredentialFile):
        more = {} if kind is CredentialDirectory else {"content": Secret(KEY)}
        with pytest.raises(BadInput):
            kind(path=path, **more)  # type: ignore[arg-type]


async def test_two_profiles_that_write_the_same_file_are_refused(
    guest: Guest, folder: str, installer: DefaultCredentialsInstaller
) -> None:
    with pytest.raises(BadInput, match="written twice"):
        await installer.install(guest, [profile(folder), profile(folder, name="other")])
    assert await below(guest, folder) == []


async def test_a_read_only_place_is_an_error_and_nothing_is_left(
    guest: Guest, folder: str, said: Said, installer: DefaultCredentialsInstaller
) -> None:
    await guest.mkdir(f"{folder}/shut", mode=0o555)
    first = CredentialFile(path=f"{folder}/d/first", content=Secret(KEY))
    second = CredentialFile(path=f"{folder}/shut/second", content=Secret(KEY))
    error = await failing(said, installer, guest, profile(folder, files=(first, second)))
    assert isinstance(error, CredentialsNotInstalled)
    assert error.context["path"] == f"{folder}/shut/second"
    assert error.context["cause"] == "guest.permission_denied"
    assert error.context["profile"] == "probe"
    assert await below(guest, folder) == [f"{folder}/shut"]


async def test_a_system_file_is_not_written(guest: Guest, said: Said, installer: DefaultCredentialsInstaller) -> None:
    file = CredentialFile(path="/etc/hiveyard-probe", content=Secret(KEY))
    error = await failing(said, installer, guest, CredentialProfile(name="probe", files=[file]))
    assert error.context["path"] == "/etc/hiveyard-probe"
    assert not await guest.exists("/etc/hiveyard-probe")


async def test_a_full_disk_is_an_error_and_what_was_there_is_back(
    guest: Guest, said: Said, installer: DefaultCredentialsInstaller
) -> None:
    folder = f"/dev/shm/{new_id()}"
    await guest.mkdir(folder)
    await guest.write(f"{folder}/first", b"old", mode=0o640)
    try:
        # There is space for `first` and for the previous content, but not for `second`.
        await guest.run(Command(shell="head -c 256K /dev/zero >room; cat /dev/zero >fill", cwd=folder), timeout=300)
        await guest.remove(f"{folder}/room")
        first = CredentialFile(path=f"{folder}/first", content=Secret("new"))
        second = CredentialFile(path=f"{folder}/second", content=Secret(KEY * 20_000))
        made = CredentialProfile(name="probe", files=[first, second], secrets=[Secret(KEY)])
        error = await failing(said, installer, guest, made)
        assert error.context["cause"] == "guest.no_space"
        assert error.context["path"] == f"{folder}/second"
        assert "left" not in error.context
        assert await guest.read(f"{folder}/first") == b"old"
        assert await stat(guest, f"{folder}/first") == "640 own"
        assert not await guest.exists(f"{folder}/second")
    finally:
        await guest.remove_tree(folder)


@pytest.mark.parametrize("thing", ["ln -s /etc/passwd key", "mkdir key", "mkfifo key"])
async def test_what_is_no_file_is_not_replaced(
    guest: Guest, said: Said, installer: DefaultCredentialsInstaller, thing: str
) -> None:
    folder = f"/tmp/{new_id()}"  # a share carries no pipes
    await guest.mkdir(f"{folder}/d")
    await guest.run(Command(shell=thing, cwd=f"{folder}/d"))
    with anyio.fail_after(120):
        error = await failing(said, installer, guest, profile(folder))
    assert error.context["path"] == f"{folder}/d/key"
    assert await below(guest, folder) == [f"{folder}/d", f"{folder}/d/key"]
    await guest.remove_tree(folder)


async def test_a_directory_that_is_a_symlink_is_not_used(
    guest: Guest, folder: str, said: Said, installer: DefaultCredentialsInstaller
) -> None:
    await guest.mkdir(f"{folder}/elsewhere")
    await guest.run(Command(argv=("ln", "-s", "elsewhere", f"{folder}/d")))
    await failing(said, installer, guest, profile(folder))
    assert await below(guest, f"{folder}/elsewhere") == []


async def test_a_check_that_fails_is_an_error_with_its_words_and_nothing_stays(
    guest: Guest, folder: str, said: Said, installer: DefaultCredentialsInstaller
) -> None:
    script = "echo 'not signed in:'; cat d/key; exit 3"
    error = await failing(said, installer, guest, profile(folder, check=Command(shell=script, cwd=folder)))
    assert isinstance(error, CredentialsCheckFailed)
    assert "exited with 3: not signed in: ***" in error.message
    assert await below(guest, folder) == []


def by_base64(data: bytes) -> dict[str, object]:
    return {"content": Secret(base64.b64encode(data).decode()), "encoding": "base64"}


@pytest.mark.parametrize(
    ("file", "check"),
    [
        pytest.param({"content": Secret(f"{KEY}\n")}, "printf 'no %s' \"$(<key)\"", id="a line without its end"),
        pytest.param({"content": Secret(f"type\n {KEY}\r\n")}, "echo no $(tail -n 1 key)", id="one line of several"),
        pytest.param(by_base64(KEY.encode()), "echo no; cat key", id="what came by base64"),
        pytest.param(by_base64(b"\xff\xfe" + KEY.encode() + b"\n\xff"), "echo no; cat key", id="bytes of no text"),
    ],
)
async def test_a_check_may_quote_a_file_whose_secrets_nobody_named(
    guest: Guest, folder: str, said: Said, installer: DefaultCredentialsInstaller, file: dict[str, Any], check: str
) -> None:
    command = Command(shell=f"{check}; echo; echo type it again; exit 3", cwd=f"{folder}/d")
    files = [CredentialFile(path=f"{folder}/d/key", **file)]
    error = await failing(said, installer, guest, profile(folder, files=files, secrets=(), check=command))
    assert re.search(r"exited with 3: no \*{8,}", error.message)
    assert error.message.endswith(" type it again"), "what is too short to be a secret is no star"


async def test_a_check_may_quote_the_tokens_of_a_sign_in(
    guest: Guest, folder: str, said: Said, installer: DefaultCredentialsInstaller
) -> None:
    tokens = Tokens(access=Secret(KEY), refresh=Secret(f"{KEY}-too"), expires_at=1.8e9)
    made = profiles.claude_sign_in(tokens.file(), directory=f"{folder}/d")
    script = """grep -o '"[^"]*Token":"[^"]*"' d/.credentials.json >&2; exit 3"""
    with pytest.raises(CredentialsCheckFailed) as caught:
        await installer.install(
            guest, [replace(made, check=Command(shell=script, cwd=folder))], real=["claude-sign-in"]
        )
    said.add_error(caught.value)
    assert re.search(r'"accessToken":"\*+" "refreshToken":"\*+"', caught.value.message)


async def test_a_check_may_quote_the_secret_of_another_profile_where_its_words_are_cut(
    guest: Guest, folder: str, said: Said, installer: DefaultCredentialsInstaller
) -> None:
    script = f"printf '%0380d' 0; cat {folder}/d/key; exit 3"
    second = CredentialFile(path=f"{folder}/second", content=Secret("another Zq8TestSecret"))
    checked = CredentialProfile(name="second", files=[second], check=Command(shell=script))
    error = await failing(said, installer, guest, profile(folder), checked)
    assert "0****" in error.message
    assert KEY[:4] not in error.message


async def test_a_check_whose_program_is_missing_or_hangs_is_an_error_and_nothing_stays(
    guest: Guest, folder: str, said: Said, installer: DefaultCredentialsInstaller
) -> None:
    missing = Command(argv=("no-such-program",))
    error = await failing(said, installer, guest, profile(folder, check=missing))
    assert error.context["cause"] == "guest.cannot_execute"
    hanging = Command(argv=("sleep", "1000"))
    error = await failing(said, installer, guest, profile(folder, check=hanging, check_seconds=1.0))
    assert error.context["cause"] == "guest.command_timeout"
    assert await below(guest, folder) == []


async def test_after_a_failure_all_is_as_it_was_before(
    guest: Guest, folder: str, said: Said, installer: DefaultCredentialsInstaller
) -> None:
    await guest.mkdir(f"{folder}/d", mode=0o755)
    await guest.write(f"{folder}/d/key", b"former", mode=0o640)
    whole = CredentialFile(path=f"{folder}/whole", content=Secret(KEY))
    good = CredentialProfile(name="good", files=[whole])
    bad = profile(folder, check=Command(argv=("false",)))
    await failing(said, installer, guest, good, bad)
    assert await guest.read(f"{folder}/d/key") == b"former"
    assert await stat(guest, f"{folder}/d/key") == "640 own"
    assert await stat(guest, f"{folder}/d") == "755 own"
    assert await below(guest, folder) == [f"{folder}/d", f"{folder}/d/key"]


async def test_an_installation_that_is_cancelled_leaves_nothing(
    guest: Guest, folder: str, installer: DefaultCredentialsInstaller
) -> None:
    hanging = profile(folder, check=Command(shell="touch started; sleep 1000", cwd=folder), check_seconds=900)
    async with anyio.create_task_group() as group:
        group.start_soon(installer.install, guest, [hanging])
        with anyio.fail_after(120):
            while not await guest.exists(f"{folder}/started"):  # noqa: ASYNC110 - a file sends no event
                await anyio.sleep(0.05)
        group.cancel_scope.cancel()
    assert await below(guest, folder) == [f"{folder}/started"]
