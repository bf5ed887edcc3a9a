"""DAM-VP (Huang et al., CVPR 2023, arXiv:2303.08138).

    x + P_c,    c = argmin_k |f(x) - mu_k|

A border prompt for each cluster of the training images. The clusters are those of the frozen features f of images
without a prompt, mu_k their means; every prompt starts from the meta-prompt, which other tasks have trained.

Shapes: B images, C features, K prompts, M samples.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from vpeft.adapter_file import damaged
from vpeft.backbones.weights import content_hash
from vpeft.methods.vp import Border, check_border

if TYPE_CHECKING:
    from vpeft.backbones import Backbone
    from vpeft.tuned import Tuned

SAMPLES = 1000  # images that are clustered, in the official code


class DAMVP(nn.Module):
    """Border prompts that images choose among; K 6 p (H + W - 2 p) parameters: 69,840 for K = 1, p = 30 on ViT-B/16.

    shikiw/DAM-VP @ dec5821 [MIT]. Head-tuning is a linear head; head-frozen is `head.kind: active_features`. Average
    linkage merges clusters as long as two are nearer than `threshold`. The official code has a threshold for each
    backbone: 10 for ViT-B/16 of ImageNet-21k, 31 for that of ImageNet-1k, 20 for Swin-B, 18 for MoCo v3. Its
    head-tuning misspells momentum, which is therefore none, and its schedule gives the head the rate of the prompts.

    Differs: there are at most `prompts` clusters, because parameters are made before images are seen, and prompts
    without a cluster stay idle; theirs has as many as the threshold leaves. The clustered images are spread evenly over
    the training set, without augmentation; theirs are the first 1000 of a shuffled, augmented epoch. Features are
    those of the model with the other methods on it, where there are any.

    A meta-prompt is made by `python tools/meta_prompt.py configs/vtab/dam_vp.yaml --tasks TASK,TASK,... -o FILE`, with
    Reptile and the official code's settings (`vpeft.meta_prompt`), and used with `--method.meta FILE`.

    Args:
        prompts: K, the most clusters.
        threshold: Distance of features from which on clusters stay apart; 10 in the official code.
        size: p; 30 in the official code.
        std: Deviation of the initial values; 1 in the official code, without a meta-prompt.
        meta: File (.safetensors) of a meta-prompt with `up`, `down`, `left` and `right`, of `tools/meta_prompt.py`;
            it is read when training starts, and an adapter does not need it any more.

    Raises:
        ValueError: no prompts, a border that leaves no image, a negative threshold or std.
    """

    prototypes: Tensor
    clusters: Tensor

    def __init__(
        self,
        backbone: Backbone,
        prompts: int = 10,
        threshold: float = 10.0,
        size: int = 30,
        std: float = 1.0,
        meta: str | None = None,
    ) -> None:
        super().__init__()
        if prompts < 1 or threshold < 0 or std < 0:
            raise ValueError(
                f"dam_vp: prompts is {prompts}, threshold {threshold} and std {std}; at least 1, 0 and 0 are needed."
            )
        check_border("dam_vp", "size", size, backbone.image_size)
        self.threshold, self.meta = threshold, meta
        self.border = Border(prompts, size, backbone.image_size, std)
        self.register_buffer("prototypes", torch.zeros(prompts, backbone.dim))
        self.register_buffer("clusters", torch.tensor(0))  # how many prototypes there are
        self._eyes: list[Backbone] = []  # in a list: the backbone is not a part of the method

    def attach(self, backbone: Backbone) -> None:
        self._eyes.append(backbone)
        backbone.edit_pixels(self)

    def forward(self, images: Tensor) -> Tensor:
        return images + self.border()[self.choose(images)]

    def choose(self, images: Tensor) -> Tensor:
        """Index [B] of the nearest prototype; the first prompt, while there is none."""
        distances = torch.cdist(self._eyes[0].look(images).float(), self.prototypes)
        absent = torch.arange(len(self.prototypes), device=distances.device) >= self.clusters
        return distances.masked_fill(absent, torch.inf).argmin(dim=1)

    @torch.no_grad()
    def prepare(self, tuned: Tuned, batches: Iterable[tuple[Tensor, Tensor]], epoch: int) -> None:
        """Before the first epoch: cluster the training images, and start from the meta-prompt."""
        if epoch:
            return
        features = torch.cat([tuned.backbone.look(images).float() for images, _ in batches])
        sample = torch.linspace(0, len(features) - 1, min(SAMPLES, len(features))).round().long()
        means = cluster(features[sample.to(features.device)], self.threshold, len(self.prototypes))
        self.prototypes[: len(means)] = means
        self.clusters.fill_(len(means))
        if self.meta is not None:
            self._load(Path(self.meta).expanduser())

    def _load(self, path: Path) -> None:
        if not path.is_file():
            raise FileNotFoundError(f"dam_vp: there is no meta-prompt {path}; give meta as a path, or leave it out.")
        try:
            with safe_open(path, "pt") as file:
                told, stored = file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise damaged(path, str(error)) from error
        if told.get("sha256", same := content_hash(stored)) != same:
            raise damaged(path, "its content does not have the sha256 it was saved with")
        for name, parameter in self.border.named_parameters():
            if name not in stored or stored[name].shape[-3:] != parameter.shape[-3:]:
                raise ValueError(
                    f"dam_vp: {path} has no '{name}' of shape {list(parameter.shape[-3:])}; a meta-prompt has up, "
                    "down, left and right, of the same size and for the same images."
                )
            parameter.copy_(stored[name].expand_as(parameter))


def cluster(features: Tensor, threshold: float, most: int) -> Tensor:
    """Means of clusters by average linkage: [M, C] -> [k, C], k at most `most`, in the order of their first members.

    The two clusters of the least average distance merge, while it is below `threshold` or there are too many.
    """
    points = features.double().cpu()
    apart = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist").fill_diagonal_(torch.inf).numpy()
    count = len(points)  # numpy from here on: its argmin of a matrix takes a fiftieth of torch's time
    sizes, label, left = np.ones(count), np.arange(count), count
    while left > 1:
        i, j = sorted(divmod(int(apart.argmin()), count))
        if apart[i, j] >= threshold and left <= most:
            break
        apart[i] = apart[:, i] = (sizes[i] * apart[i] + sizes[j] * apart[j]) / (sizes[i] + sizes[j])
        apart[i, i] = apart[j] = apart[:, j] = np.inf
        sizes[i] += sizes[j]
        label[label == j] = i
        left -= 1
    return torch.stack([features[torch.from_numpy(label == i)].mean(dim=0) for i in np.unique(label)])


def reptile(
    meta: Mapping[str, Tensor], adapted: Sequence[Mapping[str, Tensor]], step: float = 0.5
) -> dict[str, Tensor]:
    """One outer step of meta-training: the meta-prompt moves towards the mean of what tasks made of it.

        P <- P - step * mean over tasks and their clusters of (P - P_task)

    Args:
        meta: up, down, left and right, [1, 3, ...] each.
        adapted: The same of each task after its inner steps, [K, 3, ...]: those prompts that have a cluster.
        step: 0.5 in the official code's commands.
    """
    away = {name: torch.cat([p - task[name] for task in adapted]) for name, p in meta.items()}
    return {name: p - step * away[name].mean(dim=0, keepdim=True) for name, p in meta.items()}
