"""Autocast around a torch.vmap.

vmap takes a linear map apart before autocast sees it: the product is cast, the bias is added in single precision, so
that whatever follows is single too; a convolution on a CPU is not cast at all. Here all of it is cast before vmap.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

_CAST = {F.linear, F.conv1d, F.conv2d, F.conv3d, F.scaled_dot_product_attention}


class Autocast(TorchFunctionMode):
    """Casts what enters `_CAST` as the autocast around it says.

    Args:
        device: Type of the device that computes.
    """

    def __init__(self, device: str) -> None:
        super().__init__()
        self.dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if self.dtype is None:
            return func(*args, **kwargs)
        if func in _CAST:
            return func(*map(self._cast, args), **{name: self._cast(value) for name, value in kwargs.items()})
        return func(*args, **kwargs)

    def _cast(self, value: Any) -> Any:
        return value.to(self.dtype) if isinstance(value, Tensor) and value.dtype == torch.float32 else value
