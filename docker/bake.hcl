# The images: docker buildx bake --file docker/bake.hcl [TARGET...]; without one, the slim image.
# Gated weights need a token: HF_TOKEN in the environment.

variable "IMAGE" { default = "ltx-worker" }
variable "VERSION" { default = "0.1.0" }
variable "REVISION" { default = "unknown" }

group "default" { targets = ["slim"] }
group "all" { targets = ["slim", "cu130", "ltx-2-fp8", "ltx-2_3-fp8"] }

target "_image" {
  context = "."
  args = {
    VERSION  = VERSION
    REVISION = REVISION
  }
}

# No weights: for a network volume, RunPod's cached models, or a download at the start.
target "slim" {
  inherits = ["_image"]
  tags     = ["${IMAGE}:${VERSION}", "${IMAGE}:latest"]
}

# For hosts with a driver from 580 on (CUDA 13.0): ComfyUI then uses CUDA kernels for fp8.
target "cu130" {
  inherits = ["_image"]
  args = {
    TORCH_VERSION       = "2.11.0"
    TORCHVISION_VERSION = "0.26.0"
    TORCHAUDIO_VERSION  = "2.11.0"
  }
  tags = ["${IMAGE}:${VERSION}-cu130"]
}

target "_baked" {
  inherits = ["_image"]
  args = {
    BAKE_LTX2    = "true"
    LTX2_VARIANT = "fp8"
  }
  secret = ["id=hf_token,env=HF_TOKEN"]
}

# Some 41 GB of weights each: what quality fast takes.
target "ltx-2-fp8" {
  inherits = ["_baked"]
  args     = { LTX2_MODELS = "ltx2" }
  tags     = ["${IMAGE}:${VERSION}-ltx-2-fp8"]
}

target "ltx-2_3-fp8" {
  inherits = ["_baked"]
  args     = { LTX2_MODELS = "ltx2.3" }
  tags     = ["${IMAGE}:${VERSION}-ltx-2.3-fp8"]
}
