"""Bash scripts that limit a process: the memory of a run and its children, and the disk space of its output.

A guest may not create control groups, so the memory of a run with a limit is polled: at most five times a second, and
with at most a twentieth of a processor.
"""

from __future__ import annotations

from typing import Final

# For the runner.
LIMITS: Final = r"""
# PID KIB: kills the run of that process when it and its descendants use more memory.
guard() {
  local main=$1 most=$2 first since d p s w page=4 sum begun over=0 killing= some=1
  local -A mine=() strangers=() now
  ticks "$main" first
  while read -r -a w; do [[ $w == KernelPageSize: ]] && { page=${w[1]}; break; }; done 2>/dev/null </proc/self/smaps
  line "$dir/over" over
  while ticks "$main" since; [[ $since || ($killing && $some) ]]; do
    begun=${EPOCHREALTIME/[.,]} sum=0 some=
    now=()
    for d in /proc/[0-9]*; do
      p=${d#/proc/} s=
      { read -r -d '' s <"$d/stat"; } 2>/dev/null
      set -- ${s##*) }
      [[ $1 && $1 != [ZX] ]] || continue
      if [[ $p != "$main" && $4 != "$main" && ! ${mine[$2]} && ${mine[$p]} != "${20}" ]]; then
        # It may have left the session, and its parent may be gone. What a former run left behind is older, and what
        # comes after this one is the next.
        [[ $killing || ${strangers[$p]} == "${20}" ]] && continue
        ((${20} >= ${first:-0})) && carries "$p" "HIVEYARD_PROCESS=$token" || { strangers[$p]=${20}; continue; }
      fi
      now[$p]=${20} some=1
      ((sum += ${22} * page))
    done
    mine=()
    for p in "${!now[@]}"; do mine[$p]=${now[$p]}; done
    if [[ ! $killing ]] && ((sum > most)); then
      ticks "$main" since
      [[ $since && $since == "$first" ]] || return
      killing=1
      put "$dir/over" $((${over:-0} + 1))
    fi
    [[ $killing && $some ]] && { kill -KILL "${!mine[@]}" 2>/dev/null; nap 0.02; continue; }
    s=$(((${EPOCHREALTIME/[.,]} - begun) * 20))
    ((s < 200000)) && s=200000
    printf -v s '%d.%06d' $((s / 1000000)) $((s % 1000000))
    nap "$s"
  done
}
# FILE: appends stdin to it, and drops old bytes by punching a hole, so that offsets do not change. At most a sixteenth
# of the limit is copied before the size is checked again. Without support for holes the first bytes stay.
turn() {
  local file=$dir/$1 size=0 was base=0 former part=$((limit / 16)) block=65536
  ((part < block)) && block=$part
  while :; do
    was=$size
    dd of="$file" bs=$block count=$((part / block)) oflag=append conv=notrunc status=none 2>/dev/null
    size=$(stat -L -c %s -- "$file") && ((size > was)) || return
    ((size - base > limit - part)) || continue
    former=$base
    ((base = (size - limit / 2) / 4096 * 4096))
    put "$dir/base.$1" $base
    fallocate --punch-hole --offset 0 --length $base -- "$file" 2>/dev/null && continue
    put "$dir/base.$1" $former
    return
  done
}
"""
