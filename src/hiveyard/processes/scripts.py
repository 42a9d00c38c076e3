"""The bash that the process managers `detached` and `tmux` run in a guest; each verb is one round trip.

Reading and stopping use builtins alone, because a guest whose process table is full can start no second program.

A process `NAME` is a directory of that name:

    spec     what to run: fields that end in NUL (see detached.py)
    claim    `PID TICKS TIME`: the runner that owns it, made by O_EXCL, so that there is only ever one
    pid      `PID TIME RESTARTS`: the process itself, written anew at each restart
    out err  its outputs, each up to its limit, or links to the files that are to hold them
    base.*   how many bytes of `out` and `err` were dropped; they read as NUL
    over     how many runs were killed for their memory
    in ...   what was sent to it (see inbox.py)
    tap      `PID`: who writes down what its terminal shows
    stop     one line: somebody asked for its end, no restart
    exit     `CODE TIME`: it has ended, and all its output is in the files
    room     what `claim` will take on the disk

Files of one line count when their newline is there. They are made with the directory, full of blanks, and written over:
what fills the disk is often the process itself, and how it ended must be kept all the same.
"""

from __future__ import annotations

from typing import Final

from hiveyard.processes.common import COMMON, STATUS

# ROOT [NAME [QUICK(1: without what is measured)]]
GET: Final = (
    COMMON
    + STATUS
    + r"""
root=$1
if (($# > 1)) && [[ ! -e $root/$2/claim ]]; then exit 40; fi
[[ $3 ]] || measure
if (($# > 1)); then status "$2"; exit; fi
for d in "$root"/*/; do d=${d%/}; [[ -e $d/claim ]] && status "${d##*/}"; done
"""
)

# Starts the runner: as a program of its own.
LAUNCH: Final = r"""
launch() {
  ( cd /; exec env -u HIVEYARD_RUN "HIVEYARD_RUNNER=$f" setsid bash -c "$1" hv "$dir" </dev/null >/dev/null 2>&1 & )
}
"""

# TERM: whether programs in the guest know that terminal.
_DESCRIBED: Final = r"""
described() {
  local d
  [[ $1 == [A-Za-z0-9]* && $1 != */* ]] || return 1
  for d in "$HOME/.terminfo" /etc/terminfo /lib/terminfo /usr/lib/terminfo /usr/share/terminfo; do
    [[ -e $d/${1:0:1}/$1 ]] && return
  done
  return 1
}
"""

# Starts the runner: as the window of a tmux session of the process's name, on the user's own tmux server. What a
# program that wants a terminal shows there goes to `out` as well.
# Programs in the guest may not set a person's clipboard (set-clipboard), title or anything past tmux; a person's own
# selection does. The server stays when its last session ends: one that is about to end cannot be talked to.
LAUNCH_TMUX: Final = (
    _DESCRIBED
    + r"""
launch() {
  local term piped=() t session=${name//./"~"}
  type -P tmux >/dev/null || exit 66
  for term in tmux-256color screen-256color screen; do described "$term" && break; done
  mapfile -d '' -t t <"$dir/spec"
  [[ ${t[6]} ]] && piped=(
    ';' pipe-pane -o -t "=$session:" "exec bash -c 'echo \$\$ 1<>\"\$1/tap\"; trap \"\" XFSZ; ulimit -f \$2
cat >>\"\$1/out\"; exec cat >/dev/null' hv '$dir' $((t[3] / 1024)) 2>/dev/null"
  )
  (
    cd /
    unset HIVEYARD_RUN TMUX TMUX_PANE
    export LANG=${LANG:-C.UTF-8}
    tmux -u -f /dev/null start-server \; \
      set -s exit-empty off \; set -s escape-time 0 \; set -s set-clipboard external \; set -s focus-events on \; \
      set -s extended-keys on \; set -g default-terminal "$term" \; set -g history-limit 20000 \; set -g mouse on \; \
      set -g status off \; set -g set-titles off \; set -g bell-action none \; \
      set -gw window-size latest \; set -gw aggressive-resize on \; set -gw allow-passthrough off \; \
      set -gw remain-on-exit off \; \
      new-session -d -s "$session" -x 200 -y 50 -- env "HIVEYARD_RUNNER=$f" bash -c "$1" hv "$dir" "${piped[@]}"
  ) </dev/null >/dev/null 2>&1
}
"""
)

# Takes a TERM that the guest does not know for the nearest that it does.
_NEAREST: Final = (
    _DESCRIBED
    + r"""
if ! described "$TERM"; then
  for TERM in xterm-256color xterm screen-256color screen linux vt100; do described "$TERM" && break; done
fi
export TERM
"""
)

# ARGV: a program on a person's terminal.
SHOWN: Final = _NEAREST + 'exec -- "$@"\n'

# NAME READ-ONLY(1 or empty): what attaches a terminal to the window of a process.
ATTACH: Final = (
    _NEAREST
    + r"""
name=${1//./"~"} features=()
type -P tmux >/dev/null || { echo "there is no tmux in this machine's image" >&2; exit 66; }
export LANG=${LANG:-C.UTF-8}
case $COLORTERM in truecolor | 24bit) features=(-T 256,RGB) ;; esac
tmux has-session -t "=$name" 2>/dev/null || { echo "$1 does not run in this session any more" >&2; exit 40; }
exec tmux -u "${features[@]}" attach-session ${2:+-r} -t "=$name"
"""
)

# ROOT NAME RUNNER, after a LAUNCH script; the spec is stdin. A directory that is complete gets its name in one
# step, and whoever finds it without an owner starts a runner; runners settle by `claim` which of them it is.
START: Final = (
    COMMON
    + STATUS
    + r"""
root=$1 name=$2 dir=$1/$2
stored() { "$@" || exit 63; }
blank() { printf '%64s' '' >"$1"; }
if [[ ! -e $dir/spec ]]; then
  stored mkdir -p -- "$root"
  new=$root/.new.$$.$RANDOM$RANDOM
  stored mkdir -- "$new"
  trap 'rm -rf -- "$new"' EXIT
  stored cat >"$new/spec"
  mapfile -d '' -t f <"$new/spec"
  cwd=${f[1]} stdin=${f[2]} out=${f[10]} err=${f[11]}
  home cwd; home stdin; home out; home err
  cd -- "$cwd" 2>/dev/null || exit 60
  [[ -f $stdin && -r $stdin || $stdin == /dev/null ]] || exit 62
  for ((i = 12; i < ${#f[@]}; i++)); do
    [[ ${f[i]} == *=* ]] || break
    [[ ${f[i]} == PATH=* ]] && PATH=${f[i]#*=}
  done
  p=$(type -P -- "${f[i]}") && [[ ! -d $p && -x $p ]] || exit 61
  for n in out err; do
    if [[ ${!n} ]]; then { : >>"${!n}"; } 2>/dev/null && stored ln -s -- "${!n}" "$new/$n" || exit 71
    else { : >"$new/$n"; } || exit 63; fi
  done
  for n in pid exit stop room ${f[6]:+tap} ${f[7]:+fed} ${f[8]:+over} ${f[9]:+base.out base.err}; do
    stored blank "$new/$n"
  done
  if [[ ${f[7]} ]]; then : >"$new/in" && : >"$new/index" || exit 63; fi
  cd /
  mv -T -- "$new" "$dir" 2>/dev/null || { [[ -e $dir/spec ]] || exit 63; rm -rf -- "$new"; }
  # From here on the process may leave no room for one more program.
  trap - EXIT
fi
exec 5<> <(:)
for ((i = 0; i < 1000; i++)); do
  line "$dir/pid" pid; line "$dir/exit" exit
  [[ $pid || $exit ]] && { status "$name"; exit; }
  if ((i % 100 == 0)) && [[ ! -e $dir/claim ]]; then
    [[ -s $dir/room ]] || stored blank "$dir/room"
    mapfile -d '' -t -n 1 f <"$dir/spec"
    launch "$3"
  fi
  nap 0.02
done
exit 64
"""
)

# ROOT NAME GRACE(seconds, whole). SIGINT to all, which each hears once; at the deadline all are stopped before they are
# killed, so that nothing forks away. A process that is gone leaves its children one second of the grace.
STOP: Final = (
    COMMON
    + STATUS
    + r"""
root=$1 name=$2 grace=$3 dir=$1/$2
[[ -e $dir/claim ]] || exit 40
for d in "$dir" "$dir"@*; do put "$d/stop" asked; done
f=()
mapfile -d '' -t -n 7 f <"$dir/spec"
line "$dir/claim" claim; line "$dir/pid" pid
runner=${claim%% *} main=${pid%% *}
carries "$runner" "HIVEYARD_RUNNER=$f" || runner=
[[ $runner ]] || carries "$main" "HIVEYARD_PROCESS=$f" || main=
session=$main
[[ ${f[6]} ]] && session=$runner
# The runner's own pipe: to make one, bash would have to fork.
if [[ -e /proc/${runner:-none}/fd/5 ]]; then exec 5<>"/proc/$runner/fd/5"; else exec 5<> <(:); fi
# Of each that is ours, when it started: a number may be given to a stranger when its process has ended.
declare -A known told
# PID: whether that is one of ours, and still the same
ours() { local now; [[ ${known[$1]} ]] && ticks "$1" now && [[ $now == "${known[$1]}" ]]; }
# PID: whether it ignores SIGINT. A program that has only just been started does, until it begins.
deaf() {
  local name mask
  while read -r name mask; do [[ $name == SigIgn: ]] && break; done <"/proc/$1/status" && ((0x$mask & 2))
} 2>/dev/null
# SIGNAL: send it to each that had none of it yet. `found`: how many there are; `fresh`: how many were new.
each() {
  local signal=$1 d p s
  local -A seen=()
  found=0 fresh=0 headless=1
  for d in /proc/[0-9]*; do
    p=${d#/proc/} s=
    [[ $p == $$ || $p == "$runner" ]] && continue
    { read -r -d '' s <"$d/stat"; } 2>/dev/null
    set -- ${s##*) }
    [[ $1 && $1 != [ZX] ]] || continue
    (($7 & 0x200000)) && continue # the kernel's own: a machine has more of these than of ours
    if [[ ${known[$p]} != "${20}" ]]; then
      [[ $session && $4 == "$session" ]] || ours "$2" || carries "$p" "HIVEYARD_PROCESS=$f" || continue
      known[$p]=${20}
    fi
    seen[$p]=${20}
    [[ $p == "$main" ]] && headless=
    ((found++))
    [[ ${told[$signal$p]} == "${20}" ]] && continue
    [[ $signal == INT ]] && deaf "$p" || told[$signal$p]=${20}
    ((fresh++))
    kill -"$signal" "$p" 2>/dev/null
  done
  known=()
  for p in "${!seen[@]}"; do known[$p]=${seen[$p]}; done
}
settled() {
  ((found)) && return 1
  line "$dir/exit" exit
  [[ $exit || ! $runner || ! -e /proc/$runner ]]
}
now=${EPOCHREALTIME/[.,]}
deadline=$((now + grace * 1000000)) last=$((now + grace * 1000000 + 5000000)) hurried=
while each INT; ! settled; do
  now=${EPOCHREALTIME/[.,]}
  if [[ $headless && ! $hurried ]]; then
    hurried=1
    ((now + 1000000 < deadline)) && deadline=$((now + 1000000))
  fi
  ((found ? now >= deadline : now >= last)) && break
  nap 0.05
done
for ((i = 0; i < 500; i++)); do
  each STOP
  ((fresh)) && continue
  settled && break
  ((found)) && kill -KILL "${!known[@]}" 2>/dev/null
  nap 0.02
done
((found == 0)) || exit 65
for d in "$dir" "$dir"@*; do status "${d##*/}"; done
"""
)

# ROOT NAME FILE LINES
LOGS: Final = (
    COMMON
    + r"""
file=$1/$2/$3 most=1048576
[[ -e $1/$2/claim ]] || exit 40
line "$1/$2/base.$3" base
if [[ $base ]]; then
  kept=$(($(stat -L -c %s -- "$file") - base))
  ((kept < most)) && most=$kept
fi
tail -c $most -- "$file" | tail -n "$4"
"""
)

# ROOT NAME
REMOVE: Final = (
    COMMON
    + STATUS
    + r"""
root=$1 dir=$1/$2
for d in "$dir" "$dir"@*; do
  mapfile -d '' -t s < <(status "${d##*/}")
  [[ ${s[1]} == 0 ]] || exit 65
done
rm -rf -- "$dir" "$dir"@* && exit 0
exit 63
"""
)
