"""Bash scripts that the process managers `detached` and `tmux` run in a guest; each verb is one round trip.

Reading and stopping use only builtins, because a guest whose process table is full can start no other program.

A process `NAME` is a directory of that name:

    spec     what to run: fields that end in NUL (see detached.py); the runner removes the command and its variables
    claim    `PID TICKS TIME`: its runner, created with O_EXCL, so that there is only one
    pid      `PID TIME RESTARTS`: the process itself, written again at each restart
    out err  its outputs, each up to its limit, or links to the files for them
    base.*   the number of dropped bytes of `out` and `err`, which are read as NUL
    over     the number of runs that were killed for their memory
    in ...   its messages (see inbox.py)
    tap      `PID`: the program that stores the output of its terminal
    stop     one line: its end was requested, it is not restarted
    exit     `CODE TIME`: it has ended, and all its output is in the files
    room     reserved disk space for `claim`

A file of one line counts once its newline is written. These files are created together with the directory, filled with
blanks, and overwritten: the process itself often fills the disk, and its exit code must be stored all the same.
"""

from __future__ import annotations

from typing import Final

from hiveyard.processes.common import COMMON, STATUS

# ROOT [NAME [QUICK(1: without measured values)]]
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

# Starts the runner as a separate program.
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

# Starts the runner as the window of a tmux session with the process's name, on the user's own tmux server. The output
# of a program with a terminal is also written to `out`.
# Programs in the guest cannot set the user's clipboard (set-clipboard), title or anything outside of tmux; a selection
# by the user can. The server stays when its last session ends, because one that is about to end accepts no commands.
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

# Replaces a TERM that the guest does not know by the most similar one.
_NEAREST: Final = (
    _DESCRIBED
    + r"""
if ! described "$TERM"; then
  for TERM in xterm-256color xterm screen-256color screen linux vt100; do described "$TERM" && break; done
fi
export TERM
"""
)

# ARGV: a program on the user's terminal.
SHOWN: Final = _NEAREST + 'exec -- "$@"\n'

# NAME READ-ONLY(1 or empty): attaches a terminal to the window of a process.
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

# ROOT NAME RUNNER, after a LAUNCH script; the spec is stdin. A complete directory gets its name in one step. A caller
# that finds it without a runner starts one; if there are several, `claim` decides which of them continues.
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

# ROOT NAME GRACE(an integer, in seconds). Each process gets SIGINT once. At the deadline all are stopped and then
# killed, so that none can fork meanwhile. The children of a process that has ended get one second of the grace.
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
# The runner's own pipe, because bash would have to fork to make one.
if [[ -e /proc/${runner:-none}/fd/5 ]]; then exec 5<>"/proc/$runner/fd/5"; else exec 5<> <(:); fi
# The start time of each of our processes: the pid of an ended process may be reused.
declare -A known told
# PID: whether it is still the same one of our processes
ours() { local now; [[ ${known[$1]} ]] && ticks "$1" now && [[ $now == "${known[$1]}" ]]; }
# PID: whether it ignores SIGINT, as a program does that has only just been started.
deaf() {
  local name mask
  while read -r name mask; do [[ $name == SigIgn: ]] && break; done <"/proc/$1/status" && ((0x$mask & 2))
} 2>/dev/null
# SIGNAL: sends it to each process that has not got it yet. `found` is their number, `fresh` the number of new ones.
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
