"""Compose the scripts that a build runs inside the new root filesystem.

Each step runs as root of a bubblewrap sandbox whose `/` is the new filesystem: own processes, few capabilities,
nothing of the host but the network. The steps speak to the builder by lines on their output (`MARK`).
"""

from __future__ import annotations

import shlex
from typing import NamedTuple

from hiveyard.images.recipe import Recipe

MARK = "hiveyard-build:"
BUILD = "/run/hiveyard-build"
"""The path of the build's own files in the sandbox. `/run` is a tmpfs there, so nothing of it gets into the image."""
NPMRC = "/run/hiveyard-npmrc"

EPOCH = "1700000000"
"""The latest time of any file in an image, so that two builds from the same packages are equal."""

USER, UID = "agent", 1000
_HOME = "/tmp"  # noqa: S108 - the sandbox's own tmpfs
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_CAPABILITIES = ("CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SYS_CHROOT")

# The modules for a machine's disk, console and door, without drivers of real hardware.
_INITRD_MODULES = (
    "virtio virtio_pci virtio_mmio virtio_blk virtio_scsi virtio_net virtio_console virtio_rng virtio_balloon"
    " sd_mod ext4 crc32c_generic 9p 9pnet_virtio virtiofs overlay vmgenid"
)
_KERNEL_LEFT_OUT = (
    "drivers/bluetooth drivers/gpu drivers/hwmon drivers/iio drivers/infiniband drivers/isdn drivers/media"
    " drivers/net/ethernet drivers/net/wireless drivers/staging net/bluetooth net/mac80211 net/wireless sound"
)
_DOCUMENTATION = "doc-base groff info linda lintian locale man"
# Timers that would all expire at once in a fork, whose clock jumps from the template's time to the present.
_UNITS_OFF = (
    "apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer"
    " systemd-tmpfiles-clean.timer systemd-pstore.service getty@tty1.service"
)


class Step(NamedTuple):
    """A title for progress reports, and a script for `sh -eu`."""

    title: str
    script: str


def dpkg_options() -> list[str]:
    """Return dpkg's options that leave out drivers for hardware that no machine has, documentation and translations."""
    kernel = [f"path-exclude=/lib/modules/*/kernel/{part}/*" for part in _KERNEL_LEFT_OUT.split()]
    share = [f"path-exclude=/usr/share/{part}/*" for part in _DOCUMENTATION.split()]
    return [*kernel, *share, "path-exclude=/usr/share/doc/*", "path-include=/usr/share/doc/*/copyright"]


def before_packages() -> str:
    """Return the hook that runs before the kernel is installed: it configures a small initrd that unpacks fast."""
    return f"""#!/bin/sh
set -eu
mkdir -p "$1/etc/initramfs-tools/conf.d" "$1/etc/initramfs-tools/hooks"
printf 'MODULES=list\\nCOMPRESS=zstd\\nCOMPRESSLEVEL=3\\nRESUME=none\\n' > "$1/etc/initramfs-tools/conf.d/hiveyard"
cat > "$1/etc/initramfs-tools/hooks/hiveyard" <<'END'
#!/bin/sh
[ "$1" = prereqs ] && exit 0
. /usr/share/initramfs-tools/hook-functions
for module in {_INITRD_MODULES}; do manual_add_modules "$module"; done
END
chmod 0755 "$1/etc/initramfs-tools/hooks/hiveyard"
"""


def after_packages(work: str, proxies: dict[str, str], *, certificates: bool) -> str:
    """Return the hook that runs each file of `work/steps` in the sandbox, with npm's configuration in a variable."""
    variables = {"PATH": _PATH, "HOME": _HOME, "TERM": "dumb", "DEBIAN_FRONTEND": "noninteractive", **proxies}
    variables["SOURCE_DATE_EPOCH"] = EPOCH
    variables["npm_config_userconfig"] = NPMRC
    variables["npm_config_cache"] = f"{_HOME}/npm"
    if certificates:
        for name in ("SSL_CERT_FILE", "NODE_EXTRA_CA_CERTS", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO", "PIP_CERT"):
            variables[name] = f"{BUILD}/certificates.pem"
    given = " ".join(f"--setenv {name} {shlex.quote(value)}" for name, value in variables.items())
    capabilities = " ".join(f"--cap-add CAP_{name}" for name in _CAPABILITIES)
    # Without root, mmdebstrap keeps the host's own /proc, which does not contain bubblewrap's processes.
    return f"""#!/bin/sh
set -eu
exec >&2
root=$1
work={shlex.quote(work)}
if [ -d "$work/node" ]; then cp -R --preserve=mode,links "$work/node/." "$root/usr/local/"; fi
for step in "$work"/files/steps/*; do
  echo "{MARK} step $(sed -n '1s/^# //p' "$step")"
  unshare --mount-proc bwrap --bind "$root" / --dev /dev --proc /proc --tmpfs /run --perms 1777 --tmpfs /tmp \\
    --ro-bind "$work/files" {BUILD} --file 3 {NPMRC} \\
    --unshare-pid --unshare-ipc --unshare-uts --unshare-cgroup-try --hostname build --new-session --die-with-parent \\
    --cap-drop ALL {capabilities} --clearenv {given} --chdir / sh -eu "{BUILD}/steps/${{step##*/}}" </dev/null 3<<END
${{HIVEYARD_NPMRC-}}
END
done
"""


def steps(recipe: Recipe) -> list[Step]:
    """Return the steps that run inside, in order."""
    between = [Step(f"running the recipe's script {n} of {len(recipe.run)}", text) for n, text in _numbered(recipe.run)]
    npm = [Step("installing " + ", ".join(recipe.npm), _npm(recipe))] if recipe.npm else []
    return [Step("making the user and its places", _places(recipe)), *npm, *between, *_last(recipe)]


def text_of(step: Step, recipe: Recipe) -> str:
    """Return the content of a step's file: its title, the recipe's environment and the script."""
    exports = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in recipe.env.items())
    return f"# {step.title}\n{exports}{step.script}\n"


def _numbered(scripts: tuple[str, ...]) -> list[tuple[int, str]]:
    return list(enumerate(scripts, 1))


def _last(recipe: Recipe) -> list[Step]:
    return [
        Step("trying the programs", _programs(recipe)),
        Step("noting what is inside", _inventory(recipe)),
        Step("removing what belongs to the build", _cleaning()),
    ]


def _places(recipe: Recipe) -> str:
    environment = "".join(f'{name}="{_quoted(value)}"\n' for name, value in recipe.env.items())
    sshd = "".join(f'SetEnv {name}="{_quoted(value)}"\n' for name, value in recipe.env.items())
    return f"""
useradd --uid {UID} --user-group --create-home --shell /bin/bash --skel /nonexistent \\
  -K UID_MIN=1000 -K SUB_UID_COUNT=0 -K SUB_GID_COUNT=0 {USER}
# '*' is no password; '!' would also lock the account for ssh keys.
usermod --password '*' {USER}
chmod 0755 /home/{USER}
: > /home/{USER}/.bashrc
chown {UID}:{UID} /home/{USER}/.bashrc
mkdir -m 0755 /session
chown {UID}:{UID} /session
printf '%s' {shlex.quote(environment)} > /etc/environment
echo hiveyard > /etc/hostname
printf '127.0.0.1 localhost\\n::1 localhost\\n' > /etc/hosts
if [ -d /etc/ssh/sshd_config.d ]; then
  printf '%s' {shlex.quote(_SSHD + sshd)} > /etc/ssh/sshd_config.d/hiveyard.conf
fi
if [ -d /etc/systemd/system ]; then
  for unit in {_UNITS_OFF}; do ln -sf /dev/null "/etc/systemd/system/$unit"; done
fi
"""


# PAM and DNS take most of a login's time under emulation, and no user has a password.
_SSHD = """UsePAM no
UseDNS no
PasswordAuthentication no
KbdInteractiveAuthentication no
PrintMotd no
PrintLastLog no
HostKey /etc/ssh/ssh_host_ed25519_key
"""


def _quoted(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"')


def _npm(recipe: Recipe) -> str:
    packages = " ".join(shlex.quote(spec) for spec in recipe.npm)
    # Installed as root, with the packages' own scripts: their postinstall puts the binary in place.
    return f"""
npm install --global --prefix /usr/local --no-fund --no-audit --no-update-notifier --foreground-scripts \\
  --loglevel=notice {packages}
"""


def _programs(recipe: Recipe) -> str:
    """Return a script that runs each program as its later user. The home is a temporary one, so no state remains."""
    lines = ["mkdir -m 0700 /tmp/home", f"chown {UID}:{UID} /tmp/home"]
    for name, command in sorted(recipe.programs.items()):
        run = f"setpriv --reuid={UID} --regid={UID} --clear-groups env HOME=/tmp/home sh -c {shlex.quote(command)}"
        lines.append(
            f'said=$({run} </dev/null 2>&1) || {{ echo "$said"; echo {shlex.quote(command)} failed; exit 1; }}'
        )
        lines.append(f'printf "{MARK} program %s %s\\n" {name} "$(printf %s "$said" | head -n 1)"')
    return "\n".join(lines)


def _inventory(recipe: Recipe) -> str:
    listing = f"dpkg-query --show --showformat='{MARK} resolved ${{Package}} ${{Version}}\\n'\n"
    if recipe.node:
        listing += f'echo "{MARK} resolved node $(node --version)"\n'
    if recipe.npm:
        listing += (
            "cd /usr/local/lib/node_modules\n"
            'for file in */package.json @*/*/package.json; do [ ! -f "$file" ] || node -e'
            f" 'const p = require(process.argv[1]); console.log(`{MARK} resolved npm:${{p.name}} ${{p.version}}`)'"
            ' "$PWD/$file"; done\n'
        )
    return listing


def _cleaning() -> str:
    """Return a script that removes everything of the host (mirrors, name, resolver, certificates), and keys that
    machines would share."""
    return """
find / -xdev \\( -name '*.dpkg-old' -o -name '*.dpkg-new' -o -name '*.dpkg-dist' \\) -type f -delete
rm -rf /etc/apt/sources.list /etc/apt/sources.list.d/* /etc/apt/apt.conf.d/99mmdebstrap /var/cache/apt/*.bin
rm -rf /etc/ssh/ssh_host_* /root/.npm /root/.cache /home/agent/.cache /home/agent/.npm /var/cache/debconf/*-old
rm -rf /var/lib/dpkg/*-old /var/cache/man /etc/passwd- /etc/group- /etc/shadow- /etc/gshadow- /etc/subuid- /etc/subgid-
rm -f /var/lib/systemd/random-seed /var/lib/dbus/machine-id /usr/local/etc/npmrc
find /var/log -type f -delete
rm -f /vmlinuz.old /initrd.img.old
: > /etc/resolv.conf
chmod 0644 /etc/resolv.conf /etc/hostname
: > /etc/machine-id
"""
