"""Bash scripts that work on the repository inside a guest, each in one round trip.

They need bash, coreutils, findutils, grep, tar and git. A hostile repository harms only its own guest; hooks are off
so that a broken hook loses no work. In an emulated guest each start of a program takes about 50 ms, so the scripts
start as few as possible.
"""

from __future__ import annotations

from typing import Final

BROKEN: Final = 50
NO_TREE: Final = 51
NO_SUBMODULE: Final = 52
INLINE: Final = 1 << 20
"""Largest bundle, in bytes, that comes with the answer; a larger one is read from its file."""
SHOWN: Final = 10
"""Number of large files whose names come with the answer."""

_GIT: Final = r"""
export LC_ALL=C GIT_CEILING_DIRECTORIES=$root GIT_LFS_SKIP_SMUDGE=1 GIT_TERMINAL_PROMPT=0 GIT_EDITOR=true
git() {
  # No fsync: the host gets the data soon.
  command git -c core.fsync=none -c core.hooksPath=/dev/null -c core.fsmonitor=false -c commit.gpgSign=false \
    -c gc.auto=0 -c submodule.recurse=false -c advice.detachedHead=false -c advice.addEmbeddedRepo=false \
    -c safe.directory='*' "$@"
}
"""

# ROOT PATH MODULE BASE NAME EMAIL MESSAGE INLINE SHOWN LARGEST NOTES ASIDE LINK...
# Commits the uncommitted work in ROOT/PATH, writes ROOT/.result.bundle and prints `HEAD SIZE LARGE NOTES.`; SIZE 0
# means that there is no work. NOTES are letters, see collecting.py. LARGE is the number of uncommitted files of more
# than LARGEST bytes, which are left out; the first SHOWN of them follow as `BYTES/NAME`, each with a NUL behind it.
# Then comes the bundle if it has at most INLINE bytes; its file is removed.
# MODULE is the place of a submodule's own repository below ROOT. Its HEAD is moved to the result, so that the
# repository around it records that commit.
# With ASIDE the repository does not change, because an agent may be at work in it: HEAD, index and branches stay as
# they are; each LINK is `COMMIT PATH` of a submodule, for the repository around it.
COLLECT: Final = (
    "root=$1\n"
    + _GIT
    + r"""
repo=$root/$2 module=$3 base=$4 name=$5 email=$6 message=$7 inline=$8 shown=$9 largest=${10}
notes=${11} aside=${12} links=("${@:13}")
export GIT_AUTHOR_NAME=$name GIT_AUTHOR_EMAIL=$email GIT_COMMITTER_NAME=$name GIT_COMMITTER_EMAIL=$email
bundle=$root/.result.bundle own=$repo/.git
[[ -d $repo && ! -L $repo ]] || exit 51
cd -- "$repo" || exit 51
if [[ $module && ! -d .git ]]; then
  if [[ ! -f .git ]]; then
    # Was the submodule removed, or is only its .git file missing?
    [[ $(ls -A) && $(git --literal-pathspecs -C "${repo%/*}" ls-files --stage -- "${repo##*/}") == 160000* ]] && exit 50
    exit 52
  fi
  own=$root/$module
fi
[[ -d $own && ! -L $own ]] || exit 50
# These two override core.bare and core.worktree of the repository.
export GIT_DIR=$own GIT_WORK_TREE=$repo
index=$own/index
if [[ $aside ]]; then
  index=$root/.aside.$$.index
  trap 'rm -f -- "$index" "$index.lock"' EXIT
  # Git compares its time with that of files, to find those that changed in the same moment.
  [[ ! -e $own/index ]] || cp -p -- "$own/index" "$index" || exit 50
  export GIT_INDEX_FILE=$index GIT_OPTIONAL_LOCKS=0
else
  # The agent has ended, so nobody holds these locks.
  [[ -f $own/HEAD ]] && read -r -n 1024 ref <"$own/HEAD"
  for lock in "$own/index.lock" "$own/HEAD.lock" "$own/${ref#ref: }.lock"; do
    [[ ! -e $lock ]] || rm -f -- "$lock"
  done
fi
# REF COMMIT
move() { [[ $aside ]] || git update-ref "$1" "$2"; }
mapfile -t ids < <(git cat-file --batch-check='%(objectname)' 2>/dev/null \
  <<<"$base^{commit}"$'\n'"$base^{tree}"$'\nHEAD^{commit}\nHEAD^{tree}')
is_id() { [[ $1 =~ ^[0-9a-f]{40,64}$ ]]; }
is_id "${ids[0]}" && is_id "${ids[1]}" || exit 50
head=$base has=${ids[1]}
if is_id "${ids[2]}"; then
  is_id "${ids[3]}" || exit 50
  head=${ids[2]} has=${ids[3]}
else
  # A branch without a commit (--orphan) continues from the base.
  git rev-parse --verify --quiet HEAD >/dev/null || move HEAD "$base" || exit 50
fi
began=$head
for state in rebase-merge rebase-apply MERGE_HEAD CHERRY_PICK_HEAD REVERT_HEAD; do
  [[ -e $own/$state ]] && { notes+=m; break; }
done
is_submodule() {
  local entry
  while IFS= read -r -d '' entry; do [[ ${entry#*$'\n'} == "$1" ]] && return; done < <(
    git config --file .gitmodules -z --get-regexp '^submodule\..*\.path$' 2>/dev/null)
  return 1
}
# Repositories inside the work tree: those that were added as a commit id, and untracked ones.
find_links() {
  local entry path
  while IFS= read -r -d '' entry && IFS= read -r -d '' path; do
    set -- $entry
    [[ $2 == 160000 && -e $path/.git ]] && ! is_submodule "$path" && nested+=("$path")
  done < <(git diff-index --cached --raw -z --no-renames "$base" 2>/dev/null)
}
find_unknown() {
  local path
  while IFS= read -r -d '' path; do
    [[ $path == */ ]] && nested+=("${path%/}")
  done < <(git ls-files --others --exclude-standard -z 2>/dev/null)
}
# Files above LARGEST, by their path with a slash before it (an empty key is an error).
declare -A large
find_large() {
  local entry
  while IFS= read -r -d '' entry; do
    ((${entry%%/*} > largest)) && large["/${entry#*/}"]=${entry%%/*}
  done < <(xargs -0 -r stat --printf '%s/%n\0' -- 2>/dev/null | grep -zE "^[0-9]{${#largest},}/")
}
list_nested() {
  local file
  (
    unset GIT_DIR GIT_WORK_TREE GIT_INDEX_FILE
    git -C "$1" ls-files -z --cached --others --exclude-standard
  ) 2>/dev/null | while IFS= read -r -d '' file; do [[ $file == */ ]] || printf '%s/%s\0' "$1" "$file"; done
}
# Add the files of a nested repository one by one: once it contains a tracked file, git adds the rest of them, too.
add_nested() {
  local file
  find_large < <(list_nested "$1")
  list_nested "$1" | while IFS= read -r -d '' file; do [[ ${large["/$file"]} ]] || printf '%s\0' "$file"; done |
    git update-index --add --remove -z --stdin 2>/dev/null
}
# Git reads a sparse file of a terabyte to its end. So each file that it would read is measured first, and the large
# ones are excluded. These commands read no content; `git status` and `git ls-files --modified` may.
add() {
  find_large < <(
    git diff-files -z --name-only --ignore-submodules=all 2>/dev/null
    git ls-files -z --others --exclude-standard 2>/dev/null
  )
  local keys=("${!large[@]}")
  if ((${#keys[@]})); then
    printf '%s\0' . "${keys[@]/#\//:(exclude,literal)}" |
      git add --all --ignore-errors --pathspec-from-file=- --pathspec-file-nul 2>/dev/null
  else
    git add --all --ignore-errors -- . 2>/dev/null
  fi
}
# Give the index the entries of HEAD for large files that were staged but not committed. Fails if there are none.
unstage_large() {
  local entry path i ids=() paths=() before=() sizes=() back=()
  while IFS= read -r -d '' entry && IFS= read -r -d '' path; do
    set -- $entry
    [[ $2 != 000000 && $2 != 160000 ]] && ids+=("$4") paths+=("$path") before+=("${1#:} $3")
  done < <(git diff-index --cached --raw --no-abbrev -z --no-renames "$head" 2>/dev/null)
  ((${#ids[@]})) || return 1
  mapfile -t sizes < <(printf '%s\n' "${ids[@]}" | git cat-file --batch-check='%(objectsize)' 2>/dev/null)
  for i in "${!ids[@]}"; do
    [[ ${sizes[i]} =~ ^[0-9]+$ ]] && ((sizes[i] > largest)) || continue
    large["/${paths[i]}"]=${sizes[i]}
    back+=("${before[i]}"$'\t'"${paths[i]}")
  done
  ((${#back[@]})) && printf '%s\0' "${back[@]}" | git update-index -z --index-info
}
add
added=$? nested=()
find_links
if ((added || ${#nested[@]})); then
  for ((round = 0; round < 8; round++)); do
    nested=()
    find_unknown
    find_links
    ((${#nested[@]})) || break
    [[ $notes == *n* ]] || notes+=n
    for path in "${nested[@]}"; do
      if [[ ! $aside ]]; then
        mv -T -- "$path/.git" "$root/.nested.$$.$RANDOM$RANDOM" 2>/dev/null || rm -rf -- "$path/.git"
      fi
      git rm --quiet --force --cached -- "$path" 2>/dev/null
      [[ ! $aside ]] || add_nested "$path"
    done
  done
  add
  added=$?
fi
case $added in
  0) ;;
  1) notes+=u ;;
  *) rm -f -- "$index"; git read-tree "$head" || exit 50; add; (($? < 2)) || exit 50 ;;
esac
for link in "${links[@]}"; do
  [[ $(git --literal-pathspecs ls-files --stage -- "${link#* }") == 160000* ]] || continue
  git update-index --cacheinfo "160000,${link/ /,}" || exit 50
done
# The same work gets the same commit id, because the date is that of an existing commit.
dated() {
  GIT_COMMITTER_DATE=$(git show -s --format=%cI "$1") GIT_AUTHOR_DATE=$GIT_COMMITTER_DATE
  export GIT_COMMITTER_DATE GIT_AUTHOR_DATE
}
tree=$(git write-tree) || exit 50
if [[ $tree != "$has" ]] && unstage_large; then tree=$(git write-tree) || exit 50; fi
if [[ $tree != "$has" ]]; then
  [[ ! $aside ]] || dated "$head"
  head=$(git commit-tree "$tree" -p "$head" -m "$message") && move HEAD "$head" || exit 50
  has=$tree notes+=l
elif [[ $head == "$base" && ! $module ]]; then
  # HEAD has no work; look for a branch that has.
  other=$(git for-each-ref --sort=-committerdate --no-merged="$base" --format='%(objectname) %(tree)' --count=1 \
    refs/heads)
  [[ $other ]] && head=${other% *} has=${other#* } began=$head notes+=b
fi
if [[ $began != "$base" ]] && ! git merge-base --is-ancestor "$base" "$head"; then
  notes+=h
  if [[ $has == "${ids[1]}" ]]; then head=$base
  else
    dated "$head"
    head=$(git commit-tree "$has" -p "$base" -m "$message") || exit 50
  fi
fi
[[ ! $module ]] || move HEAD "$head" || exit 50
[[ ! -e $bundle && ! -L $bundle ]] || rm -rf -- "$bundle"
size=0
if [[ $head != "$base" ]]; then
  # The format of `git bundle create`, which would start more programs.
  format='# v2 git bundle'
  [[ ${#head} == 40 ]] || format=$'# v3 git bundle\n@object-format=sha256'
  {
    printf '%s\n-%s\n%s refs/hiveyard/result\n\n' "$format" "$base" "$head"
    git pack-objects --revs --stdout --thin --delta-base-offset --quiet <<<"$head"$'\n'"^$base"
  } >"$bundle" || exit 50
  size=$(stat -c %s -- "$bundle")
fi
printf '%s %s %s %s.\n' "$head" "$size" "${#large[@]}" "$notes"
for path in "${!large[@]}"; do
  ((shown-- > 0)) || break
  printf '%s%s\0' "${large["$path"]}" "$path"
done
if ((size && size <= inline)); then
  cat -- "$bundle"
  rm -f -- "$bundle"
fi
"""
)

# ROOT PATH BASE BRANCH FORMAT
# Replaces an unusable repository by a new one for its work tree ROOT/PATH, from ROOT/origin.bundle. The repositories of
# its submodules stay.
REBUILD: Final = (
    "root=$1\n"
    + _GIT
    + r"""
set -e
repo=$root/$2 base=$3 branch=$4 format=$5 old=$root/.broken.git.$$.$RANDOM$RANDOM
[[ -d $repo && ! -L $repo ]] || exit 51
cd -- "$repo"
if [[ -e .git || -L .git ]]; then mv -T -- .git "$old"; fi
git init --quiet --template= --object-format="$format" --initial-branch="$branch" "$repo"
[[ ! -d $old/modules || -L $old/modules ]] || mv -T -- "$old/modules" .git/modules
[[ ! -e $root/origin.shallow ]] || cp -- "$root/origin.shallow" .git/shallow
git fetch --quiet --no-write-fetch-head "$root/origin.bundle" 'refs/hiveyard/base:refs/hiveyard/base'
git update-ref HEAD "$base"
git read-tree "$base"
rm -f -- "$root/origin.bundle" "$root/origin.shallow"
"""
)
