# Sourced by scripts that bring a tool of the tests into the cache.

# NAME VERSION PROGRAM MAKE...: prints the directory of a tool. Where PROGRAM is not in it, `MAKE... DIRECTORY` fills a
# new one first: who is killed here leaves no half of it, and of several at once one does it.
cached() {
  local name=$1 version=$2 program=$3 cache=${HIVEYARD_CACHE:-${HIVEYARD_HOME:+$HIVEYARD_HOME/cache}} place half
  shift 3
  place=${cache:-${XDG_CACHE_HOME:-$HOME/.cache}/hiveyard}/test-$name/$version
  if [[ ! -x $place/$program ]]; then
    mkdir -p "${place%/*}"
    exec 9>"$place.lock"
    flock 9
    if [[ ! -x $place/$program ]]; then
      rm -rf "$place".new-*
      half=$(mktemp -d "$place.new-XXXXXX")
      "$@" "$half" >&2
      chmod 755 "$half"
      rm -rf "$place"
      mv "$half" "$place"
    fi
    exec 9>&-
  fi
  echo "$place"
}
