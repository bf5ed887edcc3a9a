"""How time, memory and operations grow along one quantity at a time, and what theory expects.

Operations of a forward pass, for B images of N tokens (class token and prompts too), width d and L blocks:

    B L (24 N d^2 + 4 N^2 d) + 6 B M p^2 d          M patches of p x p pixels

The first term are the maps of a block and the second its attention. The backward pass takes as much for the activations
of a map and once more where its own weight learns, and 2.5 times the attention, which computes its weights anew. Before
the first thing that learns there is none: LoRA has none to what the first block's maps read, AdaptFormer none but its
adapter's in all of the first block. What is kept for the backward pass is linear in B, L and N: attention keeps no
N x N.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from vpeft.backbones import Backbone, wrap
from vpeft.bench.process import held, wait
from vpeft.bench.record import Record
from vpeft.bench.setting import Setting
from vpeft.bench.step import Step
from vpeft.bench.turns import turns
from vpeft.scaling.work import Recorder

METHODS = ("full", "linear", "lora", "vpt", "adaptformer")
AXES: dict[str, tuple[int, ...]] = {
    "image_size": (112, 160, 224, 320, 448),
    "patch": (32, 28, 16, 14, 8),  # tokens at one image size
    "batch": (1, 2, 4, 8, 16, 32),
    "depth": (3, 6, 12, 24),
    "prompts": (1, 10, 50, 100, 200),
    "rank": (1, 8, 32, 128),
}
ONLY = {"prompts": ("vpt",), "rank": ("lora", "adaptformer")}  # methods that have one


@dataclass(frozen=True)
class Shape:
    """A ViT, the images it sees, and the sizes of the methods on it; ViT-S/16 by default.

    Args:
        image_size: Side in pixels.
        patch: Side of a patch.
        batch: Images a step.
        depth: L.
        dim: d.
        heads: Of the attention.
        prompts: Of VPT, in every block.
        rank: Of LoRA on q and v; AdaptFormer's bottleneck.
        device: cpu or cuda.
        precision: fp32, bf16 or bf16-frozen.
        threads: CPU threads of torch.
    """

    image_size: int = 224
    patch: int = 16
    batch: int = 8
    depth: int = 12
    dim: int = 384
    heads: int = 6
    prompts: int = 10
    rank: int = 8
    device: str = "cpu"
    precision: str = "fp32"
    threads: int = 2

    @property
    def patches(self) -> int:
        return (self.image_size // self.patch) ** 2

    def tokens(self, method: str) -> int:
        """In a block."""
        return self.patches + 1 + (self.prompts if method == "vpt" else 0)

    def spec(self, method: str) -> dict[str, Any]:
        """The method entry."""
        options: dict[str, dict[str, Any]] = {
            "vpt": {"prompts": self.prompts, "dropout": 0.0},
            "lora": {"rank": self.rank},
            "adaptformer": {"bottleneck": self.rank, "dropout": 0.0},
        }
        return {"name": method, **options.get(method, {})}

    def body(self) -> Backbone:
        """The backbone, with random weights."""
        from timm.models.vision_transformer import VisionTransformer

        torch.manual_seed(0)
        model = VisionTransformer(
            self.image_size, self.patch, embed_dim=self.dim, depth=self.depth, num_heads=self.heads, num_classes=0
        )
        return wrap(model).to(torch.device(self.device))


def operations(method: str, shape: Shape) -> float:
    """Of the forward and backward pass, as theory has them."""
    tokens, width = shape.tokens(method), shape.dim
    images, blocks = shape.batch, shape.batch * shape.depth
    maps, attention = 24 * tokens * width**2, 4 * tokens**2 * width
    patches = images * 6 * shape.patches * shape.patch**2 * width
    added = {"lora": 8, "adaptformer": 4}.get(method, 0) * tokens * width * shape.rank
    if method == "linear":
        return blocks * (maps + attention) + patches
    if method == "full":
        return blocks * (3 * maps + 3.5 * attention) + 2 * patches
    # What comes before the first thing that learns needs no gradient.
    spared = {"lora": maps / 4 + added / 2, "adaptformer": maps + 2.5 * attention + added / 2}.get(method, 0.0)
    return blocks * (2 * maps + 3.5 * attention + 3 * added) - images * spared + patches


def memory(method: str, shape: Shape) -> float:
    """Bytes of tensors beyond the model at their highest, as theory has them grow; the factor is left open.

    Kept for the backward pass of a block are 11 numbers a token and channel where weights are frozen (the inputs of the
    norms, what LoRA reads, q, k, v and the attention's output, 4 into GELU) and 17 where they learn. A linear probe
    keeps nothing of a block: its highest point is inside one. The gradients of full fine-tuning come as what was kept
    goes, so that the greater of the two is its highest point.
    """
    numbers = shape.batch * shape.tokens(method) * shape.dim
    if method == "linear":
        return 4.0 * 8 * numbers
    if method == "full":
        return 4.0 * shape.depth * max(17 * numbers, 12 * shape.dim**2)
    return 4.0 * 11 * shape.depth * numbers


def measure(
    base: Shape,
    axes: Sequence[str],
    methods: Sequence[str],
    rounds: int,
    record: Record,
    say: Callable[[str], None],
) -> None:
    """Every method at every value of every axis; the points of one axis take turns.

    Raises:
        ValueError: An axis or a method that there is none of.
    """
    check(axes, methods)
    torch.set_num_threads(base.threads)
    curves = record.data.setdefault("curves", {})
    for axis in axes:
        steps: dict[str, Step] = {}
        points: dict[str, dict[str, Any]] = {}
        for value in AXES[axis]:
            shape = replace(base, **{axis: value})
            body = shape.body()
            setting = Setting("", shape.batch, None, shape.device, shape.precision, shape.threads)
            for method in (one for one in ONLY.get(axis, methods) if one in methods):
                name, step = f"{method} {value}", Step(setting, shape.spec(method), body)
                step.warm()
                steps[name], points[name] = step, _counted(step) | _expected(method, shape, value)
        for turn, found in enumerate(turns(steps, rounds), start=1):
            for name, (forward, backward, _) in found.items():
                points[name].setdefault("seconds", []).append(forward + backward)
            curves[axis] = {"run": record.run(), "points": list(points.values())}
            record.save()
            say(f"{axis}: round {turn} of {rounds}")


def check(axes: Sequence[str], methods: Sequence[str]) -> None:
    """Raise ValueError unless these are known."""
    for what, given, known in (("axis", axes, AXES), ("method", methods, METHODS)):
        if unknown := [one for one in given if one not in known]:
            raise ValueError(f"there is no {what} {', '.join(unknown)}; there are {', '.join(known)}")


def _counted(step: Step) -> dict[str, Any]:
    """Operations of forward and backward pass, and the most that its tensors held."""
    recorders = [Recorder()]

    def run() -> None:
        with recorders[0]:
            step.forward().backward()
        wait(step.device)

    most = held(run, step.device)
    step.update()
    return {"operations": sum(one.flops for one in recorders[0].found), "memory": most}


def _expected(method: str, shape: Shape, value: int) -> dict[str, Any]:
    return {
        "method": method,
        "value": value,
        "tokens": shape.tokens(method),
        "expected": {"operations": operations(method, shape), "memory": memory(method, shape)},
    }
