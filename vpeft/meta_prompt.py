"""DAM-VP's meta-prompt: one border prompt, trained with Reptile over several tasks (arXiv:2303.08138).

    in every round, for every task:    P_k = P for each of its clusters,  then `inner_steps` on one batch
    then:                              P <- P - step * mean over tasks and their clusters of (P - P_k)

Defaults are those of the command in shikiw/DAM-VP @ dec5821 [MIT] for a tuned head on ViT-B/16 of ImageNet-21k: SGD,
and heads that train along, go on from round to round and are dropped in the end. With a frozen head the steps are
Adam's; the official rate is 0.5 then, without decay. The rate of the prompts follows a cosine to zero.

Differs: the prompt of the last round is kept, theirs is that of the least training loss, or of the best accuracy on
the test split of another task.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import lightning.pytorch as L
import torch
import torch.nn.functional as F
from rich.progress import Progress
from safetensors.torch import save_file
from torch import Tensor, nn

from vpeft import backbones, heads, methods, run
from vpeft.backbones.weights import content_hash
from vpeft.config import Config, ConfigError
from vpeft.data import ClassificationData
from vpeft.fetch import write_atomic
from vpeft.methods.dam_vp import DAMVP, reptile
from vpeft.normalization import normalization
from vpeft.predict import find_device
from vpeft.tasks.optimisation import schedule
from vpeft.tuned import Tuned

HEADS = ("linear", "active_features")  # the official code's head-tuning and head-frozen
Batch = tuple[Tensor, Tensor]  # normalised images [B, 3, H, W], labels [B]


@dataclass(frozen=True)
class Settings:
    """Of meta-training.

    Args:
        epochs: Passes over the smallest task, a round for each of its batches.
        inner_steps: Of the optimiser on a task's batch in a round.
        step: How far the meta-prompt goes towards the tasks' prompts.
        lr: Of the prompts in the first round.
        head_lr: Of the tasks' heads, constant.
        weight_decay: Of the prompts.
    """

    epochs: int = 200
    inner_steps: int = 4
    step: float = 0.5
    lr: float = 1.0
    head_lr: float = 0.1
    weight_decay: float = 1e-4

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            least = 1 if name in ("epochs", "inner_steps") else 0
            if not (math.isfinite(value) and value >= least):
                raise ConfigError(f"meta-training: {name} is {value}; give {least} or more.")


@dataclass
class Task:
    """One of the tasks: its images, its head, and the clusters of its images."""

    name: str
    data: ClassificationData
    head: nn.Module
    prototypes: Tensor
    clusters: Tensor


def meta_train(
    config: Config, tasks: Sequence[str], file: Path | str, settings: Settings | None = None, device: str | None = None
) -> Path:
    """Train a meta-prompt over tasks and write it; the file is whole after every pass.

    Args:
        config: Of DAM-VP alone. Its backbone, image size, head, data and seed hold for every task; `optim` and
            `train` are not read. Its own `meta`, where given, is what is started from.
        tasks: Values of `data.task`.
        file: What `meta` of DAM-VP then reads, *.safetensors.
        settings: Of meta-training.
        device: Torch's name of it; None is cuda where there is one.

    Returns:
        The file.

    Raises:
        ValueError: A setting, a task or the backbone does not fit; nothing has been written.
        FloatingPointError: The loss is no longer a number.
    """
    settings, file, place = settings or Settings(), Path(file), find_device(device)
    configs = _configs(config, tasks, file)
    L.seed_everything(config.seed, workers=True, verbose=False)
    backbone = backbones.create(config.backbone, config.pretrained, config.image_size, config.seed)
    backbone.normalization = normalization(config.normalization, backbone)
    torch.manual_seed(config.seed)
    (prompts,) = methods.build(configs[0].method, backbone)
    assert isinstance(prompts, DAMVP)
    tuned = Tuned(backbone, [prompts], nn.Identity()).to(place)
    loaded = [_task(one, tuned, prompts, place) for one in configs]
    meta = {name: parameter.detach()[:1].clone() for name, parameter in prompts.border.named_parameters()}
    rounds = min(len(task.data.train_dataloader()) for task in loaded)
    told = {"tasks": list(tasks), "backbone": backbone.name, **dataclasses.asdict(settings)}
    print(
        f"{file}: {sum(p.numel() for p in meta.values()):,} parameters from {len(loaded)} tasks of "
        f"{' and '.join(str(int(task.clusters)) for task in loaded)} clusters",
        flush=True,
    )
    with Progress(transient=True, disable=not sys.stdout.isatty()) as progress:
        bar = progress.add_task("meta-training", total=settings.epochs * rounds)
        for epoch in range(settings.epochs):
            losses = []
            for number, batches in enumerate(_batches(loaded, tuned, place, epoch)):
                rate = settings.lr * schedule(epoch * rounds + number, settings.epochs * rounds, 0)
                adapted = []
                for task, batch in zip(loaded, batches, strict=True):
                    prompts.prototypes.copy_(task.prototypes)
                    prompts.clusters.copy_(task.clusters)
                    after, loss = adapt(tuned, task.head, meta, batch, rate, settings)
                    adapted.append(after)
                    losses.append(loss)
                meta = reptile(meta, adapted, settings.step)
                progress.advance(bar)
            loss = sum(losses) / len(losses)
            if not math.isfinite(loss):
                raise FloatingPointError(f"The loss is {loss} in epoch {epoch + 1}; try a smaller lr or head_lr.")
            _save(file, meta, {**told, "epoch": epoch + 1})
            progress.console.print(f"epoch {epoch + 1}/{settings.epochs}  loss {loss:.4f}", highlight=False)
    print(f"meta-prompt: {file}\n  python tools/train.py CONFIG --method.meta {file}")
    return file


def adapt(
    tuned: Tuned, head: nn.Module, meta: Mapping[str, Tensor], batch: Batch, lr: float, settings: Settings
) -> tuple[dict[str, Tensor], float]:
    """What a task makes of the meta-prompt: prompts [clusters, 3, ...] of each side, and the last step's loss.

    Args:
        tuned: With DAM-VP alone, which has the clusters of this task.
        head: Of this task; it is trained too.
        meta: up, down, left and right, [1, 3, ...] each.
        batch: What the steps are taken on.
        lr: Of the prompts.
        settings: Of meta-training.
    """
    (prompts,) = tuned.methods
    assert isinstance(prompts, DAMVP)
    sides, (images, labels) = dict(prompts.border.named_parameters()), batch
    with torch.no_grad():
        for name, parameter in sides.items():
            parameter.copy_(meta[name].expand_as(parameter))
    groups = [
        {"params": list(sides.values()), "lr": lr, "weight_decay": settings.weight_decay},
        {"params": list(head.parameters()), "lr": settings.head_lr},
    ]
    loss, optimiser = torch.zeros(()), (torch.optim.SGD if groups[1]["params"] else torch.optim.Adam)(groups)
    for _ in range(settings.inner_steps):
        loss = F.cross_entropy(head(tuned(images)), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    count = int(prompts.clusters)
    chosen = torch.zeros(count, 1, 1, 1, dtype=torch.bool, device=images.device)
    chosen[prompts.choose(images)] = True  # weight decay has moved the others too
    after = {name: torch.where(chosen, p.detach()[:count], meta[name]) for name, p in sides.items()}
    return after, float(loss.detach())


def _configs(config: Config, tasks: Sequence[str], file: Path) -> list[Config]:
    """The configuration of each task, checked."""
    names = [spec["name"] for spec in (config.method if isinstance(config.method, list) else [config.method])]
    if names != ["dam_vp"]:
        raise ConfigError(f"A meta-prompt is for method dam_vp alone, not {' and '.join(names)}.")
    if config.head.kind not in HEADS:
        raise ConfigError(f"A meta-prompt is trained with head.kind {' or '.join(HEADS)}, not {config.head.kind}.")
    if file.suffix != ".safetensors":
        raise ConfigError(f"{file} is not a name for a meta-prompt; it has to end in .safetensors.")
    if not tasks or len(set(tasks)) < len(tasks):
        raise ConfigError(f"The tasks are {', '.join(tasks) or 'none'}; give at least one, and each once.")
    return [run.complete(dataclasses.replace(config, data=dataclasses.replace(config.data, task=t))) for t in tasks]


def _task(config: Config, tuned: Tuned, prompts: DAMVP, device: torch.device) -> Task:
    """Read a task's training images, find their clusters and make its head; the prompts go back to their start."""
    backbone = tuned.backbone
    data = ClassificationData(config.data, backbone.image_size, backbone.interpolation, config.seed)  # pyright: ignore[reportArgumentType]
    prompts.prepare(tuned, (_normalised(batch, tuned, device) for batch in data.train_in_order()), 0)
    head = heads.build(dataclasses.asdict(config.head), backbone, backbone.dim, data.classes).to(device)
    if isinstance(head, methods.Preparing):
        head.prepare(tuned, (), 0)  # active_features looks at noise
    return Task(config.data.task, data, head, prompts.prototypes.clone(), prompts.clusters.clone())


def _batches(tasks: Sequence[Task], tuned: Tuned, device: torch.device, epoch: int) -> Iterator[list[Batch]]:
    """A batch of every task at a time, until one has no more."""
    loaders = [task.data.train_dataloader() for task in tasks]
    for loader in loaders:
        loader.sampler.set_epoch(epoch)  # pyright: ignore[reportAttributeAccessIssue]
    for batches in zip(*loaders, strict=False):
        yield [_normalised(batch, tuned, device) for batch in batches]


def _normalised(batch: Mapping[str, Tensor], tuned: Tuned, device: torch.device) -> Batch:
    mean, std = (torch.tensor(values, device=device).view(3, 1, 1) for values in tuned.backbone.normalization)
    return (batch["image"].to(device).float() / 255 - mean) / std, batch["label"].to(device)


def _save(file: Path, meta: Mapping[str, Tensor], about: Mapping[str, object]) -> None:
    tensors = {name: tensor.cpu().contiguous() for name, tensor in meta.items()}
    metadata = {"format": "pt", "vpeft_meta_prompt": json.dumps(about), "sha256": content_hash(tensors)}
    write_atomic(file, lambda temporary: save_file(tensors, temporary, metadata))
