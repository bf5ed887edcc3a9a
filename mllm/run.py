"""From a configuration to a trained adapter and its result row: runs of `kind: mllm` and `kind: blip2`.

Counted in steps. Folder, checkpoints, signals, seeds and timing are those of every run (`vpeft.run_folder`,
`vpeft.tasks.resuming`).
"""

from __future__ import annotations

import dataclasses
import importlib
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.loggers import TensorBoardLogger

from mllm.blip2.schema import Blip2Config
from mllm.job import Job
from mllm.record import describe, print_components, print_summary, result_row
from mllm.schema import MLLMConfig
from vpeft import methods, run_folder
from vpeft.backbones.weights import check_file
from vpeft.holding import held
from vpeft.record import plain_settings
from vpeft.run import LOG_EVERY, check_precision, new_run, quieten, sharding
from vpeft.run_folder import RunFolder
from vpeft.schema import ConfigError, mistakes
from vpeft.slurm import cluster
from vpeft.slurm.staging import local
from vpeft.tasks import checkpoint_file
from vpeft.tasks.curves import Curves
from vpeft.tasks.ranks import Ranks
from vpeft.tasks.resuming import AtomicCheckpoints, Finite, StepSeeds
from vpeft.tasks.stepping import NEVER, StepCheckpoint, StepEvaluations, StepLines
from vpeft.tasks.timing import Timing, Waiting
from vpeft.yaml_file import plain

ADVICE = "Try a lower optim.lr, a longer optim.warmup, --optim.clip 1.0, or --train.precision 32-true."
BUILDERS = {"mllm": "mllm.build", "blip2": "mllm.blip2.build"}


def train(config: MLLMConfig | Blip2Config) -> Mapping[str, Any]:
    """Train, test once after the last step, save the adapter and append one row to `<output>/results.jsonl`.

    Args:
        config: What to run.

    Returns:
        The row (`mllm.record.result_row`).

    Raises:
        ValueError: A setting, the data or a model does not fit; nothing has been written.
        FileNotFoundError: A file that is named is missing; nothing has been written.
        RuntimeError: Weights could not be had; nothing has been written.
        FloatingPointError: The loss or a trained weight is no longer a number.
        SystemExit: A signal stopped the run (`vpeft.tasks.resuming.Interrupted`); it can be resumed.
    """
    cluster.settle_rank()
    config = complete(config)
    run = run_folder.find(config) if config.train.resume else None
    if run and run.result:
        print(f"{run.path} is finished already; its row is returned as it is.")
        return run.result
    timing = Timing(Waiting())
    job = assemble(local(config))
    if config.train.devices == config.train.nodes == 1:
        job.data.setup()  # a sample that does not fit is found before there is a folder
    run = run or new_run(config)
    with held(run):
        return _run(config, run, job, timing)


def complete(config: MLLMConfig | Blip2Config) -> MLLMConfig | Blip2Config:
    """The configuration after `check`, with every option of its entries."""
    check(config)
    entries = {"method": methods.resolve(config.method)} | _builder(config).resolve(config)
    return dataclasses.replace(config, **plain(entries))


def assemble(config: MLLMConfig | Blip2Config) -> Job:
    """What a configuration trains, and on what; nothing has been written yet."""
    quieten()
    L.seed_everything(config.seed, workers=True, verbose=False)
    return _builder(config).assemble(config)


def _builder(config: MLLMConfig | Blip2Config) -> Any:
    return importlib.import_module(BUILDERS[config.kind])


def check(config: MLLMConfig | Blip2Config) -> None:
    """Refuse settings that cannot work, before anything is loaded.

    Raises:
        ConfigError: The first mistake.
        ValueError, FileNotFoundError: A file that is named holds no weights.
    """
    for _, sentence in mistakes(config):
        raise ConfigError(sentence)
    try:
        methods.check(config.method)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    for _, sentence in _builder(config).mistakes(config):
        raise ConfigError(sentence)
    check_precision(config.train.precision, config.train.accelerator)
    if config.train.strategy == "fsdp" and config.train.precision == "16-mixed":
        raise ConfigError("train.strategy fsdp has no scaler for 16-mixed; use bf16-mixed or 32-true.")
    if config.train.strategy == "fsdp" and config.train.devices == -1:
        raise ConfigError("train.strategy fsdp divides a model by a known number; give train.devices as one, not -1.")
    if config.vision.pretrained not in ("auto", "none"):
        check_file(Path(config.vision.pretrained).expanduser())


def steps_of(config: MLLMConfig | Blip2Config, data: Any) -> int:
    """Optimiser steps of a run; the data's Trainer knows how many processes share the samples.

    Raises:
        ValueError: There is nothing to train on.
    """
    if config.train.steps is not None:
        return config.train.steps
    batches = len(data.train_dataloader())  # of this process
    if not batches:
        raise ValueError(f"{config.data.task} has no batch to train on; lower data.batch_size.")
    return config.train.epochs * math.ceil(batches / config.train.accumulate)


def build_trainer(config: MLLMConfig | Blip2Config, run: RunFolder, timing: Timing, measure: str) -> L.Trainer:
    """Lightning's Trainer of a configuration, with everything that writes into the run's folder.

    Args:
        config: What to run.
        run: Its folder.
        timing: Measures the run.
        measure: What an evaluation on the validation samples logs and a line says.
    """
    settings = config.train
    on_screen = sys.stdout.isatty()
    hint = "the same command with --train.resume true goes on from there."
    every = settings.val_every or NEVER
    callbacks: list[L.Callback] = [
        StepSeeds(config.seed),
        timing,
        Finite(model="model", advice=ADVICE),
        Ranks(run.checkpoint),
        RichProgressBar(leave=False) if on_screen else StepLines({measure: (f"val/{measure}", ".4f")}),
        StepEvaluations(every),
        StepCheckpoint(run.checkpoint, hint, every),
    ]
    logger = Curves(run.path.parent, run.path.name, "tensorboard", default_hp_metric=False)
    logger.hparams.update(plain_settings(config))
    torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]
    return L.Trainer(
        accelerator=settings.accelerator,
        devices=settings.devices,
        num_nodes=settings.nodes,
        strategy=sharding(settings.devices * settings.nodes) if settings.strategy == "fsdp" else settings.strategy,
        precision=settings.precision,
        max_epochs=-1,
        accumulate_grad_batches=settings.accumulate,
        gradient_clip_val=config.optim.clip,
        val_check_interval=NEVER,  # StepEvaluations says when
        check_val_every_n_epoch=None,
        limit_val_batches=None if settings.val_every else 0,
        callbacks=callbacks,
        logger=logger,
        plugins=[AtomicCheckpoints(), cluster.environment(settings.devices, settings.nodes)],
        profiler=timing.waiting,
        deterministic="warn",  # attention has backwards on a GPU that do not add in the same order every time
        use_distributed_sampler=False,  # the data module's own sampler divides the samples
        num_sanity_val_steps=0,
        log_every_n_steps=LOG_EVERY,
        enable_progress_bar=on_screen,
        enable_model_summary=False,
        default_root_dir=run.path,
    )


def _run(config: MLLMConfig | Blip2Config, run: RunFolder, job: Job, timing: Timing) -> Mapping[str, Any]:
    task, data = job.task, job.data
    trainer = build_trainer(config, run, timing, task.measure)
    data.trainer = trainer
    checkpoint = checkpoint_file.find(run.checkpoint) if config.train.resume else None
    if checkpoint:  # the number of steps follows from the samples that there were
        data.load_state_dict(checkpoint_file.read(checkpoint)[type(data).__qualname__])
    trainer.fit_loop.epoch_loop.max_steps = steps_of(config, data)
    components = {name: sum(p.numel() for _, p in named) for name, named in task.model.components().items()}
    totals = task.model.totals()  # before FSDP leaves a share of each here
    if trainer.is_global_zero:
        print_components(components, totals)
        print(f"{run.path}: {describe(config, data, trainer)}{', resumed' if checkpoint else ''}", flush=True)
    trainer.fit(task, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    due = any(isinstance(one, StepEvaluations) and one.due(trainer) for one in callbacks)
    if due and data.provenance["counts"]["val"]:
        trainer.validate(task, datamodule=data, verbose=False)  # it was stopped in its last evaluation
    val, task.evaluation = task.evaluation, None
    if data.provenance["counts"]["test"]:
        trainer.test(task, datamodule=data, verbose=False)
    row = result_row(config, run, job, timing, trainer, val, components, totals)
    if trainer.is_global_zero:
        _save(config, run, job, row, trainer)
    return row


def _save(
    config: MLLMConfig | Blip2Config, run: RunFolder, job: Job, row: Mapping[str, Any], trainer: L.Trainer
) -> None:
    job.save(run.adapter, row)
    assert isinstance(trainer.logger, TensorBoardLogger)
    metrics = {f"final/{name}": value for name, value in row["test"].items() if isinstance(value, float)}
    trainer.logger.log_hyperparams(plain_settings(config), metrics, step=trainer.global_step)
    trainer.logger.finalize("success")
    results = config.output / "results.jsonl"
    run.finish(row, results)
    saved = {"adapter": str(run.adapter), "TensorBoard": f"tensorboard --logdir {config.output}", "row": str(results)}
    print_summary(row, saved)
