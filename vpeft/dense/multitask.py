"""One frozen backbone, one head a task: the model of multi-task dense prediction.

How often the backbone runs for an image is the method's doing:

    once        what it does is the same for every task (LoRA, AdaptFormer, ...)
    once        tasks part in the last blocks of the stages: it is `Branching` (MTLoRA)
    once a task tasks part at the first block: it is `Switching` (Polyhistor)

Shapes: B images, C channels, h w the grid of a map, K outputs of a task, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, Protocol, cast, runtime_checkable

from torch import Tensor, nn
from torch.nn import functional as F

from vpeft.heads.all_mlp import AllMLP
from vpeft.heads.hrnet import HighResolution
from vpeft.methods.mtlora import stage_ends
from vpeft.modules import Modules
from vpeft.tuned import Tuned

if TYPE_CHECKING:
    from vpeft.backbones import Backbone

Reading = Literal["stages", "merged"]

HEADS: dict[str, Callable[[Sequence[int], int], nn.Module]] = {"all_mlp": AllMLP, "hrnet": HighResolution}

# Outputs of each task.
TASKS: dict[str, int] = {"semseg": 21, "human_parts": 7, "saliency": 1, "normals": 3}


@runtime_checkable
class Switching(Protocol):
    """A method whose forward pass is that of one task."""

    def use(self, task: str) -> None:
        """Make forward passes from now on those of `task`."""
        ...


@runtime_checkable
class Branching(Protocol):
    """A method by which tasks part in some blocks of one forward pass, the last of the stages, if at all."""

    ends: list[int]

    def leaving(self, index: int) -> dict[str, Tensor]:
        """Each task's tokens leaving block `index`, one of `ends`, in the latest pass."""
        ...


class MultiTask(nn.Module):
    """Normalised images [B 3 H W] -> outputs [B K H W] of every task.

    `tuned` holds backbone, methods and what reads the maps, as it does for one task.

    Args:
        backbone: Is frozen and hooked into; methods are built after `skip_norm` has been called on it.
        methods: Built for it, not attached yet.
        tasks: Outputs K by task.
        head: A key of HEADS.
        reading: `stages` hands the map after each stage to the heads through a LayerNorm of the task's own, `merged`
            the map after patch merging and as it is (MTLoRA's code); a backbone that merges nothing has the former.

    Raises:
        ValueError: no task, an unknown head, or a method that branches beside others.
    """

    def __init__(
        self,
        backbone: Backbone,
        methods: Sequence[nn.Module],
        tasks: Mapping[str, int],
        head: str = "all_mlp",
        reading: Reading = "stages",
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        if not tasks:
            raise ValueError("A multi-task model needs at least one task.")
        if head not in HEADS:
            raise ValueError(f"There is no head '{head}'; there are {', '.join(HEADS)}.")
        if len(methods) > 1 and any(isinstance(method, Branching) and method.ends for method in methods):
            raise ValueError(
                "mtlora carries the tasks through some blocks beside the trunk, where another method would take them "
                "for images. Use it alone."
            )
        self.tasks, self.reading = dict(tasks), reading
        self.ends = stage_ends(backbone.blocks)
        after = [min(end + 1, len(backbone.blocks) - 1) if reading == "merged" else end for end in self.ends]
        channels = [backbone.blocks[index].dim for index in after]
        heads = {task: Reader(channels, HEADS[head](channels, count), reading) for task, count in tasks.items()}
        self.tuned = Tuned(backbone, methods, nn.ModuleDict(heads), drop_path=drop_path)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        switching = [method for method in self.tuned.methods if isinstance(method, Switching)]
        if not switching:
            maps = self.maps(images)
            return {task: self.read(task, maps[task], images) for task in self.tasks}
        outputs: dict[str, Tensor] = {}
        for task in self.tasks:
            for method in switching:
                method.use(task)
            outputs[task] = self.read(task, self.maps(images)[task], images)
        return outputs

    def maps(self, images: Tensor) -> dict[str, list[Tensor]]:
        """The maps [B C h w] of one pass, finest first, for each task."""
        backbone = self.tuned.backbone
        branching = [m for m in self.tuned.methods if isinstance(m, Branching) and m.ends]
        found: dict[str, list[Tensor]] = {task: [] for task in self.tasks}
        x = backbone.embed(images)
        for index, block in enumerate(backbone.blocks):
            x = block(backbone.between(index, x))
            if index not in self.ends:
                continue
            if branching:
                for task, own in branching[0].leaving(index).items():
                    found[task].append(self._map(index, own.view(x.shape)))
            else:
                shared = self._map(index, x)
                for maps in found.values():
                    maps.append(shared)
        return found

    def _map(self, index: int, tokens: Tensor) -> Tensor:
        block = self.tuned.backbone.blocks[index]
        if self.reading == "merged" and index + 1 < len(self.tuned.backbone.blocks):
            tokens = self.tuned.backbone.between(index + 1, tokens)
            block = self.tuned.backbone.blocks[index + 1]
        return block.split(tokens)[1].permute(0, 3, 1, 2)

    def read(self, task: str, maps: list[Tensor], images: Tensor) -> Tensor:
        """Outputs [B K H W] of one task from its maps."""
        reader = cast(nn.ModuleDict, self.tuned.head)[task]
        return F.interpolate(reader(maps), images.shape[-2:], mode="bilinear", align_corners=False)


class Reader(nn.Module):
    """What one task makes of its maps: norms, and a head."""

    def __init__(self, channels: Sequence[int], head: nn.Module, reading: Reading) -> None:
        super().__init__()
        self.norms = Modules[nn.LayerNorm](nn.LayerNorm(dim) for dim in channels if reading == "stages")
        self.head = head

    def forward(self, maps: list[Tensor]) -> Tensor:
        if len(self.norms):
            maps = [norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) for norm, x in zip(self.norms, maps, strict=True)]
        return self.head(maps)
