"""What every LightningModule of this project does around its loss.

Methods are told of the steps, and checkpoints hold only what is trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import lightning.pytorch as L
import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from vpeft.methods import Penalised, Stepping
from vpeft.schema import OptimConfig
from vpeft.tasks.optimisation import build_schedule, learning_rates, optimizer, parameter_groups
from vpeft.tuned import Tuned


def penalty(tuned: Tuned) -> Tensor | float:
    """The terms that methods add to the loss; 0 without one."""
    return sum((method.penalty() for method in tuned.methods if isinstance(method, Penalised)), start=0.0)


def optimisation(trainer: L.Trainer, tuned: Tuned, optim: OptimConfig, epochs: int) -> Any:
    """Optimiser and schedule of all that is trained, for Lightning."""
    groups = parameter_groups(tuned.parameter_groups(), optim, tuned.levels())
    built = optimizer(groups, optim, fusing(trainer))
    return build_schedule(built, optim, int(trainer.estimated_stepping_batches), epochs)


def fusing(trainer: L.Trainer) -> bool:
    """Whether AdamW can be one kernel.

    In mixed precision Lightning does not clip for such an optimiser, and in 16-mixed it leaves gradients scaled, which
    methods read before the step.
    """
    return trainer.precision == "32-true" or (trainer.precision == "bf16-mixed" and not trainer.gradient_clip_val)


def log_step(module: L.LightningModule, values: Mapping[str, Tensor], images: int) -> None:
    """Log values of a batch of so many images, and the learning rate of every part.

    In batches whose values are written; Lightning takes half a millisecond of a CPU for a value that is not, too.
    """
    trainer = module.trainer
    if (trainer.global_step + 1) % trainer.log_every_n_steps:  # pyright: ignore[reportAttributeAccessIssue]
        return
    rates = {f"lr/{name}": rate for name, rate in learning_rates(trainer.optimizers[0]).items()}
    module.log_dict({**values, **rates}, batch_size=images)


def after_backward(trainer: L.Trainer, tuned: Tuned) -> None:
    """Tell the methods that all gradients of the present optimiser step are there."""
    for method in tuned.methods:
        if isinstance(method, Stepping):
            method.after_backward(trainer.global_step, int(trainer.estimated_stepping_batches))


def after_step(trainer: L.Trainer, tuned: Tuned, step: int) -> None:
    """Tell the methods that optimiser step `step` is done."""
    for method in tuned.methods:
        if isinstance(method, Stepping):
            method.after_step(step, int(trainer.estimated_stepping_batches))


class Trained(Protocol):
    def delta(self) -> dict[str, Tensor]: ...  # everything that training changes


def keep_trained(checkpoint: dict[str, Any], model: Trained, name: str = "tuned") -> None:
    """Take what is frozen out of a checkpoint of a module that holds the model under this name."""
    kept, state = _names(model, name), checkpoint["state_dict"]
    checkpoint["state_dict"] = {name: tensor for name, tensor in state.items() if name in kept}
    checkpoint["trained"] = sorted(kept)  # FSDP has taken the tensors out before on_load_checkpoint looks


def check_trained(checkpoint: dict[str, Any], model: Trained, name: str = "tuned") -> None:
    """Raise ValueError unless the checkpoint holds what this model trains, and nothing else."""
    stored, kept = set(checkpoint["trained"]), _names(model, name)
    if stored != kept:
        raise ValueError(
            f"The checkpoint does not fit this model: it lacks {sorted(kept - stored)[:3] or 'nothing'} and has "
            f"{sorted(stored - kept)[:3] or 'nothing'} too many. Resume with the config saved beside it."
        )


def evaluate_the_last_epoch(trainer: L.Trainer) -> None:
    """Whatever train.val_every is, the last epoch is evaluated: the row gives its score.

    Called at every batch, because a run resumed in the middle of an epoch does not see its start.
    """
    if trainer.max_epochs is not None and trainer.current_epoch + 1 == trainer.max_epochs:
        trainer.check_val_every_n_epoch = 1


def share_statistics(trainer: L.Trainer, tuned: Tuned) -> None:
    """Give every process the first one's statistics of BatchNorm, so that all evaluate the model that is saved.

    In training each gathers those of its own images. DDP levels them before a forward of training or of val, and not
    before a test, which with no val split follows training at once.
    """
    if trainer.world_size > 1:
        for module in tuned.modules():
            if isinstance(module, _BatchNorm):
                for statistics in module.buffers():
                    torch.distributed.broadcast(statistics, 0)


def normalise(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """What a model sees of uint8 images [B, 3, H, W]; mean and std are [1, 3, 1, 1], on the scale 0..1."""
    return (images.float() / 255 - mean) / std


def channels(values: tuple[float, ...]) -> Tensor:
    """[C] as [1, C, 1, 1]."""
    return torch.tensor(values).view(1, -1, 1, 1)


def _names(model: Trained, name: str) -> set[str]:
    return {f"{name}.{key}" for key in model.delta()}
