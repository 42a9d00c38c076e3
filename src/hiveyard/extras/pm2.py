"""Run processes that a user finds in PM2 7: `pm2 ls`, `pm2 logs hv-NAME`, `pm2 stop hv-NAME`.

PM2 starts and lists the runner, the same as that of `detached`. The runner does what PM2 does not: PM2 reports a
process that was killed by a signal as a success, gives it a stdin that never ends, shows its environment to everybody,
checks the memory of one process every 30 seconds, forgets after a while how often a process was restarted, and forgets
all processes when its daemon dies. So state, exit codes and outputs come from the runner's files, and are right even
when PM2's daemon is gone; the next start brings it back. PM2 gets a directory and nothing else, no environment and no
command. A process that is started again by `pm2 restart` has ended, and stays ended.

Each call of PM2 is a Node process of its own, with 60 MB and a quarter of a second of CPU. The first calls must not
race: each would start a daemon, and hang. So they take turns, and the one with the turn starts all that wait. In the
directory of a process, beside the files of `detached`:

    env runner  the program that PM2 runs
    lock        held by the caller that starts the process
    asked       `PID TICKS` of the caller that waits for the turn; empty when the process was handed to PM2
"""

from __future__ import annotations

from typing import Final

from hiveyard.core.context import of_processes
from hiveyard.core.errors import ProcessError
from hiveyard.core.ports import Guest
from hiveyard.processes import common
from hiveyard.processes.detached import Detached

_TIMEOUT = 400.0

# With these variables it asks no server whether it is new enough. The lock is not for PM2's daemon to hold (9>&-).
_PM2: Final = r"""
export PM2_DISCRETE_MODE=1 PM2_DISABLE_VERSION_CHECK=1 PM2_HOME=${PM2_HOME:-$HOME/.pm2}
# FD: takes the lock that it is open on, or gives up with 73 in time for the caller to hear of it.
take() { flock -w $((SECONDS < 265 ? 265 - SECONDS : 1)) -E 73 "$1"; }
turn() {
  type -P pm2 >/dev/null || exit 72
  mkdir -p -- "$PM2_HOME" && exec 9>"$PM2_HOME/hiveyard.lock" && take 9
}
tell_pm2() { timeout -k 5 120 pm2 "$@" 8>&- 9>&-; }
"""

# Starts the runner: as a process of PM2, whose own variables in the environment it does not see.
_LAUNCH: Final = (
    _PM2
    + r"""
app='exec </dev/null >/dev/null 2>&1 3>&-; mapfile -d "" -t e <"$1/env"
exec env -i "${e[@]}" bash -c "$(<"$1/runner")" hv "$1" pm2'
# VARIABLE: becomes a string of JSON
quote() {
  local -n text=$1
  local backslash=\\
  text=${text//"$backslash"/"$backslash$backslash"}
  text=${text//'"'/"$backslash\""}
  text=\"${text//$'\n'/"$backslash"n}\"
}
# DIRECTORY...: hands them to PM2, all with one call
start_apps() {
  local d apps= name command=$app out err
  quote command
  for d; do
    name=hv-${d##*/} out=$d/out err=$d/err
    quote d; quote out; quote err
    apps+="{\"name\": \"$name\", \"script\": \"$BASH\", \"args\": [\"-c\", $command, \"hv\", $d],
      \"interpreter\": \"none\", \"out_file\": $out, \"error_file\": $err, \"merge_logs\": true,
      \"autorestart\": false, \"treekill\": false, \"kill_timeout\": 10000, \"vizion\": false},"
  done
  printf '{"apps": [%s]}\n' "${apps%,}" >"$PM2_HOME/hiveyard.json" && tell_pm2 start "$PM2_HOME/hiveyard.json"
}
claimed() { local i; for ((i = 0; i < $1 * 50; i++)); do [[ -e $dir/claim ]] && return; nap 0.02; done; return 1; }
start_in_pm2() {
  local all=() asked=() w now d i
  cd / && unset HIVEYARD_RUN
  exec 8>"$dir/lock" && take 8 || return
  # A caller that was killed may have started it: a second start would end the running process.
  [[ -e $dir/asked && ! -s $dir/asked ]] && claimed 5
  [[ -e $dir/claim ]] && return
  ticks $BASHPID now
  printf '%d %s\n' $BASHPID "$now" >"$dir/asked" && turn || return
  # The caller that had the lock before may have started it already.
  [[ -s $dir/asked ]] || return 0
  for d in "$dir" "$root"/*; do
    w=()
    [[ -s $d/asked && ! -e $d/claim ]] && read -r -a w <"$d/asked"
    ticks "$w" now
    [[ $now && $now == "${w[1]}" ]] && ((${#all[@]} < 50)) || continue
    [[ $d == "$dir" ]] && ((${#all[@]})) && continue
    all+=("$d") asked+=("${w[*]}")
  done
  for d in "${all[@]}"; do : >"$d/asked"; done
  start_apps "${all[@]}" && return
  i=$?
  # The other callers try again, unless PM2 hangs: then its state is unknown.
  ((i == 124 || i == 137)) && { echo "PM2 gave no answer in 120 s"; return $i; }
  for d in "${!all[@]}"; do printf '%s\n' "${asked[d]}" >"${all[d]}/asked"; done
  return $i
}
launch() {
  local said
  ( umask 077; printf %s "$1" >"$dir/runner" &&
    env -0 -u HIVEYARD_RUN -u PM2_DISCRETE_MODE -u PM2_DISABLE_VERSION_CHECK -u PM2_HOME "HIVEYARD_RUNNER=$f" \
      ${language:+"LC_ALL=$language"} >"$dir/env" ) || exit 63
  said=$(start_in_pm2 2>&1 </dev/null)
  case $? in 0) ;; 72) exit 72 ;; 73) exit 73 ;; *) echo "PM2: ${said#*"[ERROR]"}" >&2; exit 74 ;; esac
  claimed 20
}
"""
)

# ROOT NAME: a daemon that is gone has forgotten it already. Here, too, who has the turn does it for all that wait; one
# that was started again meanwhile is left.
_FORGET: Final = (
    _PM2
    + r"""
{ pid=$(<"$PM2_HOME/pm2.pid") && kill -0 "$pid"; } 2>/dev/null || exit 0
gone=$PM2_HOME/hiveyard.gone
mkdir -p -- "$gone" && : >"$gone/$2" && turn && cd -- "$gone" || exit
[[ -e $2 ]] || exit 0
all=(*) names=()
rm -f -- "${all[@]}"
for name in "${all[@]}"; do [[ -e $1/$name/spec ]] || names+=("${name//./[.]}"); done
IFS="|"
((${#names[@]})) && tell_pm2 delete "/^hv-(${names[*]})(@[0-9]+)?\$/" >/dev/null
exit 0
"""
)


@of_processes
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
