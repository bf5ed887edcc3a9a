"""Let a CUDA-built torchvision import beside a CPU torch.

torchvision registers meta kernels for `torchvision::nms` while it is imported. Where its compiled
library cannot be loaded (a CUDA wheel beside a CPU torch) that operator has no schema, and the
import dies with a RuntimeError that takes timm, open_clip, lightning and transformers with it.
Declaring the schemas first lets everything written in Python work (transforms, datasets, utils);
the compiled operators stay unavailable and say so when called.

This happens when torchvision is first looked for, so that importing `vpeft` does not import torch.
"""

import importlib.util
import sys
from pathlib import Path
from typing import Any

# Kept alive on purpose: a torch.library.Library withdraws its definitions when it is collected.
_DECLARED: list[Any] = []


class _BeforeTorchvision:
    """A finder that finds nothing, and is asked for torchvision before any other.

    It stays where it is: to leave `sys.meta_path` while importlib walks through it would hide the next finder.
    """

    done = False

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name == "torchvision" and not self.done:
            self.done = True  # first, as declaring looks for torchvision too
            _declare()


def allow_import() -> None:
    """Arrange that torchvision's operators are declared, where its own library cannot, before its import."""
    if not any(isinstance(finder, _BeforeTorchvision) for finder in sys.meta_path):
        sys.meta_path.insert(0, _BeforeTorchvision())


def _declare() -> None:
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return
    import torch

    for library in Path(spec.origin).parent.glob("_C*"):
        try:
            torch.ops.load_library(str(library))
        except OSError:
            declared = torch.library.Library("torchvision", "FRAGMENT")
            for name in ("nms", "qnms"):
                declared.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            _DECLARED.append(declared)
