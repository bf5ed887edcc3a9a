"""From a configuration to a trained adapter and its result row."""

from __future__ import annotations

import dataclasses
import importlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import lightning.pytorch as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities import rank_zero_only

from vpeft import frozen, methods, protocols, run_folder
from vpeft.backbones.weights import check_file
from vpeft.checkpoint import save_adapter
from vpeft.config import AnyConfig, Config, ConfigError, TunedConfig
from vpeft.holding import held
from vpeft.job import Data, Job, Task
from vpeft.quiet import quieten
from vpeft.record import describe, manifest, method_list, parameter_counts, plain_settings, result_row
from vpeft.results import Row
from vpeft.run_folder import RunFolder
from vpeft.schema import mistakes
from vpeft.slurm import cluster
from vpeft.slurm.staging import local
from vpeft.tasks import checkpoint_file
from vpeft.tasks.averaging import BestOnVal, RunningAverage
from vpeft.tasks.curves import Curves
from vpeft.tasks.hparams import final_metrics, log_session
from vpeft.tasks.ranks import Ranks
from vpeft.tasks.reporting import Bar, EpochLines
from vpeft.tasks.resuming import AtomicCheckpoints, Finite, LastCheckpoint, StepSeeds
from vpeft.tasks.summary import print_summary
from vpeft.tasks.timing import Timing, Waiting

LOG_EVERY = 10  # batches between two points of the training curves
# What builds the job of every kind of run. `find(config)` says what the data is called, before anything is loaded;
# `assemble(config)` gives the `Job`; `manifest(config, task, data)` is what an adapter says beside what all of them do;
# `build_tuned(config, classes)`, where train.strategy fsdp is allowed, is another model like that of the job.
BUILDERS = {
    "classification": "vpeft.tasks.build",
    "segmentation": "vpeft.dense.build",
    "multitask": "vpeft.dense.multitask_build",
}
# Kinds that count in steps have runs of their own.
RUNS = {"openvocab": "vpeft.dense.openvocab_run", "mllm": "mllm.run", "blip2": "mllm.run"}

Kind = TypeVar("Kind", bound=TunedConfig)


def train(config: AnyConfig, beside: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
    """Train, test once after the last epoch, save the adapter and append one row to `<output>/results.jsonl`.

    Args:
        config: What to run.
        beside: Further fields of the row, of a member of a suite.

    Returns:
        The row.

    Raises:
        ValueError: A setting, the data or the backbone does not fit; nothing has been written.
        FileNotFoundError: The file in `pretrained` is missing; nothing has been written.
        FloatingPointError: The loss or a trained weight is no longer a number.
        SystemExit: A signal stopped the run (`vpeft.tasks.resuming.Interrupted`); it can be resumed.
    """
    if not isinstance(config, TunedConfig):
        return importlib.import_module(RUNS[config.kind]).train(config)
    cluster.settle_rank()
    config = complete(config)
    run = run_folder.find(config) if config.train.resume else None
    if run and run.result:
        print(f"{run.path} is finished already; its row is returned as it is.")
        return run.result
    timing = Timing(Waiting())
    job = assemble(local(config))
    run = run or new_run(config)
    with held(run):
        return carry_out(config, run, job, timing, beside or {})


def complete(config: Kind) -> Kind:
    """The configuration after `check`, with every option of its methods and its data under the data's own name."""
    check(config)
    # What the data is called, not what it was asked for as: one's own folder does not bear a published task's name.
    data = dataclasses.replace(config.data, task=_task_of(config))
    return dataclasses.replace(config, method=methods.resolve(config.method), data=data)


def assemble(config: TunedConfig) -> Job:
    """What a configuration trains, and on what; nothing has been written yet."""
    quieten()
    L.seed_everything(config.seed, workers=True, verbose=False)
    job = _builder(config).assemble(config)
    frozen.store(job.task.tuned, config.train.frozen)
    return job


def _builder(config: TunedConfig) -> Any:
    return importlib.import_module(BUILDERS[config.kind])


def check(config: TunedConfig) -> None:
    """Refuse settings that cannot work, before anything is loaded.

    Raises:
        ConfigError: The first mistake.
    """
    for _, sentence in mistakes(config):
        raise ConfigError(sentence)
    if config.protocol is not None:
        protocols.read(config.protocol, "protocol")
    if isinstance(config, Config) and config.cache_features:
        try:
            methods.check_cacheable(config.method)
        except ValueError as error:
            raise ConfigError(str(error)) from error
    train = config.train
    if train.selection == "best_val" and train.val_every > train.epochs:
        raise ConfigError(
            f"train.selection best_val chooses among evaluations, and train.val_every {train.val_every} leaves only "
            f"that of the last of {train.epochs} epochs; lower it."
        )
    if train.strategy == "fsdp" and (train.ema or train.selection == "best_val"):
        raise ConfigError("train.strategy fsdp keeps no second set of weights: leave out train.ema and best_val.")
    if train.strategy == "fsdp" and (looking := _preparing(config)):
        raise ConfigError(
            f"train.strategy fsdp leaves a share of every weight with each process, and {looking} looks at images "
            "through whole ones before it trains; use ddp."
        )
    if train.sync_batchnorm and (train.accelerator == "cpu" or not torch.cuda.is_available()):
        raise ConfigError("train.sync_batchnorm needs GPUs: torch's SyncBatchNorm has no form for a CPU.")
    if train.strategy == "fsdp" and train.precision == "16-mixed":
        raise ConfigError("train.strategy fsdp has no scaler for 16-mixed; use bf16-mixed or 32-true.")
    if train.frozen == "bf16" and (looking := _preparing(config)):
        raise ConfigError(
            f"train.frozen bf16 leaves no weights in single precision, in which {looking} looks at images before it "
            "trains on them; leave train.frozen out."
        )
    check_precision(train.precision, train.accelerator)


def check_precision(precision: str, accelerator: str) -> None:
    """Refuse 16-mixed where there is no GPU.

    Raises:
        ConfigError: It is asked for on a CPU.
    """
    if precision == "16-mixed" and (accelerator == "cpu" or not torch.cuda.is_available()):
        raise ConfigError("train.precision 16-mixed needs a GPU; use bf16-mixed or 32-true on a CPU.")


def _preparing(config: TunedConfig) -> str:
    """The methods, and the kind of head, that look at images before they train on them, joined by "and"."""
    names = [spec["name"] for spec in method_list(config)]
    looking = [name for name in names if issubclass(methods.METHODS[name], methods.Preparing)]
    head = config.head.kind if isinstance(config, Config) else ""
    return " and ".join(looking + [head] * (head in ("label_mapping", "active_features")))


def _task_of(config: TunedConfig) -> str:
    """The task in the data, found before a backbone is fetched for it, as is a file in `pretrained`."""
    task = _builder(config).find(config)
    if config.pretrained not in ("auto", "none"):
        check_file(Path(config.pretrained).expanduser())
    return task


def build_trainer(
    config: TunedConfig, run: RunFolder, timing: Timing, others: Sequence[L.Callback], label: str = ""
) -> L.Trainer:
    """Lightning's Trainer of a configuration, with everything that writes into the run's folder.

    A label stands before its lines on a terminal that it shares with other runs, where there is no bar.
    """
    settings = config.train
    callbacks: list[L.Callback] = [StepSeeds(config.seed), timing, *others, Finite(), Ranks(run.checkpoint)]
    on_screen = sys.stdout.isatty() and not label
    callbacks.append(Bar() if on_screen else EpochLines(label))
    callbacks.append(LastCheckpoint(run.checkpoint, "the same command with --train.resume true goes on from there."))
    logger = Curves(run.path.parent, run.path.name, "tensorboard", default_hp_metric=False)
    logger.hparams.update(plain_settings(config))  # for hparams.yaml; TensorBoard gets them with the final metric
    # Filling fresh memory with NaN finds bugs in kernels and costs time; order is what is wanted here.
    torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]
    return L.Trainer(
        accelerator=settings.accelerator,
        devices=settings.devices,
        num_nodes=settings.nodes,
        strategy=_strategy(config),
        precision=settings.precision,
        max_epochs=settings.epochs,
        accumulate_grad_batches=settings.accumulate,
        gradient_clip_val=settings.clip,
        check_val_every_n_epoch=settings.val_every,
        callbacks=callbacks,
        logger=logger,
        plugins=[AtomicCheckpoints(), cluster.environment(settings.devices, settings.nodes)],
        profiler=timing.waiting,
        # Resizing a map has no backward on a GPU that adds in the same order every time.
        deterministic=True if config.kind == "classification" else "warn",
        sync_batchnorm=settings.sync_batchnorm,
        use_distributed_sampler=False,  # the data module's own sampler divides the images
        num_sanity_val_steps=0,
        log_every_n_steps=LOG_EVERY,
        enable_progress_bar=on_screen,
        enable_model_summary=False,
        default_root_dir=run.path,
    )


def _strategy(config: TunedConfig) -> str | ModelParallelStrategy:
    settings = config.train
    if settings.strategy == "fsdp":
        return sharding(settings.devices * settings.nodes)
    several = settings.strategy == "ddp" or settings.devices != 1 or settings.nodes > 1
    # MTLoRA's trunk goes on behind the last maps that a task reads, so some of it gets no gradient.
    return "ddp_find_unused_parameters_true" if config.kind == "multitask" and several else settings.strategy


def sharding(processes: int) -> ModelParallelStrategy:
    """FSDP2 over all processes (on CPUs too, unlike Lightning's FSDPStrategy); checkpoints are whole."""
    return ModelParallelStrategy(processes, tensor_parallel_size=1, save_distributed_checkpoint=False)


def carry_out(
    config: TunedConfig, run: RunFolder, job: Job, timing: Timing, beside: Mapping[str, Any]
) -> Mapping[str, Any]:
    """Train, test and record a job that is built; the row (`train` says the rest)."""
    task, data = job.task, job.data
    best = BestOnVal() if config.train.selection == "best_val" else None
    average = RunningAverage(config.train.ema) if config.train.ema else None
    others = [one for one in (best, average, job.pictures, job.seat) if one]
    trainer = build_trainer(config, run, timing, others, run.path.name if job.seat else "")
    parameters = parameter_counts(task.tuned)  # before FSDP leaves a share of each here
    checkpoint = checkpoint_file.find(run.checkpoint) if config.train.resume else None
    if trainer.is_global_zero:
        said = describe(config, task, data, parameters)
        print(f"{run.path}: {said}{', resumed' if checkpoint else ''}", flush=True)
    if config.train.compile:
        task.tuned.compile()
    trainer.fit(task, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    val = task.evaluation
    if best:
        task.tuned.load_delta(best.delta)
    elif average:
        average.swap(task)
    if config.train.test:
        trainer.test(task, datamodule=data, verbose=False)
    row = result_row(config, run, task, data, timing, val, best, parameters, trainer)
    if trainer.is_global_zero:
        adapter = {"adapter": _save(config, run, task, data, row)} if config.train.test else {}
        _finish(config, run, row, beside, trainer, adapter)
    return {**row, **beside}


def _save(config: TunedConfig, run: RunFolder, task: Task, data: Data, row: Row) -> str:
    tuned = task.tuned
    if config.train.strategy == "fsdp":  # what this process holds is a share; the last checkpoint is whole
        state = checkpoint_file.read(run.checkpoint)["state_dict"]
        tuned = _builder(config).build_tuned(config, task.classes)
        tuned.load_delta({name.removeprefix("tuned."): tensor for name, tensor in state.items()})
    said = manifest(config, task, data, row) | _builder(config).manifest(config, task, data)
    save_adapter(run.adapter, tuned, said)
    return str(run.adapter)


def _finish(
    config: TunedConfig, run: RunFolder, row: Row, beside: Mapping[str, Any], trainer: L.Trainer, saved: dict[str, str]
) -> None:
    assert isinstance(trainer.logger, TensorBoardLogger)
    # The suite around a member has the one experiment that its sessions belong to.
    log_session(trainer.logger, plain_settings(config), final_metrics(row), trainer.global_step, "suite" not in beside)
    trainer.logger.finalize("success")
    results = config.output / "results.jsonl"
    run.finish({**row, **beside}, results)
    print_summary(row, saved | {"TensorBoard": f"tensorboard --logdir {config.output}", "row": str(results)})


def new_run(config: AnyConfig) -> RunFolder:
    """A fresh folder, made by the first process alone; the others write nothing."""
    if getattr(rank_zero_only, "rank", 0) != 0:
        return RunFolder(config.output / (config.name or run_folder.default_name(config)), "")
    left = [run.path for run in run_folder.same(config) if not run.result]
    run = run_folder.create(config)
    if left:
        print(
            f"{left[-1]} is unfinished and is left as it is. From now on --train.resume true goes on with {run.path}, "
            f"and with {left[-1]} once that is finished or removed."
        )
    return run
