"""The operations of one step, and the time they take on a device by its roofline.

    time of an operation   max(FLOPs / (e F), bytes / (e' B), s)      e, e': the part of the peak that kernels reach
    time of a step         max(sum of that, operations x h + l)       h, l: the host's part of an operation, of a step

FLOPs and bytes are those of every operation that torch issues in one real step, counted on fake tensors (shapes
without memory). F, B, e, e', s, h and l are assumptions about a device and are printed beside the result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from vpeft.backbones import create
from vpeft.heads import LinearHead
from vpeft.methods import build, feature_dim
from vpeft.tuned import Tuned

CLASSES = 100


@dataclass(frozen=True)
class Device:
    """An accelerator, and what is assumed of kernels on it.

    Args:
        name: In words.
        flops: Dense bf16 peak, operations a second.
        bandwidth: Of its memory, bytes a second.
        product_share: Part of `flops` that matrix products reach.
        memory_share: Part of `bandwidth` that the rest reaches.
        shortest: Seconds of the shortest kernel.
        issue: Seconds the host needs to issue one operation from Python, forward or backward; 0 with a captured graph.
        loop: Seconds the host needs for a step besides: loop, callbacks, logging.
    """

    name: str
    flops: float
    bandwidth: float
    product_share: float = 0.6
    memory_share: float = 0.8
    shortest: float = 2e-6
    issue: float = 12e-6
    loop: float = 2.8e-3


# NVIDIA's data sheet of the H200 SXM: 989 TFLOP/s dense bf16, 4.8 TB/s.
H200 = Device("H200 SXM", flops=989e12, bandwidth=4.8e12)


@dataclass(frozen=True)
class Operation:
    """One operation that torch issues: FLOPs of products and attention, bytes of what it reads and writes."""

    name: str
    flops: int
    bytes: int


@dataclass(frozen=True)
class Work:
    """All operations of one step."""

    operations: tuple[Operation, ...]

    @property
    def flops(self) -> int:
        return sum(operation.flops for operation in self.operations)

    @property
    def products(self) -> Work:
        """Of these, matrix products, convolutions and attention."""
        return Work(tuple(operation for operation in self.operations if operation.flops))

    def computed(self, device: Device) -> float:
        """Seconds that the device computes."""
        return sum(
            max(
                one.flops / (device.flops * device.product_share),
                one.bytes / (device.bandwidth * device.memory_share),
                device.shortest,
            )
            for one in self.operations
        )

    def issued(self, device: Device) -> float:
        """Seconds that the host needs."""
        return len(self.operations) * device.issue + device.loop

    def seconds(self, device: Device) -> float:
        """Time of the step: host and device work at the same time."""
        return max(self.computed(device), self.issued(device))


class Recorder(TorchDispatchMode):
    """Notes every operation with a cost; views and allocations have none."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Operation] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = self.run(func, args, kwargs or {})
        if func.is_view or func.namespace != "aten" or func.overloadpacket in _FREE:
            return out
        flops = _flops(func.overloadpacket, args, kwargs or {}, out)
        tensors = [leaf for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, Tensor)]
        moved = sum(tensor.numel() * tensor.element_size() for tensor in {id(t): t for t in tensors}.values())
        self.found.append(Operation(str(func.overloadpacket), flops, moved))
        return out

    def run(self, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Do one operation."""
        return func(*args, **kwargs)


def _flops(operation: Any, args: Any, kwargs: Any, out: Any) -> int:
    # torch's table has the attention of a GPU and not that of a CPU, which the fake tensors take.
    if operation is _ATEN._scaled_dot_product_flash_attention_for_cpu:
        return sdpa_flop_count(*(tensor.shape for tensor in args[:3]))
    if operation is _ATEN._scaled_dot_product_flash_attention_for_cpu_backward:
        return sdpa_backward_flop_count(*(tensor.shape for tensor in args[:4]))
    known = flop_registry.get(operation)
    return known(*args, **kwargs, out_val=out) if known else 0


_ATEN = torch.ops.aten
_FREE = {_ATEN.empty, _ATEN.empty_like, _ATEN.new_empty, _ATEN.empty_strided, _ATEN.detach, _ATEN._reshape_alias}
_FREE |= {_ATEN.lift_fresh, _ATEN.is_same_size, _ATEN._unsafe_view, _ATEN._local_scalar_dense}


def count(method: Mapping[str, Any], backbone: str, batch: int, train: bool) -> Work:
    """Operations of one training step (with AdamW), or of evaluating one batch, under bf16 autocast.

    Args:
        method: A method entry, `{"name": "lora", ...}`.
        backbone: timm name; it gets no weights.
        batch: Images in it.
        train: A step of training, or of evaluation.
    """
    body = create(backbone, "none")
    attached = build(method, body)
    model = Tuned(body, attached, LinearHead(feature_dim(body, attached), CLASSES)).train(train)
    with FakeTensorMode() as mode:
        for module in model.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    module._parameters[name] = mode.from_tensor(parameter)  # pyright: ignore[reportArgumentType]
            for name, tensor in module._buffers.items():
                if tensor is not None:
                    module._buffers[name] = mode.from_tensor(tensor)
        images = torch.empty(batch, 3, *body.image_size)
        labels = torch.zeros(batch, dtype=torch.int64)
        learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimiser = torch.optim.AdamW(learned, foreach=True)  # as torch chooses on a GPU
        recorder = Recorder()
        with recorder, torch.set_grad_enabled(train):
            with torch.autocast("cpu", torch.bfloat16):
                loss = nn.functional.cross_entropy(model(images), labels)
            if train:
                loss.backward()
                optimiser.step()
    return Work(tuple(recorder.found))
