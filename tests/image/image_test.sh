#!/usr/bin/env bash
# Build the image without GitHub, a GPU or weights, with the LTX-2 nodes and without, and use both:
# the check of the nodes, pip check, a job on tiny weights through the handler, and the end on SIGTERM.
#
# Needs root, buildah, debootstrap and, in ~/.cache/ltx-worker, ComfyUI with ComfyUI-LTXVideo and the
# tiny models (make test-comfyui makes them). Read here: IMAGE_TEST_OPTIONS, further options of
# buildah, such as -v for pip's configuration; IMAGE_TEST_TORCH, the versions of torch, torchvision
# and torchaudio, where the first is a CPU build; IMAGE_TEST_STORAGE, a folder that keeps buildah's
# layers for the next time.
set -euo pipefail

repository=$(cd -- "$(dirname -- "$0")/../.." && pwd)
cache=$HOME/.cache/ltx-worker
work=$(mktemp -d /var/tmp/ltx-image-test.XXXXXX)
token=$(basename -- "$work")
read -ra torch <<<"${IMAGE_TEST_TORCH:-2.10.0 0.25.0 2.10.0}"
read -ra options <<<"${IMAGE_TEST_OPTIONS:-}"
api=18000 comfy=18188
export STORAGE_DRIVER=${STORAGE_DRIVER:-vfs} BUILDAH_ISOLATION=chroot

storage=${IMAGE_TEST_STORAGE:-$work/storage}

b() { buildah --root "$storage" --runroot "$work/run" "$@"; }

fail() {
  echo "image test: $*" >&2
  exit 1
}

clean_up() {
  local process
  for process in $(processes); do kill -KILL "$process" || true; done
  b rm --all >/dev/null || true
  rm -rf -- "$work"
}

# What runs in a container of this test: it has the token in its environment.
processes() { grep -lsz "^IMAGE_TEST=$token$" /proc/[0-9]*/environ | cut -d / -f 3 || true; }

make_base() {
  local root=$cache/image-base
  if [[ ! -e $root/.done ]]; then
    rm -rf -- "$root"
    debootstrap --variant=minbase --include=ca-certificates,python3 bookworm "$root" >"$work/base.log"
    rm -f -- "$root"/var/cache/apt/archives/*.deb && touch "$root/.done"
  fi
  local container
  container=$(b from scratch)
  b add -q "$container" "$root" / >/dev/null
  b add -q "$container" "$repository/tests/image/cpu_torch/sitecustomize.py" /etc/python3.11/ >/dev/null
  b commit -q --format docker "$container" ltx-base >/dev/null
  b rm "$container" >/dev/null
}

# The repository as it would be cloned, and the sources: one as a folder, one as a tarball.
make_context() {
  mkdir -p "$work/context/vendor/ComfyUI"
  git -C "$repository" ls-files -z --cached --others --exclude-standard |
    tar -C "$repository" --null --files-from=- --ignore-failed-read -cf - 2>/dev/null |
    tar -C "$work/context" -xf -
  tar -C "$cache/ComfyUI" --exclude=./.venv --exclude=./input --exclude=./output --exclude=./temp \
    --exclude=./user --exclude=./custom_nodes/ComfyUI-LTXVideo --exclude=__pycache__ -cf - . |
    tar -C "$work/context/vendor/ComfyUI" -xf -
  tar -C "$cache/ComfyUI/custom_nodes" --exclude=__pycache__ --sort=name -cf - ComfyUI-LTXVideo |
    gzip -n >"$work/context/vendor/ltxvideo.tar.gz"
}

build() {
  local name=$1 nodes=$2
  echo "== building $name"
  b build --layers --format docker "${options[@]}" --tag "$name" \
    --build-arg BASE_IMAGE=localhost/ltx-base --build-arg ENABLE_LTX2_CUSTOM_NODES="$nodes" \
    --build-arg COMFYUI_URL=/fetch/ComfyUI --build-arg LTXVIDEO_URL=/fetch/ltxvideo.tar.gz \
    --build-arg TORCH_VERSION="${torch[0]}" --build-arg TORCHVISION_VERSION="${torch[1]}" \
    --build-arg TORCHAUDIO_VERSION="${torch[2]}" "$work/context" >"$work/$name.log" 2>&1 ||
    { tail -n 60 "$work/$name.log" && fail "$name cannot be built"; }
  grep -E '^(✅|[0-9a-f]{40}$|selected variant)' "$work/$name.log" || true
}

within() {
  local container=$1
  shift
  b run --env IMAGE_TEST="$token" "$container" -- "$@"
}

check_contents() {
  local container=$1
  within "$container" /opt/comfyui-env/bin/pip check
  within "$container" /opt/worker-env/bin/pip check
  within "$container" which git-lfs hf aria2c wget
}

# One job of a quality, through RunPod's API; prints what was made.
generate() {
  curl -sS --max-time 120 "http://127.0.0.1:$api/runsync" \
    -H 'Content-Type: application/json' -d '{"input": {"prompt": "A lighthouse",
    "quality": "'"$1"'", "width": 256, "height": 128, "num_frames": 9, "seed": 1}}' |
    python3 -c '
import base64, json, sys
answer = json.load(sys.stdin)
if answer.get("status") != "COMPLETED":
    sys.exit(json.dumps(answer)[:2000])
made = answer["output"]["metadata"]
print(made["engine"], made["quality"], made["width"], made["height"], made["num_frames"],
      len(base64.b64decode(answer["output"]["video"])), "bytes")'
}

# Start a container in a mode, have a job of each quality made, and end it.
use() {
  local container=$1 mode=$2 qualities=$3 entry tini started
  entry=$(b inspect --type container --format '{{.OCIv1.Config.Entrypoint}}' "$container")
  read -ra entry <<<"${entry//[\[\]]/}"
  started=$(date +%s.%N)
  b run --env IMAGE_TEST="$token" --env TINI_SUBREAPER=1 --env LTX2_VARIANT=fp8 --env OMP_NUM_THREADS=1 \
    --env LTX2_COMFY_PORT=$comfy --env LTX2_COMFY_ARGS=--use-pytorch-cross-attention \
    -v "$work/volume:/runpod-volume" \
    -v "$repository/tests/comfyui/custom_nodes/ltx_tiny_gemma:/opt/ComfyUI/custom_nodes/ltx_tiny_gemma" \
    "$container" -- "${entry[@]}" "$mode" --rp_api_port $api >"$work/worker.log" 2>&1 &
  until curl -sf -o /dev/null "http://127.0.0.1:$api/openapi.json"; do
    kill -0 $! 2>/dev/null || { cat "$work/worker.log" && fail "the worker ended at its start"; }
    sleep 0.5
  done
  echo "$mode: ready after $(since "$started") s"
  for quality in $qualities; do
    generate "$quality" || { cat "$work/worker.log" && fail "a job of quality $quality failed"; }
  done
  [[ $mode != pod ]] || curl -sf "http://127.0.0.2:$comfy/" | grep -o '<title>.*</title>'
  tini=$(for process in $(processes); do
    [[ $(<"/proc/$process/comm") != tini ]] || echo "$process"
  done)
  echo "$(processes | wc -l) processes; SIGTERM to tini"
  started=$(date +%s.%N)
  kill -TERM "$tini"
  while [[ -n $(processes) ]]; do
    (($(date +%s) - ${started%.*} <= 10)) || fail "still there 10 s after SIGTERM: $(processes)"
    sleep 0.1
  done
  echo "all ended after $(since "$started") s"
  wait $! || echo "exit status $?"
}

since() { echo "$1 $(date +%s.%N)" | awk '{ printf "%.1f", $2 - $1 }'; }

# Each layer of an image with its size, unpacked, and the instruction that made it.
print_layers() {
  b push -q --disable-compression "$1" "dir:$work/layers"
  python3 - "$work/layers" <<'PYTHON'
import json, pathlib, re, sys

folder = pathlib.Path(sys.argv[1])
manifest = json.loads((folder / "manifest.json").read_text())
config = json.loads((folder / manifest["config"]["digest"].removeprefix("sha256:")).read_text())
made = [row["created_by"] for row in config["history"] if not row.get("empty_layer")]
sizes = [(folder / row["digest"].removeprefix("sha256:")).stat().st_size for row in manifest["layers"]]
for size, words in zip(sizes, made, strict=True):
    words = re.sub(r"^(\|.*?)?/bin/sh -c (#\(nop\) )?", "", " ".join(words.split()))
    print(f"{size / 1e6:9.1f} MB  {words[:110]}")
print(f"{sum(sizes) / 1e6:9.1f} MB  in all")
PYTHON
  rm -rf -- "$work/layers"
}

main() {
  trap clean_up EXIT
  make_base
  make_context
  mkdir "$work/volume" && cp -a "$cache/tiny-models" "$work/volume/models"
  local container
  build with-nodes true
  container=$(b from with-nodes)
  within "$container" /opt/comfyui-env/bin/python /app/docker/scripts/check_nodes.py \
    /opt/ComfyUI/custom_nodes/ComfyUI-LTXVideo | grep '✅ ComfyUI-LTXVideo [0-9a-f]\{40\}'
  check_contents "$container"
  use "$container" local "fast quality"
  mkdir -p "$repository/out/image"
  within "$container" /opt/comfyui-env/bin/pip freeze >"$repository/out/image/constraints.txt"
  b rm "$container" >/dev/null
  print_layers with-nodes

  build without-nodes false
  container=$(b from without-nodes)
  check_contents "$container"
  ! within "$container" sh -c 'find / -xdev -iname "*ltxvideo*" | grep .' 2>/dev/null || fail "some of it is there"
  use "$container" pod fast
  echo "image test: passed"
}

main "$@"
