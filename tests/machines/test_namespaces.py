"""Errors on a host where a user may create no user namespaces."""

from __future__ import annotations

from pathlib import Path

import pytest

from hiveyard.machines.shared.namespaces import what_to_allow


@pytest.mark.parametrize(
    ("setting", "value", "said"),
    [
        ("kernel/apparmor_restrict_unprivileged_userns", "1", "kernel.apparmor_restrict_unprivileged_userns=0"),
        ("kernel/unprivileged_userns_clone", "0", "kernel.unprivileged_userns_clone=1"),
        ("user/max_user_namespaces", "0", "user.max_user_namespaces=15000"),
        ("user/max_user_namespaces", "9000", None),
    ],
)
def test_the_setting_that_is_the_reason_is_named(tmp_path: Path, setting: str, value: str, said: str | None) -> None:
    (tmp_path / setting).parent.mkdir()
    (tmp_path / setting).write_text(value + "\n")
    wanted = f"sudo sysctl -w {said}  # to last: in /etc/sysctl.d/60-hiveyard.conf" if said else "choose another"
    assert what_to_allow("choose another", tmp_path) == wanted
