"""Forks that fail to start: what happens to their template, and which error is reported.

QEMU is replaced by a program that speaks some QMP and then fails as QEMU does.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from hiveyard.core.errors import BootFailed, HiveyardError, ProviderUnavailable
from hiveyard.core.machines import Image, MachineSpec, Shape
from hiveyard.machines.qemu import QemuProvider, QemuSettings
from hiveyard.machines.qemu.accelerator import Accelerator, Choice
from hiveyard.machines.qemu.command import Engine
from hiveyard.machines.qemu.disk import _guest_files_digest
from hiveyard.machines.qemu.host import Processor, processor
from hiveyard.machines.qemu.launch import StateRefused
from hiveyard.machines.qemu.snapshot import Snapshot, Snapshots
from hiveyard.machines.qemu.template import PARTS, Key, Origin, Templates
from hiveyard.machines.qemu.template_stock import TemplateStock
from hiveyard.machines.qemu.user import User, builder
from tests.support.leaks import searched_directory

pytestmark = pytest.mark.anyio

TCG = Engine("tcg", "max")
KVM = Engine("kvm", "host")
CANDIDATES = [
    Accelerator(name="kvm", engine=KVM, device="/dev/null"),
    Accelerator(name="tcg", engine=TCG, hardware=False),
]
SHAPE = Shape(memory_mib=128, disk_gib=1)
IMAGE = Image(id="image", name="image", rootfs=Path("/nowhere"))

PROGRAM = r"""#!/usr/bin/perl
use strict; use warnings; use Socket;
$| = 1;
my $words = "@ARGV";
if ($words =~ /--version/) { print "QEMU emulator version 9.1.0\n"; exit }
if ($words !~ /-name/) { print "Unable to mount root fs\n"; exit }
if ($words !~ /-incoming/) { open my $made, '>', 'HERE/made/it'; print STDERR "no template on this host\n"; exit 1 }
if (-e 'HERE/busy') { print STDERR "ioctl(KVM_CREATE_VM) failed: 16 Device or resource busy\n"; exit 1 }
my ($fd) = $words =~ /id=qmp,fd=(\d+)/;
open my $listener, '+<&=', $fd or die;
accept my $peer, $listener or die;
select $peer; $| = 1;
print '{"QMP": {}}', "\n";
while (<$peer>) {
    my $value = /human-monitor/ ? '" TCP[HOST_FORWARD] 1 127.0.0.1 4022 10.0.2.15 22 "' : '{"fdset-id": 1}';
    print qq({"return": $value}\n);
    next unless /migrate-incoming/;
    print '{"event": "MIGRATION", "data": {"status": "failed"}}', "\n" unless -e 'HERE/silent';
    print STDERR "load of migration failed: Invalid argument\n";
    exit 1;
}
"""
SIZE = QemuSettings().session_gib << 30


class Host:
    """A cache with one image that is prepared for a QEMU that fails to load any state."""

    def __init__(self, root: Path) -> None:
        self.root = root
        program = root / "qemu"
        program.write_text(PROGRAM.replace("HERE", str(root)))
        program.chmod(0o755)
        (root / "made").mkdir()
        (root / "made").chmod(0o777)
        self.settings = QemuSettings(program=str(program), accelerator="tcg")
        self._make_disk()
        self.template = self.prepared(TCG)

    def _make_disk(self) -> None:
        root = self.root / "cache" / "disks" / f"{IMAGE.id}-{SHAPE.disk_gib}g-{_guest_files_digest()}"
        root.mkdir(parents=True)
        for name in ("vmlinuz", "initrd", "disk.raw"):
            (root / name).touch()
        (root / "host_key.pub").write_text("key")

    def prepared(self, engine: Engine) -> Path:
        """Make a template that was frozen under that engine."""
        templates = Templates(self.root / "cache" / "templates")
        key = Key(IMAGE.id, "key", SHAPE, SIZE, engine, "9.1.0", "")
        fresh = templates.new_directory(key)
        for name in PARTS:
            (fresh / name).write_bytes(b"0" * 4096)
        group = builder(first=self.settings.uid).group
        return templates.publish(key, fresh, host_key="key", group=group, sealed=True).root

    async def boot(self) -> HiveyardError:
        provider = QemuProvider(self.root / "state", self.root / "cache", self.settings, accelerators=CANDIDATES)
        with pytest.raises(HiveyardError) as caught:
            await provider.boot("m", MachineSpec(image=IMAGE, shape=SHAPE))
        return caught.value

    @property
    def tried_to_make_one(self) -> bool:
        return (self.root / "made" / "it").exists()


@pytest.fixture
def host() -> Iterator[Host]:
    for tool in ("qemu-img", "socat", "perl"):
        if not shutil.which(tool):
            assert not os.environ.get("CI"), f"{tool} is missing"
            pytest.skip(f"{tool} is not installed")
    with searched_directory() as root:
        root.chmod(0o755)  # the program is run by another user
        yield Host(root)


async def test_a_fork_that_fails_for_another_reason_keeps_its_template(host: Host) -> None:
    (host.root / "busy").touch()
    error = await host.boot()
    assert isinstance(error, BootFailed) and not isinstance(error, StateRefused)
    assert "Device or resource busy" in error.message
    assert not host.tried_to_make_one
    assert (host.template / "template.json").exists()


@pytest.mark.parametrize("silent", [False, True], ids=["QEMU reports the failure", "QEMU exits"])
async def test_a_template_that_does_not_load_is_kept_until_there_is_another(
    host: Host, silent: bool, caplog: pytest.LogCaptureFixture
) -> None:
    if silent:
        (host.root / "silent").touch()
    error = await host.boot()
    assert host.tried_to_make_one
    assert "no template on this host" in error.message
    assert "load of migration failed: Invalid argument; making its template again" in caplog.text
    assert (host.template / "template.json").exists()


async def test_a_template_made_under_emulation_is_used_until_the_image_is_prepared_again(host: Host) -> None:
    stock = TemplateStock(
        host.root / "cache", QemuSettings(program=host.settings.program), User(None, None), CANDIDATES
    )
    qemu, origin = await stock.origin(MachineSpec(image=IMAGE, shape=SHAPE), SIZE)
    assert (qemu.choice.engine, origin.frozen) == (TCG, host.template)
    marks = json.loads((host.root / "cache" / "accelerator.json").read_bytes())
    assert [found["name"] for found in marks.values()] == ["kvm"]


@pytest.mark.parametrize("engine", [KVM, TCG], ids=["kvm", "tcg"])
async def test_a_snapshot_can_be_used_after_the_host_got_another_kernel(host: Host, engine: Engine) -> None:
    stock = TemplateStock(
        host.root / "cache", QemuSettings(program=host.settings.program), User(None, None), CANDIDATES
    )
    snapshot = Snapshot(Origin((), "key"), repr(engine), "9.1.0")
    assert (await stock.qemu_of(snapshot)).choice.engine == engine


def test_a_snapshot_taken_under_kvm_needs_a_processor_with_the_same_features() -> None:
    here = processor()
    other = Processor(here.name, (*here.flags, "quantum"))
    kvm = [Choice("kvm", KVM, ""), Choice("tcg", TCG, "")]
    for frozen, engine in ((here, KVM), (None, KVM), (other, TCG)):
        snapshot = Snapshot(Origin((), "key"), repr(engine), "9.1.0", processor=frozen)
        assert snapshot.qemu("qemu", "9.1.0", kvm).choice.engine == engine
    with pytest.raises(ProviderUnavailable, match="this host's processor has no quantum"):
        Snapshot(Origin((), "key"), repr(KVM), "9.1.0", processor=other).qemu("qemu", "9.1.0", kvm)


def test_the_processor_of_a_snapshot_is_read_as_it_was_written(tmp_path: Path) -> None:
    root = tmp_path / "s"
    root.mkdir()
    marks = {"host_key": "key", "engine": "e", "version": "v", "under": []}
    (root / "snapshot.json").write_text(json.dumps(marks | {"processor": processor()._asdict()}))
    assert Snapshots(tmp_path).find("s").processor == processor()
    (root / "snapshot.json").write_text(json.dumps(marks))
    assert Snapshots(tmp_path).find("s").processor is None
