"""Bash for an inbox: messages for a process are stored in a file, and a feeder beside the process writes them to its
stdin.

In the directory of the process:

    in       all messages, one after the other
    index    `END KEY` for each, 81 bytes: its end in `in`, and the sender's key. A message exists when its line does.
             The next sender cuts off what a killed sender left behind the last complete line.
    fed      how many bytes the feeder has written to the process's stdin
    lock     held by the sender that adds

The feeder sleeps until a sender wakes it: file descriptor 7 of the runner is a pipe that it holds open at both ends,
and /proc leads to it from any other process of the user, on any file system (a FIFO needs one that has them). When a
run ends, the bytes that it left in its stdin are counted, so the next run begins with the first message that was not
read completely.
"""

from __future__ import annotations

from typing import Final

from hiveyard.processes.common import COMMON

CLOSING: Final = "0" * 64
"""The key of the line that ends the inbox."""

# For the runner.
FEED: Final = r"""
record='^([0-9]{15}) ([0-9a-f]{64})$'
# BYTES: writes what comes after them in `in` to stdout, until the inbox is closed or the run is over.
feed() {
  local sent=$1 end=$1 seen=0 r=() x over= rung=
  # For reading alone: where the runner is killed, that ends.
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
# After a run: `given` is where the next one begins, at the first message that this one did not read to its last byte.
# The feeder goes on until its pipe is empty, since only then it is known how much was put in.
unread() {
  local left fed r=() x end
  printf q >&7
  left=$(wc -c <&6)
  exec 6<&-
  # For a feeder that had ended by itself.
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

# ROOT NAME KEY SIZE; the message is stdin. It is read before the lock is taken, into a file that nobody else can see:
# a sender that is slow or is killed holds nobody up and leaves nothing.
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
# A ring that nobody heard yet is enough: the pipe never fills.
{ exec 7<>"/proc/$runner/fd/7"; } 2>/dev/null && { read -t 0 -u 7 || printf . >&7; }
exit 0
"""
)
