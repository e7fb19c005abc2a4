# syntax=docker/dockerfile:1
#
# ComfyUI, its LTX-2 nodes and the worker; the weights too, with BAKE_LTX2=true.
#
#   docker build -t ltx-worker .
#   docker build -t ltx-worker:baked --build-arg BAKE_LTX2=true --secret id=hf_token,env=HF_TOKEN .
#
# Without GitHub: put a folder or a tarball of each source into vendor/ and give it by name, as in
# --build-arg COMFYUI_URL=/fetch/ComfyUI.tar.gz --build-arg LTXVIDEO_URL=/fetch/ComfyUI-LTXVideo.

# Debian or Ubuntu; PYTHON is the package and the command of an interpreter from 3.11 on.
ARG BASE_IMAGE=debian:bookworm-slim
ARG PYTHON=python3

# ---- what runs at the end needs of the system ------------------------------------------------
FROM ${BASE_IMAGE} AS base
ARG PYTHON
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
ENV LANG=C.UTF-8 \
    PYTHONUNBUFFERED=1
# Triton builds the launchers of the worker's kernels with gcc and Python's headers as they are used.
# hadolint ignore=DL3008 # the base image's release decides; its security updates are wanted
RUN apt-get update \
 && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \
      aria2 ca-certificates gcc git git-lfs libc6-dev libtcmalloc-minimal4 \
      "${PYTHON}" "${PYTHON}-dev" "${PYTHON}-venv" tini wget \
 && apt-get clean && rm -rf /var/lib/apt/lists/*

# ---- sources, at the commits of nodes.lock ----------------------------------------------------
FROM base AS sources
ARG COMFYUI_URL
ARG COMFYUI_COMMIT
ARG LTXVIDEO_URL
ARG LTXVIDEO_COMMIT
ARG ENABLE_LTX2_CUSTOM_NODES=true
COPY docker/nodes.lock docker/scripts/fetch_source.sh vendor* /fetch/
RUN /fetch/fetch_source.sh ComfyUI /sources/ComfyUI "${COMFYUI_URL:-}" "${COMFYUI_COMMIT:-}" \
 && if [ "${ENABLE_LTX2_CUSTOM_NODES}" = true ]; then \
      /fetch/fetch_source.sh ComfyUI-LTXVideo /sources/ComfyUI/custom_nodes/ComfyUI-LTXVideo \
        "${LTXVIDEO_URL:-}" "${LTXVIDEO_COMMIT:-}"; \
    fi

# ---- ComfyUI and its environment: a layer each for torch, the other packages and the sources ---
FROM base AS comfyui
ARG PYTHON
# 2.10.0 is the last torch whose own wheels are built for CUDA 12.8, which drivers from 570 on run;
# from 2.11.0 on they are for CUDA 13.0 and need 580. TORCH_INDEX names another index for them.
ARG TORCH_VERSION=2.10.0
ARG TORCHVISION_VERSION=0.25.0
ARG TORCHAUDIO_VERSION=2.10.0
ARG TORCH_INDEX
# With the cuDNN that torch 2.10 asks for, 9.10, convolutions over video in bfloat16 are wrong or go
# without cuDNN, so slowly that our decoder is left out; 9.15 mended them. This is torch 2.11's, with
# which was measured. What torch asks for is changed too, so that pip keeps it.
ARG CUDNN_VERSION=9.19.0.56
RUN --mount=type=cache,target=/root/.cache/pip \
    "${PYTHON}" -m venv /opt/comfyui-env \
 && /opt/comfyui-env/bin/pip install ${TORCH_INDEX:+--index-url "${TORCH_INDEX}"} \
      "torch==${TORCH_VERSION}" "torchvision==${TORCHVISION_VERSION}" \
      "torchaudio==${TORCHAUDIO_VERSION}" \
 && for metadata in /opt/comfyui-env/lib/python*/site-packages/torch-*.dist-info/METADATA; do \
      if grep -q nvidia-cudnn-cu12 "${metadata}"; then \
        sed -i "s/nvidia-cudnn-cu12==[0-9.]*/nvidia-cudnn-cu12==${CUDNN_VERSION}/" "${metadata}" \
        && /opt/comfyui-env/bin/pip install --no-deps "nvidia-cudnn-cu12==${CUDNN_VERSION}"; \
      fi; \
    done
COPY docker/constraints.txt /opt/constraints.txt
# The templates and help of ComfyUI's page are 0.4 GB, packed; it works without them.
RUN --mount=type=cache,target=/root/.cache/pip \
    --mount=type=bind,from=sources,source=/sources,target=/sources \
    grep -v -e ^comfyui-workflow-templates -e ^comfyui-embedded-docs \
      /sources/ComfyUI/requirements.txt >/tmp/requirements.txt \
 && nodes=/sources/ComfyUI/custom_nodes/ComfyUI-LTXVideo/requirements.txt \
 && if [ -e "${nodes}" ]; then cat "${nodes}" >>/tmp/requirements.txt; fi \
 && /opt/comfyui-env/bin/pip install -c /opt/constraints.txt -r /tmp/requirements.txt \
 && rm /tmp/requirements.txt \
 && /opt/comfyui-env/bin/pip check
COPY --from=sources /sources/ComfyUI /opt/ComfyUI
COPY docker/extra_model_paths.yaml /opt/ComfyUI/
RUN --mount=type=bind,source=docker/scripts,target=/scripts \
    /opt/comfyui-env/bin/python -m compileall -q /opt/ComfyUI \
 && cat /opt/ComfyUI/.commit \
 && pack=/opt/ComfyUI/custom_nodes/ComfyUI-LTXVideo \
 && if [ -e "${pack}" ]; then /opt/comfyui-env/bin/python /scripts/check_nodes.py "${pack}"; fi

# ---- the worker's environment ----------------------------------------------------------------
FROM base AS worker
ARG PYTHON
COPY requirements.lock /tmp/
RUN --mount=type=cache,target=/root/.cache/pip \
    "${PYTHON}" -m venv /opt/worker-env \
 && /opt/worker-env/bin/pip install --require-hashes --no-deps -r /tmp/requirements.lock
WORKDIR /app
COPY pyproject.toml README.md LICENSE ./
COPY src/ltx_worker/__init__.py src/ltx_worker/
# Points at /app/src, where the code is added last.
RUN --mount=type=cache,target=/root/.cache/pip \
    /opt/worker-env/bin/pip install --no-deps -e . \
 && /opt/worker-env/bin/pip check

# ---- weights, from the parts of the worker that say which -------------------------------------
FROM worker AS weights
ARG BAKE_LTX2=false
ARG LTX2_VARIANT=fp8
ARG LTX2_MODELS=ltx2
ENV PATH=/opt/worker-env/bin:${PATH}
COPY download_models.sh ./
COPY src/ltx_worker/__init__.py src/ltx_worker/catalog.py src/ltx_worker/catalog.toml \
     src/ltx_worker/downloads.py src/ltx_worker/errors.py src/ltx_worker/geometry.py \
     src/ltx_worker/gpu.py src/ltx_worker/gpu.toml src/ltx_worker/hub.py \
     src/ltx_worker/memory_limits.toml src/ltx_worker/settings.py src/ltx_worker/
COPY src/ltx_worker/workflow/__init__.py src/ltx_worker/workflow/lora_files.py \
     src/ltx_worker/workflow/
# The dry run shows, in every build, that nothing is missing here. The token stays out of the layer.
RUN --mount=type=secret,id=hf_token \
    mkdir /weights && echo "${LTX2_MODELS}" >/tmp/names \
 && xargs --arg-file=/tmp/names ./download_models.sh --dry-run --to /weights \
 && if [ "${BAKE_LTX2}" = true ]; then \
      if [ -e /run/secrets/hf_token ]; then HF_TOKEN=$(cat /run/secrets/hf_token); export HF_TOKEN; fi; \
      xargs --arg-file=/tmp/names ./download_models.sh --to /weights; \
    fi

# ---- the image -------------------------------------------------------------------------------
FROM comfyui AS image
ARG VERSION=0.1.0
ARG REVISION=unknown
ARG LTX2_MODELS=ltx2
LABEL org.opencontainers.image.title="ltx-worker" \
      org.opencontainers.image.description="Serves Lightricks' LTX-2 through ComfyUI on RunPod" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
ENV PATH=/opt/worker-env/bin:${PATH} \
    COMFYUI_DIR=/opt/ComfyUI \
    COMFYUI_PYTHON=/opt/comfyui-env/bin/python \
    LTX2_MODELS=${LTX2_MODELS} \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    HF_HUB_DISABLE_TELEMETRY=1 \
    DO_NOT_TRACK=1
COPY --from=weights /weights /opt/ComfyUI/models
COPY --from=worker /opt/worker-env /opt/worker-env
WORKDIR /app
COPY handler.py start.sh download_models.sh pyproject.toml README.md LICENSE ./
COPY docker docker
COPY workflows workflows
COPY src src
EXPOSE 8000 8188
# RunPod looks at the handler; this is for Docker. Weights may have to be fetched before it answers.
HEALTHCHECK --interval=30s --timeout=10s --start-period=30m \
  CMD ["sh", "-c", "wget -q -O /dev/null http://127.0.0.1:${LTX2_COMFY_PORT:-8188}/system_stats"]
# Runs as root: who owns the files of RunPod's volumes is not documented.
ENTRYPOINT ["tini", "-g", "--", "/app/start.sh"]
