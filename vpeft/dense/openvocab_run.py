"""A run of `kind: openvocab`: counted in steps, tested on several vocabularies.

Its folder has the files of every run (`vpeft.run_folder`), and `san.safetensors` in place of an adapter.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.loggers import TensorBoardLogger

from vpeft import run_folder
from vpeft.backbones.weights import check_file
from vpeft.data.openvocab import OpenVocabData
from vpeft.dense import san_weights
from vpeft.dense.openvocab_pictures import VocabularyPictures
from vpeft.dense.openvocab_record import (
    describe,
    manifest,
    parameter_counts,
    parameter_table,
    print_summary,
    result_row,
)
from vpeft.dense.openvocab_schema import OpenVocabConfig
from vpeft.holding import held
from vpeft.record import plain_settings
from vpeft.run import LOG_EVERY, check_precision, new_run, quieten
from vpeft.run_folder import RunFolder
from vpeft.schema import ConfigError, mistakes
from vpeft.slurm import cluster
from vpeft.slurm.staging import local
from vpeft.tasks import checkpoint_file
from vpeft.tasks.curves import Curves
from vpeft.tasks.openvocab import OpenVocab, build
from vpeft.tasks.pictures import TestPictures
from vpeft.tasks.ranks import Ranks
from vpeft.tasks.resuming import AtomicCheckpoints, Finite, StepSeeds
from vpeft.tasks.stepping import StepCheckpoint, StepLines
from vpeft.tasks.timing import Timing, Waiting

ADVICE = "Try a lower optim.lr, a lower optim.clip, or --train.precision 32-true."


def train(config: OpenVocabConfig) -> Mapping[str, Any]:
    """Train, test once after the last step, save SAN and append one row to `<output>/results.jsonl`.

    With train.steps 0 it tests `model.weights` and saves no weights.

    Args:
        config: What to run.

    Returns:
        The row (`vpeft.dense.openvocab_record.result_row`).

    Raises:
        ValueError: A setting, the data or the weights do not fit; nothing has been written.
        FileNotFoundError: A file of weights is missing; nothing has been written.
        RuntimeError: CLIP's weights could not be had; nothing has been written.
        FloatingPointError: The loss or a trained weight is no longer a number.
        SystemExit: A signal stopped the run (`vpeft.tasks.resuming.Interrupted`); it can be resumed.
    """
    cluster.settle_rank()
    check(config)
    run = run_folder.find(config) if config.train.resume else None
    if run and run.result:
        print(f"{run.path} is finished already; its row is returned as it is.")
        return run.result
    timing = Timing(Waiting())
    quieten()
    L.seed_everything(config.seed, workers=True, verbose=False)
    task, data = build(local(config), training=config.train.steps > 0)
    run = run or new_run(config)
    with held(run):
        return _run(config, run, task, data, timing)


def check(config: OpenVocabConfig) -> None:
    """Refuse settings that cannot work, before anything is loaded.

    Raises:
        ConfigError: The first mistake.
        ValueError, FileNotFoundError: A file that is named holds no weights.
    """
    for _, sentence in mistakes(config):
        raise ConfigError(sentence)
    check_precision(config.train.precision, config.train.accelerator)
    model = config.model
    for file in (model.weights, None if model.pretrained in ("auto", "none") else model.pretrained):
        if file is not None:
            check_file(Path(file).expanduser())


def build_trainer(config: OpenVocabConfig, run: RunFolder, task: OpenVocab, timing: Timing) -> L.Trainer:
    """Lightning's Trainer of a configuration, with everything that writes into the run's folder."""
    settings = config.train
    on_screen = sys.stdout.isatty()
    hint = "the same command with --train.resume true goes on from there."
    callbacks: list[L.Callback] = [
        StepSeeds(config.seed),
        timing,
        TestPictures(VocabularyPictures(task.test_tables), 8),
        Finite(model="san", advice=ADVICE),
        Ranks(run.checkpoint),
        RichProgressBar(leave=False)
        if on_screen
        else StepLines({f"{name} mIoU": (f"val/{name}/miou", ".1%") for name in task.test_tables}),
        StepCheckpoint(run.checkpoint, hint, settings.val_every),
    ]
    logger = Curves(run.path.parent, run.path.name, "tensorboard", default_hp_metric=False)
    logger.hparams.update(plain_settings(config))
    torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]
    return L.Trainer(
        accelerator=settings.accelerator,
        devices=settings.devices,
        strategy=settings.strategy,
        precision=settings.precision,
        max_epochs=-1,
        max_steps=settings.steps,
        val_check_interval=settings.val_every,
        check_val_every_n_epoch=None,  # counts steps across epochs
        callbacks=callbacks,
        logger=logger,
        plugins=[AtomicCheckpoints(), cluster.environment(settings.devices, 1)],
        profiler=timing.waiting,
        deterministic="warn",  # resizing a map has no backward on a GPU that adds in the same order every time
        use_distributed_sampler=False,  # the data module's own sampler divides the images
        num_sanity_val_steps=0,
        log_every_n_steps=LOG_EVERY,
        enable_progress_bar=on_screen,
        enable_model_summary=False,
        default_root_dir=run.path,
    )


def _run(
    config: OpenVocabConfig, run: RunFolder, task: OpenVocab, data: OpenVocabData, timing: Timing
) -> Mapping[str, Any]:
    trainer = build_trainer(config, run, task, timing)
    clip = san_weights.clip_hash(task.san)
    start = san_weights.content_hash(task.san.delta())
    checkpoint = checkpoint_file.find(run.checkpoint) if config.train.resume else None
    if trainer.is_global_zero:
        print(f"{run.path}: {describe(config, task, data)}{', resumed' if checkpoint else ''}", flush=True)
    if config.train.steps:
        trainer.fit(task, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    trainer.test(task, datamodule=data, verbose=False)
    row = result_row(config, run, task, data, timing, trainer, {"clip": clip, "start": start})
    if trainer.is_global_zero:
        _save(config, run, task, data, row, trainer)
    return row


def _save(
    config: OpenVocabConfig,
    run: RunFolder,
    task: OpenVocab,
    data: OpenVocabData,
    row: dict[str, Any],
    trainer: L.Trainer,
) -> None:
    saved = {}
    if config.train.steps:
        file = run.path / "san.safetensors"
        san_weights.save(file, task.san, config.model, config.seed, manifest(config, task, data, row))
        saved["weights"] = f"{file}   (tools/segment.py IMAGE --classes ... --weights {file})"
    assert isinstance(trainer.logger, TensorBoardLogger)
    metrics = {f"final/{name}/miou": found["miou"] for name, found in row["test"].items()}
    trainer.logger.experiment.add_text("parameters", parameter_table(parameter_counts(task.san)), trainer.global_step)
    trainer.logger.log_hyperparams(plain_settings(config), metrics, step=trainer.global_step)
    trainer.logger.finalize("success")
    results = config.output / "results.jsonl"
    run.finish(row, results)
    print_summary(row, saved | {"TensorBoard": f"tensorboard --logdir {config.output}", "row": str(results)})
