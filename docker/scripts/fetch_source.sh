#!/usr/bin/env bash
# Put a source of nodes.lock into a folder: fetch_source.sh NAME DEST [URL] [COMMIT]
# URL and COMMIT, unless empty, replace those of nodes.lock beside this script. URL may also be a
# folder or a tarball that holds that commit. DEST/.commit says which one it was.
set -euo pipefail

name=$1 dest=$2
lock=$(dirname -- "$(realpath -- "$0")")/nodes.lock
read -r locked_url locked_commit < <(awk -v name="$name" '$1 == name { print $2, $3 }' "$lock")
url=${3:-$locked_url} commit=${4:-$locked_commit}

mkdir -p -- "$dest"
if [[ -f $url ]]; then
  tar --extract --file="$url" --directory="$dest" --strip-components=1
elif [[ -d $url && ! -e $url/.git ]]; then
  cp -a -- "$url/." "$dest"
else
  git init --quiet "$dest"
  git -C "$dest" fetch --quiet --depth=1 "$url" "$commit"
  git -C "$dest" -c advice.detachedHead=false checkout --quiet "$commit"
  rm -rf -- "$dest/.git"
fi
echo "$commit" >"$dest/.commit"
echo "$name $commit from $url"
