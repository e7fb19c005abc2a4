#!/usr/bin/env bash
# How the sync to the bucket goes: last upload, pending, failed, seconds behind. Fails when it does.
# Takes what `python -m ltx_worker.sync --status` takes, such as the folder.
set -euo pipefail

python="$(dirname "$(realpath "$0")")/../../.venv/bin/python"
[[ -x "$python" ]] || python=python3
exec "$python" -m ltx_worker.sync --status "$@"
