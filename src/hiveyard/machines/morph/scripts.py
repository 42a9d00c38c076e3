"""Define the scripts that the service's exec runs in a guest as root. It has no stdin, only text, and may break off.

So each program gets a keeper in the guest. Its outputs are cut into numbered pieces that stay until the host has them,
and its stdin is assembled from numbered pieces that the host sent: a piece that a broken connection lost is requested
or sent again. Pieces travel as base64. All files are in a directory that only root can enter.

Needed in the guest: bash, coreutils, setpriv and setsid of util-linux.
"""

from __future__ import annotations

from typing import Final

GONE: Final = 44  # there is no such program: the machine was started anew
FULL: Final = 47  # the program has enough stdin for now
UNWANTED: Final = 46  # the program has closed its stdin

WINDOW: Final = 96  # pieces of an output, of at most 64 KiB each, that are kept while nobody takes them
BATCH: Final = 48  # pieces that are given at once

_TOP: Final = "/run/hiveyard-exec"

# For root: begins a command of the user for commands.
_AS_USER: Final = r"""setpriv --reuid="$uid" --regid="$uid" --clear-groups --no-new-privs --inh-caps=-all \
  --bounding-set=-all env -i HOME="$home" USER="$user" LOGNAME="$user" SHELL=/bin/bash LANG=C.UTF-8 \
  PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"""

# DIRECTORY UID HOME USER WORDS...: the words are the base64 of the argv, each word ended by a NUL, cut anywhere.
KEEP: Final = r"""
d=$1 uid=$2 home=$3 user=$4
shift 4
mkdir "$d/kept" || exit
exec 9<>"$d/idle"
cd /
rest() { read -r -t "$1" -u 9; }
pump() {
  local n=0 given=0
  while :; do
    while ((n - given >= WINDOW)); do
      rest 0.02
      [[ -d $d ]] || return
      read -r given <"$d/$1.given"
    done
    dd bs=64K count=1 status=none of="$d/$1.$n" || return
    [[ -s $d/$1.$n ]] || break
    : >"$d/$1.$n.ok"
    n=$((n + 1))
  done
  : >"$d/$1.end"
}
feed() {
  local n=0
  while :; do
    until [[ -e $d/in.$n.ok ]]; do
      [[ -d $d ]] || return
      if [[ -e $d/in.end ]]; then [[ -e $d/in.$n.ok ]] && break; return; fi
      rest 0.02
    done
    cat "$d/in.$n" || break
    rm -f "$d/in.$n" "$d/in.$n.ok"
    n=$((n + 1))
    echo $n >"$d/in.next"
  done
}
mapfile -d '' -t argv < <(printf %s "$@" | base64 -d)
pump o <"$d/out" &
pump e <"$d/err" &
{ feed; : >"$d/in.shut"; } >"$d/in" &
setsid AS_USER "${argv[@]}" <"$d/in" >"$d/out" 2>"$d/err" 9>&- &
wait $!
echo $? >"$d/status"
: >"$d/status.ok"
wait
""".replace("WINDOW", str(WINDOW)).replace("AS_USER", _AS_USER)

# KEEP ID UID HOME USER WORDS...: may be repeated.
START: Final = rf"""
keep=$1 d={_TOP}/$2
shift 2
mkdir -p -m 700 {_TOP} "$d" || exit
mkfifo "$d/idle" "$d/in" "$d/out" "$d/err" 2>/dev/null
[[ -d $d/kept ]] || {{ setsid bash -c "$keep" keep "$d" "$@" & }} </dev/null >/dev/null 2>&1
exit 0
"""

# ID O E KNOWN WAY SECONDS: what the program says from piece O of stdout and E of stderr on; the pieces before are
# removed. KNOWN has `o` and `e` for an output whose end is known, and `x` when the exit code is. WAY `live` gives what
# comes, `once` ends after the first, `o` and `e` are `once` for one output, `end` looks for the exit code alone.
# Lines: `o N M BASE64` for the pieces from N up to, not with, M; `e N M BASE64`, `o end`, `e end`, `x CODE`, and `.`
# when there is nothing to say for a while.
# The exit code is told when the outputs have ended, or a moment after the program when children of it hold them.
LOOK: Final = rf"""
d={_TOP}/$1 known=$4 way=$5 over=$((SECONDS + $6))
declare -A next=([o]=$2 [e]=$3)
[[ -d $d ]] || exit {GONE}
exec 9<>"$d/idle"
for s in o e; do
  old=()
  for ((n = next[$s] - 1; n >= 0; n--)); do
    [[ -e $d/$s.$n.ok ]] || break
    old+=("$d/$s.$n" "$d/$s.$n.ok")
  done
  [[ $way == end || $way == [oe] && $way != $s ]] && continue
  echo "${{next[$s]}}" >"$d/$s.given"
  ((${{#old[@]}})) && rm -f "${{old[@]}}"
done
# Whether somebody else still holds an output; a pump has it as its stdin. If nobody does, its end is on the way.
held() {{
  for f in /proc/[0-9]*/fd/*; do
    [[ $f != */0 && ( $f -ef $d/out || $f -ef $d/err ) ]] && return
  done
  return 1
}}
count=0 calm=0 said=
rested=$((SECONDS + 4))
while :; do
  moved=
  for s in o e; do
    [[ $way == end || $way == [oe] && $way != $s ]] && continue
    n=${{next[$s]}} new=()
    while ((count < {BATCH})) && [[ -e $d/$s.$n.ok ]]; do
      new+=("$d/$s.$n")
      n=$((n + 1)) count=$((count + 1))
    done
    if ((${{#new[@]}})); then
      printf '%s %d %d ' $s ${{next[$s]}} $n
      cat "${{new[@]}}" | base64 -w0 || exit {GONE}
      echo
      next[$s]=$n moved=1
    fi
    if [[ $known != *$s* && -e $d/$s.end && ! -e $d/$s.${{next[$s]}}.ok ]]; then
      echo "$s end"
      known+=$s moved=1
    fi
  done
  if [[ $known != *x* && -e $d/status.ok && ! $moved ]]; then
    if [[ $way == end || $known == *o* && $known == *e* ]] || {{ ((++calm % 25 == 0)) && held; }}; then
      read -r code <"$d/status"
      echo "x $code"
      known+=x moved=1
    fi
  fi
  [[ $known == *x* && ( $way == end || $known == *o* && $known == *e* ) ]] && exit 0
  ((count >= {BATCH})) && exit 0
  if [[ $moved ]]; then said=1 calm=0 rested=$((SECONDS + 4)); continue; fi
  [[ $said && $way != live && ! -e $d/status.ok ]] && exit 0
  [[ $said && $known == *x* && $way != live ]] && exit 0
  ((SECONDS >= over)) && exit 0
  ((SECONDS >= rested)) && {{ echo .; rested=$((SECONDS + 4)); }}
  [[ -d $d ]] || exit {GONE}
  read -r -t 0.02 -u 9
done
"""

# ID N LAST BASE64...: piece N of the stdin, and, with LAST, its end. Waits a while for room.
SEND: Final = rf"""
d={_TOP}/$1 n=$2 last=$3
shift 3
[[ -d $d ]] || exit {GONE}
exec 9<>"$d/idle"
for ((i = 0; ; i++)); do
  [[ -e $d/in.shut ]] && exit {UNWANTED}
  next=
  [[ -e $d/in.next ]] && read -r next <"$d/in.next"
  ((n - next < 8)) && break
  ((i > 250)) && exit {FULL}
  read -r -t 0.02 -u 9
done
if (($#)) && ((n >= next)) && [[ ! -e $d/in.$n.ok ]]; then
  printf %s "$@" | base64 -d >"$d/in.$n" || exit
  : >"$d/in.$n.ok"
fi
[[ $last ]] && : >"$d/in.end"
exit 0
"""

# ID: its stdin ends, its outputs lead nowhere, and nothing of it is kept. May be repeated.
LEAVE: Final = f"""
rm -rf "{_TOP}/$1"
"""

# UID HOME USER WORDS...: the same for a command on a terminal that root came in with, by ssh. The terminal becomes the
# user's, as at a login.
SIT: Final = r"""
uid=$1 home=$2 user=$3
shift 3
((EUID == 0)) || { echo "ssh leads to user $EUID and not to root"; exit 126; }
terminal=$(tty) && chown "$uid" "$terminal" && cd / || exit 126
exec AS_USER "$@"
""".replace("AS_USER", _AS_USER)

# UID HOME USER SESSION: once in each base image.
PREPARE: Final = r"""
uid=$1 home=$2 user=$3 session=$4
((EUID == 0)) || { echo "exec runs as user $EUID and not as root" >&2; exit 1; }
for program in setpriv setsid base64 dd mkfifo sha256sum stat tail; do
  command -v $program >/dev/null || { echo "there is no $program in the image" >&2; exit 1; }
done
for file in /etc/group /etc/passwd; do [[ -z $(tail -c 1 $file) ]] || echo >>$file; done
grep -q "^$user:" /etc/group || echo "$user:x:$uid:" >>/etc/group
grep -q "^$user:" /etc/passwd || echo "$user:x:$uid:$uid::$home:/bin/bash" >>/etc/passwd
users=$(while IFS= read -r line; do
  [[ $line =~ ^($user:[^:]*:$uid:[^:]*:[^:]*):[^:]*:(.*)$ ]] && line="${BASH_REMATCH[1]}:$home:${BASH_REMATCH[2]}"
  printf '%s\n' "$line"
done </etc/passwd) && printf '%s\n' "$users" >/etc/passwd
grep -q "^$user:[^:]*:$uid:[^:]*:[^:]*:$home:" /etc/passwd || {
  echo "the user $user of the image is not user $uid" >&2; exit 1
}
mkdir -p "$home" "$session" && chown "$uid:$uid" "$home" "$session" && chmod 755 "$home" "$session"
"""

# NAME: the machine's own name. The file is for those that read it, and for the next start.
SETTLE: Final = r"""
printf %s "$1" >/proc/sys/kernel/hostname && printf '%s\n' "$1" >/etc/hostname
"""
