"""Let a CUDA-built torchvision import beside a CPU torch.

torchvision registers meta kernels for `torchvision::nms` while it is imported. Where its compiled
library cannot be loaded (a CUDA wheel beside a CPU torch) that operator has no schema, and the
import dies with a RuntimeError that takes timm, open_clip, lightning and transformers with it.
Declaring the schemas first lets everything written in Python work (transforms, datasets, utils);
the compiled operators stay unavailable and say so when called.
"""

import importlib.util
from pathlib import Path

import torch

# Kept alive on purpose: a torch.library.Library withdraws its definitions when it is collected.
_DECLARED: list[torch.library.Library] = []


def allow_import() -> None:
    """Declare torchvision's operators where its own library cannot; do nothing where it can."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None or _DECLARED:
        return
    for library in Path(spec.origin).parent.glob("_C*"):
        try:
            torch.ops.load_library(str(library))
        except OSError:
            declared = torch.library.Library("torchvision", "FRAGMENT")
            for name in ("nms", "qnms"):
                declared.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            _DECLARED.append(declared)
