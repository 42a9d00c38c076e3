"""Bash scripts for an inbox: messages for a process are stored in a file, and a feeder writes them to its stdin.

In the directory of the process:

    in       all messages, one after the other
    index    `END KEY` for each message, 81 bytes: its end in `in`, and the sender's key. A message exists when its line
             does. The next sender removes what a killed sender left after the last complete line.
    fed      the number of bytes that the feeder has written to the process's stdin
    lock     held by a sender while it adds a message

The feeder sleeps until a sender wakes it. File descriptor 7 of the runner is a pipe with both ends open, which other
processes of the user reach through /proc on any file system (a FIFO needs one that supports it). When a run ends, the
unread bytes of its stdin are counted, so the next run begins with the first message that was not read completely.
"""

from __future__ import annotations

from typing import Final

from hiveyard.processes.common import COMMON

CLOSING: Final = "0" * 64
"""The key of the line that ends the inbox."""

# For the runner.
FEED: Final = r"""
record='^([0-9]{15}) ([0-9a-f]{64})$'
# BYTES: writes the content of `in` after them to stdout, until the inbox is closed or the run is over.
feed() {
  local sent=$1 end=$1 seen=0 r=() x over= rung=
  # Read-only: reading ends if the runner is killed.
  exec 7</dev/fd/7
  while [[ $rung != q ]]; do
    mapfile -t -s $seen r <"$dir/index"
    for x in "${r[@]}"; do
      [[ $x =~ $record ]] || break
      ((seen++))
      end=$((10#${BASH_REMATCH[1]}))
      [[ ${BASH_REMATCH[2]} == *[^0]* ]] || over=1
    done
    if ((end > sent)); then
      dd if="$dir/in" iflag=skip_bytes,count_bytes bs=64K skip=$sent count=$((end - sent)) status=none || break
      sent=$end
      put "$dir/fed" $sent
    fi
    [[ $over ]] && break
    read -r -n 1 -u 7 rung || break
  done
}
# After a run: sets `given` to the start of the first message that the run did not read completely, for the next run.
# The feeder continues until its pipe is empty, because only then the number of written bytes is known.
unread() {
  local left fed r=() x end
  printf q >&7
  left=$(wc -c <&6)
  exec 6<&-
  # If the feeder had ended by itself.
  while read -t 0 -u 7; do read -r -n 1 -u 7; done
  line "$dir/fed" fed
  [[ $fed ]] || return
  mapfile -t r <"$dir/index"
  for x in "${r[@]}"; do
    [[ $x =~ $record ]] || break
    end=$((10#${BASH_REMATCH[1]}))
    ((end <= fed - left)) || break
    ((end > given)) && given=$end
  done
}
"""

# ROOT NAME KEY SIZE; the message is stdin. It is read into an unlinked file before the lock is taken, so a slow or
# killed sender blocks no other sender and leaves nothing behind.
SEND: Final = (
    COMMON
    + r"""
dir=$1/$2 key=$3 size=$4 closing=
[[ -e $dir/claim ]] || exit 40
mapfile -d '' -t -n 8 f <"$dir/spec"
[[ ${f[7]} ]] || exit 67
[[ $key == *[^0]* ]] || closing=1
new=$dir/.in.$$.$RANDOM$RANDOM
exec 8>"$new" 9<"$new" || exit 63
rm -f -- "$new"
cat >&8 || exit 63
exec 8>&- 8>"$dir/lock" || exit 63
flock -w 30 8 || exit 63
mapfile -t r <"$dir/index"
n=${#r[@]} end=0 last=
record='^([0-9]{15}) ([0-9a-f]{64})$'
until ((n == 0)) || [[ ${r[n - 1]} =~ $record ]]; do ((n--)); done
if ((n)); then end=$((10#${BASH_REMATCH[1]})) last=${BASH_REMATCH[2]}; fi
printf -v all '%s\n' "${r[@]:0:n}"
[[ $all == *" $key"$'\n'* ]] && exit 70
line "$dir/claim" claim; line "$dir/exit" exit
runner=${claim%% *}
carries "$runner" "HIVEYARD_RUNNER=$f" || runner=
[[ $exit || ! $runner ]] && exit 69
[[ $last && $last != *[^0]* ]] && exit 68
truncate -s $((n * 81)) "$dir/index" && truncate -s $end "$dir/in" || exit 63
cat <&9 >>"$dir/in" || exit 63
[[ $(stat -c %s "$dir/in") == $((end + size)) ]] || exit 63
printf '%015d %s\n' $((end + size)) "$key" >>"$dir/index" || exit 63
# One pending wake-up is enough, so the pipe never fills.
{ exec 7<>"/proc/$runner/fd/7"; } 2>/dev/null && { read -t 0 -u 7 || printf . >&7; }
exit 0
"""
)
