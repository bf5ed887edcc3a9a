"""One frozen backbone, one head a task: the model of multi-task dense prediction.

How often the backbone runs for an image is the method's doing:

    once        what it does is the same for every task (LoRA, AdaptFormer, ...)
    once        tasks part in the last blocks of the stages: it is `Branching` (MTLoRA)
    once a task tasks part at the first block: it is `Switching` (Polyhistor)

Shapes: B images, C channels, h w the grid of a map, K outputs of a task, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

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


def multitask(
    backbone: Backbone,
    methods: Sequence[nn.Module],
    tasks: Mapping[str, int],
    head: str = "all_mlp",
    reading: Reading = "stages",
    drop_path: float = 0.0,
) -> Tuned:
    """Normalised images [B 3 H W] -> outputs [B K H W] of every task.

    Args:
        backbone: Is frozen and hooked into; methods are built after `skip_norm` has been called on it.
        methods: Built for it, not attached yet.
        tasks: Outputs K by task.
        head: A key of HEADS.
        reading: `stages` hands the map after each stage to the heads through a LayerNorm of the task's own, `merged`
            the map after patch merging and as it is (MTLoRA's code); a backbone that merges nothing has the former.
        drop_path: As in `Tuned`.

    Raises:
        ValueError: no task, an unknown head, a method that branches beside others, or one that acts on features.
    """
    if not tasks:
        raise ValueError("A multi-task model needs at least one task; name some in data.tasks.")
    if head not in HEADS:
        raise ValueError(f"There is no head '{head}'; there are {', '.join(HEADS)}.")
    if len(methods) > 1 and any(isinstance(method, Branching) and method.ends for method in methods):
        raise ValueError(
            "mtlora carries the tasks through some blocks beside the trunk, where another method would take them "
            "for images. Use it alone."
        )
    neck = TaskMaps(backbone, methods, list(tasks), reading)
    readers = {task: Reader(neck.channels, HEADS[head](neck.channels, count), reading) for task, count in tasks.items()}
    return Tuned(backbone, methods, TaskHeads(readers, backbone.image_size), drop_path, neck)


class TaskMaps(nn.Module):
    """The maps [B C h w] of each task, finest first; what it runs is the backbone's and the methods'.

    Args:
        backbone: That will be run.
        methods: On it.
        tasks: Their names.
        reading: As in `multitask`.
    """

    def __init__(self, backbone: Backbone, methods: Sequence[nn.Module], tasks: list[str], reading: Reading) -> None:
        super().__init__()
        self.tasks, self.reading = tasks, reading
        self.ends = stage_ends(backbone.blocks)
        after = [min(end + 1, len(backbone.blocks) - 1) if reading == "merged" else end for end in self.ends]
        self.channels = [backbone.blocks[index].dim for index in after]
        # Tuples: Tuned owns them.
        self.switching = tuple(method for method in methods if isinstance(method, Switching))
        self.branching = tuple(method for method in methods if isinstance(method, Branching) and method.ends)

    def forward(self, backbone: Backbone, images: Tensor) -> dict[str, list[Tensor]]:
        if not self.switching:
            return self._pass(backbone, images)
        found: dict[str, list[Tensor]] = {}
        for task in self.tasks:
            for method in self.switching:
                method.use(task)
            found[task] = self._pass(backbone, images)[task]
        return found

    def _pass(self, backbone: Backbone, images: Tensor) -> dict[str, list[Tensor]]:
        found: dict[str, list[Tensor]] = {task: [] for task in self.tasks}
        x = backbone.embed(images)
        for index, block in enumerate(backbone.blocks):
            x = block(backbone.between(index, x))
            if index not in self.ends:
                continue
            if self.branching:
                for task, own in self.branching[0].leaving(index).items():
                    found[task].append(self._map(backbone, index, own.view(x.shape)))
            else:
                shared = self._map(backbone, index, x)
                for maps in found.values():
                    maps.append(shared)
        return found

    def _map(self, backbone: Backbone, index: int, tokens: Tensor) -> Tensor:
        block = backbone.blocks[index]
        if self.reading == "merged" and index + 1 < len(backbone.blocks):
            tokens = backbone.between(index + 1, tokens)
            block = backbone.blocks[index + 1]
        return block.split(tokens)[1].permute(0, 3, 1, 2)


class TaskHeads(nn.ModuleDict):
    """Outputs [B K H W] of each task from its maps.

    Args:
        readers: By task.
        size: (H, W).
    """

    def __init__(self, readers: Mapping[str, nn.Module], size: tuple[int, int]) -> None:
        super().__init__(readers)
        self.size = size

    def forward(self, maps: dict[str, list[Tensor]]) -> dict[str, Tensor]:
        return {
            task: F.interpolate(reader(maps[task]), self.size, mode="bilinear", align_corners=False)
            for task, reader in self.items()
        }


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
