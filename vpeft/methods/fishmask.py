"""FishMask (Sung, Nair & Raffel, NeurIPS 2021, arXiv:2111.09839).

    W + D,    D is zero but at the k entries of the backbone with the largest F
    F = sum_n (d log p(y_n | x_n) / dW)^2,    the empirical Fisher information of n training images
    dD[i, j] = sum_n dy[n, i] x[n, j],    of y = (W + D) x over all rows n, at the k entries alone

The mask is chosen before the first epoch and stays; the k values of D are what learns and is saved, with their
places. Merged into W. Trained on a copy of W with D in it, which takes no gradient itself: on a CPU none of the size
of W is formed (`vpeft/sampled.py`). Norms, biases and maps that torch reads as tensors (open_clip's attention) form
theirs, and it is cut.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn import functional as F

from vpeft.sampled import Sampled
from vpeft.seams import Affine

if TYPE_CHECKING:
    from vpeft.backbones import Backbone
    from vpeft.tuned import Tuned


class FishMask(nn.Module):
    """Single entries of the weights and biases; share x all of them: 425,280 for 0.005 on ViT-B/16.

    Of all weights and biases of the norms, attention and MLP: 85,056,000 on ViT-B/16. Official code:
    varunnair18/FISH @ b5bff1e (no licence but in the parts of others; facts only), `label-square`. An adapter takes
    8 bytes for each entry: its place as a 32-bit number and its value.

    Until the training images have been seen the mask is spread evenly. Each process chooses the same mask.

    Differs: class token, position embeddings, scales of layers and the projections of patch merging are not
    candidates. Nor is the patch embedding: every patch adds to its gradient, so that it took 95 % of the mask of a
    ViT-S/14 on digits, which then reached 70.9 % of the test images, less than a linear probe. The head is not
    counted in the share. What learns is the change of an entry, so that weight decay pulls to the pretrained value,
    and acts on it only with `decay_vectors`.

    Args:
        share: k over the number of candidates; 0.005 in the paper.
        samples: Training images that F is measured on, drawn at random; 1024 in the official GLUE runs.

    Raises:
        ValueError: a share that is not in (0, 1] or leaves no entry, no samples; when attached, a map that another
            method already changes; when prepared, F is zero everywhere or FSDP shares out the backbone.
    """

    places: Tensor

    def __init__(self, backbone: Backbone, share: float = 0.005, samples: int = 1024) -> None:
        super().__init__()
        sizes = [tensor.numel() for affine in _affines(backbone) for tensor in affine.tensors().values()]
        self.starts = [0, *accumulate(sizes)]
        total = self.starts[-1]
        count = int(share * total)
        if not 0 < share <= 1 or count < 1:
            raise ValueError(f"fishmask: share is {share}; expected a part of {total} entries, and one at least.")
        if samples < 1:
            raise ValueError(f"fishmask: samples is {samples}; at least 1 is needed.")
        self.samples = samples
        self.values = nn.Parameter(torch.zeros(count))
        dtype = torch.int32 if total < 2**31 else torch.int64
        spread = torch.arange(count, device="cpu") * (total // count)  # in ascending order, as all places
        self.register_buffer("places", spread.to(dtype))
        self._cut()

    def attach(self, backbone: Backbone) -> None:
        for affine, change in self._changes(backbone):
            if affine.updates:
                raise ValueError(
                    f"fishmask: {type(affine.updates[0]).__name__} changes a map already, and the mask is on the "
                    "backbone's own weights. Put fishmask before it in the list of methods."
                )
            affine.replace(change)
            if change.sampled:
                affine.edit_gradient(change.pass_on)

    def merge(self, backbone: Backbone) -> None:
        for affine, change in self._changes(backbone):
            affine.merge(change)

    def _changes(self, backbone: Backbone) -> list[tuple[Affine, Entries]]:
        found, index = [], 0
        for affine in _affines(backbone):
            roles = list(affine.tensors())
            sampled = affine.called and len(affine.shape) == 2
            found.append((affine, Entries(self, {role: index + place for place, role in enumerate(roles)}, sampled)))
            index += len(roles)
        return found

    def prepare(self, tuned: Tuned, batches: Iterable[tuple[Tensor, Tensor]], epoch: int) -> None:
        if epoch:
            return
        tensors = [tensor for affine in _affines(tuned.backbone) for tensor in affine.tensors().values()]
        if any(isinstance(tensor, DTensor) for tensor in tensors):
            raise ValueError(
                "fishmask: entries are compared over the whole backbone, and FSDP leaves a share of it in a process. "
                "Set train.strategy to ddp."
            )
        frozen = [tensor for tensor in tensors if not tensor.requires_grad]
        for tensor in frozen:
            tensor.requires_grad_(True)
        fisher = [torch.zeros_like(tensor) for tensor in tensors]
        for image, label in self._drawn(batches):
            loss = F.cross_entropy(tuned(image), label)
            for sum_, gradient in zip(fisher, torch.autograd.grad(loss, tensors, allow_unused=True), strict=True):
                if gradient is not None:
                    sum_.addcmul_(gradient, gradient)
        for tensor in frozen:
            tensor.requires_grad_(False)
        scores = torch.cat([one.flatten() for one in fisher])
        if torch.distributed.is_initialized():
            torch.distributed.broadcast(scores, 0)  # a GPU need not round alike in two processes
        if not scores.any():
            raise ValueError(
                "fishmask: the Fisher information of the backbone is zero everywhere, as it is under a head that "
                "starts as zero. Set head.init to trunc_normal."
            )
        self.places.copy_(scores.topk(len(self.places)).indices.sort().values)
        self._cut()

    def _drawn(self, batches: Iterable[tuple[Tensor, Tensor]]) -> Iterable[tuple[Tensor, Tensor]]:
        """Images one by one: the square is of the gradient of each."""
        total, place = sum(len(labels) for _, labels in batches), 0
        chosen = set(torch.randperm(total)[: self.samples].tolist())
        for images, labels in batches:
            for image, label in zip(images.split(1), labels.split(1), strict=True):
                if place in chosen:
                    yield image, label
                place += 1

    def _cut(self) -> None:
        """Which of the places, in ascending order, are in which tensor."""
        starts = torch.tensor(self.starts, dtype=self.places.dtype, device=self.places.device)
        self.cuts = torch.searchsorted(self.places, starts).tolist()

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._cut()

    def entries(self, index: int) -> tuple[Tensor, Tensor]:
        """Places in the tensor of this index, and values."""
        start, stop = self.cuts[index], self.cuts[index + 1]
        return self.places[start:stop] - self.starts[index], self.values[start:stop]


@dataclass
class Entries:
    """The change of one map.

    Args:
        method: Whose places and values they are.
        index: Of its weight and bias among all candidates.
        sampled: Whether the values in its weight have their gradient from `pass_on`.
    """

    method: FishMask
    index: dict[str, int]
    sampled: bool

    def weight(self, w: Tensor) -> Tensor:
        places, values = self.method.entries(self.index["weight"])
        return _changed(w, places, values.detach() if self.sampled else values)

    def bias(self, b: Tensor) -> Tensor:
        return _changed(b, *self.method.entries(self.index["bias"])) if "bias" in self.index else b

    def pass_on(self, x: Tensor, y: Tensor) -> Tensor:
        places, values = self.method.entries(self.index["weight"])
        if not len(places) or not torch.is_grad_enabled():
            return y
        return Sampled.apply(y, values, x.detach().to(y.dtype), places)


def _changed(tensor: Tensor, places: Tensor, values: Tensor) -> Tensor:
    return tensor.flatten().index_add(0, places, values.to(tensor.dtype)).view_as(tensor) if len(places) else tensor


def _affines(backbone: Backbone) -> list[Affine]:
    """The candidates, in the order of their places."""
    outside = [affine for role, affine in backbone.family.affines.items() if role != "patch_embed"]
    return [*outside, *(a for block in backbone.blocks for a in block.affines.values())]
