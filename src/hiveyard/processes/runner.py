"""The bash script of the runner, which runs one process in the guest while nobody is connected.

See scripts.py for the files.
"""

from __future__ import annotations

from typing import Final

from hiveyard.processes.common import COMMON
from hiveyard.processes.inbox import FEED
from hiveyard.processes.limits import LIMITS

# DIRECTORY [pm2]. Runs in a process session of its own, and ends after its process and all its output.
# A process with a terminal shares the runner's terminal, session and group, so that keys such as Ctrl-C reach it.
# If the runner has a terminal and the process needs none, the terminal shows its outputs.
RUNNER: Final = (
    COMMON
    + FEED
    + LIMITS
    + r"""
dir=$1
trap '' HUP INT QUIT TSTP TTIN TTOU
# PM2 stops the runner by a signal to this process only.
[[ $2 ]] && trap 'asked=1; put "$dir/stop" asked; kill -INT -- "-$main" 2>/dev/null' INT
mapfile -d '' -t f <"$dir/spec" || exit 1
ticks $$ now
: >"$dir/room"
set -C; { : >"$dir/claim"; } 2>/dev/null || exit 0; set +C
put "$dir/claim" "$$ $now $EPOCHREALTIME" || { rm -f -- "$dir/claim"; exit 1; }
token=${f[0]} cwd=${f[1]} stdin=${f[2]} limit=${f[3]} left=${f[4]} uptime=${f[5]}
terminal=${f[6]} inbox=${f[7]} memory=${f[8]} rotate=${f[9]}
home cwd; home stdin
# The variables may be secret. Only this runner needs them.
printf '%s\0' "${f[@]:0:12}" >"$dir/started" && mv -f -- "$dir/started" "$dir/spec"
[[ ${f[10]} ]] && : >"$dir/out"
[[ ${f[11]} ]] && : >"$dir/err"
# Signal handling is inherited from the programs that started the machine; they often ignore SIGINT.
own=(-u HIVEYARD_RUNNER --default-signal=INT,QUIT,PIPE,HUP,TERM,CHLD,TSTP,TTIN,TTOU ${language:+"LC_ALL=$language"})
# Everybody can read the arguments of env(1), so variables are exported, except those that bash sets itself.
exports=("HIVEYARD_PROCESS=$token") kept=()
for ((n = 12; n < ${#f[@]}; n++)); do
  case ${f[n]} in
    BASH*=* | COMP_WORDBREAKS=* | DIRSTACK=* | EPOCH*=* | EUID=* | FUNCNAME=* | GROUPS=* | HISTCMD=* | LC_ALL=* | \
      LINENO=* | PPID=* | RANDOM=* | SECONDS=* | SHELLOPTS=* | SHLVL=* | SRANDOM=* | UID=* | _=*) kept+=("${f[n]}") ;;
    *=*) exports+=("${f[n]}") ;;
    *) break ;;
  esac
done
command=("$(type -P env)" "${own[@]}" "${kept[@]}" "${f[@]:n}")
# cat writes its input at once, up to the limit on the size of its files. The rest is dropped, so that the process never
# waits and never gets an error.
keep() {
  [[ $rotate ]] && turn "$1"
  ( trap '' XFSZ; ulimit -f $((limit / 1024)); exec cat >>"$dir/$1" 2>/dev/null )
  exec cat >/dev/null
}
stopped() { local s; line "$dir/stop" s; [[ $s ]]; }
if [[ $terminal ]]; then
  exec 3>&1 4>&2 6<&0
else
  command=("$(type -P setsid)" "${command[@]}")
  [[ -t 1 ]] && { tail --pid=$$ -q -n +1 -s 0.1 -f -- "$dir/out" "$dir/err" 2>/dev/null & }
  exec 3> >(keep out); a=$!
  exec 4> >(exec 3>&-; keep err); b=$!
  exec 6</dev/null
fi
exec 5<> <(:)
[[ $inbox ]] && exec 7<> <(:)
given=0
again=$left restarts=0 code=130
until stopped; do
  [[ $inbox ]] && exec 6< <(feed $given 2>/dev/null 3>&- 4>&- 5>&-)
  began=$EPOCHREALTIME
  {
    # If memory runs out, the kernel kills the process before the runner or a program that stops it.
    echo 500 >/proc/self/oom_score_adj
    if [[ $terminal$inbox ]]; then exec <&6; else exec <"$stdin"; fi
    cd -- "$cwd" && set -- "${command[@]}" && export -- "${exports[@]}" && exec "$@" >&3 3>&- 4>&- 5>&- 6>&- 7>&-
  } 2>&4 &
  main=$!
  put "$dir/pid" "$main $began $restarts"
  [[ $memory ]] && { guard $main "$memory" 3>&- 4>&- 6>&- 7>&- & }
  # A wait that the trap broke off tells of the signal; of a process that has ended bash tells as often as it is asked.
  while asked=; wait $main; code=$?; [[ $asked ]]; do :; done
  [[ $inbox ]] && unread
  ran=$((${EPOCHREALTIME/[.,]} - ${began/[.,]}))
  ((ran >= uptime)) && again=$left
  ((again-- > 0)) || break
  ((restarts++))
done
# Returns whether all its output is on disk: no writer is left.
written() {
  local tap
  if [[ $terminal ]]; then line "$dir/tap" tap; [[ $tap && ! -e /proc/$tap ]]
  else ! kill -0 $a 2>/dev/null && ! kill -0 $b 2>/dev/null; fi
}
exec 3>&- 4>&-
# When no process has the terminal open any more, tmux shows the rest of its output and closes it.
patience=300
[[ $terminal ]] && patience=500 && exec 6<&- </dev/null >/dev/null 2>&1
# Remaining children may keep its outputs open for ever; the content of the pipes is on disk long before that.
for ((i = 0; i < patience; i++)); do written && break; nap 0.01; done
put "$dir/exit" "$code $EPOCHREALTIME"
"""
)
