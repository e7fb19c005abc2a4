"""Lets the CUDA builds of torchvision and torchaudio be imported beside a CPU build of torch.

For the image test alone, which installs the CPU build for want of a GPU: it lies in the base image
as the interpreter's sitecustomize. The compiled parts of both need CUDA and do not load without it.
torchvision then lacks operators that it describes at import; torchaudio goes without the files.
"""

import importlib.machinery
import sys
from pathlib import Path


class _BeforeImport:
    """Prepares each package just before it is looked for."""

    operators = None

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name == "torchvision" and cls.operators is None:
            import torch

            cls.operators = torch.library.Library("torchvision", "DEF")
            cls.operators.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            cls.operators.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        if name == "torchaudio":
            spec = importlib.machinery.PathFinder.find_spec(name, path)
            for compiled in Path(spec.origin).parent.glob("lib/*.so") if spec else ():
                compiled.unlink()


sys.meta_path.insert(0, _BeforeImport)
