"""Parts that all scripts of process managers share: exit codes, bash functions, reading a process's state.

It needs bash 5, coreutils, setsid and flock. Arguments are positional: no name, path or value is ever part of a script.
"""

from __future__ import annotations

from typing import Final

NO_SUCH: Final = 40
NO_DIRECTORY: Final = 60
NO_PROGRAM: Final = 61
NO_STDIN: Final = 62
NOT_STORED: Final = 63
NOT_CLAIMED: Final = 64
STILL_RUNS: Final = 65
NO_TMUX: Final = 66
NO_INBOX: Final = 67
CLOSED: Final = 68
ENDED: Final = 69
KNOWN: Final = 70
NO_LOG: Final = 71
NO_PM2: Final = 72
PM2_BUSY: Final = 73

COMMON: Final = r"""
language=${LC_ALL-}
LC_ALL=C
shopt -s nullglob
# FILE VARIABLE: its one line, or nothing when it is not whole
line() { local -n got=$2; got=; [[ -f $1 ]] && { IFS= read -r -n 200 got <"$1" || got=; } 2>/dev/null; }
# FILE LINE: writes it over what is there. It takes no room that was not kept for it, and its newline comes last.
put() { { printf '%s\n' "$2" 1<>"$1"; } 2>/dev/null; }
# PID VARIABLE=VALUE: whether that process carries it in its environment
carries() {
  local e=() v
  { mapfile -d '' -t e <"/proc/${1:-none}/environ"; } 2>/dev/null
  for v in "${e[@]}"; do [[ $v == "$2" ]] && return; done
  return 1
}
# PID VARIABLE: when it started, in ticks since boot; nothing for a process that is gone
ticks() {
  local -n at=$2
  local s=
  at=
  { read -r -d '' s <"/proc/${1:-none}/stat"; } 2>/dev/null
  set -- ${s##*) }
  [[ $1 && $1 != [ZX] ]] && at=${20}
}
# VARIABLE: `~` at its start becomes the home directory
home() { local -n path=$1; [[ $path == "~" || $path == "~/"* ]] && path=$HOME${path#"~"}; }
# Bash sleeps without a second program by reading what never comes: a pipe that nobody writes to, as file descriptor 5.
nap() { read -r -t "$1" -n 1 -u 5; }
"""

# Prints `NAME PID-TO-WATCH claim pid exit over base.out base.err NOW KIB TICKS`, each ended by NUL. PID-TO-WATCH is 0
# when nothing runs any more; KIB and TICKS (of its memory and its processor time) are there after `measure`.
STATUS: Final = r"""
declare -A kib=() used=()
# What each session has in memory, in KiB, and has used of processors, in ticks.
measure() {
  local d s page=4 w
  while read -r -a w; do [[ $w == KernelPageSize: ]] && { page=${w[1]}; break; }; done 2>/dev/null </proc/self/smaps
  for d in /proc/[0-9]*; do
    s=
    { read -r -d '' s <"$d/stat"; } 2>/dev/null
    set -- ${s##*) }
    [[ $1 && $1 != [ZX] ]] || continue
    kib[$4]=$((${kib[$4]:-0} + ${22} * page))
    used[$4]=$((${used[$4]:-0} + ${12} + ${13} + ${14} + ${15}))
  done
}
status() {
  local dir=$root/$1 claim pid exit over out err f=() c now watch=0 session
  line "$dir/claim" claim; line "$dir/pid" pid; line "$dir/exit" exit; line "$dir/over" over
  line "$dir/base.out" out; line "$dir/base.err" err
  [[ -f $dir/spec ]] && { mapfile -d '' -t -n 7 f <"$dir/spec"; } 2>/dev/null
  if [[ $claim && ! $exit ]]; then
    read -r -a c <<<"$claim"
    ticks "${c[0]}" now
    if [[ $now && $now == "${c[1]}" ]] && carries "${c[0]}" "HIVEYARD_RUNNER=$f"; then watch=${c[0]}
    elif carries "${pid%% *}" "HIVEYARD_PROCESS=$f"; then watch=${pid%% *}
    fi
    # It may have ended while we looked.
    line "$dir/exit" exit; [[ $exit ]] && watch=0
  fi
  session=none
  if [[ $watch != 0 ]]; then session=${pid%% *}; [[ ${f[6]} ]] && session=${claim%% *}; fi
  printf '%s\0' "$1" "$watch" "$claim" "$pid" "$exit" "$over" "$out" "$err" "$EPOCHREALTIME" \
    "${kib[${session:-none}]}" "${used[${session:-none}]}"
}
"""
