"""Bash scripts that run in a guest. Each is one round trip.

They use builtins where possible, because in an emulated machine every fork takes milliseconds. Arguments are
positional, so no path or value is ever part of a script. They report the result by exit code, never by text. They need
bash and coreutils in the guest.
"""

from __future__ import annotations

from typing import Final

# Exit codes of the file scripts. Other errors are FAILED, and the tool's message explains them.
NOT_FOUND: Final = 40
IS_DIRECTORY: Final = 41
NOT_DIRECTORY: Final = 42
DENIED: Final = 43
UNVERIFIED: Final = 44
FAILED: Final = 45
NOT_REGULAR: Final = 46

# TOKEN CWD N NAME=VALUE{N} PROGRAM ARGUMENT...
# The program replaces the shell, so its exit code and signals are its own. A first line on stderr, `TOKEN PID`, shows
# where the command's output begins and which process to kill. `TOKEN cwd`, or a last line `TOKEN exec`, reports that it
# never started. The token is in the environment of the command, so that the processes it starts can be found.
RUN: Final = r"""
shopt -s execfail
__t=$1 __n=$3
cd -- "$2" 2>/dev/null || { printf '%s cwd\n' "$__t" >&2; exit 125; }
shift 3
while ((__n-- > 0)); do export "$1"; shift; done
export HIVEYARD_RUN=$__t
printf '%s %d\n' "$__t" $$ >&2
exec -- "$@"
printf '\n%s exec\n' "$__t" >&2
exit 126
"""

# TOKEN CWD N SIZE
# The same for a command that is too long for some ways into a guest. Stdin begins with SIZE bytes: NAME=VALUE{N}
# PROGRAM ARGUMENT... as quoted words of bash, then TOKEN, so that a part of them is not taken for all.
RUN_LONG: Final = r"""
shopt -s execfail
__t=$1 __n=$3
cd -- "$2" 2>/dev/null || { printf '%s cwd\n' "$__t" >&2; exit 125; }
printf '%s %d\n' "$__t" $$ >&2
__w=$(dd bs=64K count="$4" iflag=fullblock,count_bytes status=none)
[[ $__w == *" $__t" ]] || { printf 'not all of it arrived\n%s exec\n' "$__t" >&2; exit 126; }
eval "set -- ${__w% *}"
unset __w
while ((__n-- > 0)); do export "$1"; shift; done
export HIVEYARD_RUN=$__t
exec -- "$@"
printf '\n%s exec\n' "$__t" >&2
exit 126
"""

# TOKEN CWD N NAME=VALUE{N} PROGRAM ARGUMENT...
# The same for a program on a terminal: errors are printed there for the user.
TERMINAL: Final = r"""
shopt -s execfail
__t=$1 __n=$3
cd -- "$2" || exit 125
shift 3
while ((__n-- > 0)); do export "$1"; shift; done
export HIVEYARD_RUN=$__t
exec -- "$@"
exit 126
"""

# TOKEN
# Sends SIGHUP to all processes with TOKEN, as the kernel does when a terminal is closed.
HANG_UP: Final = r"""
for d in /proc/[0-9]*; do
  e=()
  { mapfile -d '' -t e <"$d/environ"; } 2>/dev/null
  [[ " ${e[*]} " == *" HIVEYARD_RUN=$1 "* ]] && kill -HUP "${d#/proc/}" 2>/dev/null
done
exit 0
"""

# TOKEN PID
# Kills the process PID, its session, its process group, all processes with TOKEN in their environment, and all children
# of these. All of them are stopped first, so that none can fork before the kill. Exit 1: some are left.
KILL: Final = r"""
t=$1 first=$2
shopt -s nullglob
declare -A doomed
scan() {
  local d p s e; found=0 fresh=0
  for d in /proc/[0-9]*; do
    p=${d#/proc/} s=
    [[ $p == $$ ]] && continue
    { read -r -d '' s <"$d/stat"; } 2>/dev/null
    s=${s##*) }
    [[ $s && $s != [ZX]\ * ]] || continue
    set -- $s
    if [[ ! ${doomed[$p]} ]]; then
      if [[ $p != "$first" && $3 != "$first" && $4 != "$first" && ! ${doomed[$2]} ]]; then
        e=()
        { mapfile -d '' -t e <"$d/environ"; } 2>/dev/null
        [[ " ${e[*]} " == *" HIVEYARD_RUN=$t "* ]] || continue
      fi
      doomed[$p]=1 fresh=1
      kill -STOP "$p" 2>/dev/null
    fi
    found=1
  done
}
for ((i = 0; i < 200; i++)); do
  scan
  ((fresh)) && continue
  ((found)) || exit 0
  kill -KILL "${!doomed[@]}" 2>/dev/null
  read -r -t 0.02 -n 1
done
exit 1
"""

# Shared by the file scripts. `why PATH` ends the script with the reason why PATH cannot be reached.
_FILES: Final = r"""
export LC_ALL=C
why() {
  local d=$1
  while d=${d%/*}; [[ $d && ! -e $d && ! -L $d ]]; do :; done
  d=${d:-/}
  [[ -e $d ]] || exit 40
  [[ -d $d ]] || exit 42
  [[ -x $d ]] || exit 43
  exit 40
}
"""

# PATH OFFSET LIMIT -> at most LIMIT bytes
READ: Final = (
    _FILES
    + r"""
[[ -d $1 ]] && exit 41
[[ -e $1 ]] || why "$1"
[[ -f $1 ]] || exit 46
[[ -r $1 ]] || exit 43
exec dd if="$1" bs=1M iflag=skip_bytes,count_bytes,fullblock skip="$2" count="$3" status=none
"""
)

# PATH MODE; the content is stdin
WRITE: Final = (
    _FILES
    + r"""
d=${1%/*} d=${d:-/}
[[ -d $1 ]] && exit 41
[[ -d $d ]] || why "$1"
cat >"$1" && chmod -- "$2" "$1" && exit 0
if [[ -e $1 && ! -w $1 || ! -e $1 && ! -w $d ]]; then exit 43; fi
exit 45
"""
)

# PATH
EXISTS: Final = (
    _FILES
    + r"""
[[ -e $1 ]] || why "$1"
"""
)

# {KIND PATH MODE PARENTS SIZE SHA256 TOKEN OWNER}...; the contents are stdin, one after the other.
# Does steps in their order until one fails, and prints its number. The last one needs no subshell: its exit code is
# that of the script, and its number is not printed.
BATCH: Final = (
    _FILES
    + r"""
put() {
  d=${1%/*} d=${d:-/}
  [[ -d $1 && ! -L $1 ]] && exit 41
  if [[ ! -d $d ]]; then
    [[ $3 ]] && mkdir -p -- "$d" 2>/dev/null
    [[ -d $d ]] || why "$1"
  fi
  [[ -w $d && -x $d ]] || exit 43
  t=${d%/}/.hv-$6
  trap 'rm -f -- "$t"' EXIT
  # The umask makes the mode where it can: one fork less.
  umask "$(printf %o $((0777 & ~0$2)))" 2>/dev/null
  dd of="$t" bs=1M count="$4" iflag=fullblock,count_bytes conv=fsync status=none || exit 45
  if [[ $7 ]] && ! m=$(chown -- "$7" "$t" 2>&1); then
    printf '%s\n' "$m" >&2
    [[ $m == *" invalid "* ]] && exit 45 # no such user or group; what the kernel says begins with a capital
    exit 43
  fi
  ((0$2 & ~0666)) && { chmod -- "$2" "$t" || exit 45; }
  [[ $(stat -c '%s %a' -- "$t") == "$4 $2" ]] || exit 44
  [[ $(sha256sum <"$t") == "$5 "* ]] || exit 44
  mv -fT -- "$t" "$1" || exit 45
  trap - EXIT
}
make() {
  [[ -d $1 ]] && return
  [[ -e $1 || -L $1 ]] && exit 42
  mkdir ${3:+-p} -m "$2" -- "$1" && return
  [[ -d $1 ]] && return
  d=$1
  while d=${d%/*}; [[ $d && ! -e $d && ! -L $d ]]; do :; done
  d=${d:-/}
  [[ -d $d ]] || exit 42
  [[ -w $d && -x $d ]] || exit 43
  [[ -d ${1%/*}/ ]] || exit 40
  exit 45
}
mode() {
  [[ -e $1 || -L $1 ]] || why "$1"
  [[ -L $1 ]] && exit 46
  chmod -- "$2" "$1" || exit 45
}
take() {
  [[ -d $1 && ! -L $1 ]] && exit 41
  rm -f -- "$1" && return
  d=${1%/*}
  [[ -w ${d:-/} && -x ${d:-/} ]] || exit 43
  exit 45
}
for ((n = 0; $# > 8; n++)); do
  ("$1" "${@:2:7}") || { s=$?; printf '%d\n' "$n"; exit "$s"; }
  shift 8
done
"$1" "${@:2:7}"
"""
)

# PATH; trees that their owner made read-only (caches of package managers) are removed, too.
REMOVE_TREE: Final = (
    _FILES
    + r"""
rm -rf -- "$1" 2>/dev/null && exit 0
[[ -L $1 ]] || chmod -R u+rwX -- "$1" 2>/dev/null
rm -rf -- "$1" && exit 0
d=${1%/*}
[[ -w ${d:-/} && -x ${d:-/} ]] || exit 43
exit 45
"""
)

# PATH FIRST-BYTE(from 1) PID(or empty). Nothing is sent to stdin: its end shows that the reader is gone. That is the
# only signal that every provider passes on.
FOLLOW: Final = (
    _FILES
    + r"""
while :; do
  over=; [[ $3 && ! -e /proc/$3 ]] && over=1
  [[ -e $1 ]] && break
  [[ $over ]] && exit 0
  read -r -t 0.05 -n 1; (($? > 128)) || exit 0
done
[[ -d $1 ]] && exit 41
[[ -f $1 ]] || exit 46
[[ -r $1 ]] || exit 43
exec 3<&0 </dev/null
{ read -r -n 1 -u 3; kill $$; } >/dev/null 2>&1 &
exec tail -c "+$2" -s 0.05 ${3:+--pid="$3"} -f -- "$1" 2>/dev/null 3<&-
"""
)
