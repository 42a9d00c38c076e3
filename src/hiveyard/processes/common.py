"""Shared parts of the process managers' scripts: exit codes, bash functions, reading a process's state.

They need bash 5, coreutils, setsid and flock. Arguments are positional: a script never contains a name, path or value.
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
# FILE VARIABLE: its only line, or nothing if the line is incomplete
line() { local -n got=$2; got=; [[ -f $1 ]] && { IFS= read -r -n 200 got <"$1" || got=; } 2>/dev/null; }
# FILE LINE: overwrites the file. It needs no space beyond the reserved one, and the newline is written last.
put() { { printf '%s\n' "$2" 1<>"$1"; } 2>/dev/null; }
# PID VARIABLE=VALUE: whether the process has it in its environment
carries() {
  local e=() v
  { mapfile -d '' -t e <"/proc/${1:-none}/environ"; } 2>/dev/null
  for v in "${e[@]}"; do [[ $v == "$2" ]] && return; done
  return 1
}
# PID VARIABLE: its start time in ticks since boot; nothing if the process has ended
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
# Bash sleeps without another program by reading file descriptor 5, a pipe that nobody writes to.
nap() { read -r -t "$1" -n 1 -u 5; }
"""

# Prints `NAME PID-TO-WATCH claim pid exit over base.out base.err NOW KIB TICKS`, each ended by NUL. PID-TO-WATCH is 0
# if no run is active; KIB and TICKS (memory and processor time) are set after `measure`.
STATUS: Final = r"""
declare -A kib=() used=()
# The memory of each process session in KiB, and its processor time in ticks.
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
