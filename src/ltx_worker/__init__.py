"""A RunPod worker that serves LTX-2 through a local ComfyUI."""

__version__ = "0.1.0"
