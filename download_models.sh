#!/usr/bin/env bash
# Fetch LTX-2's model files, each once: what lies whole in the image, on the network volume or in
# RunPod's cached-model folder is used there.
#
#   download_models.sh [--dry-run] [--to DIR] [--volume DIR] NAME...
#
# NAME is a family (ltx2, ltx2.3: what quality fast takes), a group (pro, camera-loras, detailer,
# upscalers, controls) or a role of the catalogue (control-depth). Files go to DIR (in it lie ComfyUI's
# model folders), else to the volume, else to COMFYUI_DIR/models. LTX2_VARIANT, else the GPU, chooses
# fp8 or fp16; ltx2_variant.txt beside the files says which. --dry-run says what would be done.
#
# Sourced, it gives download_asset URL DEST: Hugging Face's own client first, then aria2c, then wget.
# A download that was broken off is kept as DEST.part, which aria2c and wget continue; the client by
# itself continues only after a lost connection. HF_TOKEN (or RUNPOD_SECRET_hf_token) reaches the Hub
# alone, and no command line. WORKER_PYTHON is the interpreter of the worker's environment.
#
# Exit status: 0 all files are there; 2 unknown name or setting; 3 no GPU that serves; 4 a gated model
# and no HF_TOKEN, or one that may not read it; 5 no such file; 6 not enough disk; 7 the network or
# the tools failed; 8 wrong size or checksum (the file was removed); 9 no hf, aria2c or wget.

_ltx_python() {
  local root python
  root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd) || return
  for python in "${WORKER_PYTHON:-}" "$root/.venv/bin/python" python3; do
    if [[ -n $python ]] && command -v "$python" >/dev/null; then break; fi
  done
  PYTHONPATH="$root/src${PYTHONPATH:+:$PYTHONPATH}" "$python" -m ltx_worker.downloads "$@"
}

_ltx_error() { printf 'error: %s\n' "$*" >&2; }
_ltx_bytes_of() { stat -L -c %s -- "$1" 2>/dev/null || echo 0; }
_ltx_continues() { command -v aria2c || command -v wget; } >/dev/null

# The tools write $part from $location, hf from the Hub's $url. An address may be signed: neither it
# nor the token is on a command line.
_ltx_by_hf() {
  local path=${url#"${HF_ENDPOINT:-https://huggingface.co}"/}
  [[ $path =~ ^([^/]+/[^/]+)/resolve/([^/]+)/([^?]+)$ ]] || return 100
  HF_HUB_DISABLE_PROGRESS_BARS=1 HF_HUB_DISABLE_TELEMETRY=1 HF_HUB_DISABLE_UPDATE_CHECK=1 \
    HF_XET_HIGH_PERFORMANCE=${HF_XET_HIGH_PERFORMANCE:-1} hf download --quiet \
    --local-dir "$part.hf" --revision "${BASH_REMATCH[2]}" "${BASH_REMATCH[1]}" "${BASH_REMATCH[3]}" &&
    mv -f -- "$part.hf/${BASH_REMATCH[3]}" "$part"
}

_ltx_by_aria2c() {
  {
    printf '%s\n out=%s\n' "$location" "$(basename -- "$part")"
    [[ $takes_token == - ]] || printf ' header=Authorization: Bearer %s\n' "$HF_TOKEN"
  } | aria2c --no-conf --input-file=- --dir="$(dirname -- "$part")" --continue=true --quiet=true \
    --log=- --log-level=error --max-connection-per-server=16 --split=16 --file-allocation=none \
    --auto-save-interval=1 --disk-cache=0 --auto-file-renaming=false --max-tries=5 --retry-wait=1 --timeout=60
}

_ltx_by_wget() {
  # What has aria2c's control file may have holes.
  if [[ -e $part.aria2 ]]; then rm -f -- "$part" "$part.aria2"; fi
  [[ $takes_token == - ]] || printf 'header = Authorization: Bearer %s\n' "$HF_TOKEN" >"$config"
  wget --config="$config" --input-file=- --output-document="$part" --continue --no-verbose \
    --tries=5 --waitretry=1 --retry-connrefused --timeout=60 <<<"$location"
}

# What an interrupted client has left is continued. It and aria2c write in several places at once:
# without a control file, only what has no holes is the beginning of a file.
_ltx_adopt() {
  local left && left=$(find "$part.hf" -name '*.incomplete' -size +0 2>/dev/null | head -n 1)
  if [[ -n $left && ! -e $part ]] && _ltx_continues; then mv -- "$left" "$part"; fi
  rm -rf -- "$part.hf"
  if [[ -e $part && ! -e $part.aria2 ]] &&
    (($(stat -c '%b * %B' -- "$part") < $(_ltx_bytes_of "$part"))); then rm -f -- "$part"; fi
}

_ltx_fetch() {
  local tool status=9
  for tool in hf aria2c wget; do
    command -v "$tool" >/dev/null || continue
    # The client would begin again.
    if [[ $tool == hf && -e $part ]] && _ltx_continues; then continue; fi
    "_ltx_by_$tool" >"$log" 2>&1 && return 0
    if [[ $? == 100 ]]; then continue; fi
    if grep -qiE 'no space left|quota exceeded|not enough (disk )?space' "$log"; then
      _ltx_error "not enough disk for $name" && return 6
    fi
    _ltx_error "$tool could not fetch $name" && status=7
  done
  if ((status == 9)); then _ltx_error "$name needs hf (huggingface_hub), aria2c or wget"; fi
  return $status
}

_ltx_verify() {
  local found && found=$(_ltx_bytes_of "$part")
  if [[ $bytes != - && $bytes != "$found" ]]; then
    _ltx_error "$name has the wrong size: $found bytes instead of $bytes"
  elif [[ $sha256 != - && $sha256 != "$(sha256sum -- "$part" | cut -d ' ' -f 1)" ]]; then
    _ltx_error "$name has the wrong checksum"
  else
    return 0
  fi
  rm -rf -- "$part" "$part".* && return 8
}

_ltx_watch() {
  while sleep 15 >/dev/null 2>&1 9>&-; do
    echo "  $name: $(du -cs -BMB -- "$part"* 2>/dev/null | tail -n 1 | cut -f 1) of $bytes bytes"
  done
}

# One download at a time in a folder; `lock` widens that to all folders of a run.
download_asset() (
  if (($# != 2)); then _ltx_error 'usage: download_asset URL DEST' && exit 2; fi
  url=$1 dest=$2 part=$2.part name=$(basename -- "$2") folder=$(dirname -- "$2")
  export HF_TOKEN=${HF_TOKEN:-${RUNPOD_SECRET_hf_token:-}} LC_ALL=C
  [[ -n $HF_TOKEN ]] || unset HF_TOKEN
  { mkdir -p -- "$folder" && exec 9>>"${lock:-$folder/.download.lock}"; } || exit 6
  flock --nonblock 9 || { echo 'waiting for another download to end' && flock 9; } || exit 7
  facts=$(_ltx_python look "$url" "$dest") || exit
  IFS=$'\t' read -r bytes sha256 location takes_token <<<"$facts"
  if [[ -f $dest && ($bytes == - || $bytes == $(_ltx_bytes_of "$dest")) ]]; then
    echo "file already exists: $dest" && exit 0
  fi
  _ltx_adopt
  echo "starting download of $name, $bytes bytes$([[ ! -e $part ]] || echo ', continued')"
  log=$(mktemp) config=$(mktemp)
  _ltx_watch &
  watcher=$!
  trap 'rm -f -- "$log" "$config"; kill "$watcher" 2>/dev/null' EXIT
  [[ $bytes == $(_ltx_bytes_of "$part") && ! -e $part.aria2 ]] || _ltx_fetch || exit
  _ltx_verify || exit
  mv -f -- "$part" "$dest" && rm -rf -- "$part".* && echo "done: $dest"
)

_ltx_main() {
  local variant target lock url dest
  todo=$(mktemp) && trap 'rm -f -- "$todo"' EXIT
  _ltx_python plan --tsv "$todo" "$@" || return
  [[ -s $todo ]] || return 0 # a dry run
  IFS=$'\t' read -r variant target <"$todo" && mkdir -p -- "$target" || return 6
  lock=$target/.download.lock
  while IFS=$'\t' read -r -u 3 url dest _; do
    case $url in
      /*) mkdir -p -- "$(dirname -- "$dest")" && ln -sfn -- "$url" "$dest" || return 6 ;;
      *) download_asset "$url" "$dest" || return ;;
    esac
  done 3< <(tail -n +2 "$todo")
  echo "$variant" >"$target/ltx2_variant.txt"
}

[[ ${BASH_SOURCE[0]} == "$0" ]] || return 0
set -uo pipefail
_ltx_main "$@"
