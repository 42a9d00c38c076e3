"""The process manager whose processes a person finds in PM2 7: `pm2 ls`, `pm2 logs hv-NAME`, `pm2 stop hv-NAME`.

PM2 starts and lists the runner, the same as that of `detached`, which does for the process what PM2 does not: PM2 calls
a process well ended that was killed by a signal, leaves it a stdin that never ends, shows its environment to everybody
who asks, looks at the memory of one process every 30 seconds, forgets after a while how often a process was restarted,
and forgets all processes when its daemon dies. So state, exit codes and outputs come from the runner's files,
and are as true when PM2's daemon is gone; the next start brings it back. Nothing but a directory is given to PM2, no
environment and no word of the command. A process that `pm2 restart` starts again has ended, and stays so.
"""

from __future__ import annotations

from typing import Final

from hiveyard.core.errors import ProcessError
from hiveyard.core.ports import Guest
from hiveyard.processes import common
from hiveyard.processes.detached import Detached

_TIMEOUT = 300.0

# PM2's first calls must not race: each would start a daemon, and hang. And each call is a Node of its own, 60 MB: one
# after the other. With these variables it asks no server whether it is new enough. The lock is not for its daemon to
# hold (9>&-).
_PM2: Final = r"""
export PM2_DISCRETE_MODE=1 PM2_DISABLE_VERSION_CHECK=1 PM2_HOME=${PM2_HOME:-$HOME/.pm2}
pm2_answers() {
  type -P pm2 >/dev/null || exit 72
  mkdir -p -- "$PM2_HOME" && exec 9>"$PM2_HOME/hiveyard.lock" && flock -w 100 9 || return
  timeout -k 5 60 pm2 ping 9>&-
}
"""

# Starts the runner: as a process of PM2, whose own variables in the environment it does not see.
_LAUNCH: Final = (
    _PM2
    + r"""
start_in_pm2() {
  local app='exec </dev/null >/dev/null 2>&1 3>&-; mapfile -d "" -t e <"$1/env"
exec env -i "${e[@]}" bash -c "$(<"$1/runner")" hv "$1" pm2'
  exec 8>"$dir/lock" && flock -w 100 8 || return
  [[ -e $dir/claim ]] && return
  cd / && unset HIVEYARD_RUN && pm2_answers || return
  timeout -k 5 60 pm2 start bash --name "hv-$name" --no-autorestart --no-treekill --kill-timeout 10000 --no-vizion \
    --output "$dir/out" --error "$dir/err" --merge-logs -- -c "$app" hv "$dir" 8>&- 9>&-
}
launch() {
  local i said
  ( umask 077; printf %s "$1" >"$dir/runner" &&
    env -0 -u HIVEYARD_RUN -u PM2_DISCRETE_MODE -u PM2_DISABLE_VERSION_CHECK -u PM2_HOME "HIVEYARD_RUNNER=$f" \
      ${language:+"LC_ALL=$language"} >"$dir/env" ) || exit 63
  said=$(start_in_pm2 2>&1 </dev/null)
  case $? in 0) ;; 72) exit 72 ;; *) printf '%s\n' "$said" >&2; exit 73 ;; esac
  for ((i = 0; i < 1000; i++)); do [[ -e $dir/claim ]] && break; nap 0.02; done
}
"""
)

# ROOT NAME: a daemon that is gone has forgotten it already.
_FORGET: Final = (
    _PM2
    + r"""
{ pid=$(<"$PM2_HOME/pm2.pid") && kill -0 "$pid"; } 2>/dev/null || exit 0
pm2_answers >/dev/null || exit
timeout -k 5 60 pm2 delete "/^hv-${2//./[.]}(@[0-9]+)?\$/" >/dev/null 9>&-
exit 0
"""
)


class Pm2(Detached):
    """A ProcessManager. It holds no state; one object serves all guests. Needed in the image: PM2 7 (`pm2`)."""

    name = "pm2"
    _launch = _LAUNCH
    _start_timeout = _TIMEOUT

    async def remove(self, guest: Guest, name: str) -> None:
        await super().remove(guest, name)
        result = await self._run(guest, _FORGET, name, timeout=_TIMEOUT)
        if result.status not in (0, common.NO_PM2):
            raise ProcessError(f"{name} was removed, and PM2 did not answer to forget it, too", process=name)
