#!/usr/bin/env bash
# Start the worker in its container: start.sh [serverless | pod | local] [options of handler.py]
#
#   serverless  takes jobs from RunPod; the default where RunPod has an endpoint for this container
#   pod         ComfyUI's page on 8188, RunPod's job API on 8000, outputs synced to the bucket;
#               the default on a pod. One of them ending ends the container.
#   local       the job API on 8000; the default elsewhere
#
# Read here: ENABLE_LTX2 (false fetches no weights), LTX2_MODELS (which, as download_models.sh names
# them; default ltx2), RUNPOD_SECRET_hf_token and RUNPOD_SECRET_r2_* (stand for HF_TOKEN and R2_*),
# R2_SYNC_LOG (the sync's log). All else is the worker's: the handler starts ComfyUI and chooses its
# flags. What fails ends this with a last line that says why.
set -uo pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)

fail() {
  printf 'start.sh: %s\n' "$*" >&2
  exit 1
}

default_mode() {
  if [[ -n ${RUNPOD_WEBHOOK_GET_JOB:-}${RUNPOD_ENDPOINT_ID:-} ]]; then
    echo serverless
  elif [[ -n ${RUNPOD_POD_ID:-} ]]; then
    echo pod
  else
    echo local
  fi
}

map_secrets() {
  local secret name
  for secret in "${!RUNPOD_SECRET_@}"; do
    name=${secret#RUNPOD_SECRET_}
    name=${name^^}
    case $name in
      HF_TOKEN | R2_*) [[ -n ${!name:-} ]] || export "$name=${!secret}" ;;
    esac
  done
}

# Fewer and steadier pages than glibc's allocator holds when models come and go.
use_tcmalloc() {
  local libraries=(/usr/lib/*/libtcmalloc_minimal.so.4)
  if [[ -e ${libraries[0]} ]]; then export LD_PRELOAD=${libraries[0]}; fi
}

uses_own_comfyui() { [[ ${LTX2_ENGINE:-comfyui} == comfyui && -z ${COMFY_URL:-} ]]; }

# From the image, the volume, RunPod's cached models or the Hub, in this order.
have_weights() {
  local baked=${COMFYUI_DIR:-}/models/ltx2_variant.txt names folder folders
  if [[ -f $baked ]]; then export LTX2_VARIANT="${LTX2_VARIANT:-$(<"$baked")}"; fi
  case ${ENABLE_LTX2:-true} in
    true | 1)
      read -ra names <<<"${LTX2_MODELS:-ltx2}"
      "$root/download_models.sh" "${names[@]}" || exit
      ;;
    false | 0) ;;
    *) fail "ENABLE_LTX2 is $ENABLE_LTX2; set it to true or false" ;;
  esac
  folders="\"${COMFYUI_DIR:-}/models\""
  # The same as in extra_model_paths.yaml.
  for folder in /runpod-volume/models /workspace/models; do
    [[ ! -d $folder ]] || folders+=", \"$folder\""
  done
  export COMFY_MODELS_DIRS=${COMFY_MODELS_DIRS:-[$folders]}
}

# On a volume the worker's compiled kernels outlast the container: a start is 10 s shorter then.
keep_kernels() {
  local volume
  for volume in /runpod-volume /workspace; do
    if [[ -w $volume ]]; then
      export TRITON_CACHE_DIR=${TRITON_CACHE_DIR:-$volume/ltx-worker/triton}
    fi
  done
}

serve_api() {
  exec python3 "$root/handler.py" --rp_serve_api --rp_api_host 0.0.0.0 --rp_api_port 8000 "$@"
}

run_pod() {
  local here=/workspace/ComfyUI gone status
  local -A names
  export COMFY_INPUT_DIR=${COMFY_INPUT_DIR:-$here/input}
  export COMFY_OUTPUT_DIR=${COMFY_OUTPUT_DIR:-$here/output}
  # RunPod's proxy comes from outside.
  local reachable="--host 0.0.0.0"
  if uses_own_comfyui; then
    reachable="--listen 0.0.0.0 --user-directory $here/user"
    mkdir -p -- "$here/user" || fail "$here/user cannot be made; mount a volume at /workspace"
  fi
  export LTX2_COMFY_ARGS="$reachable ${LTX2_COMFY_ARGS:-}"
  serve_api "$@" &
  names[$!]="The handler, which owns ComfyUI,"
  python3 -m ltx_worker.sync --log "${R2_SYNC_LOG:-/var/log/r2_sync.log}" &
  names[$!]="The sync to the bucket"
  # shellcheck disable=SC2064 # the process ids as they are now
  trap "trap '' TERM INT; kill -TERM ${!names[*]} 2>/dev/null; wait; exit 0" TERM INT
  wait -n -p gone "${!names[@]}"
  status=$?
  trap '' TERM INT
  kill -TERM "${!names[@]}" 2>/dev/null
  wait
  fail "${names[$gone]} ended with status $status, and the pod with it; its last line above says why"
}

main() {
  local mode
  if [[ ${1:-} == [a-z]* ]]; then mode=$1 && shift; else mode=$(default_mode); fi
  map_secrets
  use_tcmalloc
  keep_kernels
  echo "start.sh: $mode; ComfyUI $(cat "${COMFYUI_DIR:-}/.commit" 2>/dev/null || echo unknown)"
  case $mode in
    serverless | pod | local) if uses_own_comfyui; then have_weights; fi ;;
    *) fail "there is no mode $mode; use serverless, pod or local" ;;
  esac
  case $mode in
    serverless) exec python3 "$root/handler.py" "$@" ;;
    pod) run_pod "$@" ;;
    local) serve_api "$@" ;;
  esac
}

main "$@"
